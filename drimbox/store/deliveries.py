"""Which notices have left by which channel, and when each channel may speak again (DB.SO.21).

A notice leaves once by each channel, while it is open: what is over, or was read, before a digest leaves is
no longer anybody's business. That it left is written down after the other side took it, so that a stop in
between sends it twice rather than never.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Connection, exists, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from drimbox.ports import Clock, Notice, Severity
from drimbox.store.codec import clip
from drimbox.store.database import Database
from drimbox.store.notices import NOTICE, read_notice
from drimbox.store.schema import notice, notice_channel, notice_delivery


@attrs.frozen
class ChannelState:
    """When a channel may speak again, and how often it failed in a row until now."""

    next_at: datetime
    failures: int


class NoticeDeliveries:
    """Implements `source.notifying.Deliveries`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._dialect: Any = sqlite if database.dialect == "sqlite" else postgresql

    async def state(self, channel: str) -> ChannelState | None:
        """Return the state of a channel, None when it never spoke."""
        query = select(notice_channel.c.next_at, notice_channel.c.failures).where(
            notice_channel.c.channel == channel
        )

        def work(connection: Connection) -> ChannelState | None:
            row = connection.execute(query).first()
            return None if row is None else ChannelState(row.next_at, row.failures)

        return await self._database.read(work)

    async def due(
        self, channel: str, severities: Collection[Severity], limit: int, *, but: str
    ) -> tuple[list[Notice], int]:
        """Return open notices that have not left by a channel, oldest first, and how many more there are.

        `but` is the key of the one that is never among them.
        """
        left = exists().where(
            notice_delivery.c.notice_id == notice.c.id, notice_delivery.c.channel == channel
        )
        wanted = (
            notice.c.acknowledged_at.is_(None),
            notice.c.severity.in_([each.value for each in severities]),
            notice.c.key != but,
            ~left,
        )
        query = select(*NOTICE).where(*wanted).order_by(notice.c.id).limit(limit)
        count = select(func.count()).select_from(notice).where(*wanted)

        def work(connection: Connection) -> tuple[list[Notice], int]:
            found = [read_notice(row) for row in connection.execute(query)]
            more = int(connection.execute(count).scalar_one()) - len(found) if found else 0
            return found, max(0, more)

        return await self._database.read(work)

    async def delivered(self, channel: str, ids: Collection[int], next_at: datetime) -> None:
        """Note that notices left by a channel, which keeps quiet until `next_at`."""
        now = self._clock.now()
        rows = [{"notice_id": number, "channel": channel, "delivered_at": now} for number in ids]

        def work(connection: Connection) -> None:
            # One that was purged meanwhile has no row to refer to.
            there = set(connection.execute(select(notice.c.id).where(notice.c.id.in_(list(ids)))).scalars())
            kept = [row for row in rows if row["notice_id"] in there]
            if kept:
                connection.execute(insert(notice_delivery), kept)
            self._note(connection, channel, next_at, 0, None)

        await self._database.run(work)

    async def failed(self, channel: str, failures: int, next_at: datetime, error: str) -> None:
        """Note that a digest could not be delivered, `failures` times in a row now."""
        await self._database.run(
            lambda connection: self._note(connection, channel, next_at, failures, clip(error))
        )

    def _note(
        self, connection: Connection, channel: str, next_at: datetime, failures: int, error: str | None
    ) -> None:
        values = {"next_at": next_at, "failures": failures, "last_error": error}
        statement = self._dialect.insert(notice_channel).values(channel=channel, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=[notice_channel.c.channel], set_=values)
        )
