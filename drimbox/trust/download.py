"""One question to an HTTP server: bounded in time and size, no redirection followed, no cookie kept."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from drimbox.httpbody import BodyRefused, WholeBody, read_body
from drimbox.trust.outgoing import client_policy
from drimbox.trust.reach import reason_of
from drimbox.trust.ways import Ways


class FetchFailed(Exception):
    """Nothing came; the text (French) says why."""


class Fetch(Protocol):
    """Gets what is published at one address."""

    async def __call__(self) -> bytes:
        """Return the bytes as published. Raises `FetchFailed`."""


class Download:
    """A `Fetch`: a GET, or a POST of a body.

    `agent` must verify TLS and follow nothing; `timeout` is in seconds for all of it, `limit` in bytes;
    `post` is media type and bytes of the body.
    """

    def __init__(
        self,
        url: str,
        agent: IAgent,
        clock: IReactorTime,
        *,
        timeout: float,
        limit: int,
        post: tuple[str, bytes] | None = None,
    ) -> None:
        self._url = url.encode("ascii")
        self._agent = agent
        self._clock = clock
        self._timeout = timeout
        self._limit = limit
        self._post = post

    async def __call__(self) -> bytes:
        """Return the bytes as published. Raises `FetchFailed`."""
        work = Deferred.fromCoroutine(self._get())
        work.addTimeout(self._timeout, self._clock, onTimeoutCancel=self._too_slow)
        try:
            return await work
        except (FetchFailed, CancelledError):
            raise
        except BodyRefused as error:
            raise FetchFailed(str(error)) from error
        except Exception as error:
            raise FetchFailed(f"serveur injoignable : {reason_of(error)}") from error

    async def _get(self) -> bytes:
        method, headers, sent = b"GET", Headers({b"Accept": [b"*/*"]}), None
        if self._post is not None:
            method, sent = b"POST", WholeBody(self._post[1])
            headers.addRawHeader(b"Content-Type", self._post[0].encode("ascii"))
        response: IResponse = await self._agent.request(method, self._url, headers, sent)
        body = await read_body(response, self._limit)
        if response.code != 200:
            raise FetchFailed(f"le serveur a répondu {response.code}")
        return body

    def _too_slow(self, _value: object, _timeout: float) -> object:
        raise FetchFailed(f"rien reçu en {self._timeout:g} s")


def over_https(ways: Ways, kind: str, url: str, roots: Path | None, *, timeout: float, limit: int) -> Fetch:
    """Return what gets `url`, an address of one kind (`trust.ways`).

    Its server is verified by the PEM file `roots`, None for the system's.

    Raises `CertificateUnusable`.
    """
    agent = ways.agent(kind, client_policy(roots, None), timeout)
    return Download(url, agent, ways.reactor, timeout=timeout, limit=limit)
