"""Measures of the PACS test: raw rows, their daily mean, minimum and maximum (STF20, STF21).

Rows of the current and the previous month are kept (requirements.md 3.3); each new one takes the place of
what has become older, and `purge` does it where no test runs any more. A day and a month are those of the
hospital's clock, so the days are made here and not by the database, which knows only UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, tzinfo
from typing import Any

import attrs
from sqlalchemy import Connection, Select, delete, func, insert, select

from drimbox.ports import Clock, SpeedMeasure
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import speedtest

#: Raw measures one call returns.
MAX_MEASURES = 1000
_OF_A_DAY = (
    speedtest.c.site,
    speedtest.c.started_at,
    speedtest.c.latency,
    speedtest.c.duration,
    speedtest.c.error,
)


@attrs.frozen
class Spread:
    """Mean, minimum and maximum of what one day measured, in seconds."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of these values, None when there is none."""
        known = list(values)
        return cls(sum(known) / len(known), min(known), max(known)) if known else None


@attrs.frozen
class SpeedDay:
    """One day of one site. Failed runs are counted and measure nothing."""

    site: str
    day: date
    runs: int
    failures: int
    latency: Spread | None
    duration: Spread | None


@attrs.frozen
class NumberedMeasure:
    """A raw measure and its number, by which the next page is asked for."""

    id: int
    measure: SpeedMeasure


class SpeedTestStore:
    """Implements `ports.SpeedMeasures`; `zone` is where the days begin, that of the machine by default."""

    def __init__(self, database: Database, *, clock: Clock, zone: tzinfo | None = None) -> None:
        self._database = database
        self._clock = clock
        self._zone = zone

    async def add(self, measure: SpeedMeasure) -> None:
        """Keep one run, and drop what has become too old."""
        values = attrs.asdict(measure) | {"error": clip(measure.error)}
        oldest = self.oldest()

        def work(connection: Connection) -> None:
            connection.execute(delete(speedtest).where(speedtest.c.started_at < oldest))
            connection.execute(insert(speedtest).values(values))

        await self._database.run(work)

    async def last(self, site: str) -> datetime | None:
        """Return when the last run of a site began, None when none is kept."""
        query = select(func.max(speedtest.c.started_at)).where(speedtest.c.site == site)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def days(self, site: str = "") -> list[SpeedDay]:
        """Return the days that have runs, of one site or of all, oldest first."""
        query = self._kept(select(*_OF_A_DAY), site).order_by(speedtest.c.started_at)

        def work(connection: Connection) -> list[SpeedDay]:
            days: dict[tuple[date, str], list[AnyRow]] = {}
            for row in connection.execute(query):
                key = (row.started_at.astimezone(self._zone).date(), row.site)
                days.setdefault(key, []).append(row)
            return [_day(name, day, rows) for (day, name), rows in sorted(days.items())]

        return await self._database.read(work)

    async def measures(
        self, site: str = "", *, before: int | None = None, limit: int = MAX_MEASURES
    ) -> list[NumberedMeasure]:
        """Return raw measures, newest first; `before` is the number of the last one of the page before."""
        rows = max(0, min(limit, MAX_MEASURES))
        query = self._kept(select(speedtest), site).order_by(speedtest.c.id.desc()).limit(rows)
        if before is not None:
            query = query.where(speedtest.c.id < before)

        def work(connection: Connection) -> list[NumberedMeasure]:
            return [_numbered(row) for row in connection.execute(query)]

        return await self._database.read(work)

    async def purge(self) -> int:
        """Drop what is older than the previous month; return how many rows that were."""
        old = delete(speedtest).where(speedtest.c.started_at < self.oldest())
        return await self._database.run(lambda connection: connection.execute(old).rowcount)

    def oldest(self) -> datetime:
        """Return the first instant of the previous month."""
        today = self._clock.now().astimezone(self._zone)
        year, month = (today.year, today.month - 1) if today.month > 1 else (today.year - 1, 12)
        # A naive instant is one of the machine's own zone: the offset is that of the month it falls in.
        return datetime(year, month, 1, tzinfo=self._zone).astimezone(self._zone)

    def _kept(self, query: Select[Any], site: str) -> Select[Any]:
        query = query.where(speedtest.c.started_at >= self.oldest())
        return query.where(speedtest.c.site == site) if site else query


def _day(site: str, day: date, rows: list[AnyRow]) -> SpeedDay:
    good = [row for row in rows if not row.error]
    return SpeedDay(
        site=site,
        day=day,
        runs=len(rows),
        failures=len(rows) - len(good),
        latency=Spread.of(row.latency for row in good),
        duration=Spread.of(row.duration for row in good),
    )


def _numbered(row: AnyRow) -> NumberedMeasure:
    values = dict(row._mapping)
    return NumberedMeasure(values.pop("id"), SpeedMeasure(**values))
