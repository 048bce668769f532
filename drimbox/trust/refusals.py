"""Refused connections in audit trail and log, without letting whoever is refused fill them (DB.SO.47).

The first refusal of an address is written at once; those that follow for the same reason within a minute
are counted and written as one. What is remembered is bounded: an attack from many addresses ends in one
record for all those that no longer fit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from drimbox.limits import Why

#: Seconds for which the refusals of one address for one reason make one record.
WINDOW = 60.0
#: Addresses and reasons told apart within a window.
MAX_ADDRESSES = 256
#: Address written for all those beyond.
OTHERS = "plusieurs adresses"


class Refusals:
    """Collects refusals; `record` is awaited with address, name called, reason, and how many it is for."""

    log = Logger()

    def __init__(
        self, record: Callable[[str, str, Why, int], Awaitable[None]], clock: IReactorTime
    ) -> None:
        self._record = record
        self._clock = clock
        #: Refusals since the record of an address and reason, and the name called last.
        self._counts: dict[tuple[str, Why], int] = {}
        self._names: dict[tuple[str, Why], str] = {}
        self._timer: IDelayedCall | None = None

    def refused(self, address: str, name: str, why: Why = Why.HANDSHAKE) -> None:
        """Take note of one refused connection."""
        key = (address, why)
        if key not in self._counts and len(self._counts) >= MAX_ADDRESSES:
            key, name = (OTHERS, why), ""
        known = key in self._counts
        self._names[key] = name
        if known:
            self._counts[key] += 1
        else:
            self._counts[key] = 0
            self._write(key, name, 1)
        if self._timer is None:
            self._timer = self._clock.callLater(WINDOW, self._flush)

    def stop(self) -> None:
        """Write what was counted; nothing more is expected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()

    def _flush(self) -> None:
        self._timer = None
        counts, self._counts = self._counts, {}
        names, self._names = self._names, {}
        for key, count in counts.items():
            if count:
                self._write(key, names[key], count)

    def _write(self, key: tuple[str, Why], name: str, count: int) -> None:
        async def write() -> None:
            await self._record(key[0], name, key[1], count)

        writing = Deferred.fromCoroutine(write())
        writing.addErrback(lambda failure: self.log.failure("refused connection not recorded", failure))
