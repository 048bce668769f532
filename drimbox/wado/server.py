"""The mTLS WADO-RS face: HTTP requests in, deliveries out (DB.SO.32, 173; interfaces.md 6).

One resource answers every path: which site is asked comes from the TLS handshake (`trust.contexts`),
never from Host. The order of checks is that of interfaces.md 6.4: verified peer, whitelist, headers,
token, KOS, archive, PACS. A delivery that fails before its first byte becomes a problem document; one
that fails after it loses its connection without the closing boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from zope.interface import implementer

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
from drimbox.wado.capabilities import ALLOW, CONTENT_TYPE, wadl
from drimbox.wado.channel import WadoRequest
from drimbox.wado.problem import problem
from drimbox.wado.request import ImagesRequest, check_authority, named_study, read_request

#: No version: it would only help who looks for a hole.
SERVER = b"DRIMbox"


class Peer(Protocol):
    """The verified Consumer at the other end of a connection."""

    @property
    def address(self) -> str:
        """Its address."""

    @property
    def name(self) -> str:
        """What its simultaneous requests are counted by."""

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

    async def verify(self, transport: Any) -> None:
        """Ask what a handshake could not wait for. Raises `PeerNotTrusted` for a revoked peer."""

    async def serve(
        self, site: Site, peer: Peer, request: ImagesRequest, answer: RequestAnswer
    ) -> DrimboxError | None:
        """Deliver; return the error when nothing has been written yet."""

    async def refused(self, site: Site | None, address: str, study_uid: str, error: DrimboxError) -> None:
        """Take note of a request from `address` refused before it reached the use-case.

        `study_uid` is empty when the request names no study.
        """


@implementer(IPushProducer)
class RequestAnswer:
    """The body of one HTTP answer (a `source.delivery.Answer`)."""

    def __init__(self, request: WadoRequest) -> None:
        self._request = request
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        self._lost: Callable[[], None] = lambda: None
        self._paused = False
        #: True once the body has ended, one way or the other.
        self.over = False
        #: True once the first byte of a complete or incomplete body may have left.
        self.begun = False
        request.notifyFinish().addErrback(self._connection_lost)

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """Name who is told that the connection pauses, resumes or is gone."""
        self._pause, self._resume, self._lost = pause, resume, lost
        if self.over:
            lost()
        elif self._paused:
            pause()

    # -- Sink --------------------------------------------------------------------------------------

    def start(self, content_type: str) -> None:
        """Send status 200 and the headers."""
        if self.over:
            return
        self.begun = True
        request = self._request
        request.setResponseCode(http.OK)
        headers = request.responseHeaders
        headers.setRawHeaders(b"Content-Type", [content_type.encode("ascii")])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"Server", [SERVER])
        headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        # A push producer: a pull producer stalls under chunked answers (architecture.md, "Measured").
        request.registerProducer(self, True)

    def write(self, *pieces: Buffer) -> None:
        """Send bytes of the body, in order."""
        if not self.over:
            self._request.write_all(pieces)

    def finish(self) -> None:
        """End the body in order."""
        if not self.over:
            self.over = True
            self._request.unregisterProducer()
            self._request.finish()

    def abort(self) -> None:
        """Cut the connection: what was sent must not look complete."""
        if not self.over:
            self.over = True
            cut(self._request)

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
        if not self.over:
            self.over = True
            self._lost()


def cut(request: http.Request) -> None:
    """Cut the connection of a request."""
    channel: Any = request.channel
    if channel is not None and channel.transport is not None:
        channel.transport.abortConnection()


#: The specification's example misprints the method (interfaces.md 6.1).
_PING = (b"OPTIONS", b"OPTION")


class WadoResource(resource.Resource):
    """Answers every path of the WADO names."""

    isLeaf = True
    log = Logger()

    def __init__(self, gate: Gate, settings: WadoSettings, names: Sequence[str]) -> None:
        super().__init__()
        self._gate = gate
        self._settings = settings
        self._names = tuple(names)
        self._running = 0
        self._idle: list[Deferred[None]] = []

    def render(self, request: server.Request) -> int:
        """Start the work on a request; it ends when it ends."""
        answer = RequestAnswer(cast(WadoRequest, request))
        self._running += 1
        work = Deferred.fromCoroutine(self._render(request, answer))
        work.addErrback(self._broken, request, answer)
        work.addBoth(self._over)
        return server.NOT_DONE_YET

    async def drained(self) -> None:
        """Wait until every request has been answered and noted down."""
        if self._running:
            waiting: Deferred[None] = Deferred()
            self._idle.append(waiting)
            await waiting

    async def _render(self, request: server.Request, answer: RequestAnswer) -> None:
        channel: Any = request.channel
        transport = channel.transport
        site = self._gate.site_of(transport)
        peer = self._gate.peer_of(transport)
        try:
            if site is None or peer is None:
                raise PeerNotTrusted("certificat client vérifié exigé")
            headers = self._admit(request, site, peer)
            await self._gate.verify(transport)
            if request.method in _PING:
                self._capabilities(request, answer)
                return
            if request.method != b"GET":
                raise NotServed("méthode non proposée", status=405)
            wanted = read_request(request.uri, headers, self._settings)
        except DrimboxError as error:
            address = str(getattr(transport.getPeer(), "host", ""))
            await self._gate.refused(site, address, named_study(request.uri, self._settings), error)
            self._problem(request, answer, error)
            return
        failure = await self._gate.serve(site, peer, wanted, answer)
        if failure is not None:
            self._problem(request, answer, failure)

    def _admit(self, request: server.Request, site: Site, peer: Peer) -> list[tuple[bytes, bytes]]:
        """Make the checks that every method needs; return the headers."""
        if not self._gate.enabled(site):
            raise ServiceDisabled("accès aux images désactivé")
        if not peer.listed:
            raise PeerNotListed
        headers = [
            (name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values
        ]
        check_authority(request.uri, headers, site.wado_fqdn, self._names)
        return headers

    def _capabilities(self, request: server.Request, answer: RequestAnswer) -> None:
        """Answer the "WADO ping": no token, no PACS (DB.SO.103)."""
        answer.over = True
        body = wadl(self._settings)
        for name, value in (
            (b"Content-Type", CONTENT_TYPE),
            (b"Allow", ALLOW),
            (b"Server", SERVER),
            (b"Cache-Control", b"no-store"),
            (b"Content-Length", b"%d" % len(body)),
        ):
            request.responseHeaders.setRawHeaders(name, [value])
        request.write(body)
        request.finish()

    def _problem(self, request: server.Request, answer: RequestAnswer, error: DrimboxError) -> None:
        if answer.over:
            return
        answer.over = True
        status, headers, body = problem(error)
        request.setResponseCode(status)
        request.responseHeaders.setRawHeaders(b"Server", [SERVER])
        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])
        if status == 405:
            request.responseHeaders.setRawHeaders(b"Allow", [ALLOW])
        request.write(body)
        request.finish()

    def _broken(self, failure: Failure, request: server.Request, answer: RequestAnswer) -> None:
        """A bug of ours: the client gets E1104, or loses its connection when the answer had begun."""
        self.log.failure("request failed", failure=failure)
        if answer.begun:
            answer.abort()
        else:
            self._problem(request, answer, ImageError())

    def _over(self, result: object) -> None:
        self._running -= 1
        if not self._running:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
