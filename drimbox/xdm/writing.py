"""Writes one month of an archive: `KAYYYYMM.ZIP` (DB.SO.29).

The zip is written under a temporary name, synced, read back whole, then renamed: what bears the final name
is complete, whatever happens to the medium or the process meanwhile. Entries come in a fixed order with a
fixed instant, so that the same manifests are always the same bytes. Memory holds one manifest, whatever the
month has. FAT32 holds no file of 4 GiB: a month that would not fit is refused before the medium does, and
none is split, because the format knows no parts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import attrs

from drimbox.durable import sync
from drimbox.xdm import entries, metadata, names, pages
from drimbox.xdm.directory import Directory
from drimbox.xdm.reports import ReportLine, write_reports

#: Largest file of FAT32, bytes.
FAT_LIMIT: Final = 4 * 1024**3 - 1
#: First instant a zip can say.
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: MS-DOS attribute "archive".
_ATTRIBUTES = 0x20
#: Room kept for the pages and the central directory, bytes a set: three entries of some 100 bytes and
#: their lines in the pages.
_OVERHEAD = 1200


class ExportRefused(Exception):
    """This month cannot be written; the text, in French, says why."""


@attrs.frozen
class ExportedKos:
    """One manifest to write."""

    sop_instance_uid: str
    study_uid: str
    kos: bytes
    #: As archived.
    metadata: bytes
    reports: tuple[ReportLine, ...]


class MonthWriter:
    """One month of one site. `add` each manifest, then `finish`; `abandon` at any time."""

    def __init__(
        self, folder: Path, prefix: str, month: names.Month, sender: pages.Sender, *, limit: int | None
    ) -> None:
        """`limit` is the largest file allowed, None for any. Raises `OSError`."""
        self.name = names.archive_name(prefix, month)
        self.path = folder / f"{self.name}.ZIP"
        self.sets = 0
        self._temporary = folder / f"{self.name}.TMP"
        self._sender = sender
        self._limit = limit
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()  # left by a process that was killed
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: IO[bytes] = os.fdopen(os.open(self._temporary, flags, 0o640), "w+b")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=6)
        self._directory = Directory(self._entry)
        self._directory.of(self._zip)
        # The index is written last, and not kept in memory meanwhile.
        self._listed: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115

    def add(self, kos: ExportedKos) -> None:
        """Write one set.

        Raises `MetadataRefused` when its archived metadata cannot be used (nothing of it is written then),
        `ExportRefused` when the month is full, `OSError`.
        """
        number = self.sets + 1
        if number > names.MAX_SETS:
            raise ExportRefused(f"plus de {names.MAX_SETS} KOS dans le mois {self.name}")
        place = f"{names.set_name(number)}/{names.kos_name(number)}"
        text = metadata.exported(kos.metadata, kos.sop_instance_uid, place, kos.kos)
        date = self._date(text, kos.sop_instance_uid)
        used = self._file.tell() + len(text) + len(kos.kos) + number * _OVERHEAD
        if self._limit is not None and used > self._limit:
            raise ExportRefused(
                f"{self.path.name} dépasserait {self._limit} octets, la limite d'un fichier sur FAT32 ; "
                "exporter vers un partage sans cette limite, avec --large"
            )
        folder = f"{names.HOLDER}/{names.set_name(number)}"
        for file, data in (
            (names.METADATA, text),
            (names.kos_name(number), kos.kos),
            (names.REPORTS, write_reports(kos.reports)),
        ):
            self._zip.writestr(self._named(f"{folder}/{file}"), data)
        self._listed.write(f"{names.HOLDER}/{place}\t{kos.study_uid}\t{date}\n")
        self.sets = number

    def finish(self) -> Path:
        """Write the pages, sync, read everything back, and give the file its name.

        Raises `ExportRefused` when what is read back is not what was written, `OSError`.
        """
        self._pages(names.INDEX, pages.index(self._sender, self.name, self._index()))
        self._pages(names.README, pages.readme(self._sender, self.name, self.sets))
        self._zip.close()
        self._listed.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._verify()
        self._file.close()
        os.replace(self._temporary, self.path)
        _sync_folder(self.path.parent)
        return self.path

    def abandon(self) -> None:
        """Leave nothing behind; harmless after `finish`."""
        with contextlib.suppress(OSError, ValueError):
            self._listed.close()
            self._zip.close()  # else it writes to a closed file when it is collected
        self._directory.close()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    # --- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _date(text: bytes, unique_id: str) -> str:
        submitted = entries.read(entries.parse(text))
        found = next(entry for entry in submitted.entries if entry.unique_id == unique_id)
        return found.submission_time or found.creation_time

    def _named(self, path: str) -> zipfile.ZipInfo:
        return self._entry(f"{self.name}/{path}")

    @staticmethod
    def _entry(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.create_system = 0
        info.external_attr = _ATTRIBUTES
        return info

    def _index(self) -> Iterator[pages.Listed]:
        self._listed.seek(0)
        for line in self._listed:
            yield pages.Listed(*line.rstrip("\n").split("\t"))

    def _pages(self, name: str, pieces: Iterable[bytes]) -> None:
        with self._zip.open(self._named(name), "w", force_zip64=False) as entry:
            for piece in pieces:
                entry.write(piece)

    def _verify(self) -> None:
        """Read the file back from the medium, not from memory as far as the system lets us."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        whole = len(self._directory) == 3 * self.sets + 2
        if not whole or not self._directory.agrees(self._file, self._zip.start_dir):
            raise ExportRefused(
                f"relecture de {self.path.name} : le support n'a pas gardé ce qui fut écrit"
            )


def _sync_folder(folder: Path) -> None:
    """Make the new name last; some file systems of removable media cannot."""
    with contextlib.suppress(OSError):
        sync(folder)
