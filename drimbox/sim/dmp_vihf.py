"""The VIHF: the signed SAML assertion that says who asks the DMP for what (interfaces.md 4.5).

The signature is judged in two steps that must agree on one element: own code fixes its shape (one
reference, to the assertion itself, the two known transforms, a known algorithm), then python-xmlsec does
the mathematics with the embedded certificate, which the chain check must accept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs
import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from drimbox.sim.dmp_soap import SAML, SoapFault
from drimbox.sim.dmp_trust import Findings, Trust, may_sign, names_subject, unit_of
from drimbox.sim.xmltools import DIGESTS, EXC_C14N, RSA_SHA1, RSA_SHA256, ds, text_of, unb64
from drimbox.xml import Element

#: Takes a wsse subcode and a text: raises a fault, or warns in lenient mode.
Distrust = Callable[[str, str], None]

HL7 = "urn:hl7-org:v3"
ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ISSUER_FORMAT = "urn:oasis:names:tc:SAML:1.1:nameid-format:X509SubjectName"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"

RESOURCE_ID = "urn:oasis:names:tc:xacml:2.0:resource:resource-id"
ROLE = "urn:oasis:names:tc:xacml:2.0:subject:role"
PURPOSE = "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse"
SUBJECT_ID = "urn:oasis:names:tc:xspa:1.0:subject:subject-id"

#: Mandatory text attributes and what their value must look like.
_TEXTS = {
    "VIHF_Version": r"3\.0|4\.0",
    "Identifiant_Structure": r"\S{3,}",
    "Secteur_Activite": r"SA\d\d\^1\.2\.250\.1\.71\.4\.2\.4",
    "Ressource_URN": r"urn:dmp",
    SUBJECT_ID: r".*\S.*",
    RESOURCE_ID: r"[0-9A-Z]{15,22}\^\^\^&1\.2\.250\.1\.213\.1\.4\.(8|9|10|11)&ISO\^NH",
    "Authentification_Mode": r"INDIRECTE|INDIRECTE_RENFORCEE|DIRECTE",
    "LPS_ID": r".*",
    "LPS_Nom": r".*\S.*",
    "LPS_Version": r".*\S.*",
    "LPS_ID_HOMOLOGATION_DMP": r".*",
}
_CONTEXTS = re.compile(r"urn:oasis:names:tc:SAML:2\.0:ac:classes:\w+", re.ASCII)
_NCNAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)


@attrs.frozen
class Vihf:
    """What a checked assertion says."""

    id: str
    structure: str
    patient: str
    mode: str
    professional: str
    signer: x509.Certificate | None


def check_vihf(
    assertion: Element,
    *,
    now: datetime,
    trust: Trust,
    client: x509.Certificate | None,
    findings: Findings,
    freshness: timedelta,
    algorithms: frozenset[str],
) -> Vihf:
    """Return what the assertion says, or raise `SoapFault` with the wsse subcode for what is wrong.

    `client` is the TLS certificate: its OU, the signer's and Identifiant_Structure must be one.
    `algorithms` are the digests accepted ("sha256", "sha1"). In lenient mode matters of trust (signature,
    certificate, freshness, structure) only add warnings.
    """

    def distrust(subcode: str, text: str) -> None:
        if not findings.lenient:
            raise SoapFault(subcode, text)
        findings.warn(f"VIHF: {text}")

    identifier = assertion.get("ID", "")
    if assertion.get("Version") != "2.0" or not identifier:
        raise SoapFault("wsse:InvalidSecurityToken", "assertion without ID or Version 2.0")
    if _NCNAME.fullmatch(identifier) is None:
        findings.warn("VIHF: ID is not an NCName")
    _check_instant(assertion.get("IssueInstant", ""), now, freshness, distrust)
    signer = _check_signature(assertion, identifier, algorithms, distrust)
    issuers = assertion.findall(f"{{{SAML}}}Issuer")
    if len(issuers) != 1 or issuers[0].get("Format") != ISSUER_FORMAT:
        raise SoapFault("wsse:InvalidSecurityToken", "one Issuer of format X509SubjectName is due")
    if signer is not None:
        problem = trust.problem_with(signer, now)
        if problem is not None:
            distrust("wsse:FailedAuthentication", f"signing certificate refused: {problem}")
        if not may_sign(signer):
            distrust("wsse:FailedAuthentication", "signed with a certificate that is no signature one")
        if not names_subject(text_of(issuers[0]), signer.subject):
            distrust("wsse:InvalidSecurityToken", "Issuer is not the subject of the signing certificate")
    professional = text_of(assertion.find(f"{{{SAML}}}Subject/{{{SAML}}}NameID"))
    if not professional:
        raise SoapFault("wsse:InvalidSecurityToken", "Subject/NameID missing")
    statement = assertion.find(f"{{{SAML}}}AuthnStatement")
    context = assertion.find(
        f"{{{SAML}}}AuthnStatement/{{{SAML}}}AuthnContext/{{{SAML}}}AuthnContextClassRef"
    )
    if statement is None or not statement.get("AuthnInstant") or not _CONTEXTS.fullmatch(text_of(context)):
        raise SoapFault(
            "wsse:InvalidSecurityToken", "AuthnStatement missing or without known context class"
        )
    values = _check_attributes(assertion)
    structure = values["Identifiant_Structure"]
    for name, certificate in (("signing", signer), ("TLS client", client)):
        if certificate is None:
            distrust("wsse:FailedAuthentication", f"no {name} certificate")
        elif unit_of(certificate) != structure:
            distrust("wsse:FailedAuthentication", f"OU of the {name} certificate is not the structure")
    return Vihf(
        id=identifier,
        structure=structure,
        patient=values[RESOURCE_ID],
        mode=values["Authentification_Mode"],
        professional=professional,
        signer=signer,
    )


def _check_instant(text: str, now: datetime, freshness: timedelta, distrust: Distrust) -> None:
    try:
        if not text.endswith("Z"):
            raise ValueError("not UTC")
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise SoapFault("wsse:InvalidSecurityToken", f"IssueInstant: {error}") from error
    if instant < now - freshness:
        distrust("wsse:MessageExpired", "assertion too old")
    elif instant > now + timedelta(seconds=60):
        distrust("wsse:InvalidSecurityToken", "assertion issued in the future")


def _check_signature(
    assertion: Element, identifier: str, algorithms: frozenset[str], distrust: Distrust
) -> x509.Certificate | None:
    """Return the certificate that signed the assertion; None only in lenient mode."""
    signatures = assertion.findall(f".//{ds('Signature')}")
    if len(signatures) != 1 or len(assertion) < 2 or assertion[1] is not signatures[0]:
        raise SoapFault("wsse:InvalidSecurityToken", "one ds:Signature right after Issuer is due")
    signature = signatures[0]
    root = signature.getroottree().getroot()
    if sum(1 for element in root.iter("*") if element.get("ID") == identifier) != 1:
        raise SoapFault("wsse:InvalidSecurityToken", "ID of the assertion is not unique")
    algorithm = _check_shape(signature, identifier)
    if algorithm not in algorithms:
        raise SoapFault("wsse:UnsupportedAlgorithm", f"{algorithm} is not accepted here")
    certificates = signature.findall(f"{ds('KeyInfo')}/{ds('X509Data')}/{ds('X509Certificate')}")
    if not certificates:
        raise SoapFault("wsse:InvalidSecurityToken", "KeyInfo without X509Certificate")
    try:
        certificate = x509.load_der_x509_certificate(unb64(certificates[0].text))
    except ValueError:
        distrust("wsse:InvalidSecurityToken", "X509Certificate unreadable")
        return None
    context = xmlsec.SignatureContext()
    context.key = xmlsec.Key.from_memory(
        certificate.public_bytes(serialization.Encoding.PEM), xmlsec.constants.KeyDataFormatCertPem
    )
    context.register_id(assertion, "ID")
    try:
        context.verify(signature)
    except xmlsec.Error:
        distrust("wsse:FailedCheck", "signature of the assertion does not verify")
    return certificate


def _check_shape(signature: Element, identifier: str) -> str:
    """Return the digest name of a signature whose SignedInfo has the only shape allowed."""
    info = signature.find(ds("SignedInfo"))
    references = [] if info is None else info.findall(ds("Reference"))
    if info is None or len(references) != 1 or references[0].get("URI") != f"#{identifier}":
        raise SoapFault("wsse:InvalidSecurityToken", "one Reference to the assertion's ID is due")
    canonical = info.find(ds("CanonicalizationMethod"))
    transforms = references[0].findall(f"{ds('Transforms')}/{ds('Transform')}")
    if (
        canonical is None
        or canonical.get("Algorithm") != EXC_C14N
        or [step.get("Algorithm") for step in transforms] != [ENVELOPED, EXC_C14N]
    ):
        raise SoapFault("wsse:UnsupportedAlgorithm", "exclusive C14N and enveloped-signature are due")
    method, hashing = info.find(ds("SignatureMethod")), references[0].find(ds("DigestMethod"))
    by_method = {RSA_SHA1: "sha1", RSA_SHA256: "sha256"}
    signed = by_method.get("" if method is None else method.get("Algorithm", ""), "unknown method")
    hashed = DIGESTS.get("" if hashing is None else hashing.get("Algorithm", ""), "unknown digest")
    if signed != hashed:
        raise SoapFault("wsse:UnsupportedAlgorithm", f"signature {signed}, digest {hashed}")
    return signed


def _check_attributes(assertion: Element) -> dict[str, str]:
    """Return the text attributes after checking presence, cardinality and value of all mandatory ones."""
    statements = assertion.findall(f"{{{SAML}}}AttributeStatement")
    if len(statements) != 1:
        raise SoapFault("wsse:InvalidSecurityToken", "one AttributeStatement is due")
    attributes: dict[str, list[Element]] = {}
    for attribute in statements[0].findall(f"{{{SAML}}}Attribute"):
        name = attribute.get("Name", "")
        if name in attributes:
            raise SoapFault("wsse:InvalidSecurityToken", f"attribute {name} given twice")
        attributes[name] = attribute.findall(f"{{{SAML}}}AttributeValue")
    values: dict[str, str] = {}
    for name, pattern in _TEXTS.items():
        found = attributes.get(name, [])
        if len(found) != 1:
            raise SoapFault("wsse:InvalidSecurityToken", f"attribute {name} is due once")
        values[name] = text_of(found[0])
        if re.fullmatch(pattern, values[name], re.ASCII) is None:
            raise SoapFault("wsse:InvalidSecurityToken", f"attribute {name} has no allowed value")
    roles = attributes.get(ROLE, [])
    if not roles:
        raise SoapFault("wsse:InvalidSecurityToken", f"attribute {ROLE} missing")
    for value in roles:
        _check_coded(value, "Role", r"\S+", r"[0-9.]+")
    purposes = attributes.get(PURPOSE, [])
    if len(purposes) != 1:
        raise SoapFault("wsse:InvalidSecurityToken", f"attribute {PURPOSE} is due once")
    _check_coded(purposes[0], "PurposeOfUse", r"normal|bris_de_glace", r"1\.2\.250\.1\.213\.1\.1\.4\.248")
    return values


def _check_coded(value: Element, name: str, code: str, system: str) -> None:
    coded = value.find(f"{{{HL7}}}{name}")
    if (
        coded is None
        or coded.get(XSI_TYPE, "").split(":")[-1] != "CE"
        or re.fullmatch(code, coded.get("code", ""), re.ASCII) is None
        or re.fullmatch(system, coded.get("codeSystem", ""), re.ASCII) is None
    ):
        raise SoapFault("wsse:InvalidSecurityToken", f"{name} is not the CE that is due")
