"""What a client certificate must be besides what OpenSSL verifies: of whom it is, and for what (DB.SO.111).

The roots configured may sign for more than DRIM-M: a subset of their authorities can be named, by their
distinguished names or, more strictly, by their certificates. OpenSSL takes a certificate without any
extended key usage for any purpose; an SSL_SERV certificate of IGC-Santé has one, with `clientAuth`, and a
certificate made for something else must not pass for it.

`verifier` makes the callback that judges inside the handshake. OpenSSL calls it for each error it finds,
and then, the chain being good, for each certificate from the root down: the issuer comes right before the
leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import TrustSettings
from drimbox.limits import Why
from drimbox.trust.certificates import read_certificates
from drimbox.trust.names import NameKey, key_of, key_of_text

log = Logger()

#: X509_V_ERR_UNABLE_TO_GET_CRL, X509_V_ERR_CRL_NOT_YET_VALID, X509_V_ERR_CRL_HAS_EXPIRED.
_NO_LIST = frozenset({3, 11, 12})
#: X509_V_ERR_CERT_REVOKED.
_REVOKED = 23


@attrs.frozen
class PeerRules:
    """Whose certificates are taken, and which; empty sets take those of every authority trusted."""

    names: frozenset[NameKey] = frozenset()
    #: Subject and public key, DER: they outlive the renewal of an authority's certificate.
    authorities: frozenset[tuple[bytes, bytes]] = frozenset()
    usage_required: bool = True

    def takes_issuer(self, issuer: x509.Certificate) -> bool:
        """Say whether the authority that signed a leaf is one of those allowed."""
        named = not self.names or key_of(issuer.subject) in self.names
        return named and (not self.authorities or _mark(issuer) in self.authorities)

    def takes_leaf(self, leaf: x509.Certificate) -> bool:
        """Say whether a certificate is for clients of TLS, as far as it says."""
        try:
            usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return not self.usage_required
        return ExtendedKeyUsageOID.CLIENT_AUTH in usages

    @property
    def limits_issuers(self) -> bool:
        """Say whether some authority may be refused."""
        return bool(self.names or self.authorities)


def rules_of(trust: TrustSettings) -> PeerRules:
    """Read the rules of the configuration. Raises `CertificateUnusable`."""
    path = trust.consumer_issuer_certificates
    allowed: Iterable[x509.Certificate] = read_certificates(path) if path is not None else ()
    return PeerRules(
        names=frozenset(map(key_of_text, trust.consumer_issuers)),
        authorities=frozenset(map(_mark, allowed)),
        usage_required=trust.require_client_usage,
    )


class Judged(Protocol):
    """What the callback notes on a connection."""

    #: The authority that signed the certificate of the peer is one of those allowed.
    issuer_taken: bool
    #: Nothing current is known about the revocation of the peer, who comes in all the same.
    unchecked: bool
    #: Why the handshake fails, if it does.
    why: Why


class JudgedConnection(SSL.Connection):
    """The server side of a connection, with what the callback notes.

    Not in its application data: Twisted puts its own transport there.
    """

    def __init__(self, context: SSL.Context, carrier: Any) -> None:
        #: Twisted's side of the connection, which knows the peer's address.
        self.carrier = carrier
        #: The handshake is over.
        self.done = False
        #: An alert has ended it.
        self.refused = False
        self.issuer_taken = False
        self.unchecked = False
        self.why = Why.HANDSHAKE
        super().__init__(context, None)

    @property
    def address(self) -> str:
        """Address of the peer, empty when nobody knows it."""
        transport = getattr(self.carrier, "transport", None)
        peer = transport.getPeer() if transport is not None else None
        return str(getattr(peer, "host", ""))


def verifier(
    rules: PeerRules, *, lenient: bool, crls: Sequence[x509.CertificateRevocationList] = ()
) -> Callable[[Any, crypto.X509, int, int, int], bool]:
    """Return the verification callback of a context whose connections are `Judged`.

    `lenient` lets a peer in about whose revocation nothing current is known. An authority that `crls` have
    is refused here: OpenSSL looks authorities up only where there is a list for each (`fill_store`).
    """

    def gone(authority: x509.Certificate) -> bool:
        mine = (crl for crl in crls if crl.issuer == authority.issuer)
        number = authority.serial_number
        return any(crl.get_revoked_certificate_by_serial_number(number) is not None for crl in mine)

    def judge(connection: Judged, certificate: x509.Certificate, depth: int) -> bool:
        if depth and gone(certificate):
            connection.why = Why.REVOKED
            return False
        if depth > 1:
            return True
        if depth == 1:
            connection.issuer_taken = rules.takes_issuer(certificate)
            return True
        # A leaf that is a root itself has no issuer above it.
        if rules.limits_issuers and not connection.issuer_taken:
            connection.why = Why.ISSUER
            return False
        if not rules.takes_leaf(certificate):
            connection.why = Why.USAGE
            return False
        return True

    def verify(connection: Judged, cert: crypto.X509, error: int, depth: int, ok: int) -> bool:
        if not ok:
            if error in _NO_LIST:
                if not lenient:
                    connection.why = Why.UNCHECKED
                elif not connection.unchecked:
                    connection.unchecked = True
                    metrics.TLS_UNCHECKED.inc()
                return lenient
            connection.why = Why.REVOKED if error == _REVOKED else Why.HANDSHAKE
            return False
        try:
            return judge(connection, cert.to_cryptography(), depth)
        except Exception as unreadable:
            # Whatever it is, nothing has been verified; and no exception may leave a callback of OpenSSL.
            log.warn("client certificate unreadable: {reason}", reason=type(unreadable).__name__)
            return False

    return verify


def _mark(authority: x509.Certificate) -> tuple[bytes, bytes]:
    key = authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return authority.subject.public_bytes(), key
