"""The file of a backup: a gzipped tar whose first member, `manifeste.json`, says what the others must be.

Nothing is believed of a file before it was read once to its end: names, sizes and SHA-256 of every member
are held against the manifest, nothing may be missing, doubled or added. Members are plain files with names
of our own making; where each came from is a value in the manifest, never a path that is followed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import attrs
import cattrs

FORMAT: Final = 1
MANIFEST: Final = "manifeste.json"
DATABASE: Final = "drimbox.db"
#: Bytes of a manifest, and of one file of the configuration, at the most.
MAX_MANIFEST, MAX_FILE = 4 * 1024 * 1024, 16 * 1024 * 1024
#: Bytes that stand between two members at the most: tarfile takes headers into memory, whatever their size.
MAX_HEADERS: Final = 64 * 1024
_PIECE: Final = 1024 * 1024


class BackupUnusable(Exception):
    """A file is no backup, is damaged, or cannot be opened; French text."""


@attrs.frozen
class Member:
    """One file of a backup."""

    name: str
    size: int
    sha256: str
    #: Where it was; the configuration is told by this path.
    origin: str = ""


@attrs.frozen
class Manifest:
    """What a backup holds, and of when it is."""

    format: int
    version: str
    made_at: str
    system_id: str
    #: Schema of the store, last link of the audit chain, number of manifests in the archive.
    revision: str
    audit_last: int
    audit_hash: str
    kos: int
    #: Name of the member that is the configuration file.
    configuration: str
    secrets: bool
    members: tuple[Member, ...]

    @property
    def instant(self) -> datetime:
        """When the copy was taken."""
        return datetime.fromisoformat(self.made_at)


def describe(name: str, path: Path, origin: str = "") -> Member:
    """Return the member that a file makes. Raises `OSError`."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return Member(name, size, digest.hexdigest(), origin)


def write(target: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write a backup that only its owner reads, durable on return. `files` by member name."""
    text = json.dumps(attrs.asdict(manifest), ensure_ascii=False, indent=1).encode("utf-8")
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        with (
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            tar.addfile(_info(MANIFEST, len(text), manifest), io.BytesIO(text))
            for member in manifest.members:
                with files[member.name].open("rb") as source:
                    tar.addfile(_info(member.name, member.size, manifest), source)
        raw.flush()
        os.fsync(raw.fileno())


def _info(name: str, size: int, manifest: Manifest) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(manifest.instant.timestamp())
    return info


def read(path: Path, folder: Path | None = None) -> Manifest:
    """Read a backup to its end and return its manifest; with `folder`, put its members there.

    Raises `BackupUnusable` when anything is not as the manifest says; what was put in `folder` by then is
    worth nothing.
    """
    try:
        # Buffered: the packing is read in small pieces.
        with gzip.open(path, "rb") as packed:
            metered = _Metered(packed)
            # What `mode="r|"` asks of a file is `read` alone.
            with tarfile.open(fileobj=metered, mode="r|") as tar:  # type: ignore[call-overload]
                manifest = _read(tar, metered, folder)
            # To the end of the packing, whose checksum stands there.
            while rest := packed.read(_PIECE):
                if rest.strip(b"\0"):
                    raise BackupUnusable("le fichier continue après son dernier membre")
            return manifest
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, OverflowError):
        raise BackupUnusable(
            f"{path.name} n'est pas une sauvegarde lisible (un autre fichier, ou endommagé)"
        ) from None


class _Metered:
    """The unpacked bytes, of which no more than `allow` says can be read."""

    def __init__(self, packed: gzip.GzipFile) -> None:
        self._packed = packed
        self._left = 0
        self.allow(0)

    def allow(self, size: int) -> None:
        """Let `size` bytes be read, and what stands before the next member."""
        self._left = size + MAX_HEADERS

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes. Raises `BackupUnusable` when they are too many."""
        data = self._packed.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise BackupUnusable("un membre annonce plus que ce qu'une sauvegarde contient")
        return data


def _read(tar: tarfile.TarFile, metered: _Metered, folder: Path | None) -> Manifest:
    manifest: Manifest | None = None
    due: dict[str, Member] = {}
    for info in tar:
        source = tar.extractfile(info) if info.isreg() else None
        if source is None:
            raise BackupUnusable(f"« {info.name} » n'est pas un fichier")
        if manifest is None:
            metered.allow(MAX_MANIFEST)
            manifest = _manifest(info, source)
            due = {member.name: member for member in manifest.members}
            if folder is not None:
                _room(folder, manifest)
        else:
            member = due.pop(info.name, None)
            if member is None:
                raise BackupUnusable(
                    f"« {info.name} » n'est pas annoncé par le manifeste, ou vient deux fois"
                )
            metered.allow(member.size)
            _copy(member, source, folder / member.name if folder is not None else None)
        metered.allow(0)
    if manifest is None:
        raise BackupUnusable("le fichier est vide")
    if due:
        raise BackupUnusable(f"il manque {', '.join(sorted(due))}")
    return manifest


def _room(folder: Path, manifest: Manifest) -> None:
    size = sum(member.size for member in manifest.members)
    if shutil.disk_usage(folder).free < size:
        raise BackupUnusable(f"place insuffisante dans {folder.parent} ({size} octets)")


def _manifest(info: tarfile.TarInfo, source: IO[bytes]) -> Manifest:
    if info.name != MANIFEST or info.size > MAX_MANIFEST:
        raise BackupUnusable("le fichier ne commence pas par son manifeste")
    try:
        plain: dict[str, Any] = json.loads(source.read(MAX_MANIFEST))
        if plain.get("format") != FORMAT:
            raise BackupUnusable(f"format de sauvegarde {plain.get('format')} inconnu de cette version")
        manifest = cattrs.structure(plain, Manifest)
        known = manifest.instant.tzinfo is not None
    except BackupUnusable:
        raise
    except Exception:  # cattrs raises groups
        raise BackupUnusable("le manifeste est illisible") from None
    if not known or not _is_coherent(manifest):
        raise BackupUnusable("le manifeste est incohérent")
    return manifest


def _is_coherent(manifest: Manifest) -> bool:
    """Say whether the members have plain names, each once, and are what a backup has."""
    names = [member.name for member in manifest.members]
    plain = all(name and Path(name).name == name and name[0] != "." for name in names)
    written = all(
        not re.search(r"[\0-\x1f\x7f]", each.name + each.origin) and each.size >= 0
        for each in manifest.members
    )
    due = DATABASE in names and manifest.configuration in names and manifest.configuration != DATABASE
    return plain and written and due and len(set(names)) == len(names)


def _copy(member: Member, source: IO[bytes], target: Path | None) -> None:
    digest, size = hashlib.sha256(), 0
    out = None
    if target is not None:
        out = os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
    try:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > member.size:
                break
            digest.update(piece)
            if out is not None:
                out.write(piece)
        if out is not None:
            out.flush()
            os.fsync(out.fileno())
    finally:
        if out is not None:
            out.close()
    if size != member.size or digest.hexdigest() != member.sha256:
        raise BackupUnusable(f"« {member.name} » n'est pas ce que le manifeste annonce")
