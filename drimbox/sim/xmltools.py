"""Canonical XML and digests as the simulators compute them, apart from the gateway's own code.

lxml's C14N of an element *inside* a document goes wrong with default namespaces (inclusive C14N writes
`xmlns=""` where none belongs), so every fragment is first serialised with the namespaces in scope,
parsed again, and canonicalised as a document of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from lxml import etree

from drimbox.xml import Element, safe_parse

DS = "http://www.w3.org/2000/09/xmldsig#"
EXC_C14N = "http://www.w3.org/2001/10/xml-exc-c14n#"
C14N = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
RSA_SHA1 = DS + "rsa-sha1"
RSA_SHA256 = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"

#: Digest algorithms by URI.
DIGESTS = {
    DS + "sha1": "sha1",
    "http://www.w3.org/2001/04/xmlenc#sha256": "sha256",
    "http://www.w3.org/2001/04/xmlenc#sha512": "sha512",
}
DIGEST_URIS = {name: uri for uri, name in DIGESTS.items()}


def ds(name: str) -> str:
    """Return the lxml name of an XML-DSig element."""
    return f"{{{DS}}}{name}"


def c14n(
    element: Element, *, exclusive: bool, comments: bool = False, prefixes: Sequence[str] = ()
) -> bytes:
    """Return the canonical form of `element` in its document's namespace context, without its tail."""
    alone = safe_parse(etree.tostring(element, with_tail=False))
    data: bytes = etree.tostring(
        alone,
        method="c14n",
        exclusive=exclusive,
        with_comments=comments,
        inclusive_ns_prefixes=list(prefixes) or None,
    )
    return data


def c14n_by_uri(element: Element, algorithm: str) -> bytes:
    """Canonicalise with the algorithm `algorithm` names; raises ValueError for one nobody here knows."""
    comments = algorithm.endswith("WithComments")
    base = algorithm[: -len("WithComments")] if comments else algorithm
    if base == EXC_C14N:
        return c14n(element, exclusive=True, comments=comments)
    if base in (C14N, C14N + "#"):
        return c14n(element, exclusive=False, comments=comments)
    raise ValueError(f"canonicalisation {algorithm} unknown")


def digest(algorithm: str, data: bytes) -> bytes:
    """Digest `data`; `algorithm` is "sha1", "sha256" or "sha512"."""
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()


def b64(data: bytes) -> str:
    """Base64 without line breaks."""
    return base64.b64encode(data).decode("ascii")


def unb64(text: str | None) -> bytes:
    """Decode the base64 of an XML text node, blanks allowed; raises ValueError for anything else."""
    try:
        return base64.b64decode("".join((text or "").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error


def rsa_sign(key: rsa.RSAPrivateKey, algorithm: str, data: bytes) -> bytes:
    """Sign with PKCS#1 v1.5 as XML-DSig asks; `algorithm` is "sha1" or "sha256"."""
    return key.sign(data, padding.PKCS1v15(), _hash(algorithm))


def rsa_verify(certificate: x509.Certificate, algorithm: str, data: bytes, signature: bytes) -> bool:
    """Say whether `signature` over `data` was made by the holder of `certificate`."""
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, data, padding.PKCS1v15(), _hash(algorithm))
    except InvalidSignature:
        return False
    return True


def _hash(algorithm: str) -> hashes.HashAlgorithm:
    return hashes.SHA1() if algorithm == "sha1" else hashes.SHA256()


def text_of(element: Element | None) -> str:
    """Return the stripped text of an element, empty for None."""
    return "" if element is None else (element.text or "").strip()
