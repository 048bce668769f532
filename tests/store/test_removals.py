"""Removals in the outbox: queued for what the DMP holds or may hold, in turn, and ended once."""

from __future__ import annotations

import attrs
import pytest
import pytest_twisted

from drimbox.model import KosState, MessageAction
from drimbox.ports import Removal, ReportSaid, Submission
from drimbox.store.outbox import OutboxItem
from tests.store.conftest import Stores
from tests.store.samples import START, submission
from tests.store.test_feed_jobs import message, take

pytestmark = pytest.mark.requirement("DB.SO.26", "DB.SO.97")
STUDY = "2.25.1"


def removal(made: Submission) -> Removal:
    return Removal(
        made.sop_instance_uid, "2.25.600", START, made.report, made.patient_class, made.structure_id
    )


async def publish(
    stores: Stores, sop: str, *, to: str = "published", site: str = "site-1", **changes: str
) -> int:
    """Queue a publication and bring it as far as told."""
    await message(stores, STUDY)
    (job,) = await take(stores)
    made = attrs.evolve(submission(sop), **changes)
    kos_id = await stores.jobs.queue_publication(
        job.id, site=site, submission=made, metadata=b"m", fingerprint=sop
    )
    if to == "queued":
        return kos_id
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    if to == "taken":
        return kos_id
    await stores.outbox.begin(item.id)
    if to == "published":
        await stores.outbox.published(item.id, "urn:uuid:1")
    return kos_id


async def remove(stores: Stores) -> int:
    await message(stores, STUDY)
    (job,) = await take(stores)
    return await stores.jobs.queue_removal(job.id, removal)


async def out(stores: Stores) -> list[OutboxItem]:
    return await stores.outbox.take(stores.clock.now(), 10)


async def state(stores: Stores, kos_id: int) -> KosState:
    return (await stores.archive.get(kos_id)).state


@pytest_twisted.ensureDeferred
async def test_what_the_dmp_holds_is_removed_and_its_identifier_kept(stores: Stores) -> None:
    kos_id = await publish(stores, "2.25.501")
    assert await remove(stores) == 1
    # It is there until the DMP says otherwise, but no longer wanted.
    assert await state(stores, kos_id) is KosState.PUBLISHED
    assert await stores.archive.latest(STUDY) is None
    (item,) = await out(stores)
    assert isinstance(item.submission, Removal)
    assert (item.kos_id, item.submission.sop_instance_uid) == (kos_id, "2.25.501")
    assert item.submission == removal(submission("2.25.501"))
    await stores.outbox.begin(item.id)
    await stores.outbox.removed(item.id, ["attention"])
    await stores.outbox.removed(item.id)
    assert await state(stores, kos_id) is KosState.DEPUBLISHED
    (known,) = await stores.archive.candidates("site-1", STUDY)
    assert (known.sop_instance_uid, known.state) == ("2.25.501", KosState.DEPUBLISHED)


@pytest_twisted.ensureDeferred
async def test_what_has_not_left_never_leaves(stores: Stores) -> None:
    kos_id = await publish(stores, "2.25.501", to="queued")
    assert await remove(stores) == 1
    assert await out(stores) == []
    assert await state(stores, kos_id) is KosState.DEPUBLISHED


@pytest.mark.parametrize("to", ["taken", "begun"])
@pytest_twisted.ensureDeferred
async def test_what_may_be_on_its_way_is_removed_after_it(stores: Stores, to: str) -> None:
    kos_id = await publish(stores, "2.25.501", to=to)
    assert await remove(stores) == 1
    assert await out(stores) == []
    await stores.outbox.release_all()
    (first,) = await out(stores)
    assert isinstance(first.submission, Submission)
    await stores.outbox.published(first.id, "urn:uuid:1")
    (second,) = await out(stores)
    assert isinstance(second.submission, Removal)
    await stores.outbox.removed(second.id)
    assert await state(stores, kos_id) is KosState.DEPUBLISHED


@pytest_twisted.ensureDeferred
async def test_a_publication_that_the_dmp_refused_stays_refused(stores: Stores) -> None:
    kos_id = await publish(stores, "2.25.501", to="begun")
    assert await remove(stores) == 1
    await stores.outbox.release_all()
    (first,) = await out(stores)
    await stores.outbox.refused(first.id, "E007", "non")
    (second,) = await out(stores)
    await stores.outbox.removed(second.id)
    assert await state(stores, kos_id) is KosState.REFUSED


@pytest_twisted.ensureDeferred
async def test_every_manifest_of_the_study_is_removed_once(stores: Stores) -> None:
    first = await publish(stores, "2.25.501")
    # Another structure's: it takes nobody's place.
    second = await publish(stores, "2.25.502", site="site-2", structure_id="2999999999")
    assert await remove(stores) == 2
    assert await remove(stores) == 0
    for _ in range(2):
        (item,) = await out(stores)
        await stores.outbox.removed(item.id)
    assert await state(stores, first) is await state(stores, second) is KosState.DEPUBLISHED


@pytest_twisted.ensureDeferred
async def test_nothing_published_nothing_removed(stores: Stores) -> None:
    assert await remove(stores) == 0
    assert await out(stores) == []


@pytest_twisted.ensureDeferred
async def test_a_publication_after_a_removal_waits_for_it_and_replaces_nothing(stores: Stores) -> None:
    old = await publish(stores, "2.25.501")
    await remove(stores)
    new = await publish(stores, "2.25.502", to="queued")
    latest = await stores.archive.latest(STUDY)
    assert latest is not None
    assert latest.id == new
    (item,) = await out(stores)
    assert item.kos_id == old
    await stores.outbox.removed(item.id)
    assert await stores.archive.published("site-1", STUDY) is None
    (item,) = await out(stores)
    await stores.outbox.published(item.id, None)
    assert [await state(stores, kos_id) for kos_id in (old, new)] == [
        KosState.DEPUBLISHED,
        KosState.PUBLISHED,
    ]


@pytest_twisted.ensureDeferred
async def test_a_refused_removal_leaves_the_manifest_published(stores: Stores) -> None:
    kos_id = await publish(stores, "2.25.501")
    await remove(stores)
    (item,) = await out(stores)
    await stores.outbox.refused(item.id, "E007", "non")
    assert await state(stores, kos_id) is KosState.PUBLISHED
    latest = await stores.archive.latest(STUDY)
    assert latest is not None
    assert latest.id == kos_id
    # It may be asked for again.
    assert await remove(stores) == 1


@pytest_twisted.ensureDeferred
async def test_the_submission_of_a_manifest_is_the_one_that_published_it(stores: Stores) -> None:
    kos_id = await publish(stores, "2.25.501")
    await remove(stores)
    found = await stores.archive.submission(kos_id)
    assert found == submission("2.25.501")


@pytest_twisted.ensureDeferred
async def test_only_the_sites_asked_about_are_concerned(stores: Stores) -> None:
    """A PACS that has the study no more says nothing of what another site published."""
    first = await publish(stores, "2.25.501")
    # Another structure's: it takes nobody's place.
    second = await publish(stores, "2.25.502", site="site-2", structure_id="2999999999")
    await message(stores, STUDY)
    (job,) = await take(stores)
    assert await stores.jobs.queue_removal(job.id, removal, sites={"site-2"}) == 1
    (item,) = await out(stores)
    assert item.kos_id == second
    await stores.outbox.removed(item.id)
    assert await state(stores, first) is KosState.PUBLISHED


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_finds_the_studies_of_manifests_older_than_the_record_of_reports(
    stores: Stores,
) -> None:
    await publish(stores, "2.25.501")
    document = submission("2.25.501").report.document_id
    number = await stores.inbox.add(ris="ris-a", peer="p", control_id="c", raw=b"MSH")
    await stores.inbox.take(stores.clock.now(), 10)
    withdrawn = ReportSaid(document, None, MessageAction.DELETE, None, ())
    await stores.inbox.processed(number, result="depublication", said=withdrawn)
    (job,) = await take(stores)
    assert (job.message_id, job.study_uid) == (number, STUDY)
