"""An audit event as the XML of DICOM PS3.15 A.5, for an ATNA repository (DB.CS.96).

No namespace, UTF-8, elements in the order of the schema (interfaces.md 11.1). Values come from peers:
what XML cannot carry is replaced and line breaks become blanks, so no value can break the message or the
line of a syslog that transports it; details and queries are base64, as the schema wants.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

from lxml import etree

from drimbox.audit.messages import (
    PATIENT_NUMBER,
    REPORT_NUMBER,
    STORED_QUERY,
    STUDY,
    SUBMISSION_SET,
    UNKNOWN,
    URI,
)
from drimbox.audit.ontrail import PURGE
from drimbox.ports import AuditEvent, AuditObject, AuditParticipant
from drimbox.xml import Element, serialize

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BREAK = re.compile(r"[\t\n\r\x85\u2028\u2029]+")

#: CID 400 of PS3.16, the events we make.
_EVENTS = {
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110106": "Export",
    "110107": "Import",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
}
#: CID 402 of PS3.16, as requirements.md 3.8 prints them.
_ROLES = {"110150": "Application", "110152": "Destination Role ID", "110153": "Source Role ID"}
_ID_TYPES = {
    PATIENT_NUMBER: ("RFC-3881", "Patient Number"),
    REPORT_NUMBER: ("RFC-3881", "Report Number"),
    STUDY: ("DCM", "Study Instance UID"),
    URI: ("RFC-3881", "URI"),
    "110182": ("DCM", "Node ID"),
    PURGE: ("DRIMbox", "Dernier événement effacé"),
    STORED_QUERY: ("IHE Transactions", "Registry Stored Query"),
    SUBMISSION_SET: ("IHE XDS Metadata", "submission set classificationNode"),
}


def audit_source_id(system_id: str) -> str:
    """Return the AuditSourceID of the gateway with this registry number."""
    return f"drimbox-{system_id}"


def to_xml(event: AuditEvent, instant: datetime, source_id: str) -> bytes:
    """Write `event` as an AuditMessage; `instant` must carry a zone, `source_id` names this gateway."""
    root = etree.Element("AuditMessage")
    if instant.tzinfo is None:
        raise ValueError("an audit event needs an instant with its time zone")
    when = instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = _child(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=when,
        EventOutcomeIndicator=str(event.outcome),
    )
    _code(head, "EventID", event.event_id, "DCM", _EVENTS.get(event.event_id, event.event_id))
    _code(head, "EventTypeCode", *event.event_type)
    if event.outcome_description:
        _child(head, "EventOutcomeDescription").text = _clean(event.outcome_description)
    for participant in event.participants:
        _participant(root, participant)
    source = _child(root, "AuditSourceIdentification", AuditSourceID=source_id)
    # 4: application server process.
    _child(source, "AuditSourceTypeCode", **{"csd-code": "4"})
    for object_ in event.objects:
        _object(root, object_)
    return serialize(root)


def _participant(root: Element, participant: AuditParticipant) -> None:
    names = {"UserID": participant.user_id}
    if participant.alternative_user_id:
        names["AlternativeUserID"] = participant.alternative_user_id
    names["UserIsRequestor"] = "true" if participant.requestor else "false"
    if participant.network_id:
        names["NetworkAccessPointTypeCode"] = participant.network_type
        names["NetworkAccessPointID"] = participant.network_id
    element = _child(root, "ActiveParticipant", **names)
    if participant.role:
        text = _ROLES.get(participant.role, participant.role)
        _code(element, "RoleIDCode", participant.role, "DCM", text)


def _object(root: Element, object_: AuditObject) -> None:
    names = {
        # Mandatory: what has no name of its own says so.
        "ParticipantObjectID": object_.id or UNKNOWN,
        "ParticipantObjectTypeCode": object_.type,
        "ParticipantObjectTypeCodeRole": object_.role,
    }
    if object_.life_cycle:
        names["ParticipantObjectDataLifeCycle"] = object_.life_cycle
    element = _child(root, "ParticipantObjectIdentification", **names)
    system, text = _ID_TYPES.get(object_.id_type, (_system(object_.id_type), object_.id_type))
    _code(element, "ParticipantObjectIDTypeCode", object_.id_type, system, text)
    if object_.query:
        _child(element, "ParticipantObjectQuery").text = _encoded(object_.query)
    elif object_.name:
        _child(element, "ParticipantObjectName").text = _clean(object_.name)
    for kind, value in object_.details:
        _child(element, "ParticipantObjectDetail", type=kind, value=_encoded(value))


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode("utf-8", "replace")).decode("ascii")


def _system(id_type: str) -> str:
    """RFC 3881 numbers its own types with one or two digits; other numbers are DICOM's."""
    return "RFC-3881" if id_type.isdigit() and len(id_type) <= 2 else "DCM"


def _code(parent: Element, name: str, value: str, system: str, text: str) -> None:
    _child(parent, name, **{"csd-code": value, "codeSystemName": system, "originalText": text})


def _child(parent: Element, name: str, **attributes: str) -> Element:
    return etree.SubElement(parent, name, {key: _clean(value) for key, value in attributes.items()})


def _clean(value: str) -> str:
    return _BREAK.sub(" ", _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value))
