"""The attributes of the metadata as data: where each stands, how often, with what form or code.

ITI TF-3 4.2.3 gives the places, CI-SIS (volet Partage de documents, IMG-KOS) and the DMP's published
examples the values. A coded attribute has a set of current schemes and one of former ones, which are
accepted with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from drimbox.conformance.xds import types

STABLE: Final = "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1"
SET_NODE: Final = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
REFERENCES: Final = "urn:ihe:iti:xds:2013:referenceIdList"
DCM, SNOMED = "1.2.840.10008.2.16.4", "2.16.840.1.113883.6.96"
KOS_CLASS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
PURPOSE: Final = "1.2.840.10065.1.12.1.14"

_FRENCH: Final = "CI-SIS Partage de documents"


@attrs.frozen
class SlotRow:
    """A slot: its name, whether it is compulsory, how many values, their form (None: any)."""

    name: str
    required: bool = True
    many: bool = False
    #: True for a DTM, whose form is judged by `types.time_fault`.
    time: bool = False
    fits: Callable[[str], bool] | None = None
    clause: str = "ITI TF-3 4.2.3.2"


@attrs.frozen
class CodeRow:
    """A coded attribute: its scheme, name, cardinality, and codes by coding scheme (None: any code)."""

    scheme: str
    name: str
    allowed: Mapping[str, frozenset[str] | None]
    least: int = 1
    most: int | None = 1
    #: Former coding schemes, accepted with a warning.
    former: Mapping[str, frozenset[str] | None] = attrs.field(factory=dict)
    clause: str = _FRENCH


@attrs.frozen
class IdRow:
    """An external identifier: its scheme, the name IHE gives it, the form of its value."""

    scheme: str
    name: str
    fits: Callable[[str], bool]
    clause: str = "ITI TF-3 4.2.3.2"


@attrs.frozen
class Table:
    """Everything a kind of object must hold."""

    author: str
    slots: tuple[SlotRow, ...]
    codes: tuple[CodeRow, ...]
    identifiers: tuple[IdRow, ...]
    mime: str = ""
    title: str = ""
    description: str = ""


def _patient(value: str) -> bool:
    return types.patient(value) is not None


def _codes(*values: str) -> frozenset[str]:
    return frozenset(values)


_MASKS: Final = _codes("MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REPRESENTANTS_LEGAUX")
_CONFIDENTIAL: Final = {
    "2.16.840.1.113883.5.25": _codes("N"),
    "1.2.250.1.213.1.1.4.13": _MASKS,
}
CONFIDENTIALITY: Final = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
CLASS_CODE: Final = "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a"
_TYPE: Final = "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983"
_FORMAT: Final = "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d"
EVENTS: Final = "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4"
FACILITY: Final = "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1"
PRACTICE: Final = "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead"
SET_PATIENT: Final = "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446"
SET_UNIQUE: Final = "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8"
PATIENT: Final = "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427"
UNIQUE: Final = "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab"
SET_CONTENT: Final = "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500"
#: Values of the imaging modalities and regions of eventCodeList are any code of these schemes.
FORMER_MODALITY, FORMER_REGION = "1.2.250.1.213.1.1.5.618", "1.2.250.1.213.1.1.5.695"
_CCAM_FORMER, _CCAM = "1.2.250.1.213.2.5", "1.2.250.1.215.300.1"

_PLACE: Final = (
    CodeRow(FACILITY, "healthcareFacilityTypeCode", {"1.2.250.1.71.4.2.4": None}),
    CodeRow(PRACTICE, "practiceSettingCode", {"1.2.250.1.213.1.1.4.9": None}),
)
_COMMON: Final = (
    SlotRow("creationTime", time=True),
    SlotRow("submissionTime", required=False, time=True, clause=_FRENCH),
    SlotRow("legalAuthenticator", fits=types.person, clause=_FRENCH),
    SlotRow("serviceStartTime", time=True, clause=_FRENCH),
    SlotRow("serviceStopTime", required=False, time=True),
    SlotRow(
        "hash", fits=lambda value: len(value) == 40 and all(c in "0123456789abcdefABCDEF" for c in value)
    ),
    SlotRow("size", fits=lambda value: value.isascii() and value.isdigit() and len(value) < 16),
    SlotRow(
        REFERENCES,
        many=True,
        fits=lambda value: types.reference(value) is not None,
        clause="ITI TF-3 4.2.3.2.28 ; CI-SIS IMG-KOS",
    ),
)
_ENTRY_IDS: Final = (
    IdRow(PATIENT, "XDSDocumentEntry.patientId", _patient),
    IdRow(UNIQUE, "XDSDocumentEntry.uniqueId", types.is_oid),
)

SET: Final = Table(
    author="urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d",
    slots=(SlotRow("submissionTime", time=True, clause="ITI TF-3 4.2.3.3.10"),),
    codes=(CodeRow(SET_CONTENT, "contentTypeCode", {"1.2.250.1.213.2.2": None}),),
    identifiers=(
        IdRow(SET_PATIENT, "XDSSubmissionSet.patientId", _patient, "ITI TF-3 4.2.3.3.8"),
        IdRow(
            "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832",
            "XDSSubmissionSet.sourceId",
            types.is_oid,
            "ITI TF-3 4.2.3.3.9",
        ),
        IdRow(SET_UNIQUE, "XDSSubmissionSet.uniqueId", types.is_oid, "ITI TF-3 4.2.3.3.12"),
    ),
)
#: What a value of sourcePatientInfo may begin with.
_PID_FIELDS: Final = ("PID-5|", "PID-7|", "PID-8|", "PID-11|")
_AUTHOR: Final = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
KOS: Final = Table(
    author=_AUTHOR,
    slots=(
        *_COMMON,
        SlotRow("languageCode", fits=lambda value: value == "fr-FR"),
        SlotRow("sourcePatientId", fits=types.local_patient),
        SlotRow("sourcePatientInfo", many=True, fits=lambda value: value.startswith(_PID_FIELDS)),
    ),
    codes=(
        *_PLACE,
        CodeRow(CLASS_CODE, "classCode", {"1.2.250.1.213.1.1.4.1": _codes("31")}),
        CodeRow(_TYPE, "typeCode", {"1.2.250.1.213.1.1.4.12": _codes("IMG-KOS")}),
        CodeRow(
            _FORMAT, "formatCode", {"1.2.840.10008.2.6.1": _codes(KOS_CLASS)}, clause="IHE RAD TF-3 4.68"
        ),
        CodeRow(CONFIDENTIALITY, "confidentialityCode", _CONFIDENTIAL, most=4),
        CodeRow(
            EVENTS,
            "eventCodeList",
            {DCM: None, SNOMED: None, _CCAM: None},
            most=None,
            former={FORMER_MODALITY: None, FORMER_REGION: None, _CCAM_FORMER: None},
            clause="IHE RAD TF-3 4.68 ; CI-SIS IMG-KOS",
        ),
    ),
    identifiers=_ENTRY_IDS,
    mime="application/dicom",
    title="Reference d'Objets d'un Examen d'Imagerie",
    description="KOS",
)
SIGNATURE: Final = Table(
    author=_AUTHOR,
    slots=(
        *_COMMON,
        SlotRow("languageCode", fits=lambda value: value == "art"),
        SlotRow("sourcePatientId", fits=types.local_patient),
    ),
    codes=(
        *_PLACE,
        CodeRow(CLASS_CODE, "classCode", {"URN": _codes("urn:oid:1.3.6.1.4.1.19376.1.2.1.1.1")}),
        CodeRow(_TYPE, "typeCode", {"ASTM": _codes("E1762")}, clause="IHE ITI DSG"),
        CodeRow(_FORMAT, "formatCode", {"URN": _codes(DSIG)}, clause="IHE ITI DSG"),
        CodeRow(CONFIDENTIALITY, "confidentialityCode", _CONFIDENTIAL, least=3, most=3),
        CodeRow(EVENTS, "eventCodeList", {"1.2.840.10065.1.12": _codes(PURPOSE)}, clause="IHE ITI DSG"),
    ),
    identifiers=_ENTRY_IDS,
    mime="text/xml",
    title="Source",
)
