"""Restoring a backup: all is verified before anything is put in place, and nothing is overwritten.

From its first moment to its last a restore has a mark beside the store (`store.unfinished`): a gateway that
is started after one that was cut would make a store without a single KOS, in silence. A restore that was
cut is begun again by the same command: what the first one had put in place is recognised by its content.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import attrs

from drimbox.backup import container, sealing
from drimbox.backup.container import DATABASE, BackupUnusable, Manifest, Member
from drimbox.configfile import ConfigErrors, load
from drimbox.durable import sync
from drimbox.store import snapshot
from drimbox.store.engine import parse_url, sqlite_path
from drimbox.store.unfinished import Mark

_WORK = "restauration-"


@attrs.frozen
class Restored:
    """What a restore did."""

    manifest: Manifest
    database: Path
    #: Publications that wait; the DMP is asked about each before it is sent.
    waiting: int
    #: Files of the configuration put in place; those left aside, with where they were.
    placed: tuple[Path, ...]
    aside: tuple[tuple[Path, str], ...]


def verify(path: Path, work: Path, identity: Path | None) -> Manifest:
    """Unpack a backup into `work` and hold it against itself: files, store, audit head.

    Raises `BackupUnusable`, `StoreError`, `OSError`.
    """
    opened = path
    if sealing.is_sealed(path):
        if identity is None:
            raise BackupUnusable("la sauvegarde est chiffrée : donner la clé secrète (--identity)")
        opened = work / "paquet"
        os.close(os.open(opened, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        sealing.unseal(path, opened, identity)
    manifest = container.read(opened, work)
    if opened != path:
        opened.unlink()
    facts = snapshot.examine(work / DATABASE)
    promised = (manifest.revision, manifest.audit_last, manifest.audit_hash, manifest.kos)
    if promised != (facts.revision, facts.head.last_id, facts.head.hash, facts.kos):
        raise BackupUnusable("la base n'est pas celle que le manifeste annonce")
    return manifest


def check_only(path: Path, identity: Path | None, folder: Path | None = None) -> Manifest:
    """Verify a backup and leave nothing behind; `folder` is where there is room for it."""
    with tempfile.TemporaryDirectory(prefix="verification-", dir=folder) as work:
        return verify(path, Path(work), identity)


def restore(path: Path, *, target: Path, config_path: Path, identity: Path | None = None) -> Restored:
    """Put a backup in place: the store as `target`, the configuration beside `config_path`.

    Refuses when there is a store already, and when the configuration of the backup, where it takes effect,
    would look for the store elsewhere. Files of the configuration that exist already are left as they are.
    Raises `BackupUnusable`, `StoreError`, `OSError`.
    """
    state = target.parent
    if not state.is_dir():
        mend = "le créer, au compte du service, ou donner --state-dir"
        raise BackupUnusable(f"{state} n'existe pas : {mend}")
    with Mark(state, f"{path.name}, {datetime.now().astimezone():%d/%m/%Y %H:%M}\n") as mark:
        if any(state.glob(f"{target.name}*")):
            mark.drop()
            raise BackupUnusable(f"{state} contient déjà une base : la déplacer d'abord, rien n'est écrasé")
        with _work(state) as work:
            manifest = verify(path, work, identity)
            if not config_path.exists():
                target = _where_it_is_looked_for(work / manifest.configuration, config_path, target)
            waiting = snapshot.prepare_restored(work / DATABASE, manifest.instant, datetime.now(UTC))
            mark.keep()
            placed, aside = _place_configuration(manifest, work, config_path)
            _own_like(state, work / DATABASE)
            sync(work / DATABASE)
            (work / DATABASE).rename(target)
            sync(state)
        mark.drop()
    return Restored(manifest, target, waiting, placed, aside)


def _where_it_is_looked_for(configuration: Path, config_path: Path, target: Path) -> Path:
    """Return the path of the store by the configuration of the backup. Raises `BackupUnusable`."""
    try:
        place = sqlite_path(parse_url(load(configuration, files=False).store_url))
    except ConfigErrors:
        # Of another version, perhaps: `check-config` will say so.
        return target
    if place is None:
        return target
    if place.is_relative_to(configuration.parent):
        # It was written relative to the folder of the configuration.
        place = config_path.absolute().parent / place.relative_to(configuration.parent)
    if place.parent.resolve() != target.parent.resolve():
        raise BackupUnusable(
            f"la configuration sauvegardée place la base dans {place.parent} : relancer avec "
            f"--state-dir {place.parent}"
        )
    if place.exists():
        raise BackupUnusable(f"{place} existe déjà : la déplacer d'abord, rien n'est écrasé")
    return place


@contextmanager
def _work(state: Path) -> Iterator[Path]:
    """Make a folder for what is unpacked; the mark says that those of others belong to the dead."""
    for left in state.glob(f"{_WORK}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=state) as name:
        yield Path(name)


def _place_configuration(
    manifest: Manifest, work: Path, config_path: Path
) -> tuple[tuple[Path, ...], tuple[tuple[Path, str], ...]]:
    """Put the files of the configuration back where they were, below the folder of `config_path` only.

    A backup comes from elsewhere: what it says of paths outside of that folder is not followed. Those files
    are put aside, for the administrator to move.
    """
    members = {member.name: member for member in manifest.members}
    base = Path(members[manifest.configuration].origin).parent
    folder = config_path.absolute().parent
    placed: list[Path] = []
    aside: list[tuple[Path, str]] = []
    for member in manifest.members:
        if member.name == DATABASE:
            continue
        wanted = config_path if member.name == manifest.configuration else _below(member, base, folder)
        if wanted is not None and _put(work / member.name, wanted, folder):
            placed.append(wanted)
            continue
        wanted = folder / "restauration" / member.name
        number = 1
        while not _put(work / member.name, wanted, folder):
            number += 1
            wanted = folder / f"restauration-{number}" / member.name
        aside.append((wanted, member.origin))
    return tuple(placed), tuple(aside)


def _below(member: Member, base: Path, folder: Path) -> Path | None:
    """Return where a file goes that stood below the old folder of the configuration, else None."""
    origin = Path(member.origin)
    if not origin.is_relative_to(base) or ".." in origin.parts:
        return None
    wanted = folder / origin.relative_to(base)
    # No link leads out of the folder.
    return wanted if wanted.parent.resolve().is_relative_to(folder.resolve()) else None


def _put(source: Path, target: Path, folder: Path) -> bool:
    """Put a file in its place, whole or not at all; say whether its content is there, it may have been."""
    for each in reversed(target.parents):
        if each.is_relative_to(folder) and not each.exists():
            each.mkdir(mode=0o700)
            _own_like(folder, each)
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    try:
        with source.open("rb") as content:
            descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                shutil.copyfileobj(content, out)
        _own_like(folder, partial)
        sync(partial)
        # Unlike a rename, a link takes no place that is taken.
        os.link(partial, target)
    except FileExistsError:
        return target.is_file() and _same(source, target)
    finally:
        partial.unlink(missing_ok=True)
    sync(target.parent)
    return True


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _own_like(folder: Path, path: Path) -> None:
    """Give what was written to the account and group of its folder, when we may: root restores for others.

    In a folder of root's that a group may read, the gateway reads by that group.
    """
    if os.geteuid() == 0:
        about = folder.stat()
        os.chown(path, about.st_uid, about.st_gid)
        if about.st_uid == 0 and about.st_gid != 0:
            path.chmod(0o750 if path.is_dir() else 0o640)
