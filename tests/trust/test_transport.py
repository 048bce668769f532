"""The bulk TLS transport, over real sockets: all bytes, in order, and no farewell from a connection cut."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import protocol, reactor, task, threads
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from drimbox.trust.transport import SOCKET_BUFFER, BulkTLSFactory
from tests.trust.conftest import issue, name

PAIR = issue(name("localhost"), dns=("localhost",))


@implementer(IOpenSSLServerConnectionCreator)
class Creator:
    """Gives connections of one context."""

    def __init__(self, folder: Any, *, whole: bool) -> None:
        pair = PAIR.write(folder, "pair")
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate_file(str(pair.certificate))
        self._context.use_privatekey_file(str(pair.key))
        if whole:
            self._context.clear_mode(0x1)

    def serverConnectionForTLS(self, tls: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class Producer:
    """Notes what the transport asks of it."""

    def __init__(self) -> None:
        self.paused = 0
        self.resumed = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        self.resumed += 1

    def stopProducing(self) -> None:
        pass


class Answering(protocol.Protocol):
    """Does what the test says once the client has asked."""

    act: Callable[[Any], None]

    def dataReceived(self, data: bytes) -> None:
        type(self).act(self.transport)


@contextmanager
def serving(creator: Creator, act: Callable[[Any], None]) -> Iterator[int]:
    kind = type("One", (Answering,), {"act": staticmethod(act)})
    factory = BulkTLSFactory(creator, False, protocol.Factory.forProtocol(kind))
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        port.stopListening()


def client(port: int) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    # A connection that ends without the farewell of TLS is an error to this client.
    return context.wrap_socket(plain, suppress_ragged_eofs=False)


@pytest.mark.parametrize("whole", [True, False], ids=["whole writes", "record by record"])
@pytest_twisted.inlineCallbacks
def test_every_byte_arrives_in_order_however_it_is_written(tmp_path: Any, whole: bool) -> Any:
    draw = random.Random(7)
    pieces = [draw.randbytes(draw.choice((1, 20, 700, 16384, 70_000, 400_000))) for _ in range(250)]
    producer = Producer()

    def act(transport: Any) -> None:
        transport.registerProducer(producer, True)
        for number, piece in enumerate(pieces):
            if number % 3:
                transport.writeSequence([piece[:9], piece[9:]])
            else:
                transport.write(piece)
        transport.unregisterProducer()
        transport.loseConnection()

    def read(port: int) -> bytes:
        received = b""
        with client(port) as connection:
            connection.sendall(b"go")
            threading.Event().wait(0.2)  # the socket fills, the rest waits for the reactor
            while data := connection.recv(65536):
                received += data
        return received

    with serving(Creator(tmp_path, whole=whole), act) as port:
        received = yield threads.deferToThread(read, port)
    assert hashlib.sha256(received).digest() == hashlib.sha256(b"".join(pieces)).digest()
    # Far more was written than the client took: whoever wrote it was told.
    assert sum(map(len, pieces)) > 4 * SOCKET_BUFFER
    assert producer.paused


class Wire(StringTransport):
    """A TCP transport whose socket takes everything, at once."""

    connected = True
    disconnecting = False

    def __init__(self) -> None:
        super().__init__()
        self.dataBuffer = b""
        self._tempDataBuffer: list[bytes] = []
        #: What the socket was given directly, and what was left to the reactor.
        self.sent = b""
        self.socket = self

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        self.sent += data
        return len(data)

    full = False


def connected(folder: Any) -> tuple[Any, Wire]:
    """A server's transport after its handshake, in memory."""
    factory = BulkTLSFactory(
        Creator(folder, whole=True), False, protocol.Factory.forProtocol(protocol.Protocol), task.Clock()
    )
    server, wire = factory.buildProtocol(None), Wire()
    server.makeConnection(wire)
    peer = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    peer.set_connect_state()
    for _ in range(4):
        with contextlib.suppress(SSL.WantReadError):
            peer.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            server.dataReceived(peer.bio_read(65536))
        if wire.sent:
            peer.bio_write(wire.sent)
        wire.sent = b""
    assert not wire.value()
    return server, wire


def test_what_is_written_leaves_at_once_and_waits_behind_what_waits(tmp_path: Any) -> None:
    server, wire = connected(tmp_path)
    server.writeSequence([b"one", b"two"])
    assert wire.sent
    assert not wire.value()
    wire.sent, wire.full = b"", True
    server.writeSequence([b"three"])
    assert not wire.sent
    assert wire.value()
    # The reactor has bytes to send now: nothing may overtake them.
    wire.full, wire._tempDataBuffer = False, [wire.value()]
    server.writeSequence([b"four"])
    assert not wire.sent


def test_a_connection_cut_says_no_farewell(tmp_path: Any) -> None:
    """TLS's own farewell must not leave: an answer that was cut would look ended in order."""
    server, wire = connected(tmp_path)
    server.writeSequence([b"half of it"])
    wire.sent = b""
    server.abortConnection()
    assert not wire.sent
    assert wire.disconnected
