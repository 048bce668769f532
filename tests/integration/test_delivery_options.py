"""The options of a site on the way of each instance: whose image it is, INS traits, what stays inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import pytest_twisted

from drimbox.sim.studies import GeneratedStudy, SimPatient, make_study
from tests.integration.hospital import (
    ACCEPT,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_LS,
    Hospital,
    behave,
    data_set,
    read,
)
from tests.integration.waiting import wait

INS, INS_OID = "284070100499094", "1.2.250.1.213.1.4.10"
#: What the PACS calls the patient of the simulated reports.
OURS = SimPatient(id="P000123", issuer="")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One site that checks identities, writes traits, and keeps the instances of one root inside."""
    site = {
        "check_identity": "true",
        "insert_traits": "true",
        "excluded_uid_roots": '["1.2.826.0.1.3680043.9"]',
    }
    hospital = Hospital(tmp_path_factory.mktemp("strict"), site=site, sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.mark.requirement("DB.SO.39", "DB.SO.134")
@pytest.mark.parametrize(
    ("held", "wanted"),
    [(JPEG_LS, JPEG_LS), (EXPLICIT_LE, EXPLICIT_LE), (IMPLICIT_LE, EXPLICIT_LE), (JPEG_LS, EXPLICIT_LE)],
)
@pytest_twisted.ensureDeferred
async def test_the_traits_of_the_kos_are_written_into_each_instance(
    strict: Hospital, tmp_path: Path, held: str, wanted: str
) -> None:
    seed = 500 + int(held[-2:].strip(".")) + len(wanted)
    study = make_study(tmp_path, instances=2, patient=OURS, transfer_syntax=held, seed=seed)
    served = await strict.publish(study)
    strict.pacs[0].behaviour = behave(propose="stored")
    result = await strict.fetch(served, accept=(ACCEPT.format(wanted),))
    assert result.complete, result.problem
    for part in result.parts:
        assert part.content is not None
        assert part.transfer_syntax == wanted
        image = read(part.content)
        assert image.PatientID == OURS.id  # the local identifier stays (DB.SO.39)
        assert str(image.PatientName) == "EXEMPLE^CLAIRE"
        assert (image.PatientBirthDate, image.PatientSex) == ("19840701", "F")
        (ins,) = [item for item in image.OtherPatientIDsSequence if item.PatientID == INS]
        assert ins.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == INS_OID
        held_path = next(i.path for i in study.instances if i.sop_instance_uid == image.SOPInstanceUID)
        if held == wanted:
            assert image.PixelData == read(held_path.read_bytes()).PixelData


@pytest.mark.requirement("DB.SO.134", "DB.SO.47", "DB.SO.46")
@pytest_twisted.ensureDeferred
async def test_images_of_another_patient_are_e1006_and_not_delivered(
    strict: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=3, patient=SimPatient(id="P999999"), seed=521)
    served = await strict.publish(study)
    before = strict.audited()
    result = await strict.fetch(served)
    assert result.status == 406
    assert result.problem is not None
    assert result.problem["code"] == "E1006"
    assert "P999999" not in str(result.problem)
    record = await strict.audit_after(before)
    assert record.outcome != 0
    assert "E1006" in record.description
    assert any(notice["code"] == "E1006" for notice in await strict.notices())
    await strict.idle()


@pytest.mark.requirement("DB.SO.134")
@pytest_twisted.ensureDeferred
async def test_one_foreign_image_cuts_the_answer(strict: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=3, patient=OURS, seed=531)
    image = read(study.series[0].instances[2].path.read_bytes())
    image.PatientID = "P999999"
    image.save_as(study.series[0].instances[2].path)
    served = await strict.publish(study)
    result = await strict.fetch(served)
    assert not result.complete
    for part in result.parts:
        assert part.content is not None
        assert read(part.content).PatientID == OURS.id
    await strict.idle()


def with_inner_object(study: GeneratedStudy) -> GeneratedStudy:
    """Give the last instance a UID under the root that stays inside."""
    series = study.series[0]
    last = series.instances[-1]
    image = read(last.path.read_bytes())
    uid = "1.2.826.0.1.3680043.9.77"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
    image.save_as(last.path)
    inner = attrs.evolve(last, sop_instance_uid=uid)
    changed = attrs.evolve(series, instances=(*series.instances[:-1], inner))
    return attrs.evolve(study, series=(changed,))


@pytest.mark.requirement("DB.SO.199", "DB.SO.200")
@pytest_twisted.ensureDeferred
async def test_what_stays_inside_is_neither_in_the_kos_nor_delivered(
    strict: Hospital, tmp_path: Path
) -> None:
    study = with_inner_object(make_study(tmp_path, instances=3, patient=OURS, seed=541))
    served = await strict.publish(study)
    entry = strict.stand.dmp.service.registry.by_unique_id(served.kos)
    assert entry is not None
    assert b"1.2.826.0.1.3680043.9.77" not in entry.document
    result = await strict.fetch(served)
    assert result.complete, result.problem
    assert len(result.parts) == 2
    assert all(part.content and b"3680043.9.77" not in data_set(part.content) for part in result.parts)
    assert len(strict.pacs[0].seen("stored")) >= 3  # the PACS did send it, and was told it succeeded
