"""Rule 1 of the retrieval engine, byte by byte: whose title, whose caller, whose move, whose study.

The acceptor of the gateway with the receiver of its deliveries behind it, and the PDUs that a PACS or a
stranger would send. What is looked at is what goes back over the wire, and what reaches a client.
"""

from __future__ import annotations

from typing import Any

import pytest

from drimbox import metrics
from drimbox.dicom.aetitles import Title, TitleState
from drimbox.dicom.dimse import decode_command
from drimbox.dicom.negotiation import AssociationRequest, ProposedContext, read_accept
from drimbox.dicom.pdu import Fragment, PduReader
from drimbox.source.conversion import Conversion
from drimbox.source.transfer import Transfer
from drimbox.wado.accept import parse
from tests.dicom.box import (
    CT,
    EXPLICIT,
    IMPLICIT,
    SETTINGS,
    VERIFICATION,
    Box,
    Wire,
    asking,
    echo_request,
    inbound,
    memory,
    message,
    now_leased,
    pdu_types,
    store_request,
)
from tests.source.answers import SERIES, STUDY, Scene, dataset

JPEG_LS, RLE, DEFLATED = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"
ACCEPT, REJECT, DATA, ABORT = 2, 3, 4, 7
CONTEXTS = ((1, VERIFICATION, (IMPLICIT,)), (3, CT, (EXPLICIT,)), (5, CT, (JPEG_LS,)))
REQUEST = AssociationRequest("PACS", "DRIM1", tuple(ProposedContext(*context) for context in CONTEXTS))


def answers(data: bytes) -> list[tuple[int | None, str | None]]:
    """(status, instance) of each response in what was sent."""
    found = []
    for event in PduReader(1 << 20).feed(data):
        if isinstance(event, Fragment) and event.command:
            command = decode_command(bytes(event.data))
            found.append((command.status, command.affected_instance))
    return found


# -- a title that nobody asked for ---------------------------------------------------------------------


def free(box: Box) -> str:
    return "DRIM1"


def quarantined(box: Box) -> str:
    title = now_leased(box, None)
    title.release(final=False)
    assert title.state is TitleState.QUARANTINED
    return title.ae_title


def ours(box: Box) -> str:
    return SETTINGS.ae_title


@pytest.mark.requirement("DB.SO.177")
@pytest.mark.parametrize("make", [free, quarantined, ours])
def test_a_title_without_a_lease_takes_c_echo_and_no_storage(make: Any) -> None:
    box = memory()
    called = make(box)
    association, wire = inbound(box)
    association.dataReceived(asking(called, "PACS", CONTEXTS))
    accepted = read_accept(wire.take(), REQUEST)
    assert accepted.contexts == {1: IMPLICIT}
    association.dataReceived(echo_request())
    assert answers(wire.take()) == [(0x0000, None)]
    # Who sends an image all the same speaks on a context that was refused: the association ends.
    association.dataReceived(message(3, store_request(), b"an image"))
    sent = wire.take()
    assert pdu_types(sent) == [ABORT]
    assert sent[8] == 2
    assert wire.disconnecting


# -- a lease -------------------------------------------------------------------------------------------


class Leased:
    """A leased title whose receiver is that of a delivery."""

    def __init__(self) -> None:
        self.box = memory()
        self.scene = Scene(window=1 << 20)
        self.transfer = Transfer(
            study_uid=STUDY,
            series_uid=SERIES,
            due={"2.25.103"},
            acceptable=parse([b'multipart/related; type="application/dicom"; transfer-syntax=*']),
            outflow=self.scene.outflow,
            clock=self.scene.clock,
        )
        self.title: Title = now_leased(self.box, self.transfer)
        self.title.message_id = 7

    def opened(self, *, calling: str = "PACS", host: str = "127.0.0.1") -> tuple[Any, Wire]:
        association, wire = inbound(self.box, host)
        association.dataReceived(asking(self.title.ae_title, calling, CONTEXTS))
        return association, wire


@pytest.fixture
def leased() -> Leased:
    return Leased()


@pytest.mark.requirement("DB.SO.177")
@pytest.mark.threat("images of another patient")
@pytest.mark.parametrize(
    ("calling", "host"), [("INTRUDER", "127.0.0.1"), ("PACS", "127.0.0.9"), ("pacs", "127.0.0.1")]
)
def test_a_stranger_on_a_leased_title_is_given_c_echo_and_nothing_else(
    leased: Leased, calling: str, host: str
) -> None:
    association, wire = leased.opened(calling=calling, host=host)
    assert read_accept(wire.take(), REQUEST).contexts == {1: IMPLICIT}
    association.dataReceived(echo_request())
    assert answers(wire.take()) == [(0x0000, None)]
    association.dataReceived(message(3, store_request("2.25.103"), dataset()))
    assert pdu_types(wire.take()) == [ABORT]
    assert not leased.scene.outflow.started
    assert not leased.transfer.received


@pytest.mark.requirement("DB.SO.177")
@pytest.mark.threat("images of another patient")
@pytest.mark.parametrize(
    ("what", "changes", "data", "status"),
    [
        ("right", {}, {}, 0x0000),
        ("right originator", {"originator_ae_title": "DRIMBOX", "originator_message_id": 7}, {}, 0x0000),
        ("other originator", {"originator_ae_title": "OTHERBOX"}, {}, 0x0124),
        ("other message", {"originator_ae_title": "DRIMBOX", "originator_message_id": 6}, {}, 0x0124),
        ("other study", {}, {"StudyInstanceUID": "2.25.901"}, 0x0124),
        ("other series", {}, {"SeriesInstanceUID": "2.25.902"}, 0x0124),
        ("other instance", {}, {"SOPInstanceUID": "2.25.903"}, 0xA900),
        ("no study", {}, {"StudyInstanceUID": ""}, 0x0124),
    ],
)
def test_what_does_not_belong_to_the_move_is_refused_and_never_leaves(
    leased: Leased, what: str, changes: dict[str, Any], data: dict[str, str], status: int
) -> None:
    counter = metrics.STORE_REFUSED.labels(f"0x{status:04X}")
    counted = counter._value.get()
    association, wire = leased.opened()
    assert read_accept(wire.take(), REQUEST).contexts == {1: IMPLICIT, 3: EXPLICIT, 5: JPEG_LS}
    association.dataReceived(message(3, store_request("2.25.103", **changes), dataset(**data)))
    assert answers(wire.take()) == [(status, "2.25.103")]
    refused = status != 0
    assert counter._value.get() == counted + refused
    assert leased.scene.outflow.started is not refused
    # The association goes on, and the right one, which may still come, is taken.
    association.dataReceived(message(3, store_request("2.25.103"), dataset()))
    assert answers(wire.take()) == [(0x0000, "2.25.103")]
    leased.scene.outflow.complete()
    whole, closed = leased.scene.sink.read()
    assert closed
    assert len(whole) == 1


def test_the_syntax_is_that_of_the_context_an_image_came_on(leased: Leased) -> None:
    """Not that of the first context, nor of the last one that was accepted."""
    association, wire = leased.opened()
    wire.take()
    association.dataReceived(message(5, store_request("2.25.103"), dataset()))
    association.dataReceived(message(3, store_request("2.25.104"), dataset("2.25.104")))
    assert answers(wire.take()) == [(0, "2.25.103"), (0, "2.25.104")]
    leased.scene.outflow.complete()
    assert leased.transfer.tally.syntaxes == {JPEG_LS: 1, EXPLICIT: 1}
    text = bytes(leased.scene.sink.output)
    assert text.index(f"transfer-syntax={JPEG_LS}\r".encode()) < text.index(f"syntax={EXPLICIT}\r".encode())


def test_a_repeated_image_is_a_success_so_that_no_pacs_gives_up(leased: Leased) -> None:
    association, wire = leased.opened()
    wire.take()
    for _ in range(3):
        association.dataReceived(message(3, store_request("2.25.103"), dataset()))
    assert answers(wire.take()) == [(0, "2.25.103")] * 3
    leased.scene.outflow.complete()
    assert len(leased.scene.sink.parts()) == 1


@pytest.mark.requirement("DB.SO.85", "DB.CS.83")
@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        # What the client takes as it is, and then nothing else of that class ...
        (JPEG_LS, {5: JPEG_LS}),
        (EXPLICIT, {3: EXPLICIT}),
        # ... and for a class of which it takes nothing, whatever we can decode.
        ("1.2.840.10008.1.2.4.70", {3: EXPLICIT, 5: JPEG_LS, 7: RLE}),
    ],
)
def test_contexts_the_client_takes_come_before_those_we_can_decode(
    wanted: str, accepted: dict[int, str]
) -> None:
    box, scene = memory(), Scene()
    codec: Any = None
    acceptable = parse([f'multipart/related; type="application/dicom"; transfer-syntax={wanted}'.encode()])
    transfer = Transfer(
        study_uid=STUDY,
        series_uid=SERIES,
        due={"2.25.103"},
        acceptable=acceptable,
        outflow=scene.outflow,
        clock=scene.clock,
        conversion=Conversion(codec, acceptable, scene.outflow, lambda error: None),
        max_collected=1 << 20,
    )
    title = now_leased(box, transfer)
    association, wire = inbound(box)
    # Deflated is nothing we read.
    contexts = ((3, CT, (EXPLICIT,)), (5, CT, (JPEG_LS,)), (7, CT, (RLE,)), (9, CT, (DEFLATED,)))
    association.dataReceived(asking(title.ae_title, "PACS", contexts))
    request = AssociationRequest("PACS", "DRIM1", tuple(ProposedContext(*context) for context in contexts))
    assert read_accept(wire.take(), request).contexts == accepted
