"""Taking over manifests of another DRIMbox: ordinary citizens, and nothing newer is set aside."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest
import pytest_twisted
from sqlalchemy import func, select

from drimbox.model import KosState, MessageAction
from drimbox.ports import IMPORTED, ReportSaid, Speaker, Voice
from drimbox.source.interpretation import interpret
from drimbox.store.exports import ArchiveListing
from drimbox.store.imports import Imports
from drimbox.store.reports import Reports
from drimbox.store.schema import feed_job, inbox, kos, outbox, report
from drimbox.xdm.names import Month
from drimbox.xdm.reports import ReportLine
from drimbox.xdm.takeover import Fate, Takeover, bounds, takeover
from tests.store.conftest import Stores
from tests.xdm.builders import CREATED, MONTH, published, taken

pytestmark = pytest.mark.requirement("DB.SO.30", "DB.SO.22")
STUDY = "2.25.1"
DELETE, NEW, REPLACE = MessageAction.DELETE, MessageAction.NEW, MessageAction.REPLACE


def record(
    number: int = 1, minutes: float = 0, reports: tuple[str, ...] = (), uid: int | None = None
) -> Takeover:
    """Make the record of a manifest of study `number` submitted `minutes` after the first."""
    one = published(number if uid is None else uid, created=CREATED + timedelta(minutes=minutes))
    found = taken(one)
    if reports:
        line = found.reports[0]
        found = attrs.evolve(
            found, reports=tuple(ReportLine(each, line.ins, line.ins_oid) for each in reports)
        )
    made = takeover(found, site="site1", structure_id="1999999999", month=MONTH)
    if uid is None:
        return made
    # Another manifest of the same study.
    moved = attrs.evolve(
        made.submission, study=attrs.evolve(made.submission.study, study_uid=f"2.25.{number}")
    )
    return attrs.evolve(made, submission=moved)


async def states(stores: Stores) -> dict[str, str]:
    query = select(kos.c.sop_instance_uid, kos.c.state)
    rows = await stores.database.read(lambda connection: connection.execute(query).all())
    return {row[0]: row[1] for row in rows}


async def count(stores: Stores, table: object = kos) -> int:
    query = select(func.count()).select_from(table)  # type: ignore[arg-type]
    return int(await stores.database.read(lambda connection: connection.execute(query).scalar_one()))


async def heard(stores: Stores, document: str, minutes: float, **what: object) -> int:
    """Read a message of the RIS that was sent `minutes` after the first manifest was submitted."""
    said = ReportSaid(
        document,
        what.get("replaces"),  # type: ignore[arg-type]
        what.get("action", NEW),  # type: ignore[arg-type]
        CREATED + timedelta(minutes=minutes),
        (STUDY,),
    )
    number = await stores.inbox.add(ris="RIS", peer="p", control_id="c", raw=f"MSH {said}".encode())
    await stores.inbox.take(stores.clock.now(), 100)
    await stores.inbox.processed(number, result="feed", said=said)
    return number


@pytest_twisted.ensureDeferred
async def test_one_taken_over_is_an_ordinary_citizen(stores: Stores) -> None:
    stores.clock.advance(86400)
    imports = Imports(stores.database, clock=stores.clock)
    assert await imports.fate(record()) is Fate.LOADED
    assert await count(stores) == 0
    assert await imports.take(record()) is Fate.LOADED

    (found,) = await stores.archive.candidates("site1", STUDY, with_data=True)
    assert found == await stores.archive.published("site1", STUDY) == await stores.archive.latest(STUDY)
    assert (found.state, found.fingerprint) == (KosState.PUBLISHED, IMPORTED)
    assert found.data == published().submission.kos
    assert found.report_ids == ("2.25.901",)
    assert (found.structure_id, found.patient_ins) == ("1999999999", "284070100499094")
    submission = await stores.archive.submission(found.id)
    assert submission is not None
    assert submission.sop_instance_uid == found.sop_instance_uid
    # Nothing waits: nothing will be sent.
    for queue in (stores.inbox, stores.jobs, stores.outbox):
        assert (await queue.counts()).waiting == 0
    # Its report speaks, and can be read again.
    speaker = await Reports(stores.database).speaker(STUDY)
    assert isinstance(speaker, Speaker)
    assert speaker.ris == IMPORTED
    message = await stores.inbox.message(speaker.message_id)
    read = interpret(message.raw)
    assert (read.error, read.reason) == (None, "")
    assert read.report is not None
    assert read.report.document_id == "2.25.901"
    # Its job can be reopened.
    assert await stores.jobs.again(STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    assert (job.study_uid, job.message_id) == (STUDY, speaker.message_id)


@pytest_twisted.ensureDeferred
async def test_doing_it_again_changes_nothing(stores: Stores) -> None:
    imports = Imports(stores.database, clock=stores.clock)
    await imports.take(record())
    before = [await count(stores, table) for table in (kos, outbox, inbox, report, feed_job)]
    assert await imports.take(record()) is Fate.KNOWN
    assert await imports.fate(record()) is Fate.KNOWN
    assert await imports.take(attrs.evolve(record(), site="site2")) is Fate.ELSEWHERE
    assert before == [await count(stores, table) for table in (kos, outbox, inbox, report, feed_job)]


@pytest.mark.parametrize("first", [0, 1])
@pytest_twisted.ensureDeferred
async def test_the_newest_of_a_study_is_the_current_one_in_any_order(stores: Stores, first: int) -> None:
    imports = Imports(stores.database, clock=stores.clock)
    records = [record(reports=("A",)), record(minutes=5, reports=("B",), uid=7)]
    fates = [await imports.take(records[each]) for each in (first, 1 - first)]
    assert fates == ([Fate.LOADED, Fate.LOADED] if first == 0 else [Fate.LOADED, Fate.OLDER])
    assert await states(stores) == {"2.25.5001": "replaced", "2.25.5007": "published"}
    # What the newest says of its reports is all that counts.
    await heard(stores, "B", 60, action=DELETE)
    assert await Reports(stores.database).speaker(STUDY) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_a_newer_manifest_of_ours_is_never_set_aside(stores: Stores) -> None:
    imports = Imports(stores.database, clock=stores.clock)
    await imports.take(record(minutes=5, uid=7))
    ours = await stores.archive.latest(STUDY)
    assert ours is not None
    assert await imports.take(record()) is Fate.OLDER
    assert await states(stores) == {"2.25.5001": "replaced", "2.25.5007": "published"}
    assert (await stores.archive.published("site1", STUDY)) == ours
    # Nor is its withdrawal.
    await stores.archive.depublished(ours.id)
    assert await imports.take(record(minutes=2, uid=8)) is Fate.OLDER
    assert (await states(stores))["2.25.5008"] == "depublished"


@pytest_twisted.ensureDeferred
async def test_what_the_ris_said_since_counts_more_than_what_an_archive_brings(stores: Stores) -> None:
    newer = await heard(stores, "B", 10)
    imports = Imports(stores.database, clock=stores.clock)
    await imports.take(record(reports=("A",)))
    assert await Reports(stores.database).speaker(STUDY) == Speaker(newer, "RIS")
    # The withdrawal of the one leaves the other.
    await heard(stores, "B", 20, action=DELETE)
    left = await Reports(stores.database).speaker(STUDY)
    assert isinstance(left, Speaker)
    assert left.ris == IMPORTED


@pytest_twisted.ensureDeferred
async def test_what_the_ris_said_before_counts_less(stores: Stores) -> None:
    await heard(stores, "B", -10)
    await Imports(stores.database, clock=stores.clock).take(record(reports=("A",)))
    speaker = await Reports(stores.database).speaker(STUDY)
    assert isinstance(speaker, Speaker)
    assert speaker.ris == IMPORTED


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_heard_before_the_archive_came_holds(stores: Stores) -> None:
    await heard(stores, "A", 10, action=DELETE)
    await Imports(stores.database, clock=stores.clock).take(record(reports=("A",)))
    assert await Reports(stores.database).speaker(STUDY) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_with_several_reports_the_last_withdrawn_silences_the_study(stores: Stores) -> None:
    await Imports(stores.database, clock=stores.clock).take(record(reports=("A", "B")))
    await heard(stores, "A", 10, action=DELETE)
    assert isinstance(await Reports(stores.database).speaker(STUDY), Speaker)
    # Exported again, it is attached to the one report that is left (CR.TXT).
    listing = ArchiveListing(stores.database)
    (number,) = await listing.numbers("site1", *bounds(MONTH))
    exported = await listing.load(number)
    assert exported is not None
    assert [line.document_id for line in exported.reports] == ["B"]
    await heard(stores, "B", 11, action=DELETE)
    assert await Reports(stores.database).speaker(STUDY) is Voice.NONE_LEFT


@pytest_twisted.ensureDeferred
async def test_without_any_report_the_study_can_still_be_compared(stores: Stores) -> None:
    made = takeover(attrs.evolve(taken(), reports=()), site="site1", structure_id="1999999999", month=MONTH)
    await Imports(stores.database, clock=stores.clock).take(made)
    assert await Reports(stores.database).speaker(STUDY) is Voice.UNKNOWN
    assert await stores.jobs.again(STUDY)
    (job,) = await stores.jobs.take(stores.clock.now(), 10)
    read = interpret((await stores.inbox.message(job.message_id)).raw)
    assert read.report is not None
    (found,) = await stores.archive.candidates("site1", STUDY)
    await stores.jobs.unchanged(job.id, found.id, read.report.document_id, fingerprint="f")
    (found,) = await stores.archive.candidates("site1", STUDY)
    assert (found.report_ids, found.fingerprint) == ((), "f")


@pytest.mark.requirement("DB.SO.29")
@pytest_twisted.ensureDeferred
async def test_an_export_lists_what_is_published_in_a_month(stores: Stores) -> None:
    imports = Imports(stores.database, clock=stores.clock)
    listing = ArchiveListing(stores.database)
    assert await listing.span("site1") is None
    for number in (3, 1, 2):
        await imports.take(record(number))
    await imports.take(attrs.evolve(record(4), published_at=bounds(Month(2026, 2))[0]))
    await imports.take(attrs.evolve(record(5), site="site2"))
    first, last = bounds(MONTH)
    numbers = await listing.numbers("site1", first, last)
    loaded = [await listing.load(each) for each in numbers]
    assert [each.sop_instance_uid for each in loaded if each] == ["2.25.5001", "2.25.5002", "2.25.5003"]
    span = await listing.span("site1")
    assert span is not None
    assert (span[0] < last, span[1] == last) == (True, True)
    # Never a depublished one, were it while the export runs.
    await stores.archive.depublished(numbers[1])
    assert await listing.load(numbers[1]) is None
    assert await listing.numbers("site1", first, last) == [numbers[0], numbers[2]]
