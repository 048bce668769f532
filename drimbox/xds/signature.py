"""The XAdES signature document of a submission (interfaces.md 4.4, IHE DSG).

Theory of operation. SignedInfo covers two elements of the same document: a Manifest, which lists the
digest of every document of the submission under its `urn:oid:`, and the SignedProperties. No transform:
the digest is over the C14N 1.0 of the element in the context of the document. libxmlsec1 would fetch
the `urn:oid:` references of the Manifest, so the envelope is made here and only the RSA operation is a
library's; the tests let the `xmlsec1` program judge. RSA PKCS#1 v1.5 and a signing time taken from the
submission make the document a function of its arguments: an attempt repeated sends the same bytes.

XAdES 1.1.1 is what the published samples are, 1.3.2 what IHE DSG asks for since; they differ in namespace,
in the type of a reference, and in whose namespace the digest of the certificate is written.

Canonicalisation trap: lxml writes a wrong `xmlns=""` when it canonicalises an element *inside* a
document with a default namespace. The element is serialised alone (lxml then writes the namespaces in
scope), parsed again, and that root is canonicalised.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from lxml import etree

from drimbox.xds.codes import SIGNATURE_PURPOSE
from drimbox.xds.sender import SigningPair, distinguished_name
from drimbox.xml import Element, safe_parse

DS = "http://www.w3.org/2000/09/xmldsig#"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
C14N_WITH_COMMENTS = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315#WithComments"

#: digest name of the configuration -> (DigestMethod, SignatureMethod).
ALGORITHMS = {
    "sha1": (f"{DS}sha1", f"{DS}rsa-sha1"),
    "sha256": (
        "http://www.w3.org/2001/04/xmlenc#sha256",
        "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    ),
}


@attrs.frozen
class _Form:
    """One version of XAdES: its namespace, the Type of the reference, the namespace of CertDigest."""

    namespace: str
    reference_type: str
    digest_namespace: str


#: By the version of the configuration (ETSI TS 101 903).
FORMS = {
    "1.1.1": _Form(
        "http://uri.etsi.org/01903/v1.1.1#",
        "http://uri.etsi.org/01903/v1.1.1#SignedProperties",
        "http://uri.etsi.org/01903/v1.1.1#",
    ),
    "1.3.2": _Form("http://uri.etsi.org/01903/v1.3.2#", "http://uri.etsi.org/01903#SignedProperties", DS),
}
#: What the DMP wants as digest of the submission set, which has no bytes of its own.
NO_DIGEST = "AA=="
_SCHEMA = "http://docs.oasis-open.org/security/saml/v2.0/saml-schema-assertion-2.0.xsd"
_MANIFEST_ID = "IHEManifest"
_PROPERTIES_ID = "S0-SignedProperties"


def signature_document(
    *,
    signature_uid: str,
    submission_uid: str,
    documents: Sequence[tuple[str, bytes]],
    signing_time: datetime,
    pair: SigningPair,
    digest: str,
    xades: str = "1.1.1",
) -> bytes:
    """Sign the documents of a submission and return the XML document, ready to be sent.

    `documents` are (uniqueId, bytes); `signing_time` is aware; `digest` is "sha256" or "sha1"; `xades` is
    "1.1.1" or "1.3.2". The same arguments give the same bytes. Raises `KeyError` for another digest or
    version.
    """
    form = FORMS[xades]
    digest_uri, signature_uri = ALGORITHMS[digest]
    root = etree.Element(f"{{{DS}}}Signature", {"Id": signature_uid}, nsmap={None: DS})
    signed_info = _add(root, "SignedInfo")
    signature_value = _add(root, "SignatureValue")
    x509_data = _add(_add(root, "KeyInfo"), "X509Data")
    _add(x509_data, "X509Certificate").text = _b64(pair.certificate_der)
    purpose = _add(_add(_add(root, "Object"), "SignatureProperties"), "SignatureProperty")
    purpose.set("Id", "purposeOfSignature")
    purpose.set("Target", "#" + signature_uid)
    purpose.text = SIGNATURE_PURPOSE.value
    manifest = _manifest(_add(root, "Object"), submission_uid, documents, digest)
    properties = _properties(_add(root, "Object"), signature_uid, signing_time, pair, digest, form)

    _add(signed_info, "CanonicalizationMethod").set("Algorithm", C14N_WITH_COMMENTS)
    _add(signed_info, "SignatureMethod").set("Algorithm", signature_uri)
    for element, kind in ((manifest, f"{DS}Manifest"), (properties, form.reference_type)):
        reference = _add(signed_info, "Reference")
        reference.set("Type", kind)
        reference.set("URI", "#" + element.get("Id"))
        _add(reference, "DigestMethod").set("Algorithm", digest_uri)
        _add(reference, "DigestValue").text = _digest(_canonical(element), digest)
    algorithm: hashes.HashAlgorithm = hashes.SHA256()
    if digest == "sha1":
        # Only towards a DMP configured so: every published XAdES sample is rsa-sha1 (decisions.md).
        algorithm = hashes.SHA1()  # noqa: S303
    signed = pair.key.sign(_canonical(signed_info), padding.PKCS1v15(), algorithm)
    signature_value.text = _b64(signed)
    data: bytes = etree.tostring(root, encoding="utf-8", xml_declaration=False)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + data


def _manifest(
    holder: Element, submission_uid: str, documents: Sequence[tuple[str, bytes]], digest: str
) -> Element:
    manifest = etree.SubElement(holder, f"{{{DS}}}Manifest", {"Id": _MANIFEST_ID}, nsmap={"xsi": XSI})
    manifest.set(f"{{{XSI}}}schemaLocation", f"{DS} {_SCHEMA}")
    values = [(submission_uid, NO_DIGEST), *((uid, _digest(data, digest)) for uid, data in documents)]
    for uid, value in values:
        reference = _add(manifest, "Reference")
        reference.set("URI", "urn:oid:" + uid)
        _add(reference, "DigestMethod").set("Algorithm", ALGORITHMS[digest][0])
        _add(reference, "DigestValue").text = value
    return manifest


def _properties(
    holder: Element,
    signature_uid: str,
    signing_time: datetime,
    pair: SigningPair,
    digest: str,
    form: _Form,
) -> Element:
    xades = form.namespace
    qualifying = etree.SubElement(
        holder, f"{{{xades}}}QualifyingProperties", {"Target": "#" + signature_uid}, nsmap={None: xades}
    )
    properties = etree.SubElement(
        qualifying, f"{{{xades}}}SignedProperties", {"Id": _PROPERTIES_ID}, nsmap={"xsi": XSI}
    )
    properties.set(f"{{{XSI}}}schemaLocation", f"{xades} {_SCHEMA}")
    about_signature = _add(properties, "SignedSignatureProperties", xades)
    moment = signing_time.astimezone(UTC).isoformat(timespec="milliseconds")
    _add(about_signature, "SigningTime", xades).text = moment
    cert = _add(_add(about_signature, "SigningCertificate", xades), "Cert", xades)
    cert_digest = _add(cert, "CertDigest", xades)
    _add(cert_digest, "DigestMethod", form.digest_namespace).set("Algorithm", ALGORITHMS[digest][0])
    _add(cert_digest, "DigestValue", form.digest_namespace).text = _digest(pair.certificate_der, digest)
    issuer = _add(cert, "IssuerSerial", xades)
    for tag, text in (
        ("X509IssuerName", distinguished_name(pair.certificate.issuer)),
        ("X509SerialNumber", str(pair.certificate.serial_number)),
    ):
        _add(issuer, tag, DS).text = text
    _add(_add(about_signature, "SignaturePolicyIdentifier", xades), "SignaturePolicyImplied", xades)
    _add(properties, "SignedDataObjectProperties", xades)
    return properties


def _add(parent: Element, tag: str, namespace: str = DS) -> Element:
    # A child of another namespace than its parent's declares it without prefix, as the samples do.
    inherited = etree.QName(parent).namespace == namespace
    nsmap = None if inherited else {None: namespace}
    return etree.SubElement(parent, f"{{{namespace}}}{tag}", nsmap=nsmap)


def _canonical(element: Element) -> bytes:
    alone = safe_parse(etree.tostring(element, with_tail=False))
    canonical: bytes = etree.tostring(alone, method="c14n", exclusive=False, with_comments=True)
    return canonical


def _digest(data: bytes, digest: str) -> str:
    return _b64(hashlib.new(digest, data, usedforsecurity=digest != "sha1").digest())


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
