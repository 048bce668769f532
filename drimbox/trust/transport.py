"""TLS for bulk answers: the same as Twisted's, with fewer and larger steps.

Twisted hands OpenSSL 16 KiB, reads the record back, leaves it to the reactor to write to the socket at its
next turn, and starts again; small writes wait a turn to be joined; and it asks the producer to pause
whenever more than 64 KiB wait. At the speed of a PACS on a local network that costs more than the
encryption. Here OpenSSL makes all records of one write at once, they go to the socket at once, the reactor
is only asked for what the socket does not take, and the socket may hold more before it pauses whoever
feeds it. Nothing of TLS itself is different: contexts, handshake, shutdown and errors are Twisted's.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import termios
from collections.abc import Iterable
from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

#: Bytes that may wait for the socket before the producer is paused. Part of a delivery's memory.
SOCKET_BUFFER = 512 * 1024
#: Plain bytes of one TLS record (RFC 8446 5.1).
_RECORD = 16 * 1024


class BulkTLSTransport(BufferingTLSTransport):
    """A server's side of one connection that mostly sends."""

    def makeConnection(self, transport: Any) -> None:
        """Let the socket below take large pieces."""
        # Instance attributes over Twisted's class-wide ones: this kind of connection only.
        transport.bufferSize = SOCKET_BUFFER
        transport.SEND_LIMIT = SOCKET_BUFFER
        self._socket: Any = getattr(transport, "socket", None)
        super().makeConnection(transport)

    def writeSequence(self, sequence: Iterable[bytes]) -> None:
        """Write without waiting for more: a chunk of an answer is large enough."""
        self._aggregator.flush()
        TLSMemoryBIOProtocol.write(self, b"".join(sequence))

    def _write(self, data: bytes) -> None:
        """Encrypt application bytes, then send every record at once.

        Same contract as the method it replaces: what cannot be encrypted yet (a handshake message is
        awaited) is kept, and an error ends the connection.
        """
        if self._lostTLSConnection:
            return
        connection: Any = self._tlsConnection
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                # All of it in one call, if the context does not ask for one record at a time.
                sent += connection.send(view[sent:])
        except WantReadError:
            self._bufferedWrite(bytes(view[sent:]))
        except Error:
            self._tlsShutdownFinished(Failure())
            return
        # Records are a little longer than what they carry; one read then takes them all.
        self._flushSendBIO(len(view) + len(view) // 64 + 4096)

    def _flushSendBIO(self, most: int = 2 * _RECORD) -> None:
        """Move every record that OpenSSL has made to the socket, `most` bytes at a time."""
        connection: Any = self._tlsConnection
        while True:
            try:
                data = connection.bio_read(most)
            except WantReadError:
                return
            self._send(data)
            if len(data) < most:
                return

    def _send(self, data: bytes) -> None:
        """Send at once when nothing waits before it; leave what the socket does not take to the reactor.

        Its turn costs more than the call, and comes behind whatever else is ready then.
        """
        transport: Any = self.transport
        # What a connection says when it is aborted must not leave: an answer cut would look ended in order.
        at_once = self._socket is not None and transport.connected and not self._aborted
        if at_once and not (transport.dataBuffer or transport._tempDataBuffer):
            # A full or dead socket is for Twisted's own path to deal with.
            with contextlib.suppress(OSError):
                data = data[self._socket.send(data) :]
        if data:
            transport.write(data)


class BulkTLSFactory(TLSMemoryBIOFactory):
    """Adds TLS to the connections of a factory that sends much."""

    protocol = BulkTLSTransport

    def buildProtocol(self, addr: Any) -> Any:
        """Make the protocol of one connection; None closes it, when the factory takes it not."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


def unsent(transport: Any) -> int:
    """Return the bytes that the peer's machine has not acknowledged, as far as can be known."""
    below = getattr(transport, "transport", None)
    if below is None:
        return 0
    left = len(getattr(below, "dataBuffer", b"")) + int(getattr(below, "_tempDataLen", 0))
    count = array.array("i", [0])
    try:
        # SIOCOUTQ: what the kernel still holds for the peer.
        fcntl.ioctl(below.getHandle().fileno(), termios.TIOCOUTQ, count)
    except (OSError, AttributeError, ValueError):
        return left
    return left + count[0]
