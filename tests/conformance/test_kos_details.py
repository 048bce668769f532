"""The finer rules of the validator of manifests: every one has an input that breaks it."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from typing import Any

import pytest

from drimbox.conformance import kos_rules
from drimbox.conformance.kos_details import RULES
from drimbox.conformance.kos_rules import validate_kos
from drimbox.conformance.rules import Rule
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage
from drimbox.model import Instance, Series
from tests.cda.samples import published
from tests.conformance.cross_inputs import edited
from tests.kos import samples

IMAGE = f"{samples.STUDY}.1.1"
NOTE, NOTE_SERIES = "2.25.8001", "2.25.8000"
#: A manifest with a key image note and its mark.
GOOD = samples.build(
    key_images={IMAGE: (KeyImage(NOTE, NOTE_SERIES, "à revoir"),)},
    study=samples.study(
        samples.series(1), Series(NOTE_SERIES, "KO", (Instance(NOTE, KOS_SOP_CLASS, 1),), number=9)
    ),
)
Spoil = Callable[[bytes], bytes]


def in_dataset(change: Callable[[Any], None]) -> Spoil:
    return lambda data: edited(data, change)


def in_bytes(old: bytes, new: bytes) -> Spoil:
    def spoil(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return spoil


def sets(**values: Any) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


def series(dataset: Any, number: int = 0) -> Any:
    return dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[number]


def reference(dataset: Any) -> Any:
    return series(dataset).ReferencedSOPSequence[0]


def mark(dataset: Any) -> Any:
    return reference(dataset).ReferencedSOPSequence[0]


def request(dataset: Any) -> Any:
    return dataset.ReferencedRequestSequence[0]


def text(change: Callable[[str], str]) -> Callable[[Any], None]:
    def spoil(dataset: Any) -> None:
        item = dataset.ContentSequence[-1]
        item.TextValue = change(item.TextValue)

    return spoil


def doubled(sequence: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        items = sequence(dataset)
        items.append(copy.deepcopy(items[0]))

    return change


def sequence_of(at: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    return lambda dataset: getattr(at(dataset), name)


def on(at: Callable[[Any], Any], **values: Any) -> Spoil:
    return in_dataset(lambda dataset: sets(**values)(at(dataset)))


def itself(dataset: Any) -> Any:
    return dataset


def second_text(dataset: Any) -> None:
    dataset.ContentSequence.append(copy.deepcopy(dataset.ContentSequence[-1]))


def mark_in_content(dataset: Any) -> None:
    dataset.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPSequence = [mark(dataset)]


def another_host(dataset: Any) -> None:
    url = series(dataset, 1).RetrieveURL
    series(dataset, 1).RetrieveURL = url.replace("db1.349", "db2.349")


def disordered(data: bytes) -> bytes:
    """Put StudyID behind SeriesNumber."""
    study_id = struct.pack("<HH2sH", 0x0020, 0x0010, b"SH", 0)
    number = struct.pack("<HH2sH", 0x0020, 0x0011, b"IS", 2) + b"59"
    assert study_id + number in data
    return data.replace(study_id + number, number + study_id, 1)


def odd(data: bytes) -> bytes:
    """Take the padding away from Manufacturer."""
    whole = struct.pack("<HH2sH", 0x0008, 0x0070, b"LO", 8) + b"\xc9DITEUR "
    assert whole in data
    return data.replace(whole, struct.pack("<HH2sH", 0x0008, 0x0070, b"LO", 7) + b"\xc9DITEUR", 1)


BROKEN: dict[str, Spoil] = {
    "kos.meta": in_bytes(b"\x02\x00\x12\x00UI", b"\x02\x00\x13\x00UI"),
    "kos.order": disordered,
    "kos.odd": odd,
    "kos.charset": in_dataset(sets(SpecificCharacterSet="ISO_IR 101")),
    "kos.bytes": in_bytes(b"\xc9DITEUR", b"\x89DITEUR"),
    "kos.uid": in_bytes(b"2.25.9002\x00", b"2.25.900x\x00"),
    "kos.number": in_bytes(b"IS\x02\x0059", b"IS\x02\x00x9"),
    "kos.own_series": in_dataset(sets(SeriesInstanceUID=f"{samples.STUDY}.1")),
    "kos.own_instance": on(reference, ReferencedSOPInstanceUID="2.25.9001"),
    "kos.series_twice": in_dataset(
        doubled(
            lambda dataset: dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        )
    ),
    "kos.retrieve_aet": on(series, RetrieveAETitle="PACS"),
    "kos.hosts": in_dataset(another_host),
    "kos.location": lambda data: edited(
        data, lambda dataset: sets(RetrieveLocationUID="2.25.7")(series(dataset))
    ).replace(b"2.25.7", b"2.25.x", 1),
    "kos.qualifiers": in_dataset(doubled(sequence_of(itself, "IssuerOfPatientIDQualifiersSequence"))),
    "kos.issuer": in_dataset(sets(IssuerOfPatientID="ASIP-SANTE-INS-NIA")),
    "kos.other_oid": in_dataset(
        lambda dataset: sets(UniversalEntityID="1.2.250.1.213.1.4.8")(
            dataset.OtherPatientIDsSequence[0].IssuerOfPatientIDQualifiersSequence[0]
        )
    ),
    "kos.demonstration": lambda data: data.replace(b"1.2.250.1.213.1.4.10", b"1.2.250.1.213.1.4.11"),
    "kos.trait": in_dataset(sets(PatientSex="")),
    "kos.name": in_dataset(sets(PatientName="DURAND")),
    "kos.other_names": in_dataset(sets(OtherPatientNames="DURAND")),
    "kos.birth_place": in_dataset(sets(PatientComments="allergique")),
    "kos.structure": in_dataset(sets(InstitutionName="CH")),
    "kos.structure_long": in_dataset(sets(InstitutionName="C" * 60 + "^^^^^^^^^1999999999")),
    "kos.zone": in_dataset(lambda dataset: delattr(dataset, "TimezoneOffsetFromUTC")),
    "kos.request_long": on(request, AccessionNumber="A" * 17),
    "kos.request_oid": on(
        lambda dataset: request(dataset).IssuerOfAccessionNumberSequence[0], UniversalEntityID="CH-NORD"
    ),
    "kos.request_twice": in_dataset(doubled(sequence_of(itself, "ReferencedRequestSequence"))),
    "kos.text_concept": in_dataset(
        lambda dataset: sets(CodeValue="113011")(dataset.ContentSequence[-1].ConceptNameCodeSequence[0])
    ),
    "kos.text_many": in_dataset(second_text),
    "kos.text_series": in_dataset(text(lambda value: value.replace("Série-2.25.1001.1", "Série-2.25.7"))),
    "kos.text_exam": in_dataset(text(lambda value: value.partition("\n")[2])),
    "kos.text_ends": in_dataset(text(lambda value: value.replace("\n", "\r\n"))),
    "kos.template": on(lambda dataset: dataset.ContentTemplateSequence[0], TemplateIdentifier="2000"),
    "kos.mark_uid": in_dataset(lambda dataset: delattr(mark(dataset), "SeriesInstanceUID")),
    "kos.mark_class": on(mark, ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
    "kos.mark_no_class": in_dataset(lambda dataset: delattr(mark(dataset), "ReferencedSOPClassUID")),
    "kos.mark_title": on(lambda dataset: mark(dataset).ConceptNameCodeSequence[0], CodeValue="113004"),
    "kos.mark_series": on(mark, SeriesInstanceUID="2.25.7"),
    "kos.mark_content": in_dataset(mark_in_content),
}


@pytest.mark.requirement("DB.SO.18", "DB.SO.194")
@pytest.mark.parametrize("rule", [*RULES], ids=lambda rule: rule.id)
def test_one_broken_rule(rule: Rule) -> None:
    found = {each.rule: each for each in validate_kos(BROKEN[rule.id](GOOD)).findings}
    assert rule.id in found, sorted(found)
    assert found[rule.id].severity is rule.severity
    assert samples.PATIENT.ins not in "".join(each.text for each in found.values())


@pytest.mark.requirement("DB.SO.18", "DB.SO.194")
def test_nothing_broken_is_nothing_said() -> None:
    for data in (GOOD, samples.build(), samples.build(patient={"family": "ŁUCJA"})):
        assert validate_kos(data).findings == []


#: Where each table of `kos_rules` applies.
_PLACES: list[tuple[Any, Callable[[Any], Any]]] = [
    (kos_rules._ROOT, itself),
    (kos_rules._AUTHORITY, lambda dataset: dataset.IssuerOfPatientIDQualifiersSequence[0]),
    (kos_rules._OTHER_ID, lambda dataset: dataset.OtherPatientIDsSequence[0]),
    (kos_rules._REQUEST, request),
    (kos_rules._SERIES_RULES, series),
    (kos_rules._REFERENCE, reference),
    (kos_rules._CODE, lambda dataset: dataset.ConceptNameCodeSequence[0]),
]


@pytest.mark.requirement("DB.SO.18")
@pytest.mark.parametrize(
    ("row", "at"),
    [(row, at) for rows, at in _PLACES for row in rows],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_attribute(row: Any, at: Callable[[Any], Any]) -> None:
    """Absent, and where a value is due empty or another than the one due, each attribute is told."""

    def remove(dataset: Any) -> None:
        del at(dataset)[row.tag]

    def empty(dataset: Any) -> None:
        at(dataset)[row.tag].value = None if at(dataset)[row.tag].VR != "SQ" else []

    def other(dataset: Any) -> None:
        at(dataset)[row.tag].value = "X1"

    def told(change: Callable[[Any], None], word: str) -> bool:
        found = validate_kos(edited(GOOD, change)).findings
        return any(each.text.startswith(row.name) and word in each.text for each in found)

    assert told(remove, "absent")
    assert told(empty, "vide") is (row.kind == 1)
    if row.value is not None:
        assert told(other, "attendu")
    if row.form is not None:
        assert told(other, "mal formée")


@pytest.mark.parametrize("path", ["KOS/ko.dcm", "XDM/KA202401/IHE_XDM/SS000001/KOS_1_1.DCM"])
def test_what_older_published_manifests_do_is_a_warning_at_most(path: str) -> None:
    found = {each.rule for each in validate_kos(published(path)).findings if each.rule}
    assert found == {"kos.name", "kos.structure", "kos.other_names"}
