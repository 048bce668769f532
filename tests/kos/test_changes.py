"""Key objects that tell of a change, those that do not, and those that cannot be read."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from drimbox.kos.changes import MAX_BYTES, is_part10, read_key_object
from drimbox.kos.keyimages import NoteRefused
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_key_objects, add_report

pytestmark = pytest.mark.requirement("DB.SO.25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


def note(folder: Path, title: str = "113039") -> tuple[bytes, str]:
    study = make_study(folder / title, instances=2, rows=8, columns=8)
    study = add_key_objects(study, title=title)
    return study.instances[-1].path.read_bytes(), study.study_uid


def written(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("title", "tells"),
    [
        ("113001", True),
        ("113037", True),
        ("113038", True),
        ("113039", True),
        ("113000", True),
        ("113030", False),
    ],
)
def test_titles_tell_what_it_is(folder: Path, title: str, tells: bool) -> None:
    data, study_uid = note(folder, title)
    found = read_key_object(data)
    assert (found.title, found.tells_of_change, found.study_uids) == (title, tells, (study_uid,))
    assert is_part10(data)


def test_every_study_of_the_evidence_counts(folder: Path) -> None:
    data, study_uid = note(folder, "113001")
    dataset = pydicom.dcmread(BytesIO(data))
    other = Dataset()
    other.StudyInstanceUID = "2.25.77"
    other.ReferencedSeriesSequence = []
    dataset.CurrentRequestedProcedureEvidenceSequence.append(other)
    assert read_key_object(written(dataset)).study_uids == (study_uid, "2.25.77")


def test_a_code_of_another_scheme_is_no_title(folder: Path) -> None:
    data, _ = note(folder)
    dataset = pydicom.dcmread(BytesIO(data))
    dataset.ConceptNameCodeSequence[0].CodingSchemeDesignator = "99HOME"
    assert not read_key_object(written(dataset)).tells_of_change


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:200],
        lambda data: data + b"\0" * MAX_BYTES,
        lambda data: data.replace(b"1.2.840.10008.5.1.4.1.1.88.59", b"1.2.840.10008.5.1.4.1.1.88.58"),
        lambda data: data.replace(b"2.25.", b"2./5."),
    ],
)
def test_what_is_no_key_object_is_refused(folder: Path, damage: object) -> None:
    data, _ = note(folder)
    with pytest.raises(NoteRefused):
        read_key_object(damage(data))  # type: ignore[operator]


def test_a_report_is_no_key_object(folder: Path) -> None:
    study = add_report(make_study(folder / "report", instances=1, rows=8, columns=8))
    with pytest.raises(NoteRefused, match="objet clé"):
        read_key_object(study.instances[-1].path.read_bytes())
