"""What the three queues have in common: take rows, hold them, put them off, end them.

Theory of operation. `take` marks due rows as in the hands of this process (`holder` is the node's name,
`held_until` the end of its lease) and returns them; nobody else gets them. The row ends by a transition
(`processed`, `published`, ...) or goes back by a delay. Every transition is one UPDATE that only matches
a row still waiting **and** in our hands: work whose lease was lost cannot write its result over another
node's, it gets `NotInHand`. A transition repeated after it was committed does nothing.

A stop, however brutal, leaves rows in hand. At start `release_all` gives back those of this node name;
with several nodes on PostgreSQL, `renew` moves the lease forward while the process lives, and rows of a
dead one come back when it ends. On one box the lease plays no part: the holder is always ourselves.

Takers take turns (SQLite has one writer; PostgreSQL an advisory lock per queue), because "the oldest of
its study, and none of that study in hand" looks at other rows than the one it locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, or_, select, text, update

from drimbox.ports import Clock
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.errors import NotInHand
from drimbox.store.schema import DONE, FAILED, WAITING

#: Rows one `take` may return, whatever is asked.
MAX_TAKE = 500
#: Seconds a row stays with a node that no longer renews.
LEASE = 300.0


@attrs.frozen
class QueueCount:
    """How full a queue is. `waiting` counts rows not in hand."""

    waiting: int
    in_hand: int
    done: int
    failed: int
    #: When the oldest unfinished row came, None when there is none.
    oldest: datetime | None


class Queue:
    """One queue table, worked on by the process called `node`.

    `created` is the column that says when a row came.
    """

    def __init__(
        self,
        database: Database,
        table: Table,
        *,
        created: str,
        clock: Clock,
        node: str = "main",
        lease: float = LEASE,
    ) -> None:
        self._database = database
        self._table = table
        self._created = table.c[created]
        self._clock = clock
        self._node = node
        self._lease = timedelta(seconds=lease)

    async def release_all(self, node: str | None = None) -> int:
        """Give back every row in the hands of `node` (default: this one); return how many.

        Called at start, before the first `take`: what a killed process held is worked on again.
        """
        table, holder = self._table, node or self._node
        free = (
            update(table)
            .where(table.c.state == WAITING, table.c.holder == holder)
            .values(holder=None, held_until=None)
        )
        return await self._database.run(lambda connection: connection.execute(free).rowcount)

    async def renew(self, now: datetime) -> int:
        """Move the lease of this node's rows to `now` plus the lease; return how many rows."""
        table = self._table
        longer = (
            update(table)
            .where(table.c.state == WAITING, table.c.holder == self._node)
            .values(held_until=now + self._lease)
        )
        return await self._database.run(lambda connection: connection.execute(longer).rowcount)

    async def counts(self) -> QueueCount:
        """Count the rows by state, for status and metrics."""
        table = self._table
        held = table.c.holder.is_not(None)
        query = select(table.c.state, held, func.count()).group_by(table.c.state, held)
        first = select(func.min(self._created)).where(table.c.state == WAITING)

        def work(connection: Connection) -> QueueCount:
            rows = {(row[0], bool(row[1])): row[2] for row in connection.execute(query)}
            ended = {state: rows.get((state, False), 0) for state in (DONE, FAILED)}
            return QueueCount(
                waiting=rows.get((WAITING, False), 0),
                in_hand=rows.get((WAITING, True), 0),
                done=ended[DONE],
                failed=ended[FAILED],
                oldest=connection.execute(first).scalar_one(),
            )

        return await self._database.read(work)

    # --- for the queues, inside a transaction -----------------------------------------------------

    def _due(self, now: datetime) -> ColumnElement[bool]:
        """Rows that wait, are due, and that nobody (alive) holds."""
        column = self._table.c
        free = or_(column.holder.is_(None), and_(column.holder != self._node, column.held_until < now))
        return and_(column.state == WAITING, column.due_at <= now, free)

    def _held(self, now: datetime, rows: Table) -> ColumnElement[bool]:
        """Rows (of this table or an alias of it) in the hands of a living node.

        A dead node's row is nobody's: were it counted as held, it and the older row of its study
        that waits for it would block each other for ever.
        """
        return or_(rows.c.holder == self._node, rows.c.held_until >= now)

    def _claim(
        self, connection: Connection, query: Select[Any], now: datetime, limit: int, *, count: bool = True
    ) -> Sequence[AnyRow]:
        """Put what `query` selects (at most `limit` rows, by `id`) in our hands and return it."""
        if connection.dialect.name == "postgresql":
            turn = text("SELECT pg_advisory_xact_lock(hashtext(:queue))")
            connection.execute(turn, {"queue": f"drimbox.{self._table.name}"})
        query = query.limit(max(0, min(limit, MAX_TAKE))).with_for_update(skip_locked=True, of=self._table)
        rows = connection.execute(query).all()
        taken: dict[str, Any] = {"holder": self._node, "held_until": now + self._lease}
        if count:
            taken["attempts"] = self._table.c.attempts + 1
        if rows:
            ids = [row.id for row in rows]
            connection.execute(update(self._table).where(self._table.c.id.in_(ids)).values(taken))
        return rows

    def _change(self, connection: Connection, row_id: int, **values: Any) -> None:
        """Change a row that is in our hands, or raise `NotInHand`."""
        column = self._table.c
        mine = and_(column.id == row_id, column.state == WAITING, column.holder == self._node)
        if connection.execute(update(self._table).where(mine).values(values)).rowcount != 1:
            raise NotInHand(self._table.name, row_id)

    def _end(self, connection: Connection, row_id: int, state: str, **values: Any) -> bool:
        """End a row that is in our hands; False when it had already ended in that very state."""
        column = self._table.c
        now = connection.execute(select(column.state).where(column.id == row_id)).scalar_one_or_none()
        if now == state:
            return False
        self._change(
            connection,
            row_id,
            state=state,
            holder=None,
            held_until=None,
            finished_at=self._clock.now(),
            **values,
        )
        return True

    async def _put_off(self, row_id: int, at: datetime, error: str, **values: Any) -> None:
        await self._database.run(
            lambda connection: self._change(
                connection,
                row_id,
                due_at=at,
                last_error=clip(error),
                holder=None,
                held_until=None,
                **values,
            )
        )
