"""TLS for a listener that machines of the hospital call: one certificate of ours, their own authorities.

Nothing here is of IGC-Santé: no name chooses a site, no whitelist follows. Whether a client certificate is
asked for, and whether there must be one, is the operator's choice; one that is shown must verify, and stand
in no revocation list of its own authorities. Versions and suites are those of the outer doors, and nothing
resumes: no session outlives what was verified.

A RIS keeps its connection for days: whoever is revoked meanwhile, or whose certificate ends, is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from drimbox.config import Hl7TlsSettings
from drimbox.limits import Why
from drimbox.trust.certificates import fill_store, read_certificates, use_pair
from drimbox.trust.contexts import FATAL, STRICT, harden
from drimbox.trust.names import names_borne
from drimbox.trust.peers import JudgedConnection, PeerRules, verifier

_MODES = {"none": SSL.VERIFY_NONE, "optional": SSL.VERIFY_PEER, "required": STRICT}
#: What a machine of the hospital shows may be for anything that its authority says, or for all.
_RULES = PeerRules(usage_required=False)


class _Connection(JudgedConnection):
    """A connection of a `ListenerContext`."""

    def __init__(self, context: SSL.Context, carrier: Any, owner: ListenerContext) -> None:
        self.owner = owner
        super().__init__(context, carrier)


@implementer(IOpenSSLServerConnectionCreator)
class ListenerContext:
    """Makes the server side of its connections; every file is read when it is made and at each `reload`."""

    def __init__(
        self,
        settings: Hl7TlsSettings,
        ciphers: str,
        *,
        crls: Callable[[], Sequence[x509.CertificateRevocationList]] = tuple,
        required: bool = False,
        unchecked: Callable[[str], None] = lambda address: None,
        told: Callable[[str, Why], None] = lambda address, why: None,
    ) -> None:
        """`ciphers` are the suites of TLS 1.2; `crls` returns the revocation lists held.

        A list of its authority is `required` of a peer where the settings name any, and where this says so.
        `unchecked` is called with the address of a peer who is let in though nothing current is known about
        its revocation; `told` of every handshake that an alert ends, and why. Raises `CertificateUnusable`.
        """
        self._settings = settings
        self._ciphers = ciphers
        self._crls = crls
        self._required = required or bool(settings.crl_urls)
        self._unchecked = unchecked
        self._told = told
        self._open: WeakSet[JudgedConnection] = WeakSet()
        self.reload()

    @property
    def files(self) -> tuple[Path, ...]:
        """What it reads."""
        roots = self._settings.client_roots
        return (*self._settings.certificate.files, *([roots] if roots is not None else []))

    def reload(self) -> None:
        """Read every file again, for the connections to come.

        Raises `CertificateUnusable`; then nothing has changed.
        """
        settings = self._settings
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        harden(context, self._ciphers)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"drimbox-listener")
        use_pair(context, settings.certificate)
        store = context.get_cert_store()
        assert store is not None
        roots = read_certificates(settings.client_roots) if settings.client_roots is not None else []
        crls = tuple(self._crls())
        fill_store(store, roots, crls, required=self._required)
        for root in roots:
            # Their names go to the peer, which may hold several certificates, and picks by them.
            context.add_client_ca(root)
        lenient = settings.crl_policy == "soft"
        verify = verifier(_RULES, lenient=lenient, crls=crls)
        context.set_verify(_MODES[settings.client_certificates], verify)
        self._context, self._lists = context, crls

    def run_out(self, now: datetime) -> bool:
        """Say whether a revocation list in use is out of date: its authority's certificates are refused."""
        ends = [crl.next_update_utc for crl in self._lists]
        return any(end is not None and end < now for end in ends)

    def stands(self, certificate: x509.Certificate) -> bool:
        """Say whether a certificate that was verified has neither ended nor been revoked since."""
        mine = (crl for crl in self._lists if crl.issuer == certificate.issuer)
        number = certificate.serial_number
        revoked = any(crl.get_revoked_certificate_by_serial_number(number) is not None for crl in mine)
        return not revoked and datetime.now(UTC) < certificate.not_valid_after_utc

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803 (name of the interface)
        """Return a new connection."""
        connection = _Connection(self._context, tlsProtocol, self)
        connection.set_info_callback(self._watch)
        self._open.add(connection)
        return connection

    def drop(self, stands: Callable[[x509.Certificate], bool]) -> list[str]:
        """Cut every connection of whose chain a certificate no longer `stands`; return their addresses."""
        dropped = []
        for connection in list(self._open):
            alive = connection.done and connection.carrier.connected
            chain = connection.get_verified_chain(as_cryptography=True) if alive else None
            if chain and not all(stands(each) for each in chain):
                dropped.append(connection.address)
                connection.carrier.abortConnection()
        return dropped

    def _watch(self, connection: SSL.Connection, where: int, ret: int) -> None:
        assert isinstance(connection, JudgedConnection)
        if where & SSL.SSL_CB_HANDSHAKE_DONE and not connection.done:
            connection.done = True
            if connection.unchecked:
                self._unchecked(connection.address)
        elif where & SSL.SSL_CB_ALERT and ret >> 8 == FATAL and not (connection.done or connection.refused):
            connection.refused = True
            self._told(connection.address, connection.why)


def certificate_of(transport: Any) -> x509.Certificate | None:
    """Return the verified certificate that the client of a `ListenerContext` has shown, None for none.

    One that has ended, or been revoked, since the connection was opened is none. `transport` is a Twisted
    TLS transport, or a wrapper that passes `getHandle` on.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if not (isinstance(handle, _Connection) and handle.done and handle.get_verify_mode() & SSL.VERIFY_PEER):
        return None
    chain = handle.get_verified_chain(as_cryptography=True)
    return chain[0] if chain and all(map(handle.owner.stands, chain)) else None


def names_shown(transport: Any) -> frozenset[str]:
    """Return what `names_borne` finds in the certificate `certificate_of` returns, nothing for none."""
    certificate = certificate_of(transport)
    return names_borne(certificate) if certificate is not None else frozenset()
