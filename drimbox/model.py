"""Value objects shared by every part of the gateway.

Everything here is frozen, knows no input or output, and uses the field's own terms: a `Study` is what
a PACS holds, a `Report` is what a radiologist signed, a `Structure` is a *situation d'exercice*.
Dates and times stay in the form of the standard they come from (DICOM `DA`/`TM`, HL7 `TS`) unless a
field says otherwise, because a conversion that nobody asked for loses precision.
"""

from __future__ import annotations

import enum
import re
import uuid
from datetime import datetime

import attrs

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}", re.ASCII)

#: INS identifier domains: production NIR and NIA, test NIR, demonstration (interfaces.md 0.1).
INS_OIDS = (
    "1.2.250.1.213.1.4.8",
    "1.2.250.1.213.1.4.9",
    "1.2.250.1.213.1.4.10",
    "1.2.250.1.213.1.4.11",
)
RPPS_OID = "1.2.250.1.71.4.2.1"
#: How an issuer begins that says in words that its identifier is an INS (interfaces.md 3.2).
INS_ISSUER = "ASIP-SANTE-INS"
STRUCTURE_OID = "1.2.250.1.71.4.2.2"
DCM_OID = "1.2.840.10008.2.16.4"
SNOMED_OID = "2.16.840.1.113883.6.96"


def is_uid(value: str) -> bool:
    """Say whether `value` is a DICOM UID as PS3.5 9.1 writes it: at most 64 of digits and dots.

    Leading zeros in a component are tolerated: real archives hold them, and they are harmless in a
    path, a query or a header.
    """
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def is_ae_title(value: str) -> bool:
    """Say whether `value` is an AE title (PS3.5 6.2): 1 to 16 characters, no backslash, not blank."""
    return _AE_TITLE.fullmatch(value) is not None and value.strip() != ""


def new_uid(root: str | None = None) -> str:
    """Make a new UID, under `root` when it is given, else in the UUID-derived arc (PS3.5 B.2)."""
    number = uuid.uuid4().int
    if root is None:
        return f"2.25.{number}"
    prefix = root.rstrip(".") + "."
    return prefix + str(number)[: 64 - len(prefix)].lstrip("0")


@attrs.frozen
class Identifier:
    """A value and the authority (an OID) that gave it: IPP, accession number, order number."""

    value: str
    authority: str


@attrs.frozen
class Code:
    """A coded value: code, OID of its scheme, text for people."""

    value: str
    scheme: str
    display: str = ""


@attrs.frozen
class Person:
    """A health professional: national identifier (`8` + RPPS) and name."""

    id: str
    family: str = ""
    given: str = ""


@attrs.frozen
class Organization:
    """A health structure by its national identifier (Struct_IdNat, requirements.md 3.5)."""

    id: str
    name: str = ""


@attrs.frozen
class Patient:
    """The INS and its strict traits, as the report gives them (table 3.1, interfaces.md 2.2)."""

    ins: str
    ins_oid: str
    family: str
    given: str
    birth_date: str
    sex: str
    #: INSEE code of the birth place.
    birth_place: str = ""
    #: All birth given names, separated by blanks.
    given_list: str = ""
    used_family: str = ""
    used_given: str = ""


@attrs.frozen
class RequestIds:
    """One order of the report: its accession number and its placer order number, each with authority."""

    accession: Identifier
    order: Identifier


@attrs.frozen
class StudyAct:
    """One `serviceEvent` of the report: the study it made and what describes that act."""

    study_uid: str
    modalities: tuple[Code, ...]
    regions: tuple[Code, ...]
    #: displayName of the act, for the « Acte = » line of the manifest.
    description: str = ""
    #: HL7 TS of the act, empty when the report gives none.
    start: str = ""
    stop: str = ""
    practice_setting: Code | None = None


@attrs.frozen
class Visibility:
    """Who may see the report, and so its manifest (flags of interfaces.md 1.4)."""

    masked_to_professionals: bool = False
    hidden_from_patient: bool = False
    hidden_from_representatives: bool = False


@attrs.frozen
class Report:
    """What the gateway keeps of a CDA header and of the HL7 message around it (table 3.1)."""

    #: CDA id: the root, or `root^extension` when an extension exists.
    document_id: str
    set_id: str
    version: str
    patient: Patient
    ipp: Identifier | None
    requests: tuple[RequestIds, ...]
    acts: tuple[StudyAct, ...]
    #: Situation d'exercice that chooses the certificate pair (DB.SO.21, interfaces.md 2.1 no 6).
    structure: Organization
    author: Person
    author_organization: Organization
    #: CDA author code, `G15_10/SM44`; empty when absent.
    author_role: str
    legal_authenticator: Person
    #: HL7 TS of CDA effectiveTime.
    effective_time: str
    #: CDA confidentialityCode: N, R or V.
    confidentiality: str
    language: str
    title: str
    #: Document id this report replaces, if any.
    replaces: str | None
    #: healthcareFacilityTypeCode (`SAxx`).
    facility_type: Code | None


class MessageAction(enum.Enum):
    """What an HL7 message wants done with its report (interfaces.md 1.2)."""

    NEW = "new"
    REPLACE = "replace"
    DELETE = "delete"


@attrs.frozen
class ReportMessage:
    """An ORU^R01 or MDM^T02 message once read: the HL7 facts and the CDA bytes, not yet the header."""

    control_id: str
    #: `ORU^R01`, `MDM^T02` ...
    trigger: str
    sending_application: str
    sending_facility: str
    action: MessageAction
    #: IPP of PID-3 (type PI), with its authority when it has one.
    ipp: Identifier | None
    #: True when PID-32 says the INS is qualified (`VALI`) or says nothing (interfaces.md 1.3).
    ins_qualified: bool
    visibility: Visibility
    #: DESTDMP flag: True, False, or None when the message does not carry it.
    to_dmp: bool | None
    secret_connection: bool
    visibility_change_only: bool
    #: PV1-2 patient class, empty when absent.
    patient_class: str
    #: PRT-8 of the sender, fall-back for the situation d'exercice.
    prt_structure: Organization | None
    #: The CDA document, decoded from OBX-5.
    document: bytes
    #: INS of PID-3, None when the message carries none; must equal the one of the report.
    ins: Identifier | None = None
    #: Document id of TXA-12 and parent of TXA-13, empty when absent; the report's own ids win.
    announced_id: str = ""
    announced_parent: str = ""
    #: MSH-7, None when it names no instant.
    sent_at: datetime | None = None


@attrs.frozen
class StudyChange:
    """An OMI^O23 message once read: studies changed in a PACS (DB.SO.133)."""

    control_id: str
    study_uids: tuple[str, ...]


@attrs.frozen
class Instance:
    """One SOP instance as the PACS lists it."""

    sop_instance_uid: str
    sop_class_uid: str
    number: int | None = None


@attrs.frozen
class Series:
    """One series of a study as the PACS lists it."""

    series_uid: str
    modality: str
    instances: tuple[Instance, ...]
    number: int | None = None
    description: str = ""


@attrs.frozen
class StatedPatient:
    """Whose images these are in the words of an archive; None, or empty, for what it does not say."""

    #: (0010,0020), and who gave it: (0010,0021) in words, (0010,0024) > (0040,0032) as an OID.
    patient_id: str | None = None
    patient_id_issuer: str | None = None
    patient_id_authority: str | None = None
    #: Every INS of (0010,1002); the domain is empty when it is told in words alone.
    ins: tuple[Identifier, ...] = ()
    birth_date: str = ""


@attrs.frozen
class Study:
    """What a PACS holds of one study: the answer to C-FIND (DB.SO.14)."""

    study_uid: str
    series: tuple[Series, ...]
    date: str = ""
    time: str = ""
    description: str = ""
    patient_id: str = ""
    patient_id_issuer: str = ""
    patient_birth_date: str = ""
    #: INS matricule when the PACS gives one in OtherPatientIDsSequence.
    ins: str | None = None
    #: All that is said of the patient, once each: several when not every answer says the same. Empty when
    #: the archive tells no more than the four fields above.
    patients: tuple[StatedPatient, ...] = ()

    @property
    def stated_patients(self) -> tuple[StatedPatient, ...]:
        """What is said of the patient: at least one statement, be it an empty one (DB.SO.16, DB.SO.191)."""
        said = StatedPatient(
            patient_id=self.patient_id or None,
            patient_id_issuer=self.patient_id_issuer or None,
            ins=(Identifier(self.ins, ""),) if self.ins else (),
            birth_date=self.patient_birth_date,
        )
        return self.patients or (said,)

    @property
    def instance_uids(self) -> frozenset[str]:
        """SOP Instance UIDs of all series."""
        return frozenset(
            instance.sop_instance_uid for series in self.series for instance in series.instances
        )

    @property
    def instance_count(self) -> int:
        """Number of instances in all series."""
        return sum(len(series.instances) for series in self.series)


class KosState(enum.Enum):
    """Life of an archived KOS (interfaces.md 3.7)."""

    #: Built and queued for the DMP.
    PENDING = "pending"
    #: The DMP holds it.
    PUBLISHED = "published"
    #: A newer KOS of the same study took its place in the DMP.
    REPLACED = "replaced"
    #: Withdrawn from the DMP; its identifier is kept so that a request gets E1002.
    DEPUBLISHED = "depublished"
    #: The DMP refused it for good (E006, E007).
    REFUSED = "refused"
