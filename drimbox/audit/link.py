"""Syslog over TLS to an audit repository (RFC 5425): a session is a batch, and its end is its receipt.

Syslog has no acknowledgement. What comes closest is the end of the session: we close first, by the
`close_notify` of TLS, and a repository answers it when it has read everything before it, or just closes.
So a batch counts as delivered when, after our `close_notify`,

* the repository's own came; or, by configuration, its end of file alone (a system that throws away what was
  not read sends a reset in its place),
* and its system has acknowledged every byte by then (`tcp_info`, Linux): it did not close on its own while
  bytes of ours were on their way.

Anything else (reset, alert, silence) leaves the batch undelivered, however much of it may have been read.
A reset counts even behind the `close_notify`: a repository that happens to stop just then says goodbye
without having read, and its system resets the connection because of what was left unread. So we end our
half only, and see how the repository ends its own.

An end of file is no word of TLS: somebody on the way could forge it, and make us skip what was not read;
so it takes `require_close_notify = false`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.config import AtnaSettings
from drimbox.ports import BatchNotDelivered, InThread
from drimbox.trust.certificates import CertificateUnusable
from drimbox.trust.outgoing import client_policy
from drimbox.trust.reach import reason_of

#: Place of `tcpi_bytes_acked` in `struct tcp_info`, and the SYN that it counts as a byte.
_ACKED_AT, _INFO_SIZE, _SYN = 120, 256, 1


class AtnaLink:
    """Delivers batches to one repository, each in a session of its own (`ports.BatchDelivery`)."""

    def __init__(self, settings: AtnaSettings, reactor: Any, in_thread: InThread) -> None:
        self._settings = settings
        self._reactor = reactor
        self._in_thread = in_thread

    async def deliver(self, frames: Sequence[bytes]) -> None:
        """Send frames and have them confirmed. Raises `BatchNotDelivered`."""
        session = _Session(frames)
        work = Deferred.fromCoroutine(self._deliver(session))
        work.addTimeout(self._settings.timeout, self._reactor)
        try:
            await work
        except (BatchNotDelivered, CancelledError):
            raise
        except Exception as error:
            raise BatchNotDelivered(self._reason(error, session), sent=session.begun) from None
        finally:
            session.abort()

    async def _deliver(self, session: _Session) -> None:
        settings = self._settings
        creator = await self._in_thread(self._creator)
        secured = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(lambda: session))
        endpoint = HostnameEndpoint(
            self._reactor, settings.host.encode("ascii"), settings.port, timeout=settings.timeout
        )
        watched: Any = _WatchedFactory(secured)  # type: ignore[no-untyped-call]
        watched.later = partial(self._reactor.callLater, settings.timeout / 2)
        watch: Any = await endpoint.connect(watched)
        await session.ended
        reason = session.reason
        # Twisted calls an end of file without `close_notify` a lost connection.
        silent = watch.ended and reason.check(ConnectionLost)
        if not session.finished or not (silent or reason.check(ConnectionDone)):
            reason.raiseException()
        if silent and settings.require_close_notify:
            raise BatchNotDelivered(f"{settings.host} : connexion fermée sans close_notify", sent=True)
        if watch.acknowledged is False:
            raise BatchNotDelivered(f"{settings.host} : connexion fermée avant la fin", sent=True)

    def _creator(self) -> Any:
        settings = self._settings
        policy = client_policy(settings.roots, settings.client)
        return policy.creatorForNetloc(settings.host.encode("ascii"), settings.port)

    def _reason(self, error: Exception, session: _Session) -> str:
        """Say in French what went wrong."""
        if isinstance(error, CertificateUnusable):
            return str(error)
        host = self._settings.host
        if isinstance(error, DeferredTimeout):
            what = "ne ferme pas la connexion" if session.finished else "ne lit pas dans le délai"
            return f"{host} : {what if session.begun else 'pas de réponse dans le délai'}"
        return f"{host} : {reason_of(error)}"


@implementer(IHandshakeListener, IPushProducer)
class _Session(Protocol):
    """Writes the frames at the repository's pace once the handshake is over, then closes."""

    transport: Any

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = iter(frames)
        self._paused = False
        #: Whether something may have left, and whether everything has with our `close_notify` behind it.
        self.begun = self.finished = False
        #: Fires at the end, which has a reason then.
        self.ended: Deferred[None] = Deferred()
        self.reason: Failure

    def handshakeCompleted(self) -> None:
        """Begin: the repository is the one we trust."""
        self.begun = True
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """Write until told to pause."""
        self._paused = False
        while not self._paused and not self.finished:
            data = next(self._frames, None)
            if data is None:
                self.finished = True
                self.transport.unregisterProducer()
                self.transport.loseConnection()
            else:
                self.transport.write(data)

    def pauseProducing(self) -> None:
        """Wait: the repository reads more slowly than we write."""
        self._paused = True

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._paused = True

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Tell whoever waits."""
        self.reason = reason
        if not self.ended.called:
            self.ended.callback(None)

    def abort(self) -> None:
        """Leave nothing open."""
        if self.transport is not None and not self.ended.called:
            self.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class _Watch(ProtocolWrapper):
    """Sits between TCP and TLS: how did the connection end, and had everything arrived by then?"""

    transport: Any
    factory: _WatchedFactory

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._written = 0
        #: Whether the peer ended the connection in order (no reset).
        self.ended = False
        #: Whether its system has acknowledged all bytes by then; None when ours does not tell.
        self.acknowledged: bool | None = None
        self._grace: IDelayedCall | None = None
        self._gone = False

    def write(self, data: bytes) -> None:
        """Pass bytes on, counted."""
        self._written += len(data)
        super().write(data)  # type: ignore[no-untyped-call]

    def writeSequence(self, data: Sequence[bytes]) -> None:
        """Pass bytes on, counted."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """TLS has its `close_notify`, or an error: end our half, see how the repository ends its own."""
        self._look()
        if self._grace is None and not self.ended and not self._gone:
            self._grace = self.factory.later(super().loseConnection)
            self.transport.loseWriteConnection()

    def readConnectionLost(self) -> None:
        """End of file: the repository closed, without `close_notify`."""
        self.ended = True
        self._look()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell TLS, which has nothing to close any more."""
        self._gone = True
        if self._grace is not None and self._grace.active():
            self._grace.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _look(self) -> None:
        if self.acknowledged is not None:
            return
        try:
            info = self.transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
            (acked,) = struct.unpack_from("=Q", info, _ACKED_AT)
        except (OSError, AttributeError, struct.error):
            return
        self.acknowledged = acked >= self._written + _SYN


class _WatchedFactory(WrappingFactory[_Watch]):
    protocol = _Watch
    noisy = False
    #: Calls once a repository that has said goodbye has left its half of the connection open for too long.
    later: Callable[[Callable[[], None]], IDelayedCall]
