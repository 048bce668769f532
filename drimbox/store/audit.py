"""The audit trail: append-only and chained (DB.CS.06, DB.CS.10).

Each event is one row. The database refuses to change it, or to delete it while it is not past retention
(triggers), and the rows are chained by their hashes (`auditchain`), so a change made behind the triggers
shows. Somebody who rewrites every row, the head and the triggers can still lie; comparing `head` with a
copy kept elsewhere (the log, another machine) catches that too.

The text holds number, instant and event; the other columns repeat what searches need, and `verify`
checks that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, delete, select, update

from drimbox.ports import AuditEvent, Clock
from drimbox.store import auditchain, codec
from drimbox.store.auditchain import ChainCheck, ChainHead, ChainWalk, anchor_of, head_of
from drimbox.store.auditsearch import AuditQuery, AuditRecord, page
from drimbox.store.database import Database
from drimbox.store.schema import audit, audit_anchor

#: Rows looked at, and rows removed, in one transaction: nobody waits long for the one writer.
_LOOKED_AT, _REMOVED = 5000, 500


class AuditStore:
    """Implements `ports.AuditTrail`: records, finds and verifies; removes only what is old (`purge`)."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record(self, event: AuditEvent) -> None:
        """Commit one event with the present instant."""
        plain = codec.to_plain(event)
        await self._database.run(
            lambda connection: auditchain.append(connection, self._clock, event, plain)
        )

    async def search(
        self, query: AuditQuery | None = None, *, limit: int = 1000, before: int | None = None
    ) -> list[AuditRecord]:
        """Return the newest events that match, newest first (`auditsearch.page`)."""
        wanted = query or AuditQuery()
        return await self._database.read(
            lambda connection: page(connection, wanted, limit=limit, before=before)
        )

    async def head(self) -> ChainHead:
        """Return the last link, to be kept elsewhere and compared later."""
        return await self._database.read(head_of)

    async def verify(
        self, *, known: ChainHead | None = None, told: Callable[[int], None] = lambda checked: None
    ) -> ChainCheck:
        """Walk the whole chain; `known` is a head kept elsewhere, which must be part of it.

        `told` hears now and then how many events were found good; what it raises ends the walk.
        """
        walk = ChainWalk(known)
        while await self._database.read(walk.step):
            told(walk.checked)
        return walk.result

    async def purge(
        self,
        limit: datetime,
        announce: Callable[[int, str, int], AuditEvent],
        *,
        upto: int | None = None,
    ) -> int:
        """Remove the events before `limit` from the old end; return how many.

        Only a run of old events is removed that begins with the oldest: what follows a younger one stays,
        and so do the newest event and those after the number `upto`. First `announce` (number and hash of
        the last event to go, how many) makes the event that says so in the trail. A stop half-way leaves
        a chain that is whole.
        """
        first = await self._database.read(anchor_of)
        last = await self._last_before(first, limit, upto)
        count = last.last_id - first.last_id
        if count <= 0:
            return 0
        await self.record(announce(last.last_id, last.hash, count))
        number = first.last_id
        while number < last.last_id:
            number = min(number + _REMOVED, last.last_id)
            await self._database.run(partial(_remove, number))
        return count

    async def _last_before(self, anchor: ChainHead, limit: datetime, upto: int | None) -> ChainHead:
        """Return the last event of the run of old ones."""
        head = await self.head()
        end = head.last_id - 1 if upto is None else min(head.last_id - 1, upto)
        last = anchor
        while True:
            found, on = await self._database.read(partial(_older, last, end, limit))
            if not on:
                return found
            last = found


def _older(after: ChainHead, end: int, limit: datetime, connection: Connection) -> tuple[ChainHead, bool]:
    """Return the last event of a run of old ones that follows `after`, and whether to look further."""
    query = (
        select(audit.c.id, audit.c.instant, audit.c.hash)
        .where(audit.c.id > after.last_id, audit.c.id <= end)
        .order_by(audit.c.id)
        .limit(_LOOKED_AT)
    )
    last, seen = after, 0
    for row in connection.execute(query):
        if row.instant >= limit:
            return last, False
        last, seen = ChainHead(row.id, row.hash), seen + 1
    return last, seen == _LOOKED_AT


def _remove(upto: int, connection: Connection) -> None:
    """Move the anchor to the event `upto`, and remove it with what is before it."""
    link = connection.execute(select(audit.c.hash).where(audit.c.id == upto)).scalar_one_or_none()
    if link is None:
        return  # another node was here
    connection.execute(
        update(audit_anchor).where(audit_anchor.c.last_id < upto).values(last_id=upto, hash=link)
    )
    connection.execute(delete(audit).where(audit.c.id <= upto))
