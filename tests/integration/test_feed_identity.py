"""The options of a site that hold the PACS against the report before anything is published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy, SimPatient
from tests.integration.feed_stand import (
    POOL,
    SECOND_POOL,
    FeedStand,
    Studies,
    held_instances,
    kos_instances,
)
from tests.integration.waiting import wait

INS, OTHER_INS = "284070100499094", "180021234567890"
#: The patient of the reports, as a PACS that knows no INS has it.
PATIENT = SimPatient(id="P000123", name="EXEMPLE^CLAIRE", birth_date="19840701")
SOMEBODY = SimPatient(id="P000999", name="AUTRE^PATIENT", birth_date="19500101")
STRICT = "RIS-B-APP"


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    strict: SimulatedPacs
    studies: Studies


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("identity")
    first, second = SimulatedPacs("PACS-A"), SimulatedPacs("PACS-B")
    first.start()
    second.start()
    checks = {"check_feed_identity": "true", "check_feed_birth_date": "true"}
    stand = FeedStand(
        folder,
        [PacsAddress("PACS-A", first.port, POOL), PacsAddress("PACS-B", second.port, SECOND_POOL)],
        ris={"RIS-B": STRICT},
        sites=[
            {"ris": '["RIS"]', **checks},
            {"ris": '["RIS-B"]', **checks, "check_feed_strictly": "true"},
        ],
        extra={"hl7": {"check_prt_structure": "true"}},
    )
    for pacs, pool in ((first, POOL), (second, SECOND_POOL)):
        pacs.destinations.update(dict.fromkeys(pool, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, first, second, Studies(folder / "studies"))
    wait(stand.stop())
    first.stop()
    second.stop()


async def refused(world: World, study: GeneratedStudy, code: str = "E001") -> str:
    """Wait for the end; check that it is told, audited and that nothing left; return the notice."""
    stand = world.stand
    await stand.idle()
    text = await stand.notice_about(study.study_uid if code == "E001" else "PRT-8", code)
    received, failed = stand.audits(study.study_uid)[-2:]
    assert (received["event_id"], received["outcome"]) == ("110107", 0)
    assert failed["outcome_description"].startswith(f"{code} - ")
    assert failed["outcome"] == 8
    return text


@pytest.mark.requirement("DB.SO.16", "DB.SO.191", "DB.SO.14")
@pytest.mark.parametrize("relational", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_same_patient_is_published(world: World, relational: bool) -> None:
    world.pacs.behaviour = PacsBehaviour(relational=relational)
    patients = [PATIENT, attrs.evolve(PATIENT, id="ANCIEN-IPP", ins=INS)]
    try:
        for patient in patients:
            study = world.studies.new(world.pacs, instances=3, patient=patient)
            await world.stand.report(study)
            entry = await world.stand.published_one(study)
            assert kos_instances(entry) == held_instances(study)
    finally:
        world.pacs.behaviour = PacsBehaviour()


@pytest.mark.requirement("DB.SO.16", "DB.SO.191", "DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize("relational", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ins": OTHER_INS}, "l'INS"),
        ({"id": "P000999"}, "l'IPP"),
        ({"birth_date": "19840702"}, "date de naissance"),
    ],
    ids=["INS", "IPP", "birth date"],
)
@pytest_twisted.ensureDeferred
async def test_another_patient_is_told_audited_and_not_published(
    world: World, relational: bool, change: dict[str, Any], words: str
) -> None:
    stand = world.stand
    exchanges = len(stand.dmp.service.exchanges)
    world.pacs.behaviour = PacsBehaviour(relational=relational)
    study = world.studies.new(world.pacs, patient=attrs.evolve(PATIENT, **change))
    try:
        await stand.report(study)
        assert words in await refused(world, study)
    finally:
        world.pacs.behaviour = PacsBehaviour()
    assert len(stand.dmp.service.exchanges) == exchanges
    assert stand.kos(study, None) == []
    everything = " ".join((await stand.notices()).values())
    for secret in (INS, OTHER_INS, "P000123", "P000999", "EXEMPLE", "19840701"):
        assert secret not in everything


@pytest.mark.requirement("DB.SO.16")
@pytest_twisted.ensureDeferred
async def test_one_series_of_somebody_else_leaves_the_published_kos_as_it_is_until_mended(
    world: World,
) -> None:
    """A merge gone wrong in the PACS; then put right, and told by the next report."""
    stand = world.stand
    study = world.studies.new(world.pacs, instances=2, patient=PATIENT)
    await stand.report(study)
    first = await stand.published_one(study)
    wrong = world.studies.new(
        world.pacs, instances=1, patient=SOMEBODY, study_uid=study.study_uid, seed=4242
    )
    await stand.report(study)
    await refused(world, study)
    (entry,) = stand.kos(study, None)
    assert (entry.unique_id, kos_instances(entry)) == (first.unique_id, held_instances(study))
    for instance in wrong.instances:
        world.pacs.index.remove(instance.sop_instance_uid)
    more = world.studies.new(world.pacs, instances=3, patient=PATIENT, study_uid=study.study_uid, seed=4343)
    await stand.report(study)
    await stand.idle()
    (entry,) = stand.kos(study)
    assert kos_instances(entry) == held_instances(study) | held_instances(more)


@pytest.mark.requirement("DB.SO.16", "DB.SO.191")
@pytest_twisted.ensureDeferred
async def test_what_a_pacs_does_not_tell_is_a_mismatch_for_the_strict_alone(world: World) -> None:
    stand = world.stand
    silent = PacsBehaviour(find_omit=("PatientID", "IssuerOfPatientID", "PatientBirthDate"))
    for pacs, application in ((world.pacs, "RIS-Y"), (world.strict, STRICT)):
        pacs.behaviour = silent
        study = world.studies.new(pacs, patient=PATIENT)
        try:
            await stand.report(study, application=application)
            if pacs is world.pacs:
                await stand.published_one(study)
            else:
                assert "aucun identifiant" in await refused(world, study)
                assert stand.kos(study, None) == []
        finally:
            pacs.behaviour = PacsBehaviour()
    await stand.report(study, application=STRICT)
    await stand.published_one(study)


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest_twisted.ensureDeferred
async def test_a_sender_of_another_structure_than_the_signatory_stops_the_kos(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs, patient=PATIENT)
    await stand.report(study, prt_structure="1888888888")
    assert "1888888888" in await refused(world, study, "E005")
    assert stand.kos(study, None) == []
    # The same FINESS without its prefix is the same structure.
    await stand.report(study, prt_structure="999999999")
    await stand.published_one(study)
