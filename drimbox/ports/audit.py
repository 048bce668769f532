"""The audit trail: what an event says, where it is kept, and how it is sent on (requirements.md 3.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import attrs

from drimbox.ports.figures import Count


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
    #: ParticipantObjectQuery, in clear, for a question; it has no name then.
    query: str = ""


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


class AuditTrail(Protocol):
    """The append-only audit trail (DB.CS.06)."""

    async def record(self, event: AuditEvent) -> None:
        """Commit one event."""


class OpenRecords(Protocol):
    """The audit records of deliveries under way, which no stop of the process may lose."""

    async def begin(self, key: str, event: AuditEvent, counts: Sequence[Count]) -> None:
        """Commit what is to be recorded and counted if `end` is never called; `key` is new.

        Whatever it raises, nothing may be delivered then.
        """

    async def end(self, key: str, event: AuditEvent, counts: Sequence[Count], *, begun: bool) -> None:
        """Record and count the end of a delivery in the place of what it had begun with.

        With `begun` it raises nothing: what cannot be written now is written later.
        """


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
