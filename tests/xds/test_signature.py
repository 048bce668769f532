"""The XAdES document: judged by xmlsec1, its manifest recomputed, its bytes repeatable."""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta, timezone
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from drimbox.config import Certificate
from drimbox.errors import PublicationError
from drimbox.xds.sender import SigningPair, SigningPairs, load_pair
from drimbox.xds.signature import signature_document
from drimbox.xml import safe_parse
from tests.xds.builders import KOS_UID, SUBMISSION, samples
from tests.xds.conftest import Pki
from tests.xds.judges import DS, need_xmlsec1, xmlsec1
from tests.xds.pki import Authority

NS = {"ds": DS, "xades": "http://uri.etsi.org/01903/v1.1.1#"}
LATER = "http://uri.etsi.org/01903/v1.3.2#"
XMLSEC_OPTIONS = (
    "--ignore-manifests",
    "--id-attr:Id",
    f"{DS}:Manifest",
    "--id-attr:Id",
    "http://uri.etsi.org/01903/v1.1.1#:SignedProperties",
    "--id-attr:Id",
    f"{LATER}:SignedProperties",
)


def make(pair: SigningPair, digest: str = "sha256", **changes: object) -> bytes:
    arguments = {
        "signature_uid": "2.25.555",
        "submission_uid": "2.25.444",
        "documents": [(KOS_UID, SUBMISSION.kos)],
        "signing_time": SUBMISSION.submission_time,
        "pair": pair,
        "digest": digest,
        **changes,
    }
    return signature_document(**arguments)  # type: ignore[arg-type]


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159")
@pytest.mark.parametrize("version", ["1.1.1", "1.3.2"])
@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_xmlsec1_verifies_it(
    pair: SigningPair, pki: Pki, tmp_path: Path, digest: str, version: str
) -> None:
    need_xmlsec1()
    good, words = xmlsec1(make(pair, digest, xades=version), tmp_path, pki.roots, *XMLSEC_OPTIONS)
    assert good, words
    assert "SignedInfo References (ok/all): 2/2" in words


@pytest.mark.peer("xmlsec1")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"urn:oid:2.25.444", b"urn:oid:2.25.445"),
        (b"2026-01-12T09:46:01.025", b"2026-01-12T09:46:02.025"),
        (b'Type="http://www.w3.org/2000/09/xmldsig#Manifest"', b'Type="http://other/#Manifest"'),
    ],
)
def test_xmlsec1_refuses_it_once_altered(
    pair: SigningPair, pki: Pki, tmp_path: Path, before: bytes, after: bytes
) -> None:
    need_xmlsec1()
    document = make(pair)
    assert before in document
    good, _ = xmlsec1(document.replace(before, after), tmp_path, pki.roots, *XMLSEC_OPTIONS)
    assert not good


@pytest.mark.peer("xmlsec1")
def test_a_certificate_whose_names_need_escaping(tmp_path: Path) -> None:
    need_xmlsec1()
    authority = Authority(tmp_path, "AC & <TEST>, étendue")
    document = make(load_pair(authority.issue("odd", signing=True)))
    good, words = xmlsec1(document, tmp_path, authority.roots(), *XMLSEC_OPTIONS)
    assert good, words
    issuer = safe_parse(document).findtext(".//ds:X509IssuerName", namespaces=NS)
    assert issuer.startswith(r"CN=AC & \<TEST\>\, étendue, OU=0002 187512751, ")


@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_manifest_and_certificate_digests(pair: SigningPair, digest: str) -> None:
    root = safe_parse(make(pair, digest))
    digests = {
        reference.get("URI"): reference.findtext("ds:DigestValue", namespaces=NS)
        for reference in root.iterfind(".//ds:Manifest/ds:Reference", NS)
    }
    recomputed = base64.b64encode(hashlib.new(digest, SUBMISSION.kos).digest()).decode()
    assert digests == {"urn:oid:2.25.444": "AA==", f"urn:oid:{KOS_UID}": recomputed}
    certificate = pair.certificate.public_bytes(serialization.Encoding.DER)
    stated = root.findtext(".//xades:CertDigest/xades:DigestValue", namespaces=NS)
    assert stated == base64.b64encode(hashlib.new(digest, certificate).digest()).decode()
    assert root.findtext(".//ds:X509SerialNumber", namespaces=NS) == str(pair.certificate.serial_number)
    issuer = root.findtext(".//ds:X509IssuerName", namespaces=NS)
    assert issuer == "CN=TEST AC ORGANISATIONS, OU=0002 187512751, O=ASIP-SANTE, C=FR"


@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_the_later_version_differs_where_the_standard_does(pair: SigningPair, digest: str) -> None:
    """ETSI TS 101 903 v1.3.2: Type of the reference (6.3.1), digest of the certificate in xmldsig (7.1)."""
    root = safe_parse(make(pair, digest, xades="1.3.2"))
    types = [each.get("Type") for each in root.iterfind("ds:SignedInfo/ds:Reference", NS)]
    assert types == [f"{DS}Manifest", "http://uri.etsi.org/01903#SignedProperties"]
    assert not root.xpath("//*[namespace-uri() = 'http://uri.etsi.org/01903/v1.1.1#']")
    later = {"ds": DS, "xades": LATER}
    certificate = pair.certificate.public_bytes(serialization.Encoding.DER)
    stated = root.findtext(".//xades:CertDigest/ds:DigestValue", namespaces=later)
    assert stated == base64.b64encode(hashlib.new(digest, certificate).digest()).decode()
    names = [each.tag.rpartition("}")[2] for each in safe_parse(make(pair, digest)).iter()]
    assert [each.tag.rpartition("}")[2] for each in root.iter()] == names


def test_the_same_submission_gives_the_same_bytes(pair: SigningPair) -> None:
    elsewhere = SUBMISSION.submission_time.astimezone(timezone(timedelta(hours=4)))
    assert make(pair) == make(pair) == make(pair, signing_time=elsewhere)
    assert make(pair) != make(pair, signing_time=elsewhere + timedelta(seconds=1))


def test_it_has_the_shape_of_the_published_one(pair: SigningPair) -> None:
    published = samples() / "XDM/KA202401/IHE_XDM/SS000001/SIGN_1.XML"
    if not published.exists():
        pytest.skip("published samples not present (DRIMBOX_SAMPLES)")

    def shape(data: bytes) -> list[tuple[str, tuple[str, ...]]]:
        return [(element.tag, tuple(sorted(element.keys()))) for element in safe_parse(data).iter("{*}*")]

    assert shape(make(pair, "sha1")) == shape(published.read_bytes())


def test_a_renewed_certificate_is_used_without_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("org", signing=True)
    pairs = SigningPairs()
    first = pairs.get(files)
    assert pairs.get(files) is first
    authority.issue("org", signing=True)
    assert pairs.get(files).certificate != first.certificate


def test_the_matching_certificate_is_found_in_any_order(
    pki: Pki, pair: SigningPair, tmp_path: Path
) -> None:
    leaf = pair.certificate_pem
    chain = tmp_path / "chain.pem"
    chain.write_bytes(pki.roots.read_bytes() + leaf)
    assert load_pair(Certificate(chain, pki.signature.key)).certificate == pair.certificate


@pytest.mark.parametrize("fault", ["absent", "garbage", "mismatch", "elliptic", "encrypted"])
def test_an_unusable_pair_is_a_coded_error(pki: Pki, tmp_path: Path, fault: str) -> None:
    key = tmp_path / "key.pem"
    private = serialization.PrivateFormat.PKCS8
    clear = serialization.NoEncryption()
    if fault == "garbage":
        key.write_bytes(b"not a key")
    elif fault == "mismatch":
        key.write_bytes(pki.authentication.key.read_bytes())
    elif fault == "elliptic":
        curve = ec.generate_private_key(ec.SECP256R1())
        key.write_bytes(curve.private_bytes(serialization.Encoding.PEM, private, clear))
    elif fault == "encrypted":
        made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        secret = serialization.BestAvailableEncryption(b"x")
        key.write_bytes(made.private_bytes(serialization.Encoding.PEM, private, secret))
    files = Certificate(pki.signature.certificate, key)
    with pytest.raises(PublicationError) as caught:
        SigningPairs().get(files)
    assert caught.value.code == "E007"


@pytest.mark.threat("patient data in logs and notices")
def test_a_pair_never_shows_its_key(pair: SigningPair) -> None:
    assert "PRIVATE" not in repr(pair)
    assert isinstance(pair.certificate, x509.Certificate)
    assert "key_pem" not in repr(attrs.evolve(pair))
