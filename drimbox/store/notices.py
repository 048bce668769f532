"""Notices: what the administrator must know and do something about (DB.SO.21).

A notice stays open until somebody acknowledges it. While it is open the same `key` is not shown twice:
its count and last instant move, and its text becomes the latest. Once acknowledged, the next occurrence
opens a new one. What the gateway itself sees to be over (a PACS that answers again) is acknowledged by
the gateway, so that the open list tells what is wrong now; the row stays, for whoever asks what happened.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from drimbox.ports import Clock
from drimbox.store.codec import clip
from drimbox.store.database import Database
from drimbox.store.schema import notice

#: Open notices one call returns.
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


@attrs.frozen
class Notice:
    """One open notice."""

    id: int
    key: str
    code: str
    text: str
    count: int
    first_at: datetime
    last_at: datetime


class NoticeStore:
    """Implements `ports.Notices`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def post(self, *, key: str, code: str, text: str) -> None:
        """Open a notice, or count one more occurrence of the open one with this `key`."""
        now = self._clock.now()
        key, code, text = clip(key, 500), clip(code, 100), clip(text)
        dialect: Any = sqlite if self._database.dialect == "sqlite" else postgresql
        statement = dialect.insert(notice).values(
            key=key, code=code, text=text, count=1, first_at=now, last_at=now
        )
        statement = statement.on_conflict_do_update(
            index_elements=[notice.c.key],
            index_where=notice.c.acknowledged_at.is_(None),
            set_={"count": notice.c.count + 1, "last_at": now, "code": code, "text": text},
        )
        await self._database.run(lambda connection: connection.execute(statement).rowcount)

    async def open(self, limit: int = 200) -> list[Notice]:
        """List the open notices, the most recent first."""
        query = (
            select(
                notice.c.id,
                notice.c.key,
                notice.c.code,
                notice.c.text,
                notice.c.count,
                notice.c.first_at,
                notice.c.last_at,
            )
            .where(notice.c.acknowledged_at.is_(None))
            .order_by(notice.c.last_at.desc(), notice.c.id.desc())
            .limit(max(0, min(limit, MAX_NOTICES)))
        )
        return await self._database.read(
            lambda connection: [Notice(**row._mapping) for row in connection.execute(query)]
        )

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
