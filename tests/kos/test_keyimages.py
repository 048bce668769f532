"""Key image notes: from objects of the PACS to the manifest that names them, and what is not believed."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from drimbox.kos import keyimages
from drimbox.kos.keyimages import Note, NoteRefused, cited_by, note_series, read_note
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage, read_manifest
from drimbox.model import Instance, Series
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_key_objects
from tests.kos import samples

STUDY = samples.STUDY
IMAGE = f"{STUDY}.1.2"
NOTE, NOTE_SERIES = "2.25.8001", "2.25.8000"


def code(value: str, scheme: str = "DCM", meaning: str = "x") -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def reference(uid: str, sop_class: str = samples.CT) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def text_item(text: str, concept: str = "113012") -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    item.ConceptNameCodeSequence = code(concept)
    return item


def evidence(references: Sequence[Dataset], study: str = STUDY) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = f"{STUDY}.1"
    series.ReferencedSOPSequence = list(references)
    item = Dataset()
    item.StudyInstanceUID = study
    item.ReferencedSeriesSequence = [series]
    return item


def note(
    references: Sequence[Dataset] = (),
    *,
    title: str = "113000",
    scheme: str = "DCM",
    contents: Sequence[Dataset] = (),
    more: Sequence[Dataset] = (),
    syntax: str = ExplicitVRLittleEndian,
    **values: Any,
) -> bytes:
    """A key object as a workstation writes it; `values` replace attributes, None removes them."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = KOS_SOP_CLASS, NOTE
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, NOTE_SERIES
    data.Modality = "KO"
    data.ConceptNameCodeSequence = code(title, scheme)
    data.CurrentRequestedProcedureEvidenceSequence = [evidence(references or [reference(IMAGE)]), *more]
    data.ContentSequence = list(contents)
    for name, value in values.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = KOS_SOP_CLASS, NOTE
    meta.TransferSyntaxUID = syntax
    data.file_meta = meta
    out = BytesIO()
    dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def known(*others: Series) -> Any:
    ko = Series(NOTE_SERIES, "KO", (Instance(NOTE, KOS_SOP_CLASS, 1),), number=90)
    return samples.study(samples.series(1), samples.series(2, 2), ko, *others)


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.194")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_note_is_read(syntax: str) -> None:
    data = note(
        [reference(IMAGE), reference(f"{STUDY}.1.3"), reference(IMAGE)],
        contents=[text_item("autre", "121106"), text_item("Nodule à revoir\r\nlobe supérieur")],
        syntax=syntax,
    )
    found = read_note(data)
    assert found == Note(
        NOTE, NOTE_SERIES, STUDY, "Nodule à revoir\nlobe supérieur", (IMAGE, f"{STUDY}.1.3")
    )


def test_a_data_set_alone_is_read_too() -> None:
    data = note()
    length = struct.unpack_from("<I", data, 140)[0]
    assert read_note(data[144 + length :], ExplicitVRLittleEndian) == read_note(data)


@pytest.mark.parametrize(
    "data",
    [
        note(title="113001"),
        note(title="113030"),
        note(scheme="99LOCAL"),
        note(SOPClassUID=samples.CT),
        note(ConceptNameCodeSequence=None),
        samples.build(),
    ],
    ids=["rejected", "manifest-title", "local-code", "image", "no-title", "our-manifest"],
)
def test_other_objects_of_the_series_are_no_notes(data: bytes) -> None:
    assert read_note(data) is None


def test_text_of_other_items_serves_when_none_is_the_description() -> None:
    found = read_note(note(contents=[text_item("mesure", "121106")]))
    assert found is not None
    assert found.description == "mesure"
    found = read_note(note())
    assert found is not None
    assert found.description == ""


def test_images_of_other_studies_and_other_key_objects_are_not_cited() -> None:
    data = note(
        [reference(IMAGE), reference("2.25.9001", KOS_SOP_CLASS)],
        more=[evidence([reference("2.25.6666")], study="2.25.6")],
    )
    found = read_note(data)
    assert found is not None
    assert found.cited == (IMAGE,)


# --- which series, which images -----------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.194")
def test_key_object_series_are_found() -> None:
    silent = Series("2.25.8100", "KO", (Instance("2.25.8101", ""),))
    empty = Series("2.25.8200", "KO", ())
    other = Series("2.25.8300", "KO", (Instance("2.25.8301", samples.CT),))
    assert note_series(known(silent, empty, other)) == (NOTE_SERIES, "2.25.8100")
    assert note_series(samples.study()) == ()
    many = [Series(f"2.25.9.{n}", "KO", (Instance(f"2.25.9.{n}.1", ""),)) for n in range(100)]
    assert len(note_series(known(*many))) == keyimages.MAX_SERIES


@pytest.mark.requirement("DB.SO.194")
def test_from_a_note_to_the_manifest_and_back() -> None:
    found = read_note(note(contents=[text_item("Nodule à revoir")]))
    assert found is not None
    images = cited_by([found], known())
    assert images == {IMAGE: (KeyImage(NOTE, NOTE_SERIES, "Nodule à revoir"),)}
    manifest = read_manifest(samples.build(study=known(), key_images=images))
    cited = {
        each.sop_instance_uid: each.key_images
        for series in manifest.series
        for each in series.instances
        if each.key_images
    }
    assert cited == images


def test_several_notes_of_one_image_have_one_order() -> None:
    notes = [Note(f"2.25.8.{n}", NOTE_SERIES, STUDY, str(n), (IMAGE,)) for n in (3, 1, 2, 1)]
    images = cited_by(notes, known())
    assert [each.sop_instance_uid for each in images[IMAGE]] == ["2.25.8.1", "2.25.8.2", "2.25.8.3"]
    assert images == cited_by(reversed(notes), known())


def test_what_the_study_does_not_hold_is_left_out() -> None:
    notes = [
        Note("2.25.8.1", NOTE_SERIES, STUDY, "", ("2.25.6666", NOTE)),
        Note("2.25.8.2", NOTE_SERIES, "2.25.6", "", (IMAGE,)),
    ]
    assert cited_by(notes, known()) == {}


def test_notes_are_bounded() -> None:
    notes = [Note(f"2.25.8.{n}", NOTE_SERIES, STUDY, "", (IMAGE,)) for n in range(10_000)]
    assert len(cited_by(notes, known())[IMAGE]) == keyimages.MAX_NOTES_OF_IMAGE


# --- what is not believed -----------------------------------------------------------------------------


def test_damaged_objects_are_refused() -> None:
    good = note()
    for bad in (b"", good[:200], good[:-3], good[132:], good + b"\0"):
        with pytest.raises(NoteRefused):
            read_note(bad)
    with pytest.raises(NoteRefused):
        read_note(note(SOPInstanceUID=None))
    with pytest.raises(NoteRefused):
        read_note(note(SeriesInstanceUID=None))


def test_large_objects_are_refused_unread() -> None:
    with pytest.raises(NoteRefused, match="Mio"):
        read_note(b"\0" * (keyimages.MAX_BYTES + 1))


def test_too_many_references_are_refused() -> None:
    count = keyimages.MAX_CITED + 1
    data = note([reference(f"2.25.{n}", "1.2") for n in range(count)])
    assert len(data) < keyimages.MAX_BYTES
    with pytest.raises(NoteRefused, match=str(keyimages.MAX_CITED)):
        read_note(data)


@pytest.mark.threat("nested sequences, recursion")
def test_deep_nesting_is_refused() -> None:
    good = note()
    level = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    at = good.index(struct.pack("<HH2s", 0x0040, 0xA730, b"SQ"))
    with pytest.raises(NoteRefused):
        read_note(good[:at] + level * 2000)


@pytest.mark.threat("DICOM deflate bomb")
def test_deflated_objects_are_refused() -> None:
    data = note()
    length = struct.unpack_from("<I", data, 140)[0]
    with pytest.raises(NoteRefused):
        read_note(data[144 + length :], "1.2.840.10008.1.2.1.99")


def test_texts_are_cleaned_and_cut() -> None:
    found = read_note(note(contents=[text_item("a\x1b$B\x00b\tc" + "d" * 5000)]))
    assert found is not None
    assert len(found.description) <= keyimages.MAX_TEXT
    assert not set(found.description) & {chr(n) for n in range(32)}


@given(st.integers(0, 600), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_damage_is_a_note_none_or_a_refusal(at: int, damage: bytes) -> None:
    good = note(contents=[text_item("x")])
    with contextlib.suppress(NoteRefused):
        read_note(good[:at] + damage + good[at + len(damage) :])


# --- objects made by others ---------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.194")
def test_notes_of_the_simulated_workstation(tmp_path: Path) -> None:
    made = make_study(tmp_path, instances=3, rows=16, columns=16)
    targets = made.instances[1:]
    made = add_key_objects(made, targets=targets)
    made = add_key_objects(made, title="113001", targets=targets)
    notes = []
    for instance in made.instances:
        if instance.sop_class_uid == KOS_SOP_CLASS:
            found = read_note(instance.path.read_bytes())
            notes += [found] if found is not None else []
    assert len(notes) == 1
    assert set(notes[0].cited) == {each.sop_instance_uid for each in targets}
    # An independent reader agrees on what the note is.
    other = dcmread(next(i.path for i in made.instances if i.sop_instance_uid == notes[0].sop_instance_uid))
    assert other.ConceptNameCodeSequence[0].CodeValue == "113000"
