"""A request that comes again on its connection, byte for byte, as polls do: answered, not read anew.

Between two requests the reader of a connection is always in the same state; so bytes that were one whole
request, answered at once, are that request again when they come again. Whoever answered the first one says
how to answer the next, and checks then what he checked before: this spares reading, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

#: Bytes of a request that is worth knowing again.
MOST = 2048

#: Answers once more: the bytes to send, or None when the request must be read after all.
Again = Callable[[], bytes | None]


class Repeats:
    """What one connection knows of its last request."""

    def __init__(self) -> None:
        self._known = b""
        self._again: Again | None = None
        self._offered: Again | None = None

    def offer(self, again: Again) -> None:
        """Say, while a request is answered, how to answer the same one again."""
        self._offered = again

    def answer(self, data: bytes) -> bytes | None:
        """Return the answer to bytes that came between two requests; None when they must be read."""
        again = self._again
        return again() if again is not None and data == self._known else None

    def learn(self, data: bytes, whole: bool) -> None:
        """Keep what was offered while `data` was read, if that was one whole request (`whole`)."""
        offered, self._offered = self._offered, None
        # A blank line before a request is let pass once only: not such a one.
        if offered is not None and whole and len(data) <= MOST and data.startswith(b"GET "):
            self._known, self._again = data, offered
