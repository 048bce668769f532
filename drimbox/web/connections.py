"""The connections of the admin listener, bounded: how many, how long without a request, how large one.

A connection has `Listener.request_timeout` seconds for each request, however it drips: the first from when
it is opened, TLS included, the others from their first byte. Between two it may idle for `IDLE_TIMEOUT`.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import IAddress, IDelayedCall, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web import http, server

from drimbox.limits import Refused, Why
from drimbox.trust.contexts import is_unfinished, was_garbage

MAX_BODY = 64 * 1024
#: A body is read to its end, and dropped, up to here: past it the connection is cut without an answer.
MAX_DRAINED = 1024 * 1024
MAX_CONNECTIONS = 32
#: Seconds a connection may stay without a byte between two requests.
IDLE_TIMEOUT = 60.0


class AdminRequest(server.Request):
    """A request whose body stops growing at `MAX_BODY`."""

    received = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body while it fits; cut the connection of a body without end."""
        self.received += len(data)
        if self.received <= MAX_BODY:
            super().handleContentChunk(data)
        elif self.received > MAX_DRAINED and self.channel is not None:
            cast(ITCPTransport, self.channel.transport).abortConnection()

    def gotLength(self, length: int | None) -> None:
        """Prepare for a body of which never more than `MAX_BODY` is kept."""
        super().gotLength(None if length is None else min(length, MAX_BODY))


class AdminChannel(http.HTTPChannel):
    """A connection on which every request comes whole within a time that no drip of bytes winds back."""

    site: AdminSite
    transport: Any
    callLater: Any
    _limit_call: IDelayedCall | None = None
    _answering = False
    #: Bytes of the next request have come.
    _begun = False
    _address = ""

    def connectionMade(self) -> None:
        """Expect a request, behind TLS after its handshake."""
        super().connectionMade()
        self._address = str(getattr(self.transport.getPeer(), "host", ""))
        self._limit()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._begun = True
        if self._limit_call is None and not self._answering:
            self._limit()
        super().dataReceived(data)

    def allContentReceived(self) -> None:
        """Answer a request that has come whole."""
        self._unlimit()
        self._answering = True
        super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        """Expect the next one, for as long as a connection may idle."""
        self._answering = self._begun = False
        super().requestDone(request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self._unlimit()
        if was_garbage(self.transport, reason):
            self.site.told(self._address, Why.GARBAGE)
        super().connectionLost(reason)

    def _limit(self) -> None:
        self._limit_call = self.callLater(self.site.request_timeout, self._late)

    def _unlimit(self) -> None:
        call, self._limit_call = self._limit_call, None
        if call is not None and call.active():
            call.cancel()

    def _late(self) -> None:
        self._limit_call = None
        if is_unfinished(self.transport):
            self.site.told(self._address, Why.UNFINISHED)
        elif self._begun:
            self.site.told(self._address, Why.SLOW)
        self.transport.abortConnection()


class AdminSite(server.Site):
    """HTTP/1.1 on the admin listener."""

    #: Not Twisted's own choice, which may speak HTTP/2.
    protocol: Any = AdminChannel
    request_timeout: float
    told: Refused


class Bounded(WrappingFactory):
    """Takes at most `MAX_CONNECTIONS` connections; the next ones are closed at once, and `told`."""

    noisy = False

    def __init__(self, wrapped: server.Site, told: Refused) -> None:
        super().__init__(wrapped)
        self._told = told

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper:
        if len(self.protocols) >= MAX_CONNECTIONS:
            self._told(str(getattr(addr, "host", "")), Why.TOTAL)
            return cast(ProtocolWrapper, None)  # IFactory: None closes the connection
        return super().buildProtocol(addr)
