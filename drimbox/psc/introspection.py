"""Asks Pro Santé Connect, through our e-Santé proxy, whether an access token is good (DB.SO.32).

One POST for every image request (interfaces.md 7.4), with one limit of time for all of it: connecting,
asking, reading. Nothing is kept between two requests: a token that was revoked is refused at once. The
token goes into the body of that POST and nowhere else: no log line, no error, no metric holds it.

What the answer means is `tokens.py`; this module carries bytes. A transport that fails is 502, one that
is too slow 504, and an answer other than 200 says that the token could not be verified: 403
(decisions.md). Redirections are not followed: our client secret goes to the configured address only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from drimbox.config import PscSettings
from drimbox.errors import ImageError, IntrospectionTimeout, IntrospectionUnavailable, TokenInvalid
from drimbox.httpbody import BodyRefused, read_body
from drimbox.ports import Introspection
from drimbox.psc.tokens import check_token, read_introspection

log = Logger()

_MAX_SECRET = 4096


class SecretUnusable(Exception):
    """The file of the client secret cannot be used; the text (French) never holds the secret."""


class TokenIntrospector:
    """Implements `ports.Introspector` over an HTTP agent.

    `agent` must verify TLS (`trust.contexts.client_policy`), follow no redirection and keep no
    connection: a POST on a kept one that the proxy has just closed would fail without a second try.
    `twisted.web.client.Agent(reactor, policy)` is one. `clock` times the whole exchange.
    """

    def __init__(
        self, settings: PscSettings, agent: IAgent, clock: IReactorTime, now: Callable[[], datetime]
    ) -> None:
        """Read the client secret. Raises `SecretUnusable`."""
        self._settings = settings
        self._agent = agent
        self._clock = clock
        self._now = now
        credentials = f"{settings.client_id}:{_secret(settings)}".encode()
        self._headers = {
            b"Authorization": [b"Basic " + base64.b64encode(credentials)],
            b"Content-Type": [b"application/x-www-form-urlencoded"],
            b"Accept": [b"application/json"],
        }

    async def introspect(self, token: str) -> Introspection:
        """Return who is behind `token`.

        Raises `TokenInvalid` (403), `IntrospectionUnavailable` (502) or `IntrospectionTimeout` (504).
        """
        check_token(token)
        exchange = Deferred.fromCoroutine(self._exchange(token))
        exchange.addTimeout(self._settings.timeout, self._clock, onTimeoutCancel=_too_slow)
        try:
            return await exchange
        except (ImageError, CancelledError):
            raise
        except Exception as error:
            # Only its type: the text of some errors repeats the request.
            log.warn("token introspection failed: {reason}", reason=type(error).__name__)
            raise IntrospectionUnavailable("service de vérification injoignable") from None

    async def _exchange(self, token: str) -> Introspection:
        body = urlencode({"token": token}).encode("ascii")
        url = self._settings.introspection_url.encode("ascii")
        response: IResponse = await self._agent.request(b"POST", url, Headers(self._headers), _Body(body))
        # Read even what is not wanted: it frees the connection, within the same limits.
        try:
            answer = await read_body(response, self._settings.max_response_bytes)
        except BodyRefused as error:
            raise IntrospectionUnavailable(str(error)) from error
        if response.code != 200:
            log.warn("token introspection answered {status}", status=response.code)
            raise TokenInvalid(f"le service de vérification a répondu {response.code}")
        return read_introspection(answer, self._now().timestamp())


def _secret(settings: PscSettings) -> str:
    path = settings.client_secret_file
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.read(_MAX_SECRET + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretUnusable(f"{path} : lecture impossible") from error
    if not secret or len(secret) > _MAX_SECRET or "\n" in secret:
        raise SecretUnusable(f"{path} : une seule ligne attendue, avec le secret du client")
    return secret


def _too_slow(_value: Any, _timeout: float) -> Any:
    raise IntrospectionTimeout("service de vérification trop lent")


@implementer(IBodyProducer)
class _Body:
    """A request body that is there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing to pause: all of it was written at once."""

    def resumeProducing(self) -> None:
        """Nothing to resume."""

    def stopProducing(self) -> None:
        """Nothing to stop."""
