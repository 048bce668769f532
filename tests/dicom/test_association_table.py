"""PS3.8 Table 9-10 carried out: every event in every state, through `UpperLayer`, from both sides.

`test_states` holds the table itself against the standard. Here an association is brought into each state by
what peers and users do, each event happens to it, and what the action of that cell prescribes (PS3.8 Tables
9-6 to 9-9) is what it does: the PDU sent, the indication, the next state, the timer, the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from drimbox.dicom.association import (
    Aborted,
    AssociationRejected,
    ProtocolMisuse,
    Released,
    ReleaseRequested,
    UpperLayer,
)
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, encode_command
from drimbox.dicom.negotiation import (
    AssociationAccepted,
    AssociationRequest,
    ProposedContext,
    encode_accept,
    encode_request,
)
from drimbox.dicom.pdu import RELEASE_RP, RELEASE_RQ, encode_abort, encode_message, encode_reject
from drimbox.dicom.states import Happening
from tests.dicom.test_states import TABLE

VERIFICATION, IMPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2"
REQUEST = AssociationRequest("PACS", "DRIM01", (ProposedContext(1, VERIFICATION, (IMPLICIT,)),))
ECHO = Command(CommandField.C_ECHO_RQ, message_id=1, affected_class=VERIFICATION)
RQ, AC = encode_request(REQUEST, 16384), encode_accept(REQUEST, {1: IMPLICIT}, {}, 16384)
DATA = b"".join(encode_message(1, encode_command(ECHO), command=True, max_length=0))
RJ, PEER_ABORT = encode_reject(1, 1, 1), encode_abort(2, 1)

# -- every state, by the ways that lead there ----------------------------------------------------------


def asked() -> UpperLayer:
    layer = UpperLayer(16384)
    layer.request(REQUEST)
    return layer


def connected() -> UpperLayer:
    layer = UpperLayer(16384)
    layer.transport_indication()
    return layer


def after(layer: UpperLayer, *steps: bytes | str) -> UpperLayer:
    """Let bytes arrive, or methods be called."""
    for step in steps:
        if isinstance(step, bytes):
            layer.receive(step)
        else:
            getattr(layer, step)()
    return layer


def granted() -> UpperLayer:
    layer = after(connected(), RQ)
    layer.accept({1: IMPLICIT})
    return layer


def refused() -> UpperLayer:
    layer = after(connected(), RQ)
    layer.reject(1, 1, 1)
    return layer


#: By column of Table 9-10. Sta4 lasts no time here: the connection is open before `request` is called.
WAYS: dict[int, dict[str, Callable[[], UpperLayer]]] = {
    1: {
        "new": lambda: UpperLayer(16384),
        "rejected": lambda: after(asked(), RJ),
        "aborted": lambda: after(granted(), PEER_ABORT),
    },
    2: {"acceptor": connected},
    3: {"acceptor": lambda: after(connected(), RQ)},
    5: {"requestor": asked},
    6: {"acceptor": granted, "requestor": lambda: after(asked(), AC)},
    7: {
        "acceptor": lambda: after(granted(), "release"),
        "requestor": lambda: after(asked(), AC, "release"),
    },
    8: {
        "acceptor": lambda: after(granted(), RELEASE_RQ),
        "requestor": lambda: after(asked(), AC, RELEASE_RQ),
    },
    9: {"requestor": lambda: after(asked(), AC, "release", RELEASE_RQ)},
    10: {"acceptor": lambda: after(granted(), "release", RELEASE_RQ)},
    11: {"requestor": lambda: after(asked(), AC, "release", RELEASE_RQ, "release_reply")},
    12: {"acceptor": lambda: after(granted(), "release", RELEASE_RQ, RELEASE_RP)},
    13: {
        "released": lambda: after(granted(), RELEASE_RQ, "release_reply"),
        "rejecting": refused,
        "aborting": lambda: after(granted(), "abort"),
        "faulty peer": lambda: after(granted(), b"\x09\0\0\0\0\0"),
    },
}

# -- every event, as it reaches the association --------------------------------------------------------


def told(call: Callable[[UpperLayer], object]) -> Callable[[UpperLayer], list[Any]]:
    """Make a local wish, which indicates nothing."""

    def happen(layer: UpperLayer) -> list[Any]:
        call(layer)
        return []

    return happen


def comes(data: bytes) -> Callable[[UpperLayer], list[Any]]:
    return lambda layer: list(layer.receive(data))


HAPPEN: dict[Happening, Callable[[UpperLayer], list[Any]]] = {
    Happening.LOCAL_REQUEST: told(lambda layer: layer.request(REQUEST)),
    Happening.ACCEPT_RECEIVED: comes(AC),
    Happening.REJECT_RECEIVED: comes(RJ),
    Happening.TRANSPORT_INDICATION: told(UpperLayer.transport_indication),
    Happening.REQUEST_RECEIVED: comes(RQ),
    Happening.LOCAL_ACCEPT: told(lambda layer: layer.accept({1: IMPLICIT})),
    Happening.LOCAL_REJECT: told(lambda layer: layer.reject(1, 1, 1)),
    Happening.LOCAL_DATA: told(lambda layer: layer.send(1, ECHO)),
    Happening.DATA_RECEIVED: comes(DATA),
    Happening.LOCAL_RELEASE: told(UpperLayer.release),
    Happening.RELEASE_REQUEST_RECEIVED: comes(RELEASE_RQ),
    Happening.RELEASE_REPLY_RECEIVED: comes(RELEASE_RP),
    Happening.LOCAL_RELEASE_REPLY: told(UpperLayer.release_reply),
    Happening.LOCAL_ABORT: told(lambda layer: layer.abort()),
    Happening.ABORT_RECEIVED: comes(PEER_ABORT),
    Happening.TRANSPORT_CLOSED: lambda layer: list(layer.transport_closed()),
    Happening.ARTIM_EXPIRED: told(UpperLayer.artim_expired),
    Happening.INVALID_PDU: comes(b"\x09\0\0\0\0\4\0\0\0\0"),
}

# -- what each action prescribes -----------------------------------------------------------------------

USER, PROVIDER, REPLY = 0, 2, "reply"


@attrs.frozen
class Due:
    """What is seen of an action. None: as it was before."""

    #: State afterwards.
    state: int
    #: Types of the PDUs sent.
    sent: tuple[int, ...] = ()
    #: Types of the events.
    events: tuple[type, ...] = ()
    artim: bool | None = None
    close: bool | None = None
    #: Who speaks in the A-ABORT.
    source: int | None = None


#: PS3.8 Tables 9-6 to 9-9. Where the standard waits for the peer to close after an A-ABORT, so do we, with
#: the connection closed on our side already: ARTIM runs, and nothing but the end is expected.
ACTIONS: dict[str, Due] = {
    "AE-1": Due(5, (1,)),  # with AE-2: the connection is there
    "AE-3": Due(6, (), (AssociationAccepted,)),
    "AE-4": Due(1, (), (AssociationRejected,), close=True),
    "AE-5": Due(2, artim=True),
    "AE-6": Due(3, (), (AssociationRequest,), artim=False),
    "AE-7": Due(6, (2,)),
    "AE-8": Due(13, (3,), artim=True),
    "DT-1": Due(6, (4,)),
    "DT-2": Due(6, (), (CommandReceived,)),
    "AR-1": Due(7, (5,)),
    "AR-2": Due(8, (), (ReleaseRequested,)),
    "AR-3": Due(1, (), (Released,), artim=False, close=True),
    "AR-4": Due(13, (6,), artim=True),
    "AR-5": Due(1, artim=False),
    "AR-6": Due(7, (), (CommandReceived,)),
    "AR-7": Due(8, (4,)),
    "AR-8": Due(9, (), (ReleaseRequested,)),  # 10 on the acceptor's side
    "AR-9": Due(11, (6,)),
    "AR-10": Due(12, (), (ReleaseRequested,)),
    "AA-1": Due(13, (7,), artim=True, close=True, source=USER),
    "AA-2": Due(1, artim=False, close=True),
    "AA-3": Due(1, (), (Aborted,), artim=False, close=True),
    "AA-4": Due(1, (), (Aborted,), artim=False),
    "AA-5": Due(1, artim=False),
    "AA-6": Due(13),
    "AA-7": Due(13, (7,), artim=True, close=True),
    "AA-8": Due(13, (7,), (Aborted,), artim=True, close=True, source=PROVIDER),
}
#: Indications that we give and the standard does not: they are for the log, and change nothing.
FOR_THE_LOG = {"AA-1", "AA-2"}
LOCAL = {
    Happening.LOCAL_REQUEST, Happening.TRANSPORT_INDICATION, Happening.LOCAL_ACCEPT, Happening.LOCAL_REJECT,
    Happening.LOCAL_DATA, Happening.LOCAL_RELEASE, Happening.LOCAL_RELEASE_REPLY,
}  # fmt: skip


def cells() -> list[Any]:
    """List (state, way, event, action) of the whole table."""
    found = []
    for line in TABLE.strip().splitlines():
        number, *actions = (cell.strip() for cell in line.split("|"))
        happening = Happening(int(number))
        if happening is Happening.TRANSPORT_CONFIRMED:
            continue  # together with LOCAL_REQUEST
        for column, action in enumerate(actions, start=1):
            for way, make in WAYS.get(column, {}).items():
                name = f"Sta{column}-{way}-{happening.name}-{action or 'blank'}"
                found.append(pytest.param(column, make, happening, action, id=name))
    return found


@pytest.mark.parametrize(("state", "make", "happening", "action"), cells())
def test_each_cell_of_the_table(
    state: int, make: Callable[[], UpperLayer], happening: Happening, action: str
) -> None:
    layer = make()
    layer.take_outgoing()
    assert layer.state.value == f"Sta{state}"
    before = layer.artim, layer.close_wanted
    if not action and happening in LOCAL:
        with pytest.raises(ProtocolMisuse):
            HAPPEN[happening](layer)
        assert (layer.state.value, layer.take_outgoing()) == (f"Sta{state}", [])
        assert (layer.artim, layer.close_wanted) == before
        return
    events = HAPPEN[happening](layer)
    sent = layer.take_outgoing()
    if not action:
        # Cannot happen, save that whoever gives up or is cut off may be late: nothing is sent or said.
        assert (layer.state.value, sent, events) == (f"Sta{state}", [], [])
        return
    due = ACTIONS[action]
    if action == "AR-8" and "ACCEPTOR" in layer.state.name:
        due = attrs.evolve(due, state=10)
    assert layer.state.value == f"Sta{due.state}"
    assert tuple(pdu[0] for pdu in sent) == due.sent
    if action not in FOR_THE_LOG:
        assert tuple(type(event) for event in events) == due.events
    assert all(isinstance(event, Aborted) for event in events if action in FOR_THE_LOG)
    assert layer.artim is (before[0] if due.artim is None else due.artim)
    assert layer.close_wanted is (before[1] if due.close is None else due.close)
    if due.source is not None and happening is not Happening.LOCAL_ABORT:
        assert sent[0][8] == due.source
        assert due.source == PROVIDER or sent[0][9] == 0  # the user gives no reason (PS3.8 9.3.8)


def test_every_state_that_can_last_is_tried() -> None:
    assert sorted(WAYS) == [number for number in range(1, 14) if number != 4]
    assert len(cells()) > 18 * 12


@pytest.mark.parametrize("way", WAYS[13])
def test_nothing_moves_an_association_that_waits_for_its_end(way: str) -> None:
    """Sta13: a peer that goes on for ever gets no more than an A-ABORT a piece, and no event."""
    layer = WAYS[13][way]()
    layer.take_outgoing()
    for data in (DATA, RELEASE_RQ, RELEASE_RP, AC, RJ) * 3:
        assert layer.receive(data) == []
    assert layer.take_outgoing() == []
    for _ in range(3):
        assert layer.receive(RQ + b"\xff" * 2000) == []
        assert len(layer.take_outgoing()) <= 1
    assert layer.artim
    layer.artim_expired()
    assert layer.state.value == "Sta1"
