"""An audit repository: syslog over mutual TLS (RFC 5425), strict, and the ways one goes wrong.

Frames, headers (RFC 5424) and messages (DICOM PS3.15 A.5) are read here without any code of the gateway.
"""

from __future__ import annotations

import enum
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
from lxml import etree
from twisted.internet.protocol import Protocol

from drimbox.sim.listening import ServerContext, SessionServer
from drimbox.sim.pki import Pair
from drimbox.xml import Element, safe_parse

#: RFC 5425 4.3.1: what a receiver should be able to take.
MAX_MESSAGE = 65536
_HEADER = re.compile(
    rb"<(\d{1,3})>1 "
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) "
    rb"([\x21-\x7e]{1,255}) ([\x21-\x7e]{1,48}) ([\x21-\x7e]{1,128}) ([\x21-\x7e]{1,32}) "
    rb'(-|(?:\[[^ =\]"]{1,32}(?: [^ =\]"]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*\])+)'
    rb"(?: \xef\xbb\xbf(.*))?",
    re.DOTALL,
)


class Repository(enum.Enum):
    """How a repository treats a session."""

    NORMAL = "normal"
    #: Never answers the handshake.
    MUTE = "mute"
    #: Resets the connection in the middle of a message.
    CUT = "cut"
    #: Keeps what it reads, and resets the connection after so many messages.
    RESET_AT_END = "reset at end"
    #: Reads a little, now and then.
    SLOW = "slow"


@attrs.frozen
class Received:
    """One message."""

    frame: bytes
    priority: int
    instant: datetime
    host: str
    application: str
    process: str
    kind: str
    data: str
    message: Element


class SyslogRefused(ValueError):
    """What came is no syslog message that an audit repository takes."""


def read_schema() -> etree.RelaxNG:
    """Return the schema of audit messages."""
    return etree.RelaxNG(safe_parse(Path(__file__).with_name("audit_message.rng").read_bytes()))


def read_message(data: bytes, schema: etree.RelaxNG) -> Received:
    """Read one message. Raises `SyslogRefused`."""
    found = _HEADER.fullmatch(data)
    if found is None or found[8] is None:
        raise SyslogRefused(f"no header of RFC 5424: {data[:200]!r}")
    if int(found[1]) > 191:
        raise SyslogRefused(f"priority {found[1]!r}")
    root = safe_parse(found[8])
    if not schema.validate(root):
        raise SyslogRefused(f"{schema.error_log.last_error}: {data!r}")
    stamp, host, application, process, kind, structured = (
        part.decode("ascii") for part in found.groups()[1:7]
    )
    return Received(
        frame=data,
        priority=int(found[1]),
        instant=datetime.fromisoformat(stamp),
        host=host,
        application=application,
        process=process,
        kind=kind,
        data=structured,
        message=root,
    )


class SyslogServer(SessionServer):
    """One repository, which can be taken down and put up again on its port."""

    def __init__(self, reactor: Any, pair: Pair, client_roots: Path, port: int = 0) -> None:
        super().__init__(reactor, port)
        self.pair = pair
        self._roots = client_roots
        self.behaviour = Repository.NORMAL
        self.schema = read_schema()
        #: Messages taken, in their order, those that came twice too; and what was wrong with others.
        self.messages: list[Received] = []
        self.wrong: list[str] = []
        #: Sessions begun, and bytes after which `CUT` strikes.
        self.sessions = 0
        self.cut_at = 300
        #: Messages of a session after which `RESET_AT_END` strikes.
        self.reset_after = 1

    def up(self) -> None:
        """Listen (again)."""
        mute = self.behaviour is Repository.MUTE
        self.listen(lambda: _Session(self), None if mute else ServerContext(self.pair, self._roots))

    def distinct(self) -> list[bytes]:
        """Return the frames that came, each once, in the order they came first."""
        return list(dict.fromkeys(one.frame for one in self.messages))


class _Session(Protocol):
    transport: Any

    def __init__(self, server: SyslogServer) -> None:
        self._server = server
        self._buffer = b""
        self._count = self._taken = 0

    def connectionMade(self) -> None:
        server = self._server
        server.connections.add(self)
        server.sessions += 1
        if server.behaviour is Repository.MUTE:
            self.transport.pauseProducing()

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        server = self._server
        server.connections.discard(self)
        if self._buffer and server.behaviour is Repository.NORMAL:
            server.wrong.append(f"{len(self._buffer)} bytes of a message that never ended")

    def dataReceived(self, data: bytes) -> None:
        server = self._server
        behaviour = server.behaviour
        self._count += len(data)
        if behaviour is Repository.SLOW:
            self.transport.pauseProducing()
            server._reactor.callLater(0.2, self._on)
        if behaviour is Repository.CUT and self._count > server.cut_at:
            self._read(data[: len(data) - (self._count - server.cut_at)])
            self.transport.abortConnection()
            return
        self._read(data)

    def _on(self) -> None:
        if self in self._server.connections:
            self.transport.resumeProducing()

    def _read(self, data: bytes) -> None:
        server = self._server
        self._buffer += data
        while (found := re.match(rb"([1-9]\d{0,8}) ", self._buffer)) is not None:
            length = int(found[1])
            if length > MAX_MESSAGE:
                self._wrong(f"a message of {length} bytes")
                return
            whole = found.end() + length
            if len(self._buffer) < whole:
                return
            message, self._buffer = self._buffer[found.end() : whole], self._buffer[whole:]
            try:
                server.messages.append(read_message(message, server.schema))
            except ValueError as error:
                self._wrong(str(error))
                return
            self._taken += 1
            if server.behaviour is Repository.RESET_AT_END and self._taken == server.reset_after:
                self.transport.abortConnection()
                return
        if len(self._buffer) >= 10:
            self._wrong(f"no frame: {self._buffer[:40]!r}")

    def _wrong(self, why: str) -> None:
        self._buffer = b""
        self._server.wrong.append(why)
        self.transport.abortConnection()
