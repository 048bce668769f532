"""Parked rows of the three queues, for whoever tells auditor and administrator about them.

A row is parked in the transaction that counts its last failure, or finds it damaged; telling comes after,
and is done again until it is noted here as done: what stops the process in between costs a second audit
record at worst. A publication that another took the place of before that is told of too, to the auditor.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, literal, select, update

from drimbox.ports import Clock, ParkedRow
from drimbox.store.database import Database
from drimbox.store.schema import DROPPED, PARKED, REMOVE, feed_job, inbox, kos, outbox

#: The tables by the names operators know.
TABLES = {"inbox": inbox, "feed": feed_job, "outbox": outbox}


def _untold() -> dict[str, Select[Any]]:
    """Return the query of each queue: its columns by the names of `ParkedRow`."""
    wanted = {
        "inbox": select(inbox.c.ris, inbox.c.peer).select_from(inbox),
        "feed": select(feed_job.c.ris, feed_job.c.study_uid).select_from(feed_job),
        "outbox": select(
            outbox.c.study_uid,
            (outbox.c.kind == REMOVE).label("removal"),
            kos.c.sop_instance_uid,
            kos.c.structure_id,
            kos.c.patient_ins,
        ).select_from(outbox.join(kos, kos.c.id == outbox.c.kos_id)),
    }
    for name, query in wanted.items():
        column = TABLES[name].c
        common = (
            column.id,
            column.last_error.label("error"),
            literal(name).label("queue"),
            (column.state == DROPPED).label("dropped"),
        )
        query = query.add_columns(*common)
        untold = query.where(column.state.in_((PARKED, DROPPED)), column.finished_at.is_(None))
        wanted[name] = untold.order_by(column.id)
    return wanted


class ParkedRows:
    """Implements `source.parking.ParkedRows`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def untold(self, limit: int = 100) -> list[ParkedRow]:
        """Return parked rows nobody was told about, at most `limit` of each queue, oldest first."""

        def work(connection: Connection) -> list[ParkedRow]:
            return [
                ParkedRow(**{key: value for key, value in row._mapping.items() if value is not None})
                for query in _untold().values()
                for row in connection.execute(query.limit(limit))
            ]

        return await self._database.read(work)

    async def told(self, row: ParkedRow) -> None:
        """Note that auditor and administrator were told of this row."""
        table = TABLES[row.queue]
        done = (
            update(table)
            .where(table.c.id == row.id, table.c.state.in_((PARKED, DROPPED)))
            .values(finished_at=self._clock.now())
        )
        await self._database.run(lambda connection: connection.execute(done).rowcount)
