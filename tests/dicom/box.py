"""The DICOM side of a gateway for tests: on a real port, or in memory under a clock."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import reactor as _reactor
from twisted.internet import task
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from drimbox.config import DicomSettings, Pacs
from drimbox.dicom.acceptor import AcceptorFactory, InboundAssociation
from drimbox.dicom.aetitles import Pools, Title, TitleState
from drimbox.dicom.dimse import Command, CommandField, Status, encode_command
from drimbox.dicom.moving import Channel
from drimbox.dicom.negotiation import AssociationRequest, ProposedContext, encode_request
from drimbox.dicom.pdu import Buffer, encode_message
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover, Retrieval

reactor: Any = _reactor
HOST = "127.0.0.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
SETTINGS = DicomSettings(artim_timeout=2.0, idle_timeout=5.0, connect_timeout=5.0)
#: A PACS that is given little time, but more than a good one needs on a busy machine.
PACS = Pacs(
    "p1",
    "PACS",
    HOST,
    104,
    ("DRIM1", "DRIM2"),
    query_timeout=4.0,
    first_image_timeout=2.5,
    gap_timeout=2.5,
    move_ceiling=12.0,
    quarantine=0.6,
)


class Box:
    """A gateway's acceptor, pools, links and mover."""

    def __init__(self, pacs: Pacs = PACS, settings: DicomSettings = SETTINGS, clock: Any = None) -> None:
        self.settings = settings
        self.clock = clock or reactor
        self.port: Any = None
        self._build(pacs)

    def _build(self, pacs: Pacs) -> None:
        self.pacs = pacs
        self.pools = Pools([pacs], self.clock)
        self.pool = self.pools.by_pacs[pacs.name]
        self.links = Links(self.settings, self.clock)
        self.mover = Mover(self.links, self.pools, self.clock)
        self.factory = AcceptorFactory(self.settings, self.pools, self.clock)

    def listen(self) -> None:
        """Open the door on a free port."""
        self.port = reactor.listenTCP(0, self.factory, interface=HOST)

    @property
    def number(self) -> int:
        """The port we listen on."""
        number: int = self.port.getHost().port
        return number

    @property
    def destinations(self) -> dict[str, tuple[str, int]]:
        """What the PACS must be told of us."""
        return dict.fromkeys(self.pacs.pool, (HOST, self.number))

    def attach(self, port: int, **changes: Any) -> Pacs:
        """Say where the PACS is, and how it is to be treated; only before anything is leased."""
        pacs = attrs.evolve(self.pacs, port=port, **changes)
        old = self.factory
        self._build(pacs)
        # The door is open already: what comes in meets the new pools.
        old.pools, old.addresses = self.pools, self.factory.addresses
        self.factory = old
        return pacs

    def retrieval(self, receiver: Any) -> Retrieval:
        """Prepare a C-MOVE."""
        return self.mover.retrieval(self.pacs, receiver)

    def states(self) -> list[TitleState]:
        """State of each title, in order."""
        return [title.state for title in self.pool.titles.values()]

    async def all_free(self, seconds: float = 5.0) -> None:
        """Wait until every title is back."""
        await until(lambda: set(self.states()) == {TitleState.FREE}, seconds)

    async def close(self) -> None:
        """Close the door and wait until nothing is left."""
        self.pools.stop()
        self.factory.abort_all()
        if self.port is not None:
            await self.port.stopListening()
        await until(lambda: not self.factory._open, 5)


class Sink:
    """A receiver that keeps what it gets."""

    held_back = False

    def __init__(self, clock: Any = None, due: set[str] | None = None, syntaxes: Any = None) -> None:
        self.clock = clock or reactor
        self.last_activity = 0.0
        self.due = due or set()
        self.syntaxes = syntaxes
        self.status = int(Status.SUCCESS)
        self.whole: list[tuple[Command, bytes]] = []
        self.events: list[str] = []
        self.channels: list[Channel] = []
        self.current: dict[Channel, tuple[Command, bytearray]] = {}
        self.on_store: Callable[[Channel], None] = lambda channel: None

    @property
    def uids(self) -> list[str]:
        """Instances received whole, in order."""
        return [command.affected_instance or "" for command, _ in self.whole]

    @property
    def busy(self) -> bool:
        """Inside an instance."""
        return bool(self.current)

    @property
    def satisfied(self) -> bool:
        """Everything due is here."""
        return not self.current and bool(self.due) and self.due <= set(self.uids)

    def choose(self, context: ProposedContext) -> str | None:
        """Take the first syntax, or the first of those wanted."""
        wanted = self.syntaxes or context.transfer_syntaxes
        return next((each for each in context.transfer_syntaxes if each in wanted), None)

    def second_choice(self, context: ProposedContext) -> str | None:
        """Take nothing that was refused once."""
        return None

    def opened(self, channel: Channel) -> None:
        """Note it."""
        self.channels.append(channel)
        self.events.append("opened")

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """Begin."""
        self.last_activity = self.clock.seconds()
        self.current[channel] = (command, bytearray())
        self.on_store(channel)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Keep, answer."""
        self.last_activity = self.clock.seconds()
        command, data = self.current[channel]
        data += piece
        if last:
            del self.current[channel]
            self.whole.append((command, bytes(data)))
            channel.respond(command, self.status)

    def closed(self, channel: Channel, clean: bool) -> None:
        """Note it."""
        self.current.pop(channel, None)
        self.events.append("clean" if clean else "broken")


# -- the outside ------------------------------------------------------------------------------------


async def pause(seconds: float) -> None:
    """Let real time pass."""
    await task.deferLater(reactor, seconds, lambda: None)


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until something holds; fails when it never does."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, "never happened"
        await pause(0.01)


def apart(work: Any) -> Deferred[Any]:
    """Start a coroutine beside the test."""
    return Deferred.fromCoroutine(work)


def in_thread(work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Run a peer that blocks."""
    done: Deferred[Any] = deferToThread(work, *arguments)
    return done


async def command_line(*command: str) -> tuple[int, str]:
    """Run a peer program; its exit code and all it said."""
    done = await in_thread(lambda: subprocess.run(command, capture_output=True, timeout=30, check=False))
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def asking(
    called: str = "DRIM1",
    calling: str = "PACS",
    contexts: tuple[tuple[int, str, tuple[str, ...]], ...] = ((1, VERIFICATION, (IMPLICIT,)),),
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    proposed = tuple(ProposedContext(*context) for context in contexts)
    return encode_request(AssociationRequest(calling, called, proposed), 16384)


STORING = ((1, CT, (EXPLICIT,)), (3, VERIFICATION, (IMPLICIT,)))


def storing(called: str = "DRIM1", calling: str = "PACS") -> bytes:
    """An A-ASSOCIATE-RQ for CT images, and verification."""
    return asking(called, calling, STORING)


def message(context: int, command: Command, data: bytes | None = None) -> bytes:
    """P-DATA-TF PDUs of one DIMSE message."""
    command.has_dataset = data is not None
    out = encode_message(context, encode_command(command), command=True, max_length=16384)
    if data is not None:
        out += encode_message(context, data, command=False, max_length=16384)
    return b"".join(out)


def store_request(uid: str = "1.2.3", *, number: int = 1, sop_class: str = CT, **more: Any) -> Command:
    """A C-STORE-RQ."""
    return Command(
        CommandField.C_STORE_RQ,
        message_id=number,
        affected_class=sop_class,
        affected_instance=uid,
        priority=0,
        **more,
    )


def echo_request(number: int = 1) -> bytes:
    """A C-ECHO-RQ on context 1."""
    return message(1, Command(CommandField.C_ECHO_RQ, message_id=number, affected_class=VERIFICATION))


def talk(port: int, *pieces: bytes, wait: float = 3.0, half: bool = False) -> bytes:
    """Send each piece after the answer to the one before; return all that came until the end.

    Blocks: for a thread.
    """
    answer = b""
    with socket.create_connection((HOST, port), timeout=wait) as client:
        for index, piece in enumerate(pieces):
            try:
                client.sendall(piece)
                if index < len(pieces) - 1:
                    answer += client.recv(65536)
            except OSError:
                return answer
        if half:
            return answer
        while True:
            try:
                more = client.recv(65536)
            except OSError:
                return answer
            if not more:
                return answer
            answer += more


def pdu_types(data: bytes) -> list[int]:
    """Types of the PDUs in a row of bytes."""
    found = []
    while data:
        kind, length = struct.unpack_from(">BxI", data)
        found.append(kind)
        data = data[6 + length :]
    return found


class Wire(StringTransport):
    """A transport in memory that a socket's options can be set on."""

    def __init__(self, host: str = HOST) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 40000))
        self.aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to set."""

    def abortConnection(self) -> None:
        """Remember it."""
        self.aborted = True
        self.disconnecting = True

    def take(self) -> bytes:
        """What was written since the last look."""
        data: bytes = self.value()
        self.clear()
        return data


def inbound(box: Box, host: str = HOST) -> tuple[InboundAssociation, Wire]:
    """An association in memory."""
    protocol = box.factory.buildProtocol(IPv4Address("TCP", host, 40000))
    assert protocol is not None
    wire = Wire(host)
    protocol.makeConnection(wire)
    return protocol, wire


def memory(**changes: Any) -> Box:
    """A gateway's DICOM side in memory, under a clock."""
    settings = attrs.evolve(SETTINGS, **changes)
    return Box(settings=settings, clock=Clock())


def now_leased(box: Box, receiver: Any) -> Title:
    """Lease without waiting: there is a free title."""
    lease = apart(box.pool.lease(receiver, 0))
    assert lease.called
    title: Title = lease.result
    return title


def lose(protocol: Any) -> None:
    """The peer's side of the connection is gone."""
    protocol.connectionLost(Failure(ConnectionDone()))
