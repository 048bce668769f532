"""SOAP 1.2 with WS-Addressing as the DMP speaks it: what a request must be, and how answers look.

`read_request` turns an HTTP request into an `Envelope` or raises `SoapFault`; nothing of the body is
judged here. An MTOM request comes back with its `xop:Include` elements resolvable through `attachments`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import attrs

from drimbox.sim.mime import MediaType, MimeError, Part, content_id_of, read_media_type, split_related
from drimbox.sim.xmltools import text_of, unb64
from drimbox.xml import Element, XmlRefused, safe_parse

SOAP = "http://www.w3.org/2003/05/soap-envelope"
WSA = "http://www.w3.org/2005/08/addressing"
WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
XOP = "http://www.w3.org/2004/08/xop/include"
SAML = "urn:oasis:names:tc:SAML:2.0:assertion"

MTOM_ACTION = "urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"


class SoapFault(Exception):
    """A refusal answered as a SOAP fault; `code` is Sender, Receiver, MustUnderstand or VersionMismatch."""

    def __init__(self, subcode: str, reason: str, *, code: str = "Sender", status: int = 500) -> None:
        super().__init__(f"{subcode}: {reason}")
        self.code = code
        #: `wsse:InvalidSecurityToken`, `wsa:ActionNotSupported` ...
        self.subcode = subcode
        self.reason = reason
        self.status = status


@attrs.frozen
class Envelope:
    """A request past its SOAP and WS-Addressing checks."""

    message_id: str
    action: str
    to: str
    assertion: Element
    body: Element
    attachments: Mapping[str, bytes]
    mtom: bool
    warnings: tuple[str, ...]

    def content_of(self, element: Element) -> bytes:
        """Return the bytes an element holds: its `xop:Include`'s part, or inline base64."""
        includes = element.findall(f"{{{XOP}}}Include")
        if not includes:
            try:
                return unb64(element.text)
            except ValueError as error:
                raise SoapFault("soap:Sender", "Document is neither xop:Include nor base64") from error
        try:
            return self.attachments[content_id_of(includes[0].get("href", ""))]
        except (KeyError, MimeError) as error:
            raise SoapFault("soap:Sender", f"xop:Include points at no part: {error}") from error


def read_request(content_type: str, body: bytes, path: str, *, lenient: bool = False) -> Envelope:
    """Read one HTTP request; raises `SoapFault` (415 for a Content-Type that is not SOAP 1.2)."""
    warnings: list[str] = []
    try:
        media = read_media_type(content_type)
        if media.type == "multipart/related":
            root, attachments = _read_mtom(media, body, warnings, lenient)
            announced = media.parameters.get("action", "")
        elif media.type == "application/soap+xml":
            root, attachments = body, {}
            announced = media.parameters.get("action", "")
            charset = media.parameters.get("charset", "utf-8").lower()
            if charset != "utf-8":
                raise MimeError(f"charset {charset}")
        else:
            raise SoapFault("soap:Sender", f"media type {media.type} is not SOAP 1.2", status=415)
    except MimeError as error:
        raise SoapFault("soap:Sender", f"MIME: {error}") from error
    try:
        envelope = safe_parse(root)
    except XmlRefused as error:
        raise SoapFault("soap:Sender", str(error)) from error
    mtom = media.type == "multipart/related"
    return _read_envelope(envelope, attachments, mtom, announced, path, warnings)


def _read_mtom(
    media: MediaType, body: bytes, warnings: list[str], lenient: bool
) -> tuple[bytes, dict[str, bytes]]:
    """Return the XOP root and the other parts by Content-ID."""
    wanted = {"type": "application/xop+xml", "start-info": "application/soap+xml"}
    for name, value in wanted.items():
        if media.parameters.get(name, "").lower() != value:
            raise MimeError(f'{name}="{value}" missing from Content-Type')
    if "boundary" not in media.parameters or "start" not in media.parameters:
        raise MimeError("boundary or start missing from Content-Type")
    parts: dict[str, Part] = {}
    for part in split_related(body, media.parameters["boundary"], lenient=lenient):
        if part.content_id in parts:
            raise MimeError("Content-ID given twice")
        parts[part.content_id] = part
    start = media.parameters["start"].removeprefix("<").removesuffix(">")
    if start not in parts:
        raise MimeError("start names no part")
    root = parts.pop(start)
    kind = root.media_type
    if kind.type != "application/xop+xml" or kind.parameters.get("type", "") != "application/soap+xml":
        raise MimeError('root part is not application/xop+xml; type="application/soap+xml"')
    for identifier, part in parts.items():
        if part.headers.get("content-transfer-encoding", "").lower() != "binary":
            warnings.append(f"part {identifier}: Content-Transfer-Encoding is not binary")
    return root.content, {identifier: part.content for identifier, part in parts.items()}


def _read_envelope(
    envelope: Element,
    attachments: dict[str, bytes],
    mtom: bool,
    announced: str,
    path: str,
    warnings: list[str],
) -> Envelope:
    if envelope.tag != f"{{{SOAP}}}Envelope":
        raise SoapFault("soap:VersionMismatch", "not a SOAP 1.2 envelope", code="VersionMismatch")
    headers, bodies = envelope.findall(f"{{{SOAP}}}Header"), envelope.findall(f"{{{SOAP}}}Body")
    if len(headers) != 1 or len(bodies) != 1 or len(bodies[0]) != 1:
        raise SoapFault("soap:Sender", "one Header and one Body with one child are due")
    values: dict[str, str] = {}
    security: list[Element] = []
    for block in headers[0]:
        if not isinstance(block.tag, str):
            continue
        if block.tag.startswith(f"{{{WSA}}}"):
            name = block.tag.split("}")[1]
            if name in values:
                raise SoapFault("wsa:InvalidCardinality", f"{name} given twice")
            values[name] = text_of(block)
        elif block.tag == f"{{{WSSE}}}Security":
            security.append(block)
        elif block.get(f"{{{SOAP}}}mustUnderstand", "false") in ("true", "1"):
            raise SoapFault(
                "soap:MustUnderstand", f"header {block.tag} not understood", code="MustUnderstand"
            )
    for name in ("MessageID", "To", "Action"):
        if not values.get(name):
            raise SoapFault("wsa:MessageAddressingHeaderRequired", f"{name} missing")
    action = headers[0].find(f"{{{WSA}}}Action")
    if action.get(f"{{{SOAP}}}mustUnderstand") not in ("true", "1"):
        if action.get("mustUnderstand") not in ("true", "1"):
            raise SoapFault("wsa:InvalidAddressingHeader", "Action without mustUnderstand")
        warnings.append("mustUnderstand of Action is not in the SOAP namespace")
    if announced and announced != values["Action"]:
        raise SoapFault("wsa:ActionMismatch", f"Content-Type says {announced}, Action {values['Action']}")
    if not values["To"].startswith("https://") or not values["To"].endswith(path):
        raise SoapFault("wsa:DestinationUnreachable", "To is not the address of this service")
    try:
        if not values["MessageID"].startswith("urn:uuid:"):
            raise ValueError("urn:uuid: missing")
        uuid.UUID(values["MessageID"][9:])
    except ValueError as error:
        raise SoapFault("wsa:InvalidAddressingHeader", f"MessageID is no urn:uuid: {error}") from error
    if len(security) != 1:
        raise SoapFault("wsse:InvalidSecurity", "one wsse:Security header is due")
    assertions = security[0].findall(f"{{{SAML}}}Assertion")
    if len(assertions) != 1:
        raise SoapFault("wsse:InvalidSecurity", "one SAML 2.0 assertion is due")
    if mtom and values["Action"] != MTOM_ACTION:
        warnings.append("MTOM used for a request that carries no document")
    used = {include.get("href", "") for include in envelope.iter(f"{{{XOP}}}Include")}
    unused = set(attachments) - {content_id_of(href) for href in used if href.startswith("cid:")}
    warnings.extend(f"part {identifier} is referred to by nothing" for identifier in sorted(unused))
    return Envelope(
        message_id=values["MessageID"],
        action=values["Action"],
        to=values["To"],
        assertion=assertions[0],
        body=bodies[0][0],
        attachments=attachments,
        mtom=mtom,
        warnings=tuple(warnings),
    )


# --- answers --------------------------------------------------------------------------------------

_SUCCESS = "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Success"
_FAILURE = "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Failure"
_ERROR = "urn:oasis:names:tc:ebxml-regrep:ErrorSeverityType:Error"


@attrs.frozen
class RegistryError:
    """One entry of a RegistryErrorList."""

    code: str
    text: str
    location: str = ""


def attribute(text: str) -> str:
    """Escape for an attribute value in double quotes."""
    return escape(text, {'"': "&quot;", "\n": " ", "\r": " "})


def error_list(errors: Sequence[RegistryError]) -> str:
    """Return the `rs:RegistryErrorList` of a failure, empty when there is none."""
    if not errors:
        return ""
    entries = "".join(
        f'<rs:RegistryError errorCode="{attribute(e.code)}" codeContext="{attribute(e.text)}" '
        f'location="{attribute(e.location)}" severity="{_ERROR}"/>'
        for e in errors
    )
    return f'<rs:RegistryErrorList highestSeverity="{_ERROR}">{entries}</rs:RegistryErrorList>'


def registry_response(errors: Sequence[RegistryError] = ()) -> str:
    """Return an `rs:RegistryResponse`: Success, or Failure with its errors."""
    status = _FAILURE if errors else _SUCCESS
    return (
        '<rs:RegistryResponse xmlns:rs="urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0" '
        f'status="{status}">{error_list(errors)}</rs:RegistryResponse>'
    )


def query_response(objects: str, errors: Sequence[RegistryError] = ()) -> str:
    """Return a `query:AdhocQueryResponse` around serialised registry objects."""
    status = _FAILURE if errors else _SUCCESS
    return (
        '<query:AdhocQueryResponse xmlns:query="urn:oasis:names:tc:ebxml-regrep:xsd:query:3.0" '
        'xmlns:rs="urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0" '
        f'xmlns:rim="urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0" status="{status}">'
        f"{error_list(errors)}<rim:RegistryObjectList>{objects}</rim:RegistryObjectList>"
        "</query:AdhocQueryResponse>"
    )


def write_envelope(action: str, relates_to: str, body: str) -> bytes:
    """Wrap an answer."""
    relates = f'<RelatesTo xmlns="{WSA}">{escape(relates_to)}</RelatesTo>' if relates_to else ""
    return (
        f'<soap:Envelope xmlns:soap="{SOAP}"><soap:Header><Action xmlns="{WSA}">{escape(action)}</Action>'
        f'<MessageID xmlns="{WSA}">urn:uuid:{uuid.uuid4()}</MessageID>{relates}</soap:Header>'
        f"<soap:Body>{body}</soap:Body></soap:Envelope>"
    ).encode()


def write_fault(fault: SoapFault, relates_to: str) -> bytes:
    """Write a fault envelope."""
    body = (
        f"<soap:Fault><soap:Code><soap:Value>soap:{fault.code}</soap:Value>"
        f'<soap:Subcode><soap:Value xmlns:wsse="{WSSE}" xmlns:wsa="{WSA}">{escape(fault.subcode)}'
        "</soap:Value></soap:Subcode></soap:Code>"
        f'<soap:Reason><soap:Text xml:lang="en">{escape(fault.reason)}</soap:Text></soap:Reason>'
        "</soap:Fault>"
    )
    return write_envelope("http://www.w3.org/2005/08/addressing/soap/fault", relates_to, body)
