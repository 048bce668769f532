"""The doors of the Source's use-cases: what `feed`, `publication` and `delivery` need from outside.

Adapters implement these protocols without knowing the use-cases; `service.py` joins them. Every method
is a coroutine that runs on the reactor thread; none blocks it.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

import attrs

from drimbox.config import Pacs, Structure
from drimbox.dicom.elements import Buffer
from drimbox.model import KosState, MessageAction, Report, Study, Visibility

if TYPE_CHECKING:
    # It drags pydicom in, which the commands that only read the store do without.
    from drimbox.dicom.moving import MoveReceiver, MoveResult

T = TypeVar("T")


class InThread(Protocol):
    """Runs a function off the reactor thread and awaits its result."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return an awaitable of `work()`."""


@attrs.frozen
class AuditParticipant:
    """An ActiveParticipant of PS3.15 A.5 (interfaces.md 11.1)."""

    user_id: str
    #: 110153 source, 110152 destination.
    role: str
    #: 1 DNS name, 2 address.
    network_type: str = "2"
    network_id: str = ""
    alternative_user_id: str = ""
    requestor: bool = False


@attrs.frozen
class AuditObject:
    """A ParticipantObjectIdentification of PS3.15 A.5."""

    id: str
    type: str
    role: str
    id_type: str
    life_cycle: str = ""
    #: (type, value) pairs.
    details: tuple[tuple[str, str], ...] = ()
    #: ParticipantObjectName, for what has one beside its identifier.
    name: str = ""


@attrs.frozen
class AuditEvent:
    """One audit message, before it gets its instant and its place in the trail (requirements.md 3.8)."""

    #: `110107`, `110106` ... (DCM).
    event_id: str
    #: C, R, U, D or E.
    action: str
    #: (code, code system, text), e.g. ("RAD-107", "IHE Transactions", "WADO-RS Retrieve").
    event_type: tuple[str, str, str]
    participants: tuple[AuditParticipant, ...]
    objects: tuple[AuditObject, ...]
    #: 0 success, 4 minor, 8 serious, 12 major failure.
    outcome: int = 0
    #: `E1003 - ...`; empty on success.
    outcome_description: str = ""
    #: For searches: INS and study concerned, empty when none.
    patient_ins: str = ""
    study_uid: str = ""


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> datetime:
        """Return the present instant, with its time zone."""


class Pacses(Protocol):
    """Questions to a PACS."""

    async def find_study(self, pacs: Pacs, study_uid: str) -> Study | None:
        """List the study's instances, or None when this PACS does not hold it (DB.SO.14).

        Raises `PacsCommunicationError` (E003) when the PACS is silent, refuses or talks nonsense.
        """

    async def echo(self, pacs: Pacs) -> None:
        """Verify the link (C-ECHO). Raises `PacsCommunicationError`."""

    async def holds(self, pacs: Pacs, study_uid: str) -> bool:
        """Say whether a C-FIND lists instances of the study, whatever their classes.

        Raises `PacsCommunicationError`.
        """


#: In the place of the RIS of a message that an archive of another DRIMbox brought (no RIS can be called
#: so), and of the digest of its manifest, of which nobody knows how it would compare.
IMPORTED = "(import)"


@attrs.frozen
class InboxMessage:
    """A message safely stored, waiting to be worked on."""

    id: int
    ris: str
    peer: str
    raw: bytes
    received_at: datetime
    attempts: int


class Purpose(enum.Enum):
    """Why a study is compared, which says how far its job may go."""

    #: Something happened to it: make the record match the PACS.
    MATCH = "match"
    #: A resynchronisation found a difference: publish it, but withdraw nothing because it is absent.
    UPDATE = "update"
    #: A resynchronisation found it absent and its removal was released: ask once more, verify the link.
    WITHDRAW = "withdraw"
    #: The address of the site has changed: what the study holds is what the archive says (DB.SO.31).
    READDRESS = "readdress"


#: Result of a job whose study is absent and which was not to withdraw it.
ABSENT = "absent"


@attrs.frozen
class FeedJob:
    """One study that a report asks to publish: make the record match the PACS."""

    id: int
    message_id: int
    study_uid: str
    ris: str
    attempts: int
    purpose: Purpose = Purpose.MATCH


@attrs.frozen
class ReportSaid:
    """What one message says, for the record of reports."""

    document_id: str
    replaces: str | None
    action: MessageAction
    #: MSH-7; None when it says nothing usable.
    sent_at: datetime | None
    studies: tuple[str, ...]


class Voice(enum.Enum):
    """When no message speaks for a study."""

    #: No report ever cited it.
    UNKNOWN = "unknown"
    #: All that did were taken back.
    NONE_LEFT = "none left"


@attrs.frozen
class Speaker:
    """The message that speaks for a study."""

    message_id: int
    ris: str


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


class DmpUnavailable(Exception):
    """The DMP did not take the request: busy, down, HTTP 5xx. `sent` tells whether it may have.

    `sent` is False only when no byte of the request can have reached it (connection refused, TLS
    handshake failed): then sending again needs no question first.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


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


class Inbox(Protocol):
    """Where a message is safe (architecture.md rule 4)."""

    async def add(self, *, ris: str, peer: str, control_id: str, raw: bytes) -> int:
        """Commit the message to durable storage and return its number; only then may `AA` be sent."""


class AuditTrail(Protocol):
    """The append-only audit trail (DB.CS.06)."""

    async def record(self, event: AuditEvent) -> None:
        """Commit one event."""


class AgeingTrail(Protocol):
    """The audit trail as retention sees it."""

    async def purge(
        self,
        limit: datetime,
        announce: Callable[[int, str, int], AuditEvent],
        *,
        upto: int | None = None,
    ) -> int:
        """Remove the events before `limit` from the old end, none after `upto`; return how many.

        `announce` (number and hash of the last one to go, how many) makes the event that says so first.
        """


class BatchNotDelivered(Exception):
    """A batch of audit messages was not confirmed; the text (French) says why, without patient data.

    `sent` tells whether some of it may have arrived.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class BatchDelivery(Protocol):
    """The way to an audit repository."""

    async def deliver(self, frames: Sequence[bytes]) -> None:
        """Send messages in their frames and have them confirmed. Raises `BatchNotDelivered`."""


@attrs.frozen
class ExportedEvent:
    """An event of the audit trail on its way out; `event` is None when it cannot be read back."""

    id: int
    hash: str
    instant: datetime
    event: AuditEvent | None


@attrs.frozen
class ExportBacklog:
    """What waits to be sent on."""

    count: int
    #: Instant of the oldest event that waits, None when none does.
    oldest: datetime | None


class AuditSpool(Protocol):
    """The audit trail as the queue of what is to be sent on: a position in it."""

    async def backlog(self) -> ExportBacklog:
        """Say what waits."""

    async def take(self, limit: int) -> list[ExportedEvent]:
        """Return the oldest events that wait; none while another node sends."""

    async def confirm(self, last_id: int) -> None:
        """Note that everything up to this event has arrived."""

    async def position(self) -> int:
        """Return the number of the last event that has arrived."""


class Notices(Protocol):
    """What the administrator must know (DB.SO.21)."""

    async def post(self, *, key: str, code: str, text: str) -> None:
        """Show `text` (French, no patient data) until somebody acknowledges it.

        A notice with the same `key` that is still open is not repeated: its count and last instant move.
        """


class OutageNotices(Notices, Protocol):
    """Notices that can be said to be over."""

    async def resolve(self, key: str) -> bool:
        """Close the open notice of this key: what it said is over."""


class Severity(enum.Enum):
    """How much a notice matters to the administrator."""

    INFORMATION = "information"
    #: Something does not go through, or will not for long.
    ATTENTION = "attention"
    #: A service is down, or something is lost unless somebody acts.
    GRAVE = "grave"


@attrs.frozen
class Notice:
    """One notice to the administrator."""

    id: int
    key: str
    code: str
    severity: Severity
    text: str
    count: int
    first_at: datetime
    last_at: datetime
    #: None while it is open.
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None


@attrs.frozen
class Digest:
    """What leaves by one channel at once: notices, and how many more there are."""

    #: The same for the same notices, so that whoever gets it twice can tell.
    id: str
    #: Who speaks: name and registry number of the gateway.
    name: str
    system_id: str
    sent_at: datetime
    notices: tuple[Notice, ...]
    more: int = 0
    #: Only a test of the channel.
    test: bool = False


def parked_key(queue: str, row_id: int) -> str:
    """Return the key of the notice about a parked row of a queue ("inbox", "feed", "outbox")."""
    return f"file-{queue}-{row_id}"


@attrs.frozen
class ParkedRow:
    """A row of a queue set aside because its work breaks again and again; empty is not known, or not so."""

    #: "inbox", "feed" or "outbox".
    queue: str
    id: int
    #: How it broke, without patient data.
    error: str
    ris: str = ""
    peer: str = ""
    study_uid: str = ""
    sop_instance_uid: str = ""
    structure_id: str = ""
    patient_ins: str = ""
    #: True for the removal of a manifest.
    removal: bool = False
    #: True when it needs nobody any more: another row took its place.
    dropped: bool = False


@attrs.frozen
class Introspection:
    """Who is behind an access token: the answer of the e-Santé proxy (interfaces.md 7.4)."""

    #: National identifier (`8` + RPPS), None when the answer carries none.
    professional: str | None
    #: Structure identifier, None when the answer carries none.
    structure: str | None
    #: Unix time of expiry, None when not said.
    expires_at: int | None


class Introspector(Protocol):
    """Checks access tokens (DB.SO.32)."""

    async def introspect(self, token: str, consumer: str) -> Introspection:
        """Return who is behind a token that `consumer` (subject of its certificate) has presented.

        Raises `TokenInvalid`, `IntrospectionUnavailable` or `IntrospectionTimeout`.
        """


class MoveRun(Protocol):
    """One C-MOVE, or one reading of a native archive, prepared."""

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Move the series to ourselves; return once everything that can arrive has arrived.

        `wait` is the time to wait for an AE title, in seconds. Raises `TooManyRequests`,
        `PacsUnavailable`, `RetrieveTimeout`, `NotAcceptable` or `Abandoned`.
        """

    @property
    def sent_at(self) -> float | None:
        """Reactor time at which the C-MOVE request was sent, None before."""

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""


class PacsMover(Protocol):
    """Starts C-MOVEs (DB.SO.177)."""

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver) -> MoveRun:
        """Prepare one C-MOVE from `pacs`; nothing happens before its `run`."""


class ImageArchive(Protocol):
    """The images of one site: a PACS across the network, or an archive on this machine (DB.SO.165)."""

    @property
    def name(self) -> str:
        """Its name for operators."""

    @property
    def patience(self) -> float:
        """Longest pause it bears while it gives images, in seconds (architecture.md rule 5)."""

    async def find_study(self, study_uid: str) -> Study | None:
        """List the study's instances, or None when it holds none (DB.SO.14).

        Raises `PacsCommunicationError` (E003).
        """

    async def verify(self) -> None:
        """Verify that it answers at all. Raises `PacsCommunicationError`."""

    async def holds(self, study_uid: str) -> bool:
        """Say whether it lists instances of the study. Raises `PacsCommunicationError`."""

    def retrieval(self, receiver: MoveReceiver, needed: Collection[str] | None = None) -> MoveRun:
        """Prepare to bring a series to `receiver`; nothing happens before its `run`.

        Without any one of `needed` (None: of whatever there is) the answer is worth nothing: an archive
        that knows beforehand in which form it gives them raises `NotAcceptable` before it gives any.
        """


#: The archive of each site, by the site's name.
Archives = Mapping[str, ImageArchive]


@attrs.frozen
class KnownStudy:
    """A study of a native archive with a KOS in the DMP, or on its way there (DB.SO.27)."""

    study_uid: str
    #: Its state when it was last known to agree with its KOS, empty for gone; None when never looked at.
    mark: str | None
    #: True when it is to be compared.
    due: bool


class StudyMemory(Protocol):
    """What is durably known of the studies of native archives."""

    async def cursor(self, site: str) -> str | None:
        """Return where the last look ended, None before the first."""

    async def known(self, site: str, after: str, limit: int, *, only: str = "") -> list[KnownStudy]:
        """Return studies with a KOS whose UID follows `after`, in order.

        `only` limits them to those that are "due", or "new": never looked at.
        """

    async def note(self, site: str, changed: Collection[str], cursor: str | None) -> list[str]:
        """Make the known ones among `changed` due and keep the cursor, in one transaction.

        Returns those that are due now. Without a cursor the old one stays.
        """

    async def settle(self, site: str, marks: Mapping[str, str]) -> None:
        """Keep the marks of studies that agree with their KOS, or are on their way to."""


class SpoolFull(Exception):
    """No room left in the spool, for this delivery or for all of them."""


class SpoolFile(Protocol):
    """Disk space of one delivery whose client is slower than the PACS's patience."""

    def reserve(self, size: int) -> int:
        """Return the offset where the next `size` bytes go. Raises `SpoolFull`."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write reserved bytes. Raises `OSError`."""

    async def read(self, offset: int, size: int) -> bytes:
        """Read bytes written before. Raises `OSError`."""

    def empty(self) -> None:
        """Start again at the beginning: everything written has been read."""

    async def close(self) -> None:
        """Give the space back."""


class SpoolArea(Protocol):
    """The spool as a delivery sees it."""

    @property
    def enabled(self) -> bool:
        """False when switched off."""

    def open(self) -> SpoolFile:
        """Make an empty file."""


@attrs.frozen
class Count:
    """One event that the statistics count (requirements.md 3.3). Nothing of a patient or a study."""

    #: A key of `statistics.DEFINITIONS`.
    stat: str
    #: Struct_IdNat, empty when unknown.
    structure: str = ""
    #: Name of the site, empty when it is about none.
    site: str = ""
    #: Transfer syntax UID (STF09) or modality (STF10).
    part: str = ""
    #: How many, or how many bytes.
    amount: int = 1


class Statistics(Protocol):
    """Where the events are kept."""

    async def add(self, counts: Sequence[Count]) -> None:
        """Keep what happened at this instant."""


@attrs.frozen
class SpeedMeasure:
    """One run of the PACS test (DB.SO.102): what it measured, or why it did not."""

    site: str
    started_at: datetime
    #: STF21: seconds from the C-MOVE to the confirmation of the first image; None when it failed.
    latency: float | None
    #: STF20: seconds from the confirmation of the first image to that of the last; None when it failed.
    duration: float | None
    #: What arrived, also of a run that failed on the way.
    images: int = 0
    bytes: int = 0
    #: `E1004 - ...`; empty on success.
    error: str = ""


class SpeedMeasures(Protocol):
    """Where the measures of the PACS test are kept."""

    async def add(self, measure: SpeedMeasure) -> None:
        """Keep one run."""

    async def last(self, site: str) -> datetime | None:
        """Return when the last run of a site began, None when none is kept."""


@attrs.frozen
class CachedInstance:
    """One instance in the cache, as it came from the PACS: the data set in the syntax it was sent in."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    #: Bytes of the data set.
    size: int


class CacheDamaged(Exception):
    """What the disk gave back is not what was written to it. The entry is gone: the PACS has the images."""


class InstanceWriter(Protocol):
    """One instance on its way into the cache. Nothing here waits, fails, or slows the delivery."""

    def write(self, data: Buffer) -> None:
        """Take the next bytes of the data set, as they came from the PACS."""

    def end(self) -> None:
        """Say that the data set is whole."""

    def drop(self) -> None:
        """Forget the instance: refused, or cut short."""


class CacheWriter(Protocol):
    """One series on its way into the cache."""

    def add(self, sop_instance_uid: str, sop_class_uid: str, transfer_syntax_uid: str) -> InstanceWriter:
        """Begin an instance; several may be written at once."""

    async def commit(self, due: Collection[str]) -> bool:
        """Keep the series when it holds exactly `due`, each instance whole; say whether it is kept.

        Whatever the answer, the writer is over. Never raises for a disk that fails or is full.
        """

    async def discard(self) -> None:
        """Forget everything. Harmless after `commit` or another `discard`."""


class CachedSeries(Protocol):
    """A complete series of the cache, held open: it is read whole even if it is evicted meanwhile."""

    @property
    def instances(self) -> tuple[CachedInstance, ...]:
        """The instances, in the order in which the PACS began to send them."""

    def read(self, instance: CachedInstance) -> AsyncIterator[bytes]:
        """Yield the data set in blocks of at most 1 MiB, each checked before it is given out.

        Raises `CacheDamaged`, before the first block or after any.
        """

    async def close(self) -> None:
        """Let go of it. Harmless when repeated."""


class SeriesCache(Protocol):
    """Series kept on disk as the PACS sent them (DB.SO.40)."""

    async def find(
        self, site: str, study_uid: str, series_uid: str, due: Collection[str]
    ) -> CachedSeries | None:
        """Return the series when the cache holds exactly the instances `due`, else None.

        `due` is what the KOS of the request lists: an entry that lacks some is of no use, one that has
        more may hold what was since removed from the PACS. Both are dropped. Every check of the request
        is the caller's, before this. The caller must `close` what it gets.
        """

    def begin(self, site: str, study_uid: str, series_uid: str) -> CacheWriter | None:
        """Begin to keep a series; None when it is not worth trying (off, or being written already)."""

    async def purge(self, site: str, study_uid: str) -> None:
        """Remove every series of a study, those being written included.

        When this returns none of them is found any more; who reads one already reads it to its end.
        """
