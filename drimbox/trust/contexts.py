"""The TLS contexts of our listeners (architecture.md rule 7); those of outgoing calls are `outgoing.py`.

One port, many names: the SNI name of the ClientHello decides the site and the role. `db...`
names are WADO-RS, mutual TLS with IGC-Santé certificates; `vi...` names are the viewer, with a market
certificate and no client certificate (DB.SO.90). Three traps were measured (threats.md, "client
certificate bypassed by SNI") and shape the code:

- switching the context in the SNI callback changes certificate and store, **not** the verification
  mode. So every connection is born strict from the base context, and is loosened, itself alone, once
  its name has been found to be a viewer's;
- a TLS 1.3 session opened without certificate on a viewer name would resume on a WADO name. So nothing
  resumes: no session cache, no ticket, and a session id context of its own for each name;
- the base context has no certificate of its own. A ClientHello with no name, or a name that is not
  ours, finds nothing to present and the handshake fails.

What the handshake decided stays on the connection. `peer_of` reads it back from a transport; the `Host`
header never decides anything. OpenSSL verifies chain, dates, the `clientAuth` purpose and, when lists
are given, revocation; `peers.py` the issuer, and that the purpose is there; the whitelist comes after, per
request (`whitelist.py`).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox import metrics
from drimbox.config import Config, Site, TrustSettings
from drimbox.errors import PeerNotTrusted
from drimbox.limits import Why
from drimbox.trust.certificates import fill_store, read_certificates, use_pair
from drimbox.trust.peers import JudgedConnection, PeerRules, rules_of, verifier

log = Logger()

#: RSA and DH of 2048 bits at least, no SHA-1 signatures.
_SECURITY_LEVEL = ":@SECLEVEL=2"
_VERIFY_DEPTH = 6
#: SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets and does not name: one record for each call.
_PARTIAL_WRITE = 0x1
_OPTIONS = (
    SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE
)
#: A peer without a certificate that verifies is refused.
STRICT = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
#: Level of a fatal alert, in the high byte of what the information callback is told.
FATAL = 2


class Role(enum.Enum):
    """What a name of ours is for."""

    WADO = "wado"
    VIEWER = "viewer"


@attrs.frozen
class Peer:
    """What the TLS handshake established about one connection."""

    site: Site
    role: Role
    #: The verified certificate of the peer; always there for WADO, never for the viewer.
    certificate: x509.Certificate | None

    @property
    def fqdn(self) -> str:
        """Our name that the peer called."""
        return self.site.wado_fqdn if self.role is Role.WADO else self.site.viewer_fqdn


@attrs.frozen
class _Door:
    """What one of our names opens."""

    site: Site
    role: Role
    context: SSL.Context
    #: When its certificate, as the peers are shown it, ends.
    expires: datetime

    @property
    def fqdn(self) -> str:
        """The name that it answers to."""
        return self.site.wado_fqdn if self.role is Role.WADO else self.site.viewer_fqdn


@attrs.frozen
class _DoorSet:
    base: SSL.Context
    doors: Mapping[str, _Door]
    #: Opens for no name and unknown names; None refuses them.
    fallback: _Door | None


class _ServerConnection(JudgedConnection):
    """A connection that remembers what has happened to it."""

    def __init__(self, chosen: _DoorSet, carrier: Any) -> None:
        self.door: _Door | None = None
        #: The name of the ClientHello, in lower case; None before.
        self.called: str | None = None
        self.door_set = chosen
        super().__init__(chosen.base, carrier)


@implementer(IOpenSSLServerConnectionCreator)
class ServerContexts:
    """Makes the server side of TLS connections; give it to `TLSMemoryBIOFactory` or an SSL endpoint.

    Every file is read when it is made and at each `reload`, so that a mistake is known at once.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        trust: TrustSettings,
        *,
        default_site: str | None = None,
        crls: Sequence[x509.CertificateRevocationList] = (),
        on_refused: Callable[[], None] = metrics.TLS_REFUSED.inc,
        told: Callable[[str, str, Why], None] = lambda address, name, why: None,
        unchecked: Callable[[str], None] = lambda address: None,
    ) -> None:
        """Read every certificate.

        Once `trust.crl_urls` names revocation lists, a peer whose issuer has no current one among `crls`
        is refused, or let in and counted, as `trust.crl_policy` says; a revoked one is always refused.

        `default_site` names the site whose WADO door opens when a peer gives no name or an unknown one;
        without it such a handshake is refused (decisions.md). `on_refused` is called once for every
        handshake that an alert of either side ends, and so is `told`, with the peer's address, the name of
        ours it called (empty when unknown) and why. `unchecked` is called with the address of a peer who is
        let in though nothing current is known about its revocation. Raises `CertificateUnusable`.
        """
        self._sites = tuple(sites)
        self._trust = trust
        self._default_site = default_site
        self._on_refused = on_refused
        self._told = told
        self._unchecked = unchecked
        self.reload(crls)

    def reload(self, crls: Sequence[x509.CertificateRevocationList] = ()) -> None:
        """Read every file again, for the connections to come.

        Raises `CertificateUnusable`; then nothing has changed.
        """
        roots = read_certificates(self._trust.consumer_roots)
        rules = rules_of(self._trust)
        doors: dict[str, _Door] = {}
        for site in self._sites:
            context = self._context(site.wado_fqdn, roots, crls, rules)
            end = use_pair(context, site.wado_certificate).not_valid_after_utc
            self._open(doors, site.wado_fqdn, _Door(site, Role.WADO, context, end))
            if site.viewer_certificate is not None:
                context = self._context(site.viewer_fqdn, (), (), rules)
                end = use_pair(context, site.viewer_certificate).not_valid_after_utc
                self._open(doors, site.viewer_fqdn, _Door(site, Role.VIEWER, context, end))
        base = self._context("", roots, crls, rules)
        base.set_tlsext_servername_callback(_choose_door)
        fallback = next(
            (d for d in doors.values() if d.role is Role.WADO and d.site.name == self._default_site), None
        )
        # One assignment: a handshake sees the old set or the new one, never half of each.
        self._set = _DoorSet(base, doors, fallback)

    def shows(self, fqdn: str, now: datetime) -> bool:
        """Say whether `fqdn` is a name of ours whose certificate in use has not expired."""
        door = self._set.doors.get(fqdn.lower())
        return door is not None and now < door.expires

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803 (name of the interface)
        """Return a new connection, strict until its SNI name says otherwise."""
        connection = _ServerConnection(self._set, tlsProtocol)
        connection.set_info_callback(self._watch)
        return connection

    def _watch(self, connection: SSL.Connection, where: int, ret: int) -> None:
        """Follow the handshake: note its end, count its refusal."""
        assert isinstance(connection, _ServerConnection)
        if where & SSL.SSL_CB_HANDSHAKE_DONE:
            if connection.unchecked and not connection.done:
                self._unchecked(connection.address)
            connection.done = True
        elif where & SSL.SSL_CB_ALERT and ret >> 8 == FATAL and not (connection.done or connection.refused):
            connection.refused = True
            self._on_refused()
            # The name is what the peer says: only one of ours is repeated.
            called = connection.door.fqdn if connection.door is not None else ""
            self._told(connection.address, called, connection.why)

    @staticmethod
    def _open(doors: dict[str, _Door], fqdn: str, door: _Door) -> None:
        if fqdn.lower() in doors:
            # Two roles under one name could only be a viewer shadowing mutual TLS.
            raise ValueError(f"two doors named {fqdn}")
        doors[fqdn.lower()] = door

    def _context(
        self,
        fqdn: str,
        roots: Sequence[x509.Certificate],
        crls: Sequence[x509.CertificateRevocationList],
        rules: PeerRules,
    ) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        harden(context, self._trust.ciphers)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.clear_mode(_PARTIAL_WRITE)
        # A session id context for each name, 32 bytes at most, keeps a session from moving between them.
        context.set_session_id(hashlib.sha256(fqdn.encode()).digest())
        context.set_alpn_select_callback(_only_http11)
        required = bool(roots) and bool(self._trust.crl_urls)
        lenient = required and self._trust.crl_policy == "soft"
        context.set_verify(STRICT, verifier(rules, lenient=lenient, crls=crls))
        store = context.get_cert_store()
        assert store is not None
        fill_store(store, roots, crls, required=required)
        for root in roots:
            # Their names go to the peer, which may hold several certificates, and picks by them.
            context.add_client_ca(root)
        return context


def server_context_factory(config: Config, **options: Any) -> ServerContexts:
    """Return the connection creator of the WADO-RS and viewer port; `options` as `ServerContexts`."""
    return ServerContexts(config.sites, config.trust, **options)


def _choose_door(connection: SSL.Connection) -> None:
    """SNI callback: give the connection the certificate of the name it asked for, if it is ours.

    It must not raise. A name that is not ours leaves the base context, which can present nothing. It is
    called again for the second ClientHello that a HelloRetryRequest brings: that one names the same.
    """
    assert isinstance(connection, _ServerConnection)
    name = connection.get_servername()
    key = name.decode("ascii", "replace").lower() if name else ""
    door = connection.door_set.doors.get(key, connection.door_set.fallback)
    if connection.called not in (None, key):
        # Whatever the first name has loosened is strict again, and nothing is there to be shown.
        connection.door = None
        connection.set_context(connection.door_set.base)
        connection.set_verify(STRICT, lambda *_: False)
        return
    connection.called = key
    if door is None:
        return
    connection.door = door
    connection.set_context(door.context)
    if door.role is Role.VIEWER:
        # The context's own mode has no effect any more: the connection copied the base's when it was made.
        connection.set_verify(SSL.VERIFY_NONE, None)


def _only_http11(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def harden(context: SSL.Context, ciphers: str) -> None:
    """Leave nothing weak in a context: versions, suites, renegotiation, tickets, compression."""
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    # What an idle connection does not need goes back at once: many are kept open.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list((ciphers + _SECURITY_LEVEL).encode("ascii"))
    context.set_verify_depth(_VERIFY_DEPTH)


def peer_of(transport: Any) -> Peer:
    """Return what the handshake of `transport` established.

    `transport` is a Twisted TLS transport, or a wrapper that passes `getHandle` on. Raises
    `PeerNotTrusted` (E1101) when it is no TLS connection of ours, when its handshake is not over, when
    it is lost, and when a WADO connection carries no verified certificate.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, _ServerConnection):
        raise PeerNotTrusted("connexion sans TLS")
    door = handle.door
    if door is None or not handle.done:
        raise PeerNotTrusted("négociation TLS inachevée")
    if door.role is Role.VIEWER:
        return Peer(door.site, door.role, None)
    # FAIL_IF_NO_PEER_CERT already refuses; this line is what stands if that were ever lost.
    certificate = handle.get_peer_certificate(as_cryptography=True)
    if certificate is None or not handle.get_verify_mode() & SSL.VERIFY_PEER:
        raise PeerNotTrusted("certificat client absent")
    return Peer(door.site, door.role, certificate)


def site_of(transport: Any) -> Site:
    """Return the site that the peer's SNI name chose. Raises `PeerNotTrusted` as `peer_of`."""
    return peer_of(transport).site


def verified_peer(transport: Any) -> Peer:
    """Return the peer of a WADO connection. Raises `PeerNotTrusted` on a viewer one too."""
    peer = peer_of(transport)
    if peer.role is not Role.WADO or peer.certificate is None:
        raise PeerNotTrusted("connexion sans certificat client")
    return peer


def verified_chain(transport: Any) -> list[x509.Certificate]:
    """Return the chain that was verified of the peer of a WADO connection, leaf first.

    Raises `PeerNotTrusted` as `verified_peer`.
    """
    verified_peer(transport)
    chain = transport.getHandle().get_verified_chain(as_cryptography=True)
    if not chain:
        raise PeerNotTrusted("certificat client absent")
    return list(chain)


def is_unfinished(transport: Any) -> bool:
    """Say whether the handshake of a connection of ours goes on: neither done nor refused."""
    try:
        handle = transport.getHandle()
    except AttributeError:
        # Of no kind that has one, or in clear and gone, and its socket with it.
        return False
    return isinstance(handle, JudgedConnection) and not (handle.done or handle.refused)


def was_garbage(transport: Any, reason: Failure) -> bool:
    """Say whether a connection ended for `reason` because what came was no TLS.

    OpenSSL sends no alert then, so that nobody else has been told.
    """
    return is_unfinished(transport) and reason.check(SSL.Error) is not None
