"""Waiting that can be cut short: everything a long work waits for ends when it is told to stop."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime


class Stopped(Exception):
    """Whoever works must stop here."""


class Pauses:
    """The waits of one work."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._sleepers: set[Deferred[None]] = set()
        self._stopped = False

    def stop(self) -> None:
        """End every wait, present and to come, with `Stopped`."""
        self._stopped = True
        for sleeper in list(self._sleepers):
            sleeper.callback(None)

    def check(self) -> None:
        """Raise `Stopped` once stopped."""
        if self._stopped:
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Wait. Raises `Stopped`."""
        self.check()
        sleeper: Deferred[None] = Deferred()
        self._sleepers.add(sleeper)
        timer = self._clock.callLater(max(0.0, seconds), sleeper.callback, None)
        try:
            await sleeper
        finally:
            self._sleepers.discard(sleeper)
            if timer.active():
                timer.cancel()
        self.check()


def after(ended: Deferred[None]) -> Deferred[None]:
    """Return what fires after `ended`, for one of those who wait for it."""
    mine: Deferred[None] = Deferred()

    def over(_: object) -> None:
        if not mine.called:
            mine.callback(None)

    ended.addCallback(over)
    return mine
