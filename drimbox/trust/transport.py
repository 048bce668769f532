"""TLS for bulk answers: the same as Twisted's, with fewer and larger steps.

Twisted hands OpenSSL 16 KiB, reads the record back, writes it to the socket, and starts again; and it
asks the producer to pause whenever more than 64 KiB wait. At the speed of a PACS on a local network that
costs more than the encryption. Here all records of one write are made first and leave together, and the
socket may hold more before it pauses whoever feeds it. Nothing of TLS itself is different: contexts,
handshake, shutdown and errors are Twisted's.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
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
        super().makeConnection(transport)

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
                sent += connection.send(view[sent : sent + _RECORD])
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
        transport: Any = self.transport
        while True:
            try:
                data = connection.bio_read(most)
            except WantReadError:
                return
            transport.write(data)
            if len(data) < most:
                return


class BulkTLSFactory(TLSMemoryBIOFactory):
    """Adds TLS to the connections of a factory that sends much."""

    protocol = BulkTLSTransport
