"""The null receiver: what a C-MOVE costs when the receiving side costs nothing.

Theory of operation. A Storage SCP reduced to what a PACS insists on: it accepts every presentation
context, reads, answers success at the end of each data set and keeps nothing. It shares no code with
the gateway's acceptor, which it is there to be compared with, and it has the same socket options:
`TCP_NODELAY`, `TCP_QUICKACK` set again after every read (it is not sticky), 128 KiB PDUs. The time of
a C-MOVE into it is the "bare move" that the pipeline ratio divides by.

Pixel bytes are counted and skipped, never copied; only the command set of each message is read
(PS3.7 6.3.1: Implicit VR Little Endian). It trusts its peer: bench only.
"""

from __future__ import annotations

import socket
import struct
import time

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from bench.reception import Reception

MAXIMUM_PDU = 128 * 1024
JPEG_LS_LOSSLESS = b"1.2.840.10008.1.2.4.80"
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_UID = b"2.25.201318911338170843905862143316137436337"
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class NullReceiver(Protocol):
    """One association: reads, answers success, keeps nothing."""

    def __init__(self, reception: Reception, preferred: bytes = JPEG_LS_LOSSLESS) -> None:
        self._reception = reception
        self._preferred = preferred
        self._buffer = bytearray()
        self._skip = 0  # pixel bytes of the current fragment still to come
        self._pdu_left = 0  # bytes of the current P-DATA PDU not yet taken
        self._last = False  # the current data fragment ends its data set
        self._command = bytearray()
        self._reply = b""
        self._context = 0

    def connectionMade(self) -> None:
        """Take the socket options of the pipeline."""
        self._socket: socket.socket = self.transport.getHandle()  # type: ignore[union-attr]
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
        # Twisted reads 64 KiB at a time unless told otherwise.
        self.transport.bufferSize = 2 * MAXIMUM_PDU  # type: ignore[union-attr]
        self._reception.associations += 1

    def dataReceived(self, data: bytes) -> None:
        """Skip what is pixel, read what is protocol."""
        if _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        self._reception.bytes += len(data)
        if self._skip and not self._buffer:
            if len(data) < self._skip:
                self._skip -= len(data)
                return
            self._buffer += memoryview(data)[self._skip :]
            self._skip = 0
            self._fragment_done()
        else:
            self._buffer += data
        while self._step():
            pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the association."""
        self._buffer.clear()

    def _step(self) -> bool:
        """Take one thing off the buffer; False when more bytes are needed."""
        buffer = self._buffer
        if self._skip:
            taken = min(self._skip, len(buffer))
            del buffer[:taken]
            self._skip -= taken
            if self._skip:
                return False
            self._fragment_done()
            return bool(buffer)
        if self._pdu_left:
            return self._step_fragment()
        if len(buffer) < 6:
            return False
        kind, length = struct.unpack_from(">BxI", buffer)
        if kind == 0x04:
            del buffer[:6]
            self._pdu_left = length
            return True
        if len(buffer) < 6 + length:
            return False
        body = bytes(buffer[6 : 6 + length])
        del buffer[: 6 + length]
        if kind == 0x01:
            self._write(accept(body, self._preferred))
        elif kind == 0x05:
            self._write(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            self.transport.loseConnection()  # type: ignore[union-attr]
        else:
            self.transport.loseConnection()  # type: ignore[union-attr]
        return True

    def _step_fragment(self) -> bool:
        """Read one presentation data value header, and the command set when it is one (PS3.8 E.2)."""
        buffer = self._buffer
        if len(buffer) < 6:
            return False
        length, context, control = struct.unpack_from(">IBB", buffer)
        if control & 1:
            if len(buffer) < 4 + length:
                return False
            self._command += buffer[6 : 4 + length]
            del buffer[: 4 + length]
            self._pdu_left -= 4 + length
            if control & 2:
                self._context = context
                self._take_command()
            return True
        del buffer[:6]
        self._pdu_left -= 4 + length
        self._skip, self._last = length - 2, bool(control & 2)
        if not self._skip:
            self._fragment_done()
        return True

    def _fragment_done(self) -> None:
        if self._last:
            self._last = False
            self._reception.count(time.monotonic())
            self._write(self._reply)

    def _take_command(self) -> None:
        fields = command_fields(bytes(self._command))
        self._command.clear()
        (request,) = struct.unpack("<H", fields[0x0100])
        reply = {
            0x0002: fields.get(0x0002, b""),
            0x0100: struct.pack("<H", request | 0x8000),
            0x0120: fields[0x0110],
            0x0800: b"\x01\x01",
            0x0900: b"\x00\x00",
        }
        if request == 0x0001:
            reply[0x1000] = fields[0x1000]
            self._reply = command_pdu(self._context, reply)
        else:  # C-ECHO, the only other thing a storage association carries
            self._write(command_pdu(self._context, reply))

    def _write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]


class NullReceiverFactory(Factory):
    """Makes the receivers and holds what they counted together."""

    noisy = False

    def __init__(self, preferred: bytes = JPEG_LS_LOSSLESS) -> None:
        self.reception = Reception()
        self._preferred = preferred

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return a receiver that counts here."""
        return NullReceiver(self.reception, self._preferred)


def accept(request: bytes, preferred: bytes = JPEG_LS_LOSSLESS) -> bytes:
    """Answer an A-ASSOCIATE-RQ body (PS3.8 9.3.2) by an A-ASSOCIATE-AC PDU that accepts every context.

    The transfer syntax preferred is taken wherever it is proposed, else the first one.
    """
    answer = item(0x10, _APPLICATION_CONTEXT)
    for kind, value in items(request[68:]):
        if kind == 0x20:
            syntaxes = [name for inner, name in items(value[4:]) if inner == 0x40]
            chosen = preferred if preferred in syntaxes else syntaxes[0]
            answer += item(0x21, bytes((value[0], 0, 0, 0)) + item(0x40, chosen))
    user = item(0x51, struct.pack(">I", MAXIMUM_PDU)) + item(0x52, _IMPLEMENTATION_UID)
    body = request[:68] + answer + item(0x50, user)
    return struct.pack(">BxI", 0x02, len(body)) + body


def command_fields(command: bytes) -> dict[int, bytes]:
    """Cut a command set into its values, by element number of group 0000."""
    fields, offset = {}, 0
    while offset + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHI", command, offset)
        fields[element] = command[offset + 8 : offset + 8 + length]
        offset += 8 + length
    return fields


def command_pdu(context: int, fields: dict[int, bytes]) -> bytes:
    """Write a command set as one P-DATA-TF PDU of one fragment."""
    command = b"".join(struct.pack("<HHI", 0, key, len(value)) + value for key, value in fields.items())
    command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
    return struct.pack(">BxIIBB", 0x04, len(command) + 6, len(command) + 2, context, 3) + command


def items(data: bytes) -> list[tuple[int, bytes]]:
    """Cut the items of an association PDU (PS3.8 9.3.2) into type and value."""
    found, offset = [], 0
    while offset + 4 <= len(data):
        kind, length = struct.unpack_from(">BxH", data, offset)
        found.append((kind, data[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    return found


def item(kind: int, value: bytes) -> bytes:
    """Encode one item of an association PDU."""
    return struct.pack(">BxH", kind, len(value)) + value
