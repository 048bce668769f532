"""What the doors could not store is told to the administrator once the store takes something again.

Disk full, database locked, file system read-only: the sender hears "later" (AR, out of resources) and
keeps its message, so nothing is lost, provided that it sends again. Whoever must see to that can only be
told when the store works: the notice is kept in it too (DB.SO.21).
"""

from __future__ import annotations

from datetime import datetime

from twisted.logger import Logger

from drimbox.ports import Clock, Inbox, Notices


class Storing:
    """A `ports.Inbox` before the one that stores."""

    log = Logger()

    def __init__(self, inbox: Inbox, notices: Notices, clock: Clock) -> None:
        self._inbox = inbox
        self._notices = notices
        self._clock = clock
        #: Messages turned away since the last one that was stored, and the instant of the first.
        self._refused = 0
        self._since: datetime | None = None

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        """Store a message and return its number. Raises what the store raises."""
        try:
            number = await self._inbox.add(ris=ris, peer=peer, control_id=control_id, raw=raw)
        except Exception:
            self._refused += 1
            self._since = self._since or self._clock.now()
            raise
        if self._refused:
            await self._tell()
        return number

    async def _tell(self) -> None:
        refused, since = self._refused, self._since
        assert since is not None
        self._refused, self._since = 0, None
        try:
            await self._notices.post(
                key="store",
                code="BASE",
                text=f"Enregistrement impossible à partir du {since:%d/%m/%Y à %H:%M:%S} :"
                f" {refused} message(s) refusé(s), que leur émetteur doit renvoyer. La base enregistre de"
                " nouveau ; vérifier l'espace disque et la reprise des envois.",
            )
        except Exception:
            self.log.failure("notice of refused messages not kept")
            # Counted again, for the next one that is stored.
            self._refused, self._since = self._refused + refused, since
