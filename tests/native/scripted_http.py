"""An HTTP server on loopback that answers, byte for byte, what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

from drimbox.native.http import Client, Origin

#: Takes the connection and the request (head and body); answers through the connection.
Script = Callable[["Peer", str], None]


class Peer(Protocol):
    """One connection from the client."""

    transport: Any

    def __init__(self, server: Server) -> None:
        self.server = server
        self.number = len(server.peers)
        self.requests = 0
        self._received = b""

    def connectionMade(self) -> None:
        self.server.peers.append(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            if len(rest) < length:
                return
            self._received = rest[length:]
            self.requests += 1
            request = (head + b"\r\n\r\n" + rest[:length]).decode()
            self.server.requests.append(request)
            self.server.script(self, request)

    def connectionLost(self, reason: Any = None) -> None:
        self.server.lost += 1

    def answer(self, body: bytes, status: str = "200 OK", *headers: str) -> None:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        self.raw("\r\n".join([*head, "", ""]).encode() + body)

    def raw(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        self.transport.loseConnection()


class Server(Factory):
    """Counts connections and requests."""

    noisy = False

    def __init__(self, script: Script) -> None:
        self.script = script
        self.peers: list[Peer] = []
        self.requests: list[str] = []
        self.lost = 0

    def buildProtocol(self, addr: Any) -> Peer:
        return Peer(self)


@contextmanager
def talking(script: Script, **options: Any) -> Iterator[tuple[Server, Client]]:
    """Give a server and a client of it."""
    server = Server(script)
    listening: Any = reactor
    port = listening.listenTCP(0, server, interface="127.0.0.1")
    path = options.pop("path", "")
    origin = Origin.of(f"http://127.0.0.1:{port.getHost().port}{path}")
    client = Client(origin, reactor, connect_timeout=5, **options)
    try:
        yield server, client
    finally:
        client.close()
        port.stopListening()
        for peer in server.peers:
            peer.transport.abortConnection()
