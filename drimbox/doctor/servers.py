"""The servers of the nation: the DMP with the pair of each structure, and the e-Santé proxy.

What is asked of the DMP is its first page, over the mutual TLS of a publication: any HTTP answer proves
address, name, authorities on both sides. TD0.2 is not used: it names a patient and a professional, and
asking after somebody's record for no care leaves a trace in it. The proxy is asked about a token that
nobody was given, which changes nothing and proves our client secret too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from drimbox.config import Config, Structure
from drimbox.doctor.findings import Finding, bad, doubtful, good
from drimbox.doctor.machine import offset
from drimbox.errors import ImageError
from drimbox.httpbody import BodyRefused, discard
from drimbox.ports import Clock, InThread
from drimbox.psc.introspection import TokenIntrospector
from drimbox.secretfile import SecretUnusable
from drimbox.trust.outgoing import client_policy
from drimbox.trust.reach import reason_of
from drimbox.trust.ways import Ways

T = TypeVar("T")
_FIRST_ERROR = 500


class Servers:
    """Tries them, each within its own time."""

    def __init__(self, config: Config, reactor: Any, clock: Clock, in_thread: InThread) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self._in_thread = in_thread

    async def dmp(self, structure: Structure) -> list[Finding]:
        """Try the DMP with the authentication pair of one structure; tell too what its clock says."""
        settings, subject = self._config.dmp, f"structure {structure.id}"
        try:
            policy = await self._in_thread(lambda: client_policy(settings.roots, structure.authentication))
            ways = await self._in_thread(self._ways)
            agent = ways.agent("dmp", policy, settings.connect_timeout)
            url = f"{settings.base_url.rstrip('/')}/".encode("ascii")
            response: IResponse = await self._within(
                settings.timeout, agent.request(b"GET", url, Headers({b"User-Agent": [b"DRIMbox"]}))
            )
        except Exception as error:
            return [
                bad(
                    "dmp",
                    subject,
                    f"{settings.base_url} : {reason_of(error)}",
                    "vérifier l'adresse, le pare-feu ou le proxy, dmp.roots, et que le certificat "
                    "d'authentification de la structure est celui que le DMP connaît",
                )
            ]
        discard(response)
        found = [_answered(subject, settings.base_url, response.code)]
        date = _date(response)
        if date is not None:
            found.append(offset(date, self._clock.now(), self._config.psc.clock_skew, f"DMP ({subject})"))
        return found

    async def psc(self) -> Finding:
        """Ask the e-Santé proxy about a token that nobody was given."""
        settings = self._config.psc
        subject, mend = (
            "proxy e-Santé",
            "vérifier psc.introspection_url, le pare-feu ou le proxy, psc.roots",
        )
        try:
            policy = await self._in_thread(lambda: client_policy(settings.roots, settings.certificate))
            ways = await self._in_thread(self._ways)
            agent = ways.agent("psc", policy, settings.timeout)
            asking = TokenIntrospector(settings, agent, self._reactor, self._clock.now)
            status, unknown = await self._within(
                settings.timeout, asking.try_link(f"essai-{secrets.token_urlsafe(16)}")
            )
        except SecretUnusable as error:
            return bad("psc", subject, str(error), "remettre le secret dans psc.client_secret_file")
        except (BodyRefused, ImageError) as error:
            return bad("psc", subject, str(error), mend)
        except Exception as error:
            return bad("psc", subject, reason_of(error), mend)
        if status in (400, 401, 403):
            return bad(
                "psc",
                subject,
                f"notre identité est refusée (HTTP {status})",
                "vérifier psc.client_id et le secret de psc.client_secret_file",
            )
        if status != 200 or not unknown:
            return bad("psc", subject, f"réponse inattendue (HTTP {status})", mend)
        return good("psc", subject, "répond, et nous reconnaît")

    def _ways(self) -> Ways:
        return Ways(self._reactor, self._config.proxy)

    async def _within(self, seconds: float, work: Awaitable[T]) -> T:
        async def all_of_it() -> T:
            return await work

        waiting = Deferred.fromCoroutine(all_of_it())
        waiting.addTimeout(seconds, self._reactor, onTimeoutCancel=_too_slow)
        result: T = await waiting
        return result


def _too_slow(_value: object, timeout: float) -> object:
    # In place of whatever the library makes of the cancellation.
    raise DeferredTimeout(timeout)


def _answered(subject: str, url: str, status: int) -> Finding:
    if status >= _FIRST_ERROR:
        return doubtful(
            "dmp", subject, f"{url} répond HTTP {status}", "réessayer : le DMP est peut-être arrêté"
        )
    return good("dmp", subject, f"négociation TLS mutuelle établie (HTTP {status})")


def _date(response: IResponse) -> Any:
    """Return the instant that a server says it is, None when it does not."""
    for value in response.headers.getRawHeaders("Date") or []:
        try:
            date = parsedate_to_datetime(str(value))
        except ValueError:
            return None
        return date if date.tzinfo is not None else None
    return None
