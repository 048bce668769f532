"""Asks Pro Santé Connect, through our e-Santé proxy, whether an access token is good (DB.SO.32).

One POST for every image request (interfaces.md 7.4), with one limit of time for all of it: connecting,
asking, reading, asking again. Nothing is kept between two requests (`remembered.py` does, if asked to): a
token that was revoked is refused at once. The token goes into the body of that POST and nowhere else: no
log line, no error, no metric holds it.

What the answer means is `tokens.py`; this module carries bytes. A transport that fails is 502, one that
is too slow 504, and an answer other than 200 says that the token could not be verified: 403
(decisions.md). A question changes nothing at the other end, so it may be asked again where it got no
answer: connection refused or broken off, or 5xx. Redirections are not followed: our client secret goes to
the configured address only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from drimbox import metrics
from drimbox.config import PscSettings
from drimbox.errors import ImageError, IntrospectionTimeout, IntrospectionUnavailable, TokenInvalid
from drimbox.httpbody import BodyTooLong, WholeBody, read_body
from drimbox.ports import Introspection
from drimbox.psc.tokens import TokenRules, check_token, read_introspection
from drimbox.secretfile import read_secret

log = Logger()

#: Seconds before a question is asked again; twice as long each time.
_PAUSE = 0.1


class TokenIntrospector:
    """Implements `ports.Introspector` over an HTTP agent.

    `agent` must verify TLS (`trust.outgoing.client_policy`), follow no redirection and keep no
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
        self._rules = TokenRules(settings.audience, settings.clock_skew, settings.require_professional)
        credentials = f"{settings.client_id}:{read_secret(settings.client_secret_file)}".encode()
        self._headers = {
            b"Authorization": [b"Basic " + base64.b64encode(credentials)],
            b"Content-Type": [b"application/x-www-form-urlencoded"],
            b"Accept": [b"application/json"],
        }

    async def introspect(self, token: str, consumer: str = "") -> Introspection:
        """Return who is behind `token`.

        Raises `TokenInvalid` (403), `IntrospectionUnavailable` (502) or `IntrospectionTimeout` (504).
        """
        check_token(token)
        asking = _Question(self, token).answer
        asking.addTimeout(self._settings.timeout, self._clock, onTimeoutCancel=_too_slow)
        try:
            answer = await asking
        except ImageError as error:
            metrics.INTROSPECTIONS.labels(_OUTCOMES[type(error)]).inc()
            raise
        metrics.INTROSPECTIONS.labels("active").inc()
        return answer

    async def try_link(self, token: str) -> tuple[int, bool]:
        """Ask once about a token that nobody was given, for an administrator; nothing is counted.

        Return the HTTP status, and whether the answer says that the token is not active. Raises what the
        agent raises, `BodyRefused` and `IntrospectionUnavailable`.
        """
        status, _, body = await self._exchange(token)
        try:
            answer = json.loads(body)
        except ValueError:
            return status, False
        return status, isinstance(answer, dict) and answer.get("active") is False

    async def ask(self, token: str, may_repeat: Callable[[], bool]) -> Introspection:
        """Ask, and again as often as configured where no answer came, while `may_repeat()` says so."""
        pause = _PAUSE
        for left in reversed(range(self._settings.retries + 1)):
            try:
                status, kind, body = await self._exchange(token)
            except (ImageError, CancelledError):
                raise
            except Exception as error:
                # Only its type: the text of some errors repeats the request.
                log.warn("token introspection failed: {reason}", reason=type(error).__name__)
                if not (left and may_repeat()):
                    raise IntrospectionUnavailable("service de vérification injoignable") from None
            else:
                if status < 500 or not left:
                    return self._read(status, kind, body)
                log.warn("token introspection answered {status}", status=status)
            await deferLater(self._clock, pause)
            pause *= 2
        raise AssertionError("the last round returns or raises")

    def _read(self, status: int, kind: str, body: bytes) -> Introspection:
        if status != 200:
            log.warn("token introspection answered {status}", status=status)
            raise TokenInvalid(f"le service de vérification a répondu {status}")
        if kind.partition(";")[0].strip().lower() != "application/json":
            # Whatever stands in front of the proxy answers pages, and may answer them with 200.
            raise IntrospectionUnavailable("réponse illisible")
        return read_introspection(body, self._now().timestamp(), self._rules)

    async def _exchange(self, token: str) -> tuple[int, str, bytes]:
        """Send the question once; return status, media type and body of the answer."""
        body = urlencode({"token": token}).encode("ascii")
        url, headers = self._settings.introspection_url.encode("ascii"), Headers(self._headers)
        response: IResponse = await self._agent.request(b"POST", url, headers, WholeBody(body))
        # Read even what is not wanted: it frees the connection, within the same limits.
        try:
            answer = await read_body(response, self._settings.max_response_bytes)
        except BodyTooLong as error:
            raise IntrospectionUnavailable(str(error)) from error
        kinds = response.headers.getRawHeaders(b"Content-Type", [])
        kind = kinds[0].decode("latin-1") if len(kinds) == 1 else ""
        return response.code, kind, answer


class _Question:
    """One question on its way; cancelling `answer` ends it and lets it not be asked again."""

    def __init__(self, introspector: TokenIntrospector, token: str) -> None:
        self._given_up = False
        self.answer: Deferred[Introspection] = Deferred(self._give_up)
        self._asking = Deferred.fromCoroutine(introspector.ask(token, lambda: not self._given_up))
        self._asking.addBoth(self._over)

    def _give_up(self, _: Deferred[Introspection]) -> None:
        self._given_up = True
        self._asking.cancel()

    def _over(self, result: Any) -> None:
        # Whoever gave up may have been told already.
        if not self.answer.called:
            self.answer.callback(result)


#: How a question ended, in the metrics.
_OUTCOMES: dict[type[ImageError], str] = {
    TokenInvalid: "refused",
    IntrospectionUnavailable: "unavailable",
    IntrospectionTimeout: "timeout",
}


def _too_slow(_value: Any, _timeout: float) -> Any:
    raise IntrospectionTimeout("service de vérification trop lent")
