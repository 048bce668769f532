"""Stands before a door that configured front ends pass connections on to (PROXY protocol).

Who the client is counts for everything that follows: limits, logs, audit trail, allowed addresses. So a
connection from a front end must begin with its client's address, in time; then the door itself sees a
connection of that client. From anybody else no header is read: a client that writes one has sent garbage,
and the door treats it as such.

The door's protocol takes the place of ours on the transport once the header is read, so that nothing stands
between it and its socket afterwards (`trust.transport` and the clock of a slow client need the real one).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from drimbox.limits import Refused, Why
from drimbox.networks import Network, within
from drimbox.proxyheader import Header, HeaderReader, HeaderRefused


class _Announced(Protocol):
    """A connection of a front end, until its client is known."""

    def __init__(self, owner: FrontEnds, address: str) -> None:
        self._owner = owner
        self._address = address
        self._reader = HeaderReader()
        self._timer: IDelayedCall | None = None

    @property
    def _socket(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        """Expect the header."""
        self._owner.waiting.add(self)
        self._timer = self._owner.clock.callLater(self._owner.timeout, self.refuse)

    def dataReceived(self, data: bytes) -> None:
        """Read the header, then hand over."""
        if self not in self._owner.waiting:
            return
        try:
            header = self._reader.feed(data)
        except HeaderRefused:
            self.refuse()
        else:
            if header is not None:
                self._done()
                self._hand_over(header)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Nobody was announced."""
        self._done()

    def refuse(self) -> None:
        """Close: there is no header, or none in time."""
        self._done()
        self._owner.told(self._address, Why.FRONT_END)
        self._socket.abortConnection()

    def abort(self) -> None:
        """Close at the gateway's end."""
        self._done()
        self._socket.abortConnection()

    def _done(self) -> None:
        self._owner.waiting.discard(self)
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _hand_over(self, header: Header) -> None:
        transport = self._socket
        client = transport.getPeer()
        if header.client is not None:
            kind = IPv6Address if ":" in header.client[0] else IPv4Address
            client = kind("TCP", *header.client)
        behind = self._owner.door.buildProtocol(client)
        if behind is None:
            transport.abortConnection()
            return
        # Instance attribute over Twisted's method: the peer of this connection is its client from here on.
        transport.getPeer = lambda: client
        transport.protocol = behind
        behind.makeConnection(transport)
        if header.rest and not transport.disconnecting:
            behind.dataReceived(header.rest)


class FrontEnds(Factory):
    """Wraps the factory of a door; `addresses` are the networks of the front ends.

    A header may take `timeout` seconds, and `most` connections may be waiting for theirs. `refused` is told
    of those that bring none, and of those too many.
    """

    noisy = False

    def __init__(
        self,
        door: Factory,
        addresses: Sequence[str],
        *,
        timeout: float,
        most: int,
        clock: IReactorTime,
        refused: Refused,
    ) -> None:
        self.door = door
        self.timeout = timeout
        self.clock = clock
        self.told = refused
        self.waiting: set[_Announced] = set()
        self._networks: list[Network] = [ipaddress.ip_network(each) for each in addresses]
        self._most = most

    def doStart(self) -> None:
        """The door opens."""
        super().doStart()  # type: ignore[no-untyped-call]
        self.door.doStart()

    def doStop(self) -> None:
        """The door closes; nobody is waited for."""
        for each in list(self.waiting):
            each.abort()
        self.door.doStop()
        super().doStop()  # type: ignore[no-untyped-call]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make what awaits the header of a front end; anybody else goes to the door itself."""
        address = str(getattr(addr, "host", ""))
        if not within(address, self._networks):
            return self.door.buildProtocol(addr)
        if len(self.waiting) >= self._most:
            self.told(address, Why.TOTAL)
            return None
        return _Announced(self, address)
