"""Where `drimbox wado get` puts what arrives: instances in a folder, the raw answer in a file to judge.

Files are called by the order of arrival and nothing else: no name of the peer's ever becomes a path. An
instance is written under a name that says it is not whole, and renamed when its last byte has come.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import attrs

from drimbox.wado.answer import Head
from drimbox.wado.multipart import PartBegin

#: Names of syntaxes remembered, beyond which a part's is counted as another.
_MAX_SYNTAXES = 64


@attrs.frozen
class Stored:
    """One whole instance."""

    name: str
    size: int
    sha256: str


class Receiver:
    """Takes the parts of one answer; a `drimbox.wado.client.Sink`."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` exists; None keeps nothing but counts."""
        self._folder = folder
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._count = 0
        #: Files written, in their order; empty without a folder.
        self.stored: list[Stored] = []
        #: Number of parts by the transfer syntax of their header.
        self.syntaxes: dict[str, int] = {}

    def begin(self, head: Head, flow: object) -> None:
        """The answer is images."""

    def part_begin(self, part: PartBegin) -> None:
        """An instance starts. Raises `OSError` when it cannot be written."""
        self._count += 1
        syntax = part.transfer_syntax or ""
        if len(self.syntaxes) >= _MAX_SYNTAXES and syntax not in self.syntaxes:
            syntax = ""
        self.syntaxes[syntax] = self.syntaxes.get(syntax, 0) + 1
        self._size = 0
        if self._folder is not None:
            self._hash = hashlib.sha256()
            self._file = self._partial.open("xb")

    def part_data(self, data: bytes) -> None:
        """Some bytes of it. Raises `OSError`."""
        self._size += len(data)
        if self._file is not None:
            self._hash.update(data)
            self._file.write(data)

    def part_end(self) -> None:
        """It is whole. Raises `OSError`."""
        if self._file is None or self._folder is None:
            return
        self._file.close()
        self._file = None
        name = f"{self._count:06}.dcm"
        self._partial.rename(self._folder / name)
        self.stored.append(Stored(name, self._size, self._hash.hexdigest()))

    def close(self) -> None:
        """Remove an instance that never became whole."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)

    @property
    def _partial(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._count:06}.incomplet"
