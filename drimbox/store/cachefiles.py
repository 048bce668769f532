"""What the cache of series is on disk: folders, manifests, and how they survive a crash (DB.SO.40).

    <folder>/CACHEDIR.TAG        tells backup programs to pass by
    <folder>/lock                held by the process that uses the cache
    <folder>/partial/<random>/   a series being written
    <folder>/entries/<name>/     a complete series: `data` and `manifest`
    <folder>/trash/<random>/     what is being removed

A series is written under `partial`, flushed to the disk with its manifest, and appears under `entries` by
one rename; it disappears by one rename to `trash`. So whatever is under `entries` is whole, and a crash
leaves nothing but folders that the next start empties. Names are our own: a hash of what the entry is for
and a random number, so that two versions of one series never meet. No string of a peer is in a path.

`data` holds the data sets in runs of at most 1 MiB, those of several instances mixed as they came; the
manifest (`cachemanifest`) says where they are and has the SHA-256 of each, so that a damaged run is known
before any of it is used.

Everything here blocks, and runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

from drimbox.durable import sync
from drimbox.ports import CacheDamaged
from drimbox.store.cachemanifest import (
    BLOCK,
    MAX_HEAD,
    Head,
    Record,
    Run,
    SeriesKey,
    read_head,
    read_records,
    write_head,
    write_records,
)

#: Longest manifest that is read, bytes.
_MAX_MANIFEST: Final = 64 * 1024 * 1024
_NAME: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_TAG: Final = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Images kept by a DRIMbox; may be deleted while it is stopped.\n"
)
#: What may stand in a folder that is not ours yet: the top of a disk, and a start that was cut short.
_HARMLESS: Final = frozenset({"lost+found", "CACHEDIR.TAG.new"})


@attrs.frozen
class Found:
    """An entry that a start found."""

    name: str
    head: Head
    #: Bytes on disk, and Unix time of the last use.
    size: int
    used_at: float


class Folder:
    """The folder of the cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries = root / "entries"
        self._partial = root / "partial"
        self._trash = root / "trash"
        self._tag = root / "CACHEDIR.TAG"
        self._lock: int | None = None

    # -- life --------------------------------------------------------------------------------------

    def open(self) -> list[Found]:
        """Take the folder, empty it of what a crash left, and return what it holds, least used first.

        Raises `OSError` when it cannot be written, holds something else, or is used by another process.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim()
        for folder in (self.root, self._entries, self._partial, self._trash):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in (self._partial, self._trash):
                for path in list(folder.iterdir()):
                    _delete(path)
            return self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the folder go."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def erase(self) -> None:
        """Remove what an earlier run kept, if there is anything and it is ours.

        Raises `OSError` when it cannot, or when another process uses it.
        """
        if not self._ours():
            return
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in (self._entries, self._partial, self._trash):
                if folder.exists():
                    _delete(folder)
            self._tag.unlink()
            (self.root / "lock").unlink()
        finally:
            os.close(lock)
        # An operator's own folder with something else in it stays.
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def free(self) -> int:
        """Return the bytes free on the disk of the cache, for us."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def _ours(self) -> bool:
        return self._tag.is_file() and self._tag.read_text("latin-1") == _TAG

    def _claim(self) -> None:
        """Mark the folder as ours; a slip of the keyboard must not empty one that holds something else."""
        if self._ours():
            return
        if set(os.listdir(self.root)) - _HARMLESS:
            raise OSError(errno.ENOTEMPTY, "dossier non vide, qui n'est pas un cache de DRIMbox")
        new = self.root / "CACHEDIR.TAG.new"
        new.write_text(_TAG, "ascii")
        new.chmod(0o600)
        new.rename(self._tag)

    def _scan(self) -> list[Found]:
        newest: dict[SeriesKey, Found] = {}
        for path in list(self._entries.iterdir()):
            try:
                found = self._look(path)
            except (OSError, CacheDamaged):
                self.remove(path.name)
                continue
            rival = newest.get(found.head.key)
            if rival is not None and rival.head.created > found.head.created:
                found, rival = rival, found
            if rival is not None:
                self.remove(rival.name)
            newest[found.head.key] = found
        return sorted(newest.values(), key=lambda found: found.used_at)

    def _look(self, path: Path) -> Found:
        if _NAME.fullmatch(path.name) is None:
            raise CacheDamaged("no name of ours")
        with (path / "manifest").open("rb") as source:
            head = read_head(source.read(MAX_HEAD))
            state = os.fstat(source.fileno())
        size = os.stat(path / "data").st_size
        if size != head.data_size or not path.name.startswith(head.key.digest):
            raise CacheDamaged("not the entry that was written")
        return Found(path.name, head, size + state.st_size, state.st_mtime)

    # -- entries -----------------------------------------------------------------------------------

    def begin(self) -> Partial:
        """Make the folder of a series to be written. Raises `OSError`."""
        path = self._partial / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        return Partial(path)

    def publish(self, partial: Partial, head: Head, records: Iterable[Record]) -> Found:
        """Make a written series an entry, once the disk has all of it. Raises `OSError`."""
        size = partial.seal(head, records)
        name = f"{head.key.digest}-{secrets.token_hex(8)}"
        os.rename(partial.path, self._entries / name)
        sync(self._entries)
        return Found(name, head, size, head.created)

    def remove(self, name: str) -> None:
        """Remove an entry: gone at once, its bytes a little later. Raises `OSError`."""
        away = self._trash / secrets.token_hex(16)
        try:
            os.rename(self._entries / name, away)
        except FileNotFoundError:
            return
        sync(self._entries)
        _delete(away)

    def read(self, name: str, key: SeriesKey) -> OpenEntry:
        """Open an entry and note that it is used. Raises `CacheDamaged` or `OSError`."""
        path = self._entries / name
        with (path / "manifest").open("rb") as source:
            raw = source.read(_MAX_MANIFEST + 1)
        first, _, second = raw.partition(b"\n")
        head = read_head(first + b"\n")
        records = read_records(second)
        if head.key != key:
            raise CacheDamaged("another series than the one asked for")
        data = os.open(path / "data", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.fstat(data).st_size != head.data_size:
            os.close(data)
            raise CacheDamaged("data of another size")
        # Only decides who goes first when room is needed after the next start.
        with contextlib.suppress(OSError):
            os.utime(path / "manifest")
        return OpenEntry(data, records)


class Partial:
    """A series being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._data: int | None = os.open(path / "data", flags, 0o600)
        #: Bytes written.
        self.size = 0

    def write(self, data: bytes) -> list[Run]:
        """Append bytes of one instance; return where they are. Raises `OSError`."""
        assert self._data is not None
        runs = []
        view = memoryview(data)
        for start in range(0, len(data), BLOCK):
            piece = view[start : start + BLOCK]
            written = 0
            while written < len(piece):
                # A disk that fills up writes a part before it says so.
                written += os.write(self._data, piece[written:])
            runs.append(Run(self.size, len(piece), hashlib.sha256(piece).hexdigest()))
            self.size += len(piece)
        return runs

    def seal(self, head: Head, records: Iterable[Record]) -> int:
        """Put everything on the disk; return its size in bytes. Raises `OSError`."""
        assert self._data is not None
        raw = write_head(head) + write_records(records)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(self.path / "manifest", flags, 0o600), "wb") as target:
            target.write(raw)
            target.flush()
            os.fsync(target.fileno())
        os.fsync(self._data)
        self._close()
        sync(self.path)
        return self.size + len(raw)

    def remove(self) -> None:
        """Forget what was written."""
        self._close()
        _delete(self.path)

    def _close(self) -> None:
        data, self._data = self._data, None
        if data is not None:
            os.close(data)


class OpenEntry:
    """An entry being read: its bytes stay there until it is closed, whatever becomes of its name."""

    def __init__(self, data: int, records: tuple[Record, ...]) -> None:
        self._data: int | None = data
        self.records = records

    def read(self, run: Run) -> bytes:
        """Return the bytes of a run. Raises `CacheDamaged` when they are not those that were written."""
        if self._data is None:
            raise CacheDamaged("read after it was closed")
        try:
            data = os.pread(self._data, run.size, run.offset)
        except OSError as error:
            raise CacheDamaged("the disk does not give it back") from error
        if len(data) != run.size or hashlib.sha256(data).hexdigest() != run.digest:
            raise CacheDamaged("not the bytes that were written")
        return data

    def close(self) -> None:
        """Let go of the bytes."""
        data, self._data = self._data, None
        if data is not None:
            os.close(data)


def _delete(path: Path) -> None:
    """Remove a folder or a file; what cannot be removed now is removed at the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
