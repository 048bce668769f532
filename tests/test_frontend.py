"""Connections of front ends, over real sockets: whose they are, and what is refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import protocol, reactor
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread

from drimbox.frontend import FrontEnds
from drimbox.limits import Why
from tests.integration.waiting import until
from tests.test_proxyheader import v2

LOOP, FRONT, OTHER = "127.0.0.1", "127.0.0.50", "127.0.0.51"
V1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443\r\n"


class Inside(protocol.Protocol):
    """Says whom it was built for and whom it sees, then what it was sent."""

    def __init__(self, built_for: str) -> None:
        self.built_for = built_for

    def connectionMade(self) -> None:
        assert self.transport is not None
        peer: Any = self.transport.getPeer()
        self.transport.write(f"{self.built_for} {peer.host} {peer.port}\n".encode())

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        Door.lost += 1


class Door(protocol.Factory):
    noisy = False
    lost = 0
    closed = False

    def buildProtocol(self, addr: Any) -> Any:
        return None if self.closed else Inside(addr.host)


class Stand:
    def __init__(self, clock: Any = reactor, **options: Any) -> None:
        self.told: list[tuple[str, Why]] = []
        self.door = Door()
        Door.lost = 0
        settings = {"timeout": 5.0, "most": 100, **options}
        self.front: Any = FrontEnds(
            self.door,
            [FRONT, "::1"],
            clock=clock,
            refused=lambda address, why: self.told.append((address, why)),
            **settings,
        )

    def listen(self) -> None:
        self.listening: Any = reactor.listenTCP(0, self.front, interface=LOOP)  # type: ignore[attr-defined]

    def talk(self, source: str, *pieces: bytes, answer: int = 100) -> bytes:
        """Send pieces from an address; return what comes until the end, or until that many lines."""
        door = (LOOP, self.listening.getHost().port)
        received = b""
        with socket.create_connection(door, timeout=10, source_address=(source, 0)) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while received.count(b"\n") < answer:
                    more = connection.recv(4096)
                    if not more:
                        break
                    received += more
            except ConnectionError:
                pass
        return received


@pytest.fixture
def stand() -> Iterator[Stand]:
    stand = Stand()
    stand.listen()
    yield stand
    pytest_twisted.blockon(stand.listening.stopListening())


@pytest.mark.parametrize(
    ("header", "client"),
    [(V1, b"192.0.2.7 192.0.2.7 5000\n"), (v2("2001:db8::7"), b"2001:db8::7 2001:db8::7 5000\n")],
)
@pytest_twisted.ensureDeferred
async def test_the_door_sees_the_client_and_every_byte_after_the_header(
    stand: Stand, header: bytes, client: bytes
) -> None:
    for pieces in ((header + b"hello\n",), (header, b"hello\n"), (header[:9], header[9:] + b"hello\n")):
        assert await deferToThread(stand.talk, FRONT, *pieces, answer=2) == client + b"hello\n"
    await until(lambda: Door.lost == 3, what="the ends told")
    assert stand.told == []
    assert not stand.front.waiting


@pytest_twisted.ensureDeferred
async def test_a_front_end_that_speaks_for_itself_is_seen_as_it_is(stand: Stand) -> None:
    received = await deferToThread(stand.talk, FRONT, b"PROXY UNKNOWN\r\n", answer=1)
    assert received.startswith(f"{FRONT} {FRONT} ".encode())


@pytest.mark.threat("a client that hides behind a front end, or pretends to")
@pytest.mark.threat("log and audit injection, flooding")
@pytest_twisted.ensureDeferred
async def test_a_front_end_without_a_header_is_refused(stand: Stand) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"PROXY TCP4 \x1b[2J 1.2.3.4 1 2\r\n", b"x" * 65536):
        assert await deferToThread(stand.talk, FRONT, data) == b""
    assert stand.told == [(FRONT, Why.FRONT_END)] * 3
    assert not stand.front.waiting


@pytest.mark.threat("a client that hides behind a front end, or pretends to")
@pytest.mark.threat("log and audit injection, flooding")
@pytest_twisted.ensureDeferred
async def test_nobody_else_s_header_is_honoured(stand: Stand) -> None:
    received = await deferToThread(stand.talk, OTHER, V1, answer=2)
    # It is data like any other, of a connection that comes from where it comes from.
    assert received.startswith(f"{OTHER} {OTHER} ".encode())
    assert received.endswith(V1)


@pytest_twisted.ensureDeferred
async def test_a_client_that_the_door_does_not_take_is_closed(stand: Stand) -> None:
    stand.door.closed = True
    assert await deferToThread(stand.talk, FRONT, V1 + b"hello\n") == b""
    assert not stand.front.waiting


class Wire(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


def announced(stand: Stand) -> tuple[Any, Wire]:
    connection, wire = stand.front.buildProtocol(IPv4Address("TCP", FRONT, 1)), Wire()
    connection.makeConnection(wire)
    return connection, wire


@pytest.mark.threat("slowloris, stalled reader")
def test_a_header_that_drips_is_waited_for_once() -> None:
    clock = Clock()
    stand = Stand(clock)
    connection, wire = announced(stand)
    for byte in V1[:4]:
        clock.advance(1.2)
        connection.dataReceived(bytes([byte]))
    assert not wire.aborted
    clock.advance(0.3)
    assert wire.aborted
    assert stand.told == [(FRONT, Why.FRONT_END)]
    connection.dataReceived(V1)
    assert not wire.value()
    assert clock.getDelayedCalls() == []


@pytest.mark.threat("slowloris, stalled reader")
def test_only_so_many_headers_are_waited_for_and_none_at_the_end() -> None:
    clock = Clock()
    stand = Stand(clock, most=2)
    stand.front.doStart()
    wires = [announced(stand)[1] for _ in range(2)]
    assert stand.front.buildProtocol(IPv4Address("TCP", FRONT, 1)) is None
    assert stand.told == [(FRONT, Why.TOTAL)]
    stand.front.doStop()
    assert all(wire.aborted for wire in wires)
    assert clock.getDelayedCalls() == []
    assert not stand.front.waiting
