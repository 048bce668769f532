"""Two upper layers against each other in memory, and against every wrong PDU in every state."""

from __future__ import annotations

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from drimbox.dicom.association import (
    Aborted,
    AssociationRejected,
    ProtocolMisuse,
    Released,
    ReleaseRequested,
    UpperLayer,
)
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, DataReceived
from drimbox.dicom.negotiation import (
    AssociationAccepted,
    AssociationRequest,
    ProposedContext,
    encode_accept,
    encode_request,
)
from drimbox.dicom.pdu import RELEASE_RP, RELEASE_RQ, encode_abort, encode_message, encode_reject
from drimbox.dicom.states import State

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
REQUEST = AssociationRequest(
    "PACS",
    "DRIM01",
    (ProposedContext(1, CT, (EXPLICIT, IMPLICIT)), ProposedContext(3, CT, ("1.2.840.10008.1.2.4.70",))),
    extended={CT: b"\x01"},
)


def pair(accepted: dict[int, str] | None = None) -> tuple[UpperLayer, UpperLayer]:
    """A requestor and an acceptor, the association open between them."""
    requestor, acceptor = UpperLayer(32768), UpperLayer(16384)
    acceptor.transport_indication()
    requestor.request(REQUEST)
    (asked,) = move(requestor, acceptor)
    assert asked == AssociationRequest(
        "PACS", "DRIM01", REQUEST.contexts, max_length=32768, extended={CT: b"\x01"}
    )
    acceptor.accept(accepted or {1: EXPLICIT}, extended={CT: b"\x00"})
    (answer,) = move(acceptor, requestor)
    assert answer == AssociationAccepted(accepted or {1: EXPLICIT}, 16384, {CT: b"\x00"})
    return requestor, acceptor


def move(source: UpperLayer, target: UpperLayer) -> list[object]:
    return target.receive(b"".join(source.take_outgoing()))


def test_an_association_from_request_to_release() -> None:
    requestor, acceptor = pair()
    assert requestor.established
    assert acceptor.established
    assert not acceptor.artim
    dataset = b"D" * 40000
    requestor.send(1, Command(CommandField.C_STORE_RQ, message_id=1, affected_class=CT), dataset)
    command, *data = move(requestor, acceptor)
    assert isinstance(command, CommandReceived)
    assert b"".join(bytes(piece.data) for piece in data if isinstance(piece, DataReceived)) == dataset
    requestor.release()
    assert move(requestor, acceptor) == [ReleaseRequested()]
    acceptor.release_reply()
    assert acceptor.artim
    assert move(acceptor, requestor) == [Released()]
    assert requestor.close_wanted
    assert requestor.state is State.IDLE
    assert acceptor.transport_closed() == []
    assert not acceptor.artim


def test_p_data_is_cut_to_what_the_peer_takes() -> None:
    requestor, _ = pair()
    requestor.send(1, Command(CommandField.C_STORE_RQ, message_id=1), b"D" * 40000)
    assert max(len(pdu) - 6 for pdu in requestor.take_outgoing()) <= 16384


def test_a_rejection_reaches_the_requestor() -> None:
    requestor, acceptor = UpperLayer(16384), UpperLayer(16384)
    acceptor.transport_indication()
    requestor.request(REQUEST)
    move(requestor, acceptor)
    acceptor.reject(2, 3, 2)
    (answer,) = move(acceptor, requestor)
    assert answer == AssociationRejected(2, 3, 2)
    assert answer.transient
    assert requestor.close_wanted
    assert acceptor.artim


def test_release_collision() -> None:
    requestor, acceptor = pair()
    requestor.release()
    acceptor.release()
    from_requestor, from_acceptor = requestor.take_outgoing(), acceptor.take_outgoing()
    assert requestor.receive(b"".join(from_acceptor)) == [ReleaseRequested()]
    assert acceptor.receive(b"".join(from_requestor)) == [ReleaseRequested()]
    assert requestor.state is State.COLLISION_REQUESTOR_LOCAL
    assert acceptor.state is State.COLLISION_ACCEPTOR_REPLY
    requestor.release_reply()
    assert move(requestor, acceptor) == [ReleaseRequested()]
    acceptor.release_reply()
    assert move(acceptor, requestor) == [Released()]


def test_a_user_abort_is_seen_by_the_peer() -> None:
    requestor, acceptor = pair()
    requestor.abort()
    (event,) = move(requestor, acceptor)
    assert event == Aborted(True, 0, 0)
    assert acceptor.close_wanted
    requestor.abort()  # once more: harmless
    assert requestor.take_outgoing() == []


WRONG = {
    "request again": encode_request(REQUEST, 16384),
    "accept": encode_accept(REQUEST, {1: EXPLICIT}, {}, 16384),
    "reject": encode_reject(1, 1, 1),
    "release reply": RELEASE_RP,
    "data on a context never accepted": b"".join(encode_message(5, b"x", command=True, max_length=0)),
    "data set without command": b"".join(encode_message(1, b"x", command=False, max_length=0)),
    "unknown PDU": b"\x09\0\0\0\0\4\0\0\0\0",
    "garbage": b"\xff" * 64,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_pdu_is_answered_with_a_provider_abort(wrong: bytes) -> None:
    _, acceptor = pair()
    acceptor.take_outgoing()
    (event,) = acceptor.receive(wrong)
    assert isinstance(event, Aborted)
    assert not event.by_peer
    assert event.problem
    (abort,) = acceptor.take_outgoing()
    assert abort[0] == 7
    assert abort[8] == 2
    assert acceptor.state is State.AWAITING_CLOSE
    assert acceptor.close_wanted
    # Whatever follows is ignored; only the end of the connection is waited for.
    assert acceptor.receive(RELEASE_RQ) == []
    assert acceptor.artim


@pytest.mark.parametrize(
    "first", [RELEASE_RQ, RELEASE_RP, b"".join(encode_message(1, b"", command=True, max_length=0))]
)
def test_nothing_but_a_request_opens_an_association(first: bytes) -> None:
    acceptor = UpperLayer(16384)
    acceptor.transport_indication()
    assert acceptor.artim
    (event,) = acceptor.receive(first)
    assert isinstance(event, Aborted)
    assert acceptor.take_outgoing()[0][0] == 7


def test_artim_closes_a_connection_that_says_nothing() -> None:
    acceptor = UpperLayer(16384)
    acceptor.transport_indication()
    acceptor.artim_expired()
    assert acceptor.close_wanted
    assert acceptor.state is State.IDLE


def test_an_accept_of_what_was_not_proposed_is_refused() -> None:
    requestor = UpperLayer(16384)
    requestor.request(REQUEST)
    requestor.take_outgoing()
    other = AssociationRequest("PACS", "DRIM01", (ProposedContext(1, CT, ("1.2.840.10008.1.2.4.90",)),))
    (event,) = requestor.receive(encode_accept(other, {1: "1.2.840.10008.1.2.4.90"}, {}, 16384))
    assert isinstance(event, Aborted)


@pytest.mark.parametrize("number", [0, 2])
def test_context_identifiers_must_be_odd(number: int) -> None:
    data = bytearray(encode_request(REQUEST, 16384))
    data[data.index(b"\x20\x00\x00", 74) + 4] = number
    acceptor = UpperLayer(16384)
    acceptor.transport_indication()
    (event,) = acceptor.receive(bytes(data))
    assert isinstance(event, Aborted)


def test_every_cut_of_a_hostile_request_is_survived() -> None:
    data = encode_request(REQUEST, 16384)
    for position in range(6, len(data)):
        for value in (0x00, 0xFF):
            broken = bytearray(data)
            broken[position] = value
            acceptor = UpperLayer(16384)
            acceptor.transport_indication()
            for event in acceptor.receive(bytes(broken)):
                assert isinstance(event, Aborted | AssociationRequest)


def test_misuse_by_ourselves_is_our_bug_not_the_peers() -> None:
    layer = UpperLayer(16384)
    with pytest.raises(ProtocolMisuse):
        layer.release()
    with pytest.raises(ProtocolMisuse):
        layer.send(1, Command(CommandField.C_ECHO_RQ))


def test_an_abort_before_the_request_closes() -> None:
    acceptor = UpperLayer(16384)
    acceptor.transport_indication()
    acceptor.receive(encode_abort(0, 0))
    assert acceptor.close_wanted


def test_pynetdicom_reads_our_request() -> None:
    ae = AE()
    ae.add_supported_context(Verification)
    assert encode_request(REQUEST, 16384)[10:26] == b"DRIM01".ljust(16)
