"""The national record (DMP): what is published and withdrawn, and what it answers."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import attrs

from drimbox.config import Structure
from drimbox.model import KosState, Report, Study, Visibility


@attrs.frozen
class ArchivedKos:
    """One KOS of the archive with everything needed to replace, answer for or export it (DB.SO.22)."""

    id: int
    site: str
    study_uid: str
    sop_instance_uid: str
    state: KosState
    #: Part 10 bytes.
    data: bytes
    #: SubmitObjectsRequest sent (or to send) to the DMP.
    metadata: bytes
    #: Digest of content, metadata and visibility without identifiers and instants, to tell a change.
    fingerprint: str
    structure_id: str
    patient_ins: str
    patient_ins_oid: str
    patient_id: str
    #: CDA ids of the reports that led to it.
    report_ids: tuple[str, ...]
    #: `urn:uuid:...` the registry gave, when known.
    entry_uuid: str | None
    created_at: datetime
    #: INS matricule seen in the PACS's answer, if any (DB.SO.22).
    pacs_ins: str | None = None


@attrs.frozen
class Submission:
    """Everything a publication sends, fixed before the first attempt (architecture.md rule 4)."""

    kos: bytes
    sop_instance_uid: str
    submission_uid: str
    signature_uid: str
    #: HL7 TS in UTC used in every slot of this submission.
    submission_time: datetime
    report: Report
    visibility: Visibility
    secret_connection: bool
    patient_class: str
    study: Study
    #: Structure whose certificates sign and authenticate.
    structure_id: str


@attrs.frozen
class Removal:
    """Everything a withdrawal sends, fixed before the first attempt: TD3.3c (DB.SO.26, DB.SO.97).

    The registry's entryUUID is not in it: it is asked for at each attempt.
    """

    #: uniqueId of the manifest to withdraw.
    sop_instance_uid: str
    submission_uid: str
    #: HL7 TS in UTC of its submission set.
    submission_time: datetime
    #: The report the manifest was published for: whose record it is, and who vouches for it.
    report: Report
    patient_class: str
    #: Structure that published it; nobody else may withdraw it.
    structure_id: str


class Outcome:
    """What the DMP said to one exchange. Transport failures are raised, not returned."""


@attrs.frozen
class Accepted(Outcome):
    """The DMP holds the document. `warnings` are its own words."""

    warnings: tuple[str, ...] = ()


@attrs.frozen
class Refused(Outcome):
    """The DMP said no for good: `code` is its errorCode, `text` its words."""

    code: str
    text: str
    #: True for errors that mean "no such patient" (E006).
    unknown_patient: bool = False
    #: True for XDSDuplicateUniqueIdInRegistry: ask what it holds before deciding.
    duplicate: bool = False


@attrs.frozen
class Doubtful(Outcome):
    """The DMP took the document or not, it says both (PartialSuccess): what it holds now decides."""

    #: What it means when the DMP holds the document, and when it does not.
    held: Accepted
    absent: Outcome | DmpUnavailable


class DmpUnavailable(Exception):
    """The DMP did not take the request: busy, down, HTTP 5xx. `sent` tells whether it may have.

    `sent` is False only when no byte of the request can have reached it (connection refused, TLS
    handshake failed): then sending again needs no question first. `stale` tells that a question was cut on
    a connection left open by an earlier one: the DMP may have closed it for want of use, so it is worth
    putting again at once.
    """

    def __init__(self, reason: str, *, sent: bool, stale: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.stale = stale


class NotAdmitted(DmpUnavailable):
    """The DMP, or what stands before it, turns us away: authentication, VIHF, authorisation, address.

    Nothing was done, and nothing is wrong with the document: the administrator has to mend something, and
    the structure's rows wait for that.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, sent=True)


@attrs.frozen
class RegistryEntry:
    """A DocumentEntry the DMP holds."""

    entry_uuid: str
    unique_id: str
    hash: str
    size: int
    #: `urn:oasis:names:tc:ebxml-regrep:StatusType:Approved` ...
    status: str


class Record(Protocol):
    """The DMP as the Source uses it. Raises `DmpUnavailable`."""

    async def patient_exists(self, structure: Structure, report: Report) -> Outcome:
        """TD0.2: `Accepted` when the patient's DMP exists and is open, else `Refused` (E006)."""

    def metadata(self, structure: Structure, submission: Submission) -> bytes:
        """Return the SubmitObjectsRequest this submission sends, for the archive (DB.SO.22)."""

    async def publish(self, structure: Structure, submission: Submission, replaces: str | None) -> Outcome:
        """TD2.1; `replaces` is the entryUUID of the KOS it takes the place of (RPLC)."""

    async def remove(self, structure: Structure, removal: Removal, entry_uuid: str) -> Outcome:
        """TD3.3c: withdraw the manifest that the registry knows as `entry_uuid`."""

    async def find_entry(
        self, structure: Structure, report: Report, unique_id: str
    ) -> RegistryEntry | None:
        """TD3.1 GetDocuments by uniqueId: what the DMP holds under it, or None."""
