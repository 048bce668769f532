"""The one who asks for a bare C-MOVE: an association, a C-MOVE request, its responses, nothing else.

Theory of operation. DCMTK's `movescu` reads the responses of the PACS without `TCP_QUICKACK`: at the
beginning and at the end of a move it waits 40 ms each time for an acknowledgement that the other side
delays, and its own start is some 20 ms more. A floor that holds such waits flatters whatever is divided
by it. So the floor has a requestor with the socket options of the pipeline, in the process of the null
receiver, as the gateway's is in its own: what is left is the PACS and the wire. Like the receiver it
shares no code with the gateway, trusts its peer, and belongs on a bench only.
"""

from __future__ import annotations

import socket
import struct
import time

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from bench.null_receiver import MAXIMUM_PDU, command_fields, command_pdu, item, items

_MOVE = b"1.2.840.10008.5.1.4.1.2.2.2"
_IMPLICIT_LE = b"1.2.840.10008.1.2"
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_UID = b"2.25.201318911338170843905862143316137436337"
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_CONTEXT = 1


class MoveEnded(Exception):
    """The move did not end in success."""


class Mover(Protocol):
    """One C-MOVE at SERIES level; `done` fires with the monotonic instant of its final response."""

    def __init__(self, calling: str, called: str, destination: str, study: str, series: str) -> None:
        self.done: Deferred[float] = Deferred()
        self._titles = called.encode("ascii").ljust(16) + calling.encode("ascii").ljust(16)
        self._destination = destination
        self._identifier = (
            _element(0x0008, 0x0052, b"SERIES")
            + _element(0x0020, 0x000D, study.encode("ascii"), b"\0")
            + _element(0x0020, 0x000E, series.encode("ascii"), b"\0")
        )
        self._buffer = bytearray()
        self._command = bytearray()
        self._ended = False

    def connectionMade(self) -> None:
        """Propose Study Root MOVE."""
        self._socket: socket.socket = self.transport.getHandle()  # type: ignore[union-attr]
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
        context = bytes((_CONTEXT, 0, 0, 0)) + item(0x30, _MOVE) + item(0x40, _IMPLICIT_LE)
        user = item(0x51, struct.pack(">I", MAXIMUM_PDU)) + item(0x52, _IMPLEMENTATION_UID)
        body = struct.pack(">HH", 1, 0) + self._titles + bytes(32) + item(0x10, _APPLICATION_CONTEXT)
        self._pdu(0x01, body + item(0x20, context) + item(0x50, user))

    def dataReceived(self, data: bytes) -> None:
        """Take what the PACS says."""
        if _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 6:
            kind, length = struct.unpack_from(">BxI", buffer)
            if len(buffer) < 6 + length:
                return
            body = bytes(buffer[6 : 6 + length])
            del buffer[: 6 + length]
            self._take(kind, body)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell that there will be no response."""
        self._end(MoveEnded("the PACS closed the connection"))

    def refused(self, failure: Failure) -> None:
        """The connection could not be opened."""
        self._end(MoveEnded(failure.getErrorMessage()))

    def _take(self, kind: int, body: bytes) -> None:
        if kind == 0x02:
            self._accepted(body)
        elif kind == 0x04:
            offset = 0
            while offset < len(body):
                length, _, control = struct.unpack_from(">IBB", body, offset)
                if control & 1:
                    self._command += body[offset + 6 : offset + 4 + length]
                    if control & 2:
                        self._response(command_fields(bytes(self._command)))
                        self._command.clear()
                offset += 4 + length
        elif kind == 0x06:
            self.transport.loseConnection()  # type: ignore[union-attr]
        else:
            self._end(MoveEnded(f"PDU of type {kind}"))
            self.transport.loseConnection()  # type: ignore[union-attr]

    def _accepted(self, body: bytes) -> None:
        results = [value[2] for kind, value in items(body[68:]) if kind == 0x21]
        if results != [0]:
            self._end(MoveEnded("the PACS does not accept Study Root MOVE"))
            return
        destination = self._destination.encode("ascii")
        command = {
            0x0002: _even(_MOVE, b"\0"),
            0x0100: struct.pack("<H", 0x0021),
            0x0110: struct.pack("<H", 1),
            0x0600: _even(destination, b" "),
            0x0700: struct.pack("<H", 0),
            0x0800: struct.pack("<H", 1),
        }
        self.transport.write(command_pdu(_CONTEXT, command))  # type: ignore[union-attr]
        identifier = self._identifier
        self._pdu(0x04, struct.pack(">IBB", len(identifier) + 2, _CONTEXT, 2) + identifier)

    def _response(self, fields: dict[int, bytes]) -> None:
        (status,) = struct.unpack("<H", fields[0x0900])
        if status in (0xFF00, 0xFF01):
            return
        if status:
            self._end(MoveEnded(f"the C-MOVE ended with status 0x{status:04X}"))
        else:
            self._end(None)
        self._pdu(0x05, bytes(4))

    def _pdu(self, kind: int, body: bytes) -> None:
        self.transport.write(struct.pack(">BxI", kind, len(body)) + body)  # type: ignore[union-attr]

    def _end(self, problem: MoveEnded | None) -> None:
        if self._ended:
            return
        self._ended = True
        if problem is None:
            self.done.callback(time.monotonic())
        else:
            self.done.errback(Failure(problem))


class OneMover(Factory):
    """Gives the one protocol of a connection."""

    noisy = False

    def __init__(self, mover: Mover) -> None:
        self._mover = mover

    def buildProtocol(self, address: object) -> Mover:
        """Return it."""
        return self._mover


def _even(value: bytes, padding: bytes) -> bytes:
    return value + padding * (len(value) % 2)


def _element(group: int, element: int, value: bytes, padding: bytes = b" ") -> bytes:
    """Encode an element in Implicit VR Little Endian."""
    value = _even(value, padding)
    return struct.pack("<HHI", group, element, len(value)) + value
