"""The audit trail as the queue of what an audit repository is sent: a position in it, durable (DB.CS.96).

Nothing is copied: an event waits while its number is beyond the position, which moves forward once the
repository has confirmed. One node sends at a time: it holds the row, and another takes over when it has
not confirmed or taken anything for the length of a lease.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from sqlalchemy import Connection, or_, select, update

from drimbox.ports import Clock, ExportBacklog, ExportedEvent
from drimbox.store.auditchain import anchor_of, head_of
from drimbox.store.auditsearch import read_record
from drimbox.store.database import AnyRow, Database
from drimbox.store.errors import StoreDamaged
from drimbox.store.schema import audit, audit_export


class AuditExport:
    """Implements `ports.AuditSpool`, for the process called `node`; `lease` in seconds."""

    def __init__(self, database: Database, *, clock: Clock, lease: float, node: str = "main") -> None:
        self._database = database
        self._clock = clock
        self._lease = timedelta(seconds=lease)
        self._node = node

    async def backlog(self) -> ExportBacklog:
        """Say how many events wait, and since when."""
        return await self._database.read(_backlog)

    async def position(self) -> int:
        """Return the number of the last event that the repository has confirmed."""
        return await self._database.read(_position)

    async def take(self, limit: int) -> list[ExportedEvent]:
        """Return the oldest events that wait, at most `limit`; none while another node sends."""
        return await self._database.run(partial(self._take, limit))

    async def confirm(self, last_id: int) -> None:
        """Note that the repository has everything up to the event `last_id`."""
        mine = update(audit_export).where(
            audit_export.c.holder == self._node, audit_export.c.last_id < last_id
        )
        moved = mine.values(last_id=last_id, confirmed_at=self._clock.now())
        await self._database.run(lambda connection: connection.execute(moved))

    def _take(self, limit: int, connection: Connection) -> list[ExportedEvent]:
        now = self._clock.now()
        free = or_(
            audit_export.c.holder.is_(None),
            audit_export.c.holder == self._node,
            audit_export.c.held_until < now,
        )
        held = update(audit_export).where(free).values(holder=self._node, held_until=now + self._lease)
        if connection.execute(held).rowcount == 0:
            return []
        query = (
            select(audit.c.id, audit.c.instant, audit.c.payload, audit.c.hash)
            .where(audit.c.id > _position(connection))
            .order_by(audit.c.id)
            .limit(limit)
        )
        return [_exported(row) for row in connection.execute(query)]


def _position(connection: Connection) -> int:
    found: int = connection.execute(select(audit_export.c.last_id)).scalar_one()
    return found


def _backlog(connection: Connection) -> ExportBacklog:
    position = max(_position(connection), anchor_of(connection).last_id)
    oldest = select(audit.c.instant).where(audit.c.id > position).order_by(audit.c.id).limit(1)
    return ExportBacklog(
        head_of(connection).last_id - position, connection.execute(oldest).scalar_one_or_none()
    )


def _exported(row: AnyRow) -> ExportedEvent:
    try:
        event = read_record(row).event
    except StoreDamaged:
        event = None
    return ExportedEvent(row.id, row.hash, row.instant, event)
