"""A Consumer: asks a DRIMbox for a series as the CI-SIS clients do, and says exactly what came back.

Twisted TCP and TLS directly, no HTTP library: one request on one connection, so that a connection cut
before the closing boundary or inside a chunk is seen for what it is. It connects to any address under any
SNI name, with any client certificate or none, reads as slowly as asked, and leaves when asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from OpenSSL import SSL
from service_identity import VerificationError
from service_identity.pyopenssl import verify_hostname
from twisted.internet import defer, error, protocol
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.sim.consumer_http import PartHead, PartReader, ResponseError, ResponseReader
from drimbox.sim.mime import MimeError, read_media_type
from drimbox.sim.pki import Pair

_SYNTAX = "1.2.840.10008.1.2"
#: (transfer syntax, q) in the order of the CI-SIS tables (interfaces.md 6.2).
LOSSLESS = (
    (f"{_SYNTAX}.4.70", "0.9"),
    (f"{_SYNTAX}.4.80", "0.8"),
    (f"{_SYNTAX}.4.91", "0.6"),
    (f"{_SYNTAX}.4.50", "0.5"),
    (f"{_SYNTAX}.4.51", "0.5"),
    (f"{_SYNTAX}.4.100", "0.5"),
    (f"{_SYNTAX}.4.101", "0.5"),
    (f"{_SYNTAX}.4.102", "0.5"),
    (f"{_SYNTAX}.4.103", "0.5"),
    (f"{_SYNTAX}.1", "0.4"),
)
LOSSY = (
    (f"{_SYNTAX}.4.50", "0.9"),
    (f"{_SYNTAX}.4.51", "0.9"),
    (f"{_SYNTAX}.4.70", "0.6"),
    (f"{_SYNTAX}.4.80", "0.5"),
    (f"{_SYNTAX}.4.91", "0.5"),
    (f"{_SYNTAX}.4.100", "0.5"),
    (f"{_SYNTAX}.4.101", "0.5"),
    (f"{_SYNTAX}.4.102", "0.5"),
    (f"{_SYNTAX}.4.103", "0.5"),
    (f"{_SYNTAX}.1", "0.4"),
)
MAX_PROBLEM = 64 * 1024


def accept_headers(ranges: Sequence[tuple[str, str]] = LOSSLESS) -> tuple[str, ...]:
    """Return one Accept value a range, as the specification prints them."""
    return tuple(
        f'multipart/related; type="application/dicom"; transfer-syntax={syntax}; q={q}; boundary=**'
        for syntax, q in ranges
    )


@attrs.frozen
class Order:
    """One request and how to behave during it."""

    host: str
    port: int
    #: Name in SNI, and checked in the server's certificate; None sends no SNI and checks no name.
    sni: str | None
    path: str
    #: Client pair; None presents no certificate.
    certificate: Pair | None
    #: Roots for the server's certificate; None checks nothing.
    roots: Path | None
    token: str | None = None
    kos_uid: str | None = None
    situation: str | None = None
    accept: tuple[str, ...] = accept_headers()
    #: Host header; None is the SNI name, or the address without one.
    host_header: str | None = None
    #: Sent as they are, after the others.
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    #: What a part becomes in the result: "bytes", "sha256", or "size" (nothing kept).
    keep: str = "bytes"
    #: Read no faster than this; None is as fast as possible.
    bytes_per_second: float | None = None
    #: Cut the connection once this many bytes of body came; 0 right after sending the request.
    disconnect_after: int | None = None
    timeout: float = 60.0

    def request(self) -> bytes:
        """Return the request as it goes on the wire."""
        fields = [("Host", self.host_header or self.sni or f"{self.host}:{self.port}")]
        fields += [("Accept", value) for value in self.accept]
        if self.token is not None:
            fields.append(("Authorization", f"Bearer {self.token}"))
        if self.kos_uid is not None:
            fields.append(("KOS-SOPInstanceUID", self.kos_uid))
        if self.situation is not None:
            fields.append(("Situation", self.situation))
        fields += [*self.headers, ("User-Agent", "drimbox-sim-consumer"), ("Connection", "close")]
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


@attrs.frozen
class ReceivedPart:
    """One part of the answer."""

    headers: dict[str, str]
    size: int
    #: The part's bytes, or None when `keep` says otherwise.
    content: bytes | None = attrs.field(repr=False)
    sha256: str | None

    @property
    def transfer_syntax(self) -> str | None:
        """The `transfer-syntax` parameter of its Content-Type, None when absent or unreadable."""
        try:
            return read_media_type(self.headers.get("content-type", "")).parameters.get("transfer-syntax")
        except MimeError:
            return None


@attrs.frozen
class FetchResult:
    """What came back."""

    #: None when no answer came at all.
    status: int | None
    #: Names in lower case.
    headers: tuple[tuple[str, str], ...]
    parts: tuple[ReceivedPart, ...]
    #: Seconds from the call to the end of the first part, and to the end.
    t_first_part: float | None
    t_total: float
    #: The framing of HTTP ended properly, and a multipart body had its closing boundary.
    complete: bool
    #: JSON of an error answer, None when there is none.
    problem: dict[str, Any] | None
    #: Body bytes received.
    received: int
    #: Why it is not complete, in words; empty when it is.
    error: str = ""

    def header(self, name: str) -> str | None:
        """Return the first header of that name."""
        return next((value for key, value in self.headers if key == name.lower()), None)


OnPart = Callable[[int, ReceivedPart], None]


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """TLS client: our pair if any, the SNI wanted, the server's chain checked against `roots`."""

    def __init__(self, order: Order) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        if order.certificate is not None:
            context.use_certificate_chain_file(str(order.certificate.certificate))
            context.use_privatekey_file(str(order.certificate.key))
        if order.roots is not None:
            context.load_verify_locations(str(order.roots))
            context.set_verify(SSL.VERIFY_PEER, None)
        self._context, self._sni = context, order.sni

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Make the connection object Twisted drives."""
        connection = SSL.Connection(self._context, None)
        if self._sni is not None:
            connection.set_tlsext_host_name(self._sni.encode("ascii"))
        return connection


@implementer(IHandshakeListener)
class _Exchange(protocol.Protocol):
    """Sends the request once the handshake is over and reads the answer."""

    transport: Any

    def __init__(self, reactor: Any, order: Order, started: float, on_part: OnPart | None) -> None:
        self._clock, self._order, self._started, self._on_part = reactor, order, started, on_part
        self.finished: defer.Deferred[FetchResult] = defer.Deferred()
        self._reader = ResponseReader(self._head, self._body)
        self._parts: PartReader | None = None
        self._status: int | None = None
        self._headers: list[tuple[str, str]] = []
        self._received = 0
        self._read_since = started
        self._problem = bytearray()
        self._list: list[ReceivedPart] = []
        self._first: float | None = None
        self._error = ""
        self._reported = False
        self._current: PartHead | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._hash: Any = None
        self._resume: Any = None
        self._deadline = reactor.callLater(order.timeout, self._fail, "timed out")

    # --- Twisted ---

    def handshakeCompleted(self) -> None:
        """The peer's chain is good; check its name, then ask."""
        order = self._order
        if order.roots is not None and order.sni is not None:
            try:
                verify_hostname(self.transport.getHandle(), order.sni)
            except (VerificationError, ValueError) as problem:
                self._fail(f"server certificate: {type(problem).__name__}")
                return
        self._read_since = self._clock.seconds()
        self.transport.write(order.request())
        if order.disconnect_after == 0:
            # Let the request leave before hanging up.
            self._clock.callLater(0.05, self._fail, "disconnected on purpose")

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of the answer."""
        try:
            self._reader.feed(data)
        except ResponseError as problem:
            self._fail(str(problem))
            return
        if self._reader.done:
            self._end()
        elif self._order.bytes_per_second is not None:
            self._slow_down(self._order.bytes_per_second)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """The connection ended, by whoever."""
        self._reader.closed()
        if not self._error and not self._complete():
            clean = reason.check(error.ConnectionDone)
            self._error = "connection closed" if clean else f"connection lost: {reason.getErrorMessage()}"
        self._end()

    # --- reading ---

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._status, self._headers = status, headers
        value = next((value for name, value in headers if name == "content-type"), "")
        try:
            media = read_media_type(value)
        except MimeError:
            return
        if media.type == "multipart/related":
            boundary = media.parameters.get("boundary", "")
            if re.fullmatch(r"[0-9A-Za-z'()+_,./:=? -]{1,70}", boundary) is None:
                raise ResponseError("multipart answer without legal boundary")
            self._parts = PartReader(boundary, self._part_head, self._part_data, self._part_end)

    def _body(self, view: memoryview) -> None:
        self._received += len(view)
        if self._parts is not None:
            self._parts.feed(view)
        elif len(self._problem) < MAX_PROBLEM:
            self._problem += view[: MAX_PROBLEM - len(self._problem)]
        limit = self._order.disconnect_after
        if limit is not None and self._received >= limit and not self._error:
            self._fail("disconnected on purpose")

    def _part_head(self, head: PartHead) -> None:
        self._current, self._size = head, 0
        if self._order.keep == "sha256":
            self._hash = hashlib.sha256()

    def _part_data(self, view: memoryview) -> None:
        self._size += len(view)
        if self._hash is not None:
            self._hash.update(view)
        elif self._order.keep == "bytes":
            self._pieces.append(bytes(view))

    def _part_end(self) -> None:
        assert self._current is not None
        part = ReceivedPart(
            headers=self._current.headers,
            size=self._size,
            content=b"".join(self._pieces) if self._order.keep == "bytes" else None,
            sha256=None if self._hash is None else self._hash.hexdigest(),
        )
        self._pieces.clear()
        self._hash = None
        if self._first is None:
            self._first = self._clock.seconds() - self._started
        self._list.append(part)
        if self._on_part is not None:
            self._on_part(len(self._list) - 1, part)

    def _slow_down(self, rate: float) -> None:
        """Stop reading until what came is no more than the rate allows."""
        ahead = self._received / rate - (self._clock.seconds() - self._read_since)
        if ahead > 0.01 and self._resume is None:
            self.transport.pauseProducing()
            self._resume = self._clock.callLater(ahead, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self.transport.resumeProducing()

    # --- ending ---

    def _complete(self) -> bool:
        return self._reader.done and (self._parts is None or self._parts.complete)

    def _fail(self, why: str) -> None:
        if not self._error:
            self._error = why
        self._end()

    def _end(self) -> None:
        """Report once, and leave no connection or timer behind."""
        for call in (self._deadline, self._resume):
            if call is not None and call.active():
                call.cancel()
        if self.transport is not None and self.transport.connected:
            if self._complete() and not self._error:
                self.transport.loseConnection()
            else:
                self.transport.abortConnection()
        if self._reported:
            return
        self._reported = True
        if self._reader.done and not self._complete() and not self._error:
            self._error = "closing boundary missing"
        self.finished.callback(self._result())

    def _result(self) -> FetchResult:
        problem: Any = None
        try:
            problem = json.loads(bytes(self._problem)) if self._problem else None
        except ValueError:
            problem = None
        return FetchResult(
            status=self._status,
            headers=tuple(self._headers),
            parts=tuple(self._list),
            t_first_part=self._first,
            t_total=self._clock.seconds() - self._started,
            complete=self._complete() and not self._error,
            problem=problem if isinstance(problem, dict) else None,
            received=self._received,
            error=self._error,
        )


async def fetch(reactor: Any, order: Order, on_part: OnPart | None = None) -> FetchResult:
    """Carry out one request and return what happened, on_part called as each part ends.

    Never raises for what the server does: refused connection, failed handshake or truncation are in the
    result.
    """

    started = reactor.seconds()
    exchange = _Exchange(reactor, order, started, on_part)
    finished = exchange.finished
    endpoint = wrapClientTLS(
        _Creator(order), TCP4ClientEndpoint(reactor, order.host, order.port, timeout=int(order.timeout) + 1)
    )
    connected: Awaitable[object] = connectProtocol(endpoint, exchange)
    try:
        await connected
    except error.ConnectError as problem:
        exchange._fail(f"no connection: {type(problem).__name__}")
    return await finished


async def fetch_series(
    reactor: Any,
    *,
    host: str,
    port: int,
    sni: str,
    study: str,
    series: str,
    instance: str | None = None,
    prefix: str = "/dicom-web-rs",
    on_part: OnPart | None = None,
    **options: Any,
) -> FetchResult:
    """Ask for a series (or one instance); `options` are the other fields of `Order`."""
    path = f"{prefix}/studies/{study}/series/{series}"
    if instance is not None:
        path += f"/instances/{instance}"
    return await fetch(reactor, Order(host=host, port=port, sni=sni, path=path, **options), on_part)
