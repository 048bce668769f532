"""Where backups lie and what they are called: the names say of which gateway and of when they are."""

from __future__ import annotations

import fnmatch
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from drimbox.config import Config
from drimbox.store.engine import parse_url, sqlite_path

#: What the name of a backup begins with.
PREFIX = "drimbox-"
_INSTANT = re.compile(r"-(\d{8}T\d{6}Z)\.tar\.gz")


def expected_in(config: Config) -> Path | None:
    """Return the folder where backups are expected: those of a PostgreSQL server are its own affair."""
    return config.backup.folder if sqlite_path(parse_url(config.store_url)) is not None else None


def name_of(system_id: str, made: datetime, *, sealed: bool) -> str:
    """Return the name of a backup that is made now."""
    return f"{PREFIX}{system_id}-{made:%Y%m%dT%H%M%SZ}.tar.gz" + (".age" if sealed else "")


def made_at(path: Path) -> datetime | None:
    """Return the instant that a backup's name carries, None without one."""
    found = _INSTANT.search(path.name)
    try:
        return datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def backups_in(folder: Path, system_id: str) -> list[Path]:
    """Return the backups of this gateway in a folder, oldest first; each has been verified.

    Raises `OSError` when the folder cannot be listed.
    """
    # Not `glob`, to which a folder that cannot be listed is an empty one.
    names = fnmatch.filter(os.listdir(folder), f"{PREFIX}{system_id}-*Z.tar.gz*")
    return [folder / name for name in sorted(names)]


def newest(folder: Path, system_id: str) -> datetime | None:
    """Return of when the newest backup in a folder is, None without any. Raises `OSError`."""
    instants = [made_at(each) for each in backups_in(folder, system_id)]
    return max((each for each in instants if each is not None), default=None)
