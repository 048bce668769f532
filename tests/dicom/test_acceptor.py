"""Who may come in, what may be stored, and when it is over: an acceptor in memory, and real callers."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from pynetdicom import AE
from twisted.logger import globalLogPublisher

from drimbox.dicom.aetitles import Title, TitleState
from drimbox.dicom.dimse import Command, CommandField, decode_command
from drimbox.dicom.pdu import RELEASE_RQ, encode_abort
from drimbox.sim.peers import find_program
from drimbox.sim.studies import GeneratedStudy
from tests.dicom.box import (
    HOST,
    SETTINGS,
    STORING,
    VERIFICATION,
    Box,
    Sink,
    Wire,
    asking,
    command_line,
    echo_request,
    in_thread,
    inbound,
    lose,
    memory,
    message,
    now_leased,
    pause,
    pdu_types,
    store_request,
    storing,
    until,
)

ACCEPT, REJECT, DATA, RELEASE_RP, ABORT = 2, 3, 4, 6, 7


async def leased(box: Box, receiver: Any = None) -> Title:
    return await box.pool.lease(receiver or Sink(box.clock), 1)


def status_of(answer: bytes) -> int | None:
    """Status of the one C-STORE or C-ECHO response in these bytes."""
    assert pdu_types(answer) == [DATA]
    return decode_command(answer[12:]).status


# -- C-ECHO -----------------------------------------------------------------------------------------


@pytest.mark.peer("echoscu")
@pytest.mark.requirement("DB.SO.05")
@pytest_twisted.ensureDeferred
async def test_echo_is_answered_on_every_title_at_any_time(box: Box) -> None:
    free, used = "DRIM2", await leased(box)
    echoscu = find_program("echoscu")
    for title in (SETTINGS.ae_title, used.ae_title, free):
        code, said = await command_line(echoscu, "-aec", title, HOST, str(box.number))
        assert code == 0, said
        assert await in_thread(pynetdicom_echo, box.number, title) == 0x0000
    used.release(final=False)
    assert used.state is TitleState.QUARANTINED
    code, said = await command_line(echoscu, "-aec", used.ae_title, HOST, str(box.number))
    assert code == 0, said
    assert await in_thread(pynetdicom_echo, box.number, used.ae_title) == 0x0000


def pynetdicom_echo(port: int, called: str) -> int | None:
    ae = AE(ae_title="ANYBODY")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate(HOST, port, ae_title=called)
    if not association.is_established:
        return None
    status = association.send_c_echo()
    association.release()
    return int(status.Status)


@pytest.mark.peer("echoscu")
@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest.mark.parametrize("title", ["NOBODY", "../../etc", "DRIM", "drim1"])
@pytest_twisted.ensureDeferred
async def test_an_unknown_called_title_is_rejected(box: Box, title: str) -> None:
    code, said = await command_line(find_program("echoscu"), "-v", "-aec", title, HOST, str(box.number))
    assert code != 0
    assert "Called AE Title Not Recognized" in said


# -- storage on a title that is not leased ------------------------------------------------------------


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.177")
@pytest_twisted.ensureDeferred
async def test_storage_on_a_free_title_is_refused(box: Box, study: GeneratedStudy) -> None:
    code, said = await storescu(box, study, called="DRIM1")
    assert code != 0
    assert "No Acceptable Presentation Contexts" in said or "No presentation context" in said
    assert box.states() == [TitleState.FREE] * 2


async def storescu(
    box: Box, study: GeneratedStudy, *, called: str = "DRIM1", calling: str = "PACS"
) -> tuple[int, str]:
    return await command_line(
        find_program("storescu"), "-v", "-aet", calling, "-aec", called,
        HOST, str(box.number), str(study.files[0]),
    )  # fmt: skip


@pytest.mark.peer("storescu")
@pytest_twisted.ensureDeferred
async def test_storage_on_a_quarantined_title_is_refused_and_restarts_its_quiet_time(
    box: Box, study: GeneratedStudy
) -> None:
    box.attach(104, quarantine=3.0)
    title = await leased(box)
    title.release(final=False)
    await pause(1.6)
    code, said = await storescu(box, study, called=title.ae_title)
    assert code != 0, said
    await pause(1.6)
    assert title.state is TitleState.QUARANTINED
    await until(lambda: title.state is TitleState.FREE, 5)


def test_a_stranger_cannot_keep_a_title_in_quarantine() -> None:
    box = memory()
    title = now_leased(box, Sink(box.clock))
    title.release(final=False)
    box.clock.advance(0.5)
    association, wire = inbound(box)
    association.dataReceived(storing(calling="SOMEBODY"))
    assert pdu_types(wire.take()) == [ACCEPT]
    box.clock.advance(0.2)
    assert title.state is TitleState.FREE


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.177")
@pytest_twisted.ensureDeferred
async def test_the_pacs_stores_on_a_leased_title(box: Box, study: GeneratedStudy) -> None:
    sink = Sink()
    title = await leased(box, sink)
    code, said = await storescu(box, study, called=title.ae_title)
    assert code == 0, said
    assert sink.uids == [study.instances[0].sop_instance_uid]
    await until(lambda: sink.events == ["opened", "clean"])
    assert not title.channels


@pytest.mark.peer("storescu")
@pytest_twisted.ensureDeferred
async def test_a_caller_that_is_not_configured_is_refused(box: Box, study: GeneratedStudy) -> None:
    sink = Sink()
    title = await leased(box, sink)
    code, said = await storescu(box, study, called=title.ae_title, calling="INTRUDER")
    assert code != 0
    assert "No Acceptable Presentation Contexts" in said or "Calling AE Title Not Recognized" in said
    assert sink.events == []


def test_an_address_that_is_not_the_pacs_is_refused() -> None:
    box = memory()
    sink = Sink(box.clock)
    now_leased(box, sink)
    association, wire = inbound(box, "127.0.0.9")
    association.dataReceived(asking(contexts=STORING[:1]))
    assert wire.take()[:10] == bytes([REJECT, 0, 0, 0, 0, 4, 0, 1, 1, 3])
    assert sink.events == []
    association, wire = inbound(box, "127.0.0.9")
    association.dataReceived(storing())
    assert pdu_types(wire.take()) == [ACCEPT]
    association.dataReceived(message(1, store_request(), b"data"))
    assert pdu_types(wire.take()) == [ABORT]
    assert sink.events == []


# -- what a C-STORE says of itself --------------------------------------------------------------------


@pytest.fixture
def open_door() -> tuple[Box, Sink, Title, Any, Wire]:
    """A leased title, whose C-MOVE had the message id 7, and the PACS's association on it."""
    box = memory()
    sink = Sink(box.clock)
    title = now_leased(box, sink)
    title.message_id = 7
    association, wire = inbound(box)
    association.dataReceived(storing())
    assert pdu_types(wire.take()) == [ACCEPT]
    return box, sink, title, association, wire


@pytest.mark.requirement("DB.SO.177")
@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 0x0000),
        ({"originator_ae_title": "DRIMBOX"}, 0x0000),
        ({"originator_ae_title": "DRIMBOX", "originator_message_id": 7}, 0x0000),
        ({"originator_message_id": 7}, 0x0000),
        ({"originator_ae_title": "OTHERBOX", "originator_message_id": 7}, 0x0124),
        ({"originator_ae_title": "DRIMBOX", "originator_message_id": 8}, 0x0124),
        ({"originator_message_id": 8}, 0x0124),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.4"}, 0x0122),
    ],
)
def test_a_c_store_of_another_move_is_refused_and_not_delivered(
    open_door: Any, more: dict[str, Any], status: int
) -> None:
    _, sink, _, association, wire = open_door
    association.dataReceived(message(1, store_request("1.2.3.4", **more), b"d" * 40000))
    answer = wire.take()
    assert status_of(answer) == status
    assert sink.uids == (["1.2.3.4"] if status == 0 else [])
    association.dataReceived(message(1, store_request("1.2.3.5"), b"d"))
    assert status_of(wire.take()) == 0
    assert sink.uids[-1] == "1.2.3.5"


def test_what_comes_after_the_lease_belongs_to_nobody(open_door: Any) -> None:
    box, sink, title, association, wire = open_door
    title.release(final=True)
    other = Sink(box.clock)
    second = now_leased(box, other)
    assert second is not title
    association.dataReceived(message(1, store_request(), b"late"))
    assert status_of(wire.take()) == 0x0124
    assert sink.uids == other.uids == []
    lose(association)
    # Who was told of the association is told of its end, although the lease is over.
    assert sink.events == ["opened", "broken"]
    assert title.state is TitleState.FREE


def test_a_data_set_under_way_when_the_lease_ends_goes_to_who_asked(open_door: Any) -> None:
    _, sink, title, association, wire = open_door
    whole = message(1, store_request(), b"x" * 3000)
    association.dataReceived(whole[:1500])
    title.release(final=False)
    association.dataReceived(whole[1500:])
    assert status_of(wire.take()) == 0
    assert len(sink.whole) == 1


def test_peer_text_that_is_not_ascii_is_answered_without_harm(
    open_door: Any,
) -> None:
    _, _, _, association, wire = open_door
    request = message(1, store_request("1.2.3.44"), b"d").replace(b"1.2.3.44", b"1.2.\xe9.44")
    association.dataReceived(request)
    assert status_of(wire.take()) == 0


def test_operations_we_do_not_offer_end_the_association(open_door: Any) -> None:
    _, sink, _, association, wire = open_door
    association.dataReceived(message(1, Command(CommandField.C_FIND_RQ, message_id=1), b"q"))
    assert pdu_types(wire.take()) == [ABORT]
    assert wire.disconnecting
    lose(association)
    assert sink.events == ["opened", "broken"]


def test_a_c_store_on_the_verification_context_ends_the_association(open_door: Any) -> None:
    _, sink, _, association, wire = open_door
    association.dataReceived(message(3, store_request(), b"data"))
    assert pdu_types(wire.take()) == [ABORT]
    assert sink.uids == []


def test_a_release_inside_an_instance_is_not_a_clean_end(open_door: Any) -> None:
    _, sink, _, association, _ = open_door
    association.dataReceived(message(1, store_request(), b"x" * 300)[:200])
    association.dataReceived(encode_abort(0, 0))
    lose(association)
    assert sink.events == ["opened", "broken"]


# -- several PDUs in one piece ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", asking() + echo_request()),
        (asking(), echo_request() + encode_abort(0, 0)),
        (asking(), RELEASE_RQ + echo_request()),
        (asking(), echo_request() + RELEASE_RQ + RELEASE_RQ),
        (b"", asking() + encode_abort(0, 0)),
        (b"", asking() + asking()),
    ],
)
def test_events_overtaken_by_the_end_are_dropped(first: bytes, then: bytes) -> None:
    """The association is over before its earlier events are carried out: no bug of ours is logged."""
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        box = memory()
        association, wire = inbound(box)
        if first:
            association.dataReceived(first)
        association.dataReceived(then)
        assert wire.disconnecting
        lose(association)
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert [event for event in seen if event.get("log_failure")] == []
    assert not box.factory._open


def test_an_echo_before_the_release_is_answered() -> None:
    box = memory()
    association, wire = inbound(box)
    association.dataReceived(asking())
    assert pdu_types(wire.take()) == [ACCEPT]
    association.dataReceived(echo_request())
    association.dataReceived(RELEASE_RQ)
    assert pdu_types(wire.take()) == [DATA, RELEASE_RP]
