"""The MLLP listener: Twisted moves the bytes between `MllpReader` and a receiver (DB.SO.03).

Theory of operation. Each connection handles one message at a time and answers strictly in order
(interfaces.md 1.1). While the receiver works, reading is paused: a peer that pipelines is held back by
TCP, and what is in memory for it is one message, plus what one read brought after it. Answers are written
only while the peer reads them: when the transport's buffer is full no further message is handled.

Over TLS (`[hl7.tls]`) the handshake comes first, with a time of its own, and closing is TLS's: there is no
half-closed connection, so a peer that ends its side is gone, its message stored all the same.

Timers: `idle_timeout` between two messages; `message_timeout` with an answer the peer does not read, or
inside a message of which too little comes; none while the receiver works, which is our own doing. No drip
of bytes winds a clock back.

Callers from addresses of no RIS share a small part of the connections, so that they cannot keep the reports
out; what they send is answered all the same (AE), and told to the administrator.

At shutdown (`drain`) the message being handled is finished and acknowledged. A message that was not
yet given to the receiver is answered `AR` (resend later), and the connection is closed as soon as no
frame is half received.
"""

from __future__ import annotations

import enum
import uuid
from collections import deque
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Protocol

from twisted.internet import interfaces
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.config import Hl7Settings
from drimbox.hl7.ack import acknowledge
from drimbox.hl7.mllp import FrameFault, FrameRefused, MessageReceived, MllpReader, frame
from drimbox.hl7.refusal import INTERNAL_ERROR, UNKNOWN_RIS, Hl7Refused
from drimbox.limits import Doorkeeper, Refused, Why
from drimbox.metrics import HL7_CONNECTIONS, HL7_MESSAGES, HL7_TIMEOUTS

log = Logger()


#: Seconds a peer has to close its side after we closed ours.
LINGER = 5.0
#: Bytes a second: a message that comes more slowly is a drip.
LEAST_RATE = 1024
#: Connections that callers from addresses of no RIS may hold: a part of all, at least one.
_STRANGERS_PART = 4


class _Phase(enum.Enum):
    """What a connection waits for, each with one time in all."""

    HANDSHAKE = "the end of the TLS handshake"
    IDLE = "the next message"
    MESSAGE = "the rest of a message"


class Receiver(Protocol):
    """Who takes the messages."""

    async def receive(self, raw: bytes, peer: str, shown: Collection[str]) -> bytes:
        """Take the message `raw` that came from address `peer` and return its ACK, both unframed.

        `shown` is the names of the certificate the peer was verified by, case folded.
        """


@implementer(interfaces.IPushProducer, interfaces.IHalfCloseableProtocol, interfaces.IHandshakeListener)
class MllpConnection(TwistedProtocol):
    """One connection of a RIS."""

    def __init__(self, factory: MllpFactory, peer: str, *, stranger: bool = False) -> None:
        self.owner = factory
        self.peer = peer
        #: True when it comes from an address of no RIS.
        self.stranger = stranger
        #: Names of the certificate verified in the handshake.
        self._shown: Collection[str] = ()
        #: Fires when the connection is gone.
        self.closed: Deferred[None] = Deferred()
        self._reader = MllpReader(factory.settings.max_message_bytes)
        self._waiting: deque[MessageReceived | FrameRefused] = deque()
        self._timer: interfaces.IDelayedCall | None = None
        #: What the timer is for, as long as it runs.
        self._timed: _Phase | None = None
        #: Bytes received in all, and until the time of the present message began to run.
        self._received = 0
        self._seen = 0
        #: Bytes of whole messages not answered yet, and of all that the factory counts as held here.
        self._whole = 0
        self._weight = 0
        self._serving = False
        self._choked = False
        self._peer_done = False
        self._closing = False
        #: Nothing to negotiate, or done.
        self._shaken = True

    @property
    def _tls(self) -> bool:
        return bool(interfaces.ISSLTransport.providedBy(self.transport))

    @property
    def _socket(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        """Start the idle timer and ask to be told when the peer stops reading."""
        self.owner.connections.add(self)
        HL7_CONNECTIONS.inc()
        self._socket.setTcpNoDelay(True)
        self._socket.setTcpKeepAlive(True)
        self._shaken = not self._tls
        self._socket.registerProducer(self, True)
        self._settle()

    def handshakeCompleted(self) -> None:
        """Expect a message: the peer is who it has to be."""
        self._shaken = True
        self._shown = self.owner.shown(self.transport)
        self._settle()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Forget the connection; a message being handled is finished all the same."""
        # One that only looked whether somebody is there ends in order, and is nothing to be told of.
        failed = reason is not None and reason.check(ConnectionDone, ConnectionLost) is None
        if failed and not (self._shaken or self._closing):
            # What judged the certificate has left its reason on the TLS connection.
            handle = getattr(self.transport, "getHandle", lambda: None)()
            self.owner.refused(self.peer, getattr(handle, "why", Why.HANDSHAKE))
        if self._reader.in_message:
            log.warn("MLLP connection from {peer} lost inside a message", peer=self.peer)
        self._stop_timer()
        self._closing = True
        self._reader = MllpReader(0)
        self._drop()
        self.owner.forget(self)
        HL7_CONNECTIONS.dec()
        self.closed.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Feed the framer and go on."""
        if self._closing:
            return
        self._received += len(data)
        for event in self._reader.feed(data):
            assert isinstance(event, MessageReceived | FrameRefused)
            self._waiting.append(event)
            self._whole += _size(event)
        self._weigh()
        if self._reader.held and self.owner.held > self.owner.most_held:
            # Whole messages are ours to answer; this one its sender still has.
            self.owner.refused(self.peer, Why.MEMORY)
            self._abort()
            return
        self.advance()

    def _weigh(self) -> None:
        """Tell the factory how many bytes of messages are held here now."""
        weight = self._reader.held + self._whole
        self.owner.held += weight - self._weight
        self._weight = weight

    def _drop(self) -> None:
        """Let go of the messages that wait; one being handled is finished all the same."""
        self._whole -= sum(map(_size, self._waiting))
        self._waiting.clear()
        self._weigh()

    def _abort(self) -> None:
        self._closing = True
        self._socket.abortConnection()

    def readConnectionLost(self) -> None:
        """Answer what was received, then close: a peer may close its sending side and await its ACK."""
        self._peer_done = True
        if self._closing:
            self._socket.loseConnection()
        else:
            self.advance()

    def writeConnectionLost(self) -> None:
        """Do nothing: our own half-close, or `connectionLost` follows."""

    def pauseProducing(self) -> None:
        """Handle no further message until the peer has read our answers."""
        self._choked = True
        self._settle()

    def resumeProducing(self) -> None:
        """Go on: the peer reads again."""
        self._choked = False
        self.advance()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    def advance(self) -> None:
        """Handle what waits, if nothing is being handled; at shutdown, close when nothing is left."""
        if not self._waiting:
            self._settle()
        elif not self._serving and not self._closing:
            self._serving = True
            self.owner.watch(Deferred.fromCoroutine(self._serve()))

    async def _serve(self) -> None:
        while self._waiting and not self._choked and not self._closing:
            event = self._waiting.popleft()
            if isinstance(event, FrameRefused):
                self._refuse_frame(event.reason)
            elif self.owner.draining:
                self._turn_away(event.data)
            else:
                self._stop_timer()
                self._socket.pauseProducing()
                answer = await self.owner.take(event.data, self.peer, self._shown)
                if not self._closing:
                    self._socket.write(frame(answer))
            self._whole -= _size(event)
            self._weigh()
        self._serving = False
        self._settle()

    def _settle(self) -> None:
        """Set reading and timer to what the state asks for, between two messages."""
        if self._closing or self._serving:
            return
        ended = self._peer_done or (self.owner.draining and not self._reader.in_message)
        if ended and not self._choked:
            self._hang_up()
            return
        if self._choked:
            self._socket.pauseProducing()
        else:
            self._socket.resumeProducing()
        settings = self.owner.settings
        if not self._shaken:
            seconds = settings.tls.handshake_timeout if settings.tls is not None else LINGER
            self._enter(_Phase.HANDSHAKE, seconds, self._unfinished)
        elif self._choked:
            self._start_timer(settings.message_timeout, self._timed_out)
        elif self._reader.in_message:
            self._enter(_Phase.MESSAGE, settings.message_timeout, self._look)
        else:
            self._enter(_Phase.IDLE, settings.idle_timeout, self._timed_out)

    def _enter(self, phase: _Phase, seconds: float, action: Callable[[], None]) -> None:
        """Let the time of a phase run, unless it does already: no byte winds it back."""
        if self._timed is not phase:
            self._start_timer(seconds, action)
            self._timed = phase
            self._seen = self._received

    def _look(self) -> None:
        """Cut a message of which next to nothing came; give another one more time."""
        came = self._received - self._seen
        self._timed = None
        if came < LEAST_RATE * self.owner.settings.message_timeout:
            self._timed_out()
        else:
            self._settle()

    def _refuse_frame(self, fault: FrameFault) -> None:
        log.warn("MLLP frame from {peer} refused: {fault}", peer=self.peer, fault=fault.name)
        code = "199" if fault is FrameFault.TOO_LARGE else "100"
        self._socket.write(frame(self.owner.answer(b"", Hl7Refused("AE", code, fault.value))))
        self._hang_up()

    def _turn_away(self, raw: bytes) -> None:
        refusal = Hl7Refused("AR", "207", "arrêt en cours, renvoyer le message plus tard", "", "906")
        self._socket.write(frame(self.owner.answer(raw, refusal)))

    def _unfinished(self) -> None:
        self.owner.refused(self.peer, Why.UNFINISHED)
        self._abort()

    def _timed_out(self) -> None:
        log.warn(
            "MLLP connection from {peer} timed out ({where})",
            peer=self.peer,
            where="inside a message" if self._reader.in_message else "idle or not reading",
        )
        HL7_TIMEOUTS.inc()
        self._abort()

    def _hang_up(self) -> None:
        """Close our side, and read on into nothing until the peer closes its own.

        Closing at once with bytes unread would reset the connection and could take the last answer with
        it. A peer that does not close is cut after `LINGER` seconds.
        """
        self._closing = True
        self._drop()
        self._socket.unregisterProducer()
        if self._peer_done:
            self._socket.loseConnection()
        else:
            self._socket.resumeProducing()
            # TLS says so first, and then waits by itself for the peer's end.
            (self._socket.loseConnection if self._tls else self._socket.loseWriteConnection)()
        self._start_timer(LINGER, self._socket.abortConnection)

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.owner.clock.callLater(seconds, action)

    def _stop_timer(self) -> None:
        self._timed = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def _size(event: MessageReceived | FrameRefused) -> int:
    return len(event.data) if isinstance(event, MessageReceived) else 0


class MllpFactory(Factory):
    """Accept MLLP connections for `receiver`, within the limits of `settings`.

    `clock` is the reactor or a `task.Clock`, `now` tells the time of day. `known` says whether an address
    is one of a RIS, `shown` what names the certificate verified on a transport bears. A connection over the
    limits (in all, per address, of strangers) is closed at once, unanswered, and `refused` is told.
    """

    noisy = False

    def __init__(
        self,
        settings: Hl7Settings,
        receiver: Receiver,
        clock: interfaces.IReactorTime,
        now: Callable[[], datetime],
        *,
        known: Callable[[str], bool] = lambda address: True,
        refused: Refused = lambda address, why: None,
        shown: Callable[[Any], Collection[str]] = lambda transport: (),
    ) -> None:
        self.settings = settings
        self.receiver = receiver
        self.clock = clock
        self.now = now
        self.draining = False
        self.connections: set[MllpConnection] = set()
        #: Bytes of messages in memory, of all connections, and how many they may be: one message at least.
        self.held = 0
        self.most_held = max(settings.max_held_bytes, settings.max_message_bytes)
        self._known = known
        self.refused = refused
        self.shown = shown
        self._doorkeeper = Doorkeeper(
            settings.max_connections,
            settings.max_connections_per_address,
            strangers=max(1, settings.max_connections // _STRANGERS_PART),
        )
        self._tasks: set[Deferred[None]] = set()

    def buildProtocol(self, addr: Any) -> Any:
        """Return a protocol for the new connection, or None to close it."""
        peer = str(getattr(addr, "host", ""))
        if self.draining:
            return None
        stranger = not self._known(peer)
        why = self._doorkeeper.admit(peer, stranger=stranger)
        if why is not None:
            self.refused(peer, why)
            return None
        return MllpConnection(self, peer, stranger=stranger)

    def forget(self, connection: MllpConnection) -> None:
        """Give back the place of a closed connection."""
        self.connections.discard(connection)
        self._doorkeeper.leave(connection.peer, stranger=connection.stranger)

    def watch(self, task: Deferred[None]) -> None:
        """Keep a running task until it ends, so that `drain` waits for it and no failure is lost."""
        self._tasks.add(task)
        task.addErrback(lambda failure: log.failure("MLLP connection failed", failure))
        task.addBoth(lambda _: self._tasks.discard(task))

    async def take(self, raw: bytes, peer: str, shown: Collection[str]) -> bytes:
        """Give a message to the receiver and return its answer, `AR` when it breaks."""
        try:
            return await self.receiver.receive(raw, peer, shown)
        except Exception:
            # The receiver answers its own failures; this is a bug, and the message is not stored.
            log.failure("HL7 receiver failed")
            return self.answer(raw, INTERNAL_ERROR)

    def answer(self, raw: bytes, refusal: Hl7Refused) -> bytes:
        """Build, and count, the ACK of a message that never reached the receiver."""
        HL7_MESSAGES.labels(UNKNOWN_RIS, refusal.ack_code).inc()
        return acknowledge(
            raw,
            refusal.ack_code,
            now=self.now(),
            control_id=uuid.uuid4().hex[:20],
            application=self.settings.application,
            facility=self.settings.facility,
            refusals=[refusal],
        )

    async def drain(self, timeout: float = 30.0) -> None:
        """Finish the messages in hand, turn new ones away (`AR`), close every connection.

        Returns when all is done, at the latest after `timeout` seconds: connections still open are then
        cut, their messages unacknowledged.
        """
        self.draining = True
        connections = list(self.connections)
        for connection in connections:
            connection.advance()
        done: Deferred[None] = Deferred()

        def cut() -> None:
            for connection in tuple(self.connections):
                connection.transport.abortConnection()  # type: ignore[union-attr]
            done.callback(None)

        timer = self.clock.callLater(timeout, cut)
        ends = [connection.closed for connection in connections]
        # A task may outlive its connection: the peer left while its message was being stored.
        ends += self._tasks

        def finished(_: object) -> None:
            if timer.active():
                timer.cancel()
                done.callback(None)

        DeferredList(ends).addCallback(finished)
        await done
