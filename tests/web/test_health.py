"""Polls over one connection: the same one is not read anew, and gets what one that is read would get."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web import resource, server

from drimbox import metrics
from drimbox.config import WadoSettings
from drimbox.source.health import Check, Remembered
from drimbox.wado import repeats
from drimbox.wado.channel import WadoFactory
from drimbox.web import health
from drimbox.web.health import HealthResource
from tests.wado.test_server import Wire

pytestmark = pytest.mark.requirement("DB.SO.182", "DB.SO.183")

KEEP, IDLE = 5.0, 60
GATEWAY = b'{"status":"UP","checks":[{"name":"GATEWAY","status":"UP"}]}'
GATEWAY_DOWN = GATEWAY.replace(b"UP", b"DOWN")
PACS = b'{"status":"UP","checks":[{"name":"PACS","status":"UP"}]}'


def poll(path: str = "drimbox", *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} /healthcheck/{path} HTTP/1.1", "Host: vi1.349.example", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Counting(resource.Resource):
    """Counts the requests that were read."""

    def __init__(self, page: resource.Resource) -> None:
        super().__init__()
        self._page = page
        self.read = 0

    def render(self, request: server.Request) -> Any:
        self.read += 1
        return self._page.render(request)


class World:
    """A listener with hand-made connections, whose time, states and callers the test decides."""

    def __init__(self, idle: float = IDLE) -> None:
        self.clock = Clock()
        self.up = self.allowed = True
        self.looks = 0
        page = HealthResource(
            {"site1": Remembered(self._gateway, self.clock, KEEP)},
            Remembered(self._pacs, self.clock, KEEP),
            self,
            site_of=lambda transport: "site1",
            down_is_503=True,
        )
        self.root = Counting(page)
        settings = WadoSettings(idle_timeout=idle, max_connections=1000, max_connections_per_address=1000)
        self.factory = WadoFactory(self.root, settings, self.clock)

    def allows(self, address: str) -> bool:
        return self.allowed

    async def _gateway(self) -> Sequence[Check]:
        self.looks += 1
        return (Check("GATEWAY", self.up),)

    async def _pacs(self) -> Sequence[Check]:
        return (Check("PACS", True),)

    def connect(self) -> tuple[Any, Wire]:
        channel, wire = self.factory.buildProtocol(None), Wire()
        channel.makeConnection(wire)
        channel.handshakeCompleted()
        return channel, wire

    def warm(self) -> tuple[Any, Wire]:
        """Return a connection whose poll is known by now."""
        channel, wire = self.connect()
        for _ in range(3):
            channel.dataReceived(poll())
        self.root.read = 0
        wire.clear()
        return channel, wire


def answers(wire: Wire) -> list[tuple[int, bytes]]:
    """Return status and body of every answer."""
    found, rest = [], wire.value()
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        found.append((int(head.split()[1]), rest[:length]))
        rest = rest[length:]
    return found


@pytest.fixture
def world() -> World:
    return World()


def test_a_poll_that_comes_again_is_answered_without_being_read(world: World) -> None:
    channel, wire = world.warm()
    counted = metrics.HEALTH_POLLS.labels("up")._value.get()
    for _ in range(10):
        channel.dataReceived(poll())
    assert answers(wire) == [(200, GATEWAY)] * 10
    assert b"Date: " in wire.value()
    assert world.root.read == 0
    assert metrics.HEALTH_POLLS.labels("up")._value.get() == counted + 10


def test_any_other_byte_makes_it_another_request(world: World) -> None:
    channel, wire = world.warm()
    for other in (poll("pacs"), poll("drimbox", "Accept: */*"), poll("nothing")):
        channel.dataReceived(other)
    assert answers(wire) == [(200, PACS), (200, GATEWAY), (404, b"")]
    assert world.root.read == 3
    # That was refused, and what comes after a refusal is not looked at.
    channel.dataReceived(poll())
    assert len(answers(wire)) == 3


def test_a_change_shows_once_the_answer_is_too_old(world: World) -> None:
    channel, wire = world.warm()
    world.up = False
    world.clock.advance(KEEP - 0.1)
    channel.dataReceived(poll())
    world.clock.advance(0.2)
    looks = world.looks
    for _ in range(3):
        channel.dataReceived(poll())
    assert answers(wire) == [(200, GATEWAY), *[(503, GATEWAY_DOWN)] * 3]
    assert world.looks == looks + 1
    # The one that made it look was read; the others were known.
    assert world.root.read == 1


def test_who_may_no_longer_ask_is_refused_on_a_connection_that_was_let_in(world: World) -> None:
    channel, wire = world.warm()
    world.allowed = False
    channel.dataReceived(poll())
    assert answers(wire) == [(403, b"")]
    assert wire.disconnecting


def test_a_head_is_read_every_time(world: World) -> None:
    channel, wire = world.warm()
    for _ in range(4):
        channel.dataReceived(poll(method="HEAD"))
    assert world.root.read == 4
    assert wire.value().count(b"HTTP/1.1 200 ") == 4
    assert GATEWAY not in wire.value()


def test_one_that_is_very_long_is_read_every_time(world: World) -> None:
    channel, _ = world.connect()
    long = poll("drimbox", "X-Long: " + "x" * repeats.MOST)
    for _ in range(4):
        channel.dataReceived(long)
    assert world.root.read == 4


def test_polls_keep_a_connection_and_their_end_ends_it() -> None:
    world = World(idle=KEEP - 2)
    channel, wire = world.warm()
    for _ in range(8):
        world.clock.advance(KEEP / 2)
        channel.dataReceived(poll())
    assert not wire.disconnecting
    assert len(answers(wire)) == 8
    # Those that were not read keep it as well.
    assert world.root.read < 8
    world.clock.advance(KEEP - 1)
    assert wire.disconnecting


def test_a_gateway_that_stops_answers_no_more(world: World) -> None:
    channel, wire = world.warm()
    closed = Deferred.fromCoroutine(world.factory.closed())
    assert wire.disconnecting
    channel.dataReceived(poll())
    assert not wire.value()
    channel.connectionLost()
    assert closed.called


def test_the_head_tells_the_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.9]
    monkeypatch.setattr(health.time, "time", lambda: now[0])
    channel, wire = world.warm()
    dates = []
    for step in (0.0, 0.05, 0.1):
        now[0] += step
        wire.clear()
        channel.dataReceived(poll())
        dates.append(wire.value().partition(b"Date: ")[2].partition(b"\r\n")[0])
    assert world.root.read == 0
    assert dates[0] == dates[1] == b"Fri, 15 Jan 2027 08:00:00 GMT"
    assert dates[2] == b"Fri, 15 Jan 2027 08:00:01 GMT"


# -- whatever comes, in whatever pieces ---------------------------------------------------------------

STREAMS = (
    *[poll()] * 8,
    poll("pacs"),
    poll(method="HEAD"),
    poll() * 2,
    b"\r\n" + poll(),
    poll("drimbox", "Content-Length: 2") + b"\r\n",
    poll("drimbox", "Transfer-Encoding: chunked") + b"2\r\n\r\n\r\n0\r\n\r\n",
    poll()[:30],
    poll()[30:],
    poll("drimbox", "Expect: 100-continue"),
    b"\r\n",
    b"GET",
)


@pytest.mark.threat("request smuggling, pipelining")
def test_the_answers_are_those_of_a_gateway_that_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.time, "time", lambda: 1_800_000_000.0)
    spared, usual = 0, repeats.MOST
    for seed in range(400):
        draw = random.Random(seed)
        pieces: list[bytes] = []
        for _ in range(draw.randint(2, 12)):
            stream = draw.choice(STREAMS)
            at = draw.randint(0, len(stream)) if draw.random() < 0.2 else len(stream)
            pieces += [stream[:at], stream[at:]]
        told = []
        for most in (usual, 0):
            monkeypatch.setattr(repeats, "MOST", most)
            world = World()
            channel, wire = world.connect()
            for piece in filter(None, pieces):
                channel.dataReceived(piece)
            # To go on is no answer, and needless before one that comes at once (RFC 9110 10.1.1).
            answered = wire.value().replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
            told.append((answered, wire.disconnecting, channel._asked))
        (ours, closing, read), (theirs, closing_too, all_read) = told
        assert (ours, closing) == (theirs, closing_too), pieces
        spared += all_read - read
    assert spared > 100
