"""Whether the first byte of an answer may leave: not before the record of its delivery is safe.

The images are asked for meanwhile, so that the disk's time is not added to the PACS's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.errors import AuditUnavailable, ImageError

Granted = Callable[[], None]
Refused = Callable[[ImageError], None]


class Clearance:
    """Given when `work` has ended well, refused when it raises; given at once without work."""

    log = Logger()

    def __init__(self, work: Coroutine[Any, Any, None] | None = None) -> None:
        self.granted = work is None
        self._refusal: ImageError | None = None
        self._waiting: list[tuple[Granted, Refused]] = []
        self._settling: list[Deferred[None]] = []
        if work is not None:
            Deferred.fromCoroutine(work).addCallbacks(self._grant, self._refuse).addBoth(self._tell)

    def listen(self, granted: Granted, refused: Refused) -> None:
        """Name who is told; at once, when it is known already."""
        if self.granted:
            granted()
        elif self._refusal is not None:
            refused(self._refusal)
        else:
            self._waiting.append((granted, refused))

    async def settled(self) -> bool:
        """Wait until it is known; say whether it was given."""
        if not self.granted and self._refusal is None:
            waiting: Deferred[None] = Deferred()
            self._settling.append(waiting)
            await waiting
        return self.granted

    def _grant(self, _: object) -> None:
        self.granted = True

    def _refuse(self, failure: Failure) -> None:
        self.log.failure("delivery refused: its record cannot be kept", failure=failure)
        self._refusal = AuditUnavailable()

    def _tell(self, _: object) -> None:
        settling, self._settling = self._settling, []
        for each in settling:
            each.callback(None)
        waiting, self._waiting = self._waiting, []
        for granted, refused in waiting:
            self.listen(granted, refused)
