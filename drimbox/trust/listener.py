"""TLS for a listener that machines of the hospital call: one certificate of ours, their own authorities.

Nothing here is of IGC-Santé: no name chooses a site, no whitelist follows. Whether a client certificate is
asked for, and whether there must be one, is the operator's choice; one that is shown must verify. Versions
and suites are those of the outer doors, and nothing resumes: no session outlives what was verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from drimbox.config import Hl7TlsSettings
from drimbox.trust.certificates import fill_store, read_certificates, use_pair
from drimbox.trust.contexts import STRICT, harden

_MODES = {"none": SSL.VERIFY_NONE, "optional": SSL.VERIFY_PEER, "required": STRICT}


@implementer(IOpenSSLServerConnectionCreator)
class ListenerContext:
    """Makes the server side of its connections; every file is read when it is made and at each `reload`."""

    def __init__(self, settings: Hl7TlsSettings, ciphers: str) -> None:
        """`ciphers` are the suites of TLS 1.2. Raises `CertificateUnusable`."""
        self._settings = settings
        self._ciphers = ciphers
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
        fill_store(store, roots)
        for root in roots:
            # Their names go to the peer, which may hold several certificates, and picks by them.
            context.add_client_ca(root)
        context.set_verify(_MODES[settings.client_certificates], _as_openssl_says)
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803 (name of the interface)
        """Return a new connection."""
        return SSL.Connection(self._context, None)


def _as_openssl_says(_connection: SSL.Connection, _cert: Any, _error: int, _depth: int, ok: int) -> bool:
    return bool(ok)
