"""One DICOM association without its socket: the upper layer of PS3.8 and the messages it carries.

`UpperLayer` is fed received bytes and local wishes; it returns events and collects the bytes to send.
`states.TRANSITIONS` decides what is due; this module only carries the actions out. Association PDUs are
read and written with pynetdicom's classes. The ARTIM timer is a wish (`artim`), as is closing the
connection (`close_wanted`): the adapter that owns the clock and the socket follows them.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from drimbox.dicom.dimse import (
    Command,
    CommandReceived,
    DataReceived,
    MessageReader,
    MessageRefused,
    encode_command,
)
from drimbox.dicom.negotiation import (
    AssociationAccepted,
    AssociationRequest,
    encode_accept,
    encode_request,
    read_accept,
    read_request,
)
from drimbox.dicom.pdu import (
    RELEASE_RP,
    RELEASE_RQ,
    AbortReason,
    ControlPdu,
    Fragment,
    PduReader,
    PduRefused,
    PduType,
    decode_abort,
    decode_reject,
    encode_abort,
    encode_message,
    encode_reject,
)
from drimbox.dicom.states import NEXT, TRANSITIONS, Happening, State

#: What source and reason of a rejection mean (PS3.8 Table 9-21), in French.
_REJECTIONS = {
    (1, 3): "il ne connaît pas l'AE title appelant",
    (1, 7): "il ne se connaît pas sous l'AE title appelé",
    (3, 1): "il est saturé",
    (3, 2): "limite d'associations atteinte",
}


class ProtocolMisuse(Exception):
    """Our own code asked for something the state does not allow: a bug of ours, never the peer's."""


@attrs.frozen
class AssociationRejected:
    """The peer refused our request (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int

    @property
    def transient(self) -> bool:
        """True when the peer says that a later try may succeed."""
        return self.result == 2

    @property
    def words(self) -> str:
        """The refusal in French, its numbers behind."""
        codes = f"résultat {self.result}, source {self.source}, motif {self.reason}"
        meaning = _REJECTIONS.get((self.source, self.reason))
        return f"{meaning} ({codes})" if meaning else codes


@attrs.frozen
class ReleaseRequested:
    """The peer wants to end the association in order."""


@attrs.frozen
class Released:
    """The association ended in order."""


@attrs.frozen
class Aborted:
    """The association is gone. `problem` is ours to log when the fault was seen here."""

    by_peer: bool
    source: int
    reason: int
    problem: str = ""


Event = (
    AssociationRequest
    | AssociationAccepted
    | AssociationRejected
    | CommandReceived
    | DataReceived
    | ReleaseRequested
    | Released
    | Aborted
)


class UpperLayer:
    """The upper layer state machine of one connection, either role.

    `max_pdu` is the longest P-DATA-TF we take, announced in the negotiation (PS3.8 D.1), bytes.
    Received bytes go to `receive`; what the wire must carry is taken with `take_outgoing`.
    """

    def __init__(self, max_pdu: int) -> None:
        self.state = State.IDLE
        self.max_pdu = max_pdu
        #: True while the ARTIM timer must run (PS3.8 9.1.5).
        self.artim = False
        #: True when the adapter must close the connection once the outgoing bytes are gone.
        self.close_wanted = False
        #: Transfer syntax and abstract syntax by accepted context id.
        self.contexts: dict[int, str] = {}
        self.abstract_syntaxes: dict[int, str] = {}
        self._peer_max_length = 0
        self._reader = PduReader(max_pdu)
        self._messages = MessageReader()
        self._outgoing: list[bytes] = []
        self._request: AssociationRequest | None = None
        self._requestor = False

    # -- transport ---------------------------------------------------------------------------------

    def transport_indication(self) -> None:
        """Start as acceptor: a connection came in (event 5)."""
        self._local(Happening.TRANSPORT_INDICATION)
        self.artim = True

    def request(self, request: AssociationRequest) -> None:
        """Start as requestor on a connection that is open (events 1 and 2)."""
        self._local(Happening.LOCAL_REQUEST)
        self._requestor = True
        self._request = request
        self._local(Happening.TRANSPORT_CONFIRMED)
        self.abstract_syntaxes = {context.id: context.abstract_syntax for context in request.contexts}
        self._outgoing.append(encode_request(request, self.max_pdu))

    def transport_closed(self) -> list[Event]:
        """The connection is gone (event 17)."""
        action = TRANSITIONS.get((Happening.TRANSPORT_CLOSED, self.state))
        self.artim = False
        if action is None:
            return []
        self.state = NEXT[action]
        return [Aborted(True, 2, 0, "connexion coupée par le pair")] if action == "AA-4" else []

    def artim_expired(self) -> None:
        """The ARTIM timer ran out (event 18)."""
        action = TRANSITIONS.get((Happening.ARTIM_EXPIRED, self.state))
        if action is not None:
            self._close(NEXT[action])

    def receive(self, data: bytes) -> list[Event]:
        """Take received bytes, return what they mean. Never raises: faults of the peer end in `Aborted`."""
        events: list[Event] = []
        try:
            for item in self._reader.feed(data):
                if type(item) is Fragment:
                    self._data(item, events)
                elif type(item) is ControlPdu:
                    self._control(item, events)
                if self.close_wanted:
                    break
        except PduRefused as fault:
            self._fault(str(fault), fault.reason, events)
        except MessageRefused as fault:
            self._fault(str(fault), AbortReason.UNEXPECTED_PARAMETER, events)
        return events

    def take_outgoing(self) -> list[bytes]:
        """Return the bytes to send, in order, and forget them."""
        outgoing = self._outgoing
        self._outgoing = []
        return outgoing

    # -- local wishes ------------------------------------------------------------------------------

    def accept(self, accepted: Mapping[int, str], *, extended: Mapping[str, bytes] | None = None) -> None:
        """Accept the association with these contexts (id to transfer syntax), refusing the others."""
        self._local(Happening.LOCAL_ACCEPT)
        assert self._request is not None
        self.contexts = dict(accepted)
        self.abstract_syntaxes = {context.id: context.abstract_syntax for context in self._request.contexts}
        self._outgoing.append(encode_accept(self._request, accepted, extended or {}, self.max_pdu))

    def reject(self, result: int, source: int, reason: int) -> None:
        """Reject the association (PS3.8 9.3.4)."""
        self._local(Happening.LOCAL_REJECT)
        self._outgoing.append(encode_reject(result, source, reason))
        self.artim = True

    def send(self, context_id: int, command: Command, dataset: bytes | None = None) -> None:
        """Send a DIMSE message on an accepted context."""
        self._local(Happening.LOCAL_DATA)
        command.has_dataset = dataset is not None
        limit = self._peer_max_length
        self._outgoing += encode_message(
            context_id, encode_command(command), command=True, max_length=limit
        )
        if dataset is not None:
            self._outgoing += encode_message(context_id, dataset, command=False, max_length=limit)

    def release(self) -> None:
        """Ask for an orderly end (A-RELEASE)."""
        self._local(Happening.LOCAL_RELEASE)
        self._outgoing.append(RELEASE_RQ)

    def release_reply(self) -> None:
        """Grant the peer's orderly end."""
        action = self._local(Happening.LOCAL_RELEASE_REPLY)
        self._outgoing.append(RELEASE_RP)
        self.artim = action == "AR-4"

    def abort(self, *, provider: bool = False, reason: AbortReason = AbortReason.NOT_SPECIFIED) -> None:
        """End the association at once; harmless when it is over already."""
        if (Happening.LOCAL_ABORT, self.state) not in TRANSITIONS:
            self.close_wanted = True
            return
        self._local(Happening.LOCAL_ABORT)
        self._outgoing.append(encode_abort(2 if provider else 0, reason if provider else 0))
        self.artim = True
        # Nothing more is due from the peer but the end of the connection (Sta13).
        self.close_wanted = True

    @property
    def established(self) -> bool:
        """True while messages may be sent."""
        return self.state is State.ESTABLISHED

    # -- actions -----------------------------------------------------------------------------------

    def _local(self, happening: Happening) -> str:
        action = TRANSITIONS.get((happening, self.state))
        if action is None:
            raise ProtocolMisuse(f"{happening.name} in {self.state.name}")
        self.state = NEXT[action]
        return action

    def _close(self, state: State) -> None:
        self.state = state
        self.artim = False
        self.close_wanted = True

    def _data(self, fragment: Fragment, events: list[Event]) -> None:
        if self.state is State.ESTABLISHED or self.state is State.AWAITING_RELEASE_REPLY:
            if fragment.context_id not in self.contexts:
                raise MessageRefused(f"data on presentation context {fragment.context_id}, never accepted")
            message = self._messages.feed(fragment)
            if message is not None:
                events.append(message)
            return
        self._unexpected(Happening.DATA_RECEIVED, "P-DATA-TF", events)

    def _control(self, item: ControlPdu, events: list[Event]) -> None:
        happening = _HAPPENINGS[item.type]
        action = TRANSITIONS.get((happening, self.state), "AA-8")
        match action:
            case "AE-3":
                assert self._request is not None
                accepted = read_accept(item.data, self._request)
                self.contexts = dict(accepted.contexts)
                self._peer_max_length = accepted.max_length
                self.state = NEXT[action]
                events.append(accepted)
            case "AE-4":
                result, source, reason = decode_reject(item.data)
                self._close(NEXT[action])
                events.append(AssociationRejected(result, source, reason))
            case "AE-6":
                self.artim = False
                request = read_request(item.data)
                self._request = request
                self._peer_max_length = request.max_length
                self.state = NEXT[action]
                events.append(request)
            case "AR-2":
                self.state = NEXT[action]
                events.append(ReleaseRequested())
            case "AR-3":
                self._close(NEXT[action])
                events.append(Released())
            case "AR-8":
                self.state = (
                    State.COLLISION_REQUESTOR_LOCAL if self._requestor else State.COLLISION_ACCEPTOR_REPLY
                )
                events.append(ReleaseRequested())
            case "AR-10":
                self.state = NEXT[action]
                events.append(ReleaseRequested())
            case "AA-2" | "AA-3":
                source, reason = decode_abort(item.data)
                self._close(NEXT[action])
                events.append(Aborted(True, source, reason))
            case "AA-6":
                pass
            case _:
                self._unexpected(happening, item.type.name, events)

    def _unexpected(self, happening: Happening, what: str, events: list[Event]) -> None:
        if TRANSITIONS.get((happening, self.state)) == "AA-6":
            return
        self._fault(f"{what} in {self.state.name}", AbortReason.UNEXPECTED_PDU, events)

    def _fault(self, problem: str, reason: AbortReason, events: list[Event]) -> None:
        """Carry out AA-1, AA-7 or AA-8: tell the peer, then wait for it to close."""
        action = TRANSITIONS.get((Happening.INVALID_PDU, self.state))
        self.close_wanted = True
        if action is None:
            return
        # Before any association there is no provider to speak for: AA-1 aborts as the user, without reason.
        source, reason = (0, AbortReason.NOT_SPECIFIED) if action == "AA-1" else (2, reason)
        self._outgoing.append(encode_abort(source, reason))
        self.state = NEXT[action]
        self.artim = True
        if action != "AA-7":
            # Under AA-7 it was over, and said so, before.
            events.append(Aborted(False, source, reason, problem))


_HAPPENINGS = {
    PduType.ASSOCIATE_RQ: Happening.REQUEST_RECEIVED,
    PduType.ASSOCIATE_AC: Happening.ACCEPT_RECEIVED,
    PduType.ASSOCIATE_RJ: Happening.REJECT_RECEIVED,
    PduType.DATA: Happening.DATA_RECEIVED,
    PduType.RELEASE_RQ: Happening.RELEASE_REQUEST_RECEIVED,
    PduType.RELEASE_RP: Happening.RELEASE_REPLY_RECEIVED,
    PduType.ABORT: Happening.ABORT_RECEIVED,
}
