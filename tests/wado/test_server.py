"""The HTTP face without TLS: who is asked what, in which order, and the clock of every phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from drimbox.config import Certificate, Pacs, Site, WadoSettings
from drimbox.errors import DrimboxError, PacsUnavailable, PeerNotTrusted, TooManyRequests
from drimbox.limits import Why
from drimbox.wado.channel import GRACE, WadoFactory
from drimbox.wado.request import ImagesRequest
from drimbox.wado.server import RequestAnswer, WadoResource

PAIR = Certificate(Path("/nowhere"), Path("/nowhere"))
SITE = Site(
    "site1", "db1.349.example", "vi1.349.example", Pacs("P", "PACS", "127.0.0.1", 104, ("DB1",)), PAIR
)
PATH = "/dicom-web-rs/studies/2.25.1/series/2.25.2"


class Wire(StringTransport):
    """A transport that notes how it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.transport: Any = None
        #: What the peer has shown.
        self.certificate: object = None

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class Peer:
    address = "127.0.0.1"
    listed = True


class FakeGate:
    """Trust and deliveries as the test wants them."""

    def __init__(self) -> None:
        self.site: Site | None = SITE
        self.peer: Peer | None = Peer()
        self.open = True
        #: How often somebody was asked about a peer, and when the answer comes, None at once.
        self.verified = 0
        self.answer: Deferred[None] | None = None
        self.served: list[tuple[ImagesRequest, RequestAnswer, Deferred[DrimboxError | None]]] = []
        self.noted: list[DrimboxError] = []

    def site_of(self, transport: Any) -> Site | None:
        return self.site

    def peer_of(self, transport: Any) -> Any:
        return self.peer

    async def verify(self, transport: Any) -> None:
        self.verified += 1
        if self.answer is not None:
            await self.answer

    def enabled(self, site: Site) -> bool:
        return self.open

    async def serve(
        self, site: Site, peer: Any, request: ImagesRequest, answer: RequestAnswer
    ) -> DrimboxError | None:
        end: Deferred[DrimboxError | None] = Deferred()
        self.served.append((request, answer, end))
        return await end

    async def refused(self, site: Any, address: str, study_uid: str, error: DrimboxError) -> None:
        self.noted.append(error)


class Face:
    """A listener with hand-made connections."""

    def __init__(self, **settings: Any) -> None:
        self.gate = FakeGate()
        self.clock = Clock()
        self.settings = WadoSettings(**settings)
        self.resource = WadoResource(self.gate, self.settings, ["db1.349.example", "db2.349.example"])
        self.factory = WadoFactory(self.resource, self.settings, self.clock)

    def connect(self) -> tuple[Any, Wire]:
        channel, wire = self.factory.buildProtocol(None), Wire()
        channel.makeConnection(wire)
        return channel, wire

    def ask(self, *more: str, method: str = "GET", host: str = "db1.349.example") -> tuple[Any, Wire]:
        channel, wire = self.connect()
        channel.dataReceived(request(*more, method=method, host=host))
        return channel, wire


def request(*more: str, method: str = "GET", host: str = "db1.349.example") -> bytes:
    lines = [
        f"{method} {PATH} HTTP/1.1",
        f"Host: {host}",
        "Accept: */*",
        "Authorization: Bearer abc",
        "KOS-SOPInstanceUID: 2.25.3",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(wire: Wire) -> int:
    return int(wire.value().split(b" ")[1])


@pytest.fixture
def face() -> Face:
    return Face()


def test_an_answer_is_chunked_and_ended(face: Face) -> None:
    _, wire = face.ask()
    wanted, answer, end = face.gate.served[0]
    assert (wanted.study_uid, wanted.series_uid, wanted.kos_uid) == ("2.25.1", "2.25.2", "2.25.3")
    answer.start('multipart/related; type="application/dicom"; boundary=b')
    answer.write(b"body")
    answer.finish()
    end.callback(None)
    head, _, body = wire.value().partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Server: DRIMbox" in head
    assert body == b"4\r\nbody\r\n0\r\n\r\n"
    assert not wire.disconnecting


def test_an_aborted_answer_has_no_last_chunk(face: Face) -> None:
    _, wire = face.ask()
    _, answer, end = face.gate.served[0]
    answer.start("multipart/related")
    answer.write(b"body")
    answer.abort()
    answer.write(b"late")
    answer.finish()
    end.callback(None)
    assert wire.aborted
    assert wire.value().endswith(b"4\r\nbody\r\n")


def test_an_error_before_the_first_byte_becomes_a_problem(face: Face) -> None:
    _, wire = face.ask()
    face.gate.served[0][2].callback(TooManyRequests("plein", retry_after=7))
    assert status(wire) == 503
    assert b"Retry-After: 7" in wire.value()
    assert b'"code": "E1003"' in wire.value()


@pytest.mark.parametrize("begun", [False, True])
def test_a_bug_is_e1104_or_a_cut(face: Face, begun: bool) -> None:
    _, wire = face.ask()
    _, answer, end = face.gate.served[0]
    if begun:
        answer.start("multipart/related")
    end.errback(ZeroDivisionError())
    assert wire.aborted is begun
    if not begun:
        assert status(wire) == 500
        assert b"Traceback" not in wire.value()


@pytest.mark.requirement("DB.SO.154", "DB.SO.90")
@pytest.mark.parametrize(
    ("spoil", "expected", "code"),
    [
        (lambda gate: setattr(gate, "peer", None), 403, "E1101"),
        (lambda gate: setattr(gate, "site", None), 403, "E1101"),
        (lambda gate: setattr(gate.peer, "listed", False), 401, "E1102"),
        (lambda gate: setattr(gate, "open", False), 503, "E1104"),
    ],
)
def test_trust_comes_before_everything(face: Face, spoil: Any, expected: int, code: str) -> None:
    spoil(face.gate)
    _, wire = face.ask("Host: other", method="POST")
    assert status(wire) == expected
    assert not face.gate.served
    assert [error.code for error in face.gate.noted] == [code]
    # Nobody else is troubled with whom we do not know.
    assert face.gate.verified == 0


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest.mark.requirement("DB.SO.111")
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_no_request_is_served_before_its_peer_is_known_not_to_be_revoked(face: Face, method: str) -> None:
    face.gate.answer = Deferred()
    _, wire = face.ask(method=method)
    assert face.gate.verified == 1
    assert wire.value() == b""
    assert not face.gate.served
    face.gate.answer.errback(PeerNotTrusted("certificat client révoqué (OCSP)"))
    assert status(wire) == 403
    assert not face.gate.served
    assert [error.code for error in face.gate.noted] == ["E1101"]


def test_another_method_is_405(face: Face) -> None:
    _, wire = face.ask(method="PUT")
    assert status(wire) == 405
    assert b"Allow: GET" in wire.value()


@pytest.mark.requirement("DB.SO.173")
def test_the_host_of_another_site_is_421(face: Face) -> None:
    assert status(face.ask(host="db2.349.example")[1]) == 421


def test_a_client_that_leaves_is_told_on_even_before_anybody_listens(face: Face) -> None:
    channel, _ = face.ask()
    answer = face.gate.served[0][1]
    channel.connectionLost(_lost())
    told: list[str] = []
    answer.listen(
        pause=lambda: told.append("pause"),
        resume=lambda: told.append("resume"),
        lost=lambda: told.append("lost"),
    )
    assert told == ["lost"]
    answer.start("multipart/related")
    answer.write(b"x")
    answer.finish()
    face.gate.served[0][2].callback(PacsUnavailable())


def test_pauses_of_the_connection_reach_the_delivery(face: Face) -> None:
    channel, _ = face.ask()
    answer = face.gate.served[0][1]
    told: list[str] = []
    answer.start("multipart/related")
    channel.pauseProducing()
    answer.listen(
        pause=lambda: told.append("pause"), resume=lambda: told.append("resume"), lost=lambda: None
    )
    channel.resumeProducing()
    assert told == ["pause", "resume"]


def _lost() -> Any:
    from twisted.internet.error import ConnectionLost
    from twisted.python.failure import Failure

    return Failure(ConnectionLost())


# -- clocks ------------------------------------------------------------------------------------------


@pytest.mark.threat("slowloris, stalled reader")
def test_the_handshake_has_its_time(face: Face) -> None:
    _, wire = face.connect()
    face.clock.advance(9.9)
    assert not wire.aborted
    face.clock.advance(0.2)
    assert wire.aborted


@pytest.mark.threat("slowloris, stalled reader")
def test_a_request_has_its_time_from_the_handshake_on(face: Face) -> None:
    channel, wire = face.connect()
    face.clock.advance(9)
    channel.handshakeCompleted()
    for byte in b"GET / HTTP/1":
        face.clock.advance(1.2)
        channel.dataReceived(bytes([byte]))
    assert not wire.aborted
    face.clock.advance(1.0)
    assert wire.aborted


def test_an_answer_may_take_its_time(face: Face) -> None:
    channel, wire = face.ask()
    face.clock.advance(3000)
    assert not wire.aborted
    assert not wire.disconnecting
    face.gate.served[0][2].callback(PacsUnavailable())
    face.clock.advance(59)
    assert not wire.disconnecting
    face.clock.advance(2)
    assert wire.disconnecting
    channel.connectionLost(_lost())
    assert not face.clock.getDelayedCalls()


@pytest.mark.threat("slowloris, stalled reader")
def test_the_second_request_has_its_time_from_its_first_byte(face: Face) -> None:
    channel, wire = face.ask()
    face.gate.served[0][2].callback(PacsUnavailable())
    face.clock.advance(30)
    for _ in range(7):
        channel.dataReceived(b"G")
        face.clock.advance(2)
    assert not wire.aborted
    channel.dataReceived(b"G")
    face.clock.advance(2)
    assert wire.aborted


def test_what_comes_after_a_refusal_is_not_looked_at(face: Face) -> None:
    channel, wire = face.connect()
    channel.dataReceived(b"GET / HTTP/1.1\r\nbroken\r\n\r\n")
    assert status(wire) == 400
    channel.dataReceived(request())
    assert not face.gate.served


# -- how many, and the end ---------------------------------------------------------------------------


def test_connections_over_the_limit_are_closed_at_once() -> None:
    face = Face(max_connections=3, max_deliveries=3)
    channels = [face.connect()[0] for _ in range(3)]
    assert face.factory.buildProtocol(None) is None
    channels[0].connectionLost(_lost())
    assert not face.connect()[1].aborted


def test_a_stop_closes_idle_connections_and_waits_for_answers(face: Face) -> None:
    idle, idle_wire = face.connect()
    busy, busy_wire = face.ask()
    closed = Deferred.fromCoroutine(face.factory.closed())
    noted = Deferred.fromCoroutine(face.resource.drained())
    assert idle_wire.disconnecting
    idle.connectionLost(_lost())
    assert not busy_wire.disconnecting
    face.gate.served[0][2].callback(PacsUnavailable())
    assert noted.called
    assert busy_wire.disconnecting
    assert status(busy_wire) == 502
    assert not closed.called
    busy.connectionLost(_lost())
    assert closed.called
    assert Deferred.fromCoroutine(face.factory.closed()).called


def test_abort_all_cuts(face: Face) -> None:
    _, wire = face.ask()
    face.factory.abort_all()
    assert wire.aborted


# -- who makes room ------------------------------------------------------------------------------------


class Door(Face):
    """The same, with connections that come from addresses and show certificates."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.told: list[tuple[str, Why]] = []
        self.factory = WadoFactory(
            self.resource,
            self.settings,
            self.clock,
            lambda wire: wire.certificate is None,
            refused=lambda address, why: self.told.append((address, why)),
        )

    def knock(self, address: str = "192.0.2.1", *, certificate: bool | None = None) -> Wire | None:
        """Connect; finish the handshake with a certificate or without, or not at all (None)."""
        channel = self.factory.buildProtocol(IPv4Address("TCP", address, 1))
        if channel is None:
            return None
        wire = Wire()
        channel.makeConnection(wire)
        if certificate is not None:
            wire.certificate = object() if certificate else None
            channel.handshakeCompleted()
        self.last = channel
        return wire


@pytest.mark.threat("slowloris, stalled reader")
def test_one_address_does_not_fill_the_door() -> None:
    door = Door(max_connections=5, max_connections_per_address=3, max_deliveries=3)
    assert [door.knock() is not None for _ in range(4)] == [True, True, True, False]
    assert door.told == [("192.0.2.1", Why.ADDRESS)]
    assert door.knock("192.0.2.2") is not None
    door.last.connectionLost(_lost())
    door.last.connectionLost(_lost())
    assert door.knock("192.0.2.2") is not None
    assert door.knock("192.0.2.2") is not None
    assert door.knock("192.0.2.3") is None


@pytest.mark.threat("slowloris, stalled reader")
def test_one_address_does_not_come_faster_than_its_pace() -> None:
    door = Door(connection_rate=2.0, connection_burst=4)
    assert [door.knock() is not None for _ in range(6)] == [True] * 4 + [False] * 2
    door.clock.advance(0.6)
    assert [door.knock() is not None for _ in range(2)] == [True, False]
    assert door.knock("192.0.2.2") is not None
    assert {why for _, why in door.told} == {Why.RATE}


@pytest.mark.threat("slowloris, stalled reader")
def test_a_full_door_takes_the_place_of_the_oldest_without_a_certificate() -> None:
    door = Door(max_connections=4, max_deliveries=3)
    consumer = door.knock("192.0.2.1", certificate=True)
    answering = door.knock("192.0.2.2", certificate=False)
    door.last.dataReceived(request())
    viewer = door.knock("192.0.2.3", certificate=False)
    half_open = door.knock("192.0.2.4")
    # Nobody has been here long enough to have shown what it is.
    assert door.knock("192.0.2.5") is None
    door.clock.advance(GRACE + 0.1)
    assert door.knock("192.0.2.5") is not None
    assert viewer is not None
    assert viewer.aborted
    assert half_open is not None
    assert not half_open.aborted
    assert door.knock("192.0.2.6") is not None
    assert half_open.aborted
    assert door.knock("192.0.2.7") is None
    assert consumer is not None
    assert not consumer.aborted
    assert answering is not None
    assert not answering.aborted
    assert [why for _, why in door.told] == [Why.TOTAL, Why.CROWDED, Why.CROWDED, Why.TOTAL]


@pytest.mark.requirement("DB.SO.47")
def test_a_handshake_that_never_ends_is_told() -> None:
    door = Door()
    wire = door.knock()
    door.clock.advance(door.settings.handshake_timeout + 0.1)
    assert wire is not None
    assert wire.aborted
    assert door.told == [("192.0.2.1", Why.UNFINISHED)]
    door.knock(certificate=True)
    door.clock.advance(door.settings.header_timeout + 0.1)
    assert len(door.told) == 1
