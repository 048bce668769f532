"""Events of the audit trail as an operator gets them: lines for the eye, rows of CSV, XML (ATNA)."""

from __future__ import annotations

from datetime import datetime

from drimbox.audit.atna import to_xml
from drimbox.audit.messages import MAJOR, MINOR, SERIOUS, SUCCESS
from drimbox.ports import AuditEvent
from drimbox.redaction import escape_control

_WORDS = {SUCCESS: "succès", MINOR: "échec mineur", SERIOUS: "échec grave", MAJOR: "échec majeur"}
CSV_HEADS = (
    "numero",
    "instant",
    "evenement",
    "type",
    "libelle",
    "action",
    "resultat",
    "description",
    "ins",
    "examens",
    "participants",
    "objets",
    "empreinte",
)


#: What surrounds the messages of one document.
XML_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<AuditMessages>'
XML_TAIL = "</AuditMessages>"


def text_line(number: int, instant: datetime, event: AuditEvent) -> str:
    """Return an event as one line for the eye, in the time of this machine."""
    parts = [
        str(number),
        f"{instant.astimezone():%Y-%m-%d %H:%M:%S}",
        _WORDS.get(event.outcome, str(event.outcome)),
        f"{event.event_type[0]} {event.event_type[2]}",
        *(participant.user_id for participant in event.participants),
    ]
    if event.patient_ins:
        parts.append(f"INS {event.patient_ins}")
    if event.study_uid:
        parts.append(f"examen {event.study_uid}")
    parts += [value for one in event.objects for kind, value in one.details if kind.startswith("Alert")]
    if event.outcome_description:
        parts.append(event.outcome_description)
    return escape_control("  ".join(parts))


def csv_row(number: int, instant: datetime, event: AuditEvent, link: str) -> tuple[str, ...]:
    """Return an event as a row under `CSV_HEADS`; `link` is its hash."""
    participants = (
        f"{one.user_id} [{one.alternative_user_id}] @ {one.network_id}" for one in event.participants
    )
    objects = (
        f"{one.id_type}={one.id}" + "".join(f" {kind}={value}" for kind, value in one.details)
        for one in event.objects
    )
    values = (
        str(number),
        instant.astimezone().isoformat(timespec="milliseconds"),
        event.event_id,
        event.event_type[0],
        event.event_type[2],
        event.action,
        str(event.outcome),
        event.outcome_description,
        event.patient_ins,
        event.study_uid,
        " | ".join(participants),
        " | ".join(objects),
        link,
    )
    return tuple(_cell(value) for value in values)


def xml_lines(number: int, instant: datetime, event: AuditEvent, link: str, source_id: str) -> str:
    """Return an event as its ATNA message, with number and hash in a comment before it."""
    return f"<!-- {number} {link} -->\n{to_xml(event, instant, source_id).decode()}"


def _cell(value: str) -> str:
    """Keep a spreadsheet from taking a peer's words for a formula."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value
