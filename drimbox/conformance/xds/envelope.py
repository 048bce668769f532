"""The SOAP envelope around a submission: WS-Addressing, security header, body (SOAP 1.2, ITI TF-2 V.3)."""

from __future__ import annotations

import re
from typing import Final

import attrs

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds.assertion import SAML
from drimbox.conformance.xds.rim import LCM
from drimbox.xml import Element

SOAP: Final = "http://www.w3.org/2003/05/soap-envelope"
_SOAP11: Final = "http://schemas.xmlsoap.org/soap/envelope/"
_WSA: Final = "http://www.w3.org/2005/08/addressing"
_WSSE: Final = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
XDSB: Final = "urn:ihe:iti:xds-b:2007"
PUBLISH: Final = "urn:ihe:iti:2007:ProvideAndRegisterDocumentSet-b"
UPDATE: Final = "urn:ihe:iti:2010:UpdateDocumentSet"
_HEADERS: Final = "ITI TF-2 V.3 ; WS-Addressing 1.0"

RULES = RuleBook("soap")
_ROOT = RULES.error("envelope", "enveloppe SOAP 1.2 attendue", "ITI TF-2 V.3")
_NO_BODY = RULES.error("body", "soap:Body avec un seul élément attendu", "SOAP 1.2 partie 1, 5.3")
_NO_HEADER = RULES.error("header", "soap:Header absent", _HEADERS)
_ABSENT = RULES.error("addressing", "{name} absent", _HEADERS)
_TWICE = RULES.error("addressing_twice", "{name} donné deux fois", "WS-Addressing 1.0 3.2")
_MESSAGE_ID = RULES.warning("message_id", "MessageID : urn:uuid:… attendu", "ITI TF-2 V.3")
_TO = RULES.warning("to", "To : adresse https attendue", "WS-Addressing 1.0")
_ACTION = RULES.error("action", "Action {action} : pas celle du corps ({due})", "ITI TF-2 3.41 ; 3.57")
_OUTER = RULES.warning("outer_action", "action du Content-Type différente de wsa:Action", "ITI TF-2 V.3")
_UNDERSTAND = RULES.error("must_understand", 'Action sans mustUnderstand="true"', "ITI TF-2 V.3")
_UNQUALIFIED = RULES.warning(
    "must_understand_ns", "mustUnderstand hors de l'espace de noms SOAP", "SOAP 1.2 partie 1, 5.2.3"
)
_REPLY = RULES.inform(
    "reply_to", "ReplyTo : les échanges publiés n'en ont pas", "CI-SIS Partage de documents"
)
_SECURITY = RULES.error("security", "wsse:Security avec une assertion SAML attendu", "CI-SIS VIHF")
_WRAPPER = RULES.error("wrapper", "corps : {due} attendu", "ITI TF-2 3.41 ; 3.57")

_UUID = re.compile(r"urn:uuid:[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_PUBLICATION: Final = f"{{{XDSB}}}ProvideAndRegisterDocumentSetRequest"
_SUBMISSION: Final = f"{{{LCM}}}SubmitObjectsRequest"


@attrs.frozen
class Envelope:
    """What an envelope holds."""

    body: Element
    assertion: Element | None
    #: True for ITI-57, which carries no document.
    update: bool


def is_envelope(root: Element) -> bool:
    """Say whether this is a SOAP envelope of any version."""
    return root.tag in (f"{{{SOAP}}}Envelope", f"{{{_SOAP11}}}Envelope")


def open_envelope(root: Element, outer_action: str | None, out: Report) -> Envelope | None:
    """Judge an envelope; None when it has no body to judge."""
    namespace = SOAP
    if root.tag != f"{{{SOAP}}}Envelope":
        _ROOT.broken(out)
        namespace = _SOAP11
    header = root.find(f"{{{namespace}}}Header")
    body = root.find(f"{{{namespace}}}Body")
    children = [] if body is None else list(body.iterchildren("*"))
    if len(children) != 1:
        _NO_BODY.broken(out)
    assertion = None
    if header is None:
        _NO_HEADER.broken(out)
    if not children:
        return None
    update = children[0].tag == _SUBMISSION
    if children[0].tag not in (_PUBLICATION, _SUBMISSION):
        _WRAPPER.broken(out, due="ProvideAndRegisterDocumentSetRequest ou SubmitObjectsRequest")
    if header is not None:
        _check_addressing(header, UPDATE if update else PUBLISH, namespace, outer_action, out)
        assertion = _assertion(header, out)
    return Envelope(children[0], assertion, update)


def _check_addressing(
    header: Element, due: str, namespace: str, outer_action: str | None, out: Report
) -> None:
    found: dict[str, Element] = {}
    for name in ("MessageID", "To", "Action"):
        elements = header.findall(f"{{{_WSA}}}{name}")
        if len(elements) > 1:
            _TWICE.broken(out, name=name)
        if not elements or not (elements[0].text or "").strip():
            _ABSENT.broken(out, name=name)
        else:
            found[name] = elements[0]
    texts = {name: (element.text or "").strip() for name, element in found.items()}
    if "MessageID" in texts and _UUID.fullmatch(texts["MessageID"]) is None:
        _MESSAGE_ID.broken(out)
    if "To" in texts and not texts["To"].startswith("https://"):
        _TO.broken(out)
    if header.find(f"{{{_WSA}}}ReplyTo") is not None:
        _REPLY.broken(out)
    if "Action" not in found:
        return
    if texts["Action"] != due:
        _ACTION.broken(out, action=shown(texts["Action"]), due=due)
    if outer_action is not None and outer_action != texts["Action"]:
        _OUTER.broken(out)
    understood = found["Action"].get(f"{{{namespace}}}mustUnderstand")
    if understood is None and found["Action"].get("mustUnderstand") in ("true", "1"):
        _UNQUALIFIED.broken(out)
    elif understood not in ("true", "1"):
        _UNDERSTAND.broken(out)


def _assertion(header: Element, out: Report) -> Element | None:
    found = header.findall(f"{{{_WSSE}}}Security/{{{SAML}}}Assertion")
    if len(found) != 1:
        _SECURITY.broken(out)
    return found[0] if found else None
