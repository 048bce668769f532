"""Workers: take rows of a queue, work on a few at once, never stop because one of them broke."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.store.errors import NotInHand
from drimbox.store.queue import LEASE

#: Longest wait between two tries to put a row off, seconds.
LONGEST_WAIT = 60.0
#: Seconds between two renewals: one that fails leaves time for another.
RENEW_EVERY = LEASE / 4

Item = TypeVar("Item")


class Worker(Service, Generic[Item]):
    """Works on the rows of one queue, at most `parallel` at once.

    `take(limit)` returns due rows and holds them; `work(row)` ends or puts off a row; `broken(row, error)`
    puts it off after a failure nobody foresaw, and is tried until it works: a full disk breaks both, and a
    row left in hand would wait for the next start. Meanwhile it keeps its place among the `parallel`, so
    that the others are not taken to the same fate. Without rows, looks again after `interval` seconds, or
    at `wake`. While `hold()` says so, in seconds until the next look, no row is taken.

    While rows are worked on, `renew(rows)` is called every `renew_every` seconds, until it returns: nobody
    else takes what is not done yet, however long that takes.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[int], Awaitable[Sequence[Item]]],
        work: Callable[[Item], Awaitable[None]],
        broken: Callable[[Item, Exception], Awaitable[object]],
        parallel: int,
        clock: IReactorTime,
        interval: float = 1.0,
        hold: Callable[[], float] = lambda: 0.0,
        renew: Callable[[Sequence[Item]], Awaitable[object]] | None = None,
        renew_every: float = RENEW_EVERY,
    ) -> None:
        self.setName(name)
        self._hold = hold
        #: Seconds until the next look when the last one was held back.
        self._held = 0.0
        self._take = take
        self._work = work
        self._broken = broken
        self._parallel = parallel
        self._clock = clock
        self._interval = interval
        self._renew = renew
        self._renew_every = renew_every
        self._renewal: IDelayedCall | None = None
        #: What is being worked on, by a number of our own.
        self._rows: dict[int, Item] = {}
        self._numbers = itertools.count()
        self._looking = False
        self._again = False
        self._timer: IDelayedCall | None = None
        self._stopping: Deferred[None] | None = None
        self._stopped = False
        self._sleepers: dict[Deferred[None], IDelayedCall] = {}

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
        for sleeper in list(self._sleepers):
            self._rouse(sleeper)
        if (self._rows or self._looking) and self._stopping is None:
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
        Deferred.fromCoroutine(self._look_on()).addErrback(self._look_failed).addBoth(self._looked)

    async def _look_on(self) -> None:
        """Look until nobody asked for one more look meanwhile: a loop, because rows may end at once."""
        while True:
            self._again = False
            await self._look()
            if not self._again or self._stopped:
                return

    async def _look(self) -> None:
        room = self._parallel - len(self._rows)
        self._held = self._hold() if room > 0 else 0.0
        if room <= 0 or self._held:
            return
        for row in await self._take(room):
            number = next(self._numbers)
            self._rows[number] = row
            Deferred.fromCoroutine(self._one(row)).addBoth(self._done, number)
        self._renew_later()

    async def _one(self, row: Item) -> None:
        try:
            await self._work(row)
        except Exception as error:
            self.log.failure("{name}: work failed, put off", failure=Failure(), name=self.name)
            await self._put_off(row, error)

    async def _put_off(self, row: Item, cause: Exception) -> None:
        wait = self._interval
        while True:
            try:
                await self._broken(row, cause)
                return
            except NotInHand:
                # It had ended before its work broke.
                return
            except Exception:
                self.log.failure("{name}: could not be put off", failure=Failure(), name=self.name)
            if self._stopped:
                # The next start gives it back.
                return
            await self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _sleep(self, seconds: float) -> None:
        sleeper: Deferred[None] = Deferred()
        self._sleepers[sleeper] = self._clock.callLater(seconds, self._rouse, sleeper)
        await sleeper

    def _rouse(self, sleeper: Deferred[None]) -> None:
        timer = self._sleepers.pop(sleeper)
        if timer.active():
            timer.cancel()
        sleeper.callback(None)

    def _renew_later(self) -> None:
        if self._renew is not None and self._renewal is None and self._rows:
            self._renewal = self._clock.callLater(self._renew_every, self._renew_now)

    def _renew_now(self) -> None:
        Deferred.fromCoroutine(self._renewed()).addErrback(self._renew_failed).addBoth(self._renew_again)

    async def _renewed(self) -> None:
        assert self._renew is not None
        await self._renew(list(self._rows.values()))

    def _renew_failed(self, failure: Failure) -> None:
        # What was lost to somebody else meanwhile can end nothing any more: the store sees to that.
        self.log.failure("{name}: rows in hand not renewed", failure=failure, name=self.name)

    def _renew_again(self, result: object) -> None:
        self._renewal = None
        self._renew_later()

    def _done(self, result: object, number: int) -> None:
        del self._rows[number]
        if not self._rows and self._renewal is not None and self._renewal.active():
            self._renewal.cancel()
            self._renewal = None
        self.wake()
        self._settle()

    def _look_failed(self, failure: Failure) -> None:
        self.log.failure("{name}: queue not readable", failure=failure, name=self.name)

    def _looked(self, result: object) -> None:
        self._looking = False
        if not self._stopped:
            self._cancel()
            self._timer = self._clock.callLater(self._held or self._interval, self.wake)
        self._settle()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _settle(self) -> None:
        if self._stopping is not None and not self._rows and not self._looking:
            stopping, self._stopping = self._stopping, None
            stopping.callback(None)
