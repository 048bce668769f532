"""What a PACS sends for one answer, kept for the next that asks for it (DB.SO.40).

Stands between the move and the transfer: everything goes through untouched, and each instance the KOS
lists is handed to the cache as well, as it came. Nothing here waits for the disk, refuses or fails: the
delivery never knows. The series is kept only after the answer was complete.

Not kept is what the PACS may have degraded for this very client: a lossy syntax that we chose where the
PACS proposed others too. A later client that takes something better is to have it from the PACS.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.dicom.dimse import Command
from drimbox.dicom.moving import Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import is_lossless
from drimbox.ports import CacheWriter, InstanceWriter
from drimbox.source.transfer import Transfer


class Keeping:
    """Passes a move on to its transfer and copies it to the cache (a `MoveReceiver`).

    `due` is what the entry must hold. Whoever makes it calls `settle`, whatever happens.
    """

    log = Logger()

    def __init__(self, transfer: Transfer, writer: CacheWriter, due: frozenset[str]) -> None:
        self._transfer = transfer
        self._writer = writer
        self._due = due
        self._slots: dict[Channel, InstanceWriter] = {}
        #: Class and syntax of contexts for which the PACS may have thrown bits away at our wish.
        self._lossy: set[tuple[str, str]] = set()
        self._degraded = False

    def settle(self, whole: bool) -> None:
        """Keep the series when its answer was `whole`, forget it otherwise; nobody waits for that."""
        self._slots.clear()
        ending = Deferred.fromCoroutine(self._end(whole and not self._degraded))
        ending.addErrback(lambda failure: self.log.failure("series not kept", failure=failure))

    async def _end(self, keep: bool) -> None:
        if keep:
            await self._writer.commit(self._due)
        else:
            await self._writer.discard()

    # -- MoveReceiver ------------------------------------------------------------------------------

    @property
    def last_activity(self) -> float:
        """Reactor time of the last byte received; 0 while none was."""
        return self._transfer.last_activity

    @property
    def busy(self) -> bool:
        """True while an instance is half received."""
        return self._transfer.busy

    @property
    def held_back(self) -> bool:
        """True while we are the ones who keep the PACS waiting."""
        return self._transfer.held_back

    @property
    def satisfied(self) -> bool:
        """True when everything due has arrived."""
        return self._transfer.satisfied

    def choose(self, context: ProposedContext) -> str | None:
        """Let the transfer choose."""
        return self._noted(context, self._transfer.choose(context))

    def second_choice(self, context: ProposedContext) -> str | None:
        """Let the transfer choose again."""
        return self._noted(context, self._transfer.second_choice(context))

    def opened(self, channel: Channel) -> None:
        """An association of this move is established."""
        self._transfer.opened(channel)

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """Begin an instance, in the cache too when it is due."""
        self._transfer.store(channel, command, transfer_syntax)
        instance, sop_class = command.affected_instance or "", command.affected_class or ""
        if instance in self._due:
            self._slots[channel] = self._writer.add(instance, sop_class, transfer_syntax)
            self._degraded = self._degraded or (sop_class, transfer_syntax) in self._lossy

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Pass a piece on and keep it; what the transfer refuses or drops is not kept."""
        before = self._transfer.received
        self._transfer.data(channel, piece, last)
        # The transfer may have ended the association just now.
        slot = self._slots.get(channel)
        if slot is None:
            return
        slot.write(piece)
        if last:
            del self._slots[channel]
            if self._transfer.received > before:
                slot.end()
            else:
                slot.drop()

    def closed(self, channel: Channel, clean: bool) -> None:
        """The association is over; a half-received instance is not kept."""
        slot = self._slots.pop(channel, None)
        if slot is not None:
            slot.drop()
        self._transfer.closed(channel, clean)

    def _noted(self, context: ProposedContext, syntax: str | None) -> str | None:
        if syntax is not None and not is_lossless(syntax) and len(context.transfer_syntaxes) > 1:
            self._lossy.add((context.abstract_syntax, syntax))
        return syntax
