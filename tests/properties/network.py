"""A network in memory under a clock of its own: connections that cut, delay and hold back bytes.

Every connection is two ends. What one writes reaches the other in pieces of random length, after random
delays, in order; an end that does not read keeps the bytes waiting and does not notice that the other
has gone (as with a socket nobody polls). The same seed gives the same run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IReactorPluggableNameResolver, IReactorTCP
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

#: Bytes one delivery hands over at most: a bound for what a pause can overshoot.
LARGEST_READ = 4096
_DELAYS = (0.0, 0.0, 0.0005, 0.002, 0.02)


class End:
    """One end of a connection, as its protocol's transport."""

    def __init__(self, net: Network, host: str) -> None:
        self.net = net
        self.host = host
        self.peer: End
        self.protocol: Any = None
        self.closed = self.disconnecting = False
        self.received = 0
        self._inbox = bytearray()
        self._reading = True
        self._eof: type[Exception] | None = None
        self._due = False
        self._producer: Any = None

    # -- ITransport, as far as an association uses it ------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self.closed and not self.disconnecting and not self.peer.closed:
            self.peer._inbox += data
            self.peer._wake()

    def loseConnection(self) -> None:
        if not self.disconnecting and not self.closed:
            self.disconnecting = True
            self.net.callLater(0, self._over, ConnectionDone, ConnectionDone)

    def abortConnection(self) -> None:
        if not self.closed:
            self.disconnecting = True
            self.net.callLater(0, self._over, ConnectionAborted, ConnectionLost)

    def pauseProducing(self) -> None:
        self._reading = False

    def resumeProducing(self) -> None:
        self._reading = True
        self._wake()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self._producer is None
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to set."""

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.peer.host, 40000)

    # -- own -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if (self._inbox or self._eof) and self._reading and not self._due and not self.closed:
            self._due = True
            self.net.callLater(self.net.random.choice(_DELAYS), self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if self.closed or not self._reading:
            return
        if self._inbox:
            size = self.net.random.randint(1, min(len(self._inbox), LARGEST_READ))
            if self.net.random.random() < 0.6:
                size = min(len(self._inbox), LARGEST_READ)
            data = bytes(self._inbox[:size])
            del self._inbox[:size]
            self.received += size
            self.protocol.dataReceived(data)
        elif self._eof is not None:
            self._end(self._eof)
            return
        self._wake()

    def _over(self, mine: type[Exception], theirs: type[Exception]) -> None:
        """This side has closed: the other finds out when it has read what was sent, or at once."""
        if self.closed:
            return
        if theirs is ConnectionLost and self.net.random.random() < 0.5:
            self.peer._inbox.clear()
        self.peer._eof = theirs
        self._end(mine)
        self.peer._wake()

    def _end(self, reason: type[Exception]) -> None:
        self.closed = True
        self.net.open.discard(self)
        if not self.peer.closed and self.peer._eof is None:
            self.peer._eof = ConnectionDone
            self.peer._wake()
        self.protocol.connectionLost(Failure(reason()))


@implementer(IReactorTCP, IReactorPluggableNameResolver)
class Network(Clock):
    """A reactor in memory: time, names that are addresses, and connections to whoever listens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.nameResolver = self
        #: Who answers at a port: makes the protocol of a connection from that host, None to refuse.
        self.listening: dict[int, Callable[[str], Any]] = {}
        self.open: set[End] = set()

    def connect(self, make: Callable[[], Any], host: str, port: int) -> End | None:
        """Connect a protocol from `host` to whoever listens; its end, or None when refused."""
        there = self.listening[port](host)
        if there is None:
            return None
        near, far = End(self, host), End(self, "127.0.0.1")
        near.peer, far.peer = far, near
        self.open |= {near, far}
        far.protocol = there
        there.makeConnection(far)
        near.protocol = make()
        near.protocol.makeConnection(near)
        return near

    # -- IReactorTCP ---------------------------------------------------------------------------------

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,  # noqa: N803
    ) -> Any:
        connector = _Connector()
        factory.startedConnecting(connector)
        address = IPv4Address("TCP", host, port)

        def attempt() -> None:
            if connector.stopped:
                factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))
                return
            if self.connect(lambda: factory.buildProtocol(address), "127.0.0.1", port) is None:
                factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))

        self.callLater(self.random.choice(_DELAYS), attempt)
        return connector

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        raise NotImplementedError

    # -- IHostnameResolver ---------------------------------------------------------------------------

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0, **more: Any) -> Any:  # noqa: N803
        receiver.resolutionBegan(None)
        receiver.addressResolved(IPv4Address("TCP", name, portNumber))
        receiver.resolutionComplete()

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    # -- time ----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Go on to the next thing due; False when nothing is."""
        calls = self.getDelayedCalls()
        if not calls:
            return False
        # Exactly to its time: a difference, added, may fall short of it for ever.
        self.rightNow = max(self.rightNow, min(call.getTime() for call in calls))
        self.advance(0)
        return True


class _Connector:
    """An attempt to connect that may be given up."""

    stopped = False

    def stopConnecting(self) -> None:
        self.stopped = True

    def disconnect(self) -> None:
        self.stopped = True

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.1", 104)
