"""A backup of a large archive, and its restore (DB.SO.24): `python -m bench --only backup`.

Figures, of a store of so many published KOS (KOS and metadata 4 KB, each with its report and ended row):
- `backup.kos`, `backup.store`: how many, and MB of the store;
- `backup.plain`, `backup.sealed`: seconds until a file is written and verified; the latter is encrypted;
  `backup.plain_size`: its size, MB;
- `backup.check`: seconds to verify the sealed file, nothing put in place;
- `backup.restore`, `backup.restore_rate`: seconds from the sealed file to a store in place, KOS a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.kosarchive import fill
from bench.plan import Plan
from bench.program import ROOT
from bench.results import Results
from drimbox.backup import making, restoring, sealing
from drimbox.config import Config
from drimbox.configfile import load
from drimbox.store.engine import parse_url
from drimbox.store.upgrade import upgrade

T = TypeVar("T")


def measure_backup(results: Results, plan: Plan, folder: Path) -> None:
    """Make an archive, back it up plain and sealed, and restore it elsewhere."""
    config, path = _configuration(folder)
    database = folder / "state" / "drimbox.db"
    upgrade(parse_url(config.store_url))
    fill(database, plan.saved)
    results.add("backup.kos", plan.saved, "KOS")
    results.add("backup.store", database.stat().st_size / 1e6, "MB")
    secret, public = sealing.new_identity()
    identity = folder / "identity"
    identity.write_text(secret + "\n")
    target = folder / "backups"
    target.mkdir()
    plain, seconds = _timed(lambda: making.make(config, path, target))
    results.add("backup.plain", seconds, "s")
    results.add("backup.plain_size", plain.size / 1e6, "MB")
    sealed, seconds = _timed(lambda: making.make(config, path, target, recipients=[public]))
    results.add("backup.sealed", seconds, "s")
    _, seconds = _timed(lambda: restoring.check_only(sealed.path, identity, folder))
    results.add("backup.check", seconds, "s")
    empty = folder / "empty"
    empty.mkdir(mode=0o700)
    done, seconds = _timed(
        lambda: restoring.restore(
            sealed.path, target=empty / "drimbox.db", config_path=empty / "drimbox.toml", identity=identity
        )
    )
    results.add("backup.restore", seconds, "s")
    results.add("backup.restore_rate", done.manifest.kos / seconds, "KOS/s")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    os.sync()
    started = time.monotonic()
    done = work()
    return done, time.monotonic() - started


def _configuration(folder: Path) -> tuple[Config, Path]:
    (folder / "state").mkdir(mode=0o700)
    text = (ROOT / "etc" / "drimbox.toml").read_text("utf-8")
    path = folder / "drimbox.toml"
    path.write_text(text.replace('"/var/lib/drimbox"', f'"{folder / "state"}"'), "utf-8")
    return load(path, files=False), path
