"""TD0.2, the existence test: HL7 v3 PRPA_IN201307UV02 in, PRPA_IN201308UV02 out (interfaces.md 4.10)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from drimbox.sim.dmp_soap import SoapFault, attribute
from drimbox.sim.dmp_vihf import Vihf
from drimbox.xml import Element

HL7 = "urn:hl7-org:v3"
DMP_OID = "1.2.250.1.213.4.1.1.1"
_INS_OID = re.compile(r"1\.2\.250\.1\.213\.1\.4\.(8|9|10|11)", re.ASCII)


@attrs.frozen
class PatientRecord:
    """One patient's DMP: VALIDE, INEXISTANTE, INTERDIT or EXPIRE, and whether it is open."""

    authorization: str = "VALIDE"
    open: bool = True


def _h(name: str) -> str:
    return f"{{{HL7}}}{name}"


def answer_existence(
    request: Element, vihf: Vihf, patients: Mapping[str, PatientRecord] | None, now: datetime
) -> str:
    """Return the answer body; `patients` is by INS, None when every patient has an open DMP.

    Raises `SoapFault` for a request that is not a well-formed existence test of the VIHF's patient.
    """

    def due(condition: object, text: str) -> None:
        if not condition:
            raise SoapFault("soap:Sender", f"TD0.2: {text}")

    due(request.tag == _h("PRPA_IN201307UV02"), "PRPA_IN201307UV02 is due")
    due(request.get("ITSVersion") == "XML_1.0", "ITSVersion XML_1.0 is due")
    message_id = request.find(_h("id"))
    due(message_id is not None and message_id.get("root") and message_id.get("extension"), "id is due")
    created = request.find(_h("creationTime"))
    due(created is not None and re.match(r"\d{14}", created.get("value", "")), "creationTime is due")
    interaction = request.find(_h("interactionId"))
    due(
        interaction is not None
        and interaction.get("root") == "2.16.840.1.113883.1.6"
        and interaction.get("extension") == "PRPA_IN201307UV02",
        "interactionId is due",
    )
    processing = request.find(_h("processingCode"))
    due(processing is not None and processing.get("code") in ("D", "P", "T"), "processingCode is due")
    receiver = request.find(f"{_h('receiver')}/{_h('device')}/{_h('id')}")
    due(receiver is not None and receiver.get("root") == DMP_OID, "receiver is not the DMP")
    sender = request.find(f"{_h('sender')}/{_h('device')}/{_h('id')}")
    due(sender is not None and sender.get("root"), "sender is due")
    act = request.find(_h("controlActProcess"))
    due(act is not None and act.get("moodCode") == "EVN", "controlActProcess is due")
    reason = act.find(_h("reasonCode"))
    due(reason is not None and reason.get("code") == "TEST_EXST", "reasonCode TEST_EXST is due")
    query = act.find(f"{_h('queryByParameter')}/{_h('queryId')}")
    due(query is not None and query.get("root"), "queryId is due")
    values = act.findall(f".//{_h('patientIdentifier')}/{_h('value')}")
    due(len(values) == 1, "one patientIdentifier is due")
    root, extension = values[0].get("root", ""), values[0].get("extension", "")
    due(_INS_OID.fullmatch(root), "patientIdentifier is of no INS domain")
    if f"{extension}^^^&{root}&ISO^NH" != vihf.patient:
        raise SoapFault("wsse:FailedAuthentication", "TD0.2: another patient than the VIHF's")
    record = PatientRecord() if patients is None else patients.get(extension)
    return _write(message_id, query, root, extension, record, now)


def _write(
    message_id: Element,
    query: Element,
    root: str,
    extension: str,
    record: PatientRecord | None,
    now: datetime,
) -> str:
    def ids(element: Element) -> str:
        root, extension = attribute(element.get("root", "")), attribute(element.get("extension", ""))
        return f'root="{root}" extension="{extension}"'

    subject = ""
    if record is not None:
        state = "active" if record.open else "terminated"
        subject = (
            '<subject typeCode="SUBJ"><registrationEvent classCode="REG" moodCode="EVN">'
            '<statusCode code="active"/><subject1 typeCode="SBJ"><patient classCode="PAT">'
            f'<id root="{attribute(root)}" extension="{attribute(extension)}"/><statusCode code="{state}"/>'
            '<subjectOf><administrativeObservation><code code="AUTORISATION"/>'
            f'<value xsi:type="CD" code="{attribute(record.authorization)}"/>'
            "</administrativeObservation></subjectOf></patient></subject1></registrationEvent></subject>"
        )
    return (
        f'<PRPA_IN201308UV02 xmlns="{HL7}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'ITSVersion="XML_1.0"><id root="{DMP_OID}" extension="{uuid.uuid4()}"/>'
        f'<creationTime value="{now.astimezone(UTC):%Y%m%d%H%M%S}"/>'
        '<interactionId root="2.16.840.1.113883.1.6" extension="PRPA_IN201308UV02"/>'
        '<processingCode code="D"/><processingModeCode code="T"/><acceptAckCode code="NE"/>'
        '<acknowledgement><typeCode code="AA"/>'
        f"<targetMessage><id {ids(message_id)}/></targetMessage></acknowledgement>"
        f'<controlActProcess classCode="CACT" moodCode="EVN">{subject}'
        f'<queryAck><queryId {ids(query)}/><queryResponseCode code="{"NF" if record is None else "OK"}"/>'
        "</queryAck></controlActProcess></PRPA_IN201308UV02>"
    )
