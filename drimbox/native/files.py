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


class FileReader:
    """Takes the bytes of one file, gives those of its data set."""

    def __init__(self) -> None:
        #: What group 0002 says, None until it has been read.
        self.meta: FileMeta | None = None
        self._held = b""

    def feed(self, data: bytes) -> Buffer:
        """Return the bytes of the data set among `data`; none before `meta` is known.

        Raises `DatasetRefused` when this is no Part 10 file.
        """
        if self.meta is not None:
            return data
        self._held += data
        if self._held[128:132] != b"DICM"[: max(0, len(self._held) - 128)]:
            raise DatasetRefused("no DICM at byte 128: not a Part 10 file")
        try:
            meta = read_file_meta(self._held)
        except DatasetRefused:
            if len(self._held) > MAX_FILE_META:
                raise
            return b""
        # An element may follow of which nothing has come yet.
        if meta.dataset_offset + _BEYOND > len(self._held):
            return b""
        return self._found(meta)

    def finish(self) -> Buffer:
        """Say that no byte will come; return what was held back. Raises `DatasetRefused`."""
        return b"" if self.meta is not None else self._found(read_file_meta(self._held))

    def _found(self, meta: FileMeta) -> Buffer:
        self.meta = meta
        held, self._held = self._held, b""
        return memoryview(held)[meta.dataset_offset :]
