"""The manifest holds, attribute by attribute, what the specification wants; pydicom reads it."""

from __future__ import annotations

import io
import warnings
from datetime import datetime
from typing import Any

import attrs
import pytest
from highdicom.ko import KeyObjectSelectionDocument
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from drimbox.config import WadoSettings
from drimbox.kos.manifest import remarks, retrieve_base
from drimbox.kos.reading import KeyImage, read_manifest
from drimbox.model import Identifier, Instance, RequestIds, Series
from tests.kos.samples import (
    ACT,
    CREATED,
    CT,
    PATIENT,
    REPORT,
    SITE,
    STRUCTURE,
    STUDY,
    build,
    series,
    study,
)

SR = "1.2.840.10008.5.1.4.1.1.88.67"
KO = "1.2.840.10008.5.1.4.1.1.88.59"
PR = "1.2.840.10008.5.1.4.1.1.11.1"


def read(data: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = dcmread(io.BytesIO(data))
        ds.decode()
        for _ in ds.iterall():
            pass
    return ds


@pytest.mark.requirement("DB.SO.18")
def test_the_file_is_a_key_object_in_explicit_little_endian() -> None:
    data = build()
    ds = read(data)
    assert data[:128] == b"\0" * 128
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID == KO
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == "2.25.9001"
    assert ds.file_meta.FileMetaInformationVersion == b"\0\1"
    assert ds.Modality == "KO"
    title = ds.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning) == (
        "113030",
        "DCM",
        "MANIFEST",
    )
    assert (ds.ValueType, ds.ContinuityOfContent) == ("CONTAINER", "SEPARATE")
    template = ds.ContentTemplateSequence[0]
    assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "2010")


@pytest.mark.requirement("DB.SO.18")
def test_general_attributes_have_their_values() -> None:
    ds = read(build())
    assert ds.SpecificCharacterSet == "ISO_IR 100"
    assert ds.InstanceCreationDate == ds.SeriesDate == ds.ContentDate == "20260112"
    assert ds.InstanceCreationTime == ds.SeriesTime == ds.ContentTime == "093005"
    assert ds.TimezoneOffsetFromUTC == "+0100"
    assert (ds.StudyDate, ds.StudyTime, ds.StudyDescription) == ("20260112", "083000.123", "TDM crâne")
    assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == (STUDY, "2.25.9002")
    assert (ds.SeriesNumber, ds.InstanceNumber) == (59, 1)
    assert ds.Manufacturer == "ÉDITEUR"
    assert ds.InstitutionName == "CENTRE HOSPITALIER D'ÉVRY^^^^^^^^^1999999999"
    for empty in ("AccessionNumber", "ReferringPhysicianName", "StudyID"):
        assert empty in ds
        assert not ds[empty].value
    assert len(ds.ReferencedPerformedProcedureStepSequence) == 0


@pytest.mark.requirement("DB.SO.105")
def test_the_patient_is_the_one_of_the_report() -> None:
    ds = read(build(study=study(patient_id="AUTRE", ins="1", patient_birth_date="19000101")))
    assert ds.PatientName == "O'NÉIL^ZOÉ"
    assert ds.PatientID == "284070100499094"
    assert ds.IssuerOfPatientID == "ASIP-SANTE-INS-NIR"
    qualifiers = ds.IssuerOfPatientIDQualifiersSequence[0]
    assert (qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType) == (
        "1.2.250.1.213.1.4.10",
        "ISO",
    )
    assert (ds.PatientBirthDate, ds.PatientSex, ds.PatientComments) == ("19840701", "F", "75120")
    assert list(ds.OtherPatientNames) == ["^ZOÉ ANNE MARIE", "D'ÀVRAY^MARIE"]
    (other,) = ds.OtherPatientIDsSequence
    assert (other.PatientID, other.TypeOfPatientID) == ("284070100499094", "TEXT")
    assert other.IssuerOfPatientID == "ASIP-SANTE-INS-NIR"
    assert other.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.250.1.213.1.4.10"


@pytest.mark.parametrize(
    ("used", "names"),
    [
        ({"used_family": "", "used_given": ""}, "^ZOÉ ANNE MARIE"),
        ({"used_family": "D'ÀVRAY", "used_given": ""}, ["^ZOÉ ANNE MARIE", "D'ÀVRAY"]),
        ({"used_family": "", "used_given": "MARIE"}, ["^ZOÉ ANNE MARIE", "^MARIE"]),
        ({"given_list": ""}, ["^ZOÉ", "D'ÀVRAY^MARIE"]),
    ],
)
def test_used_names_stand_second_with_what_is_known(used: dict[str, str], names: Any) -> None:
    ds = read(build(patient=used))
    found = ds.OtherPatientNames
    assert (list(found) if ds["OtherPatientNames"].VM > 1 else found) == names


def test_a_nia_has_its_own_issuer() -> None:
    ds = read(build(patient={"ins_oid": "1.2.250.1.213.1.4.9"}))
    assert ds.IssuerOfPatientID == "ASIP-SANTE-INS-NIA"
    assert ds.OtherPatientIDsSequence[0].IssuerOfPatientID == "ASIP-SANTE-INS-NIA"


@pytest.mark.requirement("DB.SO.105", "DB.SO.12")
def test_every_pair_of_the_report_is_in_the_manifest_of_each_study() -> None:
    ds = read(build())
    pairs = [
        (
            item.AccessionNumber,
            item.IssuerOfAccessionNumberSequence[0].UniversalEntityID,
            item.PlacerOrderNumberImagingServiceRequest,
            item.OrderPlacerIdentifierSequence[0].UniversalEntityID,
        )
        for item in ds.ReferencedRequestSequence
    ]
    assert pairs == [("ACC-7788", "2.25.53", "5501", "2.25.54"), ("ACC-7789", "2.25.53", "5502", "2.25.54")]
    for item in ds.ReferencedRequestSequence:
        assert item.StudyInstanceUID == STUDY
        assert item.OrderPlacerIdentifierSequence[0].UniversalEntityIDType == "ISO"
        assert len(item.ReferencedStudySequence) == len(item.RequestedProcedureCodeSequence) == 0
        for keyword in (
            "RequestedProcedureDescription",
            "RequestedProcedureID",
            "FillerOrderNumberImagingServiceRequest",
        ):
            assert item[keyword].is_empty


@pytest.mark.requirement("DB.SO.18")
def test_the_evidence_lists_every_instance_and_where_to_fetch_its_series() -> None:
    ds = read(build(site=attrs.evolve(SITE, retrieve_location_uid="2.25.77")))
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == STUDY
    assert [(item.SeriesInstanceUID, item.SeriesNumber) for item in evidence.ReferencedSeriesSequence] == [
        ("2.25.1001.1", 1),
        ("2.25.1001.2", 2),
    ]
    for item in evidence.ReferencedSeriesSequence:
        assert item.RetrieveURL == (
            "https://db1.349.mesimagesmedicales.fr/dicom-web-rs"
            f"/studies/{STUDY}/series/{item.SeriesInstanceUID}"
        )
        assert item.RetrieveLocationUID == "2.25.77"
        assert "RetrieveAETitle" not in item
        for index, reference in enumerate(item.ReferencedSOPSequence, start=1):
            assert reference.ReferencedSOPClassUID == CT
            assert reference.ReferencedSOPInstanceUID == f"{item.SeriesInstanceUID}.{index}"
            assert reference.InstanceNumber == index
    assert (
        "RetrieveLocationUID"
        not in read(build()).CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    )


@pytest.mark.parametrize(
    ("wado", "base"),
    [
        (WadoSettings(), "https://db1.349.mesimagesmedicales.fr/dicom-web-rs"),
        (WadoSettings(public_port=8443), "https://db1.349.mesimagesmedicales.fr:8443/dicom-web-rs"),
        (WadoSettings(public_port=443, prefixes=("/rs/",)), "https://db1.349.mesimagesmedicales.fr/rs"),
    ],
)
def test_the_address_is_made_of_the_site_and_the_first_prefix(wado: WadoSettings, base: str) -> None:
    assert retrieve_base(SITE, wado) == base
    assert read_manifest(build(wado=wado)).series[0].retrieve_url.startswith(f"{base}/studies/{STUDY}/")


@pytest.mark.requirement("DB.SO.18")
def test_the_content_tree_says_what_is_an_image() -> None:
    mixed = study(
        series(1),
        series(2, 1, SR, "SR"),
        series(3, 1, KO, "KO"),
        series(4, 1, PR, "PR"),
        series(5, 1, "1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
        series(6, 1, "1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"),
        series(7, 1, "1.3.46.670589.11.0.0.12.1", "MR"),
    )
    ds = read(build(study=mixed))
    *references, text = ds.ContentSequence
    assert [item.ValueType for item in references] == ["IMAGE"] * 3 + ["COMPOSITE"] * 3 + ["IMAGE"] + [
        "COMPOSITE"
    ] * 2
    assert {item.RelationshipType for item in ds.ContentSequence} == {"CONTAINS"}
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in references] == [
        reference.ReferencedSOPInstanceUID
        for item in ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for reference in item.ReferencedSOPSequence
    ]
    assert (text.ValueType, text.ConceptNameCodeSequence[0].CodeValue) == ("TEXT", "113012")


def test_the_text_describes_study_act_and_series_line_by_line() -> None:
    ds = read(build())
    assert ds.ContentSequence[-1].TextValue.rstrip(" ") == (
        "Examen : TDM crâne\n"
        "Acte = Scanner du crâne\n"
        "Série-2.25.1001.1 : CT @ : Série d'été n° 1\n"
        "Série-2.25.1001.2 : CT @ : Série d'été n° 2\n"
    )


def test_without_act_there_is_no_act_line_and_several_are_joined() -> None:
    none = build(report=attrs.evolve(REPORT, acts=(attrs.evolve(ACT, description=""),)))
    assert "Acte" not in read(none).ContentSequence[-1].TextValue
    two = build(report=attrs.evolve(REPORT, acts=(ACT, attrs.evolve(ACT, description="Cou"), ACT)))
    assert "Acte = Scanner du crâne, Cou\n" in read(two).ContentSequence[-1].TextValue


def test_a_description_cannot_forge_a_line_of_the_text() -> None:
    evil = "X\r\nSérie-2.25.1001.2 : MR @ : forgée\\Y\x1b"
    manifest = read_manifest(build(study=study(series(1, description=evil), series(2))))
    assert [each.description for each in manifest.series] == [
        "X Série-2.25.1001.2 : MR @ : forgée/Y",
        "Série d'été n° 2",
    ]


def test_missing_or_absurd_pacs_values_leave_empty_attributes() -> None:
    bare = Series("2.25.1001.9", "CT", (Instance("2.25.1001.9.1", CT, 2**40),), None, "")
    ds = read(build(study=study(bare, date="hier", time="99:99", description="")))
    assert ds["StudyDate"].is_empty
    assert ds["StudyTime"].is_empty
    assert ds["StudyDescription"].is_empty
    item = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert "SeriesNumber" not in item
    assert "InstanceNumber" not in item.ReferencedSOPSequence[0]


def test_the_order_of_the_pacs_does_not_matter_but_numbers_do() -> None:
    shuffled = study(series(10), attrs.evolve(series(2), number=None), series(9))
    uids = [each.series_uid for each in read_manifest(build(study=shuffled)).series]
    assert uids == ["2.25.1001.9", "2.25.1001.10", "2.25.1001.2"]
    assert build(study=study(series(1), series(2))) == build(study=study(series(2), series(1)))


def test_a_series_without_instances_is_left_out_and_a_study_without_any_is_refused() -> None:
    assert len(read_manifest(build(study=study(series(1), series(2, 0)))).series) == 1
    with pytest.raises(ValueError, match="instance"):
        build(study=study(series(1, 0)))


def test_an_instant_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        build(created=datetime(2026, 1, 1))  # noqa: DTZ001


# --- limits of the VRs ----------------------------------------------------------------------------


def test_the_name_of_the_structure_yields_before_its_identifier() -> None:
    name = read(build(structure=attrs.evolve(STRUCTURE, name="É" * 100))).InstitutionName
    assert name == "É" * 45 + "^^^^^^^^^1999999999"
    name = read(build(structure=attrs.evolve(STRUCTURE, name="A^B"))).InstitutionName
    assert name == "A B^^^^^^^^^1999999999"


def test_text_outside_latin_1_makes_it_utf_8_and_limits_count_bytes() -> None:
    ds = read(
        build(
            patient={"family": "ŁUKASZEWICZ", "given": "ŹDZISŁAW"},
            structure=attrs.evolve(STRUCTURE, name="Œ" * 100),
            study=study(description="Ω" * 80),
        )
    )
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == "ŁUKASZEWICZ^ŹDZISŁAW"
    assert ds.InstitutionName == "Œ" * 22 + "^^^^^^^^^1999999999"
    assert ds.StudyDescription == "Ω" * 32
    assert "Série-" in ds.ContentSequence[-1].TextValue


def test_decomposed_accents_are_composed_and_stay_in_latin_1() -> None:
    ds = read(build(patient={"family": "O'NE\u0301IL"}))
    assert ds.SpecificCharacterSet == "ISO_IR 100"
    assert ds.PatientName == "O'NÉIL^ZOÉ"


def test_long_names_are_cut_given_name_first() -> None:
    ds = read(build(patient={"family": "F" * 40, "given": "G" * 40}))
    assert ds.PatientName == "F" * 32 + "^" + "G" * 31
    ds = read(build(patient={"family": "F" * 70, "given": "ZOÉ"}))
    assert ds.PatientName == "F" * 60 + "^ZOÉ"
    ds = read(build(patient={"given_list": "MARIE-ANTOINETTE " * 10}))
    assert ds.OtherPatientNames[0] == "^MARIE-ANTOINETTE MARIE-ANTOINETTE MARIE-ANTOINETTE"


def test_separators_inside_names_do_not_make_components() -> None:
    ds = read(build(patient={"family": "A^B=C\\D"}))
    assert ds.PatientName == "A B C/D^ZOÉ"


def test_identifiers_are_never_cut_but_remarked_without_their_value() -> None:
    long = RequestIds(Identifier("A" * 20, "2.25.53"), Identifier("O" * 70, "2.25.54"))
    report = attrs.evolve(REPORT, requests=(long,))
    (item,) = dcmread(io.BytesIO(build(report=report))).ReferencedRequestSequence
    assert item.AccessionNumber == "A" * 20
    assert item.PlacerOrderNumberImagingServiceRequest == "O" * 70
    said = remarks(report, attrs.evolve(STRUCTURE, id="1" * 60))
    assert len(said) == 3
    assert "AAA" not in "".join(said)
    assert remarks(REPORT, STRUCTURE) == ()


NAMES = st.text(max_size=90)


@settings(max_examples=60)
@given(family=NAMES, given=NAMES, listed=NAMES, used=NAMES, name=NAMES, text=NAMES)
def test_any_text_makes_a_readable_manifest(
    family: str, given: str, listed: str, used: str, name: str, text: str
) -> None:
    data = build(
        patient={"family": family, "given": given, "given_list": listed, "used_family": used},
        structure=attrs.evolve(STRUCTURE, name=name),
        study=study(series(1, description=text), description=text),
    )
    ds = dcmread(io.BytesIO(data))
    for keyword in ("InstitutionName", "StudyDescription", "PatientName"):
        assert len(ds.get_item(keyword).value) <= 64
    manifest = read_manifest(data)
    assert manifest.institution_id == "1999999999"
    assert manifest.instance_count == 3
    assert manifest.patient.ins == PATIENT.ins


# --- key images and oracles -----------------------------------------------------------------------


def test_key_images_are_nested_in_the_evidence_only() -> None:
    note = KeyImage("2.25.31", "2.25.32", "Nodule à suivre\nsegment IV")
    data = build(key_images={"2.25.1001.1.2": [note]})
    ds = read(data)
    first = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    (nested,) = first.ReferencedSOPSequence[1].ReferencedSOPSequence
    assert nested.ReferencedSOPClassUID == KO
    assert (nested.ReferencedSOPInstanceUID, nested.SeriesInstanceUID) == ("2.25.31", "2.25.32")
    assert nested.ConceptNameCodeSequence[0].CodeValue == "113000"
    assert nested.ContentSequence[0].TextValue == note.description
    assert [element.tag for element in first.ReferencedSOPSequence[1]] == sorted(
        element.tag for element in first.ReferencedSOPSequence[1]
    )
    assert not any(
        "ReferencedSOPSequence" in item.get("ReferencedSOPSequence", [{}])[0] for item in ds.ContentSequence
    )
    (found,) = [each for each in read_manifest(data).series[0].instances if each.key_images]
    assert found.key_images == (note,)


def test_pydicom_writes_the_same_bytes_from_what_it_read() -> None:
    """Our own writer of the long lists agrees with pydicom's to the byte."""
    data = build(
        study=study(series(1, 5), series(2, 1, SR, "SR")),
        key_images={"2.25.1001.1.1": [KeyImage("2.25.3", "2.25.4", "n")]},
    )
    ds = dcmread(io.BytesIO(data))
    ds.decode()
    for element in ds.iterall():
        element.value  # noqa: B018  (turns raw elements into decoded ones)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=False)
    assert out.getvalue() == data


def test_highdicom_takes_it_for_a_key_object_document() -> None:
    data = build(study=study(series(1), series(2, 1, SR, "SR")))
    document = KeyObjectSelectionDocument.from_dataset(read(data))
    assert document.content.get_references() is not None
    assert len(document.content.get_references()) == 4
    found = document.resolve_reference("2.25.1001.1.2")
    assert found == (STUDY, "2.25.1001.1", "2.25.1001.1.2")


def test_the_instant_is_written_in_its_own_zone() -> None:
    summer = datetime.fromisoformat("2026-07-12T23:30:05+02:00")
    ds = read(build(created=summer))
    assert (ds.InstanceCreationDate, ds.InstanceCreationTime) == ("20260712", "233005")
    assert ds.TimezoneOffsetFromUTC == "+0200"
    assert CREATED.utcoffset() is not None
