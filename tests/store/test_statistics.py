"""Raw events and the months they add up to: the hospital's clock, 24 months, each event once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import pytest_twisted
from sqlalchemy import func, select

from drimbox.ports import Count
from drimbox.statistics import DEFINITIONS, structure_of
from drimbox.store.database import Database
from drimbox.store.schema import statistic
from drimbox.store.statistics import Month, StatisticsStore, Value, count_in
from tests.store.samples import TestClock

PARIS = ZoneInfo("Europe/Paris")
JANUARY, FEBRUARY = Month(2026, 1), Month(2026, 2)
pytestmark = pytest.mark.requirement("DB.SO.87")


@pytest.fixture
def store(database: Database, clock: TestClock) -> StatisticsStore:
    return StatisticsStore(database, clock=clock, zone=PARIS)


async def rows(database: Database) -> int:
    query = select(func.count()).select_from(statistic)
    return await database.read(lambda connection: connection.execute(query).scalar_one())


@pytest_twisted.ensureDeferred
async def test_a_month_is_what_its_rows_add_up_to(store: StatisticsStore, clock: TestClock) -> None:
    clock.instant = datetime(2026, 1, 15, tzinfo=UTC)
    ours = ("1470003641", "radio")
    await store.add([Count("STF01", *ours), Count("STF09", *ours, "1.2", 7)])
    await store.add([Count("STF01", *ours), Count("STF09", *ours, "1.2", 5)])
    await store.add([Count("STF01", "", "cardio"), Count("STF09", *ours, "1.3", 1)])
    assert await store.values(JANUARY) == [
        Value("STF01", "", "cardio", "", 1),
        Value("STF01", "1470003641", "radio", "", 2),
        Value("STF09", "1470003641", "radio", "1.2", 12),
        Value("STF09", "1470003641", "radio", "1.3", 1),
    ]
    assert await store.values(FEBRUARY) == []


@pytest_twisted.ensureDeferred
async def test_a_month_begins_at_midnight_of_the_hospital(store: StatisticsStore, clock: TestClock) -> None:
    # Winter and summer: 23:00 UTC and 22:00 UTC are midnight in Paris.
    for instant, before, after in (
        (datetime(2026, 1, 31, 23, tzinfo=UTC), JANUARY, FEBRUARY),
        (datetime(2026, 6, 30, 22, tzinfo=UTC), Month(2026, 6), Month(2026, 7)),
    ):
        clock.instant = instant - timedelta(seconds=1)
        await store.add([Count("STF12", site="before")])
        clock.instant = instant
        await store.add([Count("STF12", site="after")])
        assert [value.site for value in await store.values(before)] == ["before"]
        assert "after" in [value.site for value in await store.values(after)]


@pytest_twisted.ensureDeferred
async def test_raw_rows_come_in_pages_and_give_the_same_sums(
    store: StatisticsStore, clock: TestClock
) -> None:
    clock.instant = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for number in range(40):
        await store.add([Count(f"STF{1 + number % 8:02}", "", f"site{number % 3}", amount=1 + number)])
        clock.instant += timedelta(days=1)
    after, sums = 0, dict[tuple[str, str], int]()
    while page := await store.raw(JANUARY, FEBRUARY, after=after, limit=7):
        assert len(page) <= 7
        assert all(row.id > after for row in page)
        after = page[-1].id
        for row in page:
            key = (str(row.at.astimezone(PARIS))[:7] + row.count.stat, row.count.site)
            sums[key] = sums.get(key, 0) + row.count.amount
    values = {
        (str(month) + value.stat, value.site): value.amount
        for month in (JANUARY, FEBRUARY)
        for value in await store.values(month)
    }
    assert sums == values
    assert sum(values.values()) == sum(range(1, 41))


@pytest_twisted.ensureDeferred
async def test_24_months_are_kept_before_the_current_one(
    store: StatisticsStore, database: Database, clock: TestClock
) -> None:
    for instant in (
        datetime(2024, 2, 29, 22, 59, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 0, tzinfo=UTC),
        datetime(2026, 3, 15, tzinfo=UTC),
    ):
        clock.instant = instant
        await store.add([Count("STF01")])
    assert str(store.oldest()) == "2024-03"
    assert await store.purge() == 1
    assert await rows(database) == 2
    assert [value.amount for value in await store.values(Month(2024, 3))] == [1]
    assert await store.purge() == 0


@pytest_twisted.ensureDeferred
async def test_nothing_is_kept_of_nothing_and_no_statistic_is_made_up(
    store: StatisticsStore, database: Database
) -> None:
    await store.add([Count("STF16", amount=0)])
    await store.add([])
    with pytest.raises(ValueError, match="STF99"):
        await store.add([Count("STF01"), Count("STF99")])
    assert await rows(database) == 0


@pytest_twisted.ensureDeferred
async def test_an_event_goes_with_the_transaction_it_is_counted_in(
    store: StatisticsStore, database: Database, clock: TestClock
) -> None:
    def broken(connection: object) -> None:
        count_in(connection, clock.now(), [Count("STF01")])  # type: ignore[arg-type]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.run(broken)
    assert await rows(database) == 0


@pytest.mark.parametrize(
    ("identifier", "found"),
    [
        ("1470003641", ("FINESS", "470003641")),
        ("12A0000001", ("FINESS", "2A0000001")),
        ("470003641", ("FINESS", "470003641")),
        ("312345678901234", ("SIRET", "12345678901234")),
        ("2123456789", ("SIREN", "123456789")),
        ("499700000001006", ("RPPS-rang", "99700000001006")),
        ("12345678901234", ("autre", "12345678901234")),
        ("", ("", "")),
    ],
)
def test_structures_are_told_apart_by_their_number(identifier: str, found: tuple[str, str]) -> None:
    assert structure_of(identifier) == found


def test_every_statistic_of_the_table_is_defined() -> None:
    wanted = {f"STF{number:02}" for number in range(1, 24)} - {"STF20", "STF21"}
    assert set(DEFINITIONS) == wanted


@pytest.mark.parametrize(
    ("month", "more", "found"), [((2026, 1), -24, "2024-01"), ((2025, 12), 1, "2026-01")]
)
def test_months_are_counted_across_years(month: tuple[int, int], more: int, found: str) -> None:
    assert str(Month(*month).plus(more)) == found
