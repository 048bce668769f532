"""Questions to an OCSP responder and what its answers are worth (RFC 6960). No socket, no clock.

An answer counts when the issuer of the certificate signed it, or whom the issuer empowered: a certificate
that it signed itself for `id-kp-OCSPSigning` (4.2.2.2). It must be about the very certificate asked for, of
now, and repeat our nonce if it has one; a responder that makes its answers in advance has none (RFC 5019).
Everything else is no answer: what that means is the operator's choice (`responder.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

#: What the clock of a responder may be ahead of ours; an answer without an end is not older than that.
SKEW = timedelta(minutes=5)
#: Signatures taken; SHA-1 is not among them.
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class OcspRefused(Exception):
    """An answer is worth nothing; the text (French) says why."""


class Standing(enum.Enum):
    """What the authority says of a certificate."""

    GOOD = "valable"
    REVOKED = "révoqué"
    UNKNOWN = "inconnu de son autorité"


@attrs.frozen
class Answer:
    """What a verified answer says, and until when."""

    standing: Standing
    until: datetime


@attrs.frozen
class Question:
    """One question about one certificate."""

    leaf: x509.Certificate
    issuer: x509.Certificate
    nonce: bytes

    @property
    def request(self) -> ocsp.OCSPRequest:
        """The request; SHA-1 only names the issuer in it, and is what every responder knows (RFC 5019)."""
        builder = ocsp.OCSPRequestBuilder().add_certificate(self.leaf, self.issuer, hashes.SHA1())  # noqa: S303
        return builder.add_extension(x509.OCSPNonce(self.nonce), critical=False).build()

    def encode(self) -> bytes:
        """Return the request, DER."""
        return self.request.public_bytes(Encoding.DER)


def responder_urls(leaf: x509.Certificate) -> list[str]:
    """Return where a certificate says that questions about it are answered (RFC 5280 4.2.2.1)."""
    try:
        access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [
        each.access_location.value
        for each in access
        if each.access_method == AuthorityInformationAccessOID.OCSP
        and isinstance(each.access_location, x509.UniformResourceIdentifier)
    ]


def read_answer(
    data: bytes,
    question: Question,
    now: datetime,
    *,
    nonce_required: bool = False,
    revoked: Callable[[x509.Certificate], bool] = lambda certificate: False,
) -> Answer:
    """Verify the answer to a question at the instant `now` and return what it says.

    `revoked` says whether a revocation list held has the certificate of a responder. Raises `OcspRefused`.
    """
    try:
        return _read(data, question, now, nonce_required, revoked)
    except InvalidSignature as error:
        raise OcspRefused("signature fausse") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise OcspRefused("réponse illisible") from error


def _read(
    data: bytes,
    question: Question,
    now: datetime,
    nonce_required: bool,
    revoked: Callable[[x509.Certificate], bool],
) -> Answer:
    response = ocsp.load_der_ocsp_response(data)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise OcspRefused(f"le répondeur a répondu {response.response_status.name}")
    signer = _signer(response, question.issuer, now, revoked)
    _check_signature(response, signer)
    _check_nonce(response, question.nonce, nonce_required)
    single = _about(response, question)
    if single.this_update_utc > now + SKEW:
        raise OcspRefused("réponse datée du futur")
    until = single.next_update_utc
    if until is None and single.this_update_utc < now - SKEW:
        raise OcspRefused("réponse ancienne, et sans date de fin")
    if until is not None and until <= now:
        raise OcspRefused("réponse périmée")
    standing = {
        ocsp.OCSPCertStatus.GOOD: Standing.GOOD,
        ocsp.OCSPCertStatus.REVOKED: Standing.REVOKED,
        ocsp.OCSPCertStatus.UNKNOWN: Standing.UNKNOWN,
    }[single.certificate_status]
    # Without an end it is of this instant.
    return Answer(standing, until or now)


def _signer(
    response: ocsp.OCSPResponse,
    issuer: x509.Certificate,
    now: datetime,
    revoked: Callable[[x509.Certificate], bool],
) -> x509.Certificate:
    """Return who signed: the issuer, or whom it empowered. Raises `OcspRefused` and `InvalidSignature`."""
    if _names(response, issuer):
        return issuer
    delegate = next((each for each in response.certificates if _names(response, each)), None)
    if delegate is None:
        raise OcspRefused("répondeur inconnu")
    try:
        delegate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise OcspRefused("répondeur d'une autre autorité") from error
    if not delegate.not_valid_before_utc - SKEW <= now <= delegate.not_valid_after_utc:
        raise OcspRefused("certificat du répondeur périmé")
    usages = delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usages:
        raise OcspRefused("répondeur non habilité (id-kp-OCSPSigning)")
    if revoked(delegate):
        raise OcspRefused("certificat du répondeur révoqué")
    return delegate


def _names(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    """Say whether the ResponderID is that of a certificate."""
    if response.responder_name is not None:
        return response.responder_name == certificate.subject
    # The SHA-1 of the public key (RFC 6960 4.2.1), which is what this makes.
    return (
        response.responder_key_hash
        == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
    )


def _check_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    algorithm, key = response.signature_hash_algorithm, signer.public_key()
    if not isinstance(algorithm, _HASHES):
        raise OcspRefused("signature d'un algorithme refusé")
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    else:
        raise OcspRefused("signature d'un algorithme refusé")


def _check_nonce(response: ocsp.OCSPResponse, nonce: bytes, required: bool) -> None:
    try:
        found = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        if required:
            raise OcspRefused("réponse sans notre nonce") from None
        return
    if found != nonce:
        raise OcspRefused("réponse à une autre question")


def _about(response: ocsp.OCSPResponse, question: Question) -> ocsp.OCSPSingleResponse:
    asked = question.request
    wanted = (asked.serial_number, asked.issuer_name_hash, asked.issuer_key_hash, "sha1")
    for single in response.responses:
        found = (single.serial_number, single.issuer_name_hash, single.issuer_key_hash)
        if (*found, single.hash_algorithm.name) == wanted:
            return single
    raise OcspRefused("réponse sur un autre certificat")
