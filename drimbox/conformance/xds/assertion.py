"""The VIHF: a signed SAML 2.0 assertion that says who acts, for which patient (SAML 2.0, IHE XUA, DMP).

Shape, attributes and signature are judged as a receiver would; its age is not, since a capture is always
old. Texts name attributes and never quote the professional or the patient.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

import attrs
from cryptography import x509

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import types, xmldsig
from drimbox.conformance.xds.xmldsig import Judge, ds, text
from drimbox.xml import Element

SAML: Final = "urn:oasis:names:tc:SAML:2.0:assertion"
_HL7: Final = "urn:hl7-org:v3"
_XSI_TYPE: Final = "{http://www.w3.org/2001/XMLSchema-instance}type"
_ISSUER_FORMAT: Final = "urn:oasis:names:tc:SAML:1.1:nameid-format:X509SubjectName"
_VIHF: Final = "DMP VIHF ; CI-SIS VIHF"
_CORE: Final = "SAML 2.0 core"
_WHERE: Final = "VIHF"

RULES = RuleBook("vihf")
_VERSION = RULES.error("version", "Version 2.0 attendue", f"{_CORE} 2.3.3")
_ID = RULES.error("id", "ID absent", f"{_CORE} 2.3.3")
_NCNAME = RULES.warning(
    "id_form", "ID qui n'est pas un NCName (il commence par un chiffre ?)", f"{_CORE} 1.3.4"
)
_ID_TWICE = RULES.error("id_twice", "ID de l'assertion donné deux fois", "W3C XML-DSig 4.4")
_INSTANT = RULES.error("instant", "IssueInstant absent, illisible ou pas en UTC", f"{_CORE} 1.3.3")
_ISSUER = RULES.error("issuer", "Issuer de format X509SubjectName attendu une fois", _VIHF)
_ISSUER_NAME = RULES.error("issuer_name", "Issuer n'est pas le sujet du certificat signataire", _VIHF)
_SUBJECT = RULES.error("subject", "Subject/NameID absent", _VIHF)
_STATEMENT = RULES.error("authn", "AuthnStatement/AuthnInstant absent ou illisible", f"{_CORE} 2.7.2")
_CONTEXT = RULES.error("authn_context", "AuthnContextClassRef absent ou non prévu", f"{_CORE} 2.7.2.2")
_LATE = RULES.warning("authn_instant", "AuthnInstant après IssueInstant", f"{_CORE} 2.7.2")
_SIGNATURE = RULES.error("signature", "une ds:Signature, juste après Issuer, attendue", f"{_CORE} 5.4")
_REFERENCE = RULES.error(
    "reference", "une seule Reference, à l'ID de l'assertion, attendue", f"{_CORE} 5.4.2"
)
_TRANSFORMS = RULES.error(
    "transforms", "transformations enveloped-signature puis exc-c14n attendues", f"{_CORE} 5.4.4"
)
_CANONICAL = RULES.error("canonicalization", "canonicalisation exclusive attendue", f"{_CORE} 5.4.3")
_METHOD = RULES.error("method", "algorithme de signature ou d'empreinte non prévu", "W3C XML-DSig 4.4")
_SHA1 = RULES.warning("sha1", "SHA-1 : SHA-256 est préférable", "ANSSI RGS B1")
_CERTIFICATE = RULES.error("certificate", "X509Certificate absent ou illisible", "W3C XML-DSig 4.5.4")
_DIGEST = RULES.error("digest", "l'empreinte de l'assertion est fausse", "W3C XML-DSig 3.2.1")
_VALUE = RULES.error("value", "SignatureValue : la signature ne se vérifie pas", "W3C XML-DSig 3.2.2")
_JUDGE = RULES.error("judge", "xmlsec1 ne vérifie pas la signature", "W3C XML-DSig 3.2")
_EXPIRED = RULES.error(
    "certificate_date", "certificat hors de ses dates à IssueInstant", "RFC 5280 4.1.2.5"
)
_USAGE = RULES.error(
    "key_usage", "certificat dont l'usage de clé n'est pas la signature", "IGC-Santé ORG_SIGN"
)
_UNIT = RULES.warning("unit", "OU du certificat : pas Identifiant_Structure", "IGC-Santé")
_STATEMENTS = RULES.error("statement", "un AttributeStatement attendu", _VIHF)
_ABSENT = RULES.error("attribute", "attribut {name} absent", _VIHF)
_TWICE = RULES.error("attribute_twice", "attribut {name} donné deux fois", _VIHF)
_FORM = RULES.error("attribute_form", "attribut {name} : valeur mal formée ou non prévue", _VIHF)
_CODED = RULES.error("coded", "attribut {name} : élément {element} de type CE attendu", _VIHF)
_EMPTY = RULES.warning("attribute_empty", "attribut {name} vide", _VIHF)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
_CLASS = re.compile(r"urn:oasis:names:tc:SAML:2\.0:ac:classes:\w+", re.ASCII)
RESOURCE_ID: Final = "urn:oasis:names:tc:xacml:2.0:resource:resource-id"
_ROLE: Final = "urn:oasis:names:tc:xacml:2.0:subject:role"
_PURPOSE: Final = "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse"
_SUBJECT_ID: Final = "urn:oasis:names:tc:xspa:1.0:subject:subject-id"
#: Text attributes and the form of their value; an empty form allows an empty value, with a warning.
TEXTS: Final = {
    "VIHF_Version": r"[34]\.0",
    "Identifiant_Structure": r"\S+",
    "Secteur_Activite": r"SA[0-9]{2}\^1\.2\.250\.1\.71\.4\.2\.4",
    "Ressource_URN": r"urn:dmp",
    _SUBJECT_ID: r".*\S.*",
    RESOURCE_ID: "",
    "Authentification_Mode": r"INDIRECTE|INDIRECTE_RENFORCEE|DIRECTE",
    "LPS_ID": "",
    "LPS_Nom": r".*\S.*",
    "LPS_Version": r".*\S.*",
    "LPS_ID_HOMOLOGATION_DMP": "",
}
#: Coded attributes: element and form of code and codeSystem.
CODED: Final = {
    _ROLE: ("Role", r"\S+", r"[0-9.]+"),
    _PURPOSE: ("PurposeOfUse", r"normal|bris_de_glace", r"1\.2\.250\.1\.213\.1\.1\.4\.248"),
}


@attrs.frozen
class AssertionFacts:
    """What the metadata are held against."""

    patient: str
    structure: str
    issued: datetime | None


def check_assertion(assertion: Element, out: Report, judge: Judge | None = None) -> AssertionFacts:
    """Judge an assertion; return what it says. `judge` is another verifier of its signature."""
    identifier = assertion.get("ID") or ""
    if assertion.get("Version") != "2.0":
        _VERSION.broken(out, _WHERE)
    if not identifier:
        _ID.broken(out, _WHERE)
    elif _NAME.fullmatch(identifier) is None:
        _NCNAME.broken(out, _WHERE)
    root = assertion.getroottree().getroot()
    if identifier and sum(1 for each in root.iter("*") if each.get("ID") == identifier) > 1:
        _ID_TWICE.broken(out, _WHERE)
    issued = _instant(assertion.get("IssueInstant") or "")
    if issued is None:
        _INSTANT.broken(out, _WHERE)
    issuers = assertion.findall(_saml("Issuer"))
    if len(issuers) != 1 or issuers[0].get("Format") != _ISSUER_FORMAT or not text(issuers[0]):
        _ISSUER.broken(out, _WHERE)
    if not text(assertion.find(f"{_saml('Subject')}/{_saml('NameID')}")):
        _SUBJECT.broken(out, _WHERE)
    _check_statement(assertion, issued, out)
    values = _check_attributes(assertion, out)
    structure = values.get("Identifiant_Structure", "")
    issuer = text(issuers[0]) if issuers else ""
    signer = _check_signature(assertion, identifier, out, judge)
    if signer is not None:
        _check_signer(signer, issuer, structure, issued, out)
    return AssertionFacts(values.get(RESOURCE_ID, ""), structure, issued)


def _saml(name: str) -> str:
    return f"{{{SAML}}}{name}"


def _instant(value: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and moment.utcoffset() == timedelta(0) else None


def _check_statement(assertion: Element, issued: datetime | None, out: Report) -> None:
    statement = assertion.find(_saml("AuthnStatement"))
    moment = None if statement is None else _instant(statement.get("AuthnInstant") or "")
    if moment is None:
        _STATEMENT.broken(out, _WHERE)
    elif issued is not None and moment > issued:
        _LATE.broken(out, _WHERE)
    path = f"{_saml('AuthnStatement')}/{_saml('AuthnContext')}/{_saml('AuthnContextClassRef')}"
    if _CLASS.fullmatch(text(assertion.find(path))) is None:
        _CONTEXT.broken(out, _WHERE)


def _check_attributes(assertion: Element, out: Report) -> dict[str, str]:
    statements = assertion.findall(_saml("AttributeStatement"))
    if len(statements) != 1:
        _STATEMENTS.broken(out, _WHERE)
    found: dict[str, list[Element]] = {}
    for attribute in statements[0].findall(_saml("Attribute")) if statements else ():
        name = attribute.get("Name") or ""
        if name in found:
            _TWICE.broken(out, _WHERE, name=shown(name))
        found.setdefault(name, attribute.findall(_saml("AttributeValue")))
    values: dict[str, str] = {}
    for name, form in TEXTS.items():
        short = name.rpartition(":")[2]
        held = found.get(name, [])
        if not held:
            _ABSENT.broken(out, _WHERE, name=short)
            continue
        value = values[name] = text(held[0])
        if name == RESOURCE_ID:
            fits = types.patient(value) is not None
        else:
            fits = not form or re.fullmatch(form, value, re.ASCII) is not None
        if len(held) > 1 or not fits:
            _FORM.broken(out, _WHERE, name=short)
        elif not value:
            _EMPTY.broken(out, _WHERE, name=short)
    for name, (element, code, system) in CODED.items():
        short = name.rpartition(":")[2]
        held = found.get(name, [])
        if not held:
            _ABSENT.broken(out, _WHERE, name=short)
        for value in held:
            coded = value.find(f"{{{_HL7}}}{element}")
            if (
                coded is None
                or (coded.get(_XSI_TYPE) or "").rpartition(":")[2] != "CE"
                or re.fullmatch(code, coded.get("code") or "", re.ASCII) is None
                or re.fullmatch(system, coded.get("codeSystem") or "", re.ASCII) is None
            ):
                _CODED.broken(out, _WHERE, name=short, element=element)
    return values


def _check_signature(
    assertion: Element, identifier: str, out: Report, judge: Judge | None
) -> x509.Certificate | None:
    """Judge shape and mathematics of the signature; return its certificate."""
    signatures = assertion.findall(ds("Signature"))
    children = list(assertion.iterchildren("*"))
    if len(signatures) != 1 or children.index(signatures[0]) != 1:
        _SIGNATURE.broken(out, _WHERE)
    if not signatures:
        return None
    signature = signatures[0]
    info = signature.find(ds("SignedInfo"))
    references = [] if info is None else info.findall(ds("Reference"))
    if info is None or len(references) != 1 or references[0].get("URI") != f"#{identifier}":
        _REFERENCE.broken(out, _WHERE)
        return None
    reference = references[0]
    canonical = xmldsig.algorithm(info.find(ds("CanonicalizationMethod")))
    exclusive = canonical in (xmldsig.EXCLUSIVE, xmldsig.EXCLUSIVE + "WithComments")
    if not exclusive:
        _CANONICAL.broken(out, _WHERE)
    steps = [xmldsig.algorithm(each) for each in reference.findall(f"{ds('Transforms')}/{ds('Transform')}")]
    usual = steps == [xmldsig.ENVELOPED, xmldsig.EXCLUSIVE]
    if not usual:
        _TRANSFORMS.broken(out, _WHERE)
    signed = xmldsig.SIGNATURES.get(xmldsig.algorithm(info.find(ds("SignatureMethod"))))
    digested = xmldsig.DIGESTS.get(xmldsig.algorithm(reference.find(ds("DigestMethod"))))
    if signed is None or digested is None:
        _METHOD.broken(out, _WHERE)
    if "sha1" in (signed, digested):
        _SHA1.broken(out, _WHERE)
    certificate = xmldsig.certificate_of(signature)
    if certificate is None:
        _CERTIFICATE.broken(out, _WHERE)
    if signed is None or digested is None or not usual:
        return certificate
    told = xmldsig.binary(reference.find(ds("DigestValue")))
    if told is None or told != xmldsig.enveloped_digest(assertion, reference):
        _DIGEST.broken(out, _WHERE)
    if certificate is not None and exclusive:
        if not xmldsig.verifies(signature, certificate):
            _VALUE.broken(out, _WHERE)
        if judge is not None and judge(xmldsig.alone(assertion), xmldsig.der(certificate)) is False:
            _JUDGE.broken(out, _WHERE)
    return certificate


def _check_signer(
    certificate: x509.Certificate, issuer: str, structure: str, issued: datetime | None, out: Report
) -> None:
    if issuer and not xmldsig.names(issuer, certificate.subject):
        _ISSUER_NAME.broken(out, _WHERE)
    if issued is not None and not xmldsig.valid_at(certificate, issued):
        _EXPIRED.broken(out, _WHERE)
    if not xmldsig.may_sign(certificate):
        _USAGE.broken(out, _WHERE)
    if structure and structure not in xmldsig.units(certificate):
        _UNIT.broken(out, _WHERE)
