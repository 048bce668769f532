"""From a report to a KOS in the DMP, with everything real but the neighbours (requirements.md 4.2)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.sim import ris
from drimbox.sim.mime import read_media_type, split_related
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from tests.integration.feed_stand import (
    POOL,
    SECOND_POOL,
    SECOND_STRUCTURE,
    FeedStand,
    SimOrder,
    Studies,
    held_instances,
    kos_dataset,
    kos_instances,
)
from tests.integration.waiting import until, wait
from tests.kos.test_peers import TOLERATED
from tests.xds.judges import DS, xmlsec1

SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
FIRST_STRUCTURE = "1999999999"


@attrs.define
class World:
    stand: FeedStand
    first: SimulatedPacs
    second: SimulatedPacs
    studies: Studies


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("feed")
    first, second = SimulatedPacs("PACS-A"), SimulatedPacs("PACS-B")
    first.start()
    second.start()
    stand = FeedStand(
        folder,
        [PacsAddress("PACS-A", first.port, POOL), PacsAddress("PACS-B", second.port, SECOND_POOL)],
        ris={"RIS-B": "RIS-B-APP"},
        # The first PACS works for the first RIS alone; the second for everybody.
        sites=[{"ris": '["RIS"]'}, {}],
        extra={"hl7": {"max_message_bytes": '"64MiB"'}},
    )
    for pacs, pool in ((first, POOL), (second, SECOND_POOL)):
        pacs.destinations.update(dict.fromkeys(pool, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, first, second, Studies(folder / "studies"))
    wait(stand.stop())
    first.stop()
    second.stop()


@pytest.mark.requirement("DB.SO.03", "DB.SO.11", "DB.SO.12", "DB.SO.18", "DB.SO.105", "DB.SO.141")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("level", [1, 3])
@pytest_twisted.ensureDeferred
async def test_a_report_becomes_a_kos_that_lists_what_the_pacs_holds(
    world: World, kind: str, level: int
) -> None:
    study = world.studies.new(world.first, instances=5, series=2)
    await world.stand.report(study, kind=kind, report={"level": level})
    entry = await world.stand.published_one(study)
    assert kos_instances(entry) == held_instances(study)
    dataset = kos_dataset(entry)
    assert dataset.SOPInstanceUID == entry.unique_id
    # Patient and request come from the report; the images say something else.
    assert dataset.PatientID == "284070100499094"
    assert str(dataset.PatientName).startswith("EXEMPLE^CLAIRE")
    (request, *_) = dataset.ReferencedRequestSequence
    assert request.AccessionNumber == "ACC-7788"
    assert request.StudyInstanceUID == study.study_uid


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.peer("dciodvfy", "dsrdump")
@pytest_twisted.ensureDeferred
async def test_dciodvfy_and_dcmtk_read_the_published_kos(world: World, tmp_path: Path) -> None:
    study = world.studies.new(world.first, instances=3)
    await world.stand.report(study)
    entry = await world.stand.published_one(study)
    file = tmp_path / "kos.dcm"
    file.write_bytes(entry.document)
    judged = subprocess.run(["dciodvfy", str(file)], capture_output=True, timeout=30, check=False)
    said = set((judged.stdout + judged.stderr).decode("latin-1").splitlines())
    assert said - set(TOLERATED) == set()
    assert judged.returncode == 0
    read = subprocess.run(["dsrdump", str(file)], capture_output=True, timeout=30, check=False)
    assert read.returncode == 0, read.stderr
    assert b"Key Object Selection" in read.stdout
    assert read.stdout.count(b"CT image") == 3


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest.mark.peer("xmlsec1")
@pytest_twisted.ensureDeferred
async def test_xmlsec1_verifies_what_the_dmp_received(world: World, tmp_path: Path) -> None:
    stand = world.stand
    study = world.studies.new(world.first)
    del stand.requests[:]
    await stand.report(study)
    entry = await stand.published_one(study)
    (signature,) = [
        one
        for one in stand.dmp.service.registry.entries.values()
        if one.mime_type == "text/xml" and one.submission_uid == entry.submission_uid
    ]
    untrusted = ("--untrusted-pem", str(stand.pki.intermediate))
    good, words = xmlsec1(
        signature.document,
        tmp_path,
        stand.pki.root,
        *untrusted,
        "--ignore-manifests",
        "--id-attr:Id",
        f"{DS}:Manifest",
        "--id-attr:Id",
        "http://uri.etsi.org/01903/v1.1.1#:SignedProperties",
    )
    assert good, words
    # One TD0.2, one TD2.1, one GetDocuments, each with its own VIHF.
    envelopes = [_envelope(request) for request in stand.requests]
    assert len(envelopes) == 3
    for envelope in envelopes:
        options = (*untrusted, "--id-attr:ID", f"{SAML}:Assertion")
        good, words = xmlsec1(envelope, tmp_path, stand.pki.root, *options)
        assert good, words
    assert len({re.search(rb'Assertion[^>]* ID="([^"]+)"', envelope)[1] for envelope in envelopes}) == 3  # type: ignore[index]


def _envelope(request: Any) -> bytes:
    if request.content_type.startswith("multipart/"):
        boundary = read_media_type(request.content_type).parameters["boundary"]
        return split_related(request.body, boundary)[0].content
    return bytes(request.body)


@pytest.mark.requirement("DB.SO.12")
@pytest_twisted.ensureDeferred
async def test_a_report_on_two_studies_gives_two_kos_with_every_accession(world: World) -> None:
    studies = [world.studies.new(world.first), world.studies.new(world.first)]
    orders = (SimOrder("ACC-1", order="1"), SimOrder("ACC-2", order="2"))
    await world.stand.report(*studies, report={"orders": orders})
    for study in studies:
        entry = await world.stand.published_one(study)
        assert kos_instances(entry) == held_instances(study)
        requests = kos_dataset(entry).ReferencedRequestSequence
        assert {item.AccessionNumber for item in requests} == {"ACC-1", "ACC-2"}


@pytest.mark.requirement("DB.SO.11", "DB.SO.43")
@pytest.mark.parametrize(
    ("change", "result"),
    [({"flags": {"DESTDMP": "N"}}, "destdmp-n"), ({"reliability": "PROV"}, "ins-non-qualified")],
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_for_the_dmp_is_acknowledged_audited_and_nothing_else(
    world: World, change: dict[str, Any], result: str
) -> None:
    stand = world.stand
    study = world.studies.new(world.first)
    exchanges, notices = len(stand.dmp.service.exchanges), await stand.notices()
    await stand.report(study, **change)
    await stand.idle()
    assert stand.kos(study, None) == []
    assert len(stand.dmp.service.exchanges) == exchanges
    assert await stand.notices() == notices
    assert stand.query("SELECT result FROM inbox ORDER BY id DESC LIMIT 1") == [(result,)]
    (event,) = stand.audits(study.study_uid)
    assert (event["event_id"], event["outcome"]) == ("110107", 0)


@pytest.mark.requirement("DB.SO.15", "DB.SO.21", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_study_no_pacs_holds_is_told_and_audited(world: World) -> None:
    uid = "2.25.404404"
    await world.stand.report(uid)
    await world.stand.idle()
    text = await world.stand.notice_about(uid, "E004")
    assert "PACS1, PACS2" in text
    received, failed = world.stand.audits(uid)
    assert received["outcome"] == 0
    assert failed["outcome_description"].startswith("E004 - ")
    assert failed["outcome"] == 8
    assert world.stand.kos(uid, None) == []


@pytest.mark.requirement("DB.SO.21", "DB.SO.43", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_an_incomplete_report_is_kept_told_and_audited_with_what_it_lacks(world: World) -> None:
    study = world.studies.new(world.first)
    await world.stand.report(study, report={"orders": (), "structure_id": ""}, prt_structure="")
    await world.stand.idle()
    text = await world.stand.notice_about("numéro d'accession", "E005")
    assert "situation d'exercice" in text
    received, failed = world.stand.audits(study.study_uid)
    assert received["event_id"] == "110107"
    assert failed["outcome_description"].startswith("E005 - ")
    assert world.stand.kos(study, None) == []
    (kept,) = world.stand.query("SELECT state, error_code FROM inbox ORDER BY id DESC LIMIT 1")
    assert kept == ("failed", "E005")


@pytest.mark.requirement("DB.SO.140")
@pytest_twisted.ensureDeferred
async def test_a_study_absent_from_the_first_pacs_is_found_in_the_second(world: World) -> None:
    study = world.studies.new(world.second)
    await world.stand.report(study)
    entry = await world.stand.published_one(study)
    assert kos_instances(entry) == held_instances(study)
    # The address to fetch the images from is that of the second site.
    assert world.stand.sites[1] in str(kos_dataset(entry))
    assert world.stand.query("SELECT site FROM kos WHERE study_uid = ?", study.study_uid) == [("site2",)]


@pytest.mark.requirement("DB.SO.04", "DB.SO.140")
@pytest_twisted.ensureDeferred
async def test_each_ris_is_known_by_its_name_and_asks_its_own_pacs(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.first)
    await stand.report(study, application="RIS-B-APP")
    await stand.idle()
    # The second RIS has nothing to do with the first PACS, where the study is.
    assert "PACS1" not in await stand.notice_about(study.study_uid, "E004")
    assert stand.query("SELECT ris FROM inbox ORDER BY id DESC LIMIT 1") == [("RIS-B",)]
    world.second.load(study)
    await stand.report(study, application="RIS-B-APP")
    await stand.published_one(study)
    ack = await stand.send(stand.message(study, number=999_999, application="RIS-X"))
    assert ack.code == "AE"


@pytest.mark.requirement("DB.SO.21", "DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_each_structure_publishes_with_its_own_certificate(world: World) -> None:
    stand = world.stand
    for structure in (FIRST_STRUCTURE, SECOND_STRUCTURE):
        study = world.studies.new(world.first)
        seen = len(stand.exchanges())
        await stand.report(study, report={"structure_id": structure})
        entry = await stand.published_one(study)
        assert entry.structure == structure
        clients = {each.client for each in stand.exchanges()[seen:]}
        assert all(f"OU={structure}" in client for client in clients)
        archived = stand.query(
            "SELECT structure_id, entry_uuid, length(metadata) > 1000 FROM kos WHERE study_uid = ?",
            study.study_uid,
        )
        assert archived == [(structure, entry.entry_uuid, 1)]
    users = [one["user_id"] for event in stand.audits(study.study_uid) for one in event["participants"]]
    assert f"{SECOND_STRUCTURE}/interne-z" in users


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_structure_without_certificate_is_told(world: World) -> None:
    study = world.studies.new(world.first)
    await world.stand.report(study, report={"structure_id": "1777777777"})
    await world.stand.idle()
    assert "1777777777" in await world.stand.notice_about(study.study_uid, "E007")
    assert world.stand.kos(study, None) == []


@pytest.mark.requirement("DB.SO.13", "DB.SO.12", "DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_the_same_again_publishes_nothing_and_a_change_replaces(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.first, instances=2)
    number = await stand.report(study)
    first = await stand.published_one(study)
    sent = len(stand.exchanges())
    again = await stand.report(study)
    await stand.idle()
    assert len(stand.exchanges()) == sent
    assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id]
    reports = stand.query(
        "SELECT report_id FROM kos_report JOIN kos ON kos.id = kos_id WHERE study_uid = ? ORDER BY 1",
        study.study_uid,
    )
    assert sorted(reports) == sorted([(f"2.999.7.{number}",), (f"2.999.7.{again}",)])
    # Two more images in the PACS: the record follows.
    more = world.studies.new(world.first, instances=4, study_uid=study.study_uid, seed=77)
    await stand.report(study)
    await stand.idle()
    (second,) = stand.kos(study)
    (old,) = stand.kos(study, "Deprecated")
    assert old.unique_id == first.unique_id
    assert kos_instances(second) == held_instances(more)
    states = stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
    assert states == [("replaced",), ("published",)]


@pytest.mark.requirement("DB.SO.12", "DB.SO.13", "DB.SO.105")
@pytest_twisted.ensureDeferred
async def test_a_second_reading_by_another_structure_updates_the_accession_numbers(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.first)
    await stand.report(study)
    first = await stand.published_one(study)
    reading = {"orders": (SimOrder("ACC-2ND", order="77"),), "structure_id": SECOND_STRUCTURE}
    await stand.report(study, report=reading)
    await stand.idle()
    (second,) = stand.kos(study)
    assert second.unique_id != first.unique_id
    assert [one.AccessionNumber for one in kos_dataset(second).ReferencedRequestSequence] == ["ACC-2ND"]
    # The DMP lets only the structure that published replace (interfaces.md 4.6).
    assert second.structure == FIRST_STRUCTURE


@pytest.mark.requirement("DB.SO.14", "DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_comes_back_gets_its_questions_and_nothing_is_lost(world: World) -> None:
    stand = world.stand
    studies = [world.studies.new(world.first) for _ in range(4)]
    for behaviour in (
        PacsBehaviour(down=True),
        PacsBehaviour(find="abort"),
        PacsBehaviour(reject=(1, 1, 1)),
    ):
        world.first.behaviour = behaviour
        try:
            await stand.report(studies[0])
            await stand.notice_about("PACS1", "E003")
            for study in studies[1:]:
                await stand.report(study)

            async def asked(count: int = len(studies)) -> bool:
                return await stand.waiting() == count

            # A message and its questions are counted one queue after the other: the sum may jump.
            await until(asked, what="one question per study")
        finally:
            world.first.behaviour = PacsBehaviour()
        for study in studies:
            await stand.published_one(study)
        # What was wrong is over, and nobody has to say so.
        assert not [text for text in (await stand.notices()).values() if "injoignable" in text]
        studies = [world.studies.new(world.first) for _ in studies]


@pytest.mark.requirement("DB.SO.14", "DB.SO.140")
@pytest_twisted.ensureDeferred
async def test_a_copy_elsewhere_does_not_stand_in_for_the_silent_pacs_of_a_published_study(
    world: World,
) -> None:
    stand = world.stand
    study = world.studies.new(world.first, world.second)
    await stand.report(study)
    first = await stand.published_one(study)
    world.first.behaviour = PacsBehaviour(down=True)
    try:
        await stand.report(study)
        await stand.notice_about("PACS1", "E003")
        assert await stand.waiting() == 1
    finally:
        world.first.behaviour = PacsBehaviour()
    await stand.idle()
    assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id]
    # Gone from its first PACS: the study has moved, and so does its one manifest.
    for instance in study.instances:
        world.first.index.remove(instance.sop_instance_uid)
    await stand.report(study)
    await stand.idle()
    (second,) = stand.kos(study)
    assert stand.sites[1] in str(kos_dataset(second))
    assert [entry.unique_id for entry in stand.kos(study, "Deprecated")] == [first.unique_id]


@pytest.mark.requirement("DB.SO.03", "DB.SO.12")
@pytest_twisted.ensureDeferred
async def test_a_report_of_20_megabytes_passes_end_to_end(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.first)
    message = stand.message(study, number=20_000_000, report={"pdf_size": 11_300_000})
    assert len(message) >= 20_000_000
    ack = await stand.send(message, seconds=60.0)
    assert ack.code == "AA"
    await stand.published_one(study, seconds=60.0)


@pytest.mark.requirement("DB.SO.03", "DB.SO.11", "DB.SO.141")
@pytest_twisted.ensureDeferred
async def test_two_hundred_reports_in_a_burst_are_published_exactly_once_each(world: World) -> None:
    stand = world.stand
    studies = [world.studies.new(world.first, instances=1) for _ in range(200)]
    messages = [stand.message(study, number=50_000 + n) for n, study in enumerate(studies)]
    acks = await ris.send_all(LOOPBACK, stand.hl7_port, messages, 60.0)
    assert {ack.code for ack in acks} == {"AA"}
    assert len(acks) == 200
    await until(lambda: all(stand.kos(study) for study in studies[-3:]), seconds=90)
    await stand.idle(seconds=90)
    counts = [len(stand.kos(study, None)) for study in studies]
    assert counts == [1] * 200
