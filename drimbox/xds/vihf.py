"""The VIHF: a SAML 2.0 assertion that says who publishes, for which patient (interfaces.md 4.5).

Theory of operation. Indirect authentication: the structure answers for its professional, so the issuer
is the subject DN of the ORG signature certificate and that key signs. Enveloped signature, exclusive
C14N: the assertion is signed alone and stays valid wherever the SOAP header puts it. New at every
attempt (identifier, instant), unlike everything else that is sent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import xmlsec
from lxml import etree

from drimbox import __version__
from drimbox.model import Code, Report
from drimbox.xds import codes, hl7types
from drimbox.xds.ebrim import printable
from drimbox.xds.metadata import facility_type
from drimbox.xds.sender import Sender, SigningPair, distinguished_name
from drimbox.xml import Element

SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
HL7V3 = "urn:hl7-org:v3"
X509_SUBJECT = "urn:oasis:names:tc:SAML:1.1:nameid-format:X509SubjectName"
TLS_CLIENT = "urn:oasis:names:tc:SAML:2.0:ac:classes:TLSClient"
SUBJECT_ID = "urn:oasis:names:tc:xspa:1.0:subject:subject-id"
RESOURCE_ID = "urn:oasis:names:tc:xacml:2.0:resource:resource-id"
ROLE = "urn:oasis:names:tc:xacml:2.0:subject:role"
PURPOSE = "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse"
SECRET = "urn:oasis:names:tc:xspa:1.0:resource:patient:hl7:confidentiality-code"  # noqa: S105

_ALGORITHMS = {
    "sha1": (xmlsec.constants.TransformSha1, xmlsec.constants.TransformRsaSha1),
    "sha256": (xmlsec.constants.TransformSha256, xmlsec.constants.TransformRsaSha256),
}
#: CDA author code `G15_10/SM44`: profession after the underscore, speciality after the slash.
_AUTHOR_CODE = re.compile(r"(?:G\d+_)?(\d{1,4})(?:/([A-Z0-9]{1,10}))?", re.ASCII)
_PROFESSIONS = {"10": "Médecin"}
_NORMAL_ACCESS = Code("normal", "1.2.250.1.213.1.1.4.248", "Acces normal")
_AUTOMATON = Code("AUTOMATE", "1.2.250.1.213.1.1.4.6", "Automate")
#: The key of each pair as xmlsec wants it: reading it again costs as much as half a signature.
_KEYS: WeakKeyDictionary[SigningPair, Any] = WeakKeyDictionary()
_SECRET_CONNECTION = Code("CONNEXION_SECRETE", "1.2.250.1.213.1.1.4.13", "Connexion secrète")


def vihf(
    sender: Sender,
    report: Report,
    *,
    secret_connection: bool,
    assertion_id: str,
    instant: datetime,
    pair: SigningPair,
) -> bytes:
    """Return the signed assertion, UTF-8 without XML declaration.

    `assertion_id` must be an NCName (`_` + UUID), `instant` is aware. Raises `ReportNotInterpretable`
    (E005) when the report gives no facility type, `KeyError` for a digest other than "sha256", "sha1".
    """
    root = _assertion(sender, report, secret_connection, assertion_id, instant, pair)
    _sign(root, pair, sender.settings.digest)
    data: bytes = etree.tostring(root, encoding="utf-8", xml_declaration=False)
    return data


def roles(author_role: str) -> tuple[Code, ...]:
    """Return profession and speciality of the CDA author code; an automaton when it says nothing."""
    match = _AUTHOR_CODE.fullmatch(author_role.strip())
    if match is None:
        return (_AUTOMATON,)
    profession = Code(match[1], "1.2.250.1.71.1.2.7", _PROFESSIONS.get(match[1], match[1]))
    if match[2] is None:
        return (profession,)
    return (profession, Code(match[2], "1.2.250.1.71.4.2.5", match[2]))


def _assertion(
    sender: Sender,
    report: Report,
    secret_connection: bool,
    assertion_id: str,
    instant: datetime,
    pair: SigningPair,
) -> Element:
    moment = instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{instant.microsecond // 1000:03d}Z"
    root = etree.Element(
        f"{{{SAML}}}Assertion",
        {"ID": assertion_id, "IssueInstant": moment, "Version": "2.0"},
        nsmap={"saml2": SAML},
    )
    issuer = _add(root, "Issuer", distinguished_name(pair.certificate.subject))
    issuer.set("Format", X509_SUBJECT)
    professional = report.author if report.author.id else report.legal_authenticator
    _add(_add(root, "Subject"), "NameID", professional.id)
    statement = _add(root, "AuthnStatement")
    statement.set("AuthnInstant", moment)
    _add(_add(statement, "AuthnContext"), "AuthnContextClassRef", TLS_CLIENT)

    attributes = _add(root, "AttributeStatement")
    facility = facility_type(report)
    appliance = sender.appliance
    for name, value in (
        ("VIHF_Version", sender.settings.vihf_version),
        ("Identifiant_Structure", sender.structure.id),
        ("Secteur_Activite", f"{facility.value}^{facility.scheme or codes.FACILITY_SCHEME}"),
        ("Ressource_URN", "urn:dmp"),
        (SUBJECT_ID, f"{professional.given} {professional.family}".strip()),
        ("LPS_ID", appliance.serial_number),
        ("LPS_Nom", appliance.name),
        ("LPS_Version", __version__),
        ("LPS_ID_HOMOLOGATION_DMP", appliance.dmp_certification),
        (RESOURCE_ID, hl7types.patient_id(report.patient)),
        ("Authentification_Mode", "INDIRECTE"),
    ):
        _add(_attribute(attributes, name), "AttributeValue", value)
    purpose = _attribute(attributes, PURPOSE)
    _coded(purpose, "PurposeOfUse", _NORMAL_ACCESS, "mode acces VIHF 1.0")
    role = _attribute(attributes, ROLE)
    for code in roles(report.author_role):
        _coded(role, "Role", code, "")
    if secret_connection:
        _coded(_attribute(attributes, SECRET), "ConfidentialityCode", _SECRET_CONNECTION, "")
    return root


def _attribute(statement: Element, name: str) -> Element:
    attribute = _add(statement, "Attribute")
    attribute.set("Name", name)
    return attribute


def _coded(attribute: Element, tag: str, code: Code, system_name: str) -> None:
    values = {
        f"{{{XSI}}}type": "CE",
        "code": code.value,
        "codeSystem": code.scheme,
        "codeSystemName": system_name,
        "displayName": code.display,
    }
    holder = _add(attribute, "AttributeValue")
    etree.SubElement(holder, f"{{{HL7V3}}}{tag}", values, nsmap={None: HL7V3, "xsi": XSI})


def _add(parent: Element, tag: str, text: str | None = None) -> Element:
    element = etree.SubElement(parent, f"{{{SAML}}}{tag}")
    if text is not None:
        element.text = printable(text)
    return element


def _sign(root: Element, pair: SigningPair, digest: str) -> None:
    digest_transform, signature_transform = _ALGORITHMS[digest]
    signature = xmlsec.template.create(
        root, xmlsec.constants.TransformExclC14N, signature_transform, ns="ds"
    )
    # SAML wants the signature right after the issuer.
    root.insert(1, signature)
    reference = xmlsec.template.add_reference(signature, digest_transform, uri="#" + root.get("ID"))
    xmlsec.template.add_transform(reference, xmlsec.constants.TransformEnveloped)
    xmlsec.template.add_transform(reference, xmlsec.constants.TransformExclC14N)
    x509_data = xmlsec.template.add_x509_data(xmlsec.template.ensure_key_info(signature))
    xmlsec.template.x509_data_add_certificate(x509_data)
    xmlsec.tree.add_ids(root, ["ID"])
    context = xmlsec.SignatureContext()
    context.key = _key(pair)
    context.sign(signature)


def _key(pair: SigningPair) -> Any:
    if pair not in _KEYS:
        key = xmlsec.Key.from_memory(pair.key_pem, xmlsec.constants.KeyDataFormatPem)
        key.load_cert_from_memory(pair.certificate_pem, xmlsec.constants.KeyDataFormatPem)
        _KEYS[pair] = key
    return _KEYS[pair]
