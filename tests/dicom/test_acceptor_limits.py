"""What a caller may cost: time, places, memory; and where a PACS may call from."""

from __future__ import annotations

import socket
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHostResolution
from twisted.internet.task import Clock

from drimbox import metrics
from drimbox.dicom.acceptor import AcceptorFactory, InboundAssociation
from drimbox.dicom.addresses import REFRESH, Addresses
from drimbox.dicom.aetitles import Pools
from tests.dicom.box import (
    CT,
    HOST,
    PACS,
    SETTINGS,
    Box,
    Sink,
    Wire,
    asking,
    echo_request,
    in_thread,
    inbound,
    lose,
    memory,
    now_leased,
    pdu_types,
    until,
)

ACCEPT, REJECT, DATA, RELEASE_RP, ABORT = 2, 3, 4, 6, 7


# -- time -------------------------------------------------------------------------------------------


def test_a_caller_that_asks_nothing_is_cut_after_artim() -> None:
    box = memory()
    _, wire = inbound(box)
    box.clock.advance(1.9)
    assert not wire.aborted
    box.clock.advance(0.2)
    assert wire.aborted


def test_a_request_dripped_byte_by_byte_does_not_stretch_artim() -> None:
    box = memory()
    association, wire = inbound(box)
    for byte in asking()[:200]:
        association.dataReceived(bytes([byte]))
        box.clock.advance(0.05)
        if wire.aborted:
            break
    assert wire.aborted
    assert box.clock.seconds() < 2.2


def test_a_rejected_caller_that_stays_is_cut_after_a_whole_artim() -> None:
    box = memory()
    association, wire = inbound(box)
    box.clock.advance(1.5)
    association.dataReceived(asking("NOBODY"))
    assert pdu_types(wire.take()) == [REJECT]
    box.clock.advance(1.9)
    assert not wire.aborted
    box.clock.advance(0.2)
    assert wire.aborted


def test_an_idle_association_is_aborted() -> None:
    box = memory()
    association, wire = inbound(box)
    association.dataReceived(asking())
    wire.clear()
    box.clock.advance(4.9)
    association.dataReceived(echo_request())
    wire.clear()
    box.clock.advance(4.9)
    assert not wire.disconnecting
    box.clock.advance(0.2)
    assert pdu_types(wire.take()) == [ABORT]
    assert wire.disconnecting
    box.clock.advance(2.1)
    assert wire.aborted


def test_a_pause_of_ours_is_not_the_peers_idleness() -> None:
    box = memory()
    association, wire = inbound(box)
    association.dataReceived(asking())
    association.pause()
    assert wire.producerState == "paused"
    for _ in range(10):
        box.clock.advance(4)
    assert not wire.disconnecting
    association.resume()
    assert wire.producerState == "producing"
    for _ in range(11):
        box.clock.advance(0.5)
    assert wire.disconnecting


# -- limits -----------------------------------------------------------------------------------------


def test_more_associations_than_configured_are_rejected_for_the_moment() -> None:
    box = memory(max_associations=2)
    kept = []
    for _ in range(2):
        association, wire = inbound(box)
        association.dataReceived(asking())
        assert pdu_types(wire.take()) == [ACCEPT]
        kept.append(association)
    association, wire = inbound(box)
    association.dataReceived(asking())
    assert wire.take()[:10] == bytes([REJECT, 0, 0, 0, 0, 4, 0, 2, 3, 2])
    lose(kept[0])
    association, wire = inbound(box)
    association.dataReceived(asking())
    assert pdu_types(wire.take()) == [ACCEPT]


@pytest.mark.threat("floods of connections, half-open connections")
def test_connections_that_say_nothing_do_not_keep_the_pacs_out() -> None:
    """Strangers share a part of the places; the PACS's own address has its own."""
    box = memory(max_associations=8)
    strangers = [box.factory.buildProtocol(IPv4Address("TCP", "10.9.9.9", 1)) for _ in range(50)]
    assert sum(each is not None for each in strangers) == 8
    association, wire = inbound(box)
    association.dataReceived(asking())
    assert pdu_types(wire.take()) == [ACCEPT]
    silent = [box.factory.buildProtocol(IPv4Address("TCP", HOST, 1)) for _ in range(50)]
    assert sum(each is not None for each in silent) == 8 + 16 - 1


def two_pacs(**changes: Any) -> AcceptorFactory:
    """A door for two PACS, of two titles each, at addresses of their own."""
    settings = attrs.evolve(SETTINGS, **changes)
    other = attrs.evolve(PACS, name="p2", ae_title="OTHER", host="192.0.2.2", pool=("DRIM3", "DRIM4"))
    return AcceptorFactory(settings, Pools([PACS, other], Clock()), Clock())


@pytest.mark.threat("floods of connections, half-open connections")
@pytest.mark.requirement("DB.SO.05")
def test_no_pacs_keeps_another_one_out() -> None:
    factory = two_pacs(max_associations=6)

    def call(host: str) -> InboundAssociation | None:
        association = factory.buildProtocol(IPv4Address("TCP", host, 1))
        if association is not None:
            association.makeConnection(Wire(host))
            association.dataReceived(asking("DRIM1" if host == HOST else "DRIM3"))
        return association

    greedy = [call(HOST) for _ in range(40)]
    # All connections but two, and of those all but two are accepted: what the other's pool needs.
    assert sum(each is not None for each in greedy) == 6 + 16 - 2
    assert sum(each is not None and each.accepted for each in greedy) == 4
    others = [call("192.0.2.2") for _ in range(4)]
    assert [each is not None and each.accepted for each in others] == [True, True, False, False]


def test_pools_larger_than_the_door_still_leave_each_pacs_a_share() -> None:
    factory = two_pacs(max_associations=1)
    assert not factory.full(frozenset({"p1"}))
    assert not factory.full(frozenset({"p2"}))


def test_a_peer_that_does_not_read_its_answers_is_not_read_any_further() -> None:
    box = memory()
    association, wire = inbound(box)
    association.dataReceived(asking())
    assert wire.producer is not None
    assert wire.streaming
    wire.producer.pauseProducing()
    assert wire.producerState == "paused"
    # Being choked is the peer's fault: its time-out goes on.
    box.clock.advance(5.1)
    assert wire.disconnecting
    box.clock.advance(2.1)
    assert wire.aborted


@pytest_twisted.ensureDeferred
async def test_answers_that_nobody_reads_do_not_pile_up(box: Box) -> None:
    def flood() -> int:
        sent = 0
        with socket.create_connection((HOST, box.number), timeout=1) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(asking())
            client.recv(65536)
            requests = echo_request() * 500
            try:
                for _ in range(4000):
                    client.sendall(requests)
                    sent += len(requests)
            except TimeoutError:
                pass
        return sent

    assert await in_thread(flood) < 40_000_000
    await until(lambda: not box.factory._open)


# -- addresses --------------------------------------------------------------------------------------


def test_addresses_networks_and_mapped_callers() -> None:
    addresses = Addresses(attrs.evolve(PACS, addresses=("10.1.0.0/16", "192.0.2.7", "fd00::/8")))
    for good in ("10.1.200.3", "192.0.2.7", "::ffff:192.0.2.7", "fd00::1"):
        assert addresses.allow(good)
    for bad in ("10.2.0.1", "192.0.2.8", "::1", "", "pacs.example", "192.0.2.7.1"):
        assert not addresses.allow(bad)


@pytest.mark.requirement("DB.SO.05")
def test_a_pacs_known_by_name_may_store_once_the_name_resolves() -> None:
    class Resolving(Clock):
        """A clock that resolves names, as a reactor does."""

        answers: tuple[str, ...] = ("192.0.2.7",)

        @property
        def nameResolver(self) -> Any:
            return self

        def resolveHostName(self, receiver: Any, name: str) -> IHostResolution:
            assert name == "pacs.example"
            receiver.resolutionBegan(self)
            for answer in self.answers:
                receiver.addressResolved(IPv4Address("TCP", answer, 0))
            receiver.resolutionComplete()
            return self  # type: ignore[return-value]

    clock = Resolving()
    box = Box(attrs.evolve(PACS, host="pacs.example"), clock=clock)
    addresses = box.factory.addresses["p1"]
    assert not addresses.allow("192.0.2.7")
    box.factory.doStart()
    assert addresses.allow("192.0.2.7")
    clock.answers = ("192.0.2.8",)
    clock.advance(REFRESH + 1)
    assert addresses.allow("192.0.2.8")
    assert not addresses.allow("192.0.2.7")
    clock.answers = ()
    clock.advance(REFRESH + 1)
    assert addresses.allow("192.0.2.8")
    box.factory.doStop()
    assert clock.getDelayedCalls() == []


def test_refusals_are_counted() -> None:
    box = memory()
    sink = Sink(box.clock)
    now_leased(box, sink)
    before = _metric("calling_unknown")
    association, wire = inbound(box, "127.0.0.9")
    association.dataReceived(asking(contexts=((1, CT, ("1.2.840.10008.1.2",)),)))
    assert _metric("calling_unknown") == before + 1
    assert pdu_types(wire.take()) == [REJECT]


def _metric(result: str) -> float:
    value: float = metrics.ASSOCIATIONS.labels("acceptor", result)._value.get()
    return value
