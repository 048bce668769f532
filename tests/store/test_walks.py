"""Walks over the archive: their order, what one transaction keeps, what becomes of each study."""

from __future__ import annotations

import tracemalloc
from typing import Any

import attrs
import pytest
import pytest_twisted
from sqlalchemy import insert, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError

from drimbox.model import KosState
from drimbox.ports import Purpose, Removal
from drimbox.store.database import Database
from drimbox.store.schema import kos
from drimbox.store.walks import Walks, page_query
from drimbox.walks import (
    Finding,
    Milestone,
    Step,
    Verdict,
    Walk,
    WalkKind,
    WalkOpen,
    WalkState,
)
from tests.store.conftest import Stores, sqlite_only
from tests.store.samples import START, submission
from tests.store.test_feed_jobs import message, take

pytestmark = pytest.mark.requirement("DB.SO.28")
BASE = "https://db1.test/dicom-web-rs"
CHANGED, GONE, SAME = Finding(Verdict.CHANGED), Finding(Verdict.GONE), Finding(Verdict.UNCHANGED)


@pytest.fixture
def walks(stores: Stores) -> Walks:
    return Walks(stores.database, clock=stores.clock)


def row(number: int, site: str = "a", state: str = "published") -> dict[str, Any]:
    return {
        "site": site,
        "study_uid": f"2.25.{number}",
        "sop_instance_uid": f"2.25.9.{site}.{state}.{number}",
        "state": state,
        "data": b"",
        "metadata": b"",
        "fingerprint": "",
        "structure_id": "",
        "patient_ins": "",
        "patient_ins_oid": "",
        "patient_id": "",
        "created_at": START,
        "changed_at": START,
    }


async def fill(database: Database, *rows: dict[str, Any]) -> None:
    await database.run(lambda connection: connection.execute(insert(kos), list(rows)).rowcount)


async def begin(walks: Walks, site: str = "a", **options: Any) -> Walk:
    return await walks.begin(WalkKind.RESYNC, site, **{"dry_run": False, "address": BASE, **options})


async def publish(stores: Stores, study: str, sop: str) -> int:
    """Feed and publish one study; return its KOS."""
    await message(stores, study)
    (job,) = await take(stores)
    number = await stores.jobs.queue_publication(
        job.id, site="a", submission=submission(sop, study), metadata=b"m", fingerprint="f"
    )
    (item,) = await stores.outbox.take(stores.clock.now(), 5)
    await stores.outbox.begin(item.id)
    await stores.outbox.published(item.id, "urn:uuid:1")
    return number


@pytest_twisted.ensureDeferred
async def test_published_kos_of_one_site_come_in_the_order_of_their_studies(
    stores: Stores, walks: Walks
) -> None:
    rows = [row(1), row(30), row(200), row(4, "b"), row(1, state="replaced"), row(5, state="depublished")]
    await fill(stores.database, *rows, row(6, state="refused"))
    first = await walks.page("a", "", 2)
    assert [each.study_uid for each in first] == ["2.25.1", "2.25.200"]
    assert [each.study_uid for each in await walks.page("a", "2.25.200", 2)] == ["2.25.30"]
    assert await walks.page("a", "2.25.30", 2) == []
    assert (await begin(walks)).kos_before == 3


@pytest_twisted.ensureDeferred
async def test_a_kos_on_its_way_out_is_not_met(stores: Stores, walks: Walks) -> None:
    await publish(stores, "2.25.1", "2.25.500")
    assert len(await walks.page("a", "", 5)) == 1
    assert await stores.jobs.again("2.25.1")
    (job,) = await take(stores)
    await stores.jobs.queue_removal(job.id, removal)
    assert await walks.page("a", "", 5) == []
    assert (await begin(walks)).kos_before == 0


def removal(made: Any) -> Removal:
    return Removal(made.sop_instance_uid, "2.25.7", START, made.report, "O", made.structure_id)


@pytest_twisted.ensureDeferred
async def test_a_site_has_one_open_walk_of_any_kind(walks: Walks) -> None:
    first = await begin(walks)
    with pytest.raises(WalkOpen) as busy:
        await walks.begin(WalkKind.ADDRESS, "a", dry_run=False, address=BASE)
    assert busy.value.number == first.id
    other = await begin(walks, "b")
    for state in (WalkState.STOPPED, WalkState.SUSPENDED):
        await walks.set_state(first.id, state)
        with pytest.raises(WalkOpen):
            await begin(walks)
    await walks.set_state(first.id, WalkState.ABANDONED)
    second = await begin(walks)
    # What has ended does not come back.
    assert (await walks.set_state(first.id, WalkState.RUNNING)).state is WalkState.ABANDONED
    assert [each.id for each in await walks.listed(site="a")] == [second.id, first.id]
    assert [each.id for each in await walks.listed(before=second.id)] == [other.id, first.id]


@pytest.mark.requirement("DB.SO.88")
@pytest_twisted.ensureDeferred
async def test_position_counters_and_verdicts_are_kept_together(stores: Stores, walks: Walks) -> None:
    await fill(stores.database, row(1), row(2), row(3))
    walk = await begin(walks)
    page = await walks.page("a", "", 2)
    judged = [(page[0], SAME, Step.ENDED), (page[1], GONE, Step.HELD)]
    walk = await walks.advance(walk, judged, ["2.25.1"])
    assert (walk.position, walk.walked, walk.complete) == ("2.25.2", 2, False)
    assert (walk.counts[Verdict.UNCHANGED], walk.counts[Verdict.GONE]) == (1, 1)
    # A page that cannot be kept whole is not kept at all.
    with pytest.raises(IntegrityError):
        await walks.advance(walk, [(Milestone(9, "2.25.3"), SAME, Step.ENDED), judged[0]], [])
    assert await walks.get(walk.id) == walk
    assert await walks.controls("a") == ("2.25.1",)
    await stores.database.run(
        lambda connection: connection.execute(update(kos).values(state=KosState.DEPUBLISHED.value)).rowcount
    )
    done = await walks.set_state(walk.id, WalkState.DONE)
    assert (done.kos_before, done.kos_after, done.state) == (3, 0, WalkState.DONE)
    assert [each.study_uid for each in await walks.report(walk.id, verdict=Verdict.GONE)] == ["2.25.2"]
    assert [each.study_uid for each in await walks.report(walk.id, after="2.25.1")] == ["2.25.2"]


@pytest_twisted.ensureDeferred
async def test_removals_are_released_by_name_only(stores: Stores, walks: Walks) -> None:
    walk = await begin(walks)
    await walks.advance(walk, [(Milestone(1, "2.25.1"), GONE, Step.HELD)], [], complete=True)
    assert (await walks.confirm(walk.id)).confirmed is False
    await walks.set_state(walk.id, WalkState.SUSPENDED, "trop")
    confirmed = await walks.confirm(walk.id)
    assert (confirmed.state, confirmed.confirmed, confirmed.reason) == (WalkState.RUNNING, True, "")
    assert await walks.release(walk.id) == 1
    assert [each.study_uid for each in await walks.studies(walk.id, Step.RELEASED, 5)] == ["2.25.1"]


@pytest_twisted.ensureDeferred
async def test_a_study_is_followed_to_the_answer_of_the_dmp(stores: Stores, walks: Walks) -> None:
    number = await publish(stores, "2.25.1", "2.25.500")
    walk = await begin(walks)
    walk = await walks.advance(walk, [(Milestone(number, "2.25.1"), CHANGED, Step.QUEUED)], [])
    assert await stores.jobs.again("2.25.1", Purpose.UPDATE)
    assert (await walks.settle(walk.id))[Step.QUEUED] == 1
    (job,) = await take(stores)
    await stores.jobs.queue_publication(
        job.id, site="a", submission=submission("2.25.501", "2.25.1"), metadata=b"", fingerprint="g"
    )
    assert (await walks.settle(walk.id))[Step.SENT] == 1
    (item,) = await stores.outbox.take(stores.clock.now(), 5)
    assert await walks.elsewhere(walk.id) == 1
    await stores.outbox.published(item.id, "urn:uuid:2")
    assert not any((await walks.settle(walk.id)).values())
    assert await walks.elsewhere(walk.id) == 0
    (study,) = await walks.report(walk.id)
    assert (study.verdict, study.step, study.result) == (Verdict.CHANGED, Step.ENDED, "queued")


@pytest_twisted.ensureDeferred
async def test_a_refusal_of_the_dmp_is_told(stores: Stores, walks: Walks) -> None:
    number = await publish(stores, "2.25.1", "2.25.500")
    walk = await begin(walks)
    await walks.advance(walk, [(Milestone(number, "2.25.1"), CHANGED, Step.QUEUED)], [])
    assert await stores.jobs.again("2.25.1", Purpose.UPDATE)
    (job,) = await take(stores)
    await stores.jobs.queue_publication(
        job.id, site="a", submission=submission("2.25.501", "2.25.1"), metadata=b"", fingerprint="g"
    )
    (item,) = await stores.outbox.take(stores.clock.now(), 5)
    await stores.outbox.refused(item.id, "E007", "non")
    assert not any((await walks.settle(walk.id)).values())
    assert [each.result for each in await walks.report(walk.id)] == ["E007"]


@pytest.mark.requirement("DB.SO.88")
@pytest.mark.parametrize(
    ("before", "result", "verdict", "step"),
    [
        (CHANGED, "absent", Verdict.GONE, Step.HELD),
        (GONE, "unchanged", Verdict.UNCHANGED, Step.ENDED),
        (GONE, "queued", Verdict.CHANGED, Step.ENDED),
        (GONE, "removal", Verdict.GONE, Step.ENDED),
        (CHANGED, "E005", Verdict.CHANGED, Step.ENDED),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_the_job_saw_last_counts(
    stores: Stores, walks: Walks, before: Finding, result: str, verdict: Verdict, step: Step
) -> None:
    number = await publish(stores, "2.25.1", "2.25.500")
    walk = await begin(walks)
    await walks.advance(walk, [(Milestone(number, "2.25.1"), before, Step.QUEUED)], [])
    assert await stores.jobs.again("2.25.1")
    (job,) = await take(stores)
    await stores.jobs.finish(job.id, result)
    counts = await walks.settle(walk.id)
    assert counts[Step.HELD] == (step is Step.HELD)
    (study,) = await walks.report(walk.id)
    assert (study.verdict, study.step, study.result) == (verdict, step, result)
    found = (await walks.get(walk.id)).counts
    assert found == {**dict.fromkeys(Verdict, 0), verdict: 1}


@pytest_twisted.ensureDeferred
async def test_the_details_of_old_walks_are_dropped_piece_by_piece(stores: Stores, walks: Walks) -> None:
    numbers = []
    for _ in range(3):
        walk = await begin(walks)
        await walks.advance(
            walk, [(Milestone(n, f"2.25.{n}"), SAME, Step.ENDED) for n in range(1, 6)], [], complete=True
        )
        await walks.set_state(walk.id, WalkState.DONE)
        numbers.append(walk.id)
    assert [await walks.purge("a", 2, 3) for _ in range(3)] == [3, 2, 0]
    assert [len(await walks.report(number)) for number in numbers] == [0, 5, 5]
    assert (await walks.get(numbers[0])).counts[Verdict.UNCHANGED] == 5


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_hundred_thousand_kos_are_walked_at_constant_memory(stores: Stores, walks: Walks) -> None:
    total = 120_000 if stores.database.dialect == "sqlite" else 60_000
    for start in range(0, total, 10_000):
        await fill(stores.database, *(row(number) for number in range(start, start + 10_000)))
        await fill(stores.database, *(row(number, "b") for number in range(start, start + 2_000)))
    walk = await begin(walks)
    assert walk.kos_before == total
    peaks = []
    tracemalloc.start()
    seen = 0
    while page := await walks.page("a", walk.position, 500):
        walk = await walks.advance(walk, [(each, SAME, Step.ENDED) for each in page], [])
        seen += len(page)
        if seen % 20_000 == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert seen == total == walk.walked
    # What is held does not grow with what has been walked.
    assert max(peaks[1:]) < 1.5 * peaks[0]
    assert max(peaks) < 16 * 2**20
    assert len(await walks.report(walk.id, after="2.25.5", limit=10**6)) == 1000


# The plan that is read is SQLite's.
@sqlite_only
@pytest_twisted.ensureDeferred
async def test_a_page_is_read_through_the_index_of_current_kos(stores: Stores, walks: Walks) -> None:
    query = page_query("a", "2.25.1", 50).compile(
        dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True}
    )

    def explain(connection: Any) -> list[str]:
        values = tuple(query.params[name] for name in query.positiontup or ())
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all()
        return [str(row) for row in rows]

    plan = await stores.database.read(explain)
    assert any("SEARCH kos USING INDEX uq_kos_current (site=? AND study_uid>?)" in line for line in plan)
    assert not any("TEMP B-TREE" in line or "SCAN" in line for line in plan)


def test_findings_say_nothing_of_a_patient() -> None:
    names = {field.name for kind in (Finding, Milestone, Walk) for field in attrs.fields(kind)}
    assert not {name for name in names if "patient" in name or "ins" in name.split("_")}
