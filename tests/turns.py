"""Tests that measure time have the machine to themselves, when several processes share the tests.

Every test holds one lock shared; one marked `alone` holds it alone, from its set-up to its teardown. Who
waits for the lock stands in the way of who comes later (a second lock), or those that share it would never
all be gone. While a process waits its reactor turns: the peers that its next tests need live in there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest_twisted
from twisted.internet import task
from twisted.internet.defer import Deferred

_STEP = 0.05


class Turns:
    """The locks of one process. They end with it, whatever it dies of."""

    def __init__(self, path: Path) -> None:
        """`path` is the same in all processes of a run; two files are made there."""
        self._door, self._room = (
            os.open(path.with_name(path.name + end), os.O_RDWR | os.O_CREAT, 0o600)
            for end in (".door", ".room")
        )

    @contextmanager
    def hold(self, *, alone: bool) -> Iterator[None]:
        """Wait for one's turn, and have it."""
        _take(self._door, fcntl.LOCK_EX)
        try:
            _take(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)


def _take(descriptor: int, kind: int) -> None:
    if not _taken(descriptor, kind):
        pytest_twisted.blockon(Deferred.fromCoroutine(_taken_in_time(descriptor, kind)))


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _taken_in_time(descriptor: int, kind: int) -> None:
    from twisted.internet import reactor

    while not _taken(descriptor, kind):
        await task.deferLater(reactor, _STEP)
