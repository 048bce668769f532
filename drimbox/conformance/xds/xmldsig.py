"""XML signatures: algorithms, canonical form, digests, the RSA operation (W3C XML-DSig, RFC 4055).

Algorithms are judged before anything is computed with them: only the canonicalisations and transforms
listed here are ever run, so that no document can order an expensive or harmful one. A fragment is
canonicalised as a document of its own, parsed again from its serialisation with the namespaces in scope:
inside a larger tree libxml2 writes namespaces where none belong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from lxml import etree

from drimbox.xml import Element, XmlRefused, safe_parse

#: Another verifier: document and certificate (DER) in, verdict out, None when it has none.
Judge = Callable[[bytes, bytes], bool | None]

DS: Final = "http://www.w3.org/2000/09/xmldsig#"
EXCLUSIVE: Final = "http://www.w3.org/2001/10/xml-exc-c14n#"
INCLUSIVE: Final = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
ENVELOPED: Final = DS + "enveloped-signature"
_MORE: Final = "http://www.w3.org/2001/04/xmldsig-more#"
_ENC: Final = "http://www.w3.org/2001/04/xmlenc#"

DIGESTS: Final = {
    DS + "sha1": "sha1",
    _ENC + "sha256": "sha256",
    _MORE + "sha384": "sha384",
    _ENC + "sha512": "sha512",
}
SIGNATURES: Final = {
    DS + "rsa-sha1": "sha1",
    _MORE + "rsa-sha256": "sha256",
    _MORE + "rsa-sha384": "sha384",
    _MORE + "rsa-sha512": "sha512",
}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    # What is judged is what others still send; nothing is trusted for it.
    "sha1": hashes.SHA1(),  # noqa: S303
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def ds(name: str) -> str:
    """Return the lxml name of an element of XML-DSig."""
    return f"{{{DS}}}{name}"


def is_canonicalisation(algorithm: str) -> bool:
    """Say whether `canonical` can run this algorithm."""
    return algorithm.removesuffix("WithComments").removesuffix("#") in (INCLUSIVE, EXCLUSIVE[:-1])


def canonical(
    element: Element, algorithm: str = INCLUSIVE, *, prefixes: tuple[str, ...] = ()
) -> bytes | None:
    """Return the canonical form of an element in its context, without its tail; None when it has none."""
    try:
        alone = safe_parse(etree.tostring(element, with_tail=False))
        data: bytes = etree.tostring(
            alone,
            method="c14n",
            exclusive=algorithm.startswith(EXCLUSIVE),
            with_comments=algorithm.endswith("WithComments"),
            inclusive_ns_prefixes=list(prefixes) or None,
        )
    except (XmlRefused, ValueError, etree.LxmlError):
        return None
    return data


def digest(name: str, data: bytes) -> bytes:
    """Digest bytes; `name` is a value of `DIGESTS`."""
    return hashlib.new(name, data, usedforsecurity=False).digest()


def binary(element: Element | None) -> bytes | None:
    """Decode the base64 of an element, blanks allowed; None when it is none."""
    try:
        return (
            base64.b64decode("".join((element.text or "").split()), validate=True)
            if element is not None
            else None
        )
    except (binascii.Error, ValueError):
        return None


def text(element: Element | None) -> str:
    """Return the stripped text of an element, empty for None."""
    return "" if element is None else (element.text or "").strip()


def algorithm(element: Element | None) -> str:
    """Return the Algorithm of a method element, empty without one."""
    return "" if element is None else element.get("Algorithm") or ""


def certificate_of(signature: Element) -> x509.Certificate | None:
    """Return the first certificate of KeyInfo, None without a readable one."""
    holder = signature.find(f"{ds('KeyInfo')}/{ds('X509Data')}/{ds('X509Certificate')}")
    try:
        return x509.load_der_x509_certificate(binary(holder) or b"")
    except (ValueError, UnsupportedAlgorithm):
        return None


def verifies(signature: Element, certificate: x509.Certificate) -> bool:
    """Say whether SignatureValue over SignedInfo was made by the holder of `certificate` (RSA only)."""
    info = signature.find(ds("SignedInfo"))
    if info is None:
        return False
    name = SIGNATURES.get(algorithm(info.find(ds("SignatureMethod"))))
    method = algorithm(info.find(ds("CanonicalizationMethod")))
    value = binary(signature.find(ds("SignatureValue")))
    if name is None or value is None or not is_canonicalisation(method):
        return False
    prefixes = _prefixes(info.find(ds("CanonicalizationMethod")))
    signed = canonical(info, method, prefixes=prefixes)
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if signed is None or not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(value, signed, padding.PKCS1v15(), _HASHES[name])
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _prefixes(method: Element | None) -> tuple[str, ...]:
    """Return the PrefixList of exclusive canonicalisation."""
    found = None if method is None else method.find(f"{{{EXCLUSIVE}}}InclusiveNamespaces")
    names = (found.get("PrefixList") or "").split() if found is not None else []
    return tuple("" if name == "#default" else name for name in names[:32])


def enveloped_digest(holder: Element, reference: Element) -> bytes | None:
    """Digest the element that holds the signature, as its reference's transforms say.

    Only enveloped-signature followed by exclusive canonicalisation; None for anything else.
    """
    steps = reference.findall(f"{ds('Transforms')}/{ds('Transform')}")
    name = DIGESTS.get(algorithm(reference.find(ds("DigestMethod"))))
    if [algorithm(step) for step in steps] != [ENVELOPED, EXCLUSIVE] or name is None:
        return None
    try:
        copy = safe_parse(etree.tostring(holder, with_tail=False))
    except XmlRefused:
        return None
    for signature in copy.findall(ds("Signature")):
        # The text behind it belongs to the assertion, not to the signature.
        tail, before = signature.tail, signature.getprevious()
        if tail and before is not None:
            before.tail = (before.tail or "") + tail
        elif tail:
            copy.text = (copy.text or "") + tail
        signature.tail = None
        copy.remove(signature)
    data = canonical(copy, EXCLUSIVE, prefixes=_prefixes(steps[1]))
    return None if data is None else digest(name, data)


def alone(element: Element) -> bytes:
    """Return an element as a document of its own."""
    data: bytes = etree.tostring(element, with_tail=False)
    return data


def der(certificate: x509.Certificate) -> bytes:
    """Return the bytes of a certificate."""
    return certificate.public_bytes(serialization.Encoding.DER)


def units(certificate: x509.Certificate) -> frozenset[str]:
    """Return the OU values of its subject; none for one that cannot be read."""
    try:
        found = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    except ValueError:
        return frozenset()
    return frozenset(str(each.value) for each in found)


def valid_at(certificate: x509.Certificate, moment: datetime) -> bool:
    """Say whether a moment (aware) is within the dates of a certificate."""
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def may_sign(certificate: x509.Certificate) -> bool:
    """Say whether its key usage allows signatures; a certificate that does not say may."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False
    return usage.digital_signature or usage.content_commitment


def names(written: str, name: x509.Name) -> bool:
    """Say whether a distinguished name as text means `name`, whatever its order and spacing."""
    try:
        wanted = sorted(str(each.value) for each in name)
        due = name.rfc4514_string()
    except ValueError:
        return False
    if written == due:
        return True
    # Values may hold commas: compare what follows each `=` only where that is unambiguous.
    parts = sorted(part.partition("=")[2].strip().strip('"') for part in _split(written))
    return parts == wanted


def _split(written: str) -> list[str]:
    """Cut a distinguished name at commas that are neither escaped nor quoted."""
    found, current, quoted, escaped = [], "", False, False
    for letter in written:
        if escaped:
            current, escaped = current + letter, False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter in ",;" and not quoted:
            found.append(current)
            current = ""
        else:
            current += letter
    return [*found, current]
