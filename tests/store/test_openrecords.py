"""Of every delivery one audit record, whatever stops the process, and whoever comes after it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import OperationalError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from drimbox.audit import messages
from drimbox.ports import AuditEvent, Count
from drimbox.store import auditchain, openrecords
from drimbox.store.database import Database
from drimbox.store.errors import StoreBusy, StoreClosed
from drimbox.store.openrecords import OpenRecords
from drimbox.store.schema import audit, open_record, statistic
from tests.store.conftest import Stores, stores_of
from tests.store.samples import INS, TestClock
from tests.store.test_audit import event
from tests.store.test_nodes import LEASE, make

pytestmark = pytest.mark.requirement("DB.SO.46", "DB.SO.47")
ROOT = Path(__file__).resolve().parent.parent.parent
FAILED = [Count("STF08", "1999999999", "site1")]
SERVED = [Count("STF07", "1999999999", "site1"), Count("STF11", "1999999999", "site1", amount=99)]


def opened(stores: Stores, node: str = "a", home: str = "") -> OpenRecords:
    """Make the records of one process."""
    return OpenRecords(stores.database, clock=stores.clock, node_name=node, home=home or f"home-{node}")


async def rows(stores: Stores) -> int:
    query = select(func.count()).select_from(open_record)
    return int(await stores.database.read(lambda connection: connection.execute(query).scalar_one()))


async def recorded(stores: Stores) -> list[tuple[str, int, str]]:
    """Study, outcome and description of each event, oldest first; the chain is whole."""
    assert (await stores.audit.verify()).fault is None
    found = [record.event for record in await stores.audit.search()]
    return [(each.study_uid, each.outcome, each.outcome_description) for each in reversed(found)]


async def counted(stores: Stores) -> list[tuple[str, int]]:
    query = select(statistic.c.stat, statistic.c.amount).order_by(statistic.c.id)
    found = await stores.database.read(lambda connection: connection.execute(query).all())
    return [tuple(row) for row in found]


@pytest_twisted.ensureDeferred
async def test_an_end_takes_the_place_of_the_beginning(stores: Stores) -> None:
    records = opened(stores)
    await records.begin("k", event(), FAILED)
    assert await rows(stores) == 1
    assert await recorded(stores) == []
    # It is this process's, which lives.
    assert await records.tend(others=True) == 0
    await records.end("k", event(outcome=4), SERVED, begun=True)
    assert await rows(stores) == 0
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 4)]
    assert await counted(stores) == [("STF07", 1), ("STF11", 99)]
    assert await records.tend(others=True) == 0


@pytest_twisted.ensureDeferred
async def test_what_a_killed_process_left_is_recorded_by_the_next_one_once(stores: Stores) -> None:
    told = messages.images_served(
        study_uid="2.25.1", caller_address="192.0.2.7", source_name="db1.349.example", kos=None
    )
    await opened(stores).begin("k", told, FAILED)
    stores.clock.advance(65)
    records = opened(stores)
    assert await records.tend(others=False) == 1
    (record,) = await stores.audit.search()
    # What was known stays as it was; the outcome is what nobody knows.
    assert record.event.participants == told.participants
    assert record.event.objects == told.objects
    assert (record.event.event_type[0], record.event.outcome) == ("RAD-107", 8)
    assert record.event.outcome_description == (
        "E1104 - Livraison interrompue par un arrêt brutal, étendue inconnue : "
        "commencée 2026-01-12T09:30:01Z par le nœud a, constatée 2026-01-12T09:31:06Z"
    )
    assert record.instant == stores.clock.now()
    assert await counted(stores) == [("STF08", 1)]
    assert await rows(stores) == 0
    for again in (records, opened(stores), opened(stores, "b")):
        assert await again.tend(others=True) == 0
    assert len(await recorded(stores)) == 1


@pytest_twisted.ensureDeferred
async def test_a_living_nodes_rows_are_nobody_elses(stores: Stores) -> None:
    clock, database = stores.clock, stores.database
    first, second = make(database, clock, "a"), make(database, clock, "b")
    await first.join()
    await second.join()
    records, others = opened(stores, "a"), opened(stores, "b")
    await records.begin("k", event(), FAILED)
    await others.begin("l", event(study="2.25.2"), FAILED)
    for _ in range(3):
        clock.advance(LEASE - 1)
        await first.beat()
        await second.beat()
        assert await others.tend(others=True) == 0
    # Node a dies; a node that may not judge others by its clock leaves them alone.
    clock.advance(LEASE + 1)
    await second.beat()
    assert await others.tend(others=False) == 0
    assert await others.tend(others=True) == 1
    assert await rows(stores) == 1
    # It was only asleep, and its delivery ends: there is a record, and no second one.
    await records.end("k", event(), SERVED, begun=True)
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 8)]
    assert await counted(stores) == [("STF08", 1)]


@pytest_twisted.ensureDeferred
async def test_a_node_that_lost_its_name_or_its_folder_to_another_is_dead(stores: Stores) -> None:
    clock = stores.clock
    await make(stores.database, clock, "a").join()
    await opened(stores, "a").begin("k", event(), FAILED)
    clock.advance(LEASE + 1)
    # The same name on another machine.
    await make(stores.database, clock, "a", "elsewhere").join()
    elsewhere = opened(stores, "a", "elsewhere")
    await elsewhere.begin("l", event(study="2.25.2"), FAILED)
    assert await opened(stores, "b").tend(others=True) == 1
    # The same folder under another name.
    await make(stores.database, clock, "c", "elsewhere").join()
    assert await opened(stores, "c", "elsewhere").tend(others=False) == 1
    assert [each[0] for each in await recorded(stores)] == ["2.25.1", "2.25.2"]


@pytest.mark.threat("a delivery that leaves no audit record because the process dies")
@pytest_twisted.ensureDeferred
async def test_two_nodes_at_once_record_each_delivery_once(url: str, stores: Stores) -> None:
    dead = opened(stores, "a")
    for number in range(20):
        await dead.begin(f"k{number}", event(study=f"2.25.{number}"), FAILED)
    second = stores.database
    if stores.database.dialect == "postgresql":
        second = Database(url, reactor=reactor)
        await second.open()
    try:
        processes = [opened(stores, "b"), opened(stores_of(second, stores.clock), "c")] * 2
        works = [Deferred.fromCoroutine(each.tend(others=True)) for each in processes]
        totals: Any = await gatherResults(works)
    finally:
        if second is not stores.database:
            await second.close()
    assert sum(totals) == 20
    studies = [each[0] for each in await recorded(stores)]
    assert sorted(studies) == sorted(f"2.25.{number}" for number in range(20))


@pytest_twisted.ensureDeferred
async def test_a_stop_between_record_and_row_leaves_both_as_they_were(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(stores).begin("k", event(), FAILED)

    class Cut(Exception):
        pass

    def cut(connection: Connection, *_: object) -> None:
        assert connection.execute(select(func.count()).select_from(audit)).scalar_one() == 1
        raise Cut

    monkeypatch.setattr(openrecords, "count_in", cut)
    with pytest.raises(Cut):
        await opened(stores).tend(others=False)
    assert (await rows(stores), await recorded(stores)) == (1, [])
    monkeypatch.undo()
    assert await opened(stores).tend(others=False) == 1
    assert len(await recorded(stores)) == 1


@pytest.fixture
def away(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A database that appends nothing to the trail until the patch is undone."""

    def refuse(*_: object) -> None:
        raise OperationalError("INSERT", {}, OSError("disk full"))

    monkeypatch.setattr(auditchain, "append", refuse)
    return monkeypatch


@pytest_twisted.ensureDeferred
async def test_an_end_that_cannot_be_written_is_written_later(
    stores: Stores, away: pytest.MonkeyPatch
) -> None:
    records = opened(stores)
    await records.begin("k", event(), FAILED)
    await records.end("k", event(), SERVED, begun=True)
    assert await rows(stores) == 1
    assert await records.tend(others=True) == 0
    assert await rows(stores) == 1
    away.undo()
    assert await records.tend(others=True) == 0
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 0)]
    assert (await rows(stores), len(await counted(stores))) == (0, 2)


@pytest_twisted.ensureDeferred
async def test_a_process_that_dies_with_an_end_unwritten_leaves_its_beginning(
    stores: Stores, away: pytest.MonkeyPatch
) -> None:
    records = opened(stores)
    await records.begin("k", event(), FAILED)
    await records.end("k", event(), SERVED, begun=True)
    away.undo()
    assert await opened(stores).tend(others=False) == 1
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 8)]


@pytest_twisted.ensureDeferred
async def test_nothing_begins_while_too_many_ends_wait(stores: Stores, away: pytest.MonkeyPatch) -> None:
    records = opened(stores)
    away.setattr(openrecords, "MOST_LATE", 2)
    for key in ("k", "l"):
        await records.begin(key, event(), FAILED)
        await records.end(key, event(), SERVED, begun=True)
    with pytest.raises(StoreBusy):
        await records.begin("m", event(), FAILED)
    away.undo()
    away.setattr(openrecords, "MOST_LATE", 2)
    await records.tend(others=False)
    await records.begin("m", event(), FAILED)


@pytest_twisted.ensureDeferred
async def test_a_refusal_that_cannot_be_recorded_is_told_to_who_asked(
    stores: Stores, away: pytest.MonkeyPatch
) -> None:
    records = opened(stores)
    with pytest.raises(OperationalError):
        await records.end("k", event(outcome=8), [], begun=False)
    away.undo()
    await records.end("k", event(outcome=8), [], begun=False)
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 8)]


@pytest_twisted.ensureDeferred
async def test_a_beginning_of_unknown_fate_gets_one_record(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit went through and its answer was lost: the delivery is refused, and recorded as that."""
    records = opened(stores)
    run = stores.database.run

    async def lost(work: Any) -> None:
        await run(work)
        raise OperationalError("COMMIT", {}, OSError("connection lost"))

    monkeypatch.setattr(stores.database, "run", lost)
    with pytest.raises(OperationalError):
        await records.begin("k", event(), FAILED)
    monkeypatch.undo()
    assert await rows(stores) == 1
    assert await records.tend(others=True) == 0
    await records.end("k", event(outcome=4), FAILED, begun=False)
    assert (await rows(stores), len(await recorded(stores))) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_an_end_committed_without_an_answer_is_not_written_twice(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = opened(stores)
    await records.begin("k", event(), FAILED)
    run = stores.database.run

    async def lost(work: Any) -> None:
        await run(work)
        raise OperationalError("COMMIT", {}, OSError("connection lost"))

    monkeypatch.setattr(stores.database, "run", lost)
    await records.end("k", event(), SERVED, begun=True)
    monkeypatch.undo()
    await records.tend(others=True)
    assert [each[:2] for each in await recorded(stores)] == [("2.25.1", 0)]
    assert len(await counted(stores)) == 2


@pytest_twisted.ensureDeferred
async def test_nothing_begins_without_a_store(stores: Stores) -> None:
    records = opened(stores)
    await stores.database.close()
    with pytest.raises(StoreClosed):
        await records.begin("k", event(), FAILED)


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_read_is_recorded_as_far_as_it_is_known(stores: Stores) -> None:
    await opened(stores).begin("k", event(ins=INS), FAILED)
    await opened(stores).begin("l", event(study="2.25.2"), FAILED)
    spoil = update(open_record).where(open_record.c.key == "k").values(content='{"event": 1}')
    await stores.database.run(lambda connection: connection.execute(spoil).rowcount)
    assert await opened(stores).tend(others=False) == 2
    found = await recorded(stores)
    assert sorted(each[:2] for each in found) == [("", 8), ("2.25.2", 8)]
    assert all("commencée 2026-01-12T09:30:01Z" in each[2] for each in found)


# -- killed while it records what another one left ---------------------------------------------------


def left_behind(database: Database, count: int) -> Any:
    """Leave the rows of `count` deliveries."""
    content = openrecords.codec.dumps(openrecords.Left(event(), tuple(FAILED)))
    clock = TestClock()
    values = [
        {"key": f"k{n}", "node": "a", "home": "h", "begun_at": clock.advance(1), "content": content}
        for n in range(count)
    ]
    return database.run(lambda connection: connection.execute(insert(open_record), values).rowcount)


@pytest_twisted.ensureDeferred
async def test_killed_again_and_again_in_the_middle_each_is_recorded_once(
    url: str, stores: Stores, tmp_path: Path
) -> None:
    """Each process may record one delivery after the other, and is killed while it does."""
    total, sure, chance = 60, 0, random.Random(5)
    await left_behind(stores.database, total)
    await stores.database.close()
    for turn in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.openrecords_victim", url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for _ in range(turn + 2):
                assert process.stdout.readline(), "the victim died of itself"
                process.stdin.write(b"\n")
                process.stdin.flush()
            time.sleep(chance.uniform(0, 0.004))
        finally:
            process.kill()
            process.communicate(timeout=20)
        sure += turn + 1
    database = Database(url, reactor=reactor)
    await database.open()
    try:
        after = stores_of(database, stores.clock)
        already = len(await recorded(after))
        assert sure <= already <= sure + 4
        # What the last one had sent off may still arrive at a server: then there is one less to do.
        assert await opened(after, "a", "h").tend(others=False) >= total - sure - 4
        assert len(await recorded(after)) == total
        assert len(await counted(after)) == total
        assert await rows(after) == 0
    finally:
        await database.close()


def test_events_come_back_as_they_were() -> None:
    told = messages.images_served(
        study_uid="2.25.1", caller_address="::1", source_name="db1.349.example", kos=None
    )
    text = openrecords.codec.dumps(openrecords.Left(told, tuple(SERVED)))
    back = openrecords.codec.loads(text, openrecords.Left)
    assert isinstance(back.event, AuditEvent)
    assert back == openrecords.Left(told, tuple(SERVED))
