"""Measures of the PACS test: days and months of the hospital's clock, and nothing older (STF20, STF21)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from drimbox.ports import SpeedMeasure
from drimbox.store.database import Database
from drimbox.store.schema import speedtest
from drimbox.store.speedtests import MAX_MEASURES, SpeedDay, SpeedTestStore, Spread
from tests.store.samples import TestClock

PARIS = ZoneInfo("Europe/Paris")


@pytest.fixture
def tests(database: Database, clock: TestClock) -> SpeedTestStore:
    return SpeedTestStore(database, clock=clock, zone=PARIS)


def measure(when: datetime, latency: float | None = 0.5, duration: float | None = 2.0, **more: Any) -> Any:
    values = {"site": "radio", "images": 1300, "bytes": 209_000_000, **more}
    return SpeedMeasure(started_at=when, latency=latency, duration=duration, **values)


def failed(when: datetime, **more: Any) -> SpeedMeasure:
    return measure(when, None, None, error="E1004 - PACS muet", **more)


@pytest.mark.requirement("DB.SO.87", "DB.SO.155")
@pytest_twisted.ensureDeferred
async def test_a_day_has_mean_minimum_and_maximum_of_its_good_runs(
    tests: SpeedTestStore, clock: TestClock
) -> None:
    start = clock.now()
    for hour, (latency, duration) in enumerate([(0.25, 4.0), (0.5, 2.0), (0.75, 9.0)]):
        await tests.add(measure(start + timedelta(hours=hour), latency, duration))
    await tests.add(failed(start + timedelta(hours=3), images=7, bytes=7))
    assert await tests.days() == [
        SpeedDay("radio", date(2026, 1, 12), 4, 1, Spread(0.5, 0.25, 0.75), Spread(5.0, 2.0, 9.0))
    ]


@pytest.mark.requirement("DB.SO.87")
@pytest_twisted.ensureDeferred
async def test_a_day_of_failures_measures_nothing(tests: SpeedTestStore, clock: TestClock) -> None:
    await tests.add(failed(clock.now()))
    assert await tests.days() == [SpeedDay("radio", date(2026, 1, 12), 1, 1, None, None)]


@pytest.mark.requirement("DB.SO.87")
@pytest_twisted.ensureDeferred
async def test_sites_are_apart_and_a_day_begins_at_midnight_of_the_hospital(
    tests: SpeedTestStore, clock: TestClock
) -> None:
    # 22:59 and 23:00 UTC are 23:59 and midnight in Paris in winter.
    clock.instant = datetime(2026, 1, 13, 12, tzinfo=UTC)
    midnight = datetime(2026, 1, 12, 23, tzinfo=UTC)
    await tests.add(measure(midnight - timedelta(minutes=1), 1.0, 1.0))
    await tests.add(measure(midnight, 2.0, 2.0))
    await tests.add(measure(midnight, 3.0, 3.0, site="cardio"))
    found = [(each.day.day, each.site, each.latency) for each in await tests.days()]
    assert found == [
        (12, "radio", Spread(1.0, 1.0, 1.0)),
        (13, "cardio", Spread(3.0, 3.0, 3.0)),
        (13, "radio", Spread(2.0, 2.0, 2.0)),
    ]
    assert [each.site for each in await tests.days("cardio")] == ["cardio"]
    assert await tests.days("absent") == []


@pytest.mark.parametrize(
    ("now", "oldest"),
    [
        # Paris: winter is +01:00, summer +02:00; the offset is that of the first day of the month.
        ("2026-01-12T09:30:00+00:00", "2025-12-01T00:00:00+01:00"),
        ("2026-03-31T12:00:00+00:00", "2026-02-01T00:00:00+01:00"),
        ("2026-04-01T12:00:00+00:00", "2026-03-01T00:00:00+01:00"),
        ("2026-11-15T12:00:00+00:00", "2026-10-01T00:00:00+02:00"),
        # Already the next month in Paris.
        ("2026-02-28T23:30:00+00:00", "2026-02-01T00:00:00+01:00"),
        ("2028-02-29T12:00:00+00:00", "2028-01-01T00:00:00+01:00"),
    ],
)
@pytest.mark.requirement("DB.SO.87")
def test_the_previous_month_is_kept_from_its_first_midnight(now: str, oldest: str) -> None:
    clock = TestClock()
    clock.instant = datetime.fromisoformat(now)
    store = SpeedTestStore(None, clock=clock, zone=PARIS)  # type: ignore[arg-type]
    assert store.oldest() == datetime.fromisoformat(oldest)


@given(st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_between_28_and_62_days_are_kept(now: datetime) -> None:
    clock = TestClock()
    clock.instant = now
    for zone in (None, PARIS):
        kept = now - SpeedTestStore(None, clock=clock, zone=zone).oldest()  # type: ignore[arg-type]
        assert timedelta(days=28) <= kept <= timedelta(days=62, hours=1)


@pytest.mark.requirement("DB.SO.87")
@pytest_twisted.ensureDeferred
async def test_what_is_older_than_the_previous_month_goes(
    tests: SpeedTestStore, database: Database, clock: TestClock
) -> None:
    first = datetime(2025, 12, 1, tzinfo=PARIS)
    for when in (first - timedelta(seconds=1), first, first + timedelta(days=20)):
        values = measure(when)
        row = {name: getattr(values, name) for name in ("site", "started_at", "latency", "duration")}
        await database.run(
            lambda connection, row=row: (
                connection.execute(  # type: ignore[misc]
                    insert(speedtest).values(**row, images=1, bytes=1)
                ).rowcount
            )
        )
    # Even before anything is dropped, what is too old is not shown.
    assert [each.day for each in await tests.days()] == [date(2025, 12, 1), date(2025, 12, 21)]
    assert await tests.purge() == 1
    assert await tests.purge() == 0
    clock.advance(31 * 86400)
    assert await tests.days() == []
    await tests.add(measure(clock.now()))
    assert await rows(database) == 1


async def rows(database: Database) -> int:
    return await database.read(
        lambda connection: int(connection.execute(select(func.count()).select_from(speedtest)).scalar_one())
    )


@pytest.mark.requirement("DB.SO.87")
@pytest_twisted.ensureDeferred
async def test_raw_measures_come_back_as_they_were_page_by_page(
    tests: SpeedTestStore, clock: TestClock
) -> None:
    start = clock.now()
    kept = [measure(start + timedelta(hours=hour), hour / 4) for hour in range(4)]
    kept.append(failed(start + timedelta(hours=4), site="cardio", images=3, bytes=99))
    for each in kept:
        await tests.add(each)
    page = await tests.measures(limit=3)
    rest = await tests.measures(before=page[-1].id)
    assert [each.measure for each in page + rest] == kept[::-1]
    assert [each.measure for each in await tests.measures("cardio")] == kept[-1:]
    assert await tests.measures(limit=-1) == []
    assert len(await tests.measures(limit=MAX_MEASURES * 10)) == 5


@pytest_twisted.ensureDeferred
async def test_the_last_run_is_known_by_site(tests: SpeedTestStore, clock: TestClock) -> None:
    assert await tests.last("radio") is None
    await tests.add(failed(clock.now()))
    await tests.add(measure(clock.advance(3600), site="cardio"))
    assert await tests.last("radio") == datetime(2026, 1, 12, 9, 30, 1, 123456, tzinfo=UTC)
    assert await tests.last("cardio") == clock.now()


@pytest_twisted.ensureDeferred
async def test_the_database_refuses_a_success_without_measure(
    tests: SpeedTestStore, clock: TestClock
) -> None:
    with pytest.raises(IntegrityError):
        await tests.add(measure(clock.now(), None, 1.0))
    with pytest.raises(IntegrityError):
        await tests.add(measure(clock.now(), 1.0, None))


@pytest_twisted.ensureDeferred
async def test_a_long_error_is_cut(tests: SpeedTestStore, clock: TestClock) -> None:
    await tests.add(measure(clock.now(), None, None, error="E1004 - " + "x" * 100_000))
    (found,) = await tests.measures()
    assert found.measure.error.startswith("E1004 - x")
    assert len(found.measure.error) <= 4000
