"""The outbox: what an attempt may have done is never forgotten, and order is kept."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest
import pytest_twisted
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from drimbox.model import KosState
from drimbox.store.database import Database
from drimbox.store.errors import NotInHand
from drimbox.store.outbox import OutboxItem
from drimbox.store.queue import Patience
from drimbox.store.schema import kos, outbox
from tests.store.conftest import Stores, stores_of
from tests.store.samples import TestClock, submission
from tests.store.test_feed_jobs import message


async def queue(
    stores: Stores, sop: str, study: str = "2.25.1", site: str = "site-1", **changes: str
) -> int:
    """Queue one publication through the whole path; return the number of its KOS."""
    await message(stores, study)
    (job,) = await stores.jobs.take(stores.clock.now(), 1)
    made = attrs.evolve(submission(sop, study), **changes)
    return await stores.jobs.queue_publication(
        job.id, site=site, submission=made, metadata=b"m" + sop.encode(), fingerprint=sop
    )


async def take(stores: Stores, limit: int = 10) -> list[OutboxItem]:
    return await stores.outbox.take(stores.clock.now(), limit)


async def states(stores: Stores) -> dict[str, str]:
    query = select(kos.c.sop_instance_uid, kos.c.state)
    return await stores.database.read(lambda c: {row[0]: row[1] for row in c.execute(query)})


@pytest_twisted.ensureDeferred
async def test_only_the_oldest_of_a_study_leaves(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    await queue(stores, "2.25.502")
    await queue(stores, "2.25.503", study="2.25.2")
    taken = await take(stores)
    assert [item.submission.sop_instance_uid for item in taken] == ["2.25.501", "2.25.503"]
    assert await take(stores) == []
    await stores.outbox.retry(taken[0].id, stores.clock.now().replace(minute=59), "DMP absent", False)
    assert await take(stores) == [], "the younger one waits behind the one put off"


@pytest_twisted.ensureDeferred
async def test_an_attempt_begun_is_known_after_a_restart(database: Database, clock: TestClock) -> None:
    before = stores_of(database, clock)
    await queue(before, "2.25.501")
    (item,) = await take(before)
    assert (item.attempts, item.outcome_unknown) == (0, False)
    await before.outbox.begin(item.id)
    # Killed here: nobody says how it went.
    after = stores_of(database, clock)
    assert await after.outbox.release_all() == 1
    (again,) = await take(after)
    assert (again.id, again.attempts, again.outcome_unknown) == (item.id, 1, True)
    assert again.submission == item.submission, "the same identifiers as the first time"


@pytest_twisted.ensureDeferred
async def test_a_row_taken_and_not_begun_is_not_in_doubt(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    await take(stores)
    await stores.outbox.release_all()
    (item,) = await take(stores)
    assert (item.attempts, item.outcome_unknown) == (0, False)


@pytest.mark.parametrize("unknown", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_delay_says_whether_the_dmp_may_have_it(stores: Stores, unknown: bool) -> None:
    await queue(stores, "2.25.501")
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    later = stores.clock.now().replace(minute=45)
    await stores.outbox.retry(item.id, later, "connexion refusée", unknown)
    assert await take(stores) == []
    stores.clock.advance(3600)
    (again,) = await take(stores)
    assert (again.attempts, again.outcome_unknown) == (1, unknown)


@pytest.mark.requirement("DB.SO.22", "DB.SO.13")
@pytest_twisted.ensureDeferred
async def test_a_publication_takes_the_place_of_the_one_before(stores: Stores) -> None:
    old = await queue(stores, "2.25.501")
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, "urn:uuid:1", ["attention"])
    assert (await stores.archive.get(old)).entry_uuid == "urn:uuid:1"
    elsewhere = await queue(stores, "2.25.502", site="site-2")
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, None)
    new = await queue(stores, "2.25.503")
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, "urn:uuid:3")
    await stores.outbox.published(item.id, "urn:uuid:other")
    # The study moved from one PACS to another and back: the DMP holds one manifest of it.
    assert [(await stores.archive.get(n)).state for n in (old, elsewhere, new)] == [
        KosState.REPLACED,
        KosState.REPLACED,
        KosState.PUBLISHED,
    ]
    assert (await stores.archive.get(new)).entry_uuid == "urn:uuid:3"
    assert (await stores.outbox.counts()).done == 3


@pytest_twisted.ensureDeferred
async def test_the_database_refuses_two_current_kos(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    await queue(stores, "2.25.502")
    with pytest.raises(IntegrityError):
        await stores.database.run(lambda c: c.execute(update(kos).values(state="published")))
    with pytest.raises(IntegrityError):
        await stores.database.run(lambda c: c.execute(update(kos).values(state="something")))


@pytest_twisted.ensureDeferred
async def test_a_refusal_ends_the_row_and_lets_the_next_go(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    await queue(stores, "2.25.502")
    (item,) = await take(stores)
    await stores.outbox.begin(item.id)
    await stores.outbox.refused(item.id, "E007", "XDSRegistryMetadataError")
    await stores.outbox.refused(item.id, "E007", "XDSRegistryMetadataError")
    assert await states(stores) == {"2.25.501": "refused", "2.25.502": "pending"}
    counts = await stores.outbox.counts()
    assert (counts.failed, counts.waiting) == (1, 1)
    (item,) = await take(stores)
    assert item.submission.sop_instance_uid == "2.25.502"
    row = await stores.database.read(
        lambda c: c.execute(
            select(outbox.c.error_code, outbox.c.error_text).where(outbox.c.state == "failed")
        ).one()
    )
    assert tuple(row) == ("E007", "XDSRegistryMetadataError")


@pytest_twisted.ensureDeferred
async def test_what_ended_one_way_cannot_end_another(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    (item,) = await take(stores)
    await stores.outbox.refused(item.id, "E006", "patient inconnu")
    for late in (
        stores.outbox.published(item.id, "urn:uuid:1"),
        stores.outbox.begin(item.id),
        stores.outbox.retry(item.id, stores.clock.now(), "", True),
    ):
        with pytest.raises(NotInHand):
            await late
    assert await states(stores) == {"2.25.501": "refused"}


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_a_row_dated_by_a_clock_set_back_since_is_due(stores: Stores) -> None:
    await queue(stores, "2.25.501")
    now = stores.clock.now()
    stores.clock.instant = now - Patience().longest
    assert await take(stores) == [], "it may have been put off for so long"
    stores.clock.instant -= timedelta(seconds=1)
    (item,) = await take(stores)
    assert item.submission.sop_instance_uid == "2.25.501"
