"""One instance on its way from a C-STORE to a part of the answer.

The command set is only a claim: study, series and instance are read in the data set itself before the
first byte may leave (retrieval-engine.md, rule 1). Implicit VR Little Endian becomes Explicit as it flows
(DB.SO.41); everything else passes untouched.
"""

from __future__ import annotations

from collections import deque

import attrs

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.moving import Channel
from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.scan import Header, HeaderScanner
from drimbox.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from drimbox.errors import ImageError, ImageIdentityMismatch
from drimbox.source.handling import Handling

_AS_IT_IS = Handling()
#: (0000,0900) when the data set does not match what the command claims (PS3.4 Table B.2-1).
_DATASET_MISMATCH = 0xA900


class PartRefused(Exception):
    """The instance must not be delivered; `status` answers the C-STORE.

    With an `error`, nothing of the series may be.
    """

    def __init__(self, problem: str, status: int, error: ImageError | None = None) -> None:
        super().__init__(problem)
        self.status = status
        self.error = error


@attrs.define(eq=False)
class Spooled:
    """A block of a part in the spool; `data` is there until it is written, and once it is read back."""

    offset: int
    size: int
    data: bytes | None
    #: True until the disk has it.
    writing: bool = False
    #: True once it was sent or given up.
    taken: bool = False


class Part:
    """The bytes of one instance, verified and rewritten as they come, and those waiting to be sent."""

    def __init__(
        self,
        command: Command,
        transfer_syntax: str,
        *,
        study_uid: str,
        series_uid: str,
        channel: Channel | None = None,
        handling: Handling = _AS_IT_IS,
    ) -> None:
        #: The association it comes on.
        self.channel = channel
        self.instance_uid = command.affected_instance or ""
        self._command = command
        self._study_uid = study_uid
        self._series_uid = series_uid
        self._scanner: HeaderScanner | None = HeaderScanner(transfer_syntax)
        self._held: list[Buffer] = []
        self._converter = ImplicitToExplicit() if transfer_syntax == IMPLICIT_LE else None
        self._examine = handling.examine
        self._inserter = handling.inserter()
        #: Transfer syntax in which it leaves.
        self.syntax = EXPLICIT_LE if transfer_syntax == IMPLICIT_LE else transfer_syntax
        #: Verified bytes that could not be sent yet: those on disk first, those in memory behind.
        self.queue: deque[Buffer | Spooled] = deque()
        #: Bytes of `queue` in memory that were never on disk.
        self.in_memory = 0
        #: True once it has its place among the parts of the answer.
        self.queued = False
        #: True once its part header has been sent.
        self.opened = False
        #: True once its last byte has been received.
        self.ended = False

    @property
    def verified(self) -> bool:
        """True once the data set itself has said that it belongs here."""
        return self._scanner is None

    def feed(self, piece: Buffer, last: bool) -> list[Buffer]:
        """Take received bytes, return those that may leave.

        Raises `PartRefused` when the data set is not what was asked for, or not readable.
        """
        try:
            out = self._pass(piece) if self._scanner is None else self._scan(self._scanner, piece, last)
            if last:
                self.ended = True
                out += self._rest()
        except DatasetRefused as error:
            raise PartRefused(str(error), Status.CANNOT_UNDERSTAND) from error
        return out

    def _pass(self, piece: Buffer) -> list[Buffer]:
        if self._converter is not None:
            piece = self._converter.feed(piece)
        if self._inserter is not None:
            piece = memoryview(self._inserter.feed(piece))
        return [piece]

    def _rest(self) -> list[Buffer]:
        """Return what the end of the data set lets out."""
        out: list[Buffer] = []
        if self._converter is not None:
            last = self._converter.finish()
            out.append(memoryview(self._inserter.feed(last)) if self._inserter is not None else last)
        if self._inserter is not None:
            out.append(self._inserter.finish())
        return out

    def _scan(self, scanner: HeaderScanner, piece: Buffer, last: bool) -> list[Buffer]:
        self._held.append(piece)
        header = scanner.feed(piece)
        if header is None and last:
            header = scanner.finish()
        if header is None:
            return []
        self._verify(header)
        self._scanner = None
        held, self._held = self._held, []
        out = [self._preamble()]
        for waiting in held:
            out += self._pass(waiting)
        return out

    def _preamble(self) -> Buffer:
        return file_preamble(self._command.affected_class or "", self.instance_uid, self.syntax)

    def _verify(self, header: Header) -> None:
        if header.study_uid != self._study_uid or header.series_uid != self._series_uid:
            raise PartRefused("instance of another study or series", Status.NOT_AUTHORISED)
        if (
            header.sop_instance_uid != self.instance_uid
            or header.sop_class_uid != self._command.affected_class
        ):
            raise PartRefused("data set does not match its command", _DATASET_MISMATCH)
        if self._examine is not None:
            try:
                self._examine(header)
            except ImageIdentityMismatch as error:
                raise PartRefused("instance of another patient", Status.NOT_AUTHORISED, error) from error


class CollectedPart(Part):
    """An instance that cannot leave as it came: kept whole until it has been transcoded (DB.CS.83)."""

    def __init__(
        self,
        command: Command,
        transfer_syntax: str,
        *,
        study_uid: str,
        series_uid: str,
        channel: Channel | None = None,
        handling: Handling = _AS_IT_IS,
        max_bytes: int,
    ) -> None:
        super().__init__(
            command,
            transfer_syntax,
            study_uid=study_uid,
            series_uid=series_uid,
            channel=channel,
            handling=handling,
        )
        #: Transfer syntax it came in.
        self.source = transfer_syntax
        #: Bytes kept, and those of them counted as memory of the answer.
        self.size = 0
        self.weighed = 0
        self._pieces: list[Buffer] = []
        self._max_bytes = max_bytes

    def feed(self, piece: Buffer, last: bool) -> list[Buffer]:
        """Keep received bytes; nothing may leave yet. Raises `PartRefused`."""
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise PartRefused(f"more than {self._max_bytes} bytes to transcode", Status.OUT_OF_RESOURCES)
        self._pieces.append(piece)
        scanner = self._scanner
        if scanner is not None:
            try:
                header = scanner.feed(piece)
                if header is None and last:
                    header = scanner.finish()
            except DatasetRefused as error:
                raise PartRefused(str(error), Status.CANNOT_UNDERSTAND) from error
            if header is not None:
                self._verify(header)
                self._scanner = None
        return []

    def taken(self) -> bytes:
        """Return the data set as it came, once it is whole, and keep it no more."""
        dataset = b"".join(self._pieces)
        self._pieces.clear()
        return dataset

    def converted(self, syntax: str, dataset: Buffer) -> list[Buffer]:
        """Return what leaves: the data set in the syntax it was transcoded to.

        Raises `DatasetRefused` when the traits cannot be written into it.
        """
        self.syntax = syntax
        out: list[Buffer] = [self._preamble()]
        if self._inserter is None:
            out.append(dataset)
        else:
            out += [memoryview(self._inserter.feed(dataset)), self._inserter.finish()]
        self.ended = True
        return out
