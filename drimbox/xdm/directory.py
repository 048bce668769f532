"""What a zip's directory will say, kept on disk while the zip is written and read back (APPNOTE 4.3).

`zipfile` keeps an object of each entry until the end: 3 KB a submission set, and as much again to read it
back. A month may have a million. Here a line of a nameless file stands for each entry; the library writes
the directory from it, one entry after the other, and what is on the medium is held against it likewise.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

_CENTRAL, _LOCAL = struct.Struct("<4s4B4HL2L5H2L"), struct.Struct("<4s2B4HL2L2H")
_ENDS: Final = (b"PK\x05\x06", b"PK\x06\x06")
#: Instead of an offset that has its place elsewhere.
_LARGE: Final = 0xFFFFFFFF
_PIECE: Final = 256 * 1024
#: What of an entry is only known once it is written.
_KEPT: Final = (
    *("CRC", "compress_size", "file_size", "header_offset", "flag_bits"),
    *("create_version", "extract_version"),
)


class Directory:
    """The entries of one zip, in order; `make` gives an entry of a name what all entries have."""

    def __init__(self, make: Callable[[str], zipfile.ZipInfo]) -> None:
        """Raises `OSError`."""
        self._make = make
        self._count = 0
        # The caller closes it.
        self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115

    def of(self, archive: zipfile.ZipFile) -> None:
        """Be the directory of a zip to which nothing was written yet."""
        held: Any = archive
        held.filelist, held.NameToInfo = self, _Names()

    def append(self, info: zipfile.ZipInfo) -> None:
        """Keep an entry that was written."""
        row = [info.filename, *(getattr(info, name) for name in _KEPT)]
        self._file.write(json.dumps(row) + "\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        """Yield the entries; none may be added meanwhile."""
        self._file.seek(0)
        for line in self._file:
            filename, *values = json.loads(line)
            info = self._make(filename)
            for name, value in zip(_KEPT, values, strict=True):
                setattr(info, name, value)
            yield info

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def agrees(self, file: IO[bytes], start: int) -> bool:
        """Read a zip whose directory begins at `start`: say whether each entry is there and inflates.

        Raises `OSError`.
        """
        at = start
        try:
            for info in self:
                file.seek(at)
                at += _check_central(file, info)
                _check_local(file, info)
        except (_Differs, struct.error, zlib.error):
            return False
        file.seek(at)
        return file.read(4) in _ENDS


class _Names(dict[str, zipfile.ZipInfo]):
    """Forgets: names are told apart by who makes them."""

    def __setitem__(self, name: str, info: zipfile.ZipInfo) -> None:
        return


class _Differs(Exception):
    """The medium does not hold what was written."""


def _check_central(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Hold a record of the directory against its entry; return its length."""
    head = _CENTRAL.unpack(file.read(_CENTRAL.size))
    name, extra, comment, offset = head[12], head[13], head[14], head[18]
    told = (head[0], head[9], head[10], head[11], file.read(name))
    due = (b"PK\x01\x02", info.CRC, info.compress_size, info.file_size, info.filename.encode("ascii"))
    if told != due or offset not in (info.header_offset, _LARGE):
        raise _Differs
    return int(_CENTRAL.size + name + extra + comment)


def _check_local(file: IO[bytes], info: zipfile.ZipInfo) -> None:
    """Inflate an entry where its data are."""
    file.seek(info.header_offset)
    head = _LOCAL.unpack(file.read(_LOCAL.size))
    name, extra = head[10], head[11]
    if head[0] != b"PK\x03\x04" or file.read(name) != info.filename.encode("ascii"):
        raise _Differs
    file.seek(extra, 1)
    inflate, crc, size, left = zlib.decompressobj(-15), 0, 0, info.compress_size
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise _Differs
        left -= len(piece)
        data = inflate.decompress(piece)
        crc, size = zlib.crc32(data, crc), size + len(data)
    data = inflate.flush()
    if (zlib.crc32(data, crc), size + len(data)) != (info.CRC, info.file_size) or not inflate.eof:
        raise _Differs
