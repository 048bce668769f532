"""What an operator sees of the queues, and does to their rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest
import pytest_twisted
from sqlalchemy import text

from drimbox.store.mending import BATCH, CannotMend, Mending
from drimbox.store.queuelist import QueueList
from drimbox.store.schema import feed_job, inbox, outbox
from tests.store.conftest import Stores, sqlite_only
from tests.store.test_feed_jobs import message
from tests.store.test_parking import (
    LIMIT,
    STUDY,
    kos_states,
    park,
    patient_stores,
    publication,
    received,
    removal,
    row,
)

pytestmark = pytest.mark.requirement("DB.SO.21")


@attrs.frozen
class Desk:
    stores: Stores
    rows: QueueList
    mending: Mending

    async def retry(self, queue: str, number: int) -> str:
        """Play a row again; return why not, empty when it was."""
        try:
            await self.mending.retry(queue, number)
        except CannotMend as reason:
            return str(reason)
        return ""


@pytest.fixture
def desk(stores: Stores) -> Desk:
    stores = patient_stores(stores.database, stores.clock)
    database, clock = stores.database, stores.clock
    return Desk(stores, QueueList(database, clock=clock), Mending(database, clock=clock))


async def refused(stores: Stores, sop: str = "2.25.501", code: str = "E006") -> int:
    """Queue a publication and have the DMP refuse it; return its row."""
    number = await publication(stores, sop)
    await stores.outbox.take(stores.clock.now(), 10)
    await stores.outbox.begin(number)
    stores.clock.advance(1)
    await stores.outbox.refused(number, code, "patient inconnu")
    await stores.notices.post(key=f"{code}-{STUDY}", code=code, text="t")
    stores.clock.advance(1)
    return number


async def execute(stores: Stores, sql: str) -> None:
    await stores.database.run(lambda c: c.execute(text(sql)).rowcount)


# --- seeing ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_rows_are_listed_by_state_and_study_without_content(desk: Desk) -> None:
    stores = desk.stores
    failed = await received(stores, b"PID|DUPONT")
    await stores.inbox.take(stores.clock.now(), 10)
    await stores.inbox.failed(failed, "E005", "INS 279035121518989 illisible")
    off = await received(stores)
    await stores.inbox.take(stores.clock.now(), 10)
    await stores.inbox.retry_later(off, stores.clock.now() + timedelta(hours=1), "PACS muet")
    held = await received(stores)
    await stores.inbox.take(stores.clock.now(), 10)
    waiting = await received(stores)
    done = await message(stores, STUDY)
    shown = await desk.rows.page("inbox")
    states = {one["id"]: one["state"] for one in shown}
    assert states == {failed: "failed", off: "put_off", held: "waiting", waiting: "waiting"}, (
        "the helper gives back what others hold"
    )
    assert [one["id"] for one in shown] == sorted(states, reverse=True), "newest first"
    (one,) = await desk.rows.page("inbox", state="failed")
    assert (one["code"], one["reason"]) == ("E005", "INS <INS masqué> illisible")
    assert "DUPONT" not in str(shown)
    assert (await desk.rows.page("inbox", state="put_off"))[0]["reason"] == "PACS muet"
    assert [one["id"] for one in await desk.rows.page("inbox", state="done")] == [done]
    assert [one["id"] for one in await desk.rows.page("inbox", state="done", study=STUDY)] == [done]
    assert await desk.rows.page("inbox", state="done", study="2.25.77") == []
    assert [one["id"] for one in await desk.rows.page("inbox", before=waiting, limit=2)] == [held, off]
    await stores.inbox.take(stores.clock.now(), 1)
    assert [one["id"] for one in await desk.rows.page("inbox", state="in_hand")] == [held]


@pytest_twisted.ensureDeferred
async def test_a_job_that_ended_with_a_code_has_failed(desk: Desk) -> None:
    stores = desk.stores
    await message(stores, STUDY, "2.25.2")
    for job in await stores.jobs.take(stores.clock.now(), 10):
        await stores.jobs.finish(job.id, "E004" if job.study_uid == STUDY else "unchanged", "absent")
    (one,) = await desk.rows.page("feed")
    assert (one["state"], one["code"], one["reason"], one["study_uid"]) == (
        "failed",
        "E004",
        "absent",
        STUDY,
    )
    (good,) = await desk.rows.page("feed", state="done")
    assert (good["result"], good["code"]) == ("unchanged", "")


@pytest_twisted.ensureDeferred
async def test_one_row_is_shown_with_what_stands_beside_it(desk: Desk) -> None:
    stores = desk.stores
    number = await refused(stores, code="E007")
    found = await desk.rows.one("outbox", number)
    assert found is not None
    assert (found["state"], found["code"], found["reason"]) == ("failed", "E007", "patient inconnu")
    assert (found["sop_instance_uid"], found["kos"], found["kind"]) == ("2.25.501", "refused", "publish")
    (job,) = found["jobs"]
    beside = await desk.rows.one("feed", job["id"])
    assert beside is not None
    assert beside["outbox"] == [{"id": number, "kind": "publish", "state": "failed"}]
    letter = await desk.rows.one("inbox", job["message_id"])
    assert letter is not None
    assert (letter["peer"], letter["size"]) == ("p", 3)
    assert letter["jobs"] == [{"id": job["id"], "study_uid": STUDY}]
    assert await desk.rows.one("inbox", 999) is None
    assert await desk.rows.raw("inbox", letter["id"]) == b"MSH"
    assert await desk.rows.raw("feed", job["id"]) == b"MSH"
    raw = await desk.rows.raw("outbox", number)
    assert raw is not None
    assert raw.startswith(b"{")
    assert await desk.rows.raw("outbox", 999) is None


# Only SQLite lets a column hold another type.
@sqlite_only
@pytest_twisted.ensureDeferred
async def test_a_damaged_instant_hides_no_row(desk: Desk) -> None:
    number = await received(desk.stores)
    await execute(desk.stores, "UPDATE inbox SET received_at = 'hier'")
    assert await desk.stores.inbox.take(desk.stores.clock.now(), 10) == []
    (one,) = await desk.rows.page("inbox")
    assert (one["id"], one["state"], one["came_at"]) == (number, "parked", "hier")
    assert await desk.rows.one("inbox", number) is not None


# --- playing again --------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_message_is_read_again(desk: Desk) -> None:
    stores = desk.stores
    number = await received(stores)
    await stores.inbox.take(stores.clock.now(), 10)
    assert await desk.retry("inbox", number) == "elle est en cours de traitement"
    await stores.inbox.failed(number, "E005", "DESTDMP absent")
    await stores.notices.post(key=f"message-{number}", code="E005", text="t")
    assert await desk.retry("inbox", number) == ""
    assert await stores.notices.open() == []
    (again,) = await stores.inbox.take(stores.clock.now(), 10)
    assert again.id == number
    await stores.inbox.processed(number, result="feed")
    assert "interprété" in await desk.retry("inbox", number)
    with pytest.raises(KeyError):
        await desk.mending.retry("inbox", 999)


@pytest_twisted.ensureDeferred
async def test_what_is_put_off_may_go_at_once(desk: Desk) -> None:
    stores = desk.stores
    number = await received(stores)
    await stores.inbox.take(stores.clock.now(), 10)
    await stores.inbox.retry_later(number, stores.clock.now() + timedelta(hours=1), "PACS muet")
    assert await desk.retry("inbox", number) == ""
    assert len(await stores.inbox.take(stores.clock.now(), 10)) == 1


@pytest_twisted.ensureDeferred
async def test_a_study_is_compared_again_unless_it_will_be(desk: Desk) -> None:
    stores = desk.stores
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    await stores.jobs.finish(job.id, "E004", "absent")
    await stores.notices.post(key=f"E004-{STUDY}", code="E004", text="t")
    assert await desk.retry("feed", job.id) == ""
    assert await stores.notices.open() == []
    (again,) = await stores.jobs.take(stores.clock.now(), 10)
    assert (again.id, again.attempts) == (job.id, 0)
    await stores.jobs.finish(job.id, "E004", "absent")
    await message(stores, STUDY)
    assert "plus récent" in await desk.retry("feed", job.id)
    assert (await row(stores, feed_job, job.id)).result == "E004"


@pytest.mark.parametrize("code", ["E006", "E007"])
@pytest_twisted.ensureDeferred
async def test_a_refused_publication_is_tried_again_after_a_question(desk: Desk, code: str) -> None:
    stores = desk.stores
    number = await refused(stores, code=code)
    assert await kos_states(stores) == {"2.25.501": "refused"}
    assert await desk.retry("outbox", number) == ""
    assert await kos_states(stores) == {"2.25.501": "pending"}
    assert await stores.notices.open() == []
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    assert (item.id, item.outcome_unknown) == (number, True)
    await stores.outbox.published(number, None)
    assert "terminée" in await desk.retry("outbox", number)


@pytest.mark.requirement("DB.SO.13", "DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_an_old_refusal_does_not_undo_what_was_decided_since(desk: Desk) -> None:
    stores = desk.stores
    old = await refused(stores)
    # The report was withdrawn: nothing of ours in the DMP, and nothing must come.
    await message(stores, STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    assert "réexaminé" in await desk.retry("outbox", old), "a job waits"
    assert await stores.jobs.queue_removal(job.id, removal) == 0
    assert "réexaminé" in await desk.retry("outbox", old)
    new = await publication(stores, "2.25.502")
    assert "plus récent" in await desk.retry("outbox", old)
    assert (await row(stores, outbox, old)).state == "failed"
    assert [item.id for item in await stores.outbox.take(stores.clock.now(), 10)] == [new]


@pytest_twisted.ensureDeferred
async def test_a_parked_publication_goes_on_with_its_doubt(desk: Desk) -> None:
    stores = desk.stores
    number = await publication(stores, "2.25.501")
    await park(stores, number, begun=True)
    await stores.notices.post(key=f"file-outbox-{number}", code="E008", text="t")
    assert await desk.retry("outbox", number) == ""
    assert await stores.notices.open() == []
    assert (await row(stores, outbox, number)).failures == 0
    (item,) = await stores.outbox.take(stores.clock.now(), 10)
    assert item.outcome_unknown


@pytest_twisted.ensureDeferred
async def test_all_of_a_state_are_played_again_in_batches(desk: Desk) -> None:
    stores = desk.stores
    numbers = [await received(stores) for _ in range(BATCH + 3)]
    await execute(stores, "UPDATE inbox SET state = 'failed', error_code = 'E005'")
    done: list[int] = []
    after: Any = 0
    while after is not None:
        batch = await desk.mending.retry_all("inbox", "failed", after=after)
        assert batch.refused == {}
        done += batch.done
        after = batch.after
    assert done == numbers
    assert (await stores.inbox.counts()).waiting == len(numbers)


@pytest_twisted.ensureDeferred
async def test_those_that_cannot_be_played_again_are_named(desk: Desk) -> None:
    stores = desk.stores
    old = await refused(stores)
    await message(stores, STUDY)
    batch = await desk.mending.retry_all("outbox", "failed")
    assert (batch.done, list(batch.refused), batch.after) == ([], [old], None)


# --- giving up ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_row_is_given_up_with_its_reason_and_kept(desk: Desk) -> None:
    stores = desk.stores
    number = await received(stores)
    await stores.inbox.take(stores.clock.now(), 10)
    with pytest.raises(CannotMend):
        await desk.mending.drop("inbox", number, "test")
    for _ in range(LIMIT):
        await stores.inbox.broke(number, "KeyError")
        stores.clock.advance(1000)
        await stores.inbox.take(stores.clock.now(), 10)
    await stores.notices.post(key=f"file-inbox-{number}", code="E008", text="t")
    await desk.mending.drop("inbox", number, "message d'essai")
    found = await row(stores, inbox, number)
    assert (found.state, found.last_error, found.raw) == ("dropped", "abandonnée : message d'essai", b"MSH")
    assert await stores.notices.open() == []
    (one,) = await desk.rows.page("inbox", state="dropped")
    assert one["reason"] == "abandonnée : message d'essai"
    with pytest.raises(CannotMend):
        await desk.mending.drop("inbox", number, "encore")


@pytest_twisted.ensureDeferred
async def test_a_publication_given_up_in_doubt_is_known_to_the_next(desk: Desk) -> None:
    stores = desk.stores
    number = await publication(stores, "2.25.501")
    await park(stores, number, begun=True)
    await desk.mending.drop("outbox", number, "essai")
    assert await kos_states(stores) == {"2.25.501": "refused"}
    assert [one.sop_instance_uid for one in await stores.archive.doubtful(STUDY)] == ["2.25.501"]
    assert "terminée" in await desk.retry("outbox", number)
    done = await publication(stores, "2.25.502")
    await stores.outbox.take(stores.clock.now(), 10)
    await stores.outbox.published(done, None)
    with pytest.raises(CannotMend):
        await desk.mending.drop("outbox", done, "essai")
