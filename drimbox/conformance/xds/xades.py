"""The signature document of a submission: XAdES around a Manifest (IHE ITI DSG, ETSI TS 101 903).

The Manifest lists the submission set (with the digest `AA==`, as it has no bytes) and every document
under its `urn:oid:`; SignedInfo covers Manifest and SignedProperties. Shape, digests, RSA operation and
the signer's certificate at the time of signing are judged; the chain to a root is not, since roots are
configuration: `drimbox validate xds` lets `xmlsec1` give a second opinion on the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import attrs
from cryptography import x509

from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import xmldsig
from drimbox.conformance.xds.xmldsig import DS, Judge, ds, text
from drimbox.xml import Element, XmlRefused, safe_parse

#: Namespace of each version (that of the samples, that of IHE DSG today): the Type of the reference to its
#: SignedProperties, and the namespace in which CertDigest writes its digest.
VERSIONS: Final = {
    "http://uri.etsi.org/01903/v1.1.1#": (
        "http://uri.etsi.org/01903/v1.1.1#SignedProperties",
        "http://uri.etsi.org/01903/v1.1.1#",
    ),
    "http://uri.etsi.org/01903/v1.3.2#": ("http://uri.etsi.org/01903#SignedProperties", DS),
}
PURPOSE: Final = "1.2.840.10065.1.12.1.14"
_DSG: Final = "IHE ITI DSG ; W3C XML-DSig"
_ETSI: Final = "IHE ITI DSG ; ETSI TS 101 903"
_WHERE: Final = "signature XAdES"
_MAX_REFERENCES: Final = 200

RULES = RuleBook("xades")
_XML = RULES.error("xml", "document XML illisible", _DSG)
_ROOT = RULES.error("root", "racine ds:Signature avec Id attendue", _DSG)
_ID = RULES.error(
    "id", "Signature/@Id n'est pas l'uniqueId de l'entrée de signature", "CI-SIS Partage de documents"
)
_ID_TWICE = RULES.error("id_twice", "Id donné deux fois", "W3C XML-DSig 4.4")
_VERSION = RULES.error(
    "version",
    "QualifyingProperties d'une version de XAdES non prévue ({uri}) : 1.1.1 ou 1.3.2 attendue",
    _ETSI,
)
_SHAPE = RULES.error("shape", "{name} attendu une fois, trouvé {count} fois", _ETSI)
_TARGET = RULES.error("target", "Target de {name} n'est pas l'Id de la signature", _ETSI)
_PURPOSE = RULES.error("purpose", "purposeOfSignature : 1.2.840.10065.1.12.1.14 attendu", "IHE ITI DSG")
_CANONICAL = RULES.error("canonicalization", "méthode de canonicalisation non prévue", "W3C XML-DSig 4.4.1")
_METHOD = RULES.error("method", "algorithme de signature non prévu ({uri})", "W3C XML-DSig 4.4.2")
_DIGEST_METHOD = RULES.error(
    "digest_method", "algorithme d'empreinte non prévu ({uri})", "W3C XML-DSig 4.4.3.5"
)
_SHA1 = RULES.warning("sha1", "SHA-1 : les exemples publiés en ont, SHA-256 est préférable", "ANSSI RGS B1")
_REFERENCES = RULES.error("references", "SignedInfo : Manifest et SignedProperties, une fois chacun", _DSG)
_TYPE = RULES.error("reference_type", "SignedInfo : Type de la référence {uri} non prévu", _DSG)
_TRANSFORMS = RULES.error("transforms", "référence {uri} avec des Transforms", "IHE ITI DSG")
_DIGEST = RULES.error("digest", "empreinte de {uri} fausse", "W3C XML-DSig 3.2.1")
_VALUE = RULES.error("value", "SignatureValue : la signature ne se vérifie pas", "W3C XML-DSig 3.2.2")
_JUDGE = RULES.error("judge", "xmlsec1 ne vérifie pas la signature", "W3C XML-DSig 3.2")
_CERTIFICATE = RULES.error("certificate", "X509Certificate absent ou illisible", "W3C XML-DSig 4.5.4")
_EXPIRED = RULES.error(
    "certificate_date", "certificat hors de ses dates à l'instant de signature", "RFC 5280 4.1.2.5"
)
_USAGE = RULES.error(
    "key_usage", "certificat dont l'usage de clé n'est pas la signature", "IGC-Santé ORG_SIGN"
)
_UNIT = RULES.warning("unit", "OU du certificat : pas la structure de l'auteur", "IGC-Santé")
_CERT_DIGEST = RULES.error("cert_digest", "CertDigest n'est pas celui du certificat", _ETSI)
_ISSUER = RULES.error("issuer_serial", "IssuerSerial n'est pas celui du certificat", _ETSI)
_TIME = RULES.error("time", "SigningTime absent, illisible ou sans fuseau", _ETSI)
_MANIFEST_URI = RULES.error("manifest_uri", "Manifest : référence qui n'est pas urn:oid:", "IHE ITI DSG")
_NO_SET = RULES.error("manifest_set", "Manifest : le SubmissionSet n'y est pas", "IHE ITI DSG")
_SET_DIGEST = RULES.warning(
    "manifest_set_digest", "Manifest : AA== attendu pour le SubmissionSet", "CI-SIS Partage de documents"
)
_MISSING = RULES.error(
    "manifest_missing", "Manifest : {count} document(s) de la soumission absent(s)", "IHE ITI DSG"
)
_EXTRA = RULES.error(
    "manifest_extra", "Manifest : {count} référence(s) à d'autres documents", "IHE ITI DSG"
)
_DOCUMENT = RULES.error(
    "manifest_digest", "Manifest : empreinte d'un document fausse", "IHE ITI DSG ; W3C XML-DSig 3.2.1"
)


@attrs.frozen
class Expected:
    """What the submission says of its signature; `documents` by uniqueId, None for bytes not at hand."""

    unique_id: str
    set_id: str
    documents: Mapping[str, bytes | None]
    structures: frozenset[str]


def check_signature(data: bytes, expected: Expected, out: Report, judge: Judge | None = None) -> None:
    """Judge a signature document; `judge` is another verifier of signatures."""
    try:
        root = safe_parse(data)
    except XmlRefused:
        _XML.broken(out, _WHERE)
        return
    if root.tag != ds("Signature") or not root.get("Id"):
        _ROOT.broken(out, _WHERE)
        return
    if expected.unique_id and root.get("Id") != expected.unique_id:
        _ID.broken(out, _WHERE)
    identifiers = [each for element in root.iter("*") if (each := element.get("Id")) is not None]
    if len(set(identifiers)) != len(identifiers):
        _ID_TWICE.broken(out, _WHERE)
    _check_purpose(root, out)
    manifest = _one(root, f"{ds('Object')}/{ds('Manifest')}", "Manifest", out)
    properties = _signed_properties(root, out)
    signer, sound = _check_signed_info(root, manifest, properties, out)
    # Nothing but known algorithms and references is handed on.
    if sound and signer is not None and judge is not None and judge(data, xmldsig.der(signer)) is False:
        _JUDGE.broken(out, _WHERE)
    if properties is not None:
        _check_properties(root, properties, signer, expected, out)
    if manifest is not None:
        _check_manifest(manifest, expected, out)


def _x(element: Element, path: str) -> str:
    """Return a path of XAdES names, in the version of `element`."""
    return "/".join(f"{{{_namespace(element)}}}{name}" for name in path.split("/"))


def _namespace(element: Element) -> str:
    return str(element.tag)[1:].partition("}")[0]


def _signed_properties(root: Element, out: Report) -> Element | None:
    """Return the SignedProperties: their namespace is the version everything in them is judged by."""
    found = []
    for qualifying in root.findall(f"{ds('Object')}/{{*}}QualifyingProperties"):
        version = _namespace(qualifying)
        if version not in VERSIONS:
            _VERSION.broken(out, _WHERE, uri=shown(version))
            continue
        out.facts["xades"] = version.rpartition("/v")[2].removesuffix("#")
        found += qualifying.findall(f"{{{version}}}SignedProperties")
    if len(found) != 1:
        _SHAPE.broken(out, _WHERE, name="SignedProperties", count=len(found))
    return found[0] if found else None


def _one(parent: Element, path: str, name: str, out: Report) -> Element | None:
    found = parent.findall(path)
    if len(found) != 1:
        _SHAPE.broken(out, _WHERE, name=name, count=len(found))
    return found[0] if found else None


def _check_purpose(root: Element, out: Report) -> None:
    path = f"{ds('Object')}/{ds('SignatureProperties')}/{ds('SignatureProperty')}"
    purpose = _one(root, path, "SignatureProperty", out)
    if purpose is None:
        return
    if purpose.get("Id") != "purposeOfSignature" or text(purpose) != PURPOSE:
        _PURPOSE.broken(out, _WHERE)
    if purpose.get("Target") != "#" + root.get("Id"):
        _TARGET.broken(out, _WHERE, name="SignatureProperty")


def _check_signed_info(
    root: Element, manifest: Element | None, properties: Element | None, out: Report
) -> tuple[x509.Certificate | None, bool]:
    """Return the signer, and whether every algorithm and reference is one that is known."""
    info = _one(root, ds("SignedInfo"), "SignedInfo", out)
    certificate = xmldsig.certificate_of(root)
    if certificate is None:
        _CERTIFICATE.broken(out, _WHERE)
    if info is None:
        return certificate, False
    method = xmldsig.algorithm(info.find(ds("SignatureMethod")))
    canonical = xmldsig.is_canonicalisation(xmldsig.algorithm(info.find(ds("CanonicalizationMethod"))))
    if not canonical:
        _CANONICAL.broken(out, _WHERE)
    if method not in xmldsig.SIGNATURES:
        _METHOD.broken(out, _WHERE, uri=shown(method))
    elif xmldsig.SIGNATURES[method] == "sha1":
        _SHA1.broken(out, _WHERE)
    targets = {}
    if manifest is not None:
        targets[f"#{manifest.get('Id')}"] = (manifest, DS + "Manifest")
    if properties is not None:
        targets[f"#{properties.get('Id')}"] = (properties, VERSIONS[_namespace(properties)][0])
    references = info.findall(ds("Reference"))[:_MAX_REFERENCES]
    due = len(targets) == 2 and sorted(each.get("URI") or "" for each in references) == sorted(targets)
    if not due:
        _REFERENCES.broken(out, _WHERE)
    sound = due and canonical and method in xmldsig.SIGNATURES
    for reference in references:
        uri = reference.get("URI") or ""
        if uri in targets:
            sound &= _check_reference(reference, *targets[uri], uri=shown(uri), out=out)
    usable = canonical and method in xmldsig.SIGNATURES
    if certificate is not None and usable and not xmldsig.verifies(root, certificate):
        _VALUE.broken(out, _WHERE)
    return certificate, sound


def _check_reference(reference: Element, element: Element, kind: str, *, uri: str, out: Report) -> bool:
    """Judge a reference of SignedInfo; return whether its algorithms are known and it has no transform."""
    if reference.get("Type") != kind:
        _TYPE.broken(out, _WHERE, uri=uri)
    if reference.find(ds("Transforms")) is not None:
        _TRANSFORMS.broken(out, _WHERE, uri=uri)
        return False
    name = _digest_name(reference, out)
    # Without a transform the digest is over canonical XML 1.0 without comments (XML-DSig 4.4.3.2).
    data = xmldsig.canonical(element)
    told = xmldsig.binary(reference.find(ds("DigestValue")))
    if name and (data is None or xmldsig.digest(name, data) != told):
        _DIGEST.broken(out, _WHERE, uri=uri)
    return bool(name)


def _digest_name(holder: Element, out: Report, namespace: str = DS) -> str:
    uri = xmldsig.algorithm(holder.find(f"{{{namespace}}}DigestMethod"))
    name = xmldsig.DIGESTS.get(uri, "")
    if not name:
        _DIGEST_METHOD.broken(out, _WHERE, uri=shown(uri))
    elif name == "sha1":
        _SHA1.broken(out, _WHERE)
    return name


def _check_properties(
    root: Element, properties: Element, signer: x509.Certificate | None, expected: Expected, out: Report
) -> None:
    if properties.getparent().get("Target") != "#" + root.get("Id"):
        _TARGET.broken(out, _WHERE, name="QualifyingProperties")
    about = _one(properties, _x(properties, "SignedSignatureProperties"), "SignedSignatureProperties", out)
    if about is None:
        return
    policy = _x(about, "SignaturePolicyIdentifier/SignaturePolicyImplied")
    _one(about, policy, "SignaturePolicyImplied", out)
    signed = _instant(text(about.find(_x(about, "SigningTime"))))
    if signed is None:
        _TIME.broken(out, _WHERE)
    cert = _one(about, _x(about, "SigningCertificate/Cert"), "SigningCertificate/Cert", out)
    if signer is None:
        return
    if signed is not None and not xmldsig.valid_at(signer, signed):
        _EXPIRED.broken(out, _WHERE)
    if not xmldsig.may_sign(signer):
        _USAGE.broken(out, _WHERE)
    if expected.structures and not expected.structures & xmldsig.units(signer):
        _UNIT.broken(out, _WHERE)
    if cert is not None:
        _check_cert(cert, signer, out)


def _check_cert(cert: Element, signer: x509.Certificate, out: Report) -> None:
    holder = _one(cert, _x(cert, "CertDigest"), "CertDigest", out)
    namespace = VERSIONS[_namespace(cert)][1]
    if holder is not None and (name := _digest_name(holder, out, namespace)):
        told = xmldsig.binary(holder.find(f"{{{namespace}}}DigestValue"))
        if told != xmldsig.digest(name, xmldsig.der(signer)):
            _CERT_DIGEST.broken(out, _WHERE)
    named = _x(cert, "IssuerSerial")
    serial = text(cert.find(f"{named}/{ds('X509SerialNumber')}"))
    issuer = text(cert.find(f"{named}/{ds('X509IssuerName')}"))
    if serial != str(signer.serial_number) or not xmldsig.names(issuer, signer.issuer):
        _ISSUER.broken(out, _WHERE)


def _instant(value: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _check_manifest(manifest: Element, expected: Expected, out: Report) -> None:
    listed: dict[str, Element] = {}
    for reference in manifest.findall(ds("Reference"))[:_MAX_REFERENCES]:
        uri = reference.get("URI") or ""
        if not uri.startswith("urn:oid:"):
            _MANIFEST_URI.broken(out, _WHERE)
            continue
        listed.setdefault(uri[8:], reference)
    own = listed.pop(expected.set_id, None)
    if own is None:
        _NO_SET.broken(out, _WHERE)
    elif xmldsig.binary(own.find(ds("DigestValue"))) != b"\0":
        _SET_DIGEST.broken(out, _WHERE)
    missing = expected.documents.keys() - listed.keys()
    if missing:
        _MISSING.broken(out, _WHERE, count=len(missing))
    extra = listed.keys() - expected.documents.keys()
    if extra:
        _EXTRA.broken(out, _WHERE, count=len(extra))
    for uid, reference in listed.items():
        data = expected.documents.get(uid)
        name = _digest_name(reference, out)
        if data is None or not name:
            continue
        if xmldsig.digest(name, data) != xmldsig.binary(reference.find(ds("DigestValue"))):
            _DOCUMENT.broken(out, _WHERE)
