"""The XAdES document that signs a submission (interfaces.md 4.4), checked by own code alone.

libxmlsec1 would try to fetch the `urn:oid:` references of the Manifest, so the two references of
SignedInfo, the SignatureValue and every digest of the Manifest are recomputed here, over C14N of each
fragment in its namespace context. The tests hold the `xmlsec1` command against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from drimbox.sim.dmp_trust import Findings, Trust, may_sign, names_subject, unit_of
from drimbox.sim.xmltools import (
    DIGESTS,
    DS,
    RSA_SHA1,
    RSA_SHA256,
    c14n,
    c14n_by_uri,
    digest,
    ds,
    rsa_verify,
    text_of,
    unb64,
)
from drimbox.xml import Element, XmlRefused, safe_parse

#: Namespace to (Type of the reference to SignedProperties, namespace of the digest in CertDigest).
VERSIONS = {
    "http://uri.etsi.org/01903/v1.1.1#": (
        "http://uri.etsi.org/01903/v1.1.1#SignedProperties",
        "http://uri.etsi.org/01903/v1.1.1#",
    ),
    "http://uri.etsi.org/01903/v1.3.2#": ("http://uri.etsi.org/01903#SignedProperties", DS),
}
PURPOSE = "1.2.840.10065.1.12.1.14"
CODE = "XDSRegistryMetadataError"


def _x(properties: Element, path: str) -> str:
    """Return a path of XAdES names, in the version of `properties`."""
    namespace = properties.tag[1:].partition("}")[0]
    return "/".join(f"{{{namespace}}}{name}" for name in path.split("/"))


def _qualifying(root: Element) -> Element:
    found = [
        each
        for version in VERSIONS
        for each in root.findall(f"{ds('Object')}/{{{version}}}QualifyingProperties")
    ]
    if len(found) != 1:
        raise _Broken(f"QualifyingProperties is due once, found {len(found)} times")
    return found[0]


class _Broken(Exception):
    """The document has not the shape of a signature."""


@attrs.frozen
class XadesDocument:
    """What a checked signature document says."""

    id: str
    #: Unique ids the Manifest lists, the submission set's first.
    listed: tuple[str, ...]


def check_xades(
    data: bytes,
    *,
    documents: Mapping[str, bytes],
    submission_uid: str,
    structure: str,
    trust: Trust,
    now: datetime,
    algorithms: frozenset[str],
    findings: Findings,
) -> XadesDocument | None:
    """Check a signature document against what it signs.

    `documents` are the other documents of the submission by uniqueId. Faults of shape are errors;
    signature, digests and certificate are matters of trust. Returns None when it is no signature at all.
    """
    try:
        return _check(data, documents, submission_uid, structure, trust, now, algorithms, findings)
    except (XmlRefused, _Broken, ValueError) as error:
        findings.error(CODE, f"signature document: {error}", "Signature")
        return None


def _one(parent: Element, path: str) -> Element:
    found = parent.findall(path)
    if len(found) != 1:
        raise _Broken(f"{path.rsplit('}', 1)[-1]} is due once, found {len(found)} times")
    return found[0]


def _check(
    data: bytes,
    documents: Mapping[str, bytes],
    submission_uid: str,
    structure: str,
    trust: Trust,
    now: datetime,
    algorithms: frozenset[str],
    findings: Findings,
) -> XadesDocument:
    root = safe_parse(data)
    if root.tag != ds("Signature") or not root.get("Id"):
        raise _Broken("root is no ds:Signature with Id")
    identifiers = [e.get("Id") for e in root.iter("*") if e.get("Id") is not None]
    if len(identifiers) != len(set(identifiers)):
        raise _Broken("Id given twice")
    manifest = _one(root, f"{ds('Object')}/{ds('Manifest')}")
    qualifying = _qualifying(root)
    properties = _one(qualifying, _x(qualifying, "SignedProperties"))
    mark = "#" + root.get("Id")
    purpose = _one(root, f"{ds('Object')}/{ds('SignatureProperties')}/{ds('SignatureProperty')}")
    if purpose.get("Target") != mark or qualifying.get("Target") != mark:
        raise _Broken("Target is not the Signature's Id")
    if purpose.get("Id") != "purposeOfSignature" or text_of(purpose) != PURPOSE:
        raise _Broken("purposeOfSignature missing or wrong")
    if manifest.get("Id") != "IHEManifest":
        raise _Broken("Manifest Id is not IHEManifest")
    signer = _check_signed_info(root, manifest, properties, algorithms, findings)
    if signer is not None:
        _check_signer(signer, properties, structure, trust, now, findings)
    _check_instant(properties)
    listed = _check_manifest(manifest, documents, submission_uid, findings)
    return XadesDocument(root.get("Id"), listed)


def _check_signed_info(
    root: Element,
    manifest: Element,
    properties: Element,
    algorithms: frozenset[str],
    findings: Findings,
) -> x509.Certificate | None:
    info = _one(root, ds("SignedInfo"))
    canonical = _one(info, ds("CanonicalizationMethod")).get("Algorithm", "")
    method = _one(info, ds("SignatureMethod")).get("Algorithm", "")
    algorithm = {RSA_SHA1: "sha1", RSA_SHA256: "sha256"}.get(method)
    if algorithm is None or algorithm not in algorithms:
        raise _Broken(f"SignatureMethod {method} not accepted")
    expected = {
        f"#{manifest.get('Id')}": (DS + "Manifest", manifest),
        f"#{properties.get('Id')}": (VERSIONS[properties.tag[1:].partition("}")[0]][0], properties),
    }
    references = info.findall(ds("Reference"))
    if sorted(r.get("URI", "") for r in references) != sorted(expected):
        raise _Broken("SignedInfo does not refer to Manifest and SignedProperties, each once")
    for reference in references:
        kind, target = expected[reference.get("URI")]
        if reference.get("Type") != kind:
            raise _Broken(f"Reference {reference.get('URI')} has another Type than {kind}")
        if reference.find(ds("Transforms")) is not None:
            raise _Broken("Reference with Transforms")
        name = DIGESTS.get(_one(reference, ds("DigestMethod")).get("Algorithm", ""))
        if name is None or name not in algorithms:
            raise _Broken("DigestMethod not accepted")
        # No transform: canonical XML 1.0 without comments is the default (XML-DSig 4.3.3.2).
        actual = digest(name, c14n(target, exclusive=False))
        if actual != unb64(_one(reference, ds("DigestValue")).text):
            findings.trust(
                CODE, f"signature document: digest of {reference.get('URI')} differs", "Signature"
            )
    text = _one(root, f"{ds('KeyInfo')}/{ds('X509Data')}/{ds('X509Certificate')}").text
    try:
        certificate = x509.load_der_x509_certificate(unb64(text))
    except ValueError:
        findings.trust(CODE, "signature document: X509Certificate unreadable", "Signature")
        return None
    value = unb64(_one(root, ds("SignatureValue")).text)
    if not rsa_verify(certificate, algorithm, c14n_by_uri(info, canonical), value):
        findings.trust(CODE, "signature document: SignatureValue does not verify", "Signature")
    return certificate


def _check_signer(
    signer: x509.Certificate,
    properties: Element,
    structure: str,
    trust: Trust,
    now: datetime,
    findings: Findings,
) -> None:
    problem = trust.problem_with(signer, now)
    if problem is not None:
        findings.trust(CODE, f"signature document: certificate refused: {problem}", "Signature")
    if not may_sign(signer):
        findings.trust(CODE, "signature document: not a signature certificate", "Signature")
    if unit_of(signer) != structure:
        findings.trust(CODE, "signature document: OU of the signer is not the structure", "Signature")
    listed = _one(properties, _x(properties, "SignedSignatureProperties/SigningCertificate/Cert"))
    hashed = _one(listed, _x(listed, "CertDigest"))
    namespace = VERSIONS[hashed.tag[1:].partition("}")[0]][1]
    hashing = _one(hashed, f"{{{namespace}}}DigestMethod").get("Algorithm", "")
    name = DIGESTS.get(hashing)
    if name is None:
        raise _Broken("CertDigest with an unknown algorithm")
    der = signer.public_bytes(serialization.Encoding.DER)
    if digest(name, der) != unb64(_one(hashed, f"{{{namespace}}}DigestValue").text):
        findings.trust(CODE, "signature document: CertDigest is not the signer's", "Signature")
    named = _one(listed, _x(listed, "IssuerSerial"))
    serial, issuer = (text_of(_one(named, ds(tag))) for tag in ("X509SerialNumber", "X509IssuerName"))
    if serial != str(signer.serial_number) or not names_subject(issuer, signer.issuer):
        findings.trust(CODE, "signature document: IssuerSerial is not the signer's", "Signature")


def _check_instant(properties: Element) -> None:
    about = _one(properties, _x(properties, "SignedSignatureProperties"))
    instant = datetime.fromisoformat(text_of(_one(about, _x(about, "SigningTime"))))
    if instant.tzinfo is None:
        raise _Broken("SigningTime without zone")
    _one(about, _x(about, "SignaturePolicyIdentifier/SignaturePolicyImplied"))
    _one(properties, _x(properties, "SignedDataObjectProperties"))


def _check_manifest(
    manifest: Element, documents: Mapping[str, bytes], submission_uid: str, findings: Findings
) -> tuple[str, ...]:
    listed: list[str] = []
    for reference in manifest.findall(ds("Reference")):
        uri = reference.get("URI", "")
        if not uri.startswith("urn:oid:"):
            raise _Broken(f"Manifest refers to {uri[:40]!r}, no urn:oid:")
        uid = uri[8:]
        listed.append(uid)
        name = DIGESTS.get(_one(reference, ds("DigestMethod")).get("Algorithm", ""))
        value = unb64(_one(reference, ds("DigestValue")).text)
        if name is None:
            raise _Broken("Manifest digest with an unknown algorithm")
        if uid == submission_uid:
            if value != b"\x00":
                findings.warn("signature document: digest of the submission set is not AA==")
        elif uid in documents and digest(name, documents[uid]) != value:
            findings.error(CODE, f"signature document: digest of {uid} differs", "Signature")
    if sorted(listed) != sorted([submission_uid, *documents]):
        findings.error(CODE, "signature document: Manifest does not list this submission", "Signature")
    return tuple(listed)
