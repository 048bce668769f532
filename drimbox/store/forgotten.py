"""The studies that every node lets go from its cache of series, numbered in the order they were told.

Numbers are given and committed one after the other, whatever the node: who has seen a number has seen all
before it, so the last one is all that a node need remember. A study withdrawn from the record is told in
the transaction that ends its removal (`outbox`): no node that dies then keeps it from the others.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, text

from drimbox.ports import Clock, ForgottenStudy
from drimbox.store.database import Database
from drimbox.store.schema import cache_forget

#: How long a study stays told: longer than the oldest thing a cache may keep (`[cache] max_age`).
KEPT = timedelta(days=400)


class Forgotten:
    """A `ForgottenStudies`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def tell(self, site: str, study_uid: str) -> None:
        """Have every node forget a study of a site. Raises what the store raises when it is not there."""
        now = self._clock.now()
        await self._database.run(lambda connection: tell(connection, site, study_uid, now))

    async def since(self, number: int, most: int) -> list[ForgottenStudy]:
        """Return what was told after a number, at most so many, in order."""
        query = (
            select(cache_forget).where(cache_forget.c.id > number).order_by(cache_forget.c.id).limit(most)
        )

        def work(connection: Connection) -> list[ForgottenStudy]:
            return [ForgottenStudy(row.id, row.site, row.study_uid) for row in connection.execute(query)]

        return await self._database.read(work)

    async def purge(self) -> None:
        """Remove what no cache can hold any more."""
        old = delete(cache_forget).where(cache_forget.c.at < self._clock.now() - KEPT)
        await self._database.run(lambda connection: connection.execute(old))


def tell(connection: Connection, site: str, study_uid: str, now: datetime) -> None:
    """Have every node forget a study once this transaction is committed."""
    if connection.dialect.name == "postgresql":
        # One at a time, until the commit: numbers become visible in their order.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('drimbox.cache_forget'))"))
    connection.execute(cache_forget.insert().values(site=site, study_uid=study_uid, at=now))
