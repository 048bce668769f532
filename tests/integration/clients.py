"""Clients that read slowly, stop reading, or leave: over plain sockets, in threads, with small buffers.

The kernel holds megabytes for a client that does not read, so these ask for as small a receive buffer as
it gives: what they do not take, the gateway feels. They leave as programs do (the connection closed in
order), as machines do that crash or are cut off (a reset), or in the middle of the TLS handshake.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from drimbox.sim.consumer_http import PartReader, ResponseError, ResponseReader
from drimbox.sim.mime import read_media_type
from drimbox.sim.stand import LOOPBACK
from tests.integration.hospital import Hospital, data_set

T = TypeVar("T")

#: Bytes of receive buffer asked for; the kernel makes a few times that of it.
SMALL = 8192


class Ended(Exception):
    """The answer ended, in order or not, before what was waited for."""


def tls_context(hospital: Hospital) -> ssl.SSLContext:
    """Return the TLS context of the listed Consumer; costly, so made once a test."""
    context = ssl.create_default_context(cafile=str(hospital.stand.pki.roots))
    pair = hospital.stand.consumer()
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def plain_socket(hospital: Hospital, buffer: int | None = SMALL, timeout: float = 30.0) -> socket.socket:
    """Connect without a byte of TLS."""
    connection = socket.socket()
    connection.settimeout(timeout)
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((LOOPBACK, hospital.stand.wado_port))
    return connection


def leave(connection: socket.socket, *, reset: bool) -> None:
    """Close a connection in order, or as one whose machine is gone."""
    if reset:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def leave_in_handshake(
    hospital: Hospital, context: ssl.SSLContext, how: str, *, site: int = 0, reset: bool = False
) -> None:
    """Begin a TLS handshake and leave: in `silence`, in the `hello`, `after hello`, or in the `answer`.

    "after hello" has the server's half of the handshake come, "answer" sends half of ours: certificate
    and signature cut in the middle.
    """
    connection = plain_socket(hospital)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=hospital.stand.sites[site])
    try:
        if how == "silence":
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        if how == "hello":
            connection.sendall(hello[: len(hello) // 2])
            return
        connection.sendall(hello)
        if how == "after hello":
            connection.recv(1)
            return
        while True:
            incoming.write(connection.recv(65536))
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        answer = outgoing.read()
        connection.sendall(answer[: len(answer) // 2])
    finally:
        leave(connection, reset=reset)


class Client:
    """One request and its answer, read as slowly as asked. For use in one thread; a context manager."""

    def __init__(
        self,
        hospital: Hospital,
        context: ssl.SSLContext,
        *,
        site: int = 0,
        buffer: int | None = SMALL,
        timeout: float = 30.0,
    ) -> None:
        connection = plain_socket(hospital, buffer, timeout)
        self._connection = context.wrap_socket(connection, server_hostname=hospital.stand.sites[site])
        self._reader = ResponseReader(self._head, self._body)
        self._parts: PartReader | None = None
        self._part = bytearray()
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        #: Body bytes received, and SHA-256 of the data set of each whole part, in order.
        self.received = 0
        #: Of these, those that came while it was slow.
        self.early = 0
        self.digests: list[str] = []
        self.sizes: list[int] = []
        #: Why it ended; empty while it has not, and when it ended in order.
        self.error = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def send(self, data: bytes) -> None:
        """Send bytes of a request."""
        self._connection.sendall(data)

    @property
    def complete(self) -> bool:
        """True when the answer came whole, closing boundary included."""
        return self._reader.done and (self._parts is None or self._parts.complete)

    @property
    def unfinished(self) -> int:
        """Bytes of the part whose end has not come, less those that may be a boundary."""
        return len(self._part)

    @property
    def over(self) -> bool:
        """True when nothing more can come."""
        return self.complete or bool(self.error)

    def read(self, most: int = 16384) -> int:
        """Read once; return the bytes of the connection that came, 0 when it is over."""
        if self.over:
            return 0
        try:
            data = self._connection.recv(most)
        except TimeoutError:
            raise
        except OSError as problem:
            self.error = f"connection lost: {problem}"
            return 0
        if not data:
            self._reader.closed()
            if not self.complete:
                self.error = "connection closed"
            return 0
        try:
            self._reader.feed(data)
        except ResponseError as problem:
            self.error = str(problem)
        return len(data)

    def read_until(self, enough: Callable[[], Any]) -> None:
        """Read until `enough`. Raises `Ended` when the answer ends before."""
        while not enough():
            if not self.read():
                raise Ended(self.error or "complete")

    def read_at(self, rate: float, *, seconds: float, size: int = 1024) -> None:
        """Read `rate` bytes a second for `seconds`, or until the answer is over."""
        start, taken = time.monotonic(), 0
        while not self.over and (now := time.monotonic()) < start + seconds:
            due = start + taken / rate
            if due > now:
                time.sleep(min(due - now, start + seconds - now))
                continue
            taken += self.read(size)

    def read_all(self) -> None:
        """Read as fast as possible until the answer is over."""
        while not self.over:
            self.read(262144)

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection, in order or as one whose machine is gone."""
        leave(self._connection, reset=reset)

    # -- own ---------------------------------------------------------------------------------------

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = status, dict(headers)
        value = self.headers.get("content-type", "")
        if value.startswith("multipart/related"):
            boundary = read_media_type(value).parameters["boundary"]
            self._parts = PartReader(boundary, lambda head: None, self._data, self._end)

    def _body(self, view: memoryview) -> None:
        self.received += len(view)
        if self._parts is not None:
            self._parts.feed(view)

    def _data(self, view: memoryview) -> None:
        self._part += view

    def _end(self) -> None:
        self.sizes.append(len(self._part))
        self.digests.append(hashlib.sha256(data_set(bytes(self._part))).hexdigest())
        self._part.clear()


def in_own_thread(work: Callable[[], T]) -> Deferred[T]:
    """Run `work` in a thread of its own: fifty slow clients would fill the reactor's pool for minutes."""
    done: Deferred[T] = Deferred()
    turn: Any = reactor

    def run() -> None:
        try:
            result = work()
        except BaseException:
            turn.callFromThread(done.errback, Failure())
        else:
            turn.callFromThread(done.callback, result)

    threading.Thread(target=run, daemon=True).start()
    return done
