"""A PACS that holds every study and costs next to nothing: what the feed asks, answered from templates.

Theory of operation. The feed of the bench is about thousands of studies that nobody could load into a
real PACS in the time. Whatever StudyInstanceUID is asked for exists: so many series of so many CT
instances, their identifiers made from the study's. As most PACS it grants no relational query, so the
gateway asks at STUDY, SERIES and IMAGE level. C-FIND and C-ECHO only, Implicit VR Little Endian only; it
trusts its peer: bench only.

`python -m bench.finder PORT SERIES INSTANCES` listens on loopback and prints a line when it does.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

from bench.null_receiver import accept, command_fields, command_pdu
from bench.program import Program, answer_lines, say
from drimbox.sim.peers import LOOPBACK, free_port

IMPLICIT_LE = b"1.2.840.10008.1.2"
CT = "1.2.840.10008.5.1.4.1.1.2"
_LEVEL, _STUDY, _SERIES = 0x00080052, 0x0020000D, 0x0020000E
_PENDING, _SUCCESS = b"\x00\xff", b"\x00\x00"
_NO_DATASET, _DATASET = b"\x01\x01", b"\x01\x00"


class Finder(Protocol):
    """One association of the gateway's."""

    def __init__(self, series: int, instances: int) -> None:
        self._counts = (series, instances)
        self._buffer = bytearray()
        self._command = bytearray()
        self._identifier = bytearray()
        self._asked: dict[int, bytes] = {}

    def connectionMade(self) -> None:
        """Let no answer wait for the next."""
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """Answer every PDU that is whole."""
        self._buffer += data
        while len(self._buffer) >= 6:
            kind, length = struct.unpack_from(">BxI", self._buffer)
            if len(self._buffer) < 6 + length:
                return
            body = bytes(self._buffer[6 : 6 + length])
            del self._buffer[: 6 + length]
            self._pdu(kind, body)

    def _pdu(self, kind: int, body: bytes) -> None:
        if kind == 0x01:
            self._write(accept(body, IMPLICIT_LE))
        elif kind == 0x04:
            self._values(body)
        else:
            if kind == 0x05:
                self._write(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            self.transport.loseConnection()  # type: ignore[union-attr]

    def _values(self, body: bytes) -> None:
        """Take the presentation data values of one P-DATA-TF (PS3.8 9.3.5)."""
        offset = 0
        while offset < len(body):
            length, context, control = struct.unpack_from(">IBB", body, offset)
            value = body[offset + 6 : offset + 4 + length]
            offset += 4 + length
            if control & 1:
                self._command += value
                if control & 2:
                    self._asked = command_fields(bytes(self._command))
                    self._command.clear()
                    if self._asked[0x0800] == _NO_DATASET:
                        self._write(self._response(context, _SUCCESS))
            else:
                self._identifier += value
                if control & 2:
                    asked = elements(bytes(self._identifier))
                    self._identifier.clear()
                    self._found(context, asked)

    def _found(self, context: int, asked: dict[int, str]) -> None:
        pending = self._response(context, _PENDING)
        answer = bytearray()
        for match in matches(asked, *self._counts):
            answer += pending + data_pdu(context, match)
        self._write(bytes(answer) + self._response(context, _SUCCESS))

    def _response(self, context: int, status: bytes) -> bytes:
        asked = self._asked
        (field,) = struct.unpack("<H", asked[0x0100])
        fields = {
            0x0002: asked[0x0002],
            0x0100: struct.pack("<H", field | 0x8000),
            0x0120: asked[0x0110],
            0x0800: _DATASET if status == _PENDING else _NO_DATASET,
            0x0900: status,
        }
        return command_pdu(context, fields)

    def _write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]


def matches(asked: dict[int, str], series: int, instances: int) -> Iterator[bytes]:
    """Yield the data set of every match of an identifier, Implicit VR Little Endian."""
    level, study = asked[_LEVEL], asked[_STUDY]
    if level == "STUDY":
        yield dataset(
            {
                0x00080005: "ISO_IR 100",
                0x00080020: "20260110",
                0x00080030: "140000",
                0x00080050: "ACC-7788",
                _LEVEL: level,
                0x00081030: "IRM tete",
                0x00100010: "EXEMPLE^CLAIRE",
                0x00100020: "P000123",
                0x00100030: "19840701",
                _STUDY: study,
            }
        )
    elif level == "SERIES":
        for number in range(1, series + 1):
            yield dataset(
                {
                    _LEVEL: level,
                    0x00080060: "CT",
                    0x0008103E: f"Serie {number}",
                    _STUDY: study,
                    _SERIES: f"{study}.{number}",
                    0x00200011: str(number),
                }
            )
    else:
        above = asked[_SERIES]
        for number in range(1, instances + 1):
            yield dataset(
                {
                    0x00080016: CT,
                    0x00080018: f"{above}.{number}",
                    _LEVEL: level,
                    _STUDY: study,
                    _SERIES: above,
                    0x00200013: str(number),
                }
            )


def dataset(values: dict[int, str]) -> bytes:
    """Write elements, Implicit VR Little Endian, in the order of their tags (PS3.5 7.1.3)."""
    written = bytearray()
    for tag, text in sorted(values.items()):
        value = text.encode("latin-1")
        if len(value) % 2:
            value += b"\0" if tag in (_STUDY, _SERIES, 0x00080016, 0x00080018) else b" "
        written += struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    return bytes(written)


def elements(data: bytes) -> dict[int, str]:
    """Read the elements of a data set that holds no sequence but empty ones."""
    found, offset = {}, 0
    while offset + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, offset)
        found[group << 16 | element] = data[offset + 8 : offset + 8 + length].decode("latin-1").strip("\0 ")
        offset += 8 + length
    return found


def data_pdu(context: int, data: bytes) -> bytes:
    """Write a data set as one P-DATA-TF PDU of one fragment."""
    return struct.pack(">BxIIBB", 0x04, len(data) + 6, len(data) + 2, context, 2) + data


class FinderPacs:
    """The finder as a process: a `bench.move.Archive` for `Gateway`; a context manager."""

    def __init__(self, series: int, instances: int, *, log: Path) -> None:
        self.ae_title = "FINDER"
        self.host = LOOPBACK
        self.port = free_port()
        self._program = Program("bench.finder", str(self.port), str(series), str(instances), log=log)

    def __enter__(self) -> Self:
        self._program.start()
        try:
            self._program.read()
        except BaseException:
            self._program.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.stop()

    @property
    def pid(self) -> int:
        """Process number while it runs."""
        return self._program.pid


class _FinderFactory(Factory):
    noisy = False

    def __init__(self, series: int, instances: int) -> None:
        self._counts = (series, instances)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return Finder(*self._counts)


def main() -> None:
    """Serve until the standard input ends."""
    from twisted.internet import reactor as installed

    reactor = cast(Any, installed)
    port, series, instances = (int(argument) for argument in sys.argv[1:4])
    reactor.listenTCP(port, _FinderFactory(series, instances), interface=LOOPBACK)

    def wait() -> None:
        say(ready=True)
        answer_lines(lambda order: {})
        reactor.callFromThread(reactor.stop)

    threading.Thread(target=wait, daemon=True).start()
    reactor.run()


if __name__ == "__main__":
    main()
