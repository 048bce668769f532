"""Opens an archive that somebody brings: a zip, or the folder it was unpacked to (DB.SO.30).

Nothing is ever extracted: the few files of a submission set are read into memory, each up to its own limit
whatever it declares. A zip is judged by its directory before any of it is read: how many entries, how
large, where each begins, what it is named. What is odd about one set costs that set; what no honest tool
writes (names that climb, links, entries that overlap, archives within the archive) costs the archive.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Protocol

from drimbox.kos import reading
from drimbox.systemerrors import system_reason
from drimbox.xdm import entries, names, reports

#: Entries of one archive: three a set and the pages, for a month of 130,000 exams.
MAX_ENTRIES: Final = 400_000
#: Bytes of a zip's directory: some 100 an entry.
MAX_DIRECTORY: Final = 128 * 1024**2
#: Files of one set that are read.
MAX_FILES: Final = 64
#: Uncompressed for compressed, of an entry of more than `_SMALL` bytes: manifests reach some 40.
MAX_RATIO: Final = 200
_SMALL = 64 * 1024
#: Bytes of INDEX.HTM or README.TXT: some 200 a set.
MAX_PAGE: Final = 128 * 1024**2
_PIECE = 64 * 1024
#: Uncompressed bytes of one archive.
MAX_TOTAL: Final = 64 * 1024**3

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR, _END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = 30
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_NESTED = (".ZIP", ".7Z", ".RAR", ".TAR", ".GZ", ".TGZ", ".BZ2", ".XZ", ".ZST", ".CAB", ".JAR")

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
_PAGES = (names.INDEX, names.README)
_LIMITS = {names.METADATA: entries.MAX_BYTES, names.REPORTS: reports.MAX_BYTES}


class ArchiveRefused(Exception):
    """This archive cannot be used at all; the text, in French, says why."""


class FileRefused(Exception):
    """A file of a set cannot be used, so neither can its set; the text, in French, says why."""


class SetArchive(Protocol):
    """An archive once opened."""

    @property
    def name(self) -> str:
        """`KA202601` or what else it is called."""

    @property
    def sets(self) -> list[str]:
        """Names of its submission sets, in order."""

    def files(self, name: str) -> Mapping[str, bytes]:
        """Read what counts of one set, by upper-case file name. Raises `FileRefused`."""

    def page(self, name: str) -> Iterator[bytes] | None:
        """Yield INDEX.HTM or README.TXT piece by piece; None without one. Raises `FileRefused`."""


def open_archive(path: Path) -> AbstractContextManager[SetArchive]:
    """Open the zip or the folder at `path`; raises `ArchiveRefused`, at once or when entered."""
    if path.is_dir():
        return _folder(path)
    return _zip(path)


def find_archives(path: Path) -> list[Path]:
    """Return the archives at `path`: itself, or those in this folder, by month and name.

    Raises `ArchiveRefused` when there is none.
    """
    try:
        if not path.is_dir():
            return [path]
        if _child(path, names.HOLDER) is not None:
            return [path]
        with os.scandir(path) as scan:
            found = [Path(each.path) for each in scan if _is_archive(each)]
    except OSError as error:
        raise ArchiveRefused(f"{path.name} : lecture impossible ({system_reason(error)})") from None
    if not found:
        raise ArchiveRefused(
            f"{path.name} : ni archive KAAAAAMM.ZIP ni dossier {names.HOLDER} à cet endroit"
        )
    return sorted(found, key=_chronological)


def _is_archive(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return False
    if entry.is_dir():
        return _child(Path(entry.path), names.HOLDER) is not None
    return entry.name.upper().endswith(".ZIP")


def _chronological(path: Path) -> tuple[str, str]:
    month = names.archive_month(path.name)
    return (str(month) if month else "999999", path.name)


def _limit(name: str) -> int:
    return _LIMITS.get(name.upper(), reading.MAX_BYTES)


# --- zip --------------------------------------------------------------------------------------------


@contextmanager
def _zip(path: Path) -> Iterator[SetArchive]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveRefused(f"{path.name} : ouverture impossible ({system_reason(error)})") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArchiveRefused(f"{path.name} n'est pas un fichier")
        with open_zip(file, path.name) as archive:
            yield archive


@contextmanager
def open_zip(file: IO[bytes], name: str) -> Iterator[SetArchive]:
    """Open a zip that is a file already. Raises `ArchiveRefused`."""
    check_directory(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        raise ArchiveRefused(f"{name} : ce n'est pas une archive ZIP lisible") from None
    with archive:
        yield _ZipSets(archive, name)


def check_directory(file: IO[bytes]) -> None:
    """Refuse a zip by what its end says of its directory, before that directory is read into memory."""
    length = file.seek(0, os.SEEK_END)
    tail_at = max(0, length - 65535 - _END.size)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveRefused("ce n'est pas une archive ZIP lisible")
    _, _, _, _, count, size, _, _ = _END.unpack_from(tail, at)
    if at >= _END64_LOCATOR.size:
        mark, _, where, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
        if mark == b"PK\x06\x07" and where + _END64.size <= length:
            file.seek(where)
            found = _END64.unpack(file.read(_END64.size))
            if found[0] == b"PK\x06\x06":
                count, size = max(count if count != 0xFFFF else 0, found[7]), found[8]
    if count > MAX_ENTRIES:
        raise ArchiveRefused(f"archive de {count} entrées, {MAX_ENTRIES} au plus")
    if size > min(MAX_DIRECTORY, length):
        raise ArchiveRefused("archive dont le répertoire annonce une taille impossible")
    file.seek(0)


class _ZipSets:
    """A zip, its entries sorted into sets."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name = name
        self._archive = archive
        self._read = 0
        self._sets: dict[str, dict[str, zipfile.ZipInfo]] = {}
        self._bad: dict[str, str] = {}
        self._pages: dict[str, zipfile.ZipInfo] = {}
        listed = archive.infolist()
        if len(listed) > MAX_ENTRIES:
            raise ArchiveRefused(f"archive de {len(listed)} entrées, {MAX_ENTRIES} au plus")
        _refuse_overlaps(listed)
        for info in listed:
            self._sort(info)

    @property
    def sets(self) -> list[str]:
        return sorted(self._sets)

    def _sort(self, info: zipfile.ZipInfo) -> None:
        parts = _safe_parts(info.orig_filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveRefused("archive contenant un lien ou un fichier spécial")
        if info.is_dir() or not parts:
            return
        if parts[-1].upper().endswith(_NESTED):
            raise ArchiveRefused(
                "archive contenant une archive : la décompresser, puis charger son contenu"
            )
        upper = [part.upper() for part in parts]
        if len(upper) <= 2 and upper[-1] in _PAGES:
            self._pages.setdefault(upper[-1], info)
        # IHE_XDM is at the top, or in the folder of the month.
        depth = next((at for at in (0, 1) if len(upper) == at + 3 and upper[at] == names.HOLDER), None)
        if depth is None or not names.is_set(upper[depth + 1]):
            return
        files = self._sets.setdefault(upper[depth + 1], {})
        if not names.is_of_set(upper[-1]):
            return
        if upper[-1] in files:
            self._bad[upper[depth + 1]] = f"{upper[-1]} en double"
        elif len(files) >= MAX_FILES:
            self._bad[upper[depth + 1]] = f"plus de {MAX_FILES} fichiers"
        files[upper[-1]] = info

    def files(self, name: str) -> Mapping[str, bytes]:
        if name in self._bad:
            raise FileRefused(self._bad[name])
        return {file: self._content(file, info) for file, info in sorted(self._sets[name].items())}

    def page(self, name: str) -> Iterator[bytes] | None:
        info = self._pages.get(name)
        return None if info is None else self._pieces(name, info)

    def _pieces(self, name: str, info: zipfile.ZipInfo) -> Iterator[bytes]:
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise FileRefused(f"{name} : chiffrement ou compression non admis")
        try:
            with self._archive.open(info) as entry:
                yield from _bounded(entry, name)
        except _DAMAGED:
            raise FileRefused(f"{name} est endommagé") from None

    def _content(self, file: str, info: zipfile.ZipInfo) -> bytes:
        limit = _limit(file)
        if info.flag_bits & _ENCRYPTED:
            raise FileRefused(f"{file} est chiffré")
        if info.compress_type not in _METHODS:
            raise FileRefused(f"{file} : méthode de compression non admise")
        if info.file_size > limit:
            raise FileRefused(f"{file} annonce {info.file_size} octets, {limit} au plus")
        if info.file_size > _SMALL and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise FileRefused(f"{file} : taux de compression anormal")
        if self._read + info.file_size > MAX_TOTAL:
            raise ArchiveRefused(f"archive de plus de {MAX_TOTAL // 1024**3} Gio décompressée")
        try:
            with self._archive.open(info) as entry:
                data = entry.read(limit + 1)
        except _DAMAGED:
            raise FileRefused(f"{file} est endommagé") from None
        self._read += len(data)
        if len(data) != info.file_size:
            raise FileRefused(f"{file} n'a pas la taille qu'il annonce")
        return data


def _safe_parts(name: str) -> list[str]:
    """Return the parts of an entry's name. Raises `ArchiveRefused` for one that climbs or is absolute."""
    name = name.replace("\\", "/")
    parts = name.rstrip("/").split("/")
    climbs = name.startswith("/") or any(part in ("", ".", "..") for part in parts)
    if climbs or "\0" in name or ":" in name or len(name) > 1024:
        raise ArchiveRefused("archive contenant un nom de fichier dangereux")
    return parts


def _refuse_overlaps(listed: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: some kilobytes would inflate to terabytes, file by file."""
    end = 0
    for info in sorted(listed, key=lambda each: each.header_offset):
        if info.header_offset < end:
            raise ArchiveRefused("archive dont des entrées se chevauchent")
        end = info.header_offset + _LOCAL_HEADER + info.compress_size


# --- folder -----------------------------------------------------------------------------------------


@contextmanager
def _folder(path: Path) -> Iterator[SetArchive]:
    holder = _child(path, names.HOLDER)
    if holder is None:
        raise ArchiveRefused(f"{path.name} : pas de dossier {names.HOLDER}")
    try:
        yield _FolderSets(path, holder)
    except OSError as error:
        raise ArchiveRefused(f"{path.name} : lecture impossible ({system_reason(error)})") from None


class _FolderSets:
    """An unpacked archive. Links are not followed: a medium may hold one to any file of this machine."""

    def __init__(self, path: Path, holder: Path) -> None:
        self.name = path.name
        self._path = path
        self._sets: dict[str, Path] = {}
        self._bad: dict[str, str] = {}
        for each in _scan(holder, MAX_ENTRIES, lambda found: found.is_dir(follow_symlinks=False)):
            upper = each.name.upper()
            if not names.is_set(upper):
                continue
            if upper in self._sets:
                self._bad[upper] = "dossier en double"
            self._sets[upper] = Path(each.path)

    @property
    def sets(self) -> list[str]:
        return sorted(self._sets)

    def files(self, name: str) -> Mapping[str, bytes]:
        if name in self._bad:
            raise FileRefused(self._bad[name])
        found: dict[str, bytes] = {}
        try:
            listed = _scan(self._sets[name], MAX_ENTRIES, lambda each: names.is_of_set(each.name))
            if len(listed) > MAX_FILES:
                raise FileRefused(f"plus de {MAX_FILES} fichiers")
            for each in sorted(listed, key=lambda entry: entry.name):
                if each.name.upper() in found:
                    raise FileRefused(f"{each.name.upper()} en double")
                found[each.name.upper()] = _plain(Path(each.path))
        except OSError as error:
            raise FileRefused(f"lecture impossible ({system_reason(error)})") from None
        return found

    def page(self, name: str) -> Iterator[bytes] | None:
        with os.scandir(self._path) as scan:
            found = next((Path(each.path) for each in scan if each.name.upper() == name), None)
        return None if found is None else self._pieces(name, found)

    def _pieces(self, name: str, path: Path) -> Iterator[bytes]:
        try:
            with _opened(path) as file:
                yield from _bounded(file, name)
        except OSError as error:
            raise FileRefused(f"{name} : lecture impossible ({system_reason(error)})") from None


def _bounded(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield a page piece by piece. Raises `FileRefused` beyond its limit."""
    length = 0
    while piece := file.read(_PIECE):
        length += len(piece)
        if length > MAX_PAGE:
            raise FileRefused(f"{name} dépasse {MAX_PAGE // 1024**2} Mio")
        yield piece


def _scan(folder: Path, most: int, wanted: Callable[[os.DirEntry[str]], bool]) -> list[os.DirEntry[str]]:
    found = []
    with os.scandir(folder) as scan:
        for count, each in enumerate(scan):
            if count >= most:
                raise ArchiveRefused(f"dossier de plus de {most} entrées")
            if wanted(each):
                found.append(each)
    return found


def _plain(path: Path) -> bytes:
    """Read a regular file up to its limit."""
    name, limit = path.name.upper(), _limit(path.name)
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FileRefused(f"{name} dépasse {limit} octets")
    return data


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file. Raises `FileRefused` for anything else, `OSError`."""
    name = path.name.upper()
    if path.is_symlink():
        raise FileRefused(f"{name} est un lien")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileRefused(f"{name} n'est pas un fichier")
        yield file


def _child(folder: Path, name: str) -> Path | None:
    """Return the folder of this name, without regard to case, None when there is none."""
    with suppress(OSError), os.scandir(folder) as scan:
        for each in scan:
            if each.name.upper() == name and each.is_dir(follow_symlinks=False):
                return Path(each.path)
    return None
