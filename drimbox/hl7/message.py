"""Reading of messages: reports (ORU^R01 and MDM^T02, T04, T10, T11) and changes of studies (OMI^O23).

`read_message` says what a message wants and hands back the CDA, unread (interfaces.md 1.2 to 1.4, 1.6).
It refuses what interfaces.md 1.5 says is refused at reception, and nothing more: a report that lacks
values is taken (`AA`) and fails later, with E005, because conformity checking is not the gateway's job.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from drimbox.hl7.change import study_change
from drimbox.hl7.document import find_document, obx_location
from drimbox.hl7.fields import Message, Segment
from drimbox.hl7.refusal import Hl7Refused, contradiction
from drimbox.model import (
    INS_OIDS,
    Identifier,
    MessageAction,
    Organization,
    ReportMessage,
    StudyChange,
    Visibility,
)

#: Triggers taken and the action the event itself tells (an ORU tells none).
TRIGGERS: Final[dict[str, dict[str, MessageAction | None]]] = {
    "ORU": {"R01": None},
    "MDM": {
        "T02": MessageAction.NEW,
        "T10": MessageAction.REPLACE,
        "T04": MessageAction.DELETE,
        # Not used by CISIS3; cancels a document like T04 (interfaces.md 1.2).
        "T11": MessageAction.DELETE,
    },
    # About studies, not about a report.
    "OMI": {"O23": None},
}
_BY_STATUS: Final = {"F": MessageAction.NEW, "C": MessageAction.REPLACE, "D": MessageAction.DELETE}
_BY_ORDER: Final = {"NW": MessageAction.NEW, "RO": MessageAction.REPLACE, "CA": MessageAction.DELETE}

_TS: Final = re.compile(r"([0-9]{8}|[0-9]{12}|[0-9]{14})(?:\.([0-9]{1,6}))?([+-][0-9]{4})?")

#: Spellings of the flags this gateway reads (interfaces.md 1.4); all others are ignored.
_FLAGS: Final = {
    "MASQUE_PS": "MASQUE_PS",
    "INVISIBLE_PATIENT": "INVISIBLE_PATIENT",
    "INVISIBLE_REP_LEGAUX": "INVISIBLE_REP_LEGAUX",
    "INVISIBLE_REPRESENTANTS_LEGAUX": "INVISIBLE_REP_LEGAUX",
    "INVISIBLE_REPRENSANTS_LEGAUX": "INVISIBLE_REP_LEGAUX",
    "CONNEXION_SECRETE": "CONNEXION_SECRETE",
    "MODIF_CONF_CODE": "MODIF_CONF_CODE",
    "MODIF_CONFIDENTIALITYCODE": "MODIF_CONF_CODE",
    "DESTDMP": "DESTDMP",
}

_VERSION = re.compile(r"2(?:\.[0-9]{1,2}){1,2}\Z")
_OLDEST, _NEWEST = (2, 3, 1), (2, 6, 99)
#: MSH-10 is 20 characters in v2.5, 199 in v2.7; longer ones are no identifiers.
MAX_CONTROL_ID = 199


def read_message(
    raw: bytes, *, on_header: Callable[[Message], None] | None = None
) -> ReportMessage | StudyChange:
    """Read a message.

    `raw` is the message without its MLLP framing. `on_header`, when given, is called as soon as the MSH
    is readable, before anything is refused for its content (to recognise the sender); it may raise
    `Hl7Refused` itself. Raises `Hl7Refused`: AE 100 not HL7, 101 no control id, document or study, 102
    unreadable base64 or UID, 103 flag that is neither Y nor N, 200 and 201 message type, 202 processing
    id, 203 version, 207/906 contradiction, 198 too many of something (interfaces.md 1.5).
    """
    message = Message(raw)
    if on_header is not None:
        on_header(message)
    kind, event = _check_header(message)
    if kind == "OMI":
        return study_change(message, message.get(message.msh, 10))
    return _report_message(message, kind, event)


def read_report_message(raw: bytes) -> ReportMessage:
    """Read a message that must be a report's. Raises `Hl7Refused` as `read_message`, 200 for any other."""
    message = read_message(raw)
    if isinstance(message, StudyChange):
        raise Hl7Refused("AE", "200", "message de compte rendu (ORU ou MDM) attendu", "MSH^1^9^1^1")
    return message


def _report_message(message: Message, kind: str, event: str) -> ReportMessage:
    obx, document = find_document(message)
    flags = _flags(message)
    pid = message.first("PID")
    txa = message.first("TXA")
    return ReportMessage(
        control_id=message.get(message.msh, 10),
        trigger=f"{kind}^{event}",
        sending_application=message.get(message.msh, 3),
        sending_facility=message.get(message.msh, 4),
        action=_action(message, TRIGGERS[kind][event], obx),
        ipp=_ipp(message, pid),
        ins_qualified=_qualified(message, pid),
        visibility=Visibility(
            masked_to_professionals=flags.get("MASQUE_PS", False),
            hidden_from_patient=flags.get("INVISIBLE_PATIENT", False),
            hidden_from_representatives=flags.get("INVISIBLE_REP_LEGAUX", False),
        ),
        to_dmp=flags.get("DESTDMP"),
        secret_connection=flags.get("CONNEXION_SECRETE", False),
        visibility_change_only=flags.get("MODIF_CONF_CODE", False),
        patient_class=message.get(message.first("PV1"), 2),
        prt_structure=_sender_structure(message, obx),
        document=document,
        ins=_ins(message, pid),
        announced_id=_document_id(message, txa, 12),
        announced_parent=_document_id(message, txa, 13),
        sent_at=_instant(message.get(message.msh, 7)),
    )


def _instant(value: str) -> datetime | None:
    """Return the instant of an HL7 TS (`YYYYMMDDHHMM[SS[.s]][+ZZZZ]`), None for anything else.

    Without a zone it is in ours: the RIS stands beside us.
    """
    found = _TS.fullmatch(value)
    if found is None:
        return None
    digits, fraction, zone = found.groups(default="")
    text = digits.ljust(14, "0")
    try:
        if zone:
            # In UTC at once: year 1 at +1400 names no instant that can be stored.
            moment = datetime.strptime(text + zone, "%Y%m%d%H%M%S%z").astimezone(UTC)
        else:
            moment = datetime.strptime(text, "%Y%m%d%H%M%S").astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.replace(microsecond=int(fraction.ljust(6, "0")))


def _check_header(message: Message) -> tuple[str, str]:
    msh = message.msh
    control_id = message.get(msh, 10)
    if not control_id:
        raise Hl7Refused("AE", "101", "identifiant du message absent", "MSH^1^10")
    if len(control_id) > MAX_CONTROL_ID:
        raise Hl7Refused(
            "AE", "102", f"identifiant de message de plus de {MAX_CONTROL_ID} caractères", "MSH^1^10"
        )
    kind, event = message.get(msh, 9, 1), message.get(msh, 9, 2)
    if kind not in TRIGGERS:
        raise Hl7Refused("AE", "200", "type de message non pris en charge", "MSH^1^9^1^1")
    if event not in TRIGGERS[kind]:
        raise Hl7Refused("AE", "201", "événement non pris en charge", "MSH^1^9^1^2")
    if message.get(msh, 11) not in ("P", "T", "D", ""):
        raise Hl7Refused("AE", "202", "mode de traitement inconnu (P, T ou D attendu)", "MSH^1^11")
    version = message.get(msh, 12)
    if version and not (_VERSION.match(version) and _OLDEST <= _numbers(version) <= _NEWEST):
        raise Hl7Refused("AE", "203", "version HL7 non prise en charge (2.3.1 à 2.6)", "MSH^1^12")
    return kind, event


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _action(message: Message, by_event: MessageAction | None, obx: Segment) -> MessageAction:
    """Decide by event, else OBX-11, else ORC-1; refuse two that contradict (interfaces.md 1.2)."""
    status = message.get(obx, 11)
    orc = _order_of(message, obx)
    order = message.get(orc, 1)
    told = [
        action for action in (by_event, _BY_STATUS.get(status), _BY_ORDER.get(order)) if action is not None
    ]
    if len(set(told)) > 1:
        raise contradiction(
            "l'événement, ORC-1 et OBX-11 ne demandent pas la même action", obx_location(message, obx, 11)
        )
    if told:
        return told[0]
    if status:
        # Preliminary, withdrawn, ... : not an approved report, and nothing else tells what to do.
        raise Hl7Refused("AE", "103", "OBX-11 doit valoir F, C ou D", obx_location(message, obx, 11))
    return MessageAction.NEW


def _order_of(message: Message, obx: Segment) -> Segment | None:
    """Return the ORC of the group the document is in: the last one before it."""
    found = None
    for segment in message.segments:
        if segment is obx:
            break
        if segment.name == "ORC":
            found = segment
    return found


def _flags(message: Message) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    for obx in message.named("OBX"):
        name = _FLAGS.get(message.get(obx, 3).upper())
        if name is None:
            continue
        value = message.get(obx, 5).upper()
        if not value:
            continue
        if value not in ("Y", "N"):
            # Taking an unknown value for "N" could publish what the RIS wants hidden.
            raise Hl7Refused("AE", "103", f"{name} doit valoir Y ou N", obx_location(message, obx, 5))
        if flags.setdefault(name, value == "Y") != (value == "Y"):
            raise contradiction(f"{name} vaut à la fois Y et N", obx_location(message, obx, 5))
    return flags


def _ipp(message: Message, pid: Segment | None) -> Identifier | None:
    found = None
    for repetition in message.repetitions(pid, 3):
        value = repetition.get(1)
        if repetition.get(5) != "PI" or not value:
            continue
        identifier = Identifier(value, repetition.get(4, 2))
        if identifier.authority:
            return identifier
        found = found or identifier
    return found


def _ins(message: Message, pid: Segment | None) -> Identifier | None:
    """Return the INS of PID-3: type `INS`, or an authority of the INS domains (interfaces.md 1.3)."""
    for repetition in message.repetitions(pid, 3):
        value, authority = repetition.get(1), repetition.get(4, 2)
        if value and (repetition.get(5) == "INS" or authority in INS_OIDS):
            return Identifier(value, authority)
    return None


def _qualified(message: Message, pid: Segment | None) -> bool:
    codes = [code for repetition in message.repetitions(pid, 32) if (code := repetition.get(1))]
    return not codes or "VALI" in codes


def _sender_structure(message: Message, obx: Segment) -> Organization | None:
    """Return PRT-8.10 of the `SB` participation, first those after the document (interfaces.md 1.3)."""
    rank = message.segments.index(obx)
    for prt in (*message.segments[rank:], *message.segments[:rank]):
        if prt.name == "PRT" and message.get(prt, 4) == "SB":
            identifier = message.get(prt, 8, 10)
            if identifier:
                return Organization(identifier, message.get(prt, 8, 1))
    return None


def _document_id(message: Message, txa: Segment | None, field: int) -> str:
    """Return TXA-12 or 13 as our document ids are written: `root`, or `root^extension`."""
    first, root = message.get(txa, field, 1), message.get(txa, field, 3)
    return f"{root}^{first}" if root and first else first
