"""Reading what the DMP answers: MTOM or plain SOAP, registry responses, entries, faults, TD0.2.

Theory of operation. An answer is data from outside: it is parsed by the one hardened parser, bounded,
and looked up by name, never by position, because servers differ in prefixes, wrappers and order. What
cannot be read raises `NotUnderstood`; deciding what that means is the business of `outcomes`.
"""

from __future__ import annotations

import attrs

from drimbox.ports import RegistryEntry
from drimbox.xds import codes
from drimbox.xds.mime import MimeRefused, Related, parse_content_type, read_related
from drimbox.xds.soap import SOAP, SOAP11, WSA
from drimbox.xml import Element, XmlRefused, safe_parse

MAX_DEPTH = 64
#: Entries and errors read from one answer; the rest is ignored.
MAX_ITEMS = 1000


class NotUnderstood(ValueError):
    """The bytes are no SOAP answer that we can read. The text carries nothing of the answer."""


@attrs.frozen
class Reply:
    """A SOAP answer: the element inside the body, the message it relates to, and the MIME parts."""

    content: Element
    #: wsa:RelatesTo, None when the server gives none.
    relates_to: str | None = None
    package: Related | None = None


@attrs.frozen
class Fault:
    """A SOAP fault: local names of code and subcodes (outermost first), reason, text of the detail."""

    codes: tuple[str, ...]
    reason: str
    detail: str = ""


@attrs.frozen
class RegistryError:
    """One rs:RegistryError, severity and status by local name (`Error`, `Warning`)."""

    code: str
    context: str = ""
    location: str = ""
    severity: str = "Error"


@attrs.frozen
class RegistryAnswer:
    """`status` is Success, Failure or PartialSuccess."""

    status: str
    errors: tuple[RegistryError, ...] = ()


@attrs.frozen
class Existence:
    """The answer to TD0.2, by name; empty strings for what it does not say."""

    #: AA, AE or AR.
    acknowledgement: str
    #: OK, NF, AE or QE.
    query_response: str
    #: VALIDE, INEXISTANTE, INTERDIT, EXPIRE.
    authorization: str
    #: `active`, or another word for a closed record.
    patient_status: str
    #: Codes and texts of acknowledgementDetail.
    detail: str = ""


def read_reply(content_type: str, body: bytes, *, max_bytes: int) -> Reply:
    """Read an HTTP answer body; `content_type` may be empty. Raises `NotUnderstood`."""
    media_type, _ = parse_content_type(content_type)
    package: Related | None = None
    try:
        if media_type.startswith("multipart/") or body.lstrip()[:2] == b"--":
            package = read_related(content_type, body)
            body = package.root.content
        root = safe_parse(body, max_bytes=max_bytes, max_depth=MAX_DEPTH)
    except (MimeRefused, XmlRefused) as error:
        # The parser's own words may quote the answer: they stay out.
        raise NotUnderstood("réponse qui n'est pas du XML acceptable") from error
    if root.tag not in (f"{{{SOAP}}}Envelope", f"{{{SOAP11}}}Envelope"):
        raise NotUnderstood("réponse qui n'est pas une enveloppe SOAP")
    bodies = [child for child in root if _local(child) == "Body"]
    contents = [child for child in bodies[0] if _is_element(child)] if len(bodies) == 1 else []
    if len(contents) != 1:
        raise NotUnderstood("enveloppe SOAP sans contenu")
    relates = root.findtext(f"*/{{{WSA}}}RelatesTo")
    return Reply(contents[0], relates.strip() if relates else None, package)


def read_fault(content: Element) -> Fault | None:
    """Return the fault, or None when the body holds something else."""
    if content.tag not in (f"{{{SOAP}}}Fault", f"{{{SOAP11}}}Fault"):
        return None
    names: list[str] = []
    code = _child(content, "Code")
    while code is not None and len(names) < 8:
        names.append(_local_qname(_text(_child(code, "Value"))))
        code = _child(code, "Subcode")
    if not names:
        names.append(_local_qname(_text(_child(content, "faultcode"))))  # SOAP 1.1
    reason = _all_text(_child(content, "Reason")) or _text(_child(content, "faultstring"))
    detail = _child(content, "Detail")
    return Fault(tuple(names), reason, _all_text(_child(content, "detail") if detail is None else detail))


def read_registry_answer(content: Element) -> RegistryAnswer:
    """Read a RegistryResponse or an AdhocQueryResponse; raises `NotUnderstood` for anything else."""
    if _local(content) not in ("RegistryResponse", "AdhocQueryResponse"):
        raise NotUnderstood("réponse qui n'est pas celle d'un registre")
    status = _tail(content.get("status", ""))
    if status not in ("Success", "Failure", "PartialSuccess"):
        raise NotUnderstood("réponse de registre sans statut connu")
    errors = []
    for element in content.iter("{*}RegistryError"):
        errors.append(
            RegistryError(
                code=_tail(element.get("errorCode", "")),
                context=element.get("codeContext", "") or _text(element),
                location=element.get("location", ""),
                severity=_tail(element.get("severity", "")) or "Error",
            )
        )
        if len(errors) >= MAX_ITEMS:
            break
    return RegistryAnswer(status, tuple(errors))


def read_entries(content: Element) -> tuple[RegistryEntry, ...]:
    """Return the document entries of an AdhocQueryResponse that have an id and a uniqueId."""
    entries = []
    for element in content.iter("{*}ExtrinsicObject"):
        unique_id = next(
            (
                identifier.get("value", "").strip()
                for identifier in element.iter("{*}ExternalIdentifier")
                if identifier.get("identificationScheme") == codes.ENTRY_UNIQUE_ID
            ),
            "",
        )
        entry_uuid = element.get("id", "").strip()
        if unique_id and entry_uuid:
            size = _slot(element, "size")
            entries.append(
                RegistryEntry(
                    entry_uuid=entry_uuid,
                    unique_id=unique_id,
                    hash=_slot(element, "hash").lower(),
                    size=int(size) if size.isascii() and size.isdigit() and len(size) < 16 else 0,
                    status=element.get("status", "").strip(),
                )
            )
        if len(entries) >= MAX_ITEMS:
            break
    return tuple(entries)


def read_existence(content: Element) -> Existence:
    """Read a PRPA_IN201308UV02, values by name and not by path; raises `NotUnderstood` for another."""
    if _local(content) != "PRPA_IN201308UV02":
        raise NotUnderstood("réponse qui n'est pas celle du test d'existence")
    acknowledgement = next(content.iter("{*}acknowledgement"), None)
    details = [
        f"{_code(_child(item, 'code'))} {_text(_child(item, 'text'))}".strip()
        for item in content.iter("{*}acknowledgementDetail")
    ]
    patient = next(content.iter("{*}patient"), None)
    return Existence(
        acknowledgement=_code(_child(acknowledgement, "typeCode")),
        query_response=_code(next(content.iter("{*}queryResponseCode"), None)),
        authorization=_authorization(content),
        patient_status=_code(_child(patient, "statusCode")),
        detail=" ; ".join(detail for detail in details[:8] if detail),
    )


def _authorization(content: Element) -> str:
    """Return the code of the first `value` that follows an element coded AUTORISATION."""
    seen = False
    for element in content.iter("{*}*"):
        if seen and _local(element) == "value" and element.get("code"):
            return str(element.get("code")).strip()
        seen = seen or element.get("code") == "AUTORISATION"
    return ""


def _slot(element: Element, name: str) -> str:
    for slot in element:
        if _local(slot) == "Slot" and slot.get("name") == name:
            return _all_text(next(slot.iter("{*}Value"), None))
    return ""


def _child(element: Element | None, name: str) -> Element | None:
    if element is None:
        return None
    return next((child for child in element if _local(child) == name), None)


def _code(element: Element | None) -> str:
    return "" if element is None else str(element.get("code", "")).strip()


def _text(element: Element | None) -> str:
    return "" if element is None else (element.text or "").strip()


def _all_text(element: Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext("{*}*")).split())


def _is_element(node: Element) -> bool:
    return isinstance(node.tag, str)


def _local(node: Element) -> str:
    return node.tag.rpartition("}")[2] if _is_element(node) else ""


def _local_qname(value: str) -> str:
    return value.rpartition(":")[2]


def _tail(urn: str) -> str:
    """Return the last part of a URN or of a prefixed name: `…ResponseStatusType:Success` -> Success."""
    return urn.strip().rpartition(":")[2]
