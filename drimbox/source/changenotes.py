"""Reception of key objects from a PACS: IOCM rejection notes by C-STORE (RAD-66, DB.SO.25, DB.SO.26).

They come on our own AE title, not on one of the pool: nothing of them can be taken for an image of a
delivery. One is answered with success once it is durably stored, and is then worked on as an OMI^O23 is:
the study is compared with its PACS. What cannot be stored now is refused, for the PACS to send again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.moving import Channel
from drimbox.kos.changes import MAX_BYTES, KeyObject, read_key_object
from drimbox.kos.keyimages import NoteRefused
from drimbox.ports import Inbox, InThread
from drimbox.source.keyobjects import KeyObjects


class ChangeNotes:
    """Takes key objects. `stored` is called after each commit, to wake the feed."""

    log = Logger()

    def __init__(
        self, inbox: Inbox, in_thread: InThread, *, stored: Callable[[], None] = lambda: None
    ) -> None:
        self._inbox = inbox
        self._in_thread = in_thread
        self._stored = stored

    def receiver(self, pacs: str, peer: str) -> KeyObjects:
        """Return what receives on one association of `pacs`, from address `peer`."""

        def came(channel: Channel, command: Command, data: bytes | None) -> None:
            if data is None:
                channel.respond(command, Status.CANNOT_UNDERSTAND)
            else:
                # The answer waits for the disk: it promises that the object is safe.
                Deferred.fromCoroutine(_answer(channel, command, self.take(data, pacs, peer)))

        return KeyObjects(MAX_BYTES, came)

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


async def _answer(channel: Channel, command: Command, status: Awaitable[int]) -> None:
    channel.respond(command, await status)
