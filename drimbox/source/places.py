"""How many requests are answered at once, in all and for one Consumer (DB.SO.35, E1003).

A request beyond a limit waits its turn, for a bounded time and in a bounded line; then it is refused with
E1003, for the client to come back. A place that comes free goes to the Consumer with the fewest answers
running, and among its equals to the request that waits longest: one Consumer that asks for a hundred
series delays itself, not the others. For the same reason it may take no more than half of the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from drimbox import metrics
from drimbox.errors import TooManyRequests

#: Seconds in the Retry-After of a request for which there is no room even to wait.
_RETRY_AFTER = 5


@attrs.frozen(eq=False)
class _Waiter:
    consumer: str
    turn: Deferred[None]


class Places:
    """The places of the gateway, and who waits for one.

    `total` answers run at once, `each` of them for one Consumer; `line` requests may wait.
    """

    def __init__(self, *, total: int, each: int, line: int, clock: IReactorTime) -> None:
        self._total = total
        self._each = each
        self._line = line
        self._clock = clock
        self._running: Counter[str] = Counter()
        #: In order of arrival.
        self._waiting: list[_Waiter] = []

    async def take(
        self, consumer: str, timeout: float, leaving: Callable[[Callable[[], None]], None]
    ) -> None:
        """Take a place for one answer to `consumer`; `leave` gives it back.

        Waits for at most `timeout` seconds. While it does, the callback it gives to `leaving` ends the
        wait: the client is gone. Raises `TooManyRequests` (E1003), `CancelledError` when the client left.
        """
        if self._admits(consumer):
            self._enter(consumer)
        else:
            # Whom `_next` lets go on has its place already: nobody can take it in between.
            await self._wait(consumer, timeout, leaving)

    def leave(self, consumer: str) -> None:
        """Give a place back; whoever waits and may now, goes on."""
        self._running[consumer] -= 1
        if not self._running[consumer]:
            del self._running[consumer]
        self._next()
        self._count()

    # -- own ---------------------------------------------------------------------------------------

    def _admits(self, consumer: str) -> bool:
        return self._running.total() < self._total and self._running[consumer] < self._each

    def _enter(self, consumer: str) -> None:
        self._running[consumer] += 1
        self._count()

    async def _wait(
        self, consumer: str, timeout: float, leaving: Callable[[Callable[[], None]], None]
    ) -> None:
        of_this_one = sum(waiter.consumer == consumer for waiter in self._waiting)
        if timeout <= 0 or len(self._waiting) >= self._line or of_this_one >= (self._line + 1) // 2:
            raise TooManyRequests("limite de requêtes simultanées atteinte", retry_after=_RETRY_AFTER)
        waiter = _Waiter(consumer, Deferred())
        self._waiting.append(waiter)
        self._count()
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            waiter.turn.cancel()

        timer = self._clock.callLater(timeout, expire)
        leaving(waiter.turn.cancel)
        try:
            await waiter.turn
        except CancelledError:
            self._waiting.remove(waiter)
            self._count()
            if expired:
                raise TooManyRequests(
                    f"aucune place après {timeout:.0f} s", retry_after=max(1, int(timeout))
                ) from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _next(self) -> None:
        """Give every free place to the one whose turn it is."""
        while self._running.total() < self._total:
            able = [waiter for waiter in self._waiting if self._running[waiter.consumer] < self._each]
            if not able:
                return
            first = min(able, key=lambda waiter: self._running[waiter.consumer])
            self._waiting.remove(first)
            self._enter(first.consumer)
            first.turn.callback(None)

    def _count(self) -> None:
        metrics.DELIVERIES_RUNNING.set(self._running.total())
        metrics.DELIVERIES_WAITING.set(len(self._waiting))
