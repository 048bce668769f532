"""The Twisted side of an association: moves bytes between a socket and an `UpperLayer`, keeps time.

Two things here decide the speed of a C-MOVE. A PACS writes one C-STORE, waits for our answer, writes
the next; with Nagle on its side and delayed acknowledgement on ours, every image costs 40 ms. So we set
TCP_NODELAY for our answers, and TCP_QUICKACK again after every read (Linux forgets it) for its images.

Two things decide what a bad peer can cost. A peer that asks and never reads the answers is not read any
further until it does (`_Choke`), so that they do not pile up here. And a connection that ought to close is
cut when the peer has not let it close within the ARTIM time, whatever state the association was in.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet import protocol
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox.dicom.association import Event, UpperLayer
from drimbox.dicom.states import State

#: Absent outside Linux; the images then flow at the PACS's own pace.
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
#: Bytes asked of the socket at once: a compressed image in one or two reads.
_READ_SIZE = 256 * 1024


@implementer(IPushProducer)
class _Choke:
    """Stops reading from a peer while it does not read what we wrote (the transport calls it)."""

    def __init__(self, association: AssociationProtocol) -> None:
        self._association = association

    def pauseProducing(self) -> None:
        """The write buffer is full."""
        self._association.choke(True)

    def resumeProducing(self) -> None:
        """The write buffer is empty again."""
        self._association.choke(False)

    def stopProducing(self) -> None:
        """The connection is over."""


class AssociationProtocol(protocol.Protocol):
    """Carries one association. Subclasses say what its events mean in `handle` and `gone`."""

    log = Logger()

    def __init__(self, layer: UpperLayer, clock: IReactorTime, *, artim: float, idle: float) -> None:
        self.layer = layer
        self.clock = clock
        self._artim_seconds = artim
        self._idle_seconds = idle
        self._artim_call: IDelayedCall | None = None
        self._idle_call: IDelayedCall | None = None
        self._last_read = 0.0
        self._paused = False
        self._choked = False
        self._socket: Any = None
        self._closing = False
        self._lost = False
        #: State of the association when the timer started: another one starts it anew.
        self._artim_state: State | None = None

    # -- to be said by subclasses ------------------------------------------------------------------

    def started(self) -> None:
        """The connection is open."""
        raise NotImplementedError

    def handle(self, event: Event) -> None:
        """Something happened on the association."""
        raise NotImplementedError

    def gone(self) -> None:
        """The connection is over; called once, last."""
        raise NotImplementedError

    # -- Twisted -----------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Prepare the socket and start the association."""
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        transport.bufferSize = _READ_SIZE
        handle = getattr(transport, "getHandle", None)
        self._socket = handle() if handle is not None else None
        self._quick()
        transport.registerProducer(_Choke(self), True)
        self._last_read = self.clock.seconds()
        self._idle_call = self.clock.callLater(self._idle_seconds, self._check_idle)
        self.started()
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        """Feed the association; what its handler raises is a bug of ours, and ends it."""
        self._last_read = self.clock.seconds()
        try:
            for event in self.layer.receive(data):
                self.handle(event)
        except Exception:
            self.log.failure("association handler failed", failure=Failure())
            self.layer.abort(provider=True)
        self.flush()
        self._quick()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Tell the association that its connection is gone."""
        self._lost = True
        for call in (self._artim_call, self._idle_call):
            if call is not None and call.active():
                call.cancel()
        try:
            for event in self.layer.transport_closed():
                self.handle(event)
        finally:
            # Whatever happens, whoever counts on the end of this association hears of it.
            self.gone()

    # -- for subclasses ----------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """True when the connection is gone."""
        return self._lost

    def flush(self) -> None:
        """Send what the association has to say, and follow its wishes about timer and connection."""
        outgoing = self.layer.take_outgoing()
        if self._lost or self.transport is None:
            return
        if outgoing:
            self._send(b"".join(outgoing))
        closing = self.layer.close_wanted
        if self.layer.artim or closing:
            if self._artim_call is None or self._artim_state is not self.layer.state:
                self._restart_artim()
        elif self._artim_call is not None:
            self._stop_artim()
        if closing and not self._closing:
            self._closing = True
            self.resume()
            transport: Any = self.transport
            transport.unregisterProducer()
            transport.loseConnection()

    def abort(self) -> None:
        """End the association at once, telling the peer."""
        self.layer.abort()
        self.flush()

    def pause(self) -> None:
        """Stop reading: TCP then slows the peer down."""
        if not self._paused and not self._closing:
            self._paused = True
            self._read_or_not()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self._last_read = self.clock.seconds()
            self._read_or_not()

    def choke(self, full: bool) -> None:
        """Stop or start reading as the write buffer says; unlike `pause`, this is the peer's fault."""
        self._choked = full
        self._read_or_not()

    @property
    def peer_address(self) -> str:
        """Address of the peer."""
        transport: Any = self.transport
        return str(getattr(transport.getPeer(), "host", ""))

    # -- own ---------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send at once when nothing waits before it, else in its turn.

        Twisted writes at the next turn of the reactor, behind whatever else is ready then. A PACS waits
        for each C-STORE response before it sends the next image: a turn lost is a pause in the flow.
        """
        transport: Any = self.transport
        if self._socket is not None and not (transport.dataBuffer or transport._tempDataBuffer):
            # A full or dead socket is for Twisted's own path to deal with.
            with contextlib.suppress(OSError):
                data = data[self._socket.send(data) :]
        if data:
            transport.write(data)

    def _quick(self) -> None:
        if _QUICKACK is not None and self._socket is not None:
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            except OSError:
                # Not TCP, or gone already: nothing depends on it.
                self._socket = None

    def _read_or_not(self) -> None:
        transport: Any = self.transport
        if self._lost or self._closing:
            return
        if self._paused or self._choked:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    def _restart_artim(self) -> None:
        self._stop_artim()
        self._artim_state = self.layer.state
        self._artim_call = self.clock.callLater(self._artim_seconds, self._artim_expired)

    def _stop_artim(self) -> None:
        call, self._artim_call = self._artim_call, None
        if call is not None and call.active():
            call.cancel()

    def _artim_expired(self) -> None:
        self._artim_call = None
        self.layer.artim_expired()
        transport: Any = self.transport
        transport.abortConnection()

    def _check_idle(self) -> None:
        now = self.clock.seconds()
        quiet = now - self._last_read
        if self._paused or quiet < self._idle_seconds:
            wait = self._idle_seconds if self._paused else self._idle_seconds - quiet
            self._idle_call = self.clock.callLater(max(wait, 0.1), self._check_idle)
            return
        self.log.info("association idle for {quiet:.0f} s, aborted", quiet=quiet)
        self.abort()
