"""Workers: take rows of a queue, work on a few at once, never stop because one of them broke."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

Item = TypeVar("Item")


class Worker(Service, Generic[Item]):
    """Works on the rows of one queue, at most `parallel` at once.

    `take(limit)` returns due rows and holds them; `work(row)` ends or puts off a row; `broken(row)` puts
    it off after a failure nobody foresaw. Without rows, looks again after `interval` seconds, or at
    `wake`.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[int], Awaitable[Sequence[Item]]],
        work: Callable[[Item], Awaitable[None]],
        broken: Callable[[Item], Awaitable[None]],
        parallel: int,
        clock: IReactorTime,
        interval: float = 1.0,
    ) -> None:
        self.setName(name)
        self._take = take
        self._work = work
        self._broken = broken
        self._parallel = parallel
        self._clock = clock
        self._interval = interval
        self._busy = 0
        self._looking = False
        self._again = False
        self._timer: IDelayedCall | None = None
        self._stopping: Deferred[None] | None = None
        self._stopped = False

    def startService(self) -> None:
        """Look for the first rows."""
        super().startService()
        self._stopped = False
        self.wake()

    def stopService(self) -> Deferred[None] | None:
        """Take no more; wait for what is being worked on."""
        super().stopService()
        self._stopped = True
        self._cancel()
        if (self._busy or self._looking) and self._stopping is None:
            self._stopping = Deferred()
        return self._stopping

    def wake(self) -> None:
        """There may be something to do."""
        if self._stopped or not self.running:
            return
        if self._looking:
            self._again = True
            return
        self._cancel()
        self._looking = True
        Deferred.fromCoroutine(self._look()).addErrback(self._look_failed).addBoth(self._looked)

    async def _look(self) -> None:
        room = self._parallel - self._busy
        if room <= 0:
            return
        for row in await self._take(room):
            self._busy += 1
            Deferred.fromCoroutine(self._one(row)).addBoth(self._done)

    async def _one(self, row: Item) -> None:
        try:
            await self._work(row)
        except Exception:
            self.log.failure("{name}: work failed, put off", failure=Failure(), name=self.name)
            try:
                await self._broken(row)
            except Exception:
                # The row stays in hand: it comes back when its lease ends, or at the next start.
                self.log.failure("{name}: could not be put off", failure=Failure(), name=self.name)

    def _done(self, result: object) -> None:
        self._busy -= 1
        self.wake()
        self._settle()

    def _look_failed(self, failure: Failure) -> None:
        self.log.failure("{name}: queue not readable", failure=failure, name=self.name)

    def _looked(self, result: object) -> None:
        self._looking = False
        again, self._again = self._again, False
        if again:
            self.wake()
        elif not self._stopped:
            self._cancel()
            self._timer = self._clock.callLater(self._interval, self.wake)
        self._settle()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _settle(self) -> None:
        if self._stopping is not None and not self._busy and not self._looking:
            stopping, self._stopping = self._stopping, None
            stopping.callback(None)
