"""Whitelists for tests, signed by python-xmlsec from a template written out in full."""

from __future__ import annotations

import base64
import hashlib

import xmlsec
from cryptography.hazmat.primitives import serialization
from lxml import etree

from drimbox.xml import safe_parse
from tests.trust.conftest import Issued

NS = "https://github.com/ansforge/DRIM-M_DATA"
OLD_NS = "https://listeblanche.mesimagesmedicales.fr/schema"
DS = "http://www.w3.org/2000/09/xmldsig#"
EXC = "http://www.w3.org/2001/10/xml-exc-c14n#"
FILTER2 = (
    '<ds:Transform Algorithm="http://www.w3.org/2002/06/xmldsig-filter2"><dsig-filter2:XPath '
    'xmlns:dsig-filter2="http://www.w3.org/2002/06/xmldsig-filter2" Filter="subtract">'
    "/descendant::ds:Signature</dsig-filter2:XPath></ds:Transform>"
)
ENVELOPED = f'<ds:Transform Algorithm="{DS}enveloped-signature"/>'
XPATH = (
    '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116">'
    "<ds:XPath>not(ancestor-or-self::ds:Signature)</ds:XPath></ds:Transform>"
)
C14N = f'<ds:Transform Algorithm="{EXC}"/>'
SHA256 = "http://www.w3.org/2001/04/xmlenc#sha256"
SHA512 = "http://www.w3.org/2001/04/xmlenc#sha512"

SIGNATURE = f"""<ds:Signature xmlns:ds="{DS}" Id="id-1"><ds:SignedInfo>\
<ds:CanonicalizationMethod Algorithm="{EXC}"/>\
<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"/>\
<ds:Reference Id="r-id-1" URI=""><ds:Transforms>%(selector)s{C14N}</ds:Transforms>\
<ds:DigestMethod Algorithm="{SHA256}"/><ds:DigestValue/></ds:Reference>\
<ds:Reference Type="http://uri.etsi.org/01903#SignedProperties" URI="#xades-id-1"><ds:Transforms>{C14N}\
</ds:Transforms><ds:DigestMethod Algorithm="{SHA256}"/><ds:DigestValue/></ds:Reference></ds:SignedInfo>\
<ds:SignatureValue Id="value-id-1"/><ds:KeyInfo><ds:X509Data>%(certificates)s</ds:X509Data></ds:KeyInfo>\
<ds:Object><xades:QualifyingProperties xmlns:xades="http://uri.etsi.org/01903/v1.3.2#" Target="#id-1">\
<xades:SignedProperties Id="xades-id-1"><xades:SignedSignatureProperties>\
<xades:SigningTime>2026-01-12T04:00:10Z</xades:SigningTime><xades:SigningCertificateV2><xades:Cert>\
<xades:CertDigest><ds:DigestMethod Algorithm="{SHA512}"/><ds:DigestValue>%(digest)s</ds:DigestValue>\
</xades:CertDigest></xades:Cert></xades:SigningCertificateV2></xades:SignedSignatureProperties>\
<xades:SignedDataObjectProperties><xades:DataObjectFormat ObjectReference="#r-id-1">\
<xades:MimeType>text/xml</xades:MimeType></xades:DataObjectFormat></xades:SignedDataObjectProperties>\
</xades:SignedProperties></xades:QualifyingProperties></ds:Object></ds:Signature>"""


def entry(dn: str, identifier: str = "349", host: str = "db1.349.example") -> str:
    return (
        f"<Domaine><Identifiant>{identifier}</Identifiant><db>{host}</db><vi>vi1.349.example</vi>"
        f"<Denomination>CABINET DE L'ÉTÉ</Denomination><DNCertificatOperateur>{dn}</DNCertificatOperateur>"
        "<SupportContact>support@example.org</SupportContact><DateMAJ>2026-01-10T10:00:00Z</DateMAJ></Domaine>"
    )


def document(*entries: str, ns: str = NS) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListeBlancheDRIM-M xmlns="{ns}" versionFormat="1.0.0">\n'
        "  <DateDeGeneration>2026-01-12T04:00:00Z</DateDeGeneration>\n  <ListeDomaines>"
        + "\n    ".join(entries)
        + "</ListeDomaines>\n  \n</ListeBlancheDRIM-M>\n"
    )


def der(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(serialization.Encoding.DER)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sign(
    text: str,
    signer: Issued,
    *,
    selector: str = FILTER2,
    embedded: tuple = (),
    digest: bytes | None = None,
    edit=lambda template: template,
    key: xmlsec.Key | None = None,
) -> bytes:
    """Put a signature last in the root; `edit` may rewrite the template before it is filled."""
    certificates = [der(signer), *(c.public_bytes(serialization.Encoding.DER) for c in embedded)]
    template = edit(
        SIGNATURE
        % {
            "selector": selector,
            "certificates": "".join(
                f"<ds:X509Certificate>{b64(c)}</ds:X509Certificate>" for c in certificates
            ),
            "digest": b64(digest or hashlib.sha512(der(signer)).digest()),
        }
    )
    cut = text.rindex("\n</")
    root = safe_parse((text[:cut] + template + text[cut:]).encode())
    signature = root[-1]
    context = xmlsec.SignatureContext()
    context.key = key or xmlsec.Key.from_memory(signer.key_pem(), xmlsec.constants.KeyDataFormatPem)
    for node in root.iter(etree.Element):
        if node.get("Id") and not node.tag.endswith("}Signature"):
            context.register_id(node, "Id")
    context.sign(signature)
    return etree.tostring(root.getroottree(), encoding="UTF-8", xml_declaration=True)
