"""Making a backup beside the running gateway, and verifying what was written."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from drimbox import __version__
from drimbox.backup import container, sealing
from drimbox.backup.container import DATABASE, MAX_FILE, BackupUnusable, Manifest, Member
from drimbox.backupfiles import PREFIX, backups_in, name_of
from drimbox.config import Config
from drimbox.durable import sync
from drimbox.store import snapshot
from drimbox.store.engine import parse_url, sqlite_path

#: The parts of making one, as an operator reads them.
STAGES = ("copie de la base", "écriture", "relecture", "dépôt")
_WORK = "sauvegarde-"
#: Seconds after which what nobody works on any more was left by somebody who was killed.
_LEFT, _LEFT_PARTIAL = 60.0, 86400.0
#: Free space asked for, in sizes of the store: copy, packed copy, sealed copy.
_ROOM = 3


@attrs.frozen
class Made:
    """A backup that was written and verified."""

    path: Path
    size: int
    sha256: str
    manifest: Manifest
    removed: tuple[Path, ...]


def make(
    config: Config,
    config_path: Path,
    folder: Path,
    *,
    recipients: Sequence[str] = (),
    keep: int | None = None,
    announce: Callable[[str], None] = lambda name: None,
    told: Callable[[int], None] = lambda stage: None,
) -> Made:
    """Write one backup into `folder` and verify it; then remove all but the `keep` newest there.

    `announce` is told its name before the first byte leaves the state folder; what it raises, nothing does.
    `told` hears which of `STAGES` begins. Keys and secrets are in it only when it is encrypted. Raises
    `BackupUnusable`, `StoreError`, `OSError`.
    """
    database = sqlite_path(parse_url(config.store_url))
    if database is None:
        raise BackupUnusable("base PostgreSQL : la sauvegarder avec pg_dump (exploitation-sauvegarde.md)")
    keys = [sealing.recipient(text) for text in recipients]
    now = datetime.now(UTC)
    name = name_of(config.drimbox.system_id, now, sealed=bool(keys))
    _sweep(config.drimbox.state_dir, folder, config.drimbox.system_id)
    _room(database, config.drimbox.state_dir, folder)
    with _work(config.drimbox.state_dir) as work:
        told(0)
        copy = work / DATABASE
        facts = snapshot.copy_store(database, copy)
        files = {DATABASE: copy}
        members = [container.describe(DATABASE, copy)]
        for member, path in _configuration(config, config_path, with_secrets=bool(keys)):
            members.append(member)
            files[member.name] = path
        manifest = Manifest(
            format=container.FORMAT,
            version=__version__,
            made_at=now.isoformat(),
            system_id=config.drimbox.system_id,
            revision=facts.revision,
            audit_last=facts.head.last_id,
            audit_hash=facts.head.hash,
            kos=facts.kos,
            configuration=members[1].name,
            secrets=bool(keys),
            members=tuple(members),
        )
        packed = work / "paquet"
        told(1)
        container.write(packed, manifest, files)
        told(2)
        if container.read(packed) != manifest:
            raise BackupUnusable("la sauvegarde relue n'est pas celle qui a été écrite")
        announce(name)
        told(3)
        target = _deliver(packed, folder / name, keys)
    size, digest = _digest(target)
    removed = _rotate(folder, config.drimbox.system_id, keep) if keep else ()
    return Made(target, size, digest, manifest, removed)


@contextmanager
def _work(state: Path) -> Iterator[Path]:
    """Make a folder for the copy, locked while we live."""
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=state) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _sweep(state: Path, folder: Path, system_id: str) -> None:
    """Remove what backups that were killed have left: copies of the store, files half written."""
    now = time.time()
    for left in state.glob(f"{_WORK}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # Whoever works there holds the lock: BlockingIOError.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if now - os.fstat(descriptor).st_mtime > _LEFT:
                    shutil.rmtree(left)
            finally:
                os.close(descriptor)
    for left in folder.glob(f".{PREFIX}{system_id}-*.part"):
        if now - left.stat().st_mtime > _LEFT_PARTIAL:
            left.unlink(missing_ok=True)


def _room(database: Path, state: Path, folder: Path) -> None:
    # Not the copies that upgrades have left beside it.
    parts = [database.with_name(database.name + suffix) for suffix in ("", "-wal")]
    size = sum(path.stat().st_size for path in parts if path.is_file())
    for place, times in ((state, _ROOM), (folder, 1)):
        if shutil.disk_usage(place).free < times * size:
            raise BackupUnusable(f"place insuffisante dans {place} ({times} fois la base, {size} octets)")


def _configuration(
    config: Config, config_path: Path, *, with_secrets: bool
) -> Iterator[tuple[Member, Path]]:
    """Yield the configuration file, then the files it names: certificates; with `with_secrets` all."""
    yield container.describe("configuration.toml", config_path, str(config_path.absolute())), config_path
    for number, (path, secret) in enumerate(sorted(_named(config).items()), 1):
        if secret and not with_secrets:
            continue
        if path.is_file() and path.stat().st_size <= MAX_FILE:
            yield (
                container.describe(f"{number:03}-{path.name.lstrip('.')}", path, str(path.absolute())),
                path,
            )


def _named(config: Any) -> dict[Path, bool]:
    """Return the files that a configuration names, and whether each is a secret.

    A file is public only when its key says that it is a certificate, a list or roots.
    """
    found: dict[Path, bool] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Path):
            found[value] = found.get(value, True) and not _is_public(name)
        elif isinstance(value, tuple | list):
            for each in value:
                visit(name, each)
        elif attrs.has(type(value)):
            for field in attrs.fields(type(value)):
                visit(field.name, getattr(value, field.name))

    visit("", config)
    return found


def _is_public(name: str) -> bool:
    return "roots" in name or name.endswith(("certificate", "certificates"))


def _deliver(packed: Path, target: Path, keys: Sequence[Any]) -> Path:
    """Put the file in its place, complete or not at all, durable."""
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if keys:
            sealing.seal(packed, partial, keys)
        else:
            with packed.open("rb") as source, partial.open("wb") as out:
                shutil.copyfileobj(source, out, 1024 * 1024)
        sync(partial)
        if not keys and _digest(partial) != _digest(packed):
            raise BackupUnusable("la sauvegarde relue n'est pas celle qui a été écrite")
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)
    return target


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as source:
        return path.stat().st_size, hashlib.file_digest(source, "sha256").hexdigest()


def _rotate(folder: Path, system_id: str, keep: int) -> tuple[Path, ...]:
    """Remove the oldest backups of this gateway."""
    old = tuple(backups_in(folder, system_id)[:-keep])
    for path in old:
        path.unlink()
    return old
