"""From the bytes of a DICOM file, as they come, to its data set (PS3.10 7.1).

An archive keeps files; what is delivered is the data set behind a header of our own, exactly as when a PACS
sent it. Preamble and file meta are therefore read and dropped: 128 bytes of anything (they are the place
where a file can pretend to be a program, CVE-2019-11687), `DICM`, the elements of group 0002.
"""

from __future__ import annotations

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.part10 import MAX_FILE_META, FileMeta, read_file_meta
from drimbox.dicom.pdu import Buffer

#: Bytes of an element header that must be in sight before group 0002 is known to be over.
_BEYOND = 8
#: Bytes there must be before the first try to read group 0002: it has some 300 at most, as a rule.
_FIRST_TRY = 512


class FileReader:
    """Takes the bytes of one file, gives those of its data set."""

    def __init__(self) -> None:
        #: What group 0002 says, None until it has been read.
        self.meta: FileMeta | None = None
        self._held = bytearray()
        #: Bytes there must be before the next try; doubled, so that tiny blocks cost no more than big ones.
        self._enough = _FIRST_TRY

    def feed(self, data: bytes) -> Buffer:
        """Return the bytes of the data set among `data`; none before `meta` is known.

        Raises `DatasetRefused` when this is no Part 10 file.
        """
        if self.meta is not None:
            return data
        if not self._held and len(data) >= self._enough:
            return self._try(data)
        self._held += data
        return self._try(bytes(self._held)) if len(self._held) >= self._enough else b""

    def finish(self) -> Buffer:
        """Say that no byte will come; return what was held back. Raises `DatasetRefused`."""
        return b"" if self.meta is not None else self._found(bytes(self._held))

    def _try(self, data: bytes) -> Buffer:
        if data[128:132] != b"DICM":
            raise DatasetRefused("no DICM at byte 128: not a Part 10 file")
        try:
            meta = read_file_meta(data)
        except DatasetRefused:
            if len(data) > MAX_FILE_META:
                raise
        else:
            # Else an element may follow of which nothing has come yet.
            if meta.dataset_offset + _BEYOND <= len(data):
                return self._found(data, meta)
        self._held = bytearray(data)
        self._enough = 2 * len(data)
        return b""

    def _found(self, data: bytes, meta: FileMeta | None = None) -> Buffer:
        self.meta = meta or read_file_meta(data)
        self._held.clear()
        return memoryview(data)[self.meta.dataset_offset :]
