"""Reception of key objects from a PACS: IOCM rejection notes by C-STORE (RAD-66, DB.SO.25, DB.SO.26).

They come on our own AE title, not on one of the pool: nothing of them can be taken for an image of a
delivery. One is answered with success once it is durably stored, and is then worked on as an OMI^O23 is:
the study is compared with its PACS. What cannot be stored now is refused, for the PACS to send again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.moving import Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from drimbox.kos.changes import MAX_BYTES, KeyObject, read_key_object
from drimbox.kos.keyimages import NoteRefused
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.ports import Inbox

T = TypeVar("T")


class InThread(Protocol):
    """Runs a function off the reactor thread and awaits its result."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return an awaitable of `work()`."""


class ChangeNotes:
    """Takes key objects. `stored` is called after each commit, to wake the feed."""

    log = Logger()

    def __init__(
        self, inbox: Inbox, in_thread: InThread, *, stored: Callable[[], None] = lambda: None
    ) -> None:
        self._inbox = inbox
        self._in_thread = in_thread
        self._stored = stored

    def receiver(self, pacs: str, peer: str) -> NoteReceiver:
        """Return what receives on one association of `pacs`, from address `peer`."""
        return NoteReceiver(lambda data: self.take(data, pacs, peer))

    async def take(self, data: bytes, pacs: str, peer: str) -> int:
        """Store a Part 10 file; return the status of its C-STORE response. Never raises."""
        try:
            found = await self._in_thread(lambda: read_key_object(data))
        except NoteRefused as refusal:
            self.log.warn("key object of {pacs} refused: {refusal}", pacs=pacs, refusal=str(refusal))
            return Status.CANNOT_UNDERSTAND
        except Exception:
            self.log.failure("key object of {pacs} not read", pacs=pacs)
            return Status.OUT_OF_RESOURCES
        if not found.tells_of_change:
            self.log.info("key object {title} of {pacs} ignored", title=found.title, pacs=pacs)
            return Status.SUCCESS
        return await self._store(data, pacs, peer, found)

    async def _store(self, data: bytes, pacs: str, peer: str, found: KeyObject) -> int:
        try:
            await self._inbox.add(ris=pacs, peer=peer, control_id=found.sop_instance_uid, raw=data)
        except Exception:
            self.log.failure("key object of {pacs} could not be stored", pacs=pacs)
            return Status.OUT_OF_RESOURCES
        self._stored()
        self.log.info("key object {title} of {pacs} stored", title=found.title, pacs=pacs)
        return Status.SUCCESS


@attrs.define
class _Incoming:
    """A C-STORE under way."""

    command: Command
    transfer_syntax: str
    pieces: list[Buffer] = attrs.field(factory=list)
    size: int = 0


class NoteReceiver:
    """The key objects of one association (a `dicom.moving.Receiver`)."""

    def __init__(self, take: Callable[[bytes], Awaitable[int]]) -> None:
        self._take = take
        self._incoming: _Incoming | None = None

    def choose(self, context: ProposedContext) -> str | None:
        """Take key objects, nothing else."""
        if context.abstract_syntax != KOS_SOP_CLASS:
            return None
        taken = (each for each in (EXPLICIT_LE, IMPLICIT_LE) if each in context.transfer_syntaxes)
        return next(taken, None)

    def second_choice(self, context: ProposedContext) -> str | None:
        """Take nothing that was refused once."""
        return None

    def opened(self, channel: Channel) -> None:
        """Nothing to do."""

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """A key object begins."""
        self._incoming = _Incoming(command, transfer_syntax)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Keep it, up to the size of a real one; answer once it is safe."""
        incoming = self._incoming
        if incoming is None:
            return
        incoming.size += len(piece)
        if incoming.size <= MAX_BYTES:
            incoming.pieces.append(piece)
        if not last:
            return
        self._incoming = None
        command = incoming.command
        if incoming.size > MAX_BYTES:
            channel.respond(command, Status.CANNOT_UNDERSTAND)
            return
        try:
            head = file_preamble(
                command.affected_class or "", command.affected_instance or "", incoming.transfer_syntax
            )
        except DatasetRefused:
            channel.respond(command, Status.CANNOT_UNDERSTAND)
            return
        answering = self._take(b"".join((head, *incoming.pieces)))
        Deferred.fromCoroutine(_answer(channel, command, answering))

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget what did not come whole."""
        self._incoming = None


async def _answer(channel: Channel, command: Command, status: Awaitable[int]) -> None:
    channel.respond(command, await status)
