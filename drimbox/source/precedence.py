"""Who goes first when the processor is short: the message that comes in, not the work on those stored.

A RIS waits for each acknowledgement before it sends the next message, and gives up on a gateway that keeps
it waiting; a stored report waits for nobody. So while messages come one upon the other the feed takes no
new rows: what it has in hand goes on. It is never kept from working for long: a RIS that sends without
end leaves it a part of every second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.interfaces import IReactorTime

#: Seconds after an acknowledgement within which the sender's next message belongs to the same burst.
QUIET = 0.005
#: Seconds the feed is held at a stretch, and then left free, while a burst lasts.
HELD, FREE = 1.0, 0.25


class Precedence:
    """Knows whether messages are coming in. Seconds are those of `clock`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._in_hand = 0
        #: When the last message was answered, and when the burst began; None outside of one.
        self._last = -QUIET
        self._since: float | None = None

    @contextmanager
    def message(self) -> Iterator[None]:
        """Around the reception of one message."""
        if self._since is None or not self._going_on():
            self._since = self._clock.seconds()
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
            self._last = self._clock.seconds()

    def wait(self) -> float:
        """Return after how many seconds the feed may ask again; 0 when it may take rows now."""
        if self._since is None or not self._going_on():
            return 0.0
        turn = (self._clock.seconds() - self._since) % (HELD + FREE)
        return QUIET if turn < HELD else 0.0

    def _going_on(self) -> bool:
        return self._in_hand > 0 or self._clock.seconds() - self._last < QUIET
