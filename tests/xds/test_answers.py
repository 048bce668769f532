"""Reading the DMP's answers: every form it may take, and every form it must not."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.xds import codes, queries, soap
from drimbox.xds.answers import (
    NotUnderstood,
    read_entries,
    read_existence,
    read_fault,
    read_registry_answer,
    read_reply,
)
from drimbox.xds.ebrim import QUERY, RIM, RS
from drimbox.xml import safe_parse
from tests.xds.builders import REPORT, make_sender, samples

LIMIT = 1 << 20
SOAP_TYPE = "application/soap+xml; charset=UTF-8"


def envelope(content: str, header: str = "", ns: str = soap.SOAP) -> bytes:
    text = (
        f'<s:Envelope xmlns:s="{ns}"><s:Header>{header}</s:Header><s:Body>{content}</s:Body></s:Envelope>'
    )
    return text.encode()


def content(text: str) -> object:
    return read_reply(SOAP_TYPE, envelope(text), max_bytes=LIMIT).content


def entry(
    unique_id: str = "2.25.1", status: str = codes.APPROVED, size: str = "10", uuid: str = "urn:uuid:e1"
) -> str:
    return (
        f'<ExtrinsicObject xmlns="{RIM}" id="{uuid}" status="{status}">'
        f'<Slot name="size"><ValueList><Value> {size} </Value></ValueList></Slot>'
        f'<Slot name="hash"><ValueList><Value>ABCDEF</Value></ValueList></Slot>'
        f'<ExternalIdentifier identificationScheme="{codes.ENTRY_UNIQUE_ID}" value="{unique_id}"/>'
        "</ExtrinsicObject>"
    )


def test_the_published_answer_is_read() -> None:
    path = samples() / "XDS/response.xml"
    if not path.exists():
        pytest.skip("published samples not present (DRIMBOX_SAMPLES)")
    # The published file lost the line breaks around its MIME headers: they are put back.
    text = re.sub(rb"(?<!^)(Content-(?:Type|Transfer-Encoding|ID):)", rb"\r\n\1", path.read_bytes().strip())
    text = re.sub(rb"(<root\.message@cxf\.apache\.org>)", rb"\1\r\n", text)
    text = text.replace(b"</soap:Envelope>--", b"</soap:Envelope>\r\n--")
    content_type = (
        'multipart/related; type="application/xop+xml"; '
        'boundary="uuid:ac95cc6e-f93f-413d-950c-4bf9dc273d8a"; '
        'start="<root.message@cxf.apache.org>"; start-info="application/soap+xml"'
    )
    reply = read_reply(content_type, text, max_bytes=LIMIT)
    assert read_registry_answer(reply.content).status == "Success"
    assert reply.relates_to == "urn:uuid:a6ba8f7f-b214-4a2d-96f1-54293d537ce3"
    assert reply.package is not None


@pytest.mark.parametrize("ns", [soap.SOAP, soap.SOAP11])
@pytest.mark.parametrize("content_type", [SOAP_TYPE, "text/xml", "", "application/octet-stream"])
def test_a_plain_answer_is_read(content_type: str, ns: str) -> None:
    status = "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Success"
    success = f'<r:RegistryResponse xmlns:r="{RS}" status="{status}"/>'
    relates = f'<a:RelatesTo xmlns:a="{soap.WSA}"> urn:uuid:1 </a:RelatesTo>'
    data = (
        b"\xef\xbb\xbf" + envelope(success, relates, ns)
        if content_type == "text/xml"
        else envelope(success, relates, ns)
    )
    reply = read_reply(content_type, data, max_bytes=LIMIT)
    assert read_registry_answer(reply.content).status == "Success"
    assert reply.relates_to == "urn:uuid:1"


def test_registry_errors_are_read_with_their_severity() -> None:
    answer = read_registry_answer(
        content(
            f'<r:RegistryResponse xmlns:r="{RS}" status="urn:x:ResponseStatusType:Failure">'
            '<r:RegistryErrorList><r:RegistryError errorCode="XDSRegistryBusy" codeContext="ctx" '
            'location="L" severity="urn:x:ErrorSeverityType:Warning"/>'
            "<r:RegistryError errorCode=' urn:ihe:XDSRepositoryError '>text</r:RegistryError>"
            "</r:RegistryErrorList></r:RegistryResponse>"
        )
    )
    assert answer.status == "Failure"
    first, second = answer.errors
    assert (first.code, first.context, first.location, first.severity) == (
        "XDSRegistryBusy",
        "ctx",
        "L",
        "Warning",
    )
    assert (second.code, second.context, second.severity) == ("XDSRepositoryError", "text", "Error")


@pytest.mark.parametrize("status", ["", "urn:x:ResponseStatusType:Perhaps", "success"])
def test_an_unknown_status_is_not_understood(status: str) -> None:
    with pytest.raises(NotUnderstood):
        read_registry_answer(content(f'<r:RegistryResponse xmlns:r="{RS}" status="{status}"/>'))


def test_entries_are_read() -> None:
    found = read_entries(
        content(
            f'<q:AdhocQueryResponse xmlns:q="{QUERY}" status="urn:x:Success"><l xmlns="{RIM}">'
            + entry()
            + entry("2.25.2", codes.DEPRECATED, size="NaN", uuid="urn:uuid:e2")
            + f'<ExtrinsicObject xmlns="{RIM}" id="urn:uuid:e3"/></l></q:AdhocQueryResponse>'
        )
    )
    assert [(e.entry_uuid, e.unique_id, e.hash, e.size, e.status) for e in found] == [
        ("urn:uuid:e1", "2.25.1", "abcdef", 10, codes.APPROVED),
        ("urn:uuid:e2", "2.25.2", "abcdef", 0, codes.DEPRECATED),
    ]


def test_soap_12_fault() -> None:
    fault = read_fault(
        content(
            "<s:Fault><s:Code><s:Value>s:Sender</s:Value>"
            '<s:Subcode><s:Value xmlns:w="urn:w">w:FailedAuthentication</s:Value></s:Subcode></s:Code>'
            '<s:Reason><s:Text xml:lang="fr">VIHF invalide</s:Text></s:Reason>'
            "<s:Detail><x>plus</x></s:Detail></s:Fault>"
        )
    )
    assert fault is not None
    assert fault.codes == ("Sender", "FailedAuthentication")
    assert (fault.reason, fault.detail) == ("VIHF invalide", "plus")


def test_soap_11_fault() -> None:
    data = envelope(
        "<s:Fault><faultcode>s:Server</faultcode><faultstring>busy</faultstring><detail>d</detail></s:Fault>",
        ns=soap.SOAP11,
    )
    fault = read_fault(read_reply("text/xml", data, max_bytes=LIMIT).content)
    assert fault is not None
    assert (fault.codes, fault.reason, fault.detail) == (("Server",), "busy", "d")


def existence(inner: str) -> object:
    return content(f'<PRPA_IN201308UV02 xmlns="{queries.HL7V3}">{inner}</PRPA_IN201308UV02>')


def test_the_existence_answer_is_read_by_name() -> None:
    found = read_existence(
        existence(
            '<acknowledgement><typeCode code="AA"/><acknowledgementDetail><code code="INT"/><text>t</text>'
            "</acknowledgementDetail></acknowledgement><wrapped><subject1><patient>"
            '<statusCode code="active"/><value code="AVANT"/>'
            '<o><code code="AUTORISATION"/><deep><value code="VALIDE"/></deep></o>'
            '</patient></subject1></wrapped><queryAck><queryResponseCode code="OK"/></queryAck>'
        )
    )
    assert (found.acknowledgement, found.query_response) == ("AA", "OK")
    assert (found.authorization, found.patient_status, found.detail) == ("VALIDE", "active", "INT t")


def test_an_existence_answer_that_says_nothing_is_empty() -> None:
    found = read_existence(existence(""))
    assert (found.query_response, found.authorization, found.patient_status) == ("", "", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>maintenance</body></html>",
        b"not xml",
        b"<a>",
        envelope(""),
        envelope("<a/><b/>"),
        f'<s:Envelope xmlns:s="{soap.SOAP}"/>'.encode(),
        b"--B\r\n\r\n<x/>",
    ],
)
def test_what_is_not_understood(data: bytes) -> None:
    with pytest.raises(NotUnderstood):
        read_reply("", data, max_bytes=LIMIT)


@pytest.mark.threat("XXE, billion laughs, DTD")
@pytest.mark.parametrize("wrap", [False, True])
def test_a_doctype_is_refused(wrap: bool) -> None:
    attack = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + envelope("<x>&e;</x>")
    if wrap:
        attack = b"--B\r\n\r\n" + attack + b"\r\n--B--"
    with pytest.raises(NotUnderstood) as caught:
        read_reply("multipart/related; boundary=B" if wrap else "", attack, max_bytes=LIMIT)
    assert "passwd" not in str(caught.value)


@pytest.mark.threat("XXE, billion laughs, DTD")
def test_depth_and_size_are_bounded() -> None:
    with pytest.raises(NotUnderstood):
        read_reply("", envelope("<a>" * 100 + "</a>" * 100), max_bytes=LIMIT)
    with pytest.raises(NotUnderstood):
        read_reply("", envelope("<a>" + "x" * 100 + "</a>"), max_bytes=100)


@given(st.binary(max_size=200))
def test_garbage_is_not_understood_never_worse(data: bytes) -> None:
    with pytest.raises(NotUnderstood):
        read_reply("application/soap+xml", data, max_bytes=LIMIT)


def test_the_stored_query(structure: object) -> None:
    root = safe_parse(queries.get_documents("2.25.1"))
    assert root[0].get("returnType") == "LeafClass"
    assert root[1].get("id") == "urn:uuid:5c4f972b-d56b-40ac-a5fc-c8ca9b40b9d4"
    assert root[1][0].get("name") == "$XDSDocumentEntryUniqueId"
    assert "".join(root[1].itertext()) == "('2.25.1')"


@pytest.mark.threat("markup and query injection in what we send")
def test_a_quote_in_a_query_value_is_doubled() -> None:
    assert queries.quoted("1')or('2") == "'1'')or(''2'"


def test_the_existence_test_names_patient_and_sender() -> None:
    sender = make_sender(None, processing_code="D")  # type: ignore[arg-type]
    data = queries.existence_test(
        sender, REPORT.patient, message="m1", query="q1", now=datetime(2026, 1, 2, tzinfo=UTC)
    )
    root = safe_parse(data)
    ns = {"h": queries.HL7V3}
    assert root.tag == f"{{{queries.HL7V3}}}PRPA_IN201307UV02"
    assert root.find("h:id", ns).attrib == {"root": "2.999.30.1", "extension": "m1"}
    assert root.find("h:creationTime", ns).get("value") == "20260102000000"
    assert root.find("h:processingCode", ns).get("code") == "D"
    assert root.find("h:sender/h:device/h:id", ns).get("root") == "2.999.30"
    assert root.find(".//h:queryId", ns).attrib == {"root": "2.999.30.2", "extension": "q1"}
    assert root.find(".//h:reasonCode", ns).get("code") == "TEST_EXST"
    patient = root.find(".//h:patientIdentifier/h:value", ns)
    assert patient.attrib == {"root": "1.2.250.1.213.1.4.10", "extension": "284070100499094"}
