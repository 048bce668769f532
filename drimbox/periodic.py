"""Work done again and again: at its hour give or take a little, never twice at once, whatever goes wrong.

The interval counts from beginning to beginning; work that outlasts it makes the next one be left out, not
pile up. The jitter keeps the work of many sites, or of many gateways on one PACS, from falling together.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

#: Part of the interval by which the next beginning may come early or late.
JITTER = 0.05


def random_fraction() -> float:
    """Return a number from 0 to 1; not `random`, whose seed a test may have fixed."""
    return secrets.randbelow(1_000_001) / 1_000_000


class Periodic(Service):
    """Does `work()` every `period` seconds, the first time within `first` seconds, at random."""

    log = Logger()

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        period: float,
        clock: IReactorTime,
        *,
        first: float,
        random: Callable[[], float] = random_fraction,
    ) -> None:
        self.setName(name)
        self._work = work
        self._period = period
        self._clock = clock
        self._first = first
        self._random = random
        self._timer: IDelayedCall | None = None
        #: Fires when the work in hand has ended, None while there is none.
        self._busy: Deferred[None] | None = None

    def startService(self) -> None:
        """Wait for the first time."""
        super().startService()
        if self._busy is None:
            self._timer = self._clock.callLater(self._first * self._random(), self._turn)

    def stopService(self) -> Deferred[None] | None:
        """Begin no more; wait for the work in hand, which whoever owns it may cut short."""
        super().stopService()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._busy is None:
            return None
        waiting: Deferred[None] = Deferred()
        self._busy.addCallback(lambda _: waiting.callback(None))
        return waiting

    def _turn(self) -> None:
        self._timer = None
        began = self._clock.seconds()
        self._busy = Deferred()
        work = Deferred.fromCoroutine(self._once())
        work.addErrback(self._failed)
        work.addCallback(self._done, began)

    async def _once(self) -> None:
        await self._work()

    def _failed(self, failure: Failure) -> None:
        self.log.failure("{name}: failed, done again next time", failure=failure, name=self.name)

    def _done(self, _: object, began: float) -> None:
        busy, self._busy = self._busy, None
        if self.running:
            step = self._period * (1 - JITTER + 2 * JITTER * self._random())
            delay = began + step - self._clock.seconds()
            if delay < 0:
                # Late: the next beginning of the series that has not passed yet.
                delay %= self._period
            # A clock that was set back makes nobody wait longer than one step.
            self._timer = self._clock.callLater(min(delay, step), self._turn)
        if busy is not None:
            busy.callback(None)
