"""What all works of a day share: how long it lasts, what was done, and what must be in the audit trail."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure


class Day:
    """A stretch of time in which several works go on at once; it may be run several times."""

    def __init__(self) -> None:
        #: What was done and found good, by name.
        self.done: Counter[str] = Counter()
        #: Audit records that must be there, by name (`trail`).
        self.asked: Counter[str] = Counter()
        clock: Any = reactor
        self._now: Callable[[], float] = clock.seconds
        self._end = 0.0
        self._whole = False
        self._failures: list[Failure] = []

    async def run(
        self, seconds: float, works: Sequence[Callable[[], Awaitable[None]]], *, whole: bool
    ) -> None:
        """Do all works for so long; the first one that fails ends the day for all, and is raised.

        `whole` lets it last until each work has done everything it can do.
        """
        self._end, self._whole = self._now() + seconds, whole
        done = [Deferred.fromCoroutine(_begun(work)).addErrback(self._failures.append) for work in works]
        await gatherResults(done)
        if self._failures:
            self._failures[0].raiseException()

    def rounds(self) -> Iterator[int]:
        """Yield the numbers of rounds, one of which does everything, until the day is over."""
        for number in itertools.count():
            if not self.wants(enough=number > 0):
                break
            yield number

    def wants(self, enough: bool = True) -> bool:
        """Say whether a work should go on; `enough` tells that it has done everything once."""
        return not self._failures and (self._now() < self._end or (self._whole and not enough))


async def _begun(work: Callable[[], Awaitable[None]]) -> None:
    await work()
