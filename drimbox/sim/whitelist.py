"""The signed list of DRIM-M domains as its publisher writes it, and every way to get it wrong.

The document of interfaces.md 8.1 is closed by one XAdES enveloped signature: reference 1 covers the whole
document minus every `ds:Signature` (XPath Filter 2.0), reference 2 covers the SignedProperties. The
signature is made by hand over lxml's exclusive C14N; `xmlsec1 --verify` is the judge in the tests.
A `Fault` spoils one thing at a time. Faults of the *signer* (wrong CN, expired, foreign root ...) are
certificates of `drimbox.sim.pki`, signed here like good ones.
"""

from __future__ import annotations

import argparse
import enum
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from lxml import etree

from drimbox.sim.pki import Pair, Pki
from drimbox.sim.xmltools import DIGEST_URIS, DS, EXC_C14N, RSA_SHA256, b64, c14n, digest, ds, rsa_sign
from drimbox.xml import Element, safe_parse

NAMESPACE = "https://github.com/ansforge/DRIM-M_DATA"
XADES = "http://uri.etsi.org/01903/v1.3.2#"
FILTER2 = "http://www.w3.org/2002/06/xmldsig-filter2"
ENVELOPED = DS + "enveloped-signature"
XPATH1 = "http://www.w3.org/TR/1999/REC-xpath-19991116"
BASE64_TRANSFORM = DS + "base64"


def _w(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _x(name: str) -> str:
    return f"{{{XADES}}}{name}"


class Transform(enum.Enum):
    """How reference 1 leaves the signature out; the first is what the published files carry."""

    FILTER2 = "filter2"
    ENVELOPED = "enveloped"
    XPATH1 = "xpath1"


class Fault(enum.Enum):
    """One thing wrong with a list (interfaces.md 8.2)."""

    #: A byte of a signed value changed after signing.
    ALTERED = "altered"
    #: No `ds:Signature` at all.
    UNSIGNED = "unsigned"
    #: SignatureValue changed.
    BAD_VALUE = "bad-value"
    #: XML signature wrapping: a list signed by its Id hides in a ds:Object, another one stands outside.
    #: Every digest and the signature value are right.
    WRAPPED = "wrapped"
    #: The signature moved in front of the list, not its last child.
    NOT_LAST = "not-last"
    #: Two signatures, both valid.
    TWO_SIGNATURES = "two-signatures"
    #: Reference 1 carries a transform outside the three allowed.
    OTHER_TRANSFORM = "other-transform"
    #: Reference 1 subtracts the domains as well, so they are not signed.
    SUBTRACTS_DOMAINS = "subtracts-domains"
    #: Reference 1 covers only one Domaine by its Id.
    PARTIAL = "partial"
    #: The reference to SignedProperties is missing.
    NO_PROPERTIES = "no-properties"
    #: rsa-sha1.
    SHA1 = "sha1"
    #: A certificate digest in SignedProperties that is not the signer's.
    OTHER_CERTIFICATE_DIGEST = "other-certificate-digest"


@attrs.frozen
class ListedDomain:
    """One `Domaine` of the list."""

    identifier: str
    db: str
    #: Viewer FQDN, may be empty.
    vi: str
    name: str
    #: `CN=…,OU=…,O=…,ST=…,C=FR`
    operator_dn: str
    contact: str = "support@example.org"
    updated: str = "2026-01-10T10:00:00Z"

    @classmethod
    def for_certificate(
        cls, identifier: str, pair: Pair, *, vi: str = "", name: str = "CABINET Y"
    ) -> ListedDomain:
        """List the holder of `pair`, an SSL_SERV certificate."""
        subject = pair.load().subject
        common_name = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        return cls(identifier, str(common_name), vi, name, subject.rfc4514_string())


def build_document(domains: Iterable[ListedDomain], *, generated: datetime) -> Element:
    """Return the unsigned list, indented as the published ones are."""
    root = etree.Element(_w("ListeBlancheDRIM-M"), {"versionFormat": "1.0.0"}, nsmap={None: NAMESPACE})
    etree.SubElement(root, _w("DateDeGeneration")).text = _instant(generated)
    listing = etree.SubElement(root, _w("ListeDomaines"))
    for domain in domains:
        entry = etree.SubElement(listing, _w("Domaine"))
        for tag, value in (
            ("Identifiant", domain.identifier),
            ("db", domain.db),
            ("vi", domain.vi),
            ("Denomination", domain.name),
            ("DNCertificatOperateur", domain.operator_dn),
            ("SupportContact", domain.contact),
            ("DateMAJ", domain.updated),
        ):
            etree.SubElement(entry, _w(tag)).text = value
    etree.indent(root, "  ")
    return root


def make_whitelist(
    domains: Iterable[ListedDomain],
    signer: Pair,
    *,
    generated: datetime | None = None,
    signed: datetime | None = None,
    transform: Transform = Transform.FILTER2,
    embedded: int = 2,
    fault: Fault | None = None,
) -> bytes:
    """Return the bytes of a signed list.

    `signer` is an ORG_SIGN pair whose file holds its chain; `embedded` is how many of that
    file's certificates KeyInfo carries. `fault` spoils the result in one way.
    """
    now = datetime.now(UTC)
    root = build_document(domains, generated=generated or now)
    if fault is Fault.UNSIGNED:
        return _bytes(root)
    _sign(root, signer, signed or now, transform, embedded, fault)
    if fault is Fault.TWO_SIGNATURES:
        _sign(root, signer, signed or now, transform, embedded, None)
    return _spoil(root, fault)


def _sign(
    root: Element,
    signer: Pair,
    instant: datetime,
    transform: Transform,
    embedded: int,
    fault: Fault | None,
) -> None:
    mark = uuid.uuid4().hex
    algorithm = "sha1" if fault is Fault.SHA1 else "sha256"
    signature = etree.SubElement(root, ds("Signature"), {"Id": f"id-{mark}"}, nsmap={"ds": DS})
    info = etree.SubElement(signature, ds("SignedInfo"))
    etree.SubElement(info, ds("CanonicalizationMethod"), {"Algorithm": EXC_C14N})
    method = DS + "rsa-sha1" if fault is Fault.SHA1 else RSA_SHA256
    etree.SubElement(info, ds("SignatureMethod"), {"Algorithm": method})
    properties = _signature_body(signature, signer, instant, mark, embedded, fault)

    whole = safe_parse(etree.tostring(root))
    for old in whole.findall(ds("Signature")):
        _remove_keeping_tail(old)
    uri, target = "", whole
    if fault is Fault.PARTIAL:
        domain = next(root.iter(_w("Domaine")))
        domain.set("Id", "signed")
        uri, target = "#signed", domain
    elif fault is Fault.WRAPPED:
        root.set("Id", "signed-list")
        whole.set("Id", "signed-list")
        uri = "#signed-list"
    elif fault is Fault.SUBTRACTS_DOMAINS:
        for listing in whole.findall(_w("ListeDomaines")):
            _remove_keeping_tail(listing)
    reference = etree.SubElement(info, ds("Reference"), {"Id": f"r-id-{mark}", "URI": uri})
    _transforms(reference, transform, fault)
    _digest(reference, algorithm, c14n(target, exclusive=True))
    if fault is not Fault.NO_PROPERTIES:
        second = etree.SubElement(
            info,
            ds("Reference"),
            {"Type": "http://uri.etsi.org/01903#SignedProperties", "URI": f"#xades-id-{mark}"},
        )
        chain = etree.SubElement(second, ds("Transforms"))
        etree.SubElement(chain, ds("Transform"), {"Algorithm": EXC_C14N})
        _digest(second, algorithm, c14n(properties, exclusive=True))
    value = rsa_sign(signer.rsa_key(), algorithm, c14n(info, exclusive=True))
    signature.find(ds("SignatureValue")).text = b64(value)


def _signature_body(
    signature: Element, signer: Pair, instant: datetime, mark: str, embedded: int, fault: Fault | None
) -> Element:
    """Add SignatureValue, KeyInfo and the XAdES object; return SignedProperties."""
    etree.SubElement(signature, ds("SignatureValue"), {"Id": f"value-id-{mark}"})
    data = etree.SubElement(etree.SubElement(signature, ds("KeyInfo")), ds("X509Data"))
    chain = signer.chain()
    for certificate in chain[: max(embedded, 1)]:
        der = certificate.public_bytes(serialization.Encoding.DER)
        etree.SubElement(data, ds("X509Certificate")).text = b64(der)
    holder = etree.SubElement(signature, ds("Object"))
    qualifying = etree.SubElement(
        holder, _x("QualifyingProperties"), {"Target": f"#id-{mark}"}, nsmap={"xades": XADES}
    )
    properties = etree.SubElement(qualifying, _x("SignedProperties"), {"Id": f"xades-id-{mark}"})
    about = etree.SubElement(properties, _x("SignedSignatureProperties"))
    etree.SubElement(about, _x("SigningTime")).text = _instant(instant)
    listed = etree.SubElement(etree.SubElement(about, _x("SigningCertificateV2")), _x("Cert"))
    named = chain[-1] if fault is Fault.OTHER_CERTIFICATE_DIGEST else chain[0]
    cert_digest = etree.SubElement(listed, _x("CertDigest"))
    _digest(cert_digest, "sha512", named.public_bytes(serialization.Encoding.DER))
    etree.SubElement(listed, _x("IssuerSerialV2")).text = b64(_issuer_serial(chain[0]))
    data_objects = etree.SubElement(properties, _x("SignedDataObjectProperties"))
    form = etree.SubElement(data_objects, _x("DataObjectFormat"), {"ObjectReference": f"#r-id-{mark}"})
    etree.SubElement(form, _x("MimeType")).text = "text/xml"
    return properties


def _issuer_serial(certificate: x509.Certificate) -> bytes:
    """Return the DER of RFC 5035 IssuerSerial: SEQUENCE { [4] directoryName, INTEGER }."""
    name = certificate.issuer.public_bytes()
    serial = certificate.serial_number
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return _tlv(0x30, _tlv(0x30, _tlv(0xA4, name)) + _tlv(0x02, number))


def _tlv(tag: int, value: bytes) -> bytes:
    if len(value) < 0x80:
        return bytes((tag, len(value))) + value
    size = len(value).to_bytes((len(value).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + value


def _transforms(reference: Element, transform: Transform, fault: Fault | None) -> None:
    chain = etree.SubElement(reference, ds("Transforms"))
    if fault in (Fault.PARTIAL, Fault.WRAPPED):
        pass
    elif fault is Fault.OTHER_TRANSFORM:
        # XPath 1.0 with another expression: same bytes, but nothing a verifier should reason about.
        step = etree.SubElement(chain, ds("Transform"), {"Algorithm": XPATH1})
        xpath = etree.SubElement(step, ds("XPath"), nsmap={"ds": DS})
        xpath.text = "not(ancestor-or-self::ds:Signature) and true()"
    elif fault is Fault.SUBTRACTS_DOMAINS or transform is Transform.FILTER2:
        step = etree.SubElement(chain, ds("Transform"), {"Algorithm": FILTER2})
        xpath = etree.SubElement(
            step, f"{{{FILTER2}}}XPath", {"Filter": "subtract"}, nsmap={"dsig-xpath": FILTER2}
        )
        xpath.text = "/descendant::ds:Signature"
        if fault is Fault.SUBTRACTS_DOMAINS:
            xpath.text += " | /*/*[local-name()='ListeDomaines']"
    elif transform is Transform.ENVELOPED:
        etree.SubElement(chain, ds("Transform"), {"Algorithm": ENVELOPED})
    else:
        step = etree.SubElement(chain, ds("Transform"), {"Algorithm": XPATH1})
        xpath = etree.SubElement(step, ds("XPath"), nsmap={"ds": DS})
        xpath.text = "not(ancestor-or-self::ds:Signature)"
    etree.SubElement(chain, ds("Transform"), {"Algorithm": EXC_C14N})


def _digest(parent: Element, algorithm: str, data: bytes) -> None:
    etree.SubElement(parent, ds("DigestMethod"), {"Algorithm": DIGEST_URIS[algorithm]})
    etree.SubElement(parent, ds("DigestValue")).text = b64(digest(algorithm, data))


def _remove_keeping_tail(element: Element) -> None:
    parent, before = element.getparent(), element.getprevious()
    if element.tail:
        if before is not None:
            before.tail = (before.tail or "") + element.tail
        else:
            parent.text = (parent.text or "") + element.tail
    parent.remove(element)


def _spoil(root: Element, fault: Fault | None) -> bytes:
    signature = root.find(ds("Signature"))
    if fault is Fault.ALTERED:
        name = next(root.iter(_w("DNCertificatOperateur")))
        name.text = (name.text or "").replace("CN=", "CN=x", 1)
    elif fault is Fault.BAD_VALUE:
        value = signature.find(ds("SignatureValue"))
        value.text = ("A" if value.text[0] != "A" else "B") + value.text[1:]
    elif fault is Fault.NOT_LAST:
        root.insert(0, signature)
    elif fault is Fault.WRAPPED:
        return _wrap(root, signature)
    return _bytes(root)


def _wrap(root: Element, signature: Element) -> bytes:
    """Put the signed list into an Object of its own signature, and a list of ours around both."""
    evil = safe_parse(etree.tostring(root))
    evil.remove(evil.find(ds("Signature")))
    del evil.attrib["Id"]
    for dn in evil.iter(_w("DNCertificatOperateur")):
        dn.text = "CN=attaquant.example,OU=000000000000000,O=ATTAQUANT,ST=Paris (75),C=FR"
    root.remove(signature)
    etree.SubElement(signature, ds("Object")).append(root)
    evil.append(signature)
    return _bytes(evil)


def _bytes(root: Element) -> bytes:
    data: bytes = etree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return data


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def bad_whitelists(pki: Pki, domains: Sequence[ListedDomain]) -> dict[str, bytes]:
    """Return every kind of list a verifier must refuse, by the name of what is wrong with it."""
    lists = {fault.value: make_whitelist(domains, pki.whitelist_signer, fault=fault) for fault in Fault}
    signers = {
        "wrong-cn": pki.issue_whitelist_signer("signer-wrong-cn", common_name="Liste Blanche"),
        "wrong-ou": pki.issue_whitelist_signer("signer-wrong-ou", unit="318751275100021"),
        "expired-signer": pki.issue_whitelist_signer("signer-expired", expired=True),
        "wrong-root": pki.issue_whitelist_signer("signer-stranger", stranger=True),
    }
    lists.update({name: make_whitelist(domains, signer) for name, signer in signers.items()})
    return lists


def main(argv: Sequence[str] | None = None) -> None:
    """Write one signed list: the command `python -m drimbox.sim.whitelist`."""
    parser = argparse.ArgumentParser(
        prog="python -m drimbox.sim.whitelist", description="Écrit une liste blanche signée de simulation."
    )
    parser.add_argument("--certificate", type=Path, required=True, help="certificat du signataire (PEM)")
    parser.add_argument("--key", type=Path, required=True, help="clé du signataire (PEM)")
    parser.add_argument(
        "--site", type=Path, action="append", default=[], help="certificat SSL_SERV à inscrire (PEM)"
    )
    parser.add_argument(
        "--fault", choices=[fault.value for fault in Fault], help="défaut à introduire dans la liste"
    )
    parser.add_argument("output", type=Path, help="fichier à écrire")
    options = parser.parse_args(argv)
    domains = [
        ListedDomain.for_certificate(str(349 + number), Pair(path, path))
        for number, path in enumerate(options.site)
    ]
    fault = Fault(options.fault) if options.fault else None
    options.output.write_bytes(make_whitelist(domains, Pair(options.certificate, options.key), fault=fault))


if __name__ == "__main__":
    main()
