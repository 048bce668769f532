"""A lean HTTP/1.1 client for many small questions to one archive: connections kept, bodies streamed.

Theory of operation. One `Client` knows one origin. A question takes an idle connection or opens one, is
written in one piece, and its answer is read by `wado.answer`, which knows for certain where it ends. A
body is an asynchronous iterator that holds about `_HIGH` bytes at most: beyond that the connection is not
read, so that whoever takes the blocks slowly slows the archive. When the answer has ended as announced the
connection is idle again; in every other case it is cut.

A server may close an idle connection at the very moment it is used again. A question whose connection was
closed before the first byte of an answer, and which was not the connection's first, is therefore asked once
more on another one. All questions asked here only read, so that asking twice is harmless.

No redirect is followed, no cookie kept, and no time is watched but that of connecting: who asks does that
(`archive`, `pull`) and cancels.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS

from drimbox.native.store import StoreTimeout, StoreUnavailable
from drimbox.wado.answer import AnswerReader, AnswerRefused, Body, End, Head

#: Bytes of a body held before its connection is no longer read, and under which it is read again.
_HIGH, _LOW = 512 * 1024, 128 * 1024
#: Bytes read from the socket at once.
_READ = 256 * 1024
#: Connections kept while nothing is asked.
_IDLE = 32
#: Bytes of the body of a refusal: read so that the connection can be used again.
_REFUSAL = 64 * 1024


@attrs.frozen
class Origin:
    """Where the archive is: an URL taken apart."""

    secure: bool
    host: str
    port: int
    #: Path before every path asked for: `/orthanc`, or empty.
    prefix: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Read `http://127.0.0.1:8042`, `https://pacs.chu.fr/orthanc` (checked by the configuration)."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        return cls(secure, host, parts.port or (443 if secure else 80), parts.path.rstrip("/"))

    @property
    def netloc(self) -> str:
        """Return what the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


class _Dropped(Exception):
    """A kept connection was closed before the first byte of the answer."""


class Reply:
    """One answer on its way; iterate over it for the blocks of its body."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._blocks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._ended = False
        self._failure: Exception | None = None
        self._waiting: Deferred[None] | None = None
        self._head: Head | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        assert self._head is not None
        return self._head.status

    async def head(self) -> None:
        """Wait for status line and headers."""
        while self._head is None:
            if self._failure is not None:
                raise self._failure
            await self._more()

    def __aiter__(self) -> Reply:
        """Return itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next block of the body. Raises `StoreUnavailable` when it is cut."""
        while not self._blocks:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            await self._more()
        block = self._blocks.popleft()
        self._held -= len(block)
        if self._paused and self._held <= _LOW and not self._ended:
            self._paused = False
            self._connection.resume()
        return block

    async def body(self, limit: int) -> bytes:
        """Return the whole body. Raises `StoreUnavailable` beyond `limit` bytes."""
        blocks, size = [], 0
        async for block in self:
            size += len(block)
            if size > limit:
                self.close()
                raise StoreUnavailable(f"réponse de plus de {limit} octets")
            blocks.append(block)
        return b"".join(blocks)

    def close(self) -> None:
        """Take no more; an answer that has not ended costs its connection."""
        if not self._ended:
            self.failed(StoreUnavailable("lecture interrompue"))
            self._connection.cut()

    # -- from the connection -----------------------------------------------------------------------

    def event(self, event: object) -> None:
        """Take what the reader found."""
        match event:
            case Head():
                self._head = event
            case Body(data):
                self._blocks.append(data)
                self._held += len(data)
                if self._held > _HIGH and not self._paused:
                    self._paused = True
                    self._connection.pause()
            case End():
                self._ended = True

    def failed(self, error: Exception) -> None:
        """No more will come."""
        if self._failure is None and not self._ended:
            self._failure = error
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    @property
    def begun(self) -> bool:
        """True once any of it has come."""
        return self._head is not None

    @property
    def keeps(self) -> bool:
        """True when the connection may be used again."""
        words = (self._head.get("connection") or "").lower() if self._head is not None else "close"
        return "close" not in words

    async def _more(self) -> None:
        self._waiting = Deferred(self._cancelled)
        await self._waiting

    def _cancelled(self, waiting: Deferred[None]) -> None:
        """Nobody waits any more: the rest of the answer is of no use."""
        self._waiting = None
        self.close()


class _Connection(Protocol):
    """One connection, one question at a time."""

    transport: Any

    def __init__(self, free: Callable[[_Connection], None], gone: Callable[[_Connection], None]) -> None:
        self._free = free
        self._gone = gone
        self._reader = AnswerReader()
        self._reply: Reply | None = None
        self._bytes = 0
        #: Questions asked on it.
        self.asked = 0
        self.open = False

    def connectionMade(self) -> None:
        """Send at once, read much."""
        self.open = True
        self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = _READ

    def ask(self, request: bytes) -> Reply:
        """Send a question."""
        self.asked += 1
        self._reader = AnswerReader()
        self._bytes = 0
        reply = self._reply = Reply(self)
        self.transport.write(request)
        return reply

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of the answer."""
        reply = self._reply
        if reply is None:
            # An archive that speaks without being asked.
            self.cut()
            return
        self._bytes += len(data)
        try:
            events = self._reader.feed(data)
        except AnswerRefused as refused:
            reply.failed(StoreUnavailable(f"réponse illisible : {refused}"))
            self.cut()
            return
        for event in events:
            reply.event(event)
        if self._reader.done:
            self._end(reply)
        reply.wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over, by whoever."""
        self.open = False
        self._gone(self)
        reply, self._reply = self._reply, None
        if reply is None:
            return
        try:
            for event in self._reader.finish():
                reply.event(event)
        except AnswerRefused:
            if self.asked > 1 and not self._bytes:
                reply.failed(_Dropped())
            else:
                words = "réponse coupée avant sa fin" if self._bytes else "connexion fermée sans réponse"
                reply.failed(StoreUnavailable(words))
        reply.wake()

    def pause(self) -> None:
        """Read no more for now."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self.open:
            self.transport.resumeProducing()

    def cut(self) -> None:
        """Close at once."""
        if self.open:
            self.open = False
            self._gone(self)
            self.transport.abortConnection()

    def _end(self, reply: Reply) -> None:
        """The answer is whole: keep the connection when the server does."""
        self._reply = None
        if reply.keeps and self.open:
            # Paused by this answer's last block, it would not see its own end.
            self.transport.resumeProducing()
            self._free(self)
        else:
            self.cut()


class Client:
    """Asks one archive."""

    def __init__(
        self,
        origin: Origin,
        reactor: Any,
        *,
        connect_timeout: float,
        policy: IPolicyForHTTPS | None = None,
        authorization: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`policy` proves the name of an https archive; `authorization` is asked for each connection."""
        self._origin = origin
        self._reactor = reactor
        self._connect_timeout = connect_timeout
        self._policy = policy
        self._authorization = authorization
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._closed = False

    async def get(self, path: str) -> Reply:
        """Ask for a path; return the answer once its head has come.

        Raises `StoreUnavailable`, `StoreTimeout`.
        """
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: bytes) -> Reply:
        """Send a question that is too long for a path; it must change nothing."""
        return await self._ask("POST", path, body)

    def close(self) -> None:
        """Cut every connection."""
        self._closed = True
        for connection in list(self._all):
            connection.cut()

    # -- own ---------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: bytes | None) -> Reply:
        request = self._request(method, path, body)
        while True:
            connection = self._idle.pop() if self._idle else await self._connect()
            reply = connection.ask(request)
            try:
                await reply.head()
            except _Dropped:
                # Ends: a connection just made is never dropped in this sense.
                continue
            return reply

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        lines = [
            f"{method} {self._origin.prefix}{path} HTTP/1.1",
            f"Host: {self._origin.netloc}",
            "Accept: */*",
        ]
        authorization = self._authorization()
        if authorization is not None:
            lines.append(f"Authorization: {authorization}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")

    async def _connect(self) -> _Connection:
        if self._closed:
            raise StoreUnavailable("arrêt en cours")
        connection = _Connection(self._keep, self._forget)
        origin = self._origin
        endpoint: Any = HostnameEndpoint(
            self._reactor, origin.host, origin.port, timeout=self._connect_timeout
        )
        if origin.secure:
            assert self._policy is not None
            creator: Any = self._policy.creatorForNetloc(origin.host.encode("ascii"), origin.port)
            endpoint = wrapClientTLS(creator, endpoint)
        try:
            await connectProtocol(endpoint, connection)
        except CancelledError:
            raise
        except TimeoutError as error:
            raise StoreTimeout("délai dépassé : connexion à l'archive") from error
        except ConnectionRefusedError as error:
            raise StoreUnavailable("connexion à l'archive refusée") from error
        except (ConnectError, DNSLookupError) as error:
            raise StoreUnavailable("connexion à l'archive impossible") from error
        self._all.add(connection)
        return connection

    def _keep(self, connection: _Connection) -> None:
        if len(self._idle) < _IDLE and not self._closed:
            self._idle.append(connection)
        else:
            connection.cut()

    def _forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


async def drop(reply: Reply) -> None:
    """Read the rest of an answer nobody wants, so that its connection can be used again."""
    try:
        await reply.body(_REFUSAL)
    except StoreUnavailable:
        # Its connection is gone; what it was for does not matter.
        return
