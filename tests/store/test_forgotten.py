"""What every cache is to forget: numbered in the order in which it is seen, whoever tells it."""

from __future__ import annotations

from datetime import timedelta
from threading import Event

import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.postgres import Cluster
from drimbox.store.database import Database
from drimbox.store.forgotten import KEPT, Forgotten, tell
from tests.integration.waiting import until
from tests.store.conftest import Stores
from tests.store.samples import TestClock
from tests.store.test_removals import STUDY, out, publish, remove

pytestmark = pytest.mark.requirement("DB.SO.35", "DB.SO.40")
#: How many wait for a lock that another node of this database has.
_WAITING = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


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
async def test_a_number_is_never_seen_before_a_smaller_one(postgresql: Cluster, upgraded: str) -> None:
    url, clock = postgresql.url(postgresql.create(upgraded)), TestClock()
    slow, quick, reader = nodes = [Database(url, reactor=reactor) for _ in range(3)]
    told, committing = Forgotten(reader, clock=clock), Event()
    for node in nodes:
        await node.open()
    try:

        def dawdle(connection: Connection) -> None:
            tell(connection, "site1", "1.1", clock.now())
            begun.set()
            committing.wait(60)

        begun = Event()
        first = slow.run(dawdle)
        await until(begun.is_set, what="a transaction that has its number")
        second = Deferred.fromCoroutine(Forgotten(quick, clock=clock).tell("site1", "1.2"))

        async def settled() -> bool:
            return second.called or await reader.read(lambda connection: connection.scalar(_WAITING)) == 1

        await until(settled, what="the other node to wait, or to have overtaken the first")
        assert await told.since(0, 10) == []
        committing.set()
        await gatherResults([first, second])
        assert [each.study_uid for each in await told.since(0, 10)] == ["1.1", "1.2"]
    finally:
        committing.set()
        for node in nodes:
            await node.close()


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
