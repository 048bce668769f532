"""What an OCSP answer is worth: signed by whom, about what, of when; and where it may come from."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from hypothesis import given
from hypothesis import strategies as st

from drimbox.trust.inquiry import allowed
from drimbox.trust.ocsp import SKEW, OcspRefused, Question, Standing, read_answer
from tests.trust.conftest import BOTH, NOW, Issued, ec_key, issue, name, rsa_key

pytestmark = pytest.mark.requirement("DB.SO.111")
NONCE = b"0123456789abcdef"
OCSP = (Eku.OCSP_SIGNING,)
CA = issue(name("CA"), ca=True)
LEAF = issue(name("leaf", "1"), by=CA, eku=BOTH)
OTHER = issue(name("other", "1"), by=CA, eku=BOTH)
DELEGATE = issue(name("delegate"), by=CA, eku=OCSP)
QUESTION = Question(LEAF.certificate, CA.certificate, NONCE)


@attrs.frozen
class Made:
    """A recipe of an answer; every field can be made wrong."""

    about: x509.Certificate = LEAF.certificate
    issuer: x509.Certificate = CA.certificate
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD
    this: timedelta = timedelta(minutes=-10)
    following: timedelta | None = timedelta(hours=1)
    signer: Issued = CA
    by_key: bool = False
    certificates: tuple[x509.Certificate, ...] = ()
    nonce: bytes | None = NONCE
    certificate_hash: Any = attrs.field(factory=hashes.SHA1)
    signature_hash: Any = attrs.field(factory=hashes.SHA256)

    def encode(self) -> bytes:
        revoked = self.status is ocsp.OCSPCertStatus.REVOKED
        builder = ocsp.OCSPResponseBuilder().add_response(
            self.about,
            self.issuer,
            self.certificate_hash,
            self.status,
            NOW + self.this,
            NOW + self.following if self.following is not None else None,
            NOW - timedelta(days=1) if revoked else None,
            None,
        )
        encoding = ocsp.OCSPResponderEncoding.HASH if self.by_key else ocsp.OCSPResponderEncoding.NAME
        builder = builder.responder_id(encoding, self.signer.certificate)
        if self.certificates:
            builder = builder.certificates(list(self.certificates))
        if self.nonce is not None:
            builder = builder.add_extension(x509.OCSPNonce(self.nonce), critical=False)
        return builder.sign(self.signer.key, self.signature_hash).public_bytes(Encoding.DER)


def read(made: Made, **options: Any) -> Any:
    return read_answer(made.encode(), QUESTION, NOW, **options)


def delegated(delegate: Issued = DELEGATE, **more: Any) -> Made:
    return Made(signer=delegate, certificates=(delegate.certificate,), **more)


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("made", [Made(), delegated()], ids=["issuer", "delegate"])
@pytest.mark.parametrize("standing", list(Standing))
def test_issuer_and_delegate_are_believed(made: Made, by_key: bool, standing: Standing) -> None:
    made = attrs.evolve(made, by_key=by_key, status=ocsp.OCSPCertStatus[standing.name])
    answer = read(made)
    assert answer.standing is standing
    assert answer.until == (NOW + timedelta(hours=1)).replace(microsecond=0)


def test_rsa_signs_too() -> None:
    ca = issue(name("RSA CA"), ca=True, key=rsa_key("ocsp"))
    leaf = issue(name("x", "1"), by=ca)
    question = Question(leaf.certificate, ca.certificate, NONCE)
    data = Made(about=leaf.certificate, issuer=ca.certificate, signer=ca).encode()
    assert isinstance(ca.key, rsa.RSAPrivateKey)
    assert read_answer(data, question, NOW).standing is Standing.GOOD


STRANGER = issue(name("CA"), ca=True, key=ec_key("stranger"))
BELOW = issue(name("below"), by=CA, ca=True)
BAD: dict[str, tuple[Made, str]] = {
    "another certificate": (Made(about=OTHER.certificate), "autre certificat"),
    "another issuer of that number": (Made(issuer=STRANGER.certificate), "autre certificat"),
    "named by SHA-256": (Made(certificate_hash=hashes.SHA256()), "autre certificat"),
    "of the future": (Made(this=SKEW + timedelta(minutes=1)), "futur"),
    "run out": (Made(this=timedelta(days=-2), following=timedelta(seconds=-1)), "périmée"),
    "old, without an end": (Made(this=-SKEW - timedelta(minutes=1), following=None), "ancienne"),
    "to another question": (Made(nonce=b"fedcba9876543210"), "autre question"),
    "signed by another key": (Made(signer=STRANGER), "signature"),
    "signed by a stranger of the issuer's name": (Made(signer=STRANGER, by_key=True), "répondeur inconnu"),
    "a stranger who brings his certificate": (
        Made(signer=STRANGER, by_key=True, certificates=(STRANGER.certificate,)),
        "autre autorité",
    ),
    "a delegate without his certificate": (Made(signer=DELEGATE), "répondeur inconnu"),
    "a delegate of a stranger": (
        delegated(issue(name("d2"), by=STRANGER, eku=OCSP)), "autre autorité"
    ),
    "a delegate of one below": (delegated(issue(name("d3"), by=BELOW, eku=OCSP)), "autre autorité"),
    "a client as delegate": (delegated(OTHER), "non habilité"),
    "the very leaf as delegate": (delegated(LEAF), "non habilité"),
    "a delegate for anything": (
        delegated(issue(name("d4"), by=CA, eku=(Eku.ANY_EXTENDED_KEY_USAGE,))), "non habilité"
    ),
    "a delegate without a purpose": (delegated(issue(name("d5"), by=CA)), "illisible"),
    "a delegate who has expired": (
        delegated(issue(name("d6"), by=CA, eku=OCSP, start=NOW - timedelta(9), end=NOW - timedelta(1))),
        "périmé",
    ),
    "a delegate of tomorrow": (
        delegated(issue(name("d7"), by=CA, eku=OCSP, start=NOW + timedelta(1))), "périmé"
    ),
}  # fmt: skip


@pytest.mark.threat("forged lists and OCSP answers")
@pytest.mark.parametrize("which", BAD)
def test_an_answer_that_is_not_what_it_should_be_is_none(which: str) -> None:
    made, words = BAD[which]
    with pytest.raises(OcspRefused, match=words):
        read(made)


def test_a_delegate_who_is_revoked_is_not_believed() -> None:
    assert read(delegated(), revoked=lambda each: each == OTHER.certificate).standing is Standing.GOOD
    with pytest.raises(OcspRefused, match="révoqué"):
        read(delegated(), revoked=lambda each: each == DELEGATE.certificate)


def test_an_answer_made_in_advance_has_no_nonce_and_counts_unless_one_is_required() -> None:
    assert read(Made(nonce=None)).standing is Standing.GOOD
    with pytest.raises(OcspRefused, match="nonce"):
        read(Made(nonce=None), nonce_required=True)
    assert read(Made(), nonce_required=True).standing is Standing.GOOD


def test_an_answer_without_an_end_is_of_this_instant() -> None:
    assert read(Made(following=None, this=timedelta(0))).until == NOW


@pytest.mark.parametrize("status", [each for each in ocsp.OCSPResponseStatus if each.value])
def test_an_error_is_no_answer(status: ocsp.OCSPResponseStatus) -> None:
    data = ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)
    with pytest.raises(OcspRefused, match=status.name):
        read_answer(data, QUESTION, NOW)


#: One answer for all damages: each signature has another length.
WHOLE = Made(status=ocsp.OCSPCertStatus.REVOKED).encode()


@given(st.binary(max_size=200) | st.integers(0, len(WHOLE) - 1).map(lambda at: WHOLE[:at]))
def test_noise_and_beginnings_are_no_answer(data: bytes) -> None:
    with pytest.raises(OcspRefused):
        read_answer(data, QUESTION, NOW)


@given(st.data())
def test_no_byte_can_change_without_refusal_or_without_effect(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(WHOLE) - 1))
    changed = WHOLE[:at] + bytes([WHOLE[at] ^ data.draw(st.integers(1, 255))]) + WHOLE[at + 1 :]
    with contextlib.suppress(OcspRefused):
        assert read_answer(changed, QUESTION, NOW).standing is Standing.REVOKED


@pytest.mark.threat("SSRF")
@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("http://ocsp.example/", True),
        ("http://OCSP.example:80/x?y", True),
        ("https://ocsp.example:443", True),
        ("http://other.example:8080/", True),
        ("http://other.example/", False),
        ("http://ocsp.example:8080/", False),
        ("https://ocsp.example:80/", False),
        ("http://ocsp.example.evil/", False),
        ("http://ocsp.example@evil/", False),
        ("http://user@ocsp.example/", False),
        ("http://evil/ocsp.example", False),
        ("http://ocsp.example\\@evil/", False),
        ("http://ocsp.example /", False),
        ("http://ocsp.example/\r\nX: y", False),
        ("ldap://ocsp.example/", False),
        ("file:///etc/passwd", False),
        ("http://", False),
        ("http://[::1/", False),
        ("http://ocsp.example:99999/", False),
        ("http://ocsp.éxample/", False),
        ("", False),
    ],
)
def test_a_certificate_sends_us_nowhere_but_where_we_agreed(url: str, taken: bool) -> None:
    assert allowed(url, ("ocsp.example", "other.example:8080")) is taken
