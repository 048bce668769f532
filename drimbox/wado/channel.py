"""The HTTP/1.1 connections of the WADO-RS face: how many, how long, how much.

A connection goes through phases, each with a clock of its own that no drip of bytes can wind back:

    handshake --done--> request head and body --read--> answer --ended--> idle --first byte--> request ...
                                                           `--Connection: close--> flushing --> gone

`handshake_timeout` bounds the first, `header_timeout` the second, from the end of the handshake for the
first request and from its first byte for the others. An answer has the time-outs of the delivery behind
it. `idle_timeout` is for a connection between two requests; what the client has not taken by then is
flushed all the same. While flushing, a client that has taken next to nothing for `stall_timeout` is cut.

How many may be open, in all and from one address, and how fast one address may come is the `Doorkeeper`'s
to say. When the door is full, whoever has shown no certificate makes room: the one that has been here
longest without one is cut for the newcomer, after `GRACE`. So half-open connections keep nobody out, and a
Consumer whose handshake is done keeps its place.

A slow client is not a stalled one. The kernel says that a connection takes bytes again once a third of
what it holds has left, which may be a megabyte: minutes, for a client that reads 10 KB a second. So while a
connection is full, what the client's machine has acknowledged tells whether it reads; if it does, whoever
feeds the connection is told to pause once more, and begins to count the client's silence anew.

One request at a time: what a client pipelines waits for the end of the answer before it is parsed, in
bounded memory (Twisted's). A request body has no meaning here; it is counted, dropped, and refused when
it is long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from zope.interface import implementer

from drimbox import metrics
from drimbox.config import WadoSettings
from drimbox.dicom.pdu import Buffer
from drimbox.limits import Doorkeeper, Pace, Refused, Why
from drimbox.trust.contexts import was_garbage
from drimbox.trust.transport import unsent
from drimbox.wado.repeats import Again, Repeats

#: Bytes of a request body that are read and dropped.
MAX_BODY = 64 * 1024
#: Bytes a second: who takes less does not read (a drip would hold a delivery and its disk for ever).
LEAST_RATE = 1024
#: Seconds for which nobody's place is taken.
GRACE = 1.0
#: Looks at a full connection in the time of a stall.
_LOOKS = 4
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_LONG = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class WadoRequest(server.Request):
    """A request whose body is not kept, and whose target Twisted does not look at."""

    channel: Any
    _dropped = 0

    def process(self) -> None:
        """Hand the request to the one resource, whatever its target (`*` too) and method."""
        self.site = self.channel.site
        self.setHeader(b"Date", http.datetimeToString())
        try:
            self.site.resource.render(self)
        except Exception:
            self.processingFailed(Failure())

    def write_all(self, pieces: Sequence[Buffer]) -> None:
        """Send pieces of the body as one chunk, joined once only: by whoever encrypts them."""
        if self.finished or self._disconnected or not (self.startedWriting and self.chunked):
            self.write(b"".join(pieces))
            return
        size = sum(map(len, pieces))
        if size:
            self.sentLength += size
            self.channel.writeSequence([b"%x\r\n" % size, *pieces, b"\r\n"])

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is announced too long, or in a way others read otherwise.

        `length` is None for a chunked one.
        """
        self.content = BytesIO()
        codings = self.requestHeaders.getRawHeaders(b"Transfer-Encoding", ())
        if any(coding.lower() != b"chunked" for coding in codings):
            # `identity` is gone from RFC 9112: a proxy before us may not read it as Twisted does.
            self.channel.refuse(_BAD_REQUEST)
        elif length is not None and length > MAX_BODY:
            self.channel.refuse(_TOO_LONG)

    def handleContentChunk(self, data: bytes) -> None:
        """Count and drop."""
        self._dropped += len(data)
        if self._dropped > MAX_BODY:
            self.channel.refuse(_TOO_LONG)


@implementer(IHandshakeListener)
class WadoChannel(http.HTTPChannel):
    """One connection."""

    log = Logger()
    factory: WadoFactory
    #: A TLS transport; the reactor's `callLater`, put here by the factory.
    transport: Any
    callLater: Any
    #: Twisted would cut a connection so long after its idle time, read or not; `_flushing` looks.
    abortTimeout: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._limit_call: IDelayedCall | None = None
        #: Whose place it takes.
        self.address = ""
        self._answering = False
        self._shaken = False
        #: Who feeds the answer, and bytes that the client had not taken at the last look.
        self._feeder: Any = None
        self._left = 0
        #: Requests so far, and what is known of the last.
        self._asked = 0
        self._repeats = Repeats()

    # -- Twisted -----------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Expect the TLS handshake."""
        super().connectionMade()
        self._limit(self.factory.settings.handshake_timeout, "handshake")

    def handshakeCompleted(self) -> None:
        """Expect a request, if the connection may stay."""
        self._shaken = True
        if not self.factory.admits(self):
            self.abort()
            return
        self._limit(self.factory.settings.header_timeout, "request")

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of requests."""
        if self.transport.disconnecting:
            # Refused already: what still comes is not looked at.
            return
        between, asked = self._between, self._asked
        again = self._repeats.answer(data) if between else None
        if again is not None:
            self.resetTimeout()
            self.transport.writeSequence((again,))
            return
        if self._limit_call is None and not self._answering:
            self._limit(self.factory.settings.header_timeout, "request")
        super().dataReceived(data)
        self._repeats.learn(data, between and self._between and self._asked == asked + 1)

    def allContentReceived(self) -> None:
        """Answer a request that has come whole."""
        self._unlimit()
        self._answering = True
        self._asked += 1
        super().allContentReceived()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let the answer be fed as fast as the client reads."""
        self._feeder = producer
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Nothing more comes."""
        self._unlimit()
        self._feeder = None
        super().unregisterProducer()

    def pauseProducing(self) -> None:
        """The connection is full: see from now on whether the client reads."""
        super().pauseProducing()
        if self._feeder is not None:
            self._look_later(self._look)

    def resumeProducing(self) -> None:
        """The connection takes bytes again."""
        if self._feeder is not None:
            self._unlimit()
        super().resumeProducing()

    def requestDone(self, request: http.Request) -> None:
        """Go on with the next request, unless the gateway stops."""
        self._answering = False
        if self.factory.draining:
            self.persistent = False
        super().requestDone(request)

    def loseConnection(self) -> None:
        """Close once everything is sent, and not later than the client's stall."""
        super().loseConnection()
        self._look_later(self._flushing, _LOOKS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self._unlimit()
        if not self._shaken and was_garbage(self.transport, reason):
            self.factory.told(self.address, Why.GARBAGE)
        self.factory.gone(self)
        super().connectionLost(reason)

    # -- ours --------------------------------------------------------------------------------------

    @property
    def answering(self) -> bool:
        """Say whether a request is being answered."""
        return self._answering

    @property
    def _between(self) -> bool:
        """Say whether nothing of a request has come, and none is being answered."""
        quiet = self._limit_call is None and not self._answering and not self.requests
        return quiet and not self._buffer and not self._busyReceiving

    def repeatable(self, again: Again) -> None:
        """Say, while a request is answered, how to answer the same one if it comes again."""
        self._repeats.offer(again)

    def refuse(self, answer: bytes) -> None:
        """Answer a request that is not worth a resource, and close."""
        self.transport.write(answer)
        self.loseConnection()

    def hang_up(self) -> None:
        """Close if no request is being answered; else after its answer."""
        if not self._answering:
            self.loseConnection()

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abortConnection()

    # -- own ---------------------------------------------------------------------------------------

    def _limit(self, seconds: float, phase: str) -> None:
        self._unlimit()
        self._limit_call = self.callLater(seconds, self._late, phase)

    def _unlimit(self) -> None:
        call, self._limit_call = self._limit_call, None
        if call is not None and call.active():
            call.cancel()

    def _late(self, phase: str) -> None:
        self._limit_call = None
        metrics.DELIVERIES.labels("", phase).inc()
        if not self._shaken:
            self.factory.told(self.address, Why.UNFINISHED)
        self.log.info("connection cut: {phase} takes too long", phase=phase)
        self.abort()

    def _look_later(self, look: Callable[[float], None], times: int = 1) -> None:
        """Note what the client has not taken; `look` again, `times` a quarter of a stall later."""
        self._unlimit()
        self._left = unsent(self.transport)
        seconds = self.factory.settings.stall_timeout * times / _LOOKS
        self._limit_call = self.callLater(seconds, look, seconds)

    def _reads(self, seconds: float) -> bool:
        """Say whether the client has read something worth the name since the last look."""
        return self._left - unsent(self.transport) >= LEAST_RATE * seconds

    def _look(self, seconds: float) -> None:
        """Tell whoever feeds a full connection when its client is slow, but reads."""
        self._limit_call = None
        reads = self._reads(seconds)
        self._look_later(self._look)
        if reads:
            self._feeder.pauseProducing()

    def _flushing(self, seconds: float) -> None:
        """Look whether the client has taken something since the last look."""
        self._limit_call = None
        below = getattr(self.transport, "transport", None)
        if self._reads(seconds):
            self._look_later(self._flushing, _LOOKS)
        elif below is None or unsent(self.transport):
            self.abort()
        else:
            # Its machine has everything and it says no farewell. It may still be reading: no reset, which
            # on some systems throws away what was not read.
            below.loseConnection()


class WadoFactory(server.Site):
    """HTTP/1.1 on the WADO listener, with bounded connections and times."""

    noisy = False
    displayTracebacks = False
    #: Not Twisted's own choice, which may speak HTTP/2.
    protocol: Any = WadoChannel

    def __init__(
        self,
        root: resource.Resource,
        settings: WadoSettings,
        clock: Any,
        is_guest: Callable[[Any], bool] = lambda transport: False,
        *,
        refused: Refused = lambda address, why: None,
    ) -> None:
        """`is_guest` says of a transport, after its handshake, whether it shows no client certificate.

        `refused` is told of every connection that is closed at once or never finishes its handshake.
        """
        super().__init__(root, requestFactory=WadoRequest, reactor=clock, timeout=settings.idle_timeout)
        self.settings = settings
        self.told = refused
        #: True while the gateway stops: no connection outlives its answer.
        self.draining = False
        self._clock = clock
        self._doorkeeper = Doorkeeper(
            settings.max_connections,
            settings.max_connections_per_address,
            pace=Pace(settings.connection_rate, settings.connection_burst, clock.seconds),
        )
        self._open: set[WadoChannel] = set()
        self._is_guest = is_guest
        self._guests: set[WadoChannel] = set()
        #: Those that have shown no certificate, with the instant they came, in that order.
        self._unproven: dict[WadoChannel, float] = {}
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the channel of one connection; None, which closes it, when it may not come in."""
        address = str(getattr(addr, "host", ""))
        why = self._doorkeeper.admit(address)
        if why is Why.TOTAL and self._make_room():
            why = self._doorkeeper.admit(address)
        if why is not None:
            self.told(address, why)
            return None
        channel: Any = super().buildProtocol(addr)
        channel.address = address
        self._open.add(channel)
        self._unproven[channel] = self._clock.seconds()
        metrics.WADO_CONNECTIONS.set(len(self._open))
        return channel

    def admits(self, channel: WadoChannel) -> bool:
        """Say whether a connection whose handshake is over may stay: guests are fewer than the others."""
        if channel not in self._open:
            # Its place was taken meanwhile.
            return False
        if not self._is_guest(channel.transport):
            self._unproven.pop(channel, None)
            return True
        if len(self._guests) >= self.settings.max_viewer_connections:
            self.told(channel.address, Why.GUESTS)
            return False
        self._guests.add(channel)
        return True

    def gone(self, channel: WadoChannel) -> None:
        """Forget a connection that is over."""
        if channel not in self._open:
            return
        self._open.discard(channel)
        self._guests.discard(channel)
        self._unproven.pop(channel, None)
        self._doorkeeper.leave(channel.address)
        metrics.WADO_CONNECTIONS.set(len(self._open))
        if not self._open:
            empty, self._empty = self._empty, []
            for waiting in empty:
                waiting.callback(None)

    def _make_room(self) -> bool:
        """Cut the connection that has been here longest without a certificate, if there is one."""
        latest = self._clock.seconds() - GRACE
        for channel, since in self._unproven.items():
            if since > latest:
                return False
            if not channel.answering:
                self.told(channel.address, Why.CROWDED)
                channel.abort()
                self.gone(channel)
                return True
        return False

    async def closed(self) -> None:
        """Hang up: idle connections now, the others after their answer; wait until all are gone."""
        self.draining = True
        for channel in list(self._open):
            channel.hang_up()
        if self._open:
            waiting: Deferred[None] = Deferred()
            self._empty.append(waiting)
            await waiting

    def abort_all(self) -> None:
        """Cut every connection, at shutdown."""
        for channel in list(self._open):
            channel.abort()

    def log(self, request: http.Request) -> None:
        """Write no access log of Twisted's own: the gateway logs and audits deliveries itself."""
