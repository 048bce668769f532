"""PDUs, associations and command sets under fire: coded answers, nothing kept, bounded work per byte."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from drimbox.dicom.association import UpperLayer
from drimbox.dicom.dimse import MAX_COMMAND, MessageRefused, decode_command, encode_command
from drimbox.dicom.identifiers import EXPLICIT_LE, IMPLICIT_LE, decode_dataset
from drimbox.dicom.negotiation import AssociationRequest, ProposedContext, encode_request
from drimbox.dicom.pdu import (
    MAX_ASSOCIATE,
    RELEASE_RP,
    RELEASE_RQ,
    PduReader,
    PduRefused,
    encode_abort,
    encode_message,
)
from drimbox.errors import PacsCommunicationError
from tests.dicom.box import CT, Sink, inbound, lose, memory, message, now_leased, store_request, storing
from tests.dicom.datasets import BIG, EXPLICIT, IMPLICIT, ct, encode
from tests.dicom.fuzzing import assert_keeps_nothing, assert_linear, cut, damages
from tests.dicom.test_association_table import AC, DATA, REQUEST, RJ, RQ, asked, connected, granted

#: Some seconds each in CI, forty times as many mutations in `make soak`.
pytestmark = pytest.mark.slow

STORE = message(1, store_request(), encode(ct(), EXPLICIT))
SESSIONS = (
    storing() + STORE + RELEASE_RQ,
    storing() + message(3, store_request(sop_class="1.2.840.10008.1.1")) + encode_abort(0, 0),
    storing() + STORE * 3,
    RQ + DATA + RELEASE_RQ,
    storing() + b"".join(encode_message(1, encode_command(store_request()), command=True, max_length=20)),
)


# -- no crash ------------------------------------------------------------------------------------------


@pytest.mark.threat("PDU length bomb")
@pytest.mark.parametrize("make", [connected, granted, asked], ids=["acceptor", "established", "requestor"])
def test_a_damaged_stream_ends_in_events_and_one_abort(make: Any) -> None:
    samples = (*SESSIONS, AC + DATA + RELEASE_RQ, RJ, AC + RELEASE_RP)
    for number, (name, data) in enumerate(damages(samples, 1500, 1)):
        layer = make()
        layer.take_outgoing()
        sent = 0
        for piece in cut(data, number) if number % 2 else [data]:
            layer.receive(piece)
            sent += sum(pdu[0] == 7 for pdu in layer.take_outgoing())
            if layer.close_wanted:
                break
        assert sent <= 1, name
        assert len(layer._reader._held) <= MAX_ASSOCIATE + 6, name
        assert len(layer._messages._command) <= MAX_COMMAND, name


@pytest.mark.threat("memory leaks by repeated requests")
def test_a_damaged_session_with_the_acceptor_is_nobodys_bug() -> None:
    """The whole way from the socket to the receiver: no failure is logged, no timer and no place stays."""
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    box = memory()
    title = now_leased(box, Sink(box.clock))
    idle = len(box.clock.getDelayedCalls())
    try:
        for number, (name, data) in enumerate(damages(SESSIONS, 800, 2)):
            association, wire = inbound(box)
            for piece in cut(data, number):
                association.dataReceived(piece)
                if wire.disconnecting:
                    break
            lose(association)
            bugs = [event for event in seen if event.get("log_failure") is not None]
            assert not bugs, (name, bugs[0]["log_failure"])
            seen.clear()
            assert not box.factory._open, name
            assert not title.channels, name
            assert len(box.clock.getDelayedCalls()) == idle, name
    finally:
        globalLogPublisher.removeObserver(seen.append)


def test_a_damaged_command_set_is_read_or_refused() -> None:
    samples = [encode_command(store_request(originator_ae_title="DRIMBOX", originator_message_id=7))]
    for name, data in damages(samples, 3000, 3):
        with contextlib.suppress(MessageRefused):
            command = decode_command(data)
            # What was read can be answered.
            assert decode_command(encode_command(command)).field == command.field, name


def test_a_damaged_identifier_is_read_or_refused(recwarn: pytest.WarningsRecorder) -> None:
    """C-FIND responses go through pydicom, which raises what it likes, and warns of each unknown tag."""
    for syntax, where in ((EXPLICIT_LE, EXPLICIT), (IMPLICIT_LE, IMPLICIT)):
        samples = [encode(ct(undefined=undefined, pixels=b"ab"), where) for undefined in (False, True)]
        for _, data in damages(samples, 400, 4):
            with contextlib.suppress(PacsCommunicationError):
                decode_dataset(data, syntax)
    with contextlib.suppress(PacsCommunicationError):
        decode_dataset(encode(ct(), BIG), EXPLICIT_LE)
    assert list(recwarn) == []


# -- no growth -----------------------------------------------------------------------------------------


@pytest.mark.threat("memory leaks by repeated requests")
def test_damaged_streams_leave_nothing_behind() -> None:
    def work() -> None:
        for _, data in damages(SESSIONS, 300, 5):
            granted().receive(data)

    assert_keeps_nothing(work)


# -- work as the input is long -------------------------------------------------------------------------


def dripped(reader: Any, data: bytes) -> None:
    for position in range(len(data)):
        reader.feed(data[position : position + 1])


def test_a_request_dripped_byte_by_byte_costs_its_length() -> None:
    def make(size: int) -> Any:
        data = struct.pack(">BxI", 1, size) + bytes(size)
        return lambda: dripped(PduReader(16384), data)

    assert_linear(make, 30_000)


def test_images_in_small_fragments_cost_their_length() -> None:
    def make(size: int) -> Any:
        pdv = struct.pack(">IBB", 3, 1, 0) + b"x"
        data = struct.pack(">BxI", 4, len(pdv) * 100) + pdv * 100
        return lambda: PduReader(16384).feed(data * (size // 100))

    assert_linear(make, 10_000)


def test_a_command_in_single_bytes_costs_its_length() -> None:
    """One byte a fragment, up to the longest command there may be."""

    def make(size: int) -> Any:
        pdv = struct.pack(">IBB", 3, 1, 1) + b"x"
        data = struct.pack(">BxI", 4, len(pdv)) + pdv

        def work() -> None:
            layer = granted()
            layer.receive(data * size)
            assert len(layer._messages._command) == size

        return work

    assert_linear(make, MAX_COMMAND // 4)


def test_a_request_of_many_contexts_costs_their_number() -> None:
    def make(size: int) -> Any:
        contexts = tuple(ProposedContext(2 * n + 1, CT, (EXPLICIT, IMPLICIT)) for n in range(size))
        data = encode_request(AssociationRequest("PACS", "DRIM1", contexts), 16384)

        def work() -> None:
            layer = UpperLayer(16384)
            layer.transport_indication()
            assert len(layer.receive(data)[0].contexts) == size  # type: ignore[union-attr]

        return work

    assert_linear(make, 32)


def test_a_request_of_many_items_is_refused_before_it_costs_anything() -> None:
    item = struct.pack(">BxH", 0x51, 4) + struct.pack(">I", 16384)
    body = encode_request(REQUEST, 16384)[6:] + item * 12_000
    reader = UpperLayer(16384)
    reader.transport_indication()
    reader.receive(struct.pack(">BxI", 1, len(body)) + body)
    assert reader.close_wanted
    with pytest.raises(PduRefused):
        PduReader(16384).feed(struct.pack(">BxI", 1, MAX_ASSOCIATE + 1))
