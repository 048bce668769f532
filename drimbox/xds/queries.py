"""The questions put to the DMP: TD0.2 existence test, TD3.1 GetDocuments (interfaces.md 4.10, 4.11)."""

from __future__ import annotations

from datetime import UTC, datetime

from lxml import etree

from drimbox.model import Patient
from drimbox.xds import ebrim
from drimbox.xds.sender import Sender
from drimbox.xml import Element, serialize

GET_DOCUMENTS = "urn:uuid:5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
HL7V3 = "urn:hl7-org:v3"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
#: The DMP as receiver of TD0.2.
DMP_DEVICE = "1.2.250.1.213.4.1.1.1"


def quoted(value: str) -> str:
    """Return a string of the stored-query grammar: in quotes, inner ones doubled (3.18.4.1.2.3.5)."""
    return "'" + value.replace("'", "''") + "'"


def get_documents(unique_id: str) -> bytes:
    """Return the GetDocuments query by uniqueId; whole entries wanted (hash, size, status, entryUUID)."""
    root = etree.Element(
        f"{{{ebrim.QUERY}}}AdhocQueryRequest", nsmap={"query": ebrim.QUERY, None: ebrim.RIM}
    )
    option = etree.SubElement(root, f"{{{ebrim.QUERY}}}ResponseOption")
    option.set("returnComposedObjects", "true")
    option.set("returnType", "LeafClass")
    query = etree.SubElement(root, ebrim.rim("AdhocQuery"), {"id": GET_DOCUMENTS})
    query.append(ebrim.slot("$XDSDocumentEntryUniqueId", [f"({quoted(unique_id)})"]))
    return serialize(root)


def existence_test(sender: Sender, patient: Patient, *, message: str, query: str, now: datetime) -> bytes:
    """Return the TD0.2 request: does this patient have a DMP, and may the structure use it.

    `message` and `query` are the extensions (UUID) of the message and query ids, `now` is aware.
    """
    oid = sender.appliance.oid
    root = etree.Element(
        f"{{{HL7V3}}}PRPA_IN201307UV02", {"ITSVersion": "XML_1.0"}, nsmap={None: HL7V3, "xsi": XSI}
    )
    _add(root, "id", root=f"{oid}.1", extension=message)
    _add(root, "creationTime", value=now.astimezone(UTC).strftime("%Y%m%d%H%M%S"))
    _add(root, "interactionId", root="2.16.840.1.113883.1.6", extension="PRPA_IN201307UV02")
    _add(root, "processingCode", code=sender.settings.processing_code)
    _add(root, "processingModeCode", code="T")
    _add(root, "acceptAckCode", code="AL")
    _device(_add(root, "receiver", typeCode="RCV"), DMP_DEVICE, "DMP")
    _device(_add(root, "sender", typeCode="SND"), oid, sender.appliance.name)
    _nil(root, "attentionLine")
    act = _add(root, "controlActProcess", classCode="CACT", moodCode="EVN")
    _add(
        act,
        "reasonCode",
        code="TEST_EXST",
        codeSystem="1.2.250.1.213.1.1.4.11",
        displayName="Test d'existence de dossier",
    )
    parameters = _add(act, "queryByParameter")
    _add(parameters, "queryId", root=f"{oid}.2", extension=query)
    _add(parameters, "statusCode", code="new")
    parameter_list = _add(parameters, "parameterList")
    _nil(parameter_list, "dataSource")
    identifier = _add(parameter_list, "patientIdentifier")
    _add(identifier, "value", root=patient.ins_oid, extension=patient.ins)
    _add(identifier, "semanticsText").text = "Patient.id"
    return serialize(root)


def _add(parent: Element, tag: str, **attributes: str) -> Element:
    values = {name: ebrim.printable(value) for name, value in attributes.items()}
    return etree.SubElement(parent, f"{{{HL7V3}}}{tag}", values)


def _nil(parent: Element, tag: str) -> None:
    etree.SubElement(parent, f"{{{HL7V3}}}{tag}", {f"{{{XSI}}}nil": "true"})


def _device(parent: Element, oid: str, name: str) -> None:
    device = _add(parent, "device", classCode="DEV", determinerCode="INSTANCE")
    _add(device, "id", root=oid)
    _add(device, "softwareName").text = ebrim.printable(name)
