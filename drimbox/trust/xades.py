"""Verification of the one XAdES form the whitelist uses (interfaces.md 8.2), and of no other.

An XML signature says which bytes it covers through references and transforms, and an attacker who may
choose those chooses what is signed: the signature then verifies, and the program reads something else
(threats.md, "XML signature wrapping"). So nothing here is left to the document:

1. the shape is checked by our own code against the only one we accept: one `ds:Signature` in the whole
   document, last child of the root; two references, one to the whole document without signatures, one
   to the SignedProperties inside this very signature; transforms and algorithms from short lists;
2. `xmlsec` verifies signature value and digests with the key of the certificate that the signed
   properties name by digest. It is handed that key, so `KeyInfo` cannot bring another one; it knows a
   single Id, that of the SignedProperties; its own transforms are restricted too;
3. the covered bytes are computed again here, by another route (the signature element removed, then
   exclusive canonicalisation), held against the signed digest, and **returned**: the caller reads the
   list from those bytes and never from the document that was received.

Whether the signer deserves trust is not decided here but in `whitelist.py`.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import hmac
import re

import attrs
import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from lxml import etree

from drimbox.xml import Element, XmlRefused, safe_parse

DS = "http://www.w3.org/2000/09/xmldsig#"
XADES = "http://uri.etsi.org/01903/v1.3.2#"
SIGNED_PROPERTIES = "http://uri.etsi.org/01903#SignedProperties"
EXC_C14N = "http://www.w3.org/2001/10/xml-exc-c14n#"
FILTER2 = "http://www.w3.org/2002/06/xmldsig-filter2"
ENVELOPED = DS + "enveloped-signature"
XPATH = "http://www.w3.org/TR/1999/REC-xpath-19991116"

_SIGNATURE_METHODS = {f"http://www.w3.org/2001/04/xmldsig-more#rsa-sha{size}" for size in (256, 384, 512)}
_DIGESTS = {
    "http://www.w3.org/2001/04/xmlenc#sha256": hashlib.sha256,
    "http://www.w3.org/2001/04/xmldsig-more#sha384": hashlib.sha384,
    "http://www.w3.org/2001/04/xmlenc#sha512": hashlib.sha512,
}
_KEY_INFO = {"X509Certificate", "X509SubjectName", "X509IssuerSerial", "X509SKI"}
_REFERENCE_TRANSFORMS = ("ExclC14N", "Enveloped", "XPath", "XPath2", "Sha256", "Sha384", "Sha512")
_SIGNATURE_TRANSFORMS = ("ExclC14N", "RsaSha256", "RsaSha384", "RsaSha512")
#: What a prefix bound to the signature namespace may say, blanks aside.
_FILTER2_PATH = re.compile(r"/descendant::([A-Za-z_][\w.-]*):Signature", re.ASCII)
_XPATH_PATH = re.compile(r"not\(ancestor-or-self::([A-Za-z_][\w.-]*):Signature\)", re.ASCII)

#: The published list has about 500 bytes a domain; this is room for some sixteen thousand.
MAX_BYTES = 8 * 1024 * 1024
_MAX_DEPTH = 32
_MAX_CERTIFICATES = 8
_MIN_RSA_BITS = 2048


class SignatureRefused(Exception):
    """The signature is absent, not of the accepted form, or wrong. The text is French."""


@attrs.frozen
class Signed:
    """What a signature was found to cover, and by whose key."""

    #: Canonical bytes of the document without its signature: read these, nothing else.
    content: bytes
    signer: x509.Certificate
    #: The other certificates of KeyInfo: of help to build the chain, never trusted.
    others: tuple[x509.Certificate, ...]


def verify_enveloped(data: bytes) -> Signed:
    """Verify the enveloped signature of `data`. Raises `SignatureRefused`."""
    try:
        root = safe_parse(data, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH)
    except XmlRefused as error:
        raise SignatureRefused("le fichier n'est pas un XML acceptable") from error
    signature = _the_signature(root)
    info, _value, key_info, container = _children(
        signature, "SignedInfo", "SignatureValue", "KeyInfo", "Object"
    )
    properties = _signed_properties(signature, container)
    document_reference = _check_signed_info(info, properties)
    certificates = _certificates(key_info)
    signer = _named_signer(properties, certificates)
    _verify_with(signature, properties, signer)
    content = _covered(root, document_reference)
    return Signed(content, signer, tuple(other for other in certificates if other != signer))


# --- shape ----------------------------------------------------------------------------------------


def _the_signature(root: Element) -> Element:
    """Return the only `ds:Signature`, last child of the root, free of comments and ambiguous Ids."""
    found = [node for node in root.iter() if _local(node) == "Signature"]
    if not found:
        raise SignatureRefused("liste non signée")
    if len(found) > 1:
        raise SignatureRefused("plusieurs signatures")
    signature = found[0]
    if signature.tag != f"{{{DS}}}Signature":
        raise SignatureRefused("signature d'un autre espace de noms")
    if signature.getparent() is not root or signature.getnext() is not None:
        raise SignatureRefused("la signature n'est pas le dernier élément de la racine")
    if any(not isinstance(node.tag, str) for node in signature.iter()):
        # A comment cuts a text in two: xmlsec would read all of it, we the first half.
        raise SignatureRefused("commentaire ou instruction dans la signature")
    ids = [value for node in root.iter(etree.Element) for key, value in node.attrib.items() if _is_id(key)]
    if len(ids) != len(set(ids)):
        raise SignatureRefused("identifiant en double")
    return signature


def _is_id(attribute: str) -> bool:
    return str(etree.QName(attribute).localname).lower() == "id"


def _local(node: Element) -> str:
    return str(etree.QName(node.tag).localname) if isinstance(node.tag, str) else ""


def _children(node: Element, *names: str, namespace: str = DS) -> list[Element]:
    """Return the children of `node`, which must be these and no others, in this order."""
    children = list(node)
    if [child.tag for child in children] != [f"{{{namespace}}}{name}" for name in names]:
        raise SignatureRefused(f"structure inattendue dans {_local(node)}")
    return children


def _algorithm(node: Element) -> str:
    """Return the algorithm of a node that has no parameter: a child could change what it does."""
    if len(node) or (node.text or "").strip():
        raise SignatureRefused(f"paramètre inattendu dans {_local(node)}")
    return str(node.get("Algorithm", ""))


def _signed_properties(signature: Element, container: Element) -> Element:
    (qualifying,) = _children(container, "QualifyingProperties", namespace=XADES)
    identifier = signature.get("Id")
    if not identifier or qualifying.get("Target") != "#" + identifier:
        raise SignatureRefused("QualifyingProperties ne désigne pas cette signature")
    # UnsignedProperties (a time stamp, say) may follow; they are never read.
    names = [child.tag for child in qualifying]
    if names not in (
        [f"{{{XADES}}}SignedProperties"],
        [f"{{{XADES}}}SignedProperties", f"{{{XADES}}}UnsignedProperties"],
    ):
        raise SignatureRefused("structure inattendue dans QualifyingProperties")
    if not qualifying[0].get("Id"):
        raise SignatureRefused("SignedProperties sans identifiant")
    return qualifying[0]


def _check_signed_info(info: Element, properties: Element) -> Element:
    """Check what is signed and how; return the reference to the document."""
    method, algorithm, *references = _children(
        info, "CanonicalizationMethod", "SignatureMethod", "Reference", "Reference"
    )
    if _algorithm(method) != EXC_C14N:
        raise SignatureRefused("canonicalisation refusée")
    if _algorithm(algorithm) not in _SIGNATURE_METHODS:
        raise SignatureRefused("algorithme de signature refusé")
    by_uri = {reference.get("URI"): reference for reference in references}
    document, signed = by_uri.get(""), by_uri.get("#" + properties.get("Id"))
    if document is None or signed is None or signed.get("Type") != SIGNED_PROPERTIES:
        raise SignatureRefused("la signature ne couvre pas toute la liste et ses propriétés")
    transforms = _transforms(document)
    if len(transforms) != 2 or not _leaves_signature_out(transforms[0]):
        raise SignatureRefused("transformation refusée")
    if _algorithm(transforms[1]) != EXC_C14N:
        raise SignatureRefused("transformation refusée")
    if [_algorithm(transform) for transform in _transforms(signed)] != [EXC_C14N]:
        raise SignatureRefused("transformation refusée")
    return document


def _transforms(reference: Element) -> list[Element]:
    transforms, method, _value = _children(reference, "Transforms", "DigestMethod", "DigestValue")
    if _algorithm(method) not in _DIGESTS:
        raise SignatureRefused("algorithme d'empreinte refusé")
    children = list(transforms)
    return _children(transforms, *["Transform"] * len(children))


def _leaves_signature_out(transform: Element) -> bool:
    """Say whether a transform is one of the three that remove the signature and nothing else."""
    algorithm = transform.get("Algorithm")
    if algorithm == ENVELOPED:
        return _algorithm(transform) == ENVELOPED
    if algorithm == FILTER2:
        (path,) = _children(transform, "XPath", namespace=FILTER2)
        return path.get("Filter") == "subtract" and _names_signature(path, _FILTER2_PATH)
    if algorithm == XPATH:
        (path,) = _children(transform, "XPath")
        return _names_signature(path, _XPATH_PATH)
    return False


def _names_signature(path: Element, form: re.Pattern[str]) -> bool:
    found = form.fullmatch((path.text or "").strip()) if not len(path) else None
    return found is not None and path.nsmap.get(found[1]) == DS


# --- certificates ---------------------------------------------------------------------------------


def _certificates(key_info: Element) -> list[x509.Certificate]:
    """Return the certificates of KeyInfo, which may hold X.509 data and no other kind of key."""
    (data,) = _children(key_info, "X509Data")
    if any(child.tag not in {f"{{{DS}}}{name}" for name in _KEY_INFO} for child in data):
        raise SignatureRefused("structure inattendue dans X509Data")
    nodes = [node for node in data if _local(node) == "X509Certificate"]
    if not 0 < len(nodes) <= _MAX_CERTIFICATES:
        raise SignatureRefused("certificat du signataire absent")
    certificates = []
    for node in nodes:
        try:
            certificates.append(x509.load_der_x509_certificate(_base64(node)))
        except ValueError as error:
            raise SignatureRefused("certificat illisible dans la signature") from error
    return certificates


def _named_signer(properties: Element, certificates: list[x509.Certificate]) -> x509.Certificate:
    """Return the certificate whose digest SigningCertificateV2 gives (its first Cert, EN 319 132-1)."""
    path = f"{{{XADES}}}SignedSignatureProperties/{{{XADES}}}SigningCertificateV2"
    found = properties.findall(path)
    if len(found) != 1 or not len(found[0]):
        raise SignatureRefused("SigningCertificateV2 absent")
    digest = found[0][0].find(f"{{{XADES}}}CertDigest")
    if digest is None:
        raise SignatureRefused("SigningCertificateV2 sans empreinte")
    method, value = _children(digest, "DigestMethod", "DigestValue")
    make = _DIGESTS.get(_algorithm(method))
    if make is None:
        raise SignatureRefused("algorithme d'empreinte refusé")
    wanted = _base64(value)
    for certificate in certificates:
        der = certificate.public_bytes(serialization.Encoding.DER)
        if hmac.compare_digest(make(der).digest(), wanted):
            return certificate
    raise SignatureRefused("le certificat du signataire n'est pas celui que la signature désigne")


def _base64(node: Element) -> bytes:
    text = "".join((node.text or "").split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureRefused(f"base64 illisible dans {_local(node)}") from error


# --- cryptography ---------------------------------------------------------------------------------


def _verify_with(signature: Element, properties: Element, signer: x509.Certificate) -> None:
    key = signer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _MIN_RSA_BITS:
        raise SignatureRefused(f"la clé du signataire n'est pas RSA d'au moins {_MIN_RSA_BITS} bits")
    context = xmlsec.SignatureContext()
    context.key = xmlsec.Key.from_memory(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        xmlsec.constants.KeyDataFormatPem,
    )
    for name in _REFERENCE_TRANSFORMS:
        context.enable_reference_transform(getattr(xmlsec.constants, f"Transform{name}"))
    for name in _SIGNATURE_TRANSFORMS:
        context.enable_signature_transform(getattr(xmlsec.constants, f"Transform{name}"))
    context.register_id(properties, "Id")
    try:
        context.verify(signature)
    except xmlsec.Error as error:
        raise SignatureRefused("signature invalide") from error


def _covered(root: Element, reference: Element) -> bytes:
    """Return the bytes the document reference covers, computed again and held against its digest."""
    tree = copy.deepcopy(root.getroottree())
    signature = tree.getroot()[-1]
    # Text behind an element goes with it in lxml; canonical XML keeps it.
    if signature.tail:
        previous = signature.getprevious()
        if previous is None:
            tree.getroot().text = (tree.getroot().text or "") + signature.tail
        else:
            previous.tail = (previous.tail or "") + signature.tail
    tree.getroot().remove(signature)
    content: bytes = etree.tostring(tree, method="c14n", exclusive=True, with_comments=False)
    method, value = reference[1], reference[2]
    if not hmac.compare_digest(_DIGESTS[_algorithm(method)](content).digest(), _base64(value)):
        raise SignatureRefused("la liste lue n'est pas celle qui est signée")
    return content
