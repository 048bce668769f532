"""What the audit trail says of reports that cannot be read: E005 (DB.SO.43, DB.SO.45).

One that is refused at the door, where the RIS learns it, leaves the same two records as one that turns out
so behind it: its reception, and that no KOS can be made of it.
"""

from __future__ import annotations

import attrs

from drimbox.audit import messages
from drimbox.config import Config
from drimbox.errors import DrimboxError, ReportNotInterpretable
from drimbox.hl7.refusal import UNKNOWN_RIS, Hl7Refused
from drimbox.model import ReportMessage
from drimbox.ports import AuditEvent, AuditTrail
from drimbox.source.structures import Structures


@attrs.define
class Seen:
    """What is known of a message as far as it could be read."""

    #: Name of the RIS it came from, and MSH-9.
    ris: str = UNKNOWN_RIS
    trigger: str = ""
    message: ReportMessage | None = None

    @property
    def reports(self) -> bool:
        """Say whether it is one that brings a report, from a RIS of ours."""
        return self.ris != UNKNOWN_RIS and self.trigger[:3] in ("ORU", "MDM")


class RefusedReports:
    """Audits reports that are refused at the door."""

    def __init__(self, config: Config, trail: AuditTrail) -> None:
        self._structures = Structures(config)
        self._trail = trail

    async def refused(self, seen: Seen, peer: str, refusal: Hl7Refused) -> None:
        """Record a refused message that came from the address `peer`. Raises what the trail raises."""
        error = ReportNotInterpretable(f"message refusé, {refusal}")
        event = messages.report_received(
            message=seen.message,
            report=None,
            trigger=seen.trigger,
            ris_address=peer,
            source_name=self._structures.source_name(messages.sender_structure(seen.message)),
            error=error,
        )
        await self._trail.record(event)
        await self._trail.record(unreadable(self._structures, seen.message, error))


def unreadable(
    structures: Structures, message: ReportMessage | None, error: DrimboxError, study_uid: str = ""
) -> AuditEvent:
    """Make the record that no KOS can be made of a report, whatever is known of the message around it."""
    sender = messages.sender_structure(message)
    return messages.report_unreadable(
        message=message,
        error=error,
        source_name=structures.source_name(sender),
        internal_id=structures.internal_id(sender),
        study_uid=study_uid,
    )
