"""A relay between the gateway and a server, that cuts the connection in the middle of a request."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from drimbox.sim.stand import LOOPBACK


class CuttingRelay(Factory):
    """Passes bytes on, both ways. `cuts` says what becomes of the next connections."""

    noisy = False

    def __init__(self, port: int) -> None:
        self.port = port
        #: Port of the server; known when it listens.
        self.target = 0
        #: One each: cut it once so many bytes of the client have been passed on; None, or no more: never.
        self.cuts: list[int | None] = []
        #: Connections cut so far.
        self.cut = 0
        net: Any = reactor
        self._listener = net.listenTCP(port, self, interface=LOOPBACK)

    def buildProtocol(self, addr: Any) -> Protocol:
        """Return the client's side of a new connection."""
        return _Inner(self, self.cuts.pop(0) if self.cuts else None)

    def stop(self) -> Any:
        """Listen no more."""
        return self._listener.stopListening()


class _Inner(Protocol):
    transport: Any

    def __init__(self, relay: CuttingRelay, left: int | None) -> None:
        self._relay = relay
        self._left = left
        self._waiting = b""
        self._outer: _Outer | None = None

    def connectionMade(self) -> None:
        endpoint = TCP4ClientEndpoint(reactor, LOOPBACK, self._relay.target, timeout=5)
        connecting = connectProtocol(endpoint, _Outer(self))
        connecting.addCallbacks(self._connected, lambda _: self.transport.abortConnection())

    def _connected(self, outer: _Outer) -> None:
        self._outer = outer
        waiting, self._waiting = self._waiting, b""
        self.dataReceived(waiting)

    def dataReceived(self, data: bytes) -> None:
        if self._outer is None:
            self._waiting += data
            return
        if self._left is None or len(data) < self._left:
            self._left = self._left and self._left - len(data)
            self._outer.transport.write(data)
            return
        self._relay.cut += 1
        self._outer.transport.write(data[: self._left])
        self._outer.transport.loseConnection()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._outer is not None:
            self._outer.transport.loseConnection()


class _Outer(Protocol):
    transport: Any

    def __init__(self, inner: _Inner) -> None:
        self._inner = inner

    def dataReceived(self, data: bytes) -> None:
        self._inner.transport.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._inner.transport.loseConnection()
