"""Receiving key objects: small data sets kept whole, one after the other on each association."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from drimbox.dicom.dimse import Command
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.moving import Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from drimbox.kos.reading import KOS_SOP_CLASS


@attrs.define
class _Incoming:
    """A C-STORE under way."""

    command: Command
    transfer_syntax: str
    pieces: list[Buffer] = attrs.field(factory=list)
    size: int = 0


class KeyObjects:
    """Takes key objects, nothing else (a `dicom.moving.Receiver`).

    `came` is called when a data set is over, with the Part 10 file, or None for one that is longer than
    `max_bytes` or named by no UIDs; it answers the C-STORE.
    """

    def __init__(self, max_bytes: int, came: Callable[[Channel, Command, bytes | None], None]) -> None:
        self._max_bytes = max_bytes
        self._came = came
        self._incoming: dict[Channel, _Incoming] = {}

    @property
    def busy(self) -> bool:
        """True inside an object."""
        return bool(self._incoming)

    def choose(self, context: ProposedContext) -> str | None:
        """Take key objects, uncompressed as they always are."""
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
        """An object begins."""
        self._incoming[channel] = _Incoming(command, transfer_syntax)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Keep it, up to the size of a real one."""
        incoming = self._incoming.get(channel)
        if incoming is None:
            return
        incoming.size += len(piece)
        if incoming.size <= self._max_bytes:
            incoming.pieces.append(piece)
        if last:
            del self._incoming[channel]
            self._came(channel, incoming.command, self._whole(incoming))

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget what did not come whole."""
        self._incoming.pop(channel, None)

    def _whole(self, incoming: _Incoming) -> bytes | None:
        command = incoming.command
        if incoming.size > self._max_bytes:
            return None
        try:
            head = file_preamble(
                command.affected_class or "", command.affected_instance or "", incoming.transfer_syntax
            )
        except DatasetRefused:
            return None
        return b"".join((head, *incoming.pieces))
