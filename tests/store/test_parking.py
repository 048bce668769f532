"""Poison rows: put off longer and longer, then parked; the others flow, and the record stays right."""

from __future__ import annotations

import errno
from datetime import timedelta
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from drimbox.model import KosState
from drimbox.ports import ParkedRow, Submission
from drimbox.store.codec import loads
from drimbox.store.database import Database
from drimbox.store.errors import NotInHand, StoreBusy, StoreDamaged
from drimbox.store.failures import blames_row, describe
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.inbox import Inbox
from drimbox.store.outbox import Outbox
from drimbox.store.overtaking import overtake
from drimbox.store.parking import ParkedRows
from drimbox.store.queue import Patience
from drimbox.store.queuelist import QueueList
from drimbox.store.schema import feed_job, inbox, kos, outbox
from tests.store.conftest import Stores, sqlite_only, stores_of
from tests.store.samples import TestClock, submission
from tests.store.test_feed_jobs import message
from tests.store.test_removals import removal

pytestmark = pytest.mark.requirement("DB.SO.21")
LIMIT = 3
STUDY = "2.25.1"


@pytest.fixture
def stores(database: Database, clock: TestClock) -> Stores:
    """Stores that park at the third failure, and wait 60, 120 ... seconds after each."""
    return patient_stores(database, clock)


def patient_stores(database: Database, clock: TestClock) -> Stores:
    patience = Patience(LIMIT, lambda failures: timedelta(seconds=60 * failures))
    plain = stores_of(database, clock)
    return Stores(
        database,
        clock,
        Inbox(database, clock=clock, patience=patience),
        FeedJobs(database, clock=clock, patience=patience),
        Outbox(database, clock=clock, patience=patience),
        plain.archive,
        plain.audit,
        plain.notices,
    )


async def received(stores: Stores, raw: bytes = b"MSH") -> int:
    return await stores.inbox.add(ris="ris-a", peer="10.0.0.1", control_id="c", raw=raw)


async def publication(stores: Stores, sop: str, *, site: str = "site-1", study: str = STUDY) -> int:
    """Queue a publication; return the number of its outbox row."""
    await message(stores, study)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    kos_id = await stores.jobs.queue_publication(
        job.id, site=site, submission=submission(sop, study), metadata=b"m", fingerprint=sop
    )
    query = select(outbox.c.id).where(outbox.c.kos_id == kos_id)
    return int(await stores.database.read(lambda c: c.execute(query).scalar_one()))


async def park(stores: Stores, row_id: int, *, begun: bool) -> None:
    """Break the work on a row of the outbox until it is parked."""
    for _ in range(LIMIT):
        stores.clock.advance(1000)
        taken = await stores.outbox.take(stores.clock.now(), 10)
        assert row_id in [item.id for item in taken]
        if begun:
            await stores.outbox.begin(row_id)
        await stores.outbox.broke(row_id, "KeyError")
        for other in taken:
            if other.id != row_id:
                await stores.outbox.retry(other.id, stores.clock.now(), "plus tard", False)


async def row(stores: Stores, table: Any, row_id: int) -> Any:
    return await stores.database.read(lambda c: c.execute(select(table).where(table.c.id == row_id)).one())


async def kos_states(stores: Stores) -> dict[str, str]:
    query = select(kos.c.sop_instance_uid, kos.c.state)
    return await stores.database.read(lambda c: {one[0]: one[1] for one in c.execute(query)})


# --- failures of one row --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_work_that_breaks_is_put_off_longer_and_longer_then_parked(stores: Stores) -> None:
    number = await received(stores)
    told: list[int] = []
    stores.inbox.parked = lambda: told.append(1)
    for failures in (1, 2):
        await stores.inbox.take(stores.clock.now(), 1)
        assert not await stores.inbox.broke(number, "KeyError (drimbox/x.py:1)")
        found = await row(stores, inbox, number)
        assert found.due_at - stores.clock.now() == timedelta(seconds=60 * failures)
        assert (found.state, found.holder, found.failures) == ("waiting", None, failures)
        assert found.last_error == "erreur interne : KeyError (drimbox/x.py:1)"
        assert await stores.inbox.take(stores.clock.now(), 1) == []
        stores.clock.advance(60 * failures)
    await stores.inbox.take(stores.clock.now(), 1)
    assert told == []
    assert await stores.inbox.broke(number, "KeyError")
    assert told == [1]
    stores.clock.advance(10**6)
    assert await stores.inbox.take(stores.clock.now(), 1) == []
    counts = await stores.inbox.counts()
    assert (counts.waiting, counts.in_hand, counts.parked, counts.oldest) == (0, 0, 1, None)
    with pytest.raises(NotInHand):
        await stores.inbox.broke(number, "KeyError")


@pytest.mark.requirement("DB.SO.14")
@pytest_twisted.ensureDeferred
async def test_ordinary_waiting_never_parks_and_forgives_what_was_before(stores: Stores) -> None:
    number = await received(stores)
    for _ in range(5 * LIMIT):
        stores.clock.advance(1000)
        await stores.inbox.take(stores.clock.now(), 1)
        await stores.inbox.retry_later(number, stores.clock.now(), "PACS muet")
    for _ in range(5):
        for _ in range(LIMIT - 1):
            stores.clock.advance(1000)
            await stores.inbox.take(stores.clock.now(), 1)
            assert not await stores.inbox.broke(number, "KeyError")
        stores.clock.advance(1000)
        await stores.inbox.take(stores.clock.now(), 1)
        await stores.inbox.retry_later(number, stores.clock.now(), "PACS muet")
        assert (await row(stores, inbox, number)).failures == 0


@pytest_twisted.ensureDeferred
async def test_a_row_that_kills_its_process_is_parked_and_the_first_death_costs_no_time(
    stores: Stores,
) -> None:
    number = await received(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    assert await stores.inbox.release_all() == 1
    found = await row(stores, inbox, number)
    assert (found.failures, found.last_error) == (1, None), "it holds back its RIS as if nothing had been"
    assert len(await stores.inbox.take(stores.clock.now(), 1)) == 1
    assert await stores.inbox.release_all() == 1
    assert await stores.inbox.take(stores.clock.now(), 1) == []
    found = await row(stores, inbox, number)
    assert found.last_error == "processus interrompu pendant le traitement"
    stores.clock.advance(60)
    assert len(await stores.inbox.take(stores.clock.now(), 1)) == 1
    assert await stores.inbox.release_all() == 1
    assert (await stores.inbox.counts()).parked == 1


@pytest_twisted.ensureDeferred
async def test_a_row_that_kills_one_node_after_the_other_is_parked(
    database: Database, clock: TestClock
) -> None:
    patience = Patience(LIMIT, lambda failures: timedelta(seconds=60 * failures))
    nodes = [Inbox(database, clock=clock, node=f"n{number}", patience=patience) for number in range(9)]
    await nodes[0].add(ris="r", peer="p", control_id="c", raw=b"MSH")
    takes = 0
    for node in nodes:
        taken = await node.take(clock.now(), 1)
        takes += len(taken)
        clock.advance(1000)
    assert takes == LIMIT
    assert (await nodes[0].counts()).parked == 1


@pytest_twisted.ensureDeferred
async def test_a_store_in_trouble_parks_no_row(stores: Stores) -> None:
    number = await received(stores)
    for _ in range(4 * LIMIT):
        stores.clock.advance(1000)
        await stores.inbox.take(stores.clock.now(), 1)
        assert not await stores.inbox.broke(number, "OperationalError", blame=False)
    assert (await row(stores, inbox, number)).failures == 0


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (KeyError("x"), True),
        (OSError(errno.ENOENT, "x"), True),
        (OSError(errno.ENOSPC, "x"), False),
        (MemoryError(), False),
        (StoreBusy("x"), False),
        (OperationalError("SELECT", {}, Exception("disk full")), False),
    ],
)
def test_who_is_to_blame(error: Exception, blamed: bool) -> None:
    assert blames_row(error) is blamed


def test_an_error_is_described_by_its_place_without_its_text() -> None:
    with pytest.raises(KeyError) as mine:
        {}["DUPONT Jean"]
    assert describe(mine.value) == "KeyError"
    with pytest.raises(StoreDamaged) as ours:
        loads("{", Submission)
    assert describe(ours.value).startswith("StoreDamaged (drimbox/store/codec.py:")


# --- damaged rows ---------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_publication_that_cannot_be_read_is_parked_and_the_others_leave(stores: Stores) -> None:
    bad = await publication(stores, "2.25.501", study="2.25.1")
    good = await publication(stores, "2.25.502", study="2.25.2")
    broken = update(outbox).where(outbox.c.id == bad).values(submission='{"kos": "RFVQT05U"}')
    await stores.database.run(lambda c: c.execute(broken).rowcount)
    told: list[int] = []
    stores.outbox.parked = lambda: told.append(1)
    assert [item.id for item in await stores.outbox.take(stores.clock.now(), 10)] == [good]
    found = await row(stores, outbox, bad)
    assert (found.state, found.holder, found.last_error) == (
        "parked",
        None,
        "ligne illisible : StoreDamaged",
    )
    assert told == [1]
    assert (await kos_states(stores))["2.25.501"] == "pending", "neither sent nor given up"


# PostgreSQL checks its texts.
@sqlite_only
@pytest_twisted.ensureDeferred
async def test_a_text_that_is_no_utf8_any_more_is_parked_alone(stores: Stores) -> None:
    bad = await publication(stores, "2.25.501", study="2.25.1")
    good = await publication(stores, "2.25.502", study="2.25.2")
    await stores.database.run(
        lambda c: c.execute(text(f"UPDATE outbox SET submission = CAST(x'7bff' AS TEXT) WHERE id = {bad}"))
    )
    assert [item.id for item in await stores.outbox.take(stores.clock.now(), 10)] == [good]
    assert (await stores.outbox.counts()).parked == 1
    rows = QueueList(stores.database, clock=stores.clock)
    assert await rows.raw("outbox", bad) == b"{\xff"
    await stores.database.run(
        lambda c: c.execute(text(f"UPDATE outbox SET site = CAST(x'ff' AS TEXT) WHERE id = {bad}"))
    )
    listed = {one["id"]: one for one in await rows.page("outbox")}
    assert (listed[bad]["state"], listed[bad]["reason"]) == ("parked", "ligne illisible")
    assert listed[good]["study_uid"] == "2.25.2"
    assert await rows.one("outbox", bad) == listed[bad]


@pytest_twisted.ensureDeferred
async def test_a_store_in_trouble_is_not_taken_for_damage(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publication(stores, "2.25.501")

    def short_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("drimbox.store.outbox.codec.loads", short_of_memory)
        with pytest.raises(MemoryError):
            await stores.outbox.take(stores.clock.now(), 10)
    assert len(await stores.outbox.take(stores.clock.now(), 10)) == 1


# Only SQLite lets a column hold another type.
@sqlite_only
@pytest.mark.parametrize("column", ["received_at", "due_at"])
@pytest_twisted.ensureDeferred
async def test_a_message_with_a_broken_instant_is_parked_alone(stores: Stores, column: str) -> None:
    good, bad, last = [await received(stores) for _ in range(3)]
    await stores.database.run(
        lambda c: c.execute(text(f"UPDATE inbox SET {column} = '1999' WHERE id = {bad}")).rowcount
    )
    taken = await stores.inbox.take(stores.clock.now(), 10)
    if column == "due_at":
        # Not read to work on the message; nothing else is wrong with it.
        assert [one.id for one in taken] == [good, bad, last]
        return
    assert [one.id for one in taken] == [good, last]
    counts = await stores.inbox.counts()
    assert (counts.parked, counts.in_hand) == (1, 2)


# --- who is told ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_parked_rows_are_told_once_with_what_is_known_of_them(stores: Stores) -> None:
    rows = ParkedRows(stores.database, clock=stores.clock)
    assert await rows.untold() == []
    line = await publication(stores, "2.25.501")
    await park(stores, line, begun=False)
    await message(stores, "2.25.7")
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    number = await received(stores)
    for _ in range(LIMIT):
        stores.clock.advance(1000)
        await stores.inbox.take(stores.clock.now(), 1)
        await stores.inbox.broke(number, "KeyError")
        await stores.jobs.broke(job.id, "TypeError")
        await stores.jobs.take(stores.clock.now() + timedelta(days=1), 10)
    found = {one.queue: one for one in await rows.untold()}
    assert found["inbox"] == ParkedRow("inbox", number, "KeyError", ris="ris-a", peer="10.0.0.1")
    assert found["feed"] == ParkedRow("feed", job.id, "TypeError", ris="ris-a", study_uid="2.25.7")
    told = found["outbox"]
    assert (told.id, told.study_uid, told.sop_instance_uid) == (line, STUDY, "2.25.501")
    assert told.patient_ins == submission("x").report.patient.ins
    assert not told.removal
    for one in found.values():
        await rows.told(one)
    assert await rows.untold() == []


# --- order in the outbox --------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_newer_publication_takes_the_place_of_a_parked_one(stores: Stores, begun: bool) -> None:
    old = await publication(stores, "2.25.501")
    await park(stores, old, begun=begun)
    await stores.notices.post(key=f"file-outbox-{old}", code="E008", text="t")
    new = await publication(stores, "2.25.502")
    assert [item.id for item in await stores.outbox.take(stores.clock.now(), 10)] == [new]
    assert (await row(stores, outbox, old)).state == "dropped"
    assert await kos_states(stores) == {"2.25.501": "refused", "2.25.502": "pending"}
    assert await stores.notices.open() == []
    # What may have reached the DMP is known to the newer one, which asks.
    doubtful = await stores.archive.doubtful(STUDY)
    assert [one.sop_instance_uid for one in doubtful] == (["2.25.501"] if begun else [])


@pytest_twisted.ensureDeferred
async def test_a_publication_that_waits_behind_it_takes_its_place_when_it_is_parked(stores: Stores) -> None:
    old = await publication(stores, "2.25.501")
    new = await publication(stores, "2.25.502")
    await park(stores, old, begun=True)
    assert [item.id for item in await stores.outbox.take(stores.clock.now(), 10)] == [new]
    assert (await row(stores, outbox, old)).state == "dropped"
    # It failed all the same, and the auditor is told.
    rows = ParkedRows(stores.database, clock=stores.clock)
    (told,) = await rows.untold()
    assert (told.id, told.dropped) == (old, True)
    await rows.told(told)
    assert await rows.untold() == []


@pytest_twisted.ensureDeferred
async def test_another_structure_elsewhere_does_not_take_its_place(stores: Stores) -> None:
    old = await publication(stores, "2.25.501")
    await park(stores, old, begun=True)
    await publication(stores, "2.25.502", site="site-2")
    await stores.database.run(
        lambda c: c.execute(text("UPDATE outbox SET state = 'parked' WHERE state = 'dropped'")).rowcount
    )
    await stores.database.run(
        lambda c: c.execute(text("UPDATE kos SET structure_id = 'x' WHERE site = 'site-2'")).rowcount
    )
    assert await stores.database.run(lambda c: overtake(c, STUDY, stores.clock.now())) == []


@pytest.mark.requirement("DB.SO.26", "DB.SO.97")
@pytest.mark.parametrize("begun", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_withdrawal_does_not_wait_for_a_parked_publication(stores: Stores, begun: bool) -> None:
    old = await publication(stores, "2.25.501")
    await park(stores, old, begun=begun)
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    assert await stores.jobs.queue_removal(job.id, removal) == 1
    taken = await stores.outbox.take(stores.clock.now(), 10)
    if begun:
        (item,) = taken
        await stores.outbox.removed(item.id)
        assert (await row(stores, outbox, old)).state == "dropped"
    else:
        assert taken == [], "nothing had left"
    assert await kos_states(stores) == {"2.25.501": "depublished"}
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    assert await stores.jobs.queue_removal(job.id, removal) == 0


@pytest.mark.requirement("DB.SO.26", "DB.SO.97")
@pytest_twisted.ensureDeferred
async def test_what_was_given_up_in_doubt_is_withdrawn_with_the_rest(stores: Stores) -> None:
    old = await publication(stores, "2.25.501")
    await park(stores, old, begun=True)
    await publication(stores, "2.25.502")
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, None)
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    assert await stores.jobs.queue_removal(job.id, removal) == 2
    assert await stores.archive.doubtful(STUDY) == []


@pytest.mark.requirement("DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_a_parked_removal_holds_nobody_back_and_its_manifest_is_on_its_way_out(
    stores: Stores,
) -> None:
    await publication(stores, "2.25.501")
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, None)
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    await stores.jobs.queue_removal(job.id, removal)
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    for _ in range(LIMIT):
        await stores.outbox.broke(item.id, "KeyError")
        stores.clock.advance(1000)
        await stores.outbox.take(stores.clock.now(), 10)
    assert await stores.archive.latest(STUDY) is None, "nobody finds it unchanged"
    new = await publication(stores, "2.25.502")
    assert [one.id for one in await stores.outbox.take(stores.clock.now(), 10)] == [new]
    assert (await row(stores, outbox, item.id)).state == "parked"
    assert (await stores.archive.get(item.kos_id)).state is KosState.PUBLISHED


@pytest_twisted.ensureDeferred
async def test_a_parked_job_holds_back_neither_its_study_nor_a_comparison(stores: Stores) -> None:
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    for _ in range(LIMIT):
        await stores.jobs.broke(job.id, "TypeError")
        stores.clock.advance(1000)
        await stores.jobs.take(stores.clock.now(), 10)
    assert (await stores.jobs.counts()).parked == 1
    assert await stores.jobs.again(STUDY)
    assert (await row(stores, feed_job, job.id)).failures == 0
    (again,) = await stores.jobs.take(stores.clock.now(), 10)
    await stores.jobs.finish(again.id, "unchanged")
