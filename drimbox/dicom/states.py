"""The DICOM upper layer's state machine as data: PS3.8 Table 9-10, and nothing else.

`TRANSITIONS` says, for an event in a state, which action is due; `NEXT` says where that action leads.
A pair that the table leaves blank cannot happen, or is an error of ours. The table knows no role, no
socket and no clock: `association.UpperLayer` carries the actions out.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """States of PS3.8 9.2.1, in words; the value is the standard's own name."""

    IDLE = "Sta1"
    AWAITING_REQUEST = "Sta2"
    AWAITING_LOCAL_ANSWER = "Sta3"
    AWAITING_TRANSPORT = "Sta4"
    AWAITING_ANSWER = "Sta5"
    ESTABLISHED = "Sta6"
    AWAITING_RELEASE_REPLY = "Sta7"
    AWAITING_LOCAL_RELEASE = "Sta8"
    COLLISION_REQUESTOR_LOCAL = "Sta9"
    COLLISION_ACCEPTOR_REPLY = "Sta10"
    COLLISION_REQUESTOR_REPLY = "Sta11"
    COLLISION_ACCEPTOR_LOCAL = "Sta12"
    AWAITING_CLOSE = "Sta13"


class Happening(enum.Enum):
    """Events of PS3.8 Table 9-10, in words; the value is the standard's own number."""

    LOCAL_REQUEST = 1
    TRANSPORT_CONFIRMED = 2
    ACCEPT_RECEIVED = 3
    REJECT_RECEIVED = 4
    TRANSPORT_INDICATION = 5
    REQUEST_RECEIVED = 6
    LOCAL_ACCEPT = 7
    LOCAL_REJECT = 8
    LOCAL_DATA = 9
    DATA_RECEIVED = 10
    LOCAL_RELEASE = 11
    RELEASE_REQUEST_RECEIVED = 12
    RELEASE_REPLY_RECEIVED = 13
    LOCAL_RELEASE_REPLY = 14
    LOCAL_ABORT = 15
    ABORT_RECEIVED = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


#: Where an action leads (PS3.8 Tables 9-6 to 9-9). AE-6 and AR-8 depend on the case: the acceptable
#: request, and the requestor's side, are the ones written here; `association` handles the other.
NEXT: dict[str, State] = {
    "AE-1": State.AWAITING_TRANSPORT,
    "AE-2": State.AWAITING_ANSWER,
    "AE-3": State.ESTABLISHED,
    "AE-4": State.IDLE,
    "AE-5": State.AWAITING_REQUEST,
    "AE-6": State.AWAITING_LOCAL_ANSWER,
    "AE-7": State.ESTABLISHED,
    "AE-8": State.AWAITING_CLOSE,
    "DT-1": State.ESTABLISHED,
    "DT-2": State.ESTABLISHED,
    "AR-1": State.AWAITING_RELEASE_REPLY,
    "AR-2": State.AWAITING_LOCAL_RELEASE,
    "AR-3": State.IDLE,
    "AR-4": State.AWAITING_CLOSE,
    "AR-5": State.IDLE,
    "AR-6": State.AWAITING_RELEASE_REPLY,
    "AR-7": State.AWAITING_LOCAL_RELEASE,
    "AR-8": State.COLLISION_REQUESTOR_LOCAL,
    "AR-9": State.COLLISION_REQUESTOR_REPLY,
    "AR-10": State.COLLISION_ACCEPTOR_LOCAL,
    "AA-1": State.AWAITING_CLOSE,
    "AA-2": State.IDLE,
    "AA-3": State.IDLE,
    "AA-4": State.IDLE,
    "AA-5": State.IDLE,
    "AA-6": State.AWAITING_CLOSE,
    "AA-7": State.AWAITING_CLOSE,
    "AA-8": State.AWAITING_CLOSE,
}


def _row(happening: Happening, columns: dict[int, str]) -> dict[tuple[Happening, State], str]:
    return {(happening, State(f"Sta{number}")): action for number, action in columns.items()}


def _all_but(own: dict[int, str], rest: str, states: range = range(3, 13)) -> dict[int, str]:
    return {number: rest for number in states if number != 4} | own


TRANSITIONS: dict[tuple[Happening, State], str] = {
    **_row(Happening.LOCAL_REQUEST, {1: "AE-1"}),
    **_row(Happening.TRANSPORT_CONFIRMED, {4: "AE-2"}),
    **_row(Happening.ACCEPT_RECEIVED, _all_but({2: "AA-1", 5: "AE-3", 13: "AA-6"}, "AA-8")),
    **_row(Happening.REJECT_RECEIVED, _all_but({2: "AA-1", 5: "AE-4", 13: "AA-6"}, "AA-8")),
    **_row(Happening.TRANSPORT_INDICATION, {1: "AE-5"}),
    **_row(Happening.REQUEST_RECEIVED, _all_but({2: "AE-6", 13: "AA-7"}, "AA-8")),
    **_row(Happening.LOCAL_ACCEPT, {3: "AE-7"}),
    **_row(Happening.LOCAL_REJECT, {3: "AE-8"}),
    **_row(Happening.LOCAL_DATA, {6: "DT-1", 8: "AR-7"}),
    **_row(Happening.DATA_RECEIVED, _all_but({2: "AA-1", 6: "DT-2", 7: "AR-6", 13: "AA-6"}, "AA-8")),
    **_row(Happening.LOCAL_RELEASE, {6: "AR-1"}),
    **_row(
        Happening.RELEASE_REQUEST_RECEIVED, _all_but({2: "AA-1", 6: "AR-2", 7: "AR-8", 13: "AA-6"}, "AA-8")
    ),
    **_row(
        Happening.RELEASE_REPLY_RECEIVED,
        _all_but({2: "AA-1", 7: "AR-3", 10: "AR-10", 11: "AR-3", 13: "AA-6"}, "AA-8"),
    ),
    **_row(Happening.LOCAL_RELEASE_REPLY, {8: "AR-4", 9: "AR-9", 12: "AR-4"}),
    **_row(Happening.LOCAL_ABORT, _all_but({4: "AA-2"}, "AA-1")),
    **_row(Happening.ABORT_RECEIVED, _all_but({2: "AA-2", 13: "AA-2"}, "AA-3")),
    **_row(Happening.TRANSPORT_CLOSED, _all_but({2: "AA-5", 4: "AA-4", 13: "AR-5"}, "AA-4")),
    **_row(Happening.ARTIM_EXPIRED, {2: "AA-2", 13: "AA-2"}),
    **_row(Happening.INVALID_PDU, _all_but({2: "AA-1", 13: "AA-7"}, "AA-8")),
}
