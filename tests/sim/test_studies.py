"""Generated studies: valid, repeatable, and as heavy as they claim."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
from pydicom import dcmread
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from drimbox.model import is_uid
from drimbox.sim.slices import encoded_slices
from drimbox.sim.studies import (
    REFERENCE_INSTANCES,
    SimPatient,
    StudyFacts,
    make_reference_study,
    make_study,
    spread,
)
from drimbox.sim.study_objects import (
    KEY_OBJECT_TITLES,
    add_key_objects,
    add_pdf,
    add_presentation_state,
    add_report,
)

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("modality", ["CT", "MR", "CR"])
def test_files_are_what_the_study_says(tmp_path: Path, modality: str, syntax: str) -> None:
    study = make_study(
        tmp_path, instances=3, rows=20, columns=24, series=2, modality=modality, transfer_syntax=syntax
    )
    assert [len(series.instances) for series in study.series] == [2, 1]
    assert sorted(tmp_path.iterdir()) == sorted(study.files)
    assert study.size == sum(path.stat().st_size for path in study.files)
    for series in study.series:
        for instance in series.instances:
            data = dcmread(instance.path)
            assert data.file_meta.TransferSyntaxUID == syntax
            assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
            assert data.StudyInstanceUID == study.study_uid
            assert data.SeriesInstanceUID == series.series_uid
            assert data.SOPInstanceUID == instance.sop_instance_uid
            assert data.SOPClassUID == instance.sop_class_uid
            assert (data.InstanceNumber, data.SeriesNumber) == (instance.number, series.number)
            assert data.Modality == modality
            pixels = data.pixel_array
            assert pixels.shape == (20, 24)
            assert pixels.max() < 1 << data.BitsStored
            assert pixels.std() > 10
    uids = [
        study.study_uid,
        *(s.series_uid for s in study.series),
        *(i.sop_instance_uid for i in study.instances),
    ]
    assert len(set(uids)) == 6
    assert all(is_uid(uid) for uid in uids)


def test_jpeg_ls_holds_the_same_pixels(tmp_path: Path) -> None:
    plain = make_study(tmp_path / "plain", instances=2)
    packed = make_study(tmp_path / "packed", instances=2, transfer_syntax=JPEGLSLossless)
    for one, other in zip(plain.files, packed.files, strict=True):
        assert numpy.array_equal(dcmread(one).pixel_array, dcmread(other).pixel_array)
        assert other.stat().st_size < one.stat().st_size


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    first = make_study(tmp_path / "first", instances=2, transfer_syntax=JPEGLSLossless)
    again = make_study(tmp_path / "again", instances=2, transfer_syntax=JPEGLSLossless)
    other = make_study(tmp_path / "other", instances=2, transfer_syntax=JPEGLSLossless, seed=1)
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in again.files]
    assert first.study_uid != other.study_uid
    assert not {i.sop_instance_uid for i in first.instances} & {i.sop_instance_uid for i in other.instances}


def test_reuses_slices_under_other_identities(tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=5, distinct=2)
    data = [dcmread(path) for path in study.files]
    assert data[0].PixelData == data[2].PixelData != data[1].PixelData
    assert len({d.SOPInstanceUID for d in data}) == 5
    assert len({tuple(d.ImagePositionPatient) for d in data}) == 5


def test_takes_the_identities_it_is_given(tmp_path: Path) -> None:
    patient = SimPatient(id="IPP7", name="X^Y", ins="123456789012345", ins_oid="1.2.250.1.213.1.4.8")
    study = make_study(
        tmp_path,
        instances=2,
        series=2,
        study_uid="1.2.3",
        series_uids=["1.2.3.4", "1.2.3.5"],
        patient=patient,
        facts=StudyFacts(date="20230102", accession="A7"),
    )
    data = dcmread(study.files[1])
    assert (data.StudyInstanceUID, data.SeriesInstanceUID) == ("1.2.3", "1.2.3.5")
    assert (data.PatientID, data.AccessionNumber, data.StudyDate) == ("IPP7", "A7", "20230102")
    (other,) = data.OtherPatientIDsSequence
    assert other.PatientID == "123456789012345"
    assert other.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.250.1.213.1.4.8"
    model = study.as_model()
    assert model.study_uid == "1.2.3"
    assert model.instance_count == 2
    assert (model.ins, model.patient_id, model.date) == ("123456789012345", "IPP7", "20230102")
    assert [series.series_uid for series in model.series] == ["1.2.3.4", "1.2.3.5"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"modality": "XX"},
        {"transfer_syntax": JPEG2000Lossless},
        {"instances": 0},
        {"instances": 1, "series": 2},
        {"rows": 1},
        {"series_uids": ["1.2", "1.3"]},
        {"study_uid": "not a uid"},
    ],
)
def test_refuses_what_it_cannot_make(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        make_study(tmp_path, **wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.requirement("DB.SO.100")
def test_reference_study_weighs_what_the_requirement_says(tmp_path: Path) -> None:
    # 32 slices are all there is to weigh; 1,300 of them are the same ones again.
    study = make_reference_study(tmp_path, instances=32)
    assert dcmread(study.files[0], stop_before_pixels=True).Rows == 512
    whole = study.size / 32 * REFERENCE_INSTANCES
    assert 195e6 < whole < 225e6


def test_slices_differ() -> None:
    slices = encoded_slices(4, 16, 16, JPEGLSLossless, seed=3)
    assert len(set(slices)) == 4


def test_spread_links_files_elsewhere(tmp_path: Path) -> None:
    study = make_study(tmp_path / "a", instances=2)
    for _ in range(2):
        links = spread(study.files, tmp_path / "b")
    assert [link.read_bytes() for link in links] == [file.read_bytes() for file in study.files]


def test_objects_that_are_not_images(tmp_path: Path) -> None:
    images = make_study(tmp_path, instances=4, series=2)
    whole = add_report(images, text="Conclusion : néant.")
    whole = add_key_objects(whole)
    whole = add_key_objects(whole, title="113001", targets=images.instances[2:])
    whole = add_presentation_state(whole)
    whole = add_pdf(whole, series_uid="1.2.3.4")
    assert len(images.series) == 2
    assert [series.modality for series in whole.series] == ["CT", "CT", "SR", "KO", "KO", "PR", "DOC"]
    assert len({series.series_uid for series in whole.series}) == 7
    assert len({series.number for series in whole.series}) == 7
    assert whole.series[-1].series_uid == "1.2.3.4"
    report, keys, note = (dcmread(path) for path in whole.files[4:7])
    assert report.ContentSequence[0].TextValue == "Conclusion : néant."
    assert keys.ConceptNameCodeSequence[0].CodeValue == "113000"
    assert len(keys.ContentSequence) == 5  # four images and the report, which was there by then
    assert note.ConceptNameCodeSequence[0].CodeMeaning == KEY_OBJECT_TITLES["113001"]
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    (group,) = evidence.ReferencedSeriesSequence
    assert group.SeriesInstanceUID == images.series[1].series_uid
    assert [reference.ReferencedSOPInstanceUID for reference in group.ReferencedSOPSequence] == [
        instance.sop_instance_uid for instance in images.series[1].instances
    ]
    assert all(dcmread(path).StudyInstanceUID == images.study_uid for path in whole.files)


@pytest.mark.peer("dciodvfy")
@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (package dicom3tools) is not installed"
)
def test_dciodvfy_has_nothing_to_say(tmp_path: Path) -> None:
    checked = 0
    for modality in ("CT", "MR", "CR"):
        for number, syntax in enumerate(SYNTAXES):
            study = make_study(
                tmp_path / f"{modality}{number}",
                instances=2,
                modality=modality,
                transfer_syntax=syntax,
                patient=SimPatient(ins="123456789012345"),
            )
            if number == 0:
                for add in (add_report, add_key_objects, add_presentation_state, add_pdf):
                    study = add(study)
            for path in study.files:
                said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=20)
                complaints = [
                    line for line in said.stderr.splitlines() if line.startswith(("Error", "Warning"))
                ]
                assert complaints == [], path.name
                checked += 1
    assert checked == 9 * 2 + 3 * 4


@pytest.mark.peer("dcmdump")
@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmdump (package dcmtk) is not installed")
def test_dcmtk_decodes_our_jpeg_ls(tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=1, transfer_syntax=JPEGLSLossless)
    plain = tmp_path / "plain.dcm"
    subprocess.run(["dcmdjpls", str(study.files[0]), str(plain)], check=True, timeout=20)
    assert numpy.array_equal(dcmread(plain).pixel_array, dcmread(study.files[0]).pixel_array)
    dump = subprocess.run(["dcmdump", str(study.files[0])], capture_output=True, text=True, timeout=20)
    assert dump.returncode == 0
    assert "JPEGLSLossless" in dump.stdout
    assert "(PixelSequence #=2)" in dump.stdout
