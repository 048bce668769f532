"""What a C-MOVE and whoever wants its instances agree on.

No socket and no clock here: the adapters (`acceptor`, `aetitles`, `retrieval`) and the use-cases that
receive instances meet at these protocols.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer


class Channel(Protocol):
    """One association that the PACS opened to us, as its receiver sees it."""

    def respond(self, command: Command, status: int) -> None:
        """Answer a C-STORE."""

    def pause(self) -> None:
        """Stop reading from the PACS."""

    def resume(self) -> None:
        """Read again."""

    def abort(self) -> None:
        """End the association at once."""


class Receiver(Protocol):
    """What a move does with the instances that arrive for it."""

    def choose(self, context: ProposedContext) -> str | None:
        """Return the transfer syntax to accept for a storage context, None to refuse it."""

    def second_choice(self, context: ProposedContext) -> str | None:
        """Return the syntax to accept for a context of a class of which `choose` took none, or None."""

    def opened(self, channel: Channel) -> None:
        """An association of this move is established."""

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """A C-STORE request came; its data set follows, and `respond` is due after it."""

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """A piece of the data set of the last C-STORE request on this channel."""

    def closed(self, channel: Channel, clean: bool) -> None:
        """The association is over; `clean` when it was released in order."""


class MoveReceiver(Receiver, Protocol):
    """A receiver that a retrieval can watch."""

    @property
    def last_activity(self) -> float:
        """Reactor time of the last byte received; 0 while none was."""

    @property
    def busy(self) -> bool:
        """True while an instance is half received."""

    @property
    def held_back(self) -> bool:
        """True while we are the ones who keep the PACS waiting."""

    @property
    def satisfied(self) -> bool:
        """True when everything due has arrived."""


@attrs.frozen
class MoveResult:
    """The final C-MOVE response (PS3.4 C.4.2.1.4)."""

    status: int
    completed: int | None
    failed: int | None
    warning: int | None
    comment: str = ""

    @property
    def success(self) -> bool:
        """True for success, and for a warning: then some sub-operations failed (PS3.4 C.4.2.1.5)."""
        return self.status in (Status.SUCCESS, Status.WARNING)


class Abandoned(Exception):
    """Whoever asked for the retrieval does not want it any more."""
