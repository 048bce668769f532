"""The PACS's ends of its associations: the one that asks it to move, and those on which it stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from twisted.internet.defer import CancelledError, Deferred

from drimbox.dicom.association import (
    Aborted,
    AssociationRejected,
    Event,
    Released,
    ReleaseRequested,
    UpperLayer,
)
from drimbox.dicom.dimse import Command, CommandField, CommandReceived, DataReceived, encode_command
from drimbox.dicom.identifiers import decode_dataset
from drimbox.dicom.negotiation import AssociationAccepted, AssociationRequest, ProposedContext
from drimbox.dicom.pdu import encode_message
from drimbox.dicom.states import State
from drimbox.dicom.transport import AssociationProtocol
from tests.properties.network import Network

MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
VERIFICATION = "1.2.840.10008.1.1"


def later(net: Network, seconds: float) -> Deferred[None]:
    """Let time pass."""
    waiting: Deferred[None] = Deferred()
    net.callLater(seconds, waiting.callback, None)
    return waiting


async def bounded(net: Network, waiting: Deferred[Any], seconds: float) -> Any:
    """Wait for something, no longer than that; None then."""
    timer = net.callLater(seconds, waiting.cancel)
    try:
        return await waiting
    except CancelledError:
        return None
    finally:
        if timer.active():
            timer.cancel()


class PeerAssociation(AssociationProtocol):
    """An association as the PACS has it: patient, and never the first to be idle."""

    def __init__(self, net: Network) -> None:
        super().__init__(UpperLayer(1 << 20), net, artim=5.0, idle=10_000.0)
        self.over = False

    def handle(self, event: Event) -> None:
        if type(event) is ReleaseRequested:
            if not self.layer.close_wanted:
                self.layer.release_reply()
            self.ended()
        elif type(event) in (Aborted, Released, AssociationRejected):
            self.ended()

    def gone(self) -> None:
        self.ended()

    def ended(self) -> None:
        """No message comes or goes any more."""
        self.over = True

    def raw(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def close(self) -> None:
        """Close the connection without a word."""
        transport: Any = self.transport
        self.ended()
        transport.loseConnection()


class Control(PeerAssociation):
    """The association of one C-MOVE; `asked` is called with each request."""

    def __init__(
        self, net: Network, plan_request: str, asked: Callable[[Control, Command, Dataset], None]
    ) -> None:
        super().__init__(net)
        self.cancelled = False
        self._how = plan_request
        self._asked = asked
        self._command: Command | None = None
        self._context = 0
        self._data = bytearray()

    def started(self) -> None:
        self.layer.transport_indication()

    def handle(self, event: Event) -> None:
        if type(event) is AssociationRequest:
            if self.layer.state is not State.AWAITING_LOCAL_ANSWER:
                # Asked for and given up in one breath.
                return
            if self._how == "reject":
                self.layer.reject(1, 1, 7)
            elif self._how == "close":
                self.close()
            elif self._how != "silent":
                self.layer.accept({each.id: each.transfer_syntaxes[0] for each in event.contexts})
        elif type(event) is CommandReceived:
            if event.command.field == CommandField.C_CANCEL_RQ:
                self.cancelled = True
            else:
                self._command, self._context = event.command, event.context_id
                self._data.clear()
        elif type(event) is DataReceived:
            self._data += event.data
            if event.last and self._command is not None:
                syntax = self.layer.contexts[self._context]
                self._asked(self, self._command, decode_dataset(bytes(self._data), syntax))
        else:
            super().handle(event)

    def answer(self, status: int, **counts: int | None) -> bool:
        """Send a response to the request; whether it was sent."""
        if self.over or not self.layer.established or self._command is None:
            return False
        self.layer.send(
            self._context,
            Command(
                CommandField.C_MOVE_RSP,
                responded_id=self._command.message_id,
                affected_class=MOVE,
                status=status,
                **counts,  # type: ignore[arg-type]
            ),
        )
        self.flush()
        return True


class Storing(PeerAssociation):
    """One association to an AE title of the gateway."""

    def __init__(self, net: Network, request: AssociationRequest, pdu: int) -> None:
        super().__init__(net)
        self._request = request
        self._pdu = pdu
        self._opened: Deferred[bool] | None = Deferred()
        self._waiting: Deferred[int | None] | None = None
        self._number = 0

    def started(self) -> None:
        self.layer.request(self._request)

    def handle(self, event: Event) -> None:
        if type(event) is AssociationAccepted:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.callback(True)
        elif type(event) is CommandReceived:
            waiting, self._waiting = self._waiting, None
            assert event.command.responded_id == self._number, "an answer to something else"
            if waiting is not None:
                waiting.callback(event.command.status)
        else:
            super().handle(event)

    def ended(self) -> None:
        super().ended()
        for waiting in (self._opened, self._waiting):
            if waiting is not None and not waiting.called:
                waiting.cancel()
        self._opened = self._waiting = None

    async def open(self, seconds: float) -> bool:
        """Wait for the acceptance."""
        if self._opened is None:
            return self.layer.established
        accepted = await bounded(self.clock, self._opened, seconds)  # type: ignore[arg-type]
        if not accepted and not self.over:
            self.abort()
        return bool(accepted)

    def context(self, sop_class: str, syntaxes: tuple[str, ...]) -> tuple[int, str] | None:
        """Return an accepted context in one of these syntaxes."""
        for number, syntax in self.layer.contexts.items():
            if self.layer.abstract_syntaxes[number] == sop_class and syntax in syntaxes:
                return number, syntax
        return None

    def message(self, context: int, command: Command, data: bytes | None) -> list[bytes]:
        """Return the PDUs of a request under the next message id."""
        self._number = command.message_id = self._number % 65535 + 1
        command.has_dataset = data is not None
        out = encode_message(context, encode_command(command), command=True, max_length=self._pdu)
        if data is not None:
            out += encode_message(context, data, command=False, max_length=self._pdu)
        return out

    async def answered(self, seconds: float) -> int | None:
        """Wait for the status; None when none came, and then the association is over."""
        if self.over:
            return None
        self._waiting = Deferred()
        status: int | None = await bounded(self.clock, self._waiting, seconds)  # type: ignore[arg-type]
        self._waiting = None
        if status is None and not self.over:
            self.abort()
        return status

    async def release(self) -> None:
        """End it in order."""
        if not self.over and self.layer.established:
            self.layer.release()
            self.flush()
        elif not self.over:
            self.abort()


def proposal(calling: str, called: str, contexts: list[tuple[str, tuple[str, ...]]]) -> AssociationRequest:
    """Make an A-ASSOCIATE-RQ; verification always comes last."""
    rows = [*contexts, (VERIFICATION, ("1.2.840.10008.1.2",))]
    return AssociationRequest(
        calling,
        called,
        tuple(ProposedContext(2 * n + 1, each, syntaxes) for n, (each, syntaxes) in enumerate(rows)),
    )
