"""The TLS of everything we call (architecture.md rule 7): nobody else touches OpenSSL.

`client_policy` verifies the server's chain and its name with service-identity, and fails closed: an
exception while checking a name refuses the connection. (Twisted's own `optionsForClientTLS` logs an
unexpected one and goes on: a certificate without any subjectAltName passes for every host.)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from drimbox.config import Certificate
from drimbox.trust.certificates import fill_store, read_certificates, use_pair
from drimbox.trust.contexts import STRICT, harden

log = Logger()

#: Says whether a certificate is revoked, as far as we know.
Revoked = Callable[[x509.Certificate], bool]
#: TLS 1.2 suites of outgoing connections; the TLS 1.3 ones are OpenSSL's own, all AEAD.
CLIENT_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def client_policy(
    roots: Path | None,
    pair: Certificate | None,
    *,
    revoked: Revoked = lambda certificate: False,
    ciphers: str = CLIENT_CIPHERS,
) -> ClientPolicy:
    """Return the TLS policy of outgoing HTTPS, for `twisted.web.client.Agent`.

    `roots` is the PEM file of what to trust, None for the system's; `pair` our client certificate, None
    for none. TLS 1.2 at least; chain, dates and host name are always verified. `revoked` says of each
    certificate of a chain whether a revocation list that we hold has it; that there is no such list
    refuses nobody: a service that our work hangs on must not hang on a second one. Raises
    `CertificateUnusable`.
    """

    def make() -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        harden(context, ciphers)
        if roots is None:
            context.set_default_verify_paths()
        store = context.get_cert_store()
        assert store is not None
        fill_store(store, read_certificates(roots) if roots is not None else ())
        if pair is not None:
            use_pair(context, pair)
        # Refuses everything until a connection brings the callback that knows its host.
        context.set_verify(STRICT, lambda *_: False)
        return context

    return ClientPolicy(make, revoked)


@implementer(IPolicyForHTTPS)
class ClientPolicy:
    """An HTTPS policy over one context, made once: files are not read again at every request."""

    def __init__(self, make: Callable[[], SSL.Context], revoked: Revoked) -> None:
        self._make = make
        self._revoked = revoked
        self._context = make()

    def reload(self) -> None:
        """Read the files again, for the connections to come.

        Raises `CertificateUnusable`; then nothing has changed.
        """
        self._context = self._make()

    def creatorForNetloc(self, hostname: bytes, port: int) -> _ClientConnections:
        """Return the creator of connections to `hostname`."""
        return _ClientConnections(self._context, hostname.decode("ascii"), self._revoked)


@implementer(IOpenSSLClientConnectionCreator)
class _ClientConnections:
    def __init__(self, context: SSL.Context, host: str, revoked: Revoked) -> None:
        self._context = context
        self._revoked = revoked
        self._host = host.strip("[]")
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            self._is_address = False
        else:
            self._is_address = True

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803 (name of the interface)
        """Return a new connection that will only complete with the host it was made for."""
        connection = SSL.Connection(self._context, None)
        if not self._is_address:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        connection.set_verify(STRICT, self._verify)
        return connection

    def _verify(
        self, _connection: SSL.Connection, cert: crypto.X509, _error: int, depth: int, ok: int
    ) -> bool:
        if not ok:
            return False
        try:
            certificate = cert.to_cryptography()
            if self._revoked(certificate):
                log.warn("certificate of {host} refused: revoked", host=self._host)
                return False
            if depth == 0:
                verify = verify_certificate_ip_address if self._is_address else verify_certificate_hostname
                verify(certificate, self._host)
        except Exception as error:
            # Whatever it is, the name has not been verified. An exception that left this callback would
            # be printed by cffi and could be taken for success.
            log.warn(
                "certificate of {host} refused: {reason}", host=self._host, reason=type(error).__name__
            )
            return False
        return True
