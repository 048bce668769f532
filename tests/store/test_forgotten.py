"""What every cache is to forget: numbered in the order in which it is seen, whoever tells it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from drimbox.ports import ForgottenStudy
from drimbox.store.database import Database
from drimbox.store.forgotten import KEPT, Forgotten
from tests.store.conftest import Stores
from tests.store.samples import TestClock
from tests.store.test_removals import STUDY, out, publish, remove

pytestmark = pytest.mark.requirement("DB.SO.35", "DB.SO.40")


@pytest_twisted.ensureDeferred
async def test_what_is_told_is_read_in_order_once(database: Database, clock: TestClock) -> None:
    told = Forgotten(database, clock=clock)
    assert await told.since(0, 10) == []
    for study in ("1.1", "1.2", "1.1"):
        await told.tell("site1", study)
    first, second, third = await told.since(0, 10)
    assert [(each.site, each.study_uid) for each in (first, second, third)] == [
        ("site1", "1.1"),
        ("site1", "1.2"),
        ("site1", "1.1"),
    ]
    assert await told.since(0, 2) == [first, second]
    assert await told.since(second.number, 10) == [third]
    assert await told.since(third.number, 10) == []


@pytest_twisted.ensureDeferred
async def test_it_goes_when_no_cache_can_hold_it_and_its_number_never_comes_back(
    database: Database, clock: TestClock
) -> None:
    told = Forgotten(database, clock=clock)
    await told.tell("site1", "1.1")
    (old,) = await told.since(0, 10)
    clock.advance(KEPT.total_seconds() - 60)
    await told.purge()
    assert await told.since(0, 10) == [old]
    clock.advance(timedelta(minutes=2).total_seconds())
    await told.purge()
    assert await told.since(0, 10) == []
    await told.tell("site1", "1.2")
    assert (await told.since(old.number, 10))[0].study_uid == "1.2"


@pytest.mark.peer("postgres")
@pytest_twisted.ensureDeferred
async def test_whoever_follows_the_numbers_misses_none_of_many_nodes(
    database: Database, url: str, clock: TestClock
) -> None:
    if database.dialect == "sqlite":
        return
    others = [Database(url, reactor=reactor) for _ in range(2)]
    for other in others:
        await other.open()
    try:
        telling = [
            Deferred.fromCoroutine(Forgotten(other, clock=clock).tell(f"site{n}", f"1.{number}"))
            for number in range(40)
            for n, other in enumerate(others)
        ]
        all_told = gatherResults(telling)
        reader, seen, done = Forgotten(database, clock=clock), list[ForgottenStudy](), False
        while not done:
            done = bool(all_told.called)
            seen += await reader.since(seen[-1].number if seen else 0, 7)
        while more := await reader.since(seen[-1].number, 7):
            seen += more
        assert len({(each.site, each.study_uid) for each in seen}) == len(seen) == 80
    finally:
        for other in others:
            await other.close()


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_removal_tells_the_other_nodes(stores: Stores) -> None:
    told = Forgotten(stores.database, clock=stores.clock)
    await publish(stores, "2.25.500")
    await remove(stores)
    (item,) = await out(stores)
    await stores.outbox.begin(item.id)
    assert await told.since(0, 10) == []
    await stores.outbox.removed(item.id)
    await stores.outbox.removed(item.id)
    expected = [] if stores.database.dialect == "sqlite" else [("site-1", STUDY)]
    assert [(each.site, each.study_uid) for each in await told.since(0, 10)] == expected
