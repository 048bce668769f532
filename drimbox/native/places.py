"""How many readings an archive is asked for at once; first come, first served."""

from __future__ import annotations

import math
from collections import deque

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from drimbox.errors import TooManyRequests


class Places:
    """The places of one archive."""

    def __init__(self, total: int, clock: IReactorTime) -> None:
        self.total = self.free = total
        self._clock = clock
        self._line: deque[Deferred[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._line)

    async def take(self, wait: float) -> None:
        """Take one place, waiting for it `wait` seconds at most.

        Raises `TooManyRequests`, and `CancelledError` when cancelled.
        """
        if self.free and not self._line:
            self.free -= 1
            return
        waiting: Deferred[None] = Deferred()
        self._line.append(waiting)
        timer = self._clock.callLater(wait, waiting.cancel)
        try:
            await waiting
        except CancelledError:
            self._line.remove(waiting)
            if timer.active():
                raise
            raise TooManyRequests(
                "lectures simultanées de l'archive épuisées", retry_after=max(1, math.ceil(wait))
            ) from None
        finally:
            if timer.active():
                timer.cancel()

    def more(self, most: int) -> int:
        """Take at most `most` further places, none while somebody waits for one; return how many."""
        count = 0 if self._line else max(0, min(most, self.free))
        self.free -= count
        return count

    def give_back(self) -> None:
        """Give one place back."""
        if self._line:
            self._line.popleft().callback(None)
        else:
            self.free += 1
