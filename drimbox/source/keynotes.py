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
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.moving import Abandoned, Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from drimbox.errors import ImageError, PacsCommunicationError
from drimbox.kos.keyimages import MAX_BYTES, MAX_NOTES, Note, NoteRefused, cited_by, note_series, read_note
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage
from drimbox.model import Study
from drimbox.ports import ImageArchive

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
            due = _instances(study, series_uid)
            collector = Collector(self._clock, study.study_uid, due)
            try:
                await archive.retrieval(collector).run(study.study_uid, series_uid, wait=_WAIT)
            except (ImageError, PacsCommunicationError, Abandoned) as error:
                text = "key objects of {study} not fetched: {error}"
                self.log.warn(text, study=study.study_uid, error=str(error))
            complete &= collector.satisfied
            objects += collector.objects
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


@attrs.define
class _Incoming:
    command: Command
    transfer_syntax: str
    pieces: list[Buffer] = attrs.field(factory=list)
    size: int = 0


class Collector:
    """Keeps the key objects of one series, whole, each at most `MAX_BYTES` (a `MoveReceiver`)."""

    held_back = False

    def __init__(self, clock: IReactorTime, study_uid: str, due: frozenset[str]) -> None:
        self.objects: list[bytes] = []
        self.last_activity = 0.0
        self._clock = clock
        self._study_uid = study_uid
        self._due = due
        self._seen: set[str] = set()
        self._incoming: dict[Channel, _Incoming] = {}

    @property
    def busy(self) -> bool:
        """True inside an object."""
        return bool(self._incoming)

    @property
    def satisfied(self) -> bool:
        """True when everything due has come."""
        return not self._incoming and self._due <= self._seen

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
        """An object begins."""
        self.last_activity = self._clock.seconds()
        self._incoming[channel] = _Incoming(command, transfer_syntax)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Keep it; what is not due, too large or too much is dropped, with success all the same."""
        self.last_activity = self._clock.seconds()
        incoming = self._incoming[channel]
        incoming.size += len(piece)
        if incoming.size <= MAX_BYTES:
            incoming.pieces.append(piece)
        if last:
            del self._incoming[channel]
            self._keep(incoming)
            channel.respond(incoming.command, Status.SUCCESS)

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget what did not come whole."""
        self._incoming.pop(channel, None)

    def _keep(self, incoming: _Incoming) -> None:
        command = incoming.command
        uid = command.affected_instance or ""
        if uid not in self._due or uid in self._seen:
            return
        self._seen.add(uid)
        if incoming.size > MAX_BYTES or len(self.objects) >= MAX_NOTES:
            return
        try:
            head = file_preamble(command.affected_class or "", uid, incoming.transfer_syntax)
        except DatasetRefused:
            return
        self.objects.append(b"".join((head, *incoming.pieces)))
