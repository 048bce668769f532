"""A handshake and nothing else: does a server prove to be who it should be?"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

#: Seconds a server has to close too.
_PARTING = 1.0


async def shake_hands(
    tcp: IStreamClientEndpoint, creator: IOpenSSLClientConnectionCreator, clock: IReactorTime
) -> None:
    """Connect, verify the server as `creator` does (`trust.outgoing`), and close.

    Raises what stood in the way (`trust.reach.reason_of` has words for it). It sets no limit of time for
    the handshake: cancelled, it closes.
    """
    hands = _Hands()
    factory: Any = Factory.forProtocol(lambda: hands)
    factory.noisy = False
    await wrapClientTLS(creator, tcp).connect(factory)
    try:
        await hands.shaken
        hands.transport.loseConnection()
        with suppress(DeferredTimeout):
            await hands.ended.addTimeout(_PARTING, clock)
    finally:
        hands.transport.abortConnection()


@implementer(IHandshakeListener)
class _Hands(Protocol):
    transport: Any

    def __init__(self) -> None:
        #: Fires once the server is verified.
        self.shaken: Deferred[None] = Deferred()
        #: Fires when the connection is closed.
        self.ended: Deferred[None] = Deferred()

    def handshakeCompleted(self) -> None:
        """The server is the one it should be."""
        if not self.shaken.called:
            self.shaken.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is not, or it is gone."""
        if not self.shaken.called:
            self.shaken.errback(reason)
        if not self.ended.called:
            self.ended.callback(None)
