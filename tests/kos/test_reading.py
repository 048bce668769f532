"""Every published variant is read; nothing damaged, foreign or hostile is."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from drimbox.dicom.part10 import file_preamble
from drimbox.kos.reading import MAX_BYTES, KeyImage, ManifestRefused, read_manifest
from drimbox.model import Identifier, RequestIds
from tests.cda.samples import published
from tests.kos.samples import PATIENT, REPORT, STUDY, build, series, study

KO = "1.2.840.10008.5.1.4.1.1.88.59"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def altered(change: Any = None, *, syntax: str = EXPLICIT, **build_changes: Any) -> bytes:
    """Build a manifest, change it with pydicom, and write it again in a transfer syntax."""
    ds = dcmread(io.BytesIO(build(**build_changes)))
    if change is not None:
        change(ds)
    out = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(out, implicit_vr=syntax == IMPLICIT, little_endian=True)
    return out.getvalue()


def evidence(ds: Dataset) -> Any:
    return ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_our_own_manifest_comes_back_whole(syntax: str) -> None:
    manifest = read_manifest(altered(syntax=syntax))
    assert manifest.patient == PATIENT
    assert manifest.requests == REPORT.requests
    assert (manifest.study_uid, manifest.sop_instance_uid) == (STUDY, "2.25.9001")
    assert manifest.series_uid == "2.25.9002"
    assert (manifest.title_code, manifest.transfer_syntax_uid) == ("113030", syntax)
    assert (manifest.institution_name, manifest.institution_id) == (
        "CENTRE HOSPITALIER D'ÉVRY",
        "1999999999",
    )
    assert (manifest.study_date, manifest.study_time) == ("20260112", "083000.123")
    assert (manifest.study_description, manifest.act) == ("TDM crâne", "Scanner du crâne")
    assert (manifest.creation_date, manifest.creation_time, manifest.timezone) == (
        "20260112",
        "093005",
        "+0100",
    )
    assert manifest.instance_count == 5
    first = manifest.series[0]
    assert (first.series_uid, first.number, first.modality) == ("2.25.1001.1", 1, "CT")
    assert first.description == "Série d'été n° 1"
    assert [each.number for each in first.instances] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "instances", "series_count"),
    [("KOS/ko.dcm", 20, 2), ("XDM/KA202401/IHE_XDM/SS000001/KOS_1_1.DCM", 10, 1)],
)
def test_published_manifests_are_read_as_pydicom_reads_them(
    path: str, instances: int, series_count: int
) -> None:
    data = published(path)
    manifest, ds = read_manifest(data), dcmread(io.BytesIO(data))
    assert (manifest.instance_count, len(manifest.series)) == (instances, series_count)
    assert manifest.study_uid == ds.StudyInstanceUID
    assert manifest.patient.ins == ds.PatientID
    assert manifest.patient.ins_oid == "1.2.250.1.213.1.4.10"
    assert (manifest.patient.family, manifest.patient.given_list) == ("PAT-SIX", "")
    assert (manifest.institution_name, manifest.institution_id) == ("BCOM", "")
    assert manifest.act == "Abdomen + pelvis"
    (request,) = ds.ReferencedRequestSequence
    assert manifest.requests == (
        RequestIds(
            Identifier(
                request.AccessionNumber, request.IssuerOfAccessionNumberSequence[0].UniversalEntityID
            ),
            Identifier(
                request.PlacerOrderNumberImagingServiceRequest,
                request.OrderPlacerIdentifierSequence[0].UniversalEntityID,
            ),
        ),
    )
    for ours, theirs in zip(manifest.series, evidence(ds), strict=True):
        assert ours.series_uid == theirs.SeriesInstanceUID
        assert ours.retrieve_url == theirs.RetrieveURL
        assert (ours.modality, ours.description) == ("MR", "T2 Ax Space Iso RT")
        assert [each.sop_instance_uid for each in ours.instances] == [
            reference.ReferencedSOPInstanceUID for reference in theirs.ReferencedSOPSequence
        ]


@pytest.mark.parametrize(
    "text",
    [
        "Examen : E\nActe = A\nSérie-2.25.1001.1 : CT @ : Une\nSérie-2.25.1001.2 : SR @ : Deux\n",
        "Examen : E\nActe =  : A\nSérie-2.25.1001.1 : CT @  : Une\nSérie-2.25.1001.2 : SR @  : Deux\n",
        "Serie-2.25.1001.1 : CT : Une\r\nSerie-2.25.1001.2 : SR : Deux\r\nActe = A",
        "Acte = A\rSérie-2.25.1001.1 : CT @ :\n   Une\rSérie-2.25.1001.2\n  : SR @ : Deux",
        "Acte : A\nSÃ©rie-2.25.1001.1 : CT @ : Une\nS?rie-2.25.1001.2 : SR @: Deux",
    ],
)
@pytest.mark.parametrize("where", ["last", "first", "root"])
def test_every_published_form_of_the_text_is_understood(text: str, where: str) -> None:
    def change(ds: Dataset) -> None:
        item = ds.ContentSequence[-1]
        item.TextValue = text
        if where == "first":
            ds.ContentSequence = Sequence([item, *ds.ContentSequence[:-1]])
        elif where == "root":
            ds.ContentSequence = Sequence(ds.ContentSequence[:-1])
            ds.TextValue = text

    manifest = read_manifest(altered(change))
    assert [(each.modality, each.description) for each in manifest.series] == [
        ("CT", "Une"),
        ("SR", "Deux"),
    ]
    assert manifest.act == "A"


def test_without_text_series_have_no_description() -> None:
    def change(ds: Dataset) -> None:
        ds.ContentSequence = Sequence(ds.ContentSequence[:-1])

    assert [each.description for each in read_manifest(altered(change)).series] == ["", ""]


def test_blanks_and_line_breaks_around_values_are_trimmed() -> None:
    def change(ds: Dataset) -> None:
        evidence(ds)[0].RetrieveURL = "\n   https://db1.example/rs/studies/\n  1/series/2\n "
        ds.InstitutionName = "\n  CHU\n^^^^^^^^^ 1999999999 \n"

    manifest = read_manifest(altered(change))
    assert manifest.series[0].retrieve_url == "https://db1.example/rs/studies/1/series/2"
    assert (manifest.institution_name, manifest.institution_id) == ("CHU", "1999999999")


def test_the_oldest_objects_lack_much_and_are_read() -> None:
    def change(ds: Dataset) -> None:
        for keyword in (
            "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "OtherPatientNames",
            "ReferencedRequestSequence", "ReferencedPerformedProcedureStepSequence", "PatientComments",
            "TimezoneOffsetFromUTC", "StudyID", "InstitutionName", "SpecificCharacterSet",
            "ContentTemplateSequence",
        ):  # fmt: skip
            delattr(ds, keyword)
        ds.PatientName = "NOM"
        ds.StudyDescription = ds.Manufacturer = ds.ContentSequence[-1].TextValue = ""
        ds.ConceptNameCodeSequence[0].CodeMeaning = "Manifest"
        for item in evidence(ds):
            del item.SeriesNumber

    manifest = read_manifest(altered(change))
    assert manifest.patient.family == "NOM"
    # The root says nothing of the authority; the list of other identifiers does.
    assert manifest.patient.ins_oid == "1.2.250.1.213.1.4.10"
    assert manifest.requests == ()
    assert manifest.series[0].number is None


def test_used_names_are_told_from_given_names() -> None:
    alone = read_manifest(build(patient={"used_family": "", "used_given": ""})).patient
    assert (alone.given_list, alone.used_family, alone.used_given) == ("ZOÉ ANNE MARIE", "", "")
    given_only = read_manifest(build(patient={"used_family": ""})).patient
    assert (given_only.used_family, given_only.used_given) == ("", "MARIE")
    no_list = read_manifest(build(patient={"given": "", "given_list": ""})).patient
    assert (no_list.given_list, no_list.used_family) == ("", "D'ÀVRAY")


def test_a_series_listed_twice_is_one_series() -> None:
    def change(ds: Dataset) -> None:
        again = dcmread(io.BytesIO(build(study=study(series(1, 4)))))
        evidence(ds).append(evidence(again)[0])

    manifest = read_manifest(altered(change))
    assert [len(each.instances) for each in manifest.series] == [4, 2]


def test_key_images_are_read_and_other_titles_ignored() -> None:
    def change(ds: Dataset) -> None:
        nested = evidence(ds)[0].ReferencedSOPSequence[1].ReferencedSOPSequence
        nested[1].ConceptNameCodeSequence[0].CodeValue = "113001"
        del nested[0].ReferencedSOPClassUID

    notes = [KeyImage("2.25.31", "2.25.32", "Nodule à suivre"), KeyImage("2.25.33", "2.25.34", "rejet")]
    manifest = read_manifest(altered(change, key_images={"2.25.1001.1.2": notes}))
    assert manifest.series[0].instances[1].key_images == (notes[0],)
    assert manifest.series[0].instances[0].key_images == ()


# --- refusals -------------------------------------------------------------------------------------


def _delete(keyword: str) -> Any:
    return lambda ds: delattr(ds, keyword)


def _other_study(ds: Dataset) -> None:
    ds.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "2.25.1"


def _title(code: str) -> Any:
    def change(ds: Dataset) -> None:
        ds.ConceptNameCodeSequence[0].CodeValue = code

    return change


def _no_instances(ds: Dataset) -> None:
    for item in evidence(ds):
        item.ReferencedSOPSequence = Sequence([])


def _bad_series(ds: Dataset) -> None:
    evidence(ds)[0].add_new(0x0020000E, "LO", "../../etc/passwd")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_title("113000"), "113030"),
        (_title("113001"), "113030"),
        (_delete("ConceptNameCodeSequence"), "113030"),
        (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "113030"),
        (_delete("StudyInstanceUID"), "StudyInstanceUID"),
        (lambda ds: setattr(ds, "SOPInstanceUID", ""), "SOPInstanceUID"),
        (_other_study, "autre examen"),
        (_delete("CurrentRequestedProcedureEvidenceSequence"), "aucune instance"),
        (_no_instances, "aucune instance"),
        (_bad_series, "SeriesInstanceUID"),
    ],
)
def test_what_is_no_usable_manifest_is_refused_in_french(change: Any, why: str) -> None:
    data = altered(change)
    with pytest.raises(ManifestRefused, match=re.escape(why)):
        read_manifest(data)


@pytest.mark.parametrize("data", [b"", b"not dicom" * 100, b"\0" * 200, build()[:900], build()[128:]])
def test_what_is_no_whole_file_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestRefused, match="illisible"):
        read_manifest(data)


def test_a_file_too_large_is_refused_unread() -> None:
    with pytest.raises(ManifestRefused, match="16 Mio"):
        read_manifest(build() + b"\0" * MAX_BYTES)


@pytest.mark.threat("DICOM deflate bomb")
def test_a_deflated_manifest_is_refused_without_inflating() -> None:
    bomb = file_preamble(KO, "2.25.1", "1.2.840.10008.1.2.1.99") + b"\0" * 1000
    with pytest.raises(ManifestRefused, match="deflated"):
        read_manifest(bomb)


@pytest.mark.threat("nested sequences, recursion")
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_sequences_nested_a_hundred_thousand_deep_are_refused_at_once(syntax: str) -> None:
    if syntax == EXPLICIT:
        head = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    else:
        head = struct.pack("<HHI", 0x0040, 0xA730, 0xFFFFFFFF)
    bomb = (head + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 100_000
    start = time.thread_time()
    with pytest.raises(ManifestRefused, match="nest"):
        read_manifest(file_preamble(KO, "2.25.1", syntax) + bomb)
    assert time.thread_time() - start < 2


@pytest.mark.threat("nested sequences, recursion")
def test_a_million_empty_items_are_refused_half_way() -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    bomb = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 8_000_000) + item * 1_000_000
    data = file_preamble(KO, "2.25.1", EXPLICIT) + bomb
    with pytest.raises(ManifestRefused, match="too many"):
        read_manifest(data)


@given(st.data())
def test_a_damaged_manifest_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(build())
    for place in data.draw(st.lists(st.integers(132, len(whole) - 1), min_size=1, max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ManifestRefused):
        read_manifest(bytes(whole))


def test_an_unknown_character_set_does_not_stop_the_reader() -> None:
    data = build().replace(b"ISO_IR 100", b"ISO_IR 999")
    assert read_manifest(data).study_uid == STUDY
