"""What is known of the studies of native archives: how they were, and which are to be compared (DB.SO.27).

A row of `native_study` belongs to a study with a KOS. Its mark is the archive's own word for the state in
which study and KOS were last known to agree; `due` says that they may not any more. `native_site` holds
where the watching of a site goes on from. A change and the cursor behind it are kept in one transaction:
whatever stops the process, no change is passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Table, and_, select
from sqlalchemy.dialects import postgresql, sqlite

from drimbox.model import KosState
from drimbox.ports import KnownStudy
from drimbox.store.database import Database
from drimbox.store.schema import kos, native_site, native_study

#: UIDs of one statement.
_BATCH = 500
_ALIVE = kos.c.state.in_((KosState.PENDING.value, KosState.PUBLISHED.value))
_SAME = and_(native_study.c.site == kos.c.site, native_study.c.study_uid == kos.c.study_uid)


class NativeMemory:
    """Implements `ports.StudyMemory`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._dialect: Any = sqlite if database.dialect == "sqlite" else postgresql

    async def cursor(self, site: str) -> str | None:
        """Return where the last look ended, None before the first."""
        query = select(native_site.c.cursor).where(native_site.c.site == site)
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    async def known(self, site: str, after: str, limit: int, *, only: str = "") -> list[KnownStudy]:
        """Return studies with a KOS whose UID follows `after`, in order.

        `only` limits them to those that are "due", or "new": never looked at.
        """
        query = (
            select(kos.c.study_uid, native_study.c.mark, native_study.c.due)
            .select_from(kos.outerjoin(native_study, _SAME))
            .where(kos.c.site == site, _ALIVE, kos.c.study_uid > after)
            .distinct()
            .order_by(kos.c.study_uid)
            .limit(limit)
        )
        if only == "due":
            query = query.where(native_study.c.due)
        elif only == "new":
            query = query.where(native_study.c.study_uid.is_(None))

        def work(connection: Connection) -> list[KnownStudy]:
            return [KnownStudy(row.study_uid, row.mark, bool(row.due)) for row in connection.execute(query)]

        return await self._database.read(work)

    async def note(self, site: str, changed: Collection[str], cursor: str | None) -> list[str]:
        """Make the known ones among `changed` due and keep the cursor, in one transaction.

        Returns those that are due now. Without a cursor the old one stays.
        """

        def work(connection: Connection) -> list[str]:
            due: list[str] = []
            wanted = sorted(changed)
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                query = select(kos.c.study_uid).where(
                    kos.c.site == site, _ALIVE, kos.c.study_uid.in_(batch)
                )
                due += connection.execute(query.distinct().order_by(kos.c.study_uid)).scalars()
            for study_uid in due:
                self._put(connection, native_study, {"site": site, "study_uid": study_uid}, {"due": True})
            if cursor is not None:
                self._put(connection, native_site, {"site": site}, {"cursor": cursor})
            return due

        return await self._database.run(work)

    async def settle(self, site: str, marks: Mapping[str, str]) -> None:
        """Keep the marks of studies that agree with their KOS, or are on their way to."""
        if not marks:
            return

        def work(connection: Connection) -> None:
            for study_uid, mark in sorted(marks.items()):
                key = {"site": site, "study_uid": study_uid}
                self._put(connection, native_study, key, {"mark": mark, "due": False})

        await self._database.run(work)

    def _put(
        self, connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]
    ) -> None:
        """Insert a row, or change the one there is."""
        insert = self._dialect.insert(table).values(**key, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=values))
