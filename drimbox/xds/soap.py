"""SOAP 1.2 requests to the DMP: WS-Addressing, VIHF in wsse:Security, plain or MTOM (interfaces.md 4.1).

Theory of operation. An envelope is made of pieces that are already serialised (the signed assertion, the
archived SubmitObjectsRequest): they are joined as bytes, never parsed and written again, so that what
was signed and what was archived is what leaves. The envelope declares prefixes only, no default
namespace, so that no piece can inherit one.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

import attrs

from drimbox.xds.metadata import KOS_ID, SIGNATURE_ID
from drimbox.xds.mime import Outgoing, write_related

SOAP = "http://www.w3.org/2003/05/soap-envelope"
SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
WSA = "http://www.w3.org/2005/08/addressing"
WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
XDSB = "urn:ihe:iti:xds-b:2007"
XOP = "http://www.w3.org/2004/08/xop/include"

PUBLISH = "urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"
QUERY = "urn:ihe:iti:2007:RegistryStoredQuery"
UPDATE = "urn:ihe:iti:2010:UpdateDocumentSet"
PATIENT_TEST = "urn:hl7-org:v3:PRPA_IN201307UV02"

_ROOT_ID = "0.1"
_DOCUMENTS = ((KOS_ID, "0.2"), (SIGNATURE_ID, "0.3"))


@attrs.frozen
class HttpMessage:
    """An HTTP body and its Content-Type."""

    content_type: str
    body: bytes


@attrs.frozen
class Header:
    """The SOAP header of one attempt: address, action, message id (`urn:uuid:…`), signed assertion."""

    to: str
    action: str
    message_id: str
    assertion: bytes


def plain_request(header: Header, body: bytes) -> HttpMessage:
    """Return a request without attachment."""
    content_type = f'application/soap+xml; charset=UTF-8; action="{header.action}"'
    return HttpMessage(content_type, envelope(header, body))


def publish_request(header: Header, metadata: bytes, kos: bytes, signature: bytes) -> HttpMessage:
    """Return a Provide and Register request: MTOM, the documents as `binary` parts (TD2.1)."""
    includes = "".join(
        f'<xdsb:Document id="{document}"><xop:Include xmlns:xop="{XOP}" href="cid:{cid}"/></xdsb:Document>'
        for document, cid in _DOCUMENTS
    )
    tag = "xdsb:ProvideAndRegisterDocumentSetRequest"
    body = b"".join((f'<{tag} xmlns:xdsb="{XDSB}">'.encode(), metadata, f"{includes}</{tag}>".encode()))
    root_type = f'application/xop+xml; charset=UTF-8; type="application/soap+xml"; action="{header.action}"'
    parts = [Outgoing(_ROOT_ID, root_type, envelope(header, body))]
    for (_, cid), content in zip(_DOCUMENTS, (kos, signature), strict=True):
        parts.append(Outgoing(cid, "application/octet-stream", content))
    parameters = {"start-info": "application/soap+xml", "action": header.action}
    return HttpMessage(*write_related(parts, parameters))


def envelope(header: Header, body: bytes) -> bytes:
    """Return the envelope around a serialised body element."""

    def addressing(tag: str, text: str, attributes: str = "") -> str:
        return f"<{tag} xmlns={quoteattr(WSA)}{attributes}>{escape(text)}</{tag}>"

    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<soap:Envelope xmlns:soap="{SOAP}"><soap:Header>'
        + addressing("MessageID", header.message_id)
        + addressing("To", header.to)
        + addressing("Action", header.action, ' soap:mustUnderstand="true"')
        + f'<wsse:Security xmlns:wsse="{WSSE}">'
    )
    middle = "</wsse:Security></soap:Header><soap:Body>"
    return b"".join(
        (head.encode(), header.assertion, middle.encode(), body, b"</soap:Body></soap:Envelope>")
    )
