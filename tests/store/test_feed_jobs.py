"""Feed jobs: one study at a time, in the order the reports came, and no half-made publication."""

from __future__ import annotations

import attrs
import pytest
import pytest_twisted
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import ensureDeferred, gatherResults

from drimbox.model import KosState
from drimbox.ports import FeedJob, Purpose
from drimbox.store.database import Database
from drimbox.store.errors import NotInHand
from drimbox.store.schema import feed_job, inbox, outbox
from tests.store.conftest import Stores, stores_of
from tests.store.samples import TestClock, said, submission


async def message(stores: Stores, *studies: str, ris: str = "ris-a") -> int:
    """A message received and read, that names these studies."""
    number = await stores.inbox.add(ris=ris, peer="p", control_id="c", raw=b"MSH")
    if studies:
        await read(stores, number, *studies)
    return number


async def read(stores: Stores, number: int, *studies: str) -> None:
    taken = await stores.inbox.take(stores.clock.now(), 100)
    assert number in [one.id for one in taken]
    await stores.inbox.processed(number, result="new", said=said(*studies))
    # The others are as if never taken: neither put off nor held by a process that died.
    free = update(inbox).where(inbox.c.state == "waiting").values(holder=None, held_until=None)
    await stores.database.run(lambda connection: connection.execute(free).rowcount)


async def take(stores: Stores, limit: int = 10) -> list[FeedJob]:
    return await stores.jobs.take(stores.clock.now(), limit)


@pytest_twisted.ensureDeferred
async def test_a_job_knows_its_message_its_study_and_its_ris(stores: Stores) -> None:
    number = await message(stores, "2.25.1", ris="ris-b")
    (job,) = await take(stores)
    assert (job.message_id, job.study_uid, job.ris, job.attempts) == (number, "2.25.1", "ris-b", 0)


@pytest_twisted.ensureDeferred
async def test_two_jobs_of_one_study_are_never_in_hand_at_once(stores: Stores) -> None:
    first = await message(stores, "2.25.1", "2.25.2")
    second = await message(stores, "2.25.1")
    taken = await take(stores)
    assert [(job.message_id, job.study_uid) for job in taken] == [(first, "2.25.1"), (first, "2.25.2")]
    assert await take(stores) == []
    await stores.jobs.finish(taken[0].id, "unchanged")
    (next_,) = await take(stores)
    assert (next_.message_id, next_.study_uid) == (second, "2.25.1")


@pytest_twisted.ensureDeferred
async def test_a_job_put_off_keeps_its_place(stores: Stores) -> None:
    await message(stores, "2.25.1")
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    await stores.jobs.retry(job.id, stores.clock.advance(0).replace(minute=50), "E003 : PACS muet")
    assert await take(stores) == [], "the younger one waits behind it"
    stores.clock.advance(3600)
    (again,) = await take(stores)
    assert (again.id, again.attempts) == (job.id, 1)


@pytest_twisted.ensureDeferred
async def test_a_job_waits_until_the_earlier_messages_of_its_ris_are_read(stores: Stores) -> None:
    slow = await message(stores)
    quick = await message(stores, "2.25.1")
    elsewhere = await message(stores, "2.25.3", ris="ris-b")
    assert [job.message_id for job in await take(stores)] == [elsewhere]
    await read(stores, slow, "2.25.1")
    (job,) = await take(stores)
    assert job.message_id == slow, "the older report first, although its job was made last"
    assert await take(stores) == []
    await stores.jobs.finish(job.id, "unchanged")
    assert [job.message_id for job in await take(stores)] == [quick]


@pytest_twisted.ensureDeferred
async def test_a_job_does_not_wait_for_later_messages(stores: Stores) -> None:
    first = await message(stores, "2.25.1")
    await message(stores)
    assert [job.message_id for job in await take(stores)] == [first]


@pytest_twisted.ensureDeferred
async def test_a_message_put_off_holds_back_nobody(stores: Stores) -> None:
    poor = await message(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    await stores.inbox.retry_later(poor, stores.clock.now().replace(year=2027), "illisible pour l'instant")
    await message(stores, "2.25.1")
    assert len(await take(stores)) == 1


@pytest_twisted.ensureDeferred
async def test_an_older_job_that_appears_late_waits_for_the_younger_in_hand(stores: Stores) -> None:
    poor = await message(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    await stores.inbox.retry_later(poor, stores.clock.now(), "plus tard")
    await message(stores, "2.25.1")
    (young,) = await take(stores)
    await read(stores, poor, "2.25.1")
    assert await take(stores) == []
    await stores.jobs.finish(young.id, "unchanged")
    assert [job.message_id for job in await take(stores)] == [poor]


@pytest_twisted.ensureDeferred
async def test_a_dead_node_blocks_no_study(database: Database, clock: TestClock) -> None:
    dead, alive = stores_of(database, clock, "dead"), stores_of(database, clock, "alive")
    poor = await message(alive)
    await alive.inbox.take(clock.now(), 1)
    await alive.inbox.retry_later(poor, clock.now(), "plus tard")
    young = await message(alive, "2.25.1")
    assert len(await take(dead)) == 1
    await read(alive, poor, "2.25.1")
    assert await take(alive) == []
    clock.advance(301)
    (older,) = await take(alive)
    assert older.message_id == poor
    await alive.jobs.finish(older.id, "unchanged")
    assert [job.message_id for job in await take(alive)] == [young]


@pytest_twisted.ensureDeferred
async def test_parallel_takers_share_the_studies(database: Database, clock: TestClock) -> None:
    nodes = [stores_of(database, clock, node=f"node{n}") for n in range(4)]
    for _ in range(3):
        await message(nodes[0], *(f"2.25.{n}" for n in range(12)))
    for _ in range(3):
        answers = [ensureDeferred(take(node, 2)) for _ in range(2) for node in nodes]
        batches = await gatherResults(answers)
        studies = [job.study_uid for batch in batches for job in batch]
        assert sorted(studies) == sorted({f"2.25.{n}" for n in range(12)})
        for node, batch in zip(nodes * 2, batches, strict=True):
            for job in batch:
                await node.jobs.finish(job.id, "unchanged")


@pytest_twisted.ensureDeferred
async def test_a_job_that_ends_without_publication_keeps_its_reason(stores: Stores) -> None:
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    await stores.jobs.finish(job.id, "E004", "examen absent du PACS")
    row = await stores.database.read(
        lambda c: tuple(c.execute(select(feed_job.c.result, feed_job.c.detail)).one())
    )
    assert row == ("E004", "examen absent du PACS")
    assert (await stores.jobs.counts()).done == 1
    with pytest.raises(NotInHand):
        await stores.jobs.retry(job.id, stores.clock.now(), "trop tard")


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_publication_is_queued_whole(stores: Stores) -> None:
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    sent = submission(ins="184070100499094")
    number = await stores.jobs.queue_publication(
        job.id, site="site-1", submission=sent, metadata=b"<rim/>", fingerprint="f1", series_uid="2.25.7"
    )
    kos = await stores.archive.get(number)
    assert (kos.state, kos.site, kos.study_uid) == (KosState.PENDING, "site-1", "2.25.1")
    assert (kos.data, kos.metadata, kos.fingerprint) == (sent.kos, b"<rim/>", "f1")
    assert (kos.patient_ins, kos.patient_ins_oid) == (sent.report.patient.ins, sent.report.patient.ins_oid)
    assert (kos.patient_id, kos.pacs_ins) == ("IPP-77", "184070100499094")
    assert (kos.report_ids, kos.structure_id, kos.entry_uuid) == (("2.25.900",), "1240001451", None)
    assert kos.created_at == stores.clock.now()
    (item,) = await stores.outbox.take(stores.clock.now(), 5)
    assert item.submission == sent
    assert (item.kos_id, item.attempts, item.outcome_unknown) == (number, 0, False)
    assert await stores.archive.submission(number) == sent
    assert (await stores.jobs.counts()).done == 1


@pytest_twisted.ensureDeferred
async def test_queueing_the_same_publication_twice_makes_one(stores: Stores) -> None:
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    numbers = {
        await stores.jobs.queue_publication(
            job.id, site="s", submission=submission(), metadata=b"m", fingerprint="f"
        )
        for _ in range(2)
    }
    assert len(numbers) == 1
    assert (await stores.outbox.counts()).waiting == 1


@pytest_twisted.ensureDeferred
async def test_a_publication_that_cannot_be_archived_changes_nothing(stores: Stores) -> None:
    await message(stores, "2.25.1", "2.25.2")
    one, two = await take(stores)
    await stores.jobs.queue_publication(
        one.id, site="s", submission=submission(), metadata=b"m", fingerprint="f"
    )
    with pytest.raises(IntegrityError):
        await stores.jobs.queue_publication(
            two.id, site="s", submission=submission(study_uid="2.25.2"), metadata=b"m", fingerprint="f"
        )
    counts = await stores.jobs.counts()
    assert (counts.in_hand, counts.done) == (1, 1)
    rows = await stores.database.read(lambda c: c.execute(select(outbox.c.id)).all())
    assert len(rows) == 1


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_report_that_changes_nothing_is_added_to_the_kos(stores: Stores) -> None:
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    number = await stores.jobs.queue_publication(
        job.id, site="s", submission=submission(), metadata=b"m", fingerprint="f"
    )
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    await stores.jobs.unchanged(job.id, number, "2.25.950")
    await stores.jobs.unchanged(job.id, number, "2.25.950")
    assert (await stores.archive.get(number)).report_ids == ("2.25.900", "2.25.950")


@pytest.mark.requirement("DB.SO.190")
@pytest_twisted.ensureDeferred
async def test_the_last_job_of_a_study_is_done_again_once_it_has_ended(stores: Stores) -> None:
    assert not await stores.jobs.again("2.25.1")
    await message(stores, "2.25.1")
    (first,) = await take(stores)
    assert not await stores.jobs.again("2.25.1")  # on its way
    await stores.jobs.finish(first.id, "unchanged")
    await message(stores, "2.25.1")
    (second,) = await take(stores)
    await stores.jobs.finish(second.id, "E004", "absent")
    assert await stores.jobs.again("2.25.1")
    assert not await stores.jobs.again("2.25.1")
    (reopened,) = await take(stores)
    assert (reopened.id, reopened.attempts) == (second.id, 0)


@pytest.mark.requirement("DB.SO.28")
@pytest_twisted.ensureDeferred
async def test_a_job_done_again_for_less_may_be_widened_until_somebody_works_on_it(stores: Stores) -> None:
    await message(stores, "2.25.1")
    (job,) = await take(stores)
    assert job.purpose is Purpose.MATCH
    await stores.jobs.finish(job.id, "unchanged")
    assert await stores.jobs.again("2.25.1", Purpose.READDRESS)
    assert not await stores.jobs.again("2.25.1", Purpose.UPDATE)
    assert (await stores.jobs.last("2.25.1")) == attrs.evolve(job, purpose=Purpose.READDRESS)
    # A difference seen meanwhile: the images are compared after all.
    assert await stores.jobs.again("2.25.1")
    (again,) = await take(stores)
    assert again.purpose is Purpose.MATCH
    await stores.jobs.finish(again.id, "unchanged")
    assert await stores.jobs.again("2.25.1", Purpose.UPDATE)
    (held,) = await take(stores)
    assert held.purpose is Purpose.UPDATE
    assert not await stores.jobs.again("2.25.1")
    assert await stores.jobs.last("2.25.2") is None
