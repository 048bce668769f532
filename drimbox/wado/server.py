"""The mTLS WADO-RS face: HTTP requests in, deliveries out (DB.SO.32, 173; interfaces.md 6).

One resource answers every path: which site is asked comes from the TLS handshake (`trust.contexts`),
never from Host. The order of checks is that of interfaces.md 6.4: verified peer, whitelist, headers,
token, KOS, archive, PACS. A delivery that fails before its first byte becomes a problem document; one
that fails after it loses its connection without the closing boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from zope.interface import implementer

from drimbox import metrics
from drimbox.config import Site, WadoSettings
from drimbox.dicom.pdu import Buffer
from drimbox.errors import (
    DrimboxError,
    ImageError,
    NotServed,
    PeerNotListed,
    PeerNotTrusted,
    ServiceDisabled,
)
from drimbox.wado.problem import problem
from drimbox.wado.request import SeriesRequest, check_authority, read_request


class Peer(Protocol):
    """The verified Consumer at the other end of a connection."""

    @property
    def address(self) -> str:
        """Its address."""

    @property
    def listed(self) -> bool:
        """Say whether CN and OU of its certificate are in the whitelist (DB.SO.154)."""


class Gate(Protocol):
    """What the face asks of trust and of the use-cases."""

    def site_of(self, transport: Any) -> Site | None:
        """Return the site whose WADO name the TLS handshake chose, None for any other name."""

    def peer_of(self, transport: Any) -> Peer | None:
        """Return the verified peer of a connection, None when it has no verified certificate."""

    def enabled(self, site: Site) -> bool:
        """Say whether image access is switched on (DB.CS.164, shutdown)."""

    async def serve(
        self, site: Site, peer: Peer, request: SeriesRequest, answer: RequestAnswer
    ) -> DrimboxError | None:
        """Deliver; return the error when nothing has been written yet."""

    async def refused(
        self, site: Site | None, peer: Peer | None, target: bytes, error: DrimboxError
    ) -> None:
        """Take note of a request refused before it reached the use-case."""


@implementer(IPushProducer)
class RequestAnswer:
    """The body of one HTTP answer (a `source.delivery.Answer`)."""

    def __init__(self, request: http.Request) -> None:
        self._request = request
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        self._lost: Callable[[], None] = lambda: None
        self._paused = False
        self._over = False
        request.notifyFinish().addErrback(self._connection_lost)

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """Name who is told that the connection pauses, resumes or is gone."""
        self._pause, self._resume, self._lost = pause, resume, lost
        if self._over:
            lost()
        elif self._paused:
            pause()

    # -- Sink --------------------------------------------------------------------------------------

    def start(self, content_type: str) -> None:
        """Send status 200 and the headers."""
        request = self._request
        request.setResponseCode(http.OK)
        headers = request.responseHeaders
        headers.setRawHeaders(b"Content-Type", [content_type.encode("ascii")])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        # A push producer: a pull producer stalls under chunked answers (architecture.md, "Measured").
        request.registerProducer(self, True)

    def write(self, data: Buffer) -> None:
        """Send bytes of the body."""
        if not self._over:
            self._request.write(data)

    def finish(self) -> None:
        """End the body in order."""
        if not self._over:
            self._over = True
            self._request.unregisterProducer()
            self._request.finish()

    def abort(self) -> None:
        """Cut the connection: what was sent must not look complete."""
        if not self._over:
            self._over = True
            channel: Any = self._request.channel
            if channel is not None:
                channel.transport.abortConnection()

    # -- IPushProducer -----------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The connection takes no more for now."""
        self._paused = True
        self._pause()

    def resumeProducing(self) -> None:
        """The connection takes bytes again."""
        self._paused = False
        self._resume()

    def stopProducing(self) -> None:
        """The connection is gone; `notifyFinish` says so too."""

    def _connection_lost(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self._lost()


class WadoResource(resource.Resource):
    """Answers every path of the WADO names."""

    isLeaf = True
    log = Logger()

    def __init__(self, gate: Gate, settings: WadoSettings, names: Sequence[str]) -> None:
        super().__init__()
        self._gate = gate
        self._settings = settings
        self._names = tuple(names)

    def render(self, request: server.Request) -> int:
        """Start the work on a request; it ends when it ends."""
        Deferred.fromCoroutine(self._render(request)).addErrback(self._broken, request)
        return server.NOT_DONE_YET

    async def _render(self, request: server.Request) -> None:
        channel: Any = request.channel
        transport = channel.transport
        site = self._gate.site_of(transport)
        peer = self._gate.peer_of(transport)
        answer = RequestAnswer(request)
        try:
            if site is None or peer is None:
                raise PeerNotTrusted("certificat client vérifié exigé")
            wanted = self._read(request, site, peer)
        except DrimboxError as error:
            await self._gate.refused(site, peer, request.uri, error)
            self._problem(request, error)
            return
        failure = await self._gate.serve(site, peer, wanted, answer)
        if failure is not None:
            self._problem(request, failure)

    def _read(self, request: server.Request, site: Site, peer: Peer) -> SeriesRequest:
        if not self._gate.enabled(site):
            raise ServiceDisabled("accès aux images désactivé")
        if not peer.listed:
            raise PeerNotListed
        headers = [
            (name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values
        ]
        check_authority(request.uri, headers, site.wado_fqdn, self._names)
        if request.method != b"GET":
            raise NotServed("méthode non proposée", status=405)
        return read_request(request.uri, headers, self._settings)

    def _problem(self, request: server.Request, error: DrimboxError) -> None:
        if request._disconnected or request.finished:
            return
        status, headers, body = problem(error)
        request.setResponseCode(status)
        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])
        if status == 405:
            request.responseHeaders.setRawHeaders(b"Allow", [b"GET"])
        request.write(body)
        request.finish()

    def _broken(self, failure: Failure, request: server.Request) -> None:
        """A bug of ours: the client gets E1104, or loses its connection when the answer had begun."""
        self.log.failure("request failed", failure=failure)
        if request.startedWriting:
            channel: Any = request.channel
            if channel is not None:
                channel.transport.abortConnection()
        else:
            self._problem(request, ImageError())


class WadoFactory(server.Site):
    """HTTP/1.1 on the WADO listener, with bounded connections and times."""

    noisy = False
    displayTracebacks = False

    def __init__(self, root: WadoResource, settings: WadoSettings, clock: Any) -> None:
        super().__init__(root, reactor=clock, timeout=settings.idle_timeout)
        self._settings = settings
        self._open: set[Any] = set()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the channel of one connection, or refuse it when too many are open."""
        if len(self._open) >= self._settings.max_connections:
            metrics.DELIVERIES.labels("", "connections").inc()
            return None
        channel: Any = super().buildProtocol(addr)
        self._open.add(channel)
        lost = channel.connectionLost

        def connection_lost(reason: Failure) -> None:
            self._open.discard(channel)
            lost(reason)

        channel.connectionLost = connection_lost
        return channel

    def abort_all(self) -> None:
        """Cut every connection, at shutdown."""
        for channel in list(self._open):
            if channel.transport is not None:
                channel.transport.abortConnection()

    def log(self, request: http.Request) -> None:
        """Write no access log of Twisted's own: the gateway logs and audits deliveries itself."""
