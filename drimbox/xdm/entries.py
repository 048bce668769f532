"""Reading the metadata of a submission back, ours or another maker's (interfaces.md 4.2 to 4.4, 5).

METADATA.XML holds a SubmitObjectsRequest, or the whole SOAP message it left in: the RegistryObjectList is
looked for wherever it is. Slots, classifications and identifiers are taken in any order, because the
published samples do not respect the schema's. Nothing is judged here but what could not be read at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from drimbox.model import DCM_OID, RPPS_OID, Code, Identifier, Organization, Person
from drimbox.xds import codes
from drimbox.xds.ebrim import rim
from drimbox.xml import Element, XmlRefused, safe_parse

#: Largest METADATA.XML read, bytes: samples, SOAP header included, have 20 KB.
MAX_BYTES: Final = 4 * 1024 * 1024
_MAX_DEPTH = 60
KOS_MIME = "application/dicom"

_UNESCAPED = {"E": "\\", "F": "|", "S": "^", "T": "&", "R": "~"}
_ESCAPE = re.compile(r"\\([EFSTR])\\")
#: Schemes of modalities beside DCM (the value set of acquisition modalities), and their form.
_MODALITY_SCHEMES = (DCM_OID, "1.2.250.1.213.1.1.5.618")
_MODALITY = re.compile(r"[A-Z]{2,16}", re.ASCII)


class MetadataRefused(Exception):
    """These metadata cannot be used; the text, in French, says why without patient data."""


@attrs.frozen
class Cx:
    """An identifier as XDS writes it."""

    value: str
    authority: str
    kind: str


@attrs.frozen
class SubmissionSet:
    """The RegistryPackage, as far as it is of use. Absent texts are empty."""

    unique_id: str
    submission_time: str
    content_type: str
    institution: Organization
    author: Person


@attrs.frozen
class DocumentEntry:
    """One ExtrinsicObject. Absent texts are empty; instants are as written."""

    mime_type: str
    unique_id: str
    hash: str
    #: None when absent or no number.
    size: int | None
    patient: Cx
    source_patient: Cx
    #: sourcePatientInfo, by PID field: `PID-5` …
    patient_info: Mapping[str, str]
    creation_time: str
    submission_time: str
    service_start: str
    service_stop: str
    language: str
    legal_authenticator: Person
    #: Empty when the author is a device.
    author: Person
    institution: Organization
    format_code: str
    confidentiality: tuple[Code, ...]
    facility: Code | None
    practice: Code | None
    modalities: tuple[Code, ...]
    regions: tuple[Code, ...]
    #: referenceIdList.
    references: tuple[Cx, ...]

    @property
    def is_kos(self) -> bool:
        """Say whether this describes a manifest."""
        return self.mime_type.lower() == KOS_MIME or self.format_code == codes.KOS_FORMAT.value


@attrs.frozen
class Submitted:
    """All of one submission."""

    submission_set: SubmissionSet
    entries: tuple[DocumentEntry, ...]


def parse(data: bytes) -> Element:
    """Return the RegistryObjectList of a METADATA.XML. Raises `MetadataRefused`."""
    try:
        root = safe_parse(data, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH)
    except XmlRefused:
        raise MetadataRefused("METADATA.XML illisible (XML mal formé, trop grand ou avec DTD)") from None
    lists = list(root.iter(rim("RegistryObjectList")))
    if len(lists) != 1:
        raise MetadataRefused("METADATA.XML sans RegistryObjectList, ou avec plusieurs")
    return lists[0]


def read(objects: Element) -> Submitted:
    """Read what `parse` returned. Raises `MetadataRefused`."""
    packages = objects.findall(rim("RegistryPackage"))
    if len(packages) != 1:
        raise MetadataRefused("METADATA.XML : un RegistryPackage attendu")
    return Submitted(
        _submission_set(packages[0]),
        tuple(_entry(each) for each in objects.findall(rim("ExtrinsicObject"))),
    )


def _submission_set(package: Element) -> SubmissionSet:
    slots, coded = _slots(package), _classified(package)
    person, institution = _author(coded.get(codes.SET_AUTHOR, ()))
    content = _codes(coded.get(codes.SET_CONTENT_TYPE, ()))
    return SubmissionSet(
        unique_id=_identifiers(package).get(codes.SET_UNIQUE_ID, ""),
        submission_time=_one(slots, "submissionTime"),
        content_type=content[0].value if content else "",
        institution=institution,
        author=person,
    )


def _entry(element: Element) -> DocumentEntry:
    slots, coded, identifiers = _slots(element), _classified(element), _identifiers(element)
    person, institution = _author(coded.get(codes.AUTHOR, ()))
    events = _codes(coded.get(codes.EVENT_CODE, ()))
    size = _one(slots, "size")
    return DocumentEntry(
        mime_type=element.get("mimeType", ""),
        unique_id=identifiers.get(codes.ENTRY_UNIQUE_ID, ""),
        hash=_one(slots, "hash").lower(),
        size=int(size) if re.fullmatch(r"[0-9]{1,12}", size, re.ASCII) else None,
        patient=read_cx(identifiers.get(codes.ENTRY_PATIENT_ID, "")),
        source_patient=read_cx(_one(slots, "sourcePatientId")),
        patient_info=dict(text.partition("|")[::2] for text in slots.get("sourcePatientInfo", ())),
        creation_time=_one(slots, "creationTime"),
        submission_time=_one(slots, "submissionTime"),
        service_start=_one(slots, "serviceStartTime"),
        service_stop=_one(slots, "serviceStopTime"),
        language=_one(slots, "languageCode"),
        legal_authenticator=read_person(_one(slots, "legalAuthenticator")),
        author=person,
        institution=institution,
        format_code=next((c.value for c in _codes(coded.get(codes.FORMAT_CODE, ()))), ""),
        confidentiality=_codes(coded.get(codes.CONFIDENTIALITY, ())),
        facility=next(iter(_codes(coded.get(codes.FACILITY_TYPE, ()))), None),
        practice=next(iter(_codes(coded.get(codes.PRACTICE_SETTING, ()))), None),
        modalities=tuple(code for code in events if _is_modality(code)),
        regions=tuple(code for code in events if not _is_modality(code)),
        references=tuple(read_cx(value) for value in slots.get(codes.REFERENCE_ID_LIST, ())),
    )


def _is_modality(code: Code) -> bool:
    return code.scheme in _MODALITY_SCHEMES or _MODALITY.fullmatch(code.value) is not None


# --- parts of ebRIM objects -------------------------------------------------------------------------


def _slots(element: Element) -> dict[str, tuple[str, ...]]:
    found = {}
    for slot in element.findall(rim("Slot")):
        values = slot.findall(f"{rim('ValueList')}/{rim('Value')}")
        found[slot.get("name", "")] = tuple((value.text or "").strip() for value in values)
    return found


def _one(slots: dict[str, tuple[str, ...]], name: str) -> str:
    return next(iter(slots.get(name, ())), "")


def _classified(element: Element) -> dict[str, list[Element]]:
    found: dict[str, list[Element]] = {}
    for each in element.findall(rim("Classification")):
        found.setdefault(each.get("classificationScheme", ""), []).append(each)
    return found


def _codes(classifications: Iterable[Element]) -> tuple[Code, ...]:
    found = []
    for each in classifications:
        text = each.find(f"{rim('Name')}/{rim('LocalizedString')}")
        display = text.get("value", "") if text is not None else ""
        value = each.get("nodeRepresentation", "")
        if value:
            found.append(
                Code(value, _one(_slots(each), "codingScheme"), "" if display == value else display)
            )
    return tuple(found)


def _author(classifications: Iterable[Element]) -> tuple[Person, Organization]:
    person, institution = Person(""), Organization("")
    for each in classifications:
        slots = _slots(each)
        person = person if person.id else read_person(_one(slots, "authorPerson"))
        institution = institution if institution.id else read_organization(_one(slots, "authorInstitution"))
    return person, institution


def _identifiers(element: Element) -> dict[str, str]:
    return {
        each.get("identificationScheme", ""): each.get("value", "")
        for each in element.findall(rim("ExternalIdentifier"))
    }


# --- HL7 v2 data types ------------------------------------------------------------------------------


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _UNESCAPED[match[1]], text)


def _authority(component: str) -> str:
    """Return the OID of `&oid&ISO`."""
    parts = component.split("&")
    return _unescaped(parts[1]) if len(parts) > 1 else ""


def read_cx(text: str) -> Cx:
    """Read `value^^^&authority&ISO^kind`; empty parts for what is not there."""
    parts = [*text.split("^"), *[""] * 5]
    return Cx(_unescaped(parts[0]).strip(), _authority(parts[3]), parts[4].strip())


def read_person(text: str) -> Person:
    """Read an XCN; the empty person for a device or none."""
    parts = [*text.split("^"), *[""] * 14]
    if not parts[0] or parts[9] == "U" or parts[12] == "EI" or _authority(parts[8]) not in ("", RPPS_OID):
        return Person("")
    return Person(_unescaped(parts[0]), parts[1].strip(), parts[2].strip())


def read_organization(text: str) -> Organization:
    """Read an XON."""
    parts = [*text.split("^"), *[""] * 10]
    return Organization(_unescaped(parts[9]).strip(), parts[0].strip())


def identifier(cx: Cx) -> Identifier | None:
    """Return value and authority, None unless both are there."""
    return Identifier(cx.value, cx.authority) if cx.value and cx.authority else None
