"""The MLLP listener: Twisted moves the bytes between `MllpReader` and a receiver (DB.SO.03).

Theory of operation. Each connection handles one message at a time and answers strictly in order
(interfaces.md 1.1). While the receiver works, reading is paused: a peer that pipelines is held back by
TCP, and what is in memory for it is one message, plus what one read brought after it. Answers are written
only while the peer reads them: when the transport's buffer is full no further message is handled.

Timers: `idle_timeout` without a byte between two messages, `message_timeout` without a byte inside one
or with an answer the peer does not read; none while the receiver works, which is our own doing.

At shutdown (`drain`) the message being handled is finished and acknowledged. A message that was not
yet given to the receiver is answered `AR` (resend later), and the connection is closed as soon as no
frame is half received.
"""

from __future__ import annotations

import uuid
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from twisted.internet import interfaces
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.config import Hl7Settings
from drimbox.hl7.ack import acknowledge
from drimbox.hl7.mllp import FrameFault, FrameRefused, MessageReceived, MllpReader, frame
from drimbox.hl7.refusal import INTERNAL_ERROR, UNKNOWN_RIS, Hl7Refused
from drimbox.metrics import HL7_CONNECTIONS, HL7_MESSAGES

log = Logger()


#: Seconds a peer has to close its side after we closed ours.
LINGER = 5.0


class Receiver(Protocol):
    """Who takes the messages."""

    async def receive(self, raw: bytes, peer: str) -> bytes:
        """Take the message `raw` that came from address `peer` and return its ACK, both unframed."""


@implementer(interfaces.IPushProducer, interfaces.IHalfCloseableProtocol)
class MllpConnection(TwistedProtocol):
    """One connection of a RIS."""

    def __init__(self, factory: MllpFactory, peer: str) -> None:
        self.owner = factory
        self.peer = peer
        #: Fires when the connection is gone.
        self.closed: Deferred[None] = Deferred()
        self._reader = MllpReader(factory.settings.max_message_bytes)
        self._waiting: deque[MessageReceived | FrameRefused] = deque()
        self._timer: interfaces.IDelayedCall | None = None
        self._serving = False
        self._choked = False
        self._peer_done = False
        self._closing = False

    @property
    def _socket(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        """Start the idle timer and ask to be told when the peer stops reading."""
        self.owner.connections.add(self)
        HL7_CONNECTIONS.inc()
        self._socket.setTcpNoDelay(True)
        self._socket.setTcpKeepAlive(True)
        self._socket.registerProducer(self, True)
        self._settle()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Forget the connection; a message being handled is finished all the same."""
        if self._reader.in_message:
            log.warn("MLLP connection from {peer} lost inside a message", peer=self.peer)
        self._stop_timer()
        self._closing = True
        self._waiting.clear()
        self.owner.forget(self)
        HL7_CONNECTIONS.dec()
        self.closed.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Feed the framer and go on."""
        if self._closing:
            return
        for event in self._reader.feed(data):
            assert isinstance(event, MessageReceived | FrameRefused)
            self._waiting.append(event)
        self.advance()

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
                answer = await self.owner.take(event.data, self.peer)
                if not self._closing:
                    self._socket.write(frame(answer))
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
        busy = self._choked or self._reader.in_message
        self._start_timer(settings.message_timeout if busy else settings.idle_timeout, self._timed_out)

    def _refuse_frame(self, fault: FrameFault) -> None:
        log.warn("MLLP frame from {peer} refused: {fault}", peer=self.peer, fault=fault.name)
        code = "199" if fault is FrameFault.TOO_LARGE else "100"
        self._socket.write(frame(self.owner.answer(b"", Hl7Refused("AE", code, fault.value))))
        self._hang_up()

    def _turn_away(self, raw: bytes) -> None:
        refusal = Hl7Refused("AR", "207", "arrêt en cours, renvoyer le message plus tard", "", "906")
        self._socket.write(frame(self.owner.answer(raw, refusal)))

    def _timed_out(self) -> None:
        log.warn(
            "MLLP connection from {peer} timed out ({where})",
            peer=self.peer,
            where="inside a message" if self._reader.in_message else "idle or not reading",
        )
        self._closing = True
        self._socket.abortConnection()

    def _hang_up(self) -> None:
        """Close our side, and read on into nothing until the peer closes its own.

        Closing at once with bytes unread would reset the connection and could take the last answer with
        it. A peer that does not close is cut after `LINGER` seconds.
        """
        self._closing = True
        self._waiting.clear()
        self._socket.unregisterProducer()
        if self._peer_done:
            self._socket.loseConnection()
        else:
            self._socket.resumeProducing()
            self._socket.loseWriteConnection()
        self._start_timer(LINGER, self._socket.abortConnection)

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.owner.clock.callLater(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class MllpFactory(Factory):
    """Accept MLLP connections for `receiver`, within the limits of `settings`.

    `clock` is the reactor or a `task.Clock`, `now` tells the time of day. A connection over the limits (in
    all, per address) is closed at once, unanswered.
    """

    noisy = False

    def __init__(
        self,
        settings: Hl7Settings,
        receiver: Receiver,
        clock: interfaces.IReactorTime,
        now: Callable[[], datetime],
    ) -> None:
        self.settings = settings
        self.receiver = receiver
        self.clock = clock
        self.now = now
        self.draining = False
        self.connections: set[MllpConnection] = set()
        self._accepted = 0
        self._by_address: Counter[str] = Counter()
        self._tasks: set[Deferred[None]] = set()

    def buildProtocol(self, addr: Any) -> Any:
        """Return a protocol for the new connection, or None to close it."""
        peer = str(getattr(addr, "host", ""))
        if self.draining:
            return None
        if self._accepted >= self.settings.max_connections:
            log.warn("MLLP connection from {peer} refused: too many in all", peer=peer)
            return None
        if self._by_address[peer] >= self.settings.max_connections_per_address:
            log.warn("MLLP connection from {peer} refused: too many from there", peer=peer)
            return None
        self._accepted += 1
        self._by_address[peer] += 1
        return MllpConnection(self, peer)

    def forget(self, connection: MllpConnection) -> None:
        """Give back the place of a closed connection."""
        self.connections.discard(connection)
        self._accepted -= 1
        self._by_address[connection.peer] -= 1
        if not self._by_address[connection.peer]:
            del self._by_address[connection.peer]

    def watch(self, task: Deferred[None]) -> None:
        """Keep a running task until it ends, so that `drain` waits for it and no failure is lost."""
        self._tasks.add(task)
        task.addErrback(lambda failure: log.failure("MLLP connection failed", failure))
        task.addBoth(lambda _: self._tasks.discard(task))

    async def take(self, raw: bytes, peer: str) -> bytes:
        """Give a message to the receiver and return its answer, `AR` when it breaks."""
        try:
            return await self.receiver.receive(raw, peer)
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
