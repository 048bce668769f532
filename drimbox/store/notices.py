"""Notices: what the administrator must know and do something about (DB.SO.21).

A notice stays open until somebody acknowledges it. While it is open the same `key` is not shown twice:
its count and last instant move, and its text becomes the latest. Once acknowledged, the next occurrence
opens a new one. What the gateway itself sees to be over (a PACS that answers again) is acknowledged by
the gateway, so that the open list tells what is wrong now; the row stays, for whoever asks what happened.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from drimbox.ports import Clock, Notice, Severity
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import notice, notice_delivery

#: Notices one call returns.
MAX_NOTICES = 1000
#: Who acknowledges a notice whose cause has gone.
RESOLVED_BY = "rétablissement constaté"


def close_notice(connection: Connection, key: str, now: datetime, who: str = RESOLVED_BY) -> bool:
    """Close the open notice of `key`, if there is one, inside a transaction."""
    over = (
        update(notice)
        .where(notice.c.key == clip(key, 500), notice.c.acknowledged_at.is_(None))
        .values(acknowledged_at=now, acknowledged_by=who)
    )
    return connection.execute(over).rowcount == 1


def open_notice(
    connection: Connection,
    key: str,
    code: str,
    text: str,
    now: datetime,
    severity: Severity | None = None,
) -> None:
    """Open a notice or count its occurrence once more, inside a transaction (`NoticeStore.post`)."""
    code, text = clip(code, 100), clip(text)
    weight = (severity or _SEVERITIES.get(code, Severity.ATTENTION)).value
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(notice).values(
        key=clip(key, 500), code=code, severity=weight, text=text, count=1, first_at=now, last_at=now
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[notice.c.key],
            index_where=notice.c.acknowledged_at.is_(None),
            set_={
                "count": notice.c.count + 1,
                "last_at": now,
                "code": code,
                "severity": weight,
                "text": text,
            },
        )
    )


#: What makes a `Notice`.
NOTICE = (
    notice.c.id,
    notice.c.key,
    notice.c.code,
    notice.c.severity,
    notice.c.text,
    notice.c.count,
    notice.c.first_at,
    notice.c.last_at,
    notice.c.acknowledged_at,
    notice.c.acknowledged_by,
)
#: What is more, or less, than `ATTENTION`, by code.
_SEVERITIES = {
    "E001": Severity.GRAVE,
    "E008": Severity.GRAVE,
    "E1006": Severity.GRAVE,
    "BASE": Severity.GRAVE,
    "LISTEBLANCHE": Severity.GRAVE,
    "CACHE": Severity.INFORMATION,
}
#: Acknowledged notices removed at once.
_PURGE = 1000


def read_notice(row: AnyRow) -> Notice:
    """Return the notice of a row of `NOTICE`."""
    return Notice(**{**row._mapping, "severity": Severity(row.severity)})


class NoticeStore:
    """Implements `ports.Notices`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def post(self, *, key: str, code: str, text: str, severity: Severity | None = None) -> None:
        """Open a notice, or count one more occurrence of the open one with this `key`.

        Without a `severity` the code has its own.
        """
        now = self._clock.now()
        await self._database.run(lambda connection: open_notice(connection, key, code, text, now, severity))

    async def open(self, limit: int = 200) -> list[Notice]:
        """List the open notices, the most recent first."""
        return await self.page(limit=limit)

    async def page(
        self,
        *,
        every: bool = False,
        severities: Collection[Severity] = (),
        code: str = "",
        before: int | None = None,
        limit: int = 200,
    ) -> list[Notice]:
        """List notices: the open ones, the most recent first, or `every` one, the newest first.

        `severities` and `code` limit them (empty: all); `before` is the number the page of `every` goes
        on from.
        """
        query = select(*NOTICE).limit(max(0, min(limit, MAX_NOTICES)))
        if every:
            query = query.order_by(notice.c.id.desc())
        else:
            query = query.where(notice.c.acknowledged_at.is_(None))
            query = query.order_by(notice.c.last_at.desc(), notice.c.id.desc())
        if severities:
            query = query.where(notice.c.severity.in_([each.value for each in severities]))
        if code:
            query = query.where(notice.c.code == code)
        if before is not None:
            query = query.where(notice.c.id < before)
        return await self._database.read(
            lambda connection: [read_notice(row) for row in connection.execute(query)]
        )

    async def purge(self, keep: timedelta) -> int:
        """Remove notices acknowledged longer ago than `keep`; return how many."""
        old = (
            select(notice.c.id)
            .where(notice.c.acknowledged_at < self._clock.now() - keep)
            .order_by(notice.c.acknowledged_at)
            .limit(_PURGE)
        )

        def work(connection: Connection) -> int:
            ids = list(connection.execute(old).scalars())
            connection.execute(delete(notice_delivery).where(notice_delivery.c.notice_id.in_(ids)))
            return connection.execute(delete(notice).where(notice.c.id.in_(ids))).rowcount

        removed = 0
        while gone := await self._database.run(work):
            removed += gone
        return removed

    async def acknowledge(self, notice_id: int, who: str) -> bool:
        """Close a notice in the name of `who`; False when it was not open."""
        seen = (
            update(notice)
            .where(notice.c.id == notice_id, notice.c.acknowledged_at.is_(None))
            .values(acknowledged_at=self._clock.now(), acknowledged_by=clip(who, 500))
        )

        def work(connection: Connection) -> bool:
            return connection.execute(seen).rowcount == 1

        return await self._database.run(work)

    async def resolve(self, key: str) -> bool:
        """Close the open notice of `key`, because what it said is over; False when there was none."""
        now = self._clock.now()
        return await self._database.run(lambda connection: close_notice(connection, key, now))

    async def count_open(self) -> int:
        """Count the open notices, for the status and `drimbox_notices_open`."""
        query = select(func.count()).where(notice.c.acknowledged_at.is_(None))
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))
