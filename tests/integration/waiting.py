"""Waiting, in tests whose peers live in other threads and processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred


def wait(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end from a fixture."""
    return pytest_twisted.blockon(Deferred.fromCoroutine(work))


async def until(condition: Callable[[], Any], *, seconds: float = 30.0, what: str = "") -> Any:
    """Wait until `condition` (a coroutine function, perhaps) gives something true; return it."""
    clock: Any = reactor
    limit = clock.seconds() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert clock.seconds() < limit, f"waited {seconds} s in vain: {what or condition}"
        await task.deferLater(clock, 0.03)


async def pause(seconds: float) -> None:
    """Let time pass."""
    clock: Any = reactor
    await task.deferLater(clock, seconds)
