"""The WADO-RS client: one request on one connection, and the truth about what came back (DB.CO.122, 123).

Twisted TCP and TLS under our own reader (`answer`, `multipart`), no HTTP library: a client of images must
know whether an answer was cut inside a chunk, between two parts or before the closing boundary, must stop
reading when its consumer is slow, and must hang up hard when it gives up. A new connection for each
request; no redirect, no retry, no cookie: whoever asks decides what to do next.

    connect -> TLS (the server proves its name) -> approve its certificate -> request -> head -> parts

The request leaves only after `approve` (the whitelist, DB.CO.145), so that the token is never given to a
stranger. Parts go to a `Sink` as they arrive; nothing is kept but a refusal's few words. What the server
does never raises: it is in the `Outcome`. What the sink raises ends the exchange and comes out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from cryptography import x509
from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from drimbox.errors import DrimboxError
from drimbox.wado.answer import AnswerReader, AnswerRefused, Body, End, Head
from drimbox.wado.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    boundary_of,
)
from drimbox.wado.query import MAX_SMALL_BODY, Problem, Query, read_problem


@attrs.frozen
class Limits:
    """How long and how much; seconds and bytes."""

    #: TCP and TLS together.
    connect: float = 15.0
    #: From the request to the head of the answer: the source may queue, then wait for its PACS.
    answer: float = 120.0
    #: Without a byte of the answer while we are reading.
    idle: float = 60.0
    total: float = 3600.0
    max_bytes: int = 32 * 1024**3
    max_parts: int = 100_000


class Trouble(enum.Enum):
    """Why an answer is missing or not whole."""

    #: No connection: name unknown, refused, unreachable.
    UNREACHABLE = "unreachable"
    #: The TLS handshake failed on either side.
    TLS = "tls"
    #: `approve` refused the server's certificate.
    NOT_APPROVED = "not-approved"
    TIMEOUT = "timeout"
    #: Cut before its announced end or without its closing boundary.
    TRUNCATED = "truncated"
    #: Not the HTTP, or not the multipart, that it must be.
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"


@attrs.frozen
class Outcome:
    """What came back. Times are seconds from the call of `fetch`."""

    #: None when no answer came.
    head: Head | None
    #: None when the answer is whole, be it a refusal.
    trouble: Trouble | None
    #: The trouble in French words; empty without one.
    detail: str
    #: Whole parts received.
    parts: int
    #: Bytes of the body.
    received: int
    first_part: float | None
    total: float
    #: What a refusal says; None when the body is no such JSON.
    problem: Problem | None
    #: Body of an answer that is not images, at most `MAX_SMALL_BODY` bytes.
    body: bytes = attrs.field(default=b"", repr=False)

    @property
    def status(self) -> int | None:
        """The HTTP status, None when no answer came."""
        return self.head.status if self.head is not None else None

    @property
    def complete(self) -> bool:
        """True when this is a success with everything it announced, closing boundary included."""
        return self.trouble is None and self.status == 200


class Flow(Protocol):
    """How a sink holds the server back; calls may nest in `Sink` methods, and repeat."""

    def pause(self) -> None:
        """Read nothing more from the network until `resume`; what was read may still come."""

    def resume(self) -> None:
        """Read again."""


class Sink(Protocol):
    """Takes the parts of one answer as they arrive."""

    def begin(self, head: Head, flow: Flow) -> None:
        """The answer is a multipart of images; called once, before its parts."""

    def part_begin(self, part: PartBegin) -> None:
        """An instance starts."""

    def part_data(self, data: bytes) -> None:
        """Some bytes of it; never empty."""

    def part_end(self) -> None:
        """It is whole. Without this call the bytes given are not an instance."""


#: Seconds given to a server to close after its last byte.
_FAREWELL = 5.0
#: Seconds for reading what may have come when a server seems to have been silent too long.
_SECOND_LOOK = 1.0
#: Looks at the server's certificate before anything is sent; raises `DrimboxError` to refuse.
Approve = Callable[[x509.Certificate], None]


async def fetch(
    reactor: Any,
    policy: IPolicyForHTTPS,
    query: Query,
    sink: Sink,
    *,
    limits: Limits = Limits(),
    connect_to: tuple[str, int] | None = None,
    approve: Approve | None = None,
    tap: Callable[[bytes], object] | None = None,
) -> Outcome:
    """Carry out one request.

    `policy` is that of `trust.outgoing.client_policy`; `connect_to` replaces the address, not the name
    to be proved; `tap` sees every byte of the answer as it came. Raises `QueryRefused` before anything is
    sent, what `sink` or `tap` raise, and `CancelledError` when cancelled, the connection then being cut.
    """
    request = query.encode()
    host, port = connect_to or (query.address.host.strip("[]"), query.address.port)
    exchange = _Exchange(reactor, query, request, sink, limits, approve, tap)
    creator: Any = policy.creatorForNetloc(query.address.host.encode("ascii"), query.address.port)
    tcp = HostnameEndpoint(reactor, host, port, timeout=limits.connect)
    connecting = connectProtocol(wrapClientTLS(creator, tcp), exchange)
    exchange.start(connecting)
    return await exchange.finished


@implementer(IHandshakeListener)
class _Exchange(TwistedProtocol):
    """One connection: sends the request once it may, reads the answer, reports once."""

    transport: Any

    def __init__(
        self,
        reactor: Any,
        query: Query,
        request: bytes,
        sink: Sink,
        limits: Limits,
        approve: Approve | None,
        tap: Callable[[bytes], object] | None,
    ) -> None:
        self._clock, self._query, self._request = reactor, query, request
        self._sink, self._limits, self._approve, self._tap = sink, limits, approve, tap
        self.finished: defer.Deferred[Outcome] = defer.Deferred(lambda _: self._hang_up())
        self._reader = AnswerReader()
        self._parser: MultipartParser | None = None
        self._head: Head | None = None
        self._body = bytearray()
        self._parts = self._received = 0
        self._first: float | None = None
        self._sent = self._over = self._paused = self._lost = False
        self._started = reactor.seconds()
        self._last = self._started
        self._timers: list[Any] = []
        self._idle: Any = None
        self._farewell: Any = None
        self._connecting: defer.Deferred[Any] | None = None

    def start(self, connecting: defer.Deferred[Any]) -> None:
        """Watch the connection being made, and the clock."""
        limits = self._limits
        later = self._clock.callLater
        self._timers = [
            later(limits.connect, self._too_slow, "connexion", lambda: self._sent),
            later(limits.total, self._too_slow, "réponse entière", lambda: False),
        ]
        self._connecting = connecting
        connecting.addErrback(self._not_connected)

    # --- Twisted ---

    def handshakeCompleted(self) -> None:
        """The server has proved its name; ask, if its certificate is approved."""
        if self._over:
            return
        if self._approve is not None:
            try:
                self._approve(self._certificate())
            except DrimboxError as refusal:
                self._fail(Trouble.NOT_APPROVED, str(refusal))
                return
        self._sent = True
        self._last = self._clock.seconds()
        self._check_idle()
        self.transport.write(self._request)

    def _certificate(self) -> x509.Certificate:
        certificate: x509.Certificate = self.transport.getHandle().get_peer_certificate(
            as_cryptography=True
        )
        return certificate

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of the answer."""
        if self._over:
            return
        self._last = self._clock.seconds()
        try:
            if self._tap is not None:
                self._tap(data)
            for event in self._reader.feed(data):
                self._event(event)
        except AnswerRefused as refused:
            self._fail(Trouble.MALFORMED, str(refused))
        except MultipartError as wrong:
            self._fail(Trouble.MALFORMED, f"multipart illisible ({wrong})")
        except Exception:
            self._give_up(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection ended, by whoever."""
        self._lost = True
        if self._farewell is not None and self._farewell.active():
            self._farewell.cancel()
        if self._over:
            return
        if not self._sent or (self._head is None and reason.check(SSL.Error)):
            # In TLS 1.3 a client certificate is refused after the handshake is over on our side.
            self._fail(Trouble.TLS, "échec de la négociation TLS" + _tls_words(reason))
            return
        try:
            for event in self._reader.finish() if reason.check(error.ConnectionDone) else ():
                self._event(event)
        except AnswerRefused as refused:
            self._fail(Trouble.TRUNCATED, str(refused))
        except Exception:
            self._give_up(Failure())
        else:
            self._fail(Trouble.TRUNCATED, "connexion coupée avant la fin de la réponse")

    # --- the answer ---

    def _event(self, event: object) -> None:
        if self._over:
            return
        match event:
            case Head():
                self._head = event
                self._check_idle()
                if self._query.method == "GET" and event.status == 200:
                    self._parser = MultipartParser(
                        boundary_of((event.get("content-type") or "").encode("latin-1"))
                    )
                    self._sink.begin(event, self)
            case Body(data):
                self._received += len(data)
                if self._received > self._limits.max_bytes:
                    self._fail(Trouble.TOO_LARGE, f"réponse de plus de {self._limits.max_bytes} octets")
                elif self._parser is None:
                    self._body += data[: MAX_SMALL_BODY - len(self._body)]
                else:
                    self._feed(self._parser, data)
            case End():
                if self._parser is not None and not self._parser.complete:
                    self._fail(Trouble.TRUNCATED, "délimiteur de fin absent (RFC 2046 5.1.1)")
                else:
                    self._report(None, "")

    def _feed(self, parser: MultipartParser, data: bytes) -> None:
        sink = self._sink
        for event in parser.feed(data):
            match event:
                case PartData(piece):
                    sink.part_data(piece)
                case PartBegin():
                    if self._parts >= self._limits.max_parts:
                        self._fail(Trouble.TOO_LARGE, f"plus de {self._limits.max_parts} parties")
                        return
                    sink.part_begin(event)
                case PartEnd():
                    sink.part_end()
                    self._parts += 1
                    if self._first is None:
                        self._first = self._clock.seconds() - self._started
                case _:
                    pass

    def pause(self) -> None:
        """`Flow.pause`."""
        if not (self._paused or self._over):
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """`Flow.resume`."""
        if self._paused and not self._over:
            self._paused = False
            # The server is given its time anew: the silence was ours.
            self._last = self._clock.seconds()
            self.transport.resumeProducing()

    # --- time ---

    def _check_idle(self, *, again: bool = False) -> None:
        """Look whether the server has been silent too long, and look again when it could have been.

        A silence has to be found twice, `again` the second time: after a pause of this very process the
        answer waits unread.
        """
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        limit = self._limits.answer if self._head is None else self._limits.idle
        silent = 0.0 if self._paused else self._clock.seconds() - self._last
        if silent >= limit and not again:
            self._idle = self._clock.callLater(min(limit, _SECOND_LOOK), self._check_idle, again=True)
        elif silent >= limit:
            what = "aucune réponse" if self._head is None else "réponse arrêtée en chemin"
            self._fail(Trouble.TIMEOUT, f"délai dépassé : {what} en {limit:g} s")
        else:
            self._idle = self._clock.callLater(limit - silent, self._check_idle)

    def _too_slow(self, what: str, is_done: Callable[[], bool]) -> None:
        if not is_done():
            self._fail(Trouble.TIMEOUT, f"délai dépassé : {what}")

    # --- ends ---

    def _not_connected(self, failure: Failure) -> None:
        if self._over:
            return
        if failure.check(error.TimeoutError, error.TCPTimedOutError):
            self._fail(Trouble.TIMEOUT, "délai dépassé : connexion")
        elif failure.check(error.DNSLookupError):
            self._fail(Trouble.UNREACHABLE, "nom introuvable")
        elif failure.check(error.ConnectionRefusedError):
            self._fail(Trouble.UNREACHABLE, "connexion refusée")
        elif failure.check(error.ConnectError):
            self._fail(Trouble.UNREACHABLE, "connexion impossible")
        else:
            self._give_up(failure)

    def _fail(self, trouble: Trouble, detail: str) -> None:
        self._report(trouble, detail)

    def _report(self, trouble: Trouble | None, detail: str) -> None:
        if self._over:
            return
        self._hang_up()
        body = bytes(self._body)
        outcome = Outcome(
            head=self._head,
            trouble=trouble,
            detail=detail,
            parts=self._parts,
            received=self._received,
            first_part=self._first,
            total=self._clock.seconds() - self._started,
            problem=read_problem(body) if self._head is not None and self._head.status >= 400 else None,
            body=body,
        )
        self.finished.callback(outcome)

    def _give_up(self, failure: Failure) -> None:
        if not self._over:
            self._hang_up()
            self.finished.errback(failure)

    def _hang_up(self) -> None:
        """Leave neither connection nor timer behind."""
        self._over = True
        for timer in (*self._timers, self._idle):
            if timer is not None and timer.active():
                timer.cancel()
        if self._connecting is not None:
            # Nothing to do for a connection that is made, or whose failure has been heard.
            self._connecting.cancel()
        if self.transport is None or self._lost:
            return
        if self._reader.done:
            # A server told of a reset after its last byte would count a client that gave up.
            self.transport.loseConnection()
            self._farewell = self._clock.callLater(_FAREWELL, self.transport.abortConnection)
        else:
            self.transport.abortConnection()


def _tls_words(reason: Failure) -> str:
    """Return what OpenSSL says of a failed handshake: its own constant words, none of the peer's."""
    value = reason.value
    entries = value.args[0] if isinstance(value, SSL.Error) and value.args else ()
    words = [str(entry[-1]) for entry in entries if isinstance(entry, tuple) and entry]
    return " (" + ", ".join(words)[:200] + ")" if words else ""
