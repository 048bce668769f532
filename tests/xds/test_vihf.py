"""The VIHF: judged by xmlsec1 and signxml, alone and inside its envelope."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509
from lxml import etree
from signxml import DigestAlgorithm, SignatureConfiguration, SignatureMethod, XMLVerifier
from signxml.exceptions import InvalidDigest, InvalidInput

from drimbox.config import Structure
from drimbox.errors import ReportNotInterpretable
from drimbox.model import Person, Report
from drimbox.xds import soap
from drimbox.xds.sender import SigningPair
from drimbox.xds.vihf import SAML, roles, vihf
from drimbox.xml import safe_parse
from tests.xds.builders import INS, REPORT, make_sender
from tests.xds.conftest import Pki
from tests.xds.judges import need_xmlsec1, xmlsec1

NS = {"saml2": SAML, "h": "urn:hl7-org:v3"}
NOW = datetime(2026, 1, 12, 9, 46, 1, 25999, tzinfo=UTC)


def make(
    structure: Structure, pair: SigningPair, report: Report = REPORT, secret: bool = False, **settings: str
) -> bytes:
    return vihf(
        make_sender(structure, **settings),
        report,
        secret_connection=secret,
        assertion_id="_7f3c",
        instant=NOW,
        pair=pair,
    )


def values(document: bytes) -> dict[str, str]:
    root = safe_parse(document)
    return {
        attribute.get("Name"): attribute.findtext("saml2:AttributeValue", namespaces=NS)
        for attribute in root.iterfind(".//saml2:Attribute", NS)
    }


def in_envelope(assertion: bytes) -> bytes:
    return soap.envelope(soap.Header("https://dmp", soap.QUERY, "urn:uuid:1", assertion), b"<x/>")


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("digest", ["sha256", "sha1"])
@pytest.mark.parametrize("wrap", [bytes, in_envelope], ids=["alone", "in its envelope"])
def test_xmlsec1_verifies_it(
    structure: Structure, pair: SigningPair, pki: Pki, tmp_path: Path, digest: str, wrap: object
) -> None:
    need_xmlsec1()
    document = wrap(make(structure, pair, digest=digest))  # type: ignore[operator]
    good, words = xmlsec1(document, tmp_path, pki.roots, "--id-attr:ID", f"{SAML}:Assertion")
    assert good, words


@pytest.mark.peer("xmlsec1")
def test_xmlsec1_refuses_another_patient(
    structure: Structure, pair: SigningPair, pki: Pki, tmp_path: Path
) -> None:
    need_xmlsec1()
    document = make(structure, pair).replace(INS.encode(), b"184070100499011")
    good, _ = xmlsec1(document, tmp_path, pki.roots, "--id-attr:ID", f"{SAML}:Assertion")
    assert not good


ONLY = {
    "sha256": (SignatureMethod.RSA_SHA256, DigestAlgorithm.SHA256),
    "sha1": (SignatureMethod.RSA_SHA1, DigestAlgorithm.SHA1),
}


def by_signxml(document: bytes, digest: str, pki: Pki) -> Any:
    """Let signxml judge the assertion of an envelope, this digest and no other being good."""
    method, algorithm = ONLY[digest]
    expected = SignatureConfiguration(
        require_x509=True,
        signature_methods=frozenset({method}),
        digest_algorithms=frozenset({algorithm}),
    )
    assertion = etree.fromstring(document).find(".//saml2:Assertion", NS)
    return XMLVerifier().verify(
        etree.tostring(assertion), ca_pem_file=str(pki.roots), id_attribute="ID", expect_config=expected
    )


@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_signxml_verifies_the_whole_assertion(
    structure: Structure, pair: SigningPair, pki: Pki, digest: str
) -> None:
    document = in_envelope(make(structure, pair, digest=digest))
    other = "sha1" if digest == "sha256" else "sha256"
    with pytest.raises(InvalidInput):
        by_signxml(document, other, pki)
    with pytest.raises(InvalidDigest):
        by_signxml(document.replace(INS.encode(), b"184070100499011"), digest, pki)
    result = by_signxml(document, digest, pki)
    assert result.signed_xml.tag == f"{{{SAML}}}Assertion"
    assert result.signed_xml.get("ID") == "_7f3c"


@pytest.mark.requirement("DB.CS.159")
def test_indirect_mode_says_who_answers_for_whom(structure: Structure, pair: SigningPair) -> None:
    document = make(structure, pair)
    root = safe_parse(document)
    assert values(document) == {
        "VIHF_Version": "3.0",
        "Identifiant_Structure": "1999999999",
        "Secteur_Activite": "SA08^1.2.250.1.71.4.2.4",
        "Ressource_URN": "urn:dmp",
        "urn:oasis:names:tc:xspa:1.0:subject:subject-id": "PAUL DURAND",
        "urn:oasis:names:tc:xacml:2.0:resource:resource-id": f"{INS}^^^&1.2.250.1.213.1.4.10&ISO^NH",
        "Authentification_Mode": "INDIRECTE",
        "LPS_ID": "SN-1",
        "LPS_Nom": "DRIMbox",
        "LPS_Version": "0.1.0",
        "LPS_ID_HOMOLOGATION_DMP": "HOMOL-1",
        "urn:oasis:names:tc:xspa:1.0:subject:purposeofuse": "",
        "urn:oasis:names:tc:xacml:2.0:subject:role": "",
    }
    issuer = root.findtext("saml2:Issuer", namespaces=NS)
    assert issuer == "CN=org-sign, OU=1999999999, O=CABINET Y, ST=Paris (75), C=FR"
    assert [child.tag.rpartition("}")[2] for child in root][:3] == ["Issuer", "Signature", "Subject"]
    assert root.findtext(".//saml2:NameID", namespaces=NS) == "899700000001"
    assert root.get("IssueInstant") == "2026-01-12T09:46:01.025Z"
    coded = [
        (e.tag.rpartition("}")[2], e.get("code"), e.get("codeSystem")) for e in root.iterfind(".//h:*", NS)
    ]
    assert coded == [
        ("PurposeOfUse", "normal", "1.2.250.1.213.1.1.4.248"),
        ("Role", "10", "1.2.250.1.71.1.2.7"),
        ("Role", "SM44", "1.2.250.1.71.4.2.5"),
    ]


def test_a_secret_connection_is_said_only_when_asked(structure: Structure, pair: SigningPair) -> None:
    assert b"CONNEXION_SECRETE" not in make(structure, pair)
    assert b'code="CONNEXION_SECRETE"' in make(structure, pair, secret=True)


def test_the_author_without_identifier_gives_way_to_the_legal_authenticator(
    structure: Structure, pair: SigningPair
) -> None:
    report = attrs.evolve(REPORT, author=Person("", "DURAND", "PAUL"))
    document = make(structure, pair, report)
    assert safe_parse(document).findtext(".//saml2:NameID", namespaces=NS) == "899700000002"
    assert values(document)["urn:oasis:names:tc:xspa:1.0:subject:subject-id"] == "ANNE MARTIN"


def test_a_report_without_facility_type_is_e005(structure: Structure, pair: SigningPair) -> None:
    with pytest.raises(ReportNotInterpretable):
        make(structure, pair, attrs.evolve(REPORT, facility_type=None))


@pytest.mark.parametrize(
    ("author_code", "expected"),
    [
        ("G15_10/SM44", ["10", "SM44"]),
        ("G15_10", ["10"]),
        ("10", ["10"]),
        ("G15_21/FQ01", ["21", "FQ01"]),
        ("", ["AUTOMATE"]),
        ("DISPOSITIF", ["AUTOMATE"]),
        ('G15_10/"><x', ["AUTOMATE"]),
    ],
)
def test_roles(author_code: str, expected: list[str]) -> None:
    assert [role.value for role in roles(author_code)] == expected


@pytest.mark.threat("markup and query injection in what we send")
def test_names_are_text_not_markup(structure: Structure, pair: SigningPair) -> None:
    report = attrs.evolve(REPORT, author=Person("899700000001", "</x>&\x0b<D", "P'\"A"))
    document = make(structure, pair, report)
    name = values(document)["urn:oasis:names:tc:xspa:1.0:subject:subject-id"]
    assert name == "P'\"A </x>& <D"


def test_certificate_is_the_signature_one(structure: Structure, pair: SigningPair) -> None:
    root = safe_parse(make(structure, pair))
    encoded = "".join(root.find(".//{*}X509Certificate").text.split())
    pem = f"-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n"
    assert x509.load_pem_x509_certificate(pem.encode()) == pair.certificate
