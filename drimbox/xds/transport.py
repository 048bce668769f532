"""One HTTPS POST with mutual TLS, and the truth about whether it left.

Theory of operation. What changes the DMP goes over a connection of its own, with no redirect and no
silent retry of the library: an attempt is one attempt. Twisted hands the whole request to TLS as soon as
TCP is up; TLS keeps it until the handshake is done. So the end of the handshake, watched here, is the
instant before which no byte of the request can have left: `Exchange.sent` is that fact, and
`DmpUnavailable.sent` repeats it. One timer covers connection, handshake, request and answer; the answer's
size is bounded while it is read.

A question changes nothing and may be put twice, so questions use again a connection that another question
left a moment ago (`Connections`): two handshakes of three less for a publication. `sent` is then true from
the beginning. A server may close such a connection just when it is used: `DmpUnavailable.stale` says so to
whoever asked, who puts the question once more, made anew: a server that had read the first one takes
neither its message id nor its assertion twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import alsoProvides, implementer

from drimbox import __version__
from drimbox.config import Certificate
from drimbox.ports import DmpUnavailable
from drimbox.proxyconnect import ProxyFailed
from drimbox.xds.soap import HttpMessage

T = TypeVar("T")
#: Builds the TLS policy of a client from the roots of the server and our own pair (architecture.md rule 7).
TlsPolicy = Callable[[Path, Certificate | None], IPolicyForHTTPS]
#: Gives the endpoint at a host and port, to be reached within so many seconds; TLS is made inside it.
Way = Callable[[str, int, float], IStreamClientEndpoint]
#: Connections kept for questions, of one structure.
_MAX_KEPT = 8


@attrs.frozen
class HttpAnswer:
    """Status, Content-Type (empty when absent) and the whole body."""

    status: int
    content_type: str
    body: bytes


class AnswerTooLarge(Exception):
    """The answer is larger than we accept."""


class Connections:
    """How one structure reaches the DMP: its TLS, and the connections its questions have left open.

    `keep` is how long one stays open between two questions, in seconds; 0 for not at all.
    """

    def __init__(
        self,
        reactor: Any,
        policy: IPolicyForHTTPS,
        *,
        connect_timeout: float,
        keep: float,
        way: Way | None = None,
    ) -> None:
        self.reactor = reactor
        self.way = way or partial(_straight, reactor)
        self.policy = policy
        self.connect_timeout = connect_timeout
        #: For what changes the DMP: a new connection each.
        self.single = _pool(reactor, 0.0)
        self.kept = _pool(reactor, keep)

    def close(self) -> Deferred[None]:
        """Close what is open; fires when it is."""
        closed: Deferred[None] = self.kept.closeCachedConnections()
        return closed


def _straight(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, timeout=timeout)
    return endpoint


def _pool(reactor: Any, keep: float) -> HTTPConnectionPool:
    pool = HTTPConnectionPool(reactor, persistent=keep > 0)
    pool.cachedConnectionTimeout = cast(int, keep)  # any number will do
    pool.maxPersistentPerHost = _MAX_KEPT
    # Not its own silent one: see the theory of operation.
    pool.retryAutomatically = False
    return pool


class Exchange:
    """One POST. `sent` says whether any byte of the request may have left.

    `question` says that it changes nothing, so that it may go over a connection used before.
    """

    def __init__(self, connections: Connections, *, question: bool = False) -> None:
        self.sent = False
        self._connections = connections
        self._reactor = connections.reactor
        self._expired = False
        self._pool = connections.kept if question else connections.single
        self._endpoints = _Endpoints(
            connections.way, connections.policy, connections.connect_timeout, self._handshake_done
        )
        self._agent = Agent.usingEndpointFactory(connections.reactor, self._endpoints, self._pool)

    async def post(self, url: str, message: HttpMessage, *, timeout: float, max_bytes: int) -> HttpAnswer:
        """Send and return the answer, whatever its status; raises `DmpUnavailable`.

        `timeout` (seconds) covers everything. A cancellation from outside stays a cancellation.
        """
        if not url.startswith("https://"):
            raise self._unavailable("adresse qui n'est pas en https")
        work = ensureDeferred(self._post(url, message, max_bytes))

        def expire() -> None:
            self._expired = True
            work.cancel()

        timer = self._reactor.callLater(timeout, expire)
        try:
            return await work
        except CancelledError:
            if not self._expired:
                raise
            raise self._unavailable("délai dépassé") from None
        except DmpUnavailable:
            # Cancelled half-way, the library may report a cut connection instead.
            if self._expired:
                raise self._unavailable("délai dépassé") from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _handshake_done(self) -> None:
        self.sent = True

    async def _post(self, url: str, message: HttpMessage, max_bytes: int) -> HttpAnswer:
        response = await self._respond(url, message)
        collector = _Collector(max_bytes)
        response.deliverBody(collector)
        body = await self._network(collector.done)
        content_type = response.headers.getRawHeaders("Content-Type") or [""]
        return HttpAnswer(response.code, str(content_type[0]), body)

    async def _respond(self, url: str, message: HttpMessage) -> IResponse:
        request, used = self._request(url, message)
        try:
            return await self._network(request)
        except DmpUnavailable as error:
            if used and not self._expired:
                # Closed by the DMP while nobody used it; so may the others be.
                self._pool.closeCachedConnections().addErrback(lambda _: None)
                error.stale = True
            raise

    def _request(self, url: str, message: HttpMessage) -> tuple[Deferred[IResponse], bool]:
        """Send; say too whether that was over a connection used before."""
        headers = Headers(
            {
                "Content-Type": [message.content_type],
                "User-Agent": [f"DRIMbox/{__version__}"],
                "Accept": ["multipart/related, application/soap+xml"],
            }
        )
        before = self._endpoints.connections
        request = self._agent.request(b"POST", url.encode("ascii"), headers, _Bytes(message.body))
        used = self._endpoints.connections == before
        self.sent = self.sent or used
        return request, used

    async def _network(self, deferred: Deferred[T]) -> T:
        """Wait for the network; every failure of its is "unavailable", and only those."""
        try:
            return await deferred
        except CancelledError:
            raise
        except Exception as error:
            # `from None`: the library's words may quote the answer, and so a patient.
            raise self._unavailable(self._reason(error)) from None

    def _unavailable(self, reason: str) -> DmpUnavailable:
        return DmpUnavailable(f"DMP injoignable : {reason}", sent=self.sent)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ProxyFailed):
            return str(error)
        if isinstance(error, AnswerTooLarge):
            return "réponse trop volumineuse"
        if isinstance(error, DNSLookupError):
            return "nom introuvable"
        if isinstance(error, TimeoutError):
            return "pas de connexion dans le délai"
        if isinstance(error, ConnectionRefusedError):
            return "connexion refusée"
        if isinstance(error, ConnectError):
            return "connexion impossible"
        if not self.sent:
            return "échec de la négociation TLS"
        return "connexion coupée ou réponse incomplète"


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes endpoints whose protocols tell when the handshake is done; TLS whatever the scheme."""

    def __init__(
        self, way: Way, policy: IPolicyForHTTPS, timeout: float, handshake_done: Callable[[], None]
    ) -> None:
        self._way = way
        self._policy = policy
        self._timeout = timeout
        self._handshake_done = handshake_done
        #: Connections begun.
        self.connections = 0

    def endpointForURI(self, uri: Any) -> Any:
        tcp: Any = self._way(uri.host.decode("ascii"), uri.port, self._timeout)
        creator: Any = self._policy.creatorForNetloc(uri.host, uri.port)
        return _Watched(wrapClientTLS(creator, tcp), self)

    def begun(self) -> Callable[[], None]:
        """Count a connection; return what to call at the end of its handshake."""
        self.connections += 1
        return self._handshake_done


class _Watched:
    """An endpoint whose protocols are told of the end of the handshake."""

    def __init__(self, endpoint: Any, endpoints: _Endpoints) -> None:
        self._endpoint = endpoint
        self._endpoints = endpoints

    def connect(self, factory: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = self._endpoint.connect(_Watching(factory, self._endpoints.begun()))
        return deferred


class _Watching(Factory):
    noisy = False

    def __init__(self, inner: Any, handshake_done: Callable[[], None]) -> None:
        self._inner = inner
        self._handshake_done = handshake_done

    def buildProtocol(self, addr: Any) -> Any:
        protocol = self._inner.buildProtocol(addr)
        protocol.handshakeCompleted = self._handshake_done
        alsoProvides(protocol, IHandshakeListener)
        return protocol


@implementer(IBodyProducer)
class _Bytes:
    """A body that is already there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        consumer.write(self._data)
        done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """Nothing left to pause."""

    def resumeProducing(self) -> None:
        """Nothing left to resume."""

    def stopProducing(self) -> None:
        """Nothing left to stop."""


class _Collector(Protocol):
    """Collects a body up to a size; cancelling `done` cuts the connection."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._over = False
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._size += len(data)
        if self._size > self._max_bytes:
            self._over = True
            self._chunks.clear()
            self._abort()
            self.done.errback(AnswerTooLarge())
            return
        self._chunks.append(data)

    def connectionLost(self, reason: Failure = Failure(ResponseDone())) -> None:  # noqa: B008
        if self._over or self.done.called:
            return
        # Without Content-Length nor chunks the end of the connection is the end of the answer; the
        # XML or the closing delimiter then say whether it is whole.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._chunks))
        else:
            self.done.errback(reason)

    def _abort(self) -> None:
        self._over = True
        # The body's transport only stands in for the connection, and cannot cut it itself.
        proxy: Any = self.transport
        connection = getattr(proxy, "_producer", None)
        abort = getattr(connection, "abortConnection", None)
        if abort is not None:
            abort()
        elif proxy is not None:
            proxy.stopProducing()
