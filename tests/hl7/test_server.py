"""The MLLP listener over real sockets, and its time-outs on a clock in memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from drimbox.config import Hl7Settings
from drimbox.hl7.mllp import frame
from drimbox.hl7.server import LINGER, MllpConnection, MllpFactory
from drimbox.limits import Why
from drimbox.metrics import HL7_CONNECTIONS
from drimbox.sim.ris import Misbehaviour, NoAck, SimMessage, build_message, send, send_all


def ack(raw: bytes, code: bytes = b"AA") -> bytes:
    control_id = raw.split(b"|")[9] if raw.count(b"|") > 9 else b""
    return b"MSH|^~\\&|D|S|R|S|2026||ACK|1|P|2.5\rMSA|" + code + b"|" + control_id + b"\r"


class Recorder:
    """A receiver that answers AA, at once or when told."""

    def __init__(self, *, wait: bool = False) -> None:
        self.received: list[tuple[bytes, str]] = []
        self.wait = wait
        self.pending: list[Deferred[None]] = []

    async def receive(self, raw: bytes, peer: str, shown: Collection[str] = ()) -> bytes:
        self.received.append((raw, peer))
        if self.wait:
            self.pending.append(Deferred())
            await self.pending[-1]
        return ack(raw)


def _now() -> datetime:
    return datetime.now(UTC)


class Listener:
    def __init__(self, receiver: Any, settings: Hl7Settings) -> None:
        self.factory = MllpFactory(settings, receiver, reactor, _now)
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.number = self.port.getHost().port

    async def close(self) -> None:
        await self.port.stopListening()
        await self.factory.drain(5)


SETTINGS = Hl7Settings(max_message_bytes=30_000_000, message_timeout=0.3, idle_timeout=5)


def serving(
    receiver: Any, body: Callable[[Listener], Any], settings: Hl7Settings = SETTINGS
) -> Deferred[None]:
    async def run() -> None:
        listener = Listener(receiver, settings)
        try:
            await body(listener)
        finally:
            await listener.close()
            assert not listener.factory.connections

    return ensureDeferred(run())


def numbered(count: int) -> list[bytes]:
    return [build_message(message=SimMessage(control_id=str(number))) for number in range(count)]


@pytest.mark.requirement("DB.SO.03", "DB.SO.141")
@pytest_twisted.inlineCallbacks
def test_a_message_is_given_to_the_receiver_and_its_answer_sent_back() -> Any:
    receiver = Recorder()

    async def body(listener: Listener) -> None:
        answer = await send("127.0.0.1", listener.number, build_message(), 5)
        assert (answer.code, answer.control_id) == ("AA", "015")

    yield serving(receiver, body)
    assert receiver.received == [(build_message(), "127.0.0.1")]


@pytest_twisted.inlineCallbacks
def test_pipelined_messages_are_answered_in_order() -> Any:
    receiver = Recorder()

    async def body(listener: Listener) -> None:
        answers = await send_all("127.0.0.1", listener.number, numbered(50), 10)
        assert [answer.control_id for answer in answers] == [str(number) for number in range(50)]

    yield serving(receiver, body)
    assert [raw for raw, _ in receiver.received] == numbered(50)


@pytest.mark.threat("HL7 and MLLP")
@pytest_twisted.inlineCallbacks
def test_thousands_of_tiny_frames_do_not_exhaust_the_stack() -> Any:
    async def body(listener: Listener) -> None:
        answers = await send_all("127.0.0.1", listener.number, [b""] * 5_000, 20)
        assert len(answers) == 5_000

    yield serving(Recorder(), body)


@pytest_twisted.inlineCallbacks
def test_one_message_at_a_time_per_connection() -> Any:
    receiver = Recorder(wait=True)

    async def body(listener: Listener) -> None:
        answers = ensureDeferred(send_all("127.0.0.1", listener.number, numbered(3), 10))
        for done in range(3):
            while len(receiver.pending) <= done:
                await pause(0.01)
            await pause(0.02)
            assert len(receiver.received) == done + 1
            receiver.pending[done].callback(None)
        assert len(await answers) == 3

    yield serving(receiver, body)


def pause(seconds: float) -> Deferred[None]:
    later: Deferred[None] = Deferred()
    reactor.callLater(seconds, later.callback, None)  # type: ignore[attr-defined]
    return later


@pytest.mark.parametrize(
    "misbehaviour", [Misbehaviour.ODD_CHUNKS, Misbehaviour.GARBAGE_BEFORE, Misbehaviour.HALF_CLOSE]
)
@pytest_twisted.inlineCallbacks
def test_odd_but_harmless_senders_are_served(misbehaviour: Misbehaviour) -> Any:
    async def body(listener: Listener) -> None:
        answer = await send("127.0.0.1", listener.number, build_message(), 5, misbehaviour=misbehaviour)
        assert answer.code == "AA"

    yield serving(Recorder(), body)


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize("misbehaviour", [Misbehaviour.VT_INSIDE, Misbehaviour.NO_FRAME])
@pytest_twisted.inlineCallbacks
def test_broken_framing_is_answered_ae_and_the_connection_closed(misbehaviour: Misbehaviour) -> Any:
    receiver = Recorder()

    async def body(listener: Listener) -> None:
        answer = await send("127.0.0.1", listener.number, build_message(), 5, misbehaviour=misbehaviour)
        assert (answer.code, answer.control_id, answer.errors[0].code) == ("AE", "", "100")

    yield serving(receiver, body)
    assert receiver.received == []


@pytest.mark.threat("HL7 and MLLP")
@pytest_twisted.inlineCallbacks
def test_an_oversize_message_gets_its_answer_although_it_is_still_being_sent() -> Any:
    receiver = Recorder()

    async def body(listener: Listener) -> None:
        answer = await send("127.0.0.1", listener.number, b"MSH|^~\\&|" + b"A" * 5_000_000, 5)
        assert (answer.code, answer.errors[0].code) == ("AE", "199")

    yield serving(receiver, body, attrs.evolve(SETTINGS, max_message_bytes=1_000_000))
    assert receiver.received == []


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize(
    "misbehaviour", [Misbehaviour.STOP_HALFWAY, Misbehaviour.NO_END, Misbehaviour.HANG_UP_HALFWAY]
)
@pytest_twisted.inlineCallbacks
def test_a_message_that_stops_half_way_is_never_acknowledged(misbehaviour: Misbehaviour) -> Any:
    receiver = Recorder()

    async def body(listener: Listener) -> None:
        with pytest.raises(NoAck):
            await send("127.0.0.1", listener.number, build_message(), 5, misbehaviour=misbehaviour)

    yield serving(receiver, body)
    assert receiver.received == []


@pytest_twisted.inlineCallbacks
def test_a_receiver_that_breaks_makes_the_peer_send_again() -> Any:
    class Broken:
        async def receive(self, raw: bytes, peer: str, shown: Collection[str] = ()) -> bytes:
            raise RuntimeError("bug")

    async def body(listener: Listener) -> None:
        answers = await send_all("127.0.0.1", listener.number, numbered(2), 5)
        assert [(answer.code, answer.control_id) for answer in answers] == [("AR", "0"), ("AR", "1")]

    yield serving(Broken(), body)


@pytest.mark.threat("HL7 and MLLP")
@pytest_twisted.inlineCallbacks
def test_connections_are_counted_in_all_and_per_address() -> Any:
    receiver = Recorder(wait=True)

    async def body(listener: Listener) -> None:
        first = ensureDeferred(send("127.0.0.1", listener.number, build_message(), 5))
        while not receiver.pending:
            await pause(0.01)
        assert HL7_CONNECTIONS._value.get() >= 1
        with pytest.raises(NoAck):
            await send("127.0.0.1", listener.number, build_message(), 5)
        receiver.pending[0].callback(None)
        assert (await first).code == "AA"
        receiver.wait = False
        await pause(0.05)
        assert (await send("127.0.0.1", listener.number, build_message(), 5)).code == "AA"

    yield serving(receiver, body, attrs.evolve(SETTINGS, max_connections_per_address=1))
    receiver = Recorder(wait=True)
    yield serving(receiver, body, attrs.evolve(SETTINGS, max_connections=1))


@pytest_twisted.inlineCallbacks
def test_drain_finishes_the_message_in_hand_and_turns_the_next_away() -> Any:
    receiver = Recorder(wait=True)

    async def body(listener: Listener) -> None:
        answers = ensureDeferred(send_all("127.0.0.1", listener.number, numbered(3), 5))
        while not receiver.pending:
            await pause(0.01)
        drained = ensureDeferred(listener.factory.drain(5))
        receiver.pending[0].callback(None)
        assert [(answer.code, answer.control_id) for answer in await answers] == [
            ("AA", "0"),
            ("AR", "1"),
            ("AR", "2"),
        ]
        await drained

    yield serving(receiver, body)
    assert len(receiver.received) == 1


@pytest.mark.requirement("DB.SO.03")
@pytest_twisted.inlineCallbacks
def test_twenty_megabytes_over_a_real_socket() -> Any:
    receiver = Recorder()
    message = build_message(document=b"A" * 15_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def body(listener: Listener) -> None:
        started = time.perf_counter()
        assert (await send("127.0.0.1", listener.number, message, 20)).code == "AA"
        assert time.perf_counter() - started < 10  # about 0.2 s

    yield serving(receiver, body)
    assert receiver.received[0][0] == message
    # The client's copies are in the same process; a quadratic reader would show hundreds of MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000


# --- on a clock -----------------------------------------------------------------------------------


class Wire(StringTransport):
    """A transport in memory that also half-closes, and can be full."""

    def __init__(self) -> None:
        super().__init__()
        self.half_closed = False
        self.aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True


def wired(receiver: Any) -> tuple[MllpConnection, Wire, Clock]:
    clock = Clock()
    settings = Hl7Settings(idle_timeout=100, message_timeout=10)
    factory = MllpFactory(settings, receiver, clock, _now)  # type: ignore[arg-type]
    connection = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 5000))
    wire = Wire()
    connection.makeConnection(wire)
    return connection, wire, clock


def test_an_idle_connection_is_closed_after_the_idle_timeout() -> None:
    connection, wire, clock = wired(Recorder())
    clock.advance(99)
    connection.dataReceived(frame(b"MSH"))
    clock.advance(99)
    assert not wire.aborted
    clock.advance(1)
    assert wire.aborted


@pytest.mark.threat("HL7 and MLLP")
def test_a_message_that_stalls_is_cut_after_the_message_timeout() -> None:
    connection, wire, clock = wired(Recorder())
    connection.dataReceived(b"\x0bMSH|")
    for _ in range(9):
        clock.advance(1)
        # A drip does not wind the clock back.
        connection.dataReceived(b"^~")
    assert not wire.aborted
    clock.advance(1)
    assert wire.aborted
    assert wire.value() == b""


@pytest.mark.threat("HL7 and MLLP", "slowloris, stalled reader")
def test_a_long_message_on_a_slow_line_has_the_time_it_needs() -> None:
    receiver = Recorder()
    connection, wire, clock = wired(receiver)
    message = b"MSH|" + b"x" * 2000 * 50
    connection.dataReceived(b"\x0b")
    for at in range(0, len(message), 2000):
        connection.dataReceived(message[at : at + 2000])
        clock.advance(1)
    connection.dataReceived(b"\x1c\r")
    assert not wire.aborted
    assert [raw for raw, _ in receiver.received] == [message]


def test_bytes_between_two_messages_do_not_keep_a_connection_open() -> None:
    connection, wire, clock = wired(Recorder())
    for _ in range(99):
        clock.advance(1)
        connection.dataReceived(b"\r")
    assert not wire.aborted
    clock.advance(1)
    assert wire.aborted


@pytest.mark.threat("floods of connections, half-open connections")
@pytest.mark.requirement("DB.SO.04")
@pytest.mark.threat("HL7 and MLLP")
def test_callers_from_addresses_of_no_ris_do_not_keep_the_reports_out() -> None:
    told: list[tuple[str, Why]] = []
    factory = MllpFactory(
        Hl7Settings(max_connections=8, max_connections_per_address=6),
        Recorder(),
        Clock(),  # type: ignore[arg-type]
        _now,
        known=lambda address: address.startswith("192.0.2."),
        refused=lambda address, why: told.append((address, why)),
    )

    def call(address: str) -> bool:
        return factory.buildProtocol(IPv4Address("TCP", address, 5000)) is not None

    assert [call("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert [call("192.0.2.1") for _ in range(7)] == [True] * 6 + [False]
    assert [call("192.0.2.2") for _ in range(3)] == [True, True, False]
    assert told == [("10.0.0.1", Why.STRANGER), ("192.0.2.1", Why.ADDRESS), ("192.0.2.2", Why.TOTAL)]


@pytest.mark.threat("slowloris, stalled reader")
def test_unfinished_messages_of_many_connections_are_bounded_together() -> None:
    told: list[tuple[str, Why]] = []
    receiver = Recorder(wait=True)
    factory = MllpFactory(
        Hl7Settings(max_message_bytes=600, max_held_bytes=1000),
        receiver,
        Clock(),  # type: ignore[arg-type]
        _now,
        refused=lambda address, why: told.append((address, why)),
    )

    def call(number: int, data: bytes) -> tuple[MllpConnection, Wire]:
        connection = factory.buildProtocol(IPv4Address("TCP", f"192.0.2.{number}", 5000))
        wire = Wire()
        connection.makeConnection(wire)
        connection.dataReceived(data)
        return connection, wire

    whole = b"MSH" + b"a" * 397
    busy, answered = call(1, frame(whole))
    slow, kept = call(2, b"\x0b" + b"b" * 500)
    assert (factory.held, told) == (900, [])
    third, cut = call(3, b"\x0b" + b"c" * 300)
    assert (cut.aborted, kept.aborted, told) == (True, False, [("192.0.2.3", Why.MEMORY)])
    third.connectionLost(Failure(ConnectionDone()))
    assert factory.held == 900
    # What is handled is let go with its answer, what is dropped with its connection.
    receiver.pending.pop().callback(None)
    assert b"MSA|AA" in answered.value()
    assert factory.held == 500
    slow.connectionLost(Failure(ConnectionDone()))
    assert factory.held == 0
    # One message of the greatest size is always taken.
    _, alone = call(4, b"\x0b" + b"d" * 600)
    assert not alone.aborted
    busy.connectionLost(Failure(ConnectionDone()))


def test_our_own_slowness_times_nobody_out_and_pauses_reading() -> None:
    receiver = Recorder(wait=True)
    connection, wire, clock = wired(receiver)
    connection.dataReceived(frame(b"MSH"))
    assert wire.producerState == "paused"
    clock.advance(10_000)
    assert not wire.aborted
    receiver.pending[0].callback(None)
    assert wire.producerState == "producing"
    assert wire.value() == frame(ack(b"MSH"))


@pytest.mark.threat("HL7 and MLLP")
def test_a_peer_that_does_not_read_its_answers_is_held_back_then_cut() -> None:
    receiver = Recorder()
    connection, wire, clock = wired(receiver)
    wire.producer.pauseProducing()
    connection.dataReceived(frame(b"MSH1") + frame(b"MSH2"))
    assert receiver.received == []
    assert wire.producerState == "paused"
    clock.advance(9)
    wire.producer.resumeProducing()
    assert len(receiver.received) == 2
    assert wire.producerState == "producing"
    wire.producer.pauseProducing()
    clock.advance(10)
    assert wire.aborted


def test_drain_waits_for_a_half_received_message_and_answers_ar() -> None:
    connection, wire, _clock = wired(Recorder())
    whole = frame(build_message())
    connection.dataReceived(whole[:100])
    drained = ensureDeferred(connection.owner.drain(30))
    assert not wire.half_closed
    connection.dataReceived(whole[100:])
    assert b"MSA|AR|015\r" in wire.value()
    assert wire.half_closed
    connection.connectionLost(Failure(ConnectionDone()))
    assert drained.called


def test_drain_ends_at_its_timeout_and_cuts_who_remains() -> None:
    receiver = Recorder(wait=True)
    connection, wire, clock = wired(receiver)
    connection.dataReceived(frame(b"MSH"))
    drained = ensureDeferred(connection.owner.drain(30))
    clock.advance(29)
    assert not drained.called
    clock.advance(1)
    assert wire.aborted
    assert drained.called


def test_drain_waits_for_a_message_whose_sender_left() -> None:
    receiver = Recorder(wait=True)
    connection, _wire, _clock = wired(receiver)
    connection.dataReceived(frame(b"MSH"))
    connection.connectionLost(Failure(ConnectionDone()))
    drained = ensureDeferred(connection.owner.drain(30))
    assert not drained.called
    receiver.pending[0].callback(None)
    assert drained.called


def test_nobody_gets_in_while_draining() -> None:
    connection, _wire, _clock = wired(Recorder())
    connection.owner.drain(1).send(None)
    assert connection.owner.buildProtocol(IPv4Address("TCP", "192.0.2.2", 5000)) is None


def test_a_peer_that_does_not_close_after_a_refusal_is_cut() -> None:
    connection, wire, clock = wired(Recorder())
    connection.dataReceived(b"\x0bA\x0b")
    assert wire.half_closed
    connection.dataReceived(frame(b"MSH"))
    assert wire.value().count(b"MSA|AE|") == 1
    clock.advance(LINGER)
    assert wire.aborted
