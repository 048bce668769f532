"""The thin layer between socket and association: closing, time, and bugs of our own."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from drimbox.dicom.association import Event, UpperLayer
from drimbox.dicom.transport import AssociationProtocol
from tests.dicom.box import Wire, asking, lose, pdu_types

ABORT = 7


class Plain(AssociationProtocol):
    """An acceptor that accepts everything and remembers."""

    def __init__(self, clock: Clock, *, broken: bool = False) -> None:
        super().__init__(UpperLayer(16384), clock, artim=2.0, idle=5.0)
        self.events: list[Event] = []
        self.ended = 0
        self.broken = broken

    def started(self) -> None:
        self.layer.transport_indication()

    def handle(self, event: Event) -> None:
        if self.broken:
            raise RuntimeError("a bug of ours")
        self.events.append(event)

    def gone(self) -> None:
        self.ended += 1


def connected(*, broken: bool = False) -> tuple[Clock, Plain, Wire]:
    clock = Clock()
    protocol = Plain(clock, broken=broken)
    wire = Wire()
    protocol.makeConnection(wire)
    return clock, protocol, wire


def test_nothing_runs_after_the_connection_is_lost() -> None:
    clock, protocol, _ = connected()
    lose(protocol)
    assert protocol.ended == 1
    assert clock.getDelayedCalls() == []


def test_abort_pause_resume_after_the_connection_is_lost_are_harmless() -> None:
    clock, protocol, wire = connected()
    protocol.dataReceived(asking())
    protocol.layer.accept({})
    protocol.flush()
    wire.clear()
    lose(protocol)
    protocol.pause()
    protocol.abort()
    protocol.resume()
    protocol.flush()
    assert wire.value() == b""
    assert clock.getDelayedCalls() == []


def test_a_bug_of_ours_ends_the_association_and_is_told() -> None:
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        _, protocol, wire = connected(broken=True)
        protocol.dataReceived(asking())
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert pdu_types(wire.take()) == [ABORT]
    assert wire.disconnecting
    assert any(event.get("log_failure") for event in seen)


def test_the_end_is_told_even_when_its_handler_fails() -> None:
    _, protocol, _ = connected(broken=True)
    protocol.layer.receive(asking())
    protocol.layer.accept({})
    with pytest.raises(RuntimeError):
        lose(protocol)
    assert protocol.ended == 1


def test_a_connection_that_does_not_close_is_cut() -> None:
    """The peer aborted but never closes nor reads: nothing of PS3.8 would end this connection."""
    clock, protocol, wire = connected()
    protocol.dataReceived(asking())
    protocol.layer.accept({})
    protocol.flush()
    protocol.dataReceived(b"\x07\0\0\0\0\x04\0\0\0\0")
    assert wire.disconnecting
    clock.advance(1.9)
    assert not wire.aborted
    clock.advance(0.2)
    assert wire.aborted


def test_closing_lets_what_was_written_leave_first() -> None:
    """A registered producer would keep Twisted from closing: it is taken away before."""
    _, protocol, wire = connected()
    assert wire.producer is not None
    protocol.abort()
    assert wire.producer is None
    assert wire.disconnecting
    assert not wire.aborted


def test_two_reasons_to_pause_are_both_to_be_lifted() -> None:
    _, protocol, wire = connected()
    protocol.pause()
    protocol.choke(True)
    protocol.resume()
    assert wire.producerState == "paused"
    protocol.choke(False)
    assert wire.producerState == "producing"
    protocol.choke(True)
    protocol.pause()
    protocol.choke(False)
    assert wire.producerState == "paused"
    protocol.resume()
    assert wire.producerState == "producing"


def test_aborting_twice_sends_one_abort() -> None:
    clock, protocol, wire = connected()
    protocol.dataReceived(asking())
    protocol.layer.accept({})
    protocol.flush()
    wire.clear()
    protocol.abort()
    protocol.abort()
    assert pdu_types(wire.take()) == [ABORT]
    clock.advance(2.1)
    assert wire.aborted
