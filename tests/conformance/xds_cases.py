"""For each rule of the DMP validator, what to do to a good publication so that it is broken."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Callable
from typing import Any

import attrs
from cryptography.hazmat.primitives import serialization
from lxml import etree

from tests.conformance.cross_inputs import edited
from tests.conformance.xds_inputs import NS, RIM, Edit, Pieces, make_removal

Spoil = Callable[[Pieces], None]
KOS = "//r:ExtrinsicObject[@id='DocumentKOS']"
SIGNATURE = "//r:ExtrinsicObject[@id='Signature01']"
SET = "//r:RegistryPackage"
#: Schemes of classifications, by the attribute they hold.
AUTHOR = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
EVENTS = "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4"
CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
CLASS_CODE = "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a"
PATIENT = "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427"
REFERENCES = "urn:ihe:iti:xds:2013:referenceIdList"


def edits(piece: str, path: str, change: Edit) -> Spoil:
    """Change the first element that a path finds in a piece."""

    def spoil(pieces: Pieces) -> None:
        pieces.edit(piece, lambda root: change(root.xpath(path, namespaces=NS)[0]))

    return spoil


def metadata(path: str, change: Edit) -> Spoil:
    return edits("metadata", path, change)


def text_in(piece: str, old: bytes, new: bytes) -> Spoil:
    """Replace bytes, which must be there, in a piece."""

    def spoil(pieces: Pieces) -> None:
        data = getattr(pieces, piece)
        assert old in data
        setattr(pieces, piece, data.replace(old, new, 1))

    return spoil


def in_envelope(path: str, change: Edit) -> Spoil:
    return lambda pieces: pieces.envelope_edits.append(
        lambda root: change(root.xpath(path, namespaces=NS)[0])
    )


def in_bytes(pattern: bytes, new: bytes) -> Spoil:
    """Replace what a pattern finds first in the capture."""

    def edit(data: bytes) -> bytes:
        assert re.search(pattern, data) is not None
        return re.sub(pattern, new, data, count=1)

    return lambda pieces: pieces.byte_edits.append(edit)


def in_kos(change: Edit) -> Spoil:
    def spoil(pieces: Pieces) -> None:
        pieces.kos = edited(pieces.kos, change)

    return spoil


def both(*spoilers: Spoil) -> Spoil:
    def spoil(pieces: Pieces) -> None:
        for each in spoilers:
            each(pieces)

    return spoil


def removes(element: Any) -> None:
    element.getparent().remove(element)


def doubles(element: Any) -> None:
    element.addnext(copy.deepcopy(element))


def puts(name: str, value: str) -> Edit:
    return lambda element: element.set(name, value)


def says(value: str) -> Edit:
    def change(element: Any) -> None:
        element.text = value

    return change


def without(name: str) -> Edit:
    def change(element: Any) -> None:
        del element.attrib[name]

    return change


def value_of(owner: str, slot: str) -> str:
    return f"{owner}/r:Slot[@name='{slot}']/r:ValueList/r:Value"


def code_of(owner: str, scheme: str) -> str:
    return f"{owner}/r:Classification[@classificationScheme='{scheme}']"


def add_slot(name: str, value: str) -> Edit:
    def change(element: Any) -> None:
        slot = etree.Element(f"{{{RIM}}}Slot", name=name)
        etree.SubElement(etree.SubElement(slot, f"{{{RIM}}}ValueList"), f"{{{RIM}}}Value").text = value
        element.insert(0, slot)

    return change


def update(spoil: Spoil | None = None) -> Spoil:
    """Turn the publication into a TD3.3c first."""

    def run(pieces: Pieces) -> None:
        removal = make_removal(pieces)
        pieces.metadata, pieces.action = removal.metadata, removal.action
        if spoil is not None:
            spoil(pieces)

    return run


def lines(pieces: Pieces) -> None:
    pieces.byte_edits.append(lambda data: data.replace(b"\r\n--", b"\n--"))


def part_encoding(name: bytes, encode: bool) -> Spoil:
    """Announce the KOS part in another transfer encoding, and encode it or not."""

    def spoil(pieces: Pieces) -> None:
        def edit(data: bytes) -> bytes:
            kos = pieces.kos
            start = data.index(kos)
            head = data[:start]
            at = head.rindex(b"binary")
            head = head[:at] + name + head[at + 6 :]
            return head + (base64.encodebytes(kos) if encode else kos) + data[start + len(kos) :]

        pieces.byte_edits.append(edit)

    return spoil


def many_parts(pieces: Pieces) -> None:
    def edit(data: bytes) -> bytes:
        boundary = re.search(rb'boundary="([^"]+)"', data)
        assert boundary is not None
        part = b"--" + boundary[1] + b"\r\nContent-ID: <%d>\r\n\r\nx\r\n"
        end = data.rindex(b"--" + boundary[1] + b"--")
        return data[:end] + b"".join(part % number for number in range(70)) + data[end:]

    pieces.byte_edits.append(edit)


def chunked(pieces: Pieces) -> None:
    pieces.byte_edits.append(
        lambda data: re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", data)
    )


def body_only(body: bytes) -> Spoil:
    return lambda pieces: pieces.byte_edits.append(lambda data: data[: data.index(b"\r\n\r\n") + 4] + body)


def second_signature_id(root: Any) -> None:
    root.find(".//ds:Manifest", NS).set("Id", "S0-SignedProperties")


def moved_issuer(root: Any) -> None:
    signature = root.find("ds:Signature", NS)
    root.append(signature)


def two_references(root: Any) -> None:
    doubles(root.find("ds:Signature/ds:SignedInfo/ds:Reference", NS))


#: Set by the tests: certificates by use.
CERTIFICATES: dict[str, Any] = {}


def certificate(piece: str, name: str) -> Spoil:
    """Put another certificate into a signature."""

    def spoil(pieces: Pieces) -> None:
        der = CERTIFICATES[name].public_bytes(serialization.Encoding.DER)
        text = base64.b64encode(der).decode()
        pieces.edit(piece, lambda root: says(text)(root.find(".//ds:X509Certificate", NS)))

    return spoil


def attribute(name: str) -> str:
    return f"//saml:Attribute[@Name='{name}']"


def sha1_in(piece: str) -> Spoil:
    return text_in(
        piece, b"http://www.w3.org/2001/04/xmlenc#sha256", b"http://www.w3.org/2000/09/xmldsig#sha1"
    )


def two_kos(root: Any) -> None:
    entry = root.xpath(KOS, namespaces=NS)[0]
    other = copy.deepcopy(entry)
    other.set("id", "Other")
    entry.addnext(other)


PACKAGING: dict[str, Spoil] = {
    "packaging.size": lambda pieces: None,
    "packaging.xml": text_in("metadata", b"</lcm:SubmitObjectsRequest>", b""),
    "packaging.http.response": in_bytes(rb"\APOST [^\r]*", b"HTTP/1.1 200 OK"),
    "packaging.http.method": in_bytes(rb"\APOST", b"GET"),
    "packaging.http.head": lambda pieces: pieces.byte_edits.append(lambda data: data[:200]),
    "packaging.http.content_type": in_bytes(rb"Content-Type: multipart[^\r]*\r\n", b""),
    "packaging.http.soap_type": update(in_bytes(rb"application/soap\+xml", b"text/xml")),
    "packaging.http.length": in_bytes(rb"Content-Length: \d+", b"Content-Length: 7"),
    "packaging.http.chunks": chunked,
    "packaging.mime.type": in_bytes(rb"multipart/related", b"multipart/mixed"),
    "packaging.mime.parameter": in_bytes(rb'start-info="[^"]*"', b'start-info="text/xml"'),
    "packaging.mime.boundary": in_bytes(rb'boundary="[^"]*"; ', b""),
    "packaging.mime.line_ends": lines,
    "packaging.mime.indented": in_bytes(rb"\r\n--DRIM", b"\r\n  --DRIM"),
    "packaging.mime.unclosed": in_bytes(rb"--\r\n\Z", b"\r\n"),
    "packaging.mime.empty": body_only(b"<a/>"),
    "packaging.mime.many": many_parts,
    "packaging.mime.part_head": in_bytes(rb"Content-ID: <0.3>\r\n\r\n", b"Content-ID: <0.3>"),
    "packaging.mime.content_id": in_bytes(rb"Content-ID: <0.2>", b"Content-ID: 0.2"),
    "packaging.mime.content_id_twice": in_bytes(rb"Content-ID: <0.2>", b"Content-ID: <0.3>"),
    "packaging.mime.start": in_bytes(rb'start="<0.1>"', b'start="<9.9>"'),
    "packaging.mime.root_type": in_bytes(rb"Content-Type: application/xop\+xml", b"Content-Type: text/xml"),
    "packaging.mime.encoding": part_encoding(b"quoted-printable", encode=False),
    "packaging.mime.base64": part_encoding(b"BASE64", encode=True),
    "packaging.mime.bad_base64": part_encoding(b"base64", encode=False),
}

WSA_ACTION = "//a:Action"
SOAP: dict[str, Spoil] = {
    "soap.envelope": lambda pieces: pieces.byte_edits.append(
        lambda data: data.replace(
            b"http://www.w3.org/2003/05/soap-envelope", b"http://schemas.xmlsoap.org/soap/envelope/"
        )
    ),
    "soap.body": in_envelope("//s:Body/*", doubles),
    "soap.header": in_envelope("//s:Header", removes),
    "soap.addressing": in_envelope("//a:To", removes),
    "soap.addressing_twice": in_envelope("//a:MessageID", doubles),
    "soap.message_id": in_envelope("//a:MessageID", says("12")),
    "soap.to": in_envelope("//a:To", says("http://dmp.invalid/")),
    "soap.action": in_envelope(WSA_ACTION, says("urn:ihe:iti:2007:RegistryStoredQuery")),
    "soap.outer_action": in_bytes(
        rb'action="urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"', b'action="urn:other"'
    ),
    "soap.must_understand": in_envelope(
        WSA_ACTION, without("{http://www.w3.org/2003/05/soap-envelope}mustUnderstand")
    ),
    "soap.must_understand_ns": both(
        in_envelope(WSA_ACTION, without("{http://www.w3.org/2003/05/soap-envelope}mustUnderstand")),
        in_envelope(WSA_ACTION, puts("mustUnderstand", "true")),
    ),
    "soap.reply_to": in_envelope(
        "//a:To",
        lambda element: element.addnext(etree.Element("{http://www.w3.org/2005/08/addressing}ReplyTo")),
    ),
    "soap.security": in_envelope("//saml:Assertion", removes),
    "soap.wrapper": in_envelope(
        "//x:ProvideAndRegisterDocumentSetRequest",
        lambda element: setattr(element, "tag", "{urn:ihe:iti:xds-b:2007}Other"),
    ),
}

VIHF: dict[str, Spoil] = {
    "vihf.version": edits("assertion", ".", puts("Version", "1.1")),
    "vihf.id": edits("assertion", ".", without("ID")),
    "vihf.id_form": edits("assertion", ".", puts("ID", "6-6")),
    "vihf.id_twice": edits(
        "assertion", "//saml:Subject", puts("ID", "_5f1a4b5e-0000-4000-8000-000000000001")
    ),
    "vihf.instant": edits("assertion", ".", puts("IssueInstant", "2026-01-12T09:45:00+01:00")),
    "vihf.issuer": edits("assertion", "//saml:Issuer", without("Format")),
    "vihf.issuer_name": edits("assertion", "//saml:Issuer", says("CN=other, O=X, C=FR")),
    "vihf.subject": edits("assertion", "//saml:NameID", removes),
    "vihf.authn": edits("assertion", "//saml:AuthnStatement", without("AuthnInstant")),
    "vihf.authn_context": edits("assertion", "//saml:AuthnContextClassRef", says("urn:password")),
    "vihf.authn_instant": edits(
        "assertion", "//saml:AuthnStatement", puts("AuthnInstant", "2046-01-12T09:45:00Z")
    ),
    "vihf.signature": edits("assertion", ".", moved_issuer),
    "vihf.reference": edits("assertion", ".", two_references),
    "vihf.transforms": edits("assertion", "//ds:Transform", removes),
    "vihf.canonicalization": edits(
        "assertion",
        "//ds:CanonicalizationMethod",
        puts("Algorithm", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"),
    ),
    "vihf.method": edits(
        "assertion", "//ds:SignatureMethod", puts("Algorithm", "http://www.w3.org/2000/09/xmldsig#dsa-sha1")
    ),
    "vihf.sha1": sha1_in("assertion"),
    "vihf.certificate": edits("assertion", "//ds:X509Certificate", says("XXXXXXX")),
    "vihf.digest": edits("assertion", "//ds:DigestValue", says("AAAA")),
    "vihf.value": edits("assertion", "//ds:SignatureValue", says("AAAA")),
    "vihf.judge": edits("assertion", "//saml:NameID", says("810000000009")),
    "vihf.certificate_date": certificate("assertion", "expired"),
    "vihf.key_usage": certificate("assertion", "root"),
    "vihf.unit": edits("assertion", attribute("Identifiant_Structure") + "/*", says("1888888888")),
    "vihf.statement": edits("assertion", "//saml:AttributeStatement", doubles),
    "vihf.attribute": edits("assertion", attribute("LPS_Nom"), removes),
    "vihf.attribute_twice": edits("assertion", attribute("LPS_Nom"), doubles),
    "vihf.attribute_form": edits("assertion", attribute("Ressource_URN") + "/*", says("urn:other")),
    "vihf.coded": edits("assertion", "//*[local-name()='PurposeOfUse']", puts("code", "other")),
    "vihf.attribute_empty": edits("assertion", attribute("LPS_ID") + "/*", says("")),
}

STRUCTURE: dict[str, Spoil] = {
    "rim.list": metadata("//r:RegistryObjectList", doubles),
    "rim.objects": lambda pieces: None,
    "rim.object": metadata(
        KOS, lambda element: element.addnext(etree.Element(f"{{{RIM}}}Service", id="s"))
    ),
    "rim.child": metadata(KOS, lambda element: etree.SubElement(element, f"{{{RIM}}}Value")),
    "rim.order": metadata(KOS, lambda element: element.append(element[0])),
    "rim.id": metadata(KOS + "/r:Classification", without("id")),
    "rim.id_twice": metadata(KOS + "/r:Classification", puts("id", "DocumentKOS")),
    "rim.owner": metadata(KOS + "/r:Classification", puts("classifiedObject", "Signature01")),
    "rim.attribute": metadata(KOS + "/r:ExternalIdentifier", without("value")),
    "rim.slot": metadata(KOS + "/r:Slot", without("name")),
    "rim.slot_twice": metadata(KOS + "/r:Slot", doubles),
    "rim.slot_shape": metadata(KOS + "/r:Slot/r:ValueList", doubles),
    "rim.value_length": metadata(value_of(KOS, "sourcePatientId"), says("9" * 300)),
    "rim.string": metadata(KOS + "/r:Name/r:LocalizedString", without("value")),
}

CODING = "/r:Slot[@name='codingScheme']/r:ValueList/r:Value"
REGION = code_of(KOS, EVENTS) + "[@nodeRepresentation='774007']"
MODALITY = code_of(KOS, EVENTS) + "[@nodeRepresentation='CT']"
ATTRIBUTES: dict[str, Spoil] = {
    "attribute.slot": metadata(KOS + "/r:Slot[@name='languageCode']", removes),
    "attribute.slot_many": metadata(value_of(KOS, "languageCode"), doubles),
    "attribute.slot_form": metadata(value_of(KOS, "languageCode"), says("french")),
    "attribute.slot_unknown": metadata(KOS, add_slot("urn:other", "x")),
    "attribute.time_zone": metadata(value_of(KOS, "serviceStartTime"), says("20260112083000+0100")),
    "attribute.time_short": metadata(value_of(KOS, "serviceStartTime"), says("20260112")),
    "attribute.code": metadata(code_of(KOS, CLASS_CODE), removes),
    "attribute.code_many": metadata(code_of(KOS, CLASS_CODE), doubles),
    "attribute.code_scheme": metadata(code_of(KOS, CLASS_CODE) + CODING, says("2.999")),
    "attribute.code_former": metadata(MODALITY + CODING, says("1.2.250.1.213.1.1.5.618")),
    "attribute.code_value": metadata(code_of(KOS, CLASS_CODE), puts("nodeRepresentation", "11")),
    "attribute.code_empty": metadata(code_of(KOS, CLASS_CODE), without("nodeRepresentation")),
    "attribute.code_twice": metadata(MODALITY, doubles),
    "attribute.code_name": metadata(MODALITY + "/r:Name", removes),
    "attribute.code_unknown": metadata(
        code_of(KOS, CLASS_CODE), puts("classificationScheme", "urn:uuid:0")
    ),
    "attribute.author": metadata(code_of(KOS, AUTHOR), removes),
    "attribute.author_person": metadata(code_of(KOS, AUTHOR) + "/r:Slot//r:Value", says("DURAND")),
    "attribute.author_institution": metadata(
        code_of(KOS, AUTHOR) + "/r:Slot[@name='authorInstitution']//r:Value", says("CABINET")
    ),
    "attribute.author_node": metadata(code_of(KOS, AUTHOR), puts("nodeRepresentation", "x")),
    "attribute.structure": metadata(
        code_of(KOS, AUTHOR) + "/r:Slot[@name='authorInstitution']//r:Value",
        says("CABINET^^^^^&1.2.250.1.71.4.2.2&ISO^IDNST^^^12"),
    ),
    "attribute.identifier": metadata(
        KOS + f"/r:ExternalIdentifier[@identificationScheme='{PATIENT}']", removes
    ),
    "attribute.identifier_many": metadata(
        KOS + f"/r:ExternalIdentifier[@identificationScheme='{PATIENT}']", doubles
    ),
    "attribute.identifier_form": metadata(
        KOS + f"/r:ExternalIdentifier[@identificationScheme='{PATIENT}']", puts("value", "28407")
    ),
    "attribute.identifier_name": metadata(
        KOS + "/r:ExternalIdentifier/r:Name/r:LocalizedString", puts("value", "x")
    ),
    "attribute.identifier_unknown": metadata(
        KOS + "/r:ExternalIdentifier", puts("identificationScheme", "1.2.3")
    ),
    "attribute.ins_key": lambda pieces: setattr(
        pieces, "metadata", pieces.metadata.replace(b"284070100499094^", b"284070100499095^")
    ),
    "attribute.set_node": metadata(SET + "/r:Classification[@classificationNode]", removes),
    "attribute.object_type": metadata(
        KOS, puts("objectType", "urn:uuid:34268e47-fdf5-41a6-ba33-82133c465248")
    ),
    "attribute.mime": metadata(KOS, puts("mimeType", "text/xml")),
    "attribute.title": metadata(KOS + "/r:Name", removes),
    "attribute.title_text": metadata(KOS + "/r:Name/r:LocalizedString", puts("value", "x")),
    "attribute.normal": metadata(code_of(KOS, CONFIDENTIALITY) + "[@nodeRepresentation='N']", removes),
    "attribute.signature_masks": metadata(
        code_of(SIGNATURE, CONFIDENTIALITY) + "[@nodeRepresentation='MASQUE_PS']", removes
    ),
    "attribute.modality": metadata(MODALITY, removes),
    "attribute.region": metadata(REGION, removes),
    "attribute.reference_type": text_in("metadata", b":accession<", b":other<"),
    "attribute.reference_study": metadata(
        value_of(KOS, REFERENCES) + "[contains(., 'studyInstanceUID')]", removes
    ),
    "attribute.reference_accession": lambda pieces: setattr(
        pieces, "metadata", pieces.metadata.replace(b":accession<", b":order<")
    ),
    "attribute.reference_order": lambda pieces: setattr(
        pieces, "metadata", pieces.metadata.replace(b":order<", b":accession<")
    ),
    "attribute.reference_authority": metadata(
        value_of(KOS, REFERENCES), says("ACC-7788^^^^urn:ihe:iti:xds:2013:accession")
    ),
    "attribute.reference_uid": text_in("metadata", b">2.25.1001^", b">ABC^"),
    "attribute.stop": metadata(value_of(KOS, "serviceStopTime"), says("20200101000000")),
    "attribute.older": metadata(value_of(KOS, "creationTime"), says("20460101000000")),
    "attribute.patient_info": metadata(value_of(KOS, "sourcePatientInfo"), removes),
    "attribute.patient_info_form": text_in("metadata", b"PID-8|F", b"PID-8|X"),
    "attribute.patient_info_signature": metadata(SIGNATURE, add_slot("sourcePatientInfo", "PID-8|F")),
    "attribute.registry": metadata(KOS, add_slot("repositoryUniqueId", "2.999.1")),
}

RPLC = "//r:Association[contains(@associationType, 'RPLC')]"
SIGNS = "//r:Association[contains(@associationType, ':signs')]"
MEMBER = "//r:Association[contains(@associationType, 'HasMember')]"
STATUS = "//r:Association[contains(@associationType, 'UpdateAvailabilityStatus')]"
OTHER_ENTRY = "urn:uuid:8d5ad5c7-3a54-4a4b-9d4e-0d2a6f3b1c12"


def new_version(root: Any) -> None:
    """Make the update one of metadata: an entry and its membership, both without their version."""
    link = root.xpath(STATUS, namespaces=NS)[0]
    link.set("associationType", "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember")
    link.set("targetObject", "Doc")
    link.addprevious(etree.Element(f"{{{RIM}}}ExtrinsicObject", id="Doc", mimeType="application/dicom"))


def status_with_entry(root: Any) -> None:
    link = root.xpath(STATUS, namespaces=NS)[0]
    link.addprevious(etree.Element(f"{{{RIM}}}ExtrinsicObject", id="Doc", mimeType="application/dicom"))


ASSOCIATIONS: dict[str, Spoil] = {
    "association.type": metadata(RPLC, puts("associationType", "urn:ihe:iti:2007:AssociationType:APND")),
    "association.member": metadata(MEMBER, removes),
    "association.member_ends": metadata(MEMBER, puts("sourceObject", "Signature01")),
    "association.original": metadata(MEMBER + "/r:Slot", removes),
    "association.original_other": metadata(RPLC + "/r:Slot", removes),
    "association.signs": metadata(SIGNS, puts("targetObject", "DocumentKOS")),
    "association.replace_source": metadata(RPLC, puts("sourceObject", "Signature01")),
    "association.target": metadata(RPLC, puts("targetObject", "8d5ad5c7")),
    "association.replace_own": metadata(RPLC, puts("targetObject", "DocumentKOS")),
    "association.replace_twice": metadata(RPLC, doubles),
    "association.id": metadata(RPLC, puts("id", OTHER_ENTRY)),
    "association.status_none": update(metadata(STATUS, removes)),
    "association.status_source": update(metadata(STATUS, puts("sourceObject", "x"))),
    "association.status_old": update(metadata(STATUS + "/r:Slot[@name='OriginalStatus']", removes)),
    "association.status_new": update(metadata(STATUS + "/r:Slot[@name='NewStatus']//r:Value", says("x"))),
    "association.status_entry": update(metadata("/*", status_with_entry)),
    "association.previous": update(metadata("/*", new_version)),
    "association.lid": update(metadata("/*", new_version)),
}

DOCUMENT = "//x:Document[@id='DocumentKOS']"


def inlined(pieces: Pieces) -> None:
    def change(element: Any) -> None:
        for child in list(element):
            element.remove(child)
        element.text = base64.b64encode(pieces.kos).decode()

    in_envelope(DOCUMENT, change)(pieces)


def request_item(dataset: Any) -> Any:
    return dataset.ReferencedRequestSequence[0]


DOCUMENTS: dict[str, Spoil] = {
    "document.missing": in_envelope(DOCUMENT, removes),
    "document.orphan": in_envelope(DOCUMENT, puts("id", "Nobody")),
    "document.twice": in_envelope(DOCUMENT, doubles),
    "document.cid": in_envelope(DOCUMENT + "/*", puts("href", "cid:9.9")),
    "document.include": in_envelope(DOCUMENT + "/*", doubles),
    "document.inline": inlined,
    "document.unused": inlined,
    "document.hash": in_kos(lambda dataset: setattr(dataset, "Manufacturer", "AUTRE")),
    "document.size": metadata(value_of(KOS, "size"), says("12")),
    "document.not_read": in_envelope(DOCUMENT + "/*", puts("href", "cid:9.9")),
    "document.kos": lambda pieces: setattr(pieces, "kos", b"x" * 500),
    "document.kos_class": in_kos(
        lambda dataset: setattr(dataset.ConceptNameCodeSequence[0], "CodeValue", "113000")
    ),
    "document.unique_id": in_kos(lambda dataset: setattr(dataset, "SOPInstanceUID", "2.25.7")),
    "document.patient": in_kos(lambda dataset: setattr(dataset, "PatientID", "279035121518989")),
    "document.trait": in_kos(lambda dataset: setattr(dataset, "PatientBirthDate", "19840702")),
    "document.study": in_kos(lambda dataset: setattr(dataset, "StudyInstanceUID", "2.25.7")),
    "document.accession": in_kos(lambda dataset: setattr(request_item(dataset), "AccessionNumber", "X")),
    "document.order": in_kos(
        lambda dataset: setattr(request_item(dataset), "PlacerOrderNumberImagingServiceRequest", "X")
    ),
    "document.reference": in_kos(lambda dataset: setattr(request_item(dataset), "AccessionNumber", "X")),
    "document.modality": metadata(MODALITY, puts("nodeRepresentation", "MR")),
    "document.creation": metadata(value_of(KOS, "creationTime"), says("20260112083006")),
    "document.creation_zone": metadata(value_of(KOS, "creationTime"), says("20260112093005")),
    "document.study_date": metadata(value_of(KOS, "serviceStartTime"), says("20251201080000")),
    "document.structure": in_kos(
        lambda dataset: setattr(dataset, "InstitutionName", "X^^^^^^^^^1888888888")
    ),
}

OBJECTS = "//ds:Object/"
XADES: dict[str, Spoil] = {
    "xades.xml": lambda pieces: setattr(pieces, "signature", b"<Signature"),
    "xades.root": edits("signature", ".", without("Id")),
    "xades.id": edits("signature", ".", puts("Id", "2.25.556")),
    "xades.id_twice": edits("signature", ".", second_signature_id),
    "xades.version": edits(
        "signature",
        "//e:QualifyingProperties",
        lambda element: setattr(element, "tag", "{http://uri.etsi.org/01903/v1.2.2#}QualifyingProperties"),
    ),
    "xades.shape": edits("signature", "//e:SigningCertificate", removes),
    "xades.target": edits("signature", "//e:QualifyingProperties", puts("Target", "#x")),
    "xades.purpose": edits("signature", "//ds:SignatureProperty", says("1.2")),
    "xades.canonicalization": edits(
        "signature", "//ds:CanonicalizationMethod", puts("Algorithm", "http://www.w3.org/TR/xpath")
    ),
    "xades.method": edits(
        "signature",
        "//ds:SignatureMethod",
        puts("Algorithm", "http://www.w3.org/2000/09/xmldsig#hmac-sha1"),
    ),
    "xades.digest_method": edits(
        "signature",
        "//ds:Reference/ds:DigestMethod",
        puts("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#md5"),
    ),
    "xades.sha1": sha1_in("signature"),
    "xades.references": edits("signature", "//ds:SignedInfo/ds:Reference", removes),
    "xades.reference_type": edits("signature", "//ds:SignedInfo/ds:Reference", puts("Type", "x")),
    "xades.transforms": edits(
        "signature",
        "//ds:SignedInfo/ds:Reference",
        lambda element: element.insert(0, etree.Element(f"{{{NS['ds']}}}Transforms")),
    ),
    "xades.digest": edits("signature", "//e:SigningTime", says("2026-01-12T09:46:02+01:00")),
    "xades.value": edits("signature", "//ds:SignatureValue", says("AAAA")),
    "xades.judge": edits("signature", "//ds:SignatureValue", says("AAAA")),
    "xades.certificate": edits("signature", "//ds:X509Certificate", says("XXXXXXX")),
    "xades.certificate_date": certificate("signature", "expired"),
    "xades.key_usage": certificate("signature", "root"),
    "xades.unit": certificate("signature", "root"),
    "xades.cert_digest": edits("signature", "//e:CertDigest/*[local-name()='DigestValue']", says("AAAA")),
    "xades.issuer_serial": edits("signature", "//ds:X509SerialNumber", says("12")),
    "xades.time": edits("signature", "//e:SigningTime", says("2026-01-12T09:46:02")),
    "xades.manifest_uri": edits("signature", "//ds:Manifest/ds:Reference", puts("URI", "https://x/")),
    "xades.manifest_set": edits("signature", "//ds:Manifest/ds:Reference", puts("URI", "urn:oid:2.25.7")),
    "xades.manifest_set_digest": edits(
        "signature", "//ds:Manifest/ds:Reference/ds:DigestValue", says("AAAA")
    ),
    "xades.manifest_missing": edits("signature", "//ds:Manifest/ds:Reference[2]", removes),
    "xades.manifest_extra": edits(
        "signature", "//ds:Manifest/ds:Reference[2]", puts("URI", "urn:oid:2.25.7")
    ),
    "xades.manifest_digest": in_kos(lambda dataset: setattr(dataset, "Manufacturer", "AUTRE")),
}

SET_PATIENT = SET + "/r:ExternalIdentifier[contains(@value, '&ISO^NH')]"


def without_mtom(data: bytes) -> bytes:
    head = b"POST / HTTP/1.1\r\nContent-Type: application/soap+xml; charset=UTF-8\r\n\r\n"
    start, end = data.index(b"<soap:Envelope"), data.index(b"</soap:Envelope>") + 16
    return head + data[start:end]


def other_given(pieces: Pieces) -> None:
    pieces.given_kos = pieces.kos + b"x"


SUBMISSION: dict[str, Spoil] = {
    "submission.list": metadata("//r:RegistryObjectList", removes),
    "submission.mtom": lambda pieces: pieces.byte_edits.append(without_mtom),
    "submission.set": metadata(SET, removes),
    "submission.kos": metadata(
        KOS + "/r:Classification[@nodeRepresentation='IMG-KOS']", puts("nodeRepresentation", "11488-4")
    ),
    "submission.signature": metadata(SIGNATURE, removes),
    "submission.patients": metadata(
        SET_PATIENT, puts("value", "279035121518989^^^&1.2.250.1.213.1.4.10&ISO^NH")
    ),
    "submission.times": metadata(value_of(KOS, "submissionTime"), says("20460101000000")),
    "submission.unique_ids": text_in("metadata", b'value="2.25.444"', b'value="2.25.9001"'),
    "submission.common": metadata(value_of(SIGNATURE, REFERENCES), removes),
    "submission.signature_author": metadata(
        code_of(SIGNATURE, AUTHOR) + "/r:Slot[@name='authorPerson']//r:Value",
        says("9^DRIMBox^X^^^^^^&1.2.250.1.71.4.2.1&ISO^U^^^EI"),
    ),
    "submission.vihf_patient": edits(
        "assertion",
        attribute("urn:oasis:names:tc:xacml:2.0:resource:resource-id") + "/*",
        says("279035121518989^^^&1.2.250.1.213.1.4.10&ISO^NH"),
    ),
    "submission.vihf_structure": edits(
        "assertion", attribute("Identifiant_Structure") + "/*", says("1888888888")
    ),
    "submission.vihf_date": edits("assertion", ".", puts("IssueInstant", "2020-01-12T09:45:00Z")),
    "submission.given_kos": other_given,
}

BROKEN: dict[str, Spoil] = {
    **PACKAGING,
    **SOAP,
    **VIHF,
    **STRUCTURE,
    **ATTRIBUTES,
    **ASSOCIATIONS,
    **DOCUMENTS,
    **XADES,
    **SUBMISSION,
}

#: Rules of a METADATA.XML: what to do to a good one.
XDM_BROKEN: dict[str, Edit] = {
    "document.uri": lambda root: removes(root.xpath(KOS + "/r:Slot[@name='URI']", namespaces=NS)[0]),
    # The metadata as published, whose signature has no address.
    "document.uri_signature": lambda root: None,
    "document.uri_form": lambda root: says("../../etc/passwd")(
        root.xpath(value_of(KOS, "URI"), namespaces=NS)[0]
    ),
    "document.uri_twice": two_kos,
}


def copy_of(pieces: Pieces) -> Pieces:
    """Return pieces that may be spoilt without harm to the others."""
    return attrs.evolve(pieces, envelope_edits=[], byte_edits=[])
