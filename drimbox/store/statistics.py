"""Raw events of the statistics, and the months they add up to (requirements.md 3.3; DB.SO.87).

What a row of a queue brings about is counted in the transaction that ends the row (`count_in`): once,
whatever crashes. The rest is counted beside what happened (`add`). A month is that of the hospital's clock,
and its values are summed from the rows each time: there is nothing else that they could differ from. Rows
of the current month and of the 24 before it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

import attrs
from sqlalchemy import Connection, delete, func, insert, select

from drimbox.ports import Clock, Count
from drimbox.statistics import DEFINITIONS
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import statistic

#: Months kept before the current one; rows of one page; rows removed at once.
KEPT_MONTHS = 24
PAGE = 5000
_PURGE = 10_000
_ADD = insert(statistic)


@attrs.frozen
class Value:
    """What the rows of one month add up to, for one structure and site."""

    stat: str
    structure: str
    site: str
    part: str
    #: A number, or bytes.
    amount: int


@attrs.frozen
class RawCount:
    """One row; `id` is what the next page is asked for by."""

    id: int
    at: datetime
    count: Count


@attrs.frozen(order=True)
class Month:
    """A month of the calendar."""

    year: int
    number: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"

    def plus(self, months: int) -> Month:
        """Return the month so many later."""
        years, number = divmod(self.number - 1 + months, 12)
        return Month(self.year + years, number + 1)


def count_in(connection: Connection, at: datetime, counts: Sequence[Count]) -> None:
    """Keep events inside a transaction. Raises `ValueError` for a statistic that nobody defined."""
    rows = []
    for each in counts:
        if each.stat not in DEFINITIONS:
            raise ValueError(f"no statistic {each.stat}")
        if each.amount:
            texts = {name: clip(getattr(each, name), 128) for name in ("structure", "site", "part")}
            rows.append({"at": at, "stat": each.stat, "amount": each.amount, **texts})
    if rows:
        connection.execute(_ADD, rows)


class StatisticsStore:
    """Implements `ports.Statistics`; `zone` is where the months begin, that of the machine by default."""

    def __init__(self, database: Database, *, clock: Clock, zone: tzinfo | None = None) -> None:
        self._database = database
        self._clock = clock
        self._zone = zone

    async def add(self, counts: Sequence[Count]) -> None:
        """Keep what happened at this instant."""
        now = self._clock.now()
        await self._database.run(lambda connection: count_in(connection, now, counts))

    def current(self) -> Month:
        """Return the month we are in."""
        today = self._clock.now().astimezone(self._zone)
        return Month(today.year, today.month)

    def oldest(self) -> Month:
        """Return the first month that is kept."""
        return self.current().plus(-KEPT_MONTHS)

    async def values(self, month: Month) -> list[Value]:
        """Return the values of a month, in the order of the specification."""
        column = statistic.c
        keys = (column.stat, column.structure, column.site, column.part)
        query = (
            select(*keys, func.sum(column.amount))
            .where(column.at >= self._begin(month), column.at < self._begin(month.plus(1)))
            .group_by(*keys)
            .order_by(*keys)
        )

        def work(connection: Connection) -> list[Value]:
            return [Value(*row[:4], int(row[4])) for row in connection.execute(query)]

        return await self._database.read(work)

    async def raw(self, first: Month, last: Month, *, after: int = 0, limit: int = PAGE) -> list[RawCount]:
        """Return rows of the months `first` to `last`, oldest first, those after number `after`."""
        query = (
            select(statistic)
            .where(
                statistic.c.id > after,
                statistic.c.at >= self._begin(first),
                statistic.c.at < self._begin(last.plus(1)),
            )
            .order_by(statistic.c.id)
            .limit(max(0, min(limit, PAGE)))
        )

        def work(connection: Connection) -> list[RawCount]:
            return [_raw(row) for row in connection.execute(query)]

        return await self._database.read(work)

    async def purge(self) -> int:
        """Drop what is older than the months kept, a few rows at a time; return how many that were."""
        before = self._begin(self.oldest())
        some = select(statistic.c.id).where(statistic.c.at < before).limit(_PURGE)
        old = delete(statistic).where(statistic.c.id.in_(some))

        def work(connection: Connection) -> int:
            return connection.execute(old).rowcount

        total = count = await self._database.run(work)
        while count == _PURGE:
            count = await self._database.run(work)
            total += count
        return total

    def _begin(self, month: Month) -> datetime:
        # A naive instant is one of the machine's own zone: the offset is that of the month it falls in.
        return datetime(month.year, month.number, 1, tzinfo=self._zone).astimezone(self._zone)


def _raw(row: AnyRow) -> RawCount:
    values: dict[str, Any] = dict(row._mapping)
    return RawCount(values.pop("id"), values.pop("at"), Count(**values))
