"""What changes after a publication: reports taken back, images added or gone, in any order told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.peers import find_program
from drimbox.sim.ris import build_change
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects
from tests.integration.feed_stand import (
    POOL,
    FeedStand,
    Studies,
    after,
    held_instances,
    kos_instances,
)
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.97")
NEW, REPLACE, DELETE = MessageAction.NEW, MessageAction.REPLACE, MessageAction.DELETE


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies

    def document(self, number: int) -> dict[str, str]:
        return {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}

    async def withdraw(self, number: int, *studies: GeneratedStudy, **message: str) -> None:
        """Send the withdrawal of the report sent as `number`."""
        await self.stand.report(*studies, report=self.document(number), action=DELETE, **message)

    async def gone(self, study: GeneratedStudy) -> None:
        """Wait until the DMP holds nothing of the study any more, and the gateway knows."""
        await until(lambda: not self.stand.kos(study), what="no KOS in the DMP")
        await self.stand.idle()
        assert self.stand.kos(study) == []
        assert set(self.states(study)) <= {"depublished", "replaced"}

    def states(self, study: GeneratedStudy) -> list[str]:
        rows = self.stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
        return [str(row[0]) for row in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("withdrawals")
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    # The PACS calls as a system of its own (OMI^O23).
    stand = FeedStand(folder, [PacsAddress("PACS-A", pacs.port, POOL)], ris={"PACS-Z": "PACS-Z"})
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest.fixture(autouse=True)
def well_behaved(world: World) -> Iterator[None]:
    yield
    world.pacs.behaviour = PacsBehaviour()
    world.stand.dmp.script.reset()


@pytest.mark.requirement("DB.SO.26", "DB.CS.159", "SC.DMP/CONF.14")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest_twisted.ensureDeferred
async def test_a_withdrawn_report_takes_its_kos_out_of_the_dmp(world: World, kind: str) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study, kind=kind)
    entry = await world.stand.published_one(study)
    await world.withdraw(number, study, kind=kind)
    await world.gone(study)
    held = world.stand.dmp.service.registry.entries[entry.entry_uuid]
    assert held.status.endswith(":Deleted")
    # Its identifier is kept: whoever asks for the images is told what became of them (E1002).
    assert world.states(study) == ["depublished"]
    removed = world.stand.audits(study.study_uid)[-1]
    assert (removed["event_type"][0], removed["action"], removed["outcome"]) == ("ITI-57", "U", 0)
    result = await world.stand.fetch(study.study_uid, study.series[0].series_uid, entry.unique_id)
    assert result.status == 410
    assert result.problem is not None
    assert result.problem["code"] == "E1002"


@pytest_twisted.ensureDeferred
async def test_a_replacement_with_fewer_studies_takes_the_dropped_ones_out(world: World) -> None:
    kept, dropped = world.studies.new(world.pacs), world.studies.new(world.pacs)
    number = await world.stand.report(kept, dropped)
    await world.stand.published_one(kept)
    await world.stand.published_one(dropped)
    await world.stand.report(kept, report={"replaces": f"2.999.7.{number}"}, action=REPLACE)
    await world.gone(dropped)
    assert len(world.stand.kos(kept)) == 1


@pytest_twisted.ensureDeferred
async def test_a_study_two_reports_cite_stays_until_both_are_withdrawn(world: World) -> None:
    study = world.studies.new(world.pacs)
    first = await world.stand.report(study)
    await world.stand.published_one(study)
    second = await world.stand.report(study)
    await world.stand.idle()
    await world.withdraw(second, study)
    await world.stand.idle()
    assert len(world.stand.kos(study)) == 1
    await world.withdraw(first, study)
    await world.gone(study)


@pytest_twisted.ensureDeferred
async def test_a_report_may_be_published_again_after_its_withdrawal(world: World) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    first = await world.stand.published_one(study)
    await world.withdraw(number, study)
    await world.gone(study)
    await world.stand.report(study, report=world.document(number))
    again = await world.stand.published_one(study)
    assert again.unique_id != first.unique_id
    assert world.states(study) == ["depublished", "published"]


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_before_its_publication_prevents_it(world: World) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report("2.25.1")
    await world.stand.idle()
    document = f"2.999.8.{number}"
    early, late = "20260112093000", "20260112094500"
    await world.stand.report(study, report={"document_id": document}, action=DELETE, sent_at=late)
    await world.stand.idle()
    await world.stand.report(study, report={"document_id": document}, sent_at=early)
    await world.stand.idle()
    assert world.stand.kos(study, None) == []
    # Sent after it, the same report counts.
    await world.stand.report(study, report={"document_id": document}, sent_at="20260112100000")
    await world.stand.published_one(study)


@pytest_twisted.ensureDeferred
async def test_a_replacement_before_what_it_replaces_has_the_last_word(world: World) -> None:
    kept, dropped = world.studies.new(world.pacs), world.studies.new(world.pacs)
    await world.stand.report(
        kept,
        report={"document_id": "2.999.9.2", "replaces": "2.999.9.1"},
        action=REPLACE,
        sent_at="20260112100000",
    )
    entry = await world.stand.published_one(kept)
    await world.stand.report(kept, dropped, report={"document_id": "2.999.9.1"}, sent_at="20260112093000")
    await world.stand.idle()
    assert world.stand.kos(dropped, None) == []
    assert [each.unique_id for each in world.stand.kos(kept)] == [entry.unique_id]


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_of_what_nobody_published_ends_quietly(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.withdraw(7777, study)
    await world.stand.idle()
    assert world.stand.kos(study, None) == []
    (result,) = world.stand.query("SELECT result FROM feed_job WHERE study_uid = ?", study.study_uid)
    assert result == ("nothing",)
    assert not [text for text in (await world.stand.notices()).values() if study.study_uid in text]


@pytest_twisted.ensureDeferred
async def test_a_withdrawal_twice_is_one(world: World) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    before = len(world.stand.exchanges("TD3.3c"))
    await world.withdraw(number, study)
    await world.withdraw(number, study)
    await world.gone(study)
    assert len(world.stand.exchanges("TD3.3c")) == before + 1


@pytest.mark.requirement("DB.SO.25", "DB.SO.133")
@pytest_twisted.ensureDeferred
async def test_a_report_on_a_study_whose_images_are_gone_takes_its_kos_out(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.stand.published_one(study)
    for instance in study.instances:
        world.pacs.index.remove(instance.sop_instance_uid)
    world.pacs.behaviour = PacsBehaviour(down=True)
    await world.stand.report(study)
    put_off = "SELECT 1 FROM feed_job WHERE study_uid = ? AND state = 'waiting' AND last_error IS NOT NULL"
    await until(lambda: world.stand.query(put_off, study.study_uid), what="a job put off")
    assert len(world.stand.kos(study)) == 1
    world.pacs.behaviour = PacsBehaviour()
    await world.gone(study)


@pytest_twisted.ensureDeferred
async def test_a_silent_dmp_gets_the_withdrawal_when_it_is_back(world: World) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    with world.stand.dmp_misbehaves(after("TD3.3c", Kind.HTTP, status=503), times=2):
        await world.withdraw(number, study)
        await world.gone(study)


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest_twisted.ensureDeferred
async def test_a_withdrawal_without_answer_is_asked_about(world: World, kind: Kind) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    with world.stand.dmp_misbehaves(after("TD3.3c", kind)):
        await world.withdraw(number, study)
        await world.gone(study)


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_refused_withdrawal_is_told_in_the_dmp_s_words(world: World) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    refusal = Behaviour(Kind.ERROR, transaction="TD3.3c", code="XDSMetadataUpdateError")
    with world.stand.dmp_misbehaves(refusal):
        await world.withdraw(number, study)
        text = await world.stand.notice_about("retrait", "E007")
    assert study.study_uid in text
    assert "XDSMetadataUpdateError" in text
    assert len(world.stand.kos(study)) == 1
    assert world.states(study) == ["published"]


@pytest.mark.parametrize("moment", ["queued", "sent"])
@pytest_twisted.ensureDeferred
async def test_a_killed_gateway_goes_on_withdrawing(world: World, moment: str) -> None:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    before = len(world.stand.exchanges("TD3.3c"))
    kind = Kind.SILENT if moment == "sent" else Kind.HTTP
    options = {} if moment == "sent" else {"status": 503}
    with world.stand.dmp_misbehaves(after("TD3.3c", kind, **options), times=None):
        await world.withdraw(number, study)
        await until(lambda: len(world.stand.exchanges("TD3.3c")) > before, what="an attempt")
        await world.stand.kill_gateway()
    await world.stand.start_gateway()
    await world.gone(study)


@pytest_twisted.ensureDeferred
async def test_a_new_report_after_a_withdrawal_under_way_publishes_what_is_there(world: World) -> None:
    study = world.studies.new(world.pacs, instances=3)
    number = await world.stand.report(study)
    await world.stand.published_one(study)
    with world.stand.dmp_misbehaves(after("TD3.3c", Kind.HTTP, status=503), times=2):
        await world.withdraw(number, study)
        begun = "SELECT 1 FROM outbox WHERE study_uid = ? AND kind = 'remove'"
        await until(lambda: world.stand.query(begun, study.study_uid), what="the withdrawal under way")
        await world.stand.report(study)
        await until(lambda: len(world.states(study)) == 2, what="a second KOS")
    entry = await world.stand.published_one(study)
    assert kos_instances(entry) == held_instances(study)
    assert world.states(study) == ["depublished", "published"]


# -- told by the PACS --------------------------------------------------------------------------------


async def changed(world: World, *studies: GeneratedStudy) -> None:
    ack = await world.stand.send(build_change([study.study_uid for study in studies]))
    assert ack.code == "AA"


@pytest.mark.requirement("DB.SO.133")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_tells_of_a_change_has_the_kos_follow(world: World) -> None:
    study = world.studies.new(instances=4)
    world.pacs.load(list(study.files[:3]))
    await world.stand.report(study)
    first = await world.stand.published_one(study)
    world.pacs.load(study.files[3])
    await changed(world, study)
    await until(lambda: first not in world.stand.kos(study), what="the KOS replaced")
    second = await world.stand.published_one(study)
    assert kos_instances(second) == held_instances(study)
    # Nothing new to say the second time: message, notes and requests may all tell of one change.
    await changed(world, study)
    await world.stand.idle()
    assert [each.unique_id for each in world.stand.kos(study)] == [second.unique_id]
    for instance in study.instances[:2]:
        world.pacs.index.remove(instance.sop_instance_uid)
    await changed(world, study)
    await until(lambda: second not in world.stand.kos(study), what="the KOS replaced")
    third = await world.stand.published_one(study)
    assert sum(len(uids) for uids in kos_instances(third).values()) == 2


@pytest.mark.requirement("DB.SO.133", "DB.SO.25")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_tells_of_a_study_gone_has_it_withdrawn(world: World) -> None:
    study, other = world.studies.new(world.pacs), world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.stand.published_one(study)
    for instance in study.instances:
        world.pacs.index.remove(instance.sop_instance_uid)
    await changed(world, other, study)
    await world.gone(study)
    # Nobody asked for the other one to be published.
    assert world.stand.kos(other, None) == []


async def store_note(
    world: World,
    study: GeneratedStudy,
    title: str,
    *,
    calling: str = "PACS-A",
    of: int = 1,
    kept: bool = False,
) -> tuple[int, str]:
    """Send a key object about the first images of a study as the PACS does, which may keep it (RAD-66)."""
    note = add_key_objects(study, title=title, targets=study.instances[:of]).instances[-1]
    if kept:
        world.pacs.load(note.path)
    command = [find_program("storescu"), "-v", "-aet", calling, "-aec", "DRIMBOX", LOOPBACK]
    command += [str(world.stand.dicom_port), str(note.path)]
    done: Any = await deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25", "DB.SO.26")
@pytest.mark.parametrize("title", ["113001", "113037", "113038", "113039"])
@pytest_twisted.ensureDeferred
async def test_a_rejection_note_has_the_kos_follow_the_pacs(world: World, title: str) -> None:
    study = world.studies.new(world.pacs, instances=3)
    await world.stand.report(study)
    first = await world.stand.published_one(study)
    world.pacs.index.remove(study.instances[0].sop_instance_uid)
    assert (await store_note(world, study, title))[0] == 0
    await until(lambda: first not in world.stand.kos(study), what="the KOS replaced")
    second = await world.stand.published_one(study)
    (listed,) = kos_instances(second).values()
    assert listed == {each.sop_instance_uid for each in study.instances[1:]}


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25", "DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_a_note_that_rejects_everything_withdraws_the_kos(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.stand.published_one(study)
    for instance in study.instances:
        world.pacs.index.remove(instance.sop_instance_uid)
    assert (await store_note(world, study, "113039", of=2))[0] == 0
    await world.gone(study)


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25", "DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_a_note_that_the_pacs_keeps_with_the_study_is_not_in_the_kos(world: World) -> None:
    study = world.studies.new(world.pacs, instances=3)
    await world.stand.report(study)
    first = await world.stand.published_one(study)
    world.pacs.index.remove(study.instances[0].sop_instance_uid)
    assert (await store_note(world, study, "113001", kept=True))[0] == 0
    await until(lambda: first not in world.stand.kos(study), what="the KOS replaced")
    second = await world.stand.published_one(study)
    (listed,) = kos_instances(second).values()
    assert listed == {each.sop_instance_uid for each in study.instances[1:]}
    # A second one that says nothing new changes nothing, although the PACS lists one more object.
    assert (await store_note(world, study, "113037", kept=True))[0] == 0
    await world.stand.idle()
    assert [each.unique_id for each in world.stand.kos(study)] == [second.unique_id]
    # Nothing is left but the notes: no image, no KOS.
    for instance in study.instances[1:]:
        world.pacs.index.remove(instance.sop_instance_uid)
    assert (await store_note(world, study, "113039", of=3, kept=True))[0] == 0
    await world.gone(study)


@pytest.mark.requirement("DB.SO.25", "DB.SO.18")
@pytest_twisted.ensureDeferred
async def test_a_note_that_never_came_to_the_gateway_is_recognised_and_not_in_the_kos(world: World) -> None:
    study = world.studies.new(world.pacs, instances=2)
    images = held_instances(study)
    for title in ("113039", "113000"):
        study = add_key_objects(study, title=title, targets=study.instances[:1])
        world.pacs.load(study.instances[-1].path)
    interest = study.series[-1]
    await world.stand.report(study)
    entry = await world.stand.published_one(study)
    # The note of interest is listed as ever.
    assert kos_instances(entry) == {
        **images,
        interest.series_uid: {one.sop_instance_uid for one in interest.instances},
    }
    # Known now, neither is fetched again.
    moves = len(world.pacs.seen("move"))
    assert moves
    await changed(world, study)
    await world.stand.idle()
    assert [each.unique_id for each in world.stand.kos(study)] == [entry.unique_id]
    assert len(world.pacs.seen("move")) == moves


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25")
@pytest_twisted.ensureDeferred
async def test_a_note_while_the_pacs_is_silent_waits_and_withdraws_nothing(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.stand.published_one(study)
    world.pacs.behaviour = PacsBehaviour(down=True)
    assert (await store_note(world, study, "113001"))[0] == 0
    put_off = "SELECT 1 FROM feed_job WHERE study_uid = ? AND state = 'waiting' AND last_error IS NOT NULL"
    await until(lambda: world.stand.query(put_off, study.study_uid), what="a job put off")
    assert len(world.stand.kos(study)) == 1
    world.pacs.behaviour = PacsBehaviour()
    await world.stand.idle()
    assert len(world.stand.kos(study)) == 1


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25")
@pytest.mark.threat("a PACS that sends what nobody asked for")
@pytest_twisted.ensureDeferred
async def test_only_a_configured_pacs_may_store_and_only_key_objects(world: World) -> None:
    study = world.studies.new(world.pacs)
    code, said = await store_note(world, study, "113001", calling="INTRUDER")
    assert code != 0, said
    command = [find_program("storescu"), "-v", "-aet", "PACS-A", "-aec", "DRIMBOX", LOOPBACK]
    command += [str(world.stand.dicom_port), str(study.files[0])]
    done: Any = await deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "No valid Presentation Context" in done.stdout + done.stderr
