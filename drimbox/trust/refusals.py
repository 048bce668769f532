"""Refused handshakes in the audit trail, without letting whoever is refused fill it (E1101, DB.SO.47).

The first refusal of an address is written at once; those that follow within a minute are counted and
written as one. What is remembered is bounded: an attack from many addresses ends in one record for all
those that no longer fit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: Seconds for which the refusals of one address make one record.
WINDOW = 60.0
#: Addresses told apart within a window.
MAX_ADDRESSES = 256
#: Address written for all those beyond.
OTHERS = "plusieurs adresses"


class Refusals:
    """Collects refusals; `record` is awaited with address, name called, and how many it stands for."""

    log = Logger()

    def __init__(self, record: Callable[[str, str, int], Awaitable[None]], clock: IReactorTime) -> None:
        self._record = record
        self._clock = clock
        #: Refusals since the record of an address, and the name called last.
        self._counts: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._timer: IDelayedCall | None = None

    def refused(self, address: str, name: str) -> None:
        """Take note of one refused handshake."""
        if address not in self._counts and len(self._counts) >= MAX_ADDRESSES:
            address, name = OTHERS, ""
        if address in self._counts:
            self._counts[address] += 1
            self._names[address] = name
        else:
            self._counts[address] = 0
            self._names[address] = name
            self._write(address, name, 1)
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
        for address, count in counts.items():
            if count:
                self._write(address, names[address], count)

    def _write(self, address: str, name: str, count: int) -> None:
        async def write() -> None:
            await self._record(address, name, count)

        writing = Deferred.fromCoroutine(write())
        writing.addErrback(lambda failure: self.log.failure("refused handshake not recorded", failure))
