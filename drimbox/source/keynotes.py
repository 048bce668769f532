"""Finding the key image notes of a study before its manifest is made (DB.SO.194, figure 11).

Each series of modality KO that C-FIND lists is fetched, its key objects read, and the images they mark
told to the manifest. Marks are help for a reader, not the study: an object that cannot be read costs its
marks and never the KOS. A series that cannot be fetched is told (`complete`), so that a manifest does not
lose its marks to a passing trouble.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.moving import Abandoned, Channel
from drimbox.dicom.pdu import Buffer
from drimbox.errors import ImageError, PacsCommunicationError
from drimbox.kos.keyimages import MAX_BYTES, MAX_NOTES, Note, NoteRefused, cited_by, note_series, read_note
from drimbox.kos.reading import KeyImage
from drimbox.model import Study
from drimbox.ports import ImageArchive
from drimbox.source.keyobjects import KeyObjects

#: Seconds to wait for an AE title: images that a Consumer waits for come first.
_WAIT = 60.0


@attrs.frozen
class Marks:
    """What the notes of a study say."""

    #: By SOP Instance UID, the notes that mark it.
    images: Mapping[str, tuple[KeyImage, ...]] = attrs.field(factory=dict)
    #: False when some notes could not be fetched.
    complete: bool = True


class KeyNotes:
    """Reads the notes of studies."""

    log = Logger()

    def __init__(
        self, clock: IReactorTime, in_thread: Callable[[Callable[[], object]], Awaitable[object]]
    ) -> None:
        self._clock = clock
        self._in_thread = in_thread

    async def marks(self, archive: ImageArchive, study: Study) -> Marks:
        """Return what the notes of a study mark. Never raises for what the archive does."""
        objects: list[bytes] = []
        complete = True
        for series_uid in note_series(study):
            collector = Collector(self._clock, _instances(study, series_uid))
            complete &= await collector.collect(archive, study.study_uid, series_uid)
            objects += collector.objects.values()
        if not objects:
            return Marks({}, complete)
        notes = await self._in_thread(lambda: self._read(study, objects))
        assert isinstance(notes, list)
        return Marks(cited_by(notes, study), complete)

    def _read(self, study: Study, objects: list[bytes]) -> list[Note]:
        notes = []
        for data in objects:
            try:
                note = read_note(data)
            except NoteRefused as refusal:
                text = "key object of {study} not read: {refusal}"
                self.log.warn(text, study=study.study_uid, refusal=str(refusal))
            else:
                if note is not None:
                    notes.append(note)
        return notes


def _instances(study: Study, series_uid: str) -> frozenset[str]:
    return frozenset(
        instance.sop_instance_uid
        for series in study.series
        if series.series_uid == series_uid
        for instance in series.instances
    )


class Collector(KeyObjects):
    """Keeps the key objects of one series, each at most `max_bytes` and all `room` (a `MoveReceiver`).

    What is not due, comes again, or is too large or too much is dropped, with success all the same.
    """

    log = Logger()
    held_back = False

    def __init__(
        self,
        clock: IReactorTime,
        due: frozenset[str],
        *,
        max_bytes: int = MAX_BYTES,
        room: int = MAX_NOTES * MAX_BYTES,
    ) -> None:
        super().__init__(max_bytes, self._keep)
        #: Part 10 files by SOP Instance UID.
        self.objects: dict[str, bytes] = {}
        self._room = room
        self.last_activity = 0.0
        self._clock = clock
        self._due = due
        self._seen: set[str] = set()

    async def collect(self, archive: ImageArchive, study_uid: str, series_uid: str) -> bool:
        """Fetch the series; return whether everything due came. Never raises for what the archive does."""
        try:
            await archive.retrieval(self).run(study_uid, series_uid, wait=_WAIT)
        except (ImageError, PacsCommunicationError, Abandoned) as error:
            text = "key objects of {study} not fetched: {error}"
            self.log.warn(text, study=study_uid, error=str(error))
        return self.satisfied

    @property
    def satisfied(self) -> bool:
        """True when everything due has come."""
        return not self.busy and self._due <= self._seen

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """An object begins."""
        self.last_activity = self._clock.seconds()
        super().store(channel, command, transfer_syntax)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Keep it."""
        self.last_activity = self._clock.seconds()
        super().data(channel, piece, last)

    def _keep(self, channel: Channel, command: Command, data: bytes | None) -> None:
        uid = command.affected_instance or ""
        if uid in self._due and uid not in self._seen:
            self._seen.add(uid)
            if data is not None and len(self.objects) < MAX_NOTES and len(data) <= self._room:
                self._room -= len(data)
                self.objects[uid] = data
        channel.respond(command, Status.SUCCESS)
