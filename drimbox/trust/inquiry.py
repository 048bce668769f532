"""One question to an OCSP responder about one certificate: where it is asked, and what came of it.

The address is the configured one, of clients or of their authorities, or the one that a certificate names
if its host is among those allowed: a certificate comes from outside, and must not send us anywhere
(`[trust] ocsp_hosts`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from cryptography import x509
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from drimbox.config import TrustSettings
from drimbox.trust.download import Download, FetchFailed
from drimbox.trust.ocsp import Answer, OcspRefused, Question, read_answer, responder_urls

_NONCE = 16
_DEFAULT_PORTS = {"http": 80, "https": 443}

Revoked = Callable[[x509.Certificate], bool]


class NoAnswer(Exception):
    """No answer of worth came; the text (French) says why."""


class Inquiry:
    """Asks responders.

    `agent` follows no redirection; `revoked` says whether a list held has the certificate of a responder.
    """

    def __init__(
        self,
        settings: TrustSettings,
        agent: IAgent,
        clock: IReactorTime,
        now: Callable[[], datetime],
        revoked: Revoked,
    ) -> None:
        self._settings = settings
        self._agent = agent
        self._clock = clock
        self._now = now
        self._revoked = revoked

    def url(self, certificate: x509.Certificate, *, authority: bool = False) -> str | None:
        """Return where to ask about a certificate, of an `authority` or not, None for nowhere."""
        settings = self._settings
        configured = settings.ocsp_authorities_url if authority else settings.ocsp_url
        if configured is not None:
            return configured
        named = responder_urls(certificate)
        return next((url for url in named if allowed(url, settings.ocsp_hosts)), None)

    async def ask(self, chain: Sequence[x509.Certificate], *, authority: bool = False) -> Answer:
        """Ask about the first certificate of a chain, whose second one issued it. Raises `NoAnswer`."""
        settings = self._settings
        if len(chain) < 2:
            raise NoAnswer("certificat sans autorité au-dessus")
        url = self.url(chain[0], authority=authority)
        if url is None:
            raise NoAnswer("aucune adresse de répondeur admise pour ce certificat")
        question = Question(chain[0], chain[1], secrets.token_bytes(_NONCE))
        ask = Download(
            url,
            self._agent,
            self._clock,
            timeout=settings.ocsp_timeout,
            limit=settings.ocsp_max_bytes,
            post=("application/ocsp-request", question.encode()),
        )
        try:
            return read_answer(
                await ask(),
                question,
                self._now(),
                nonce_required=settings.ocsp_require_nonce,
                revoked=self._revoked,
            )
        except (FetchFailed, OcspRefused) as error:
            raise NoAnswer(f"{url} : {error}") from error


def allowed(url: str, hosts: tuple[str, ...]) -> bool:
    """Say whether an address that a certificate names may be asked: `hosts` are `host` or `host:port`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    odd = "@" in parts.netloc or not url.isascii() or not url.isprintable() or " " in url
    if odd or parts.scheme not in _DEFAULT_PORTS:
        return False
    host = (parts.hostname or "").lower()
    if port is None or port == _DEFAULT_PORTS[parts.scheme]:
        return bool(host) and host in hosts
    return f"{host}:{port}" in hosts
