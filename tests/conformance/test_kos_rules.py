"""The validator of manifests, one broken rule at a time on a manifest of ours."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from drimbox.conformance.kos_rules import validate_kos
from drimbox.conformance.report import Severity
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage
from drimbox.model import Instance, Series
from tests.kos import samples

GOOD = samples.build()


def edited(change: Callable[[Any], None]) -> bytes:
    dataset = dcmread(BytesIO(GOOD))
    change(dataset)
    out = BytesIO()
    dcmwrite(out, dataset)
    return out.getvalue()


def series_of(dataset: Any, number: int = 0) -> Any:
    return dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[number]


def another_order(dataset: Any) -> None:
    dataset.ReferencedRequestSequence[0].StudyInstanceUID = "2.25.7"


def twice(dataset: Any) -> None:
    first = series_of(dataset).ReferencedSOPSequence[0]
    series_of(dataset, 1).ReferencedSOPSequence.append(first)


def another_other_id(dataset: Any) -> None:
    dataset.OtherPatientIDsSequence[0].PatientID = "279035121518989"


def wrong_key(dataset: Any) -> None:
    for item in (dataset, dataset.OtherPatientIDsSequence[0]):
        item.PatientID = samples.PATIENT.ins[:-1] + ("0" if samples.PATIENT.ins[-1] != "0" else "1")


def wrong_path(dataset: Any) -> None:
    series_of(dataset).RetrieveURL = "https://db1.349.a/dicom-web-rs/studies/1.2/series/1.3"


def other_prefix(dataset: Any) -> None:
    uid = series_of(dataset).SeriesInstanceUID
    series_of(dataset).RetrieveURL = f"https://db1.349.a/api/source/studies/{samples.STUDY}/series/{uid}"


def no_authority(dataset: Any) -> None:
    dataset.ReferencedRequestSequence[0].IssuerOfAccessionNumberSequence[0].UniversalEntityIDType = "UUID"


def filled_accession(dataset: Any) -> None:
    dataset.AccessionNumber = "ACC1"


def bad_zone(dataset: Any) -> None:
    dataset.TimezoneOffsetFromUTC = "CET"


def two_studies(dataset: Any) -> None:
    item = Dataset()
    item.StudyInstanceUID = "2.25.7"
    item.ReferencedSeriesSequence = [series_of(dataset)]
    dataset.CurrentRequestedProcedureEvidenceSequence.append(item)


def not_in_content(dataset: Any) -> None:
    del dataset.ContentSequence[0]


def not_in_evidence(dataset: Any) -> None:
    del series_of(dataset).ReferencedSOPSequence[0]


def wrong_kind(dataset: Any) -> None:
    dataset.ContentSequence[0].ValueType = "COMPOSITE"


def no_text(dataset: Any) -> None:
    del dataset.ContentSequence[-1]


def no_template(dataset: Any) -> None:
    del dataset.ContentTemplateSequence


def other_meta(dataset: Any) -> None:
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.7"


def compressed(dataset: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        (another_order, Severity.ERROR, "un autre examen que celui du KOS"),
        (twice, Severity.ERROR, "nommée(s) deux fois"),
        (another_other_id, Severity.ERROR, "l'INS du patient n'y est pas"),
        (wrong_key, Severity.WARNING, "la clé du matricule"),
        (wrong_path, Severity.ERROR, "attendu à la fin"),
        (other_prefix, Severity.WARNING, "sans le chemin /dicom-web-rs/"),
        (no_authority, Severity.ERROR, "ISO attendu"),
        (filled_accession, Severity.WARNING, "vide attendu"),
        (bad_zone, Severity.ERROR, "TimezoneOffsetFromUTC"),
        (two_studies, Severity.ERROR, "plusieurs examens"),
        (not_in_content, Severity.ERROR, "dans l'évidence mais pas dans le contenu"),
        (not_in_evidence, Severity.ERROR, "dans le contenu mais pas dans l'évidence"),
        (wrong_kind, Severity.WARNING, "pour un objet IMAGE"),
        (no_text, Severity.WARNING, "aucun texte"),
        (no_template, Severity.INFORMATION, "TID 2010"),
        (other_meta, Severity.ERROR, "le groupe 0002"),
        (compressed, Severity.ERROR, "syntaxe de transfert"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_broken_rule(change: Callable[[Any], None], severity: Severity, words: str) -> None:
    found = [each for each in validate_kos(edited(change)).findings if words in each.text]
    assert [each.severity for each in found] == [severity]


def test_nothing_broken_is_nothing_said() -> None:
    assert validate_kos(GOOD).findings == []
    assert validate_kos(edited(lambda dataset: None)).findings == []


@pytest.mark.threat("DICOM preamble polyglot")
def test_a_preamble_that_is_a_program_is_a_warning() -> None:
    report = validate_kos(b"MZ" + GOOD[2:])
    assert (report.ok, len(report.findings)) == (True, 1)


@pytest.mark.requirement("DB.SO.194")
def test_notes_must_be_in_the_manifest_they_stand_in() -> None:
    image = f"{samples.STUDY}.1.1"
    notes = {image: (KeyImage("2.25.8001", "2.25.8000", "x"),)}
    report = validate_kos(samples.build(key_images=notes))
    assert [each.clause for each in report.findings] == ["DB.SO.194"]
    held = Series("2.25.8000", "KO", (Instance("2.25.8001", KOS_SOP_CLASS, 1),), number=9)
    whole = samples.build(key_images=notes, study=samples.study(samples.series(1), held))
    report = validate_kos(whole)
    assert report.findings == []
    assert report.facts["key_images"] == 1


@given(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=16))
@settings(max_examples=200, deadline=None)
def test_any_damage_gives_a_report_without_the_patient(at: int, damage: bytes) -> None:
    report = validate_kos(GOOD[:at] + damage + GOOD[at + len(damage) :])
    text = "\n".join(report.lines())
    assert samples.PATIENT.ins not in text
    assert samples.PATIENT.family not in text
