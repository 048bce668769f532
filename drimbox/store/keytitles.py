"""Titles of the key objects a PACS keeps in its studies, once known never asked for again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from drimbox.ports import Clock
from drimbox.store.codec import clip
from drimbox.store.database import Database
from drimbox.store.schema import key_object

#: Names in one query.
_PAGE = 500
#: Longest title kept: a code value is 16 characters.
_MAX_TITLE = 16


class KeyTitles:
    """A `rejections.Titles`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._dialect: Any = postgresql if database.dialect == "postgresql" else sqlite

    async def known(self, sop_instance_uids: Collection[str]) -> dict[str, str]:
        """Return the titles of those of these objects that are known."""
        uids = sorted(sop_instance_uids)

        def work(connection: Connection) -> dict[str, str]:
            found: dict[str, str] = {}
            for start in range(0, len(uids), _PAGE):
                query = select(key_object.c.sop_instance_uid, key_object.c.title).where(
                    key_object.c.sop_instance_uid.in_(uids[start : start + _PAGE])
                )
                found |= {row[0]: row[1] for row in connection.execute(query)}
            return found

        return await self._database.read(work)

    async def learn(self, titles: Mapping[str, str]) -> None:
        """Remember titles. What is known stays as it is, unless it could not be read then."""
        now = self._clock.now()
        rows = [
            {"sop_instance_uid": uid, "title": clip(title, _MAX_TITLE), "known_at": now}
            for uid, title in titles.items()
        ]
        insert = self._dialect.insert(key_object)
        better = insert.on_conflict_do_update(
            index_elements=[key_object.c.sop_instance_uid],
            set_={"title": insert.excluded.title},
            where=key_object.c.title == "",
        )

        def work(connection: Connection) -> None:
            connection.execute(better, rows)

        if rows:
            await self._database.run(work)
