"""Bring the schema of a store to this version: Alembic run by the program itself at start.

A database that holds something is copied before it changes (SQLite; a server has its own backups), and
the whole upgrade is one transaction on both databases, so that a failure leaves the old schema. A
database written by a later version is refused: guessing at unknown columns would lose data.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import attrs
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, inspect, text

from drimbox.durable import sync
from drimbox.store import engine as engines
from drimbox.store.errors import StoreDamaged, StoreTooNew

#: Any constant: the advisory lock under which one node upgrades while the others wait.
UPGRADE_LOCK = 0x4452494D
#: How a copy that is not whole yet ends.
_PARTIAL = ".part"


@attrs.frozen
class Upgrade:
    """What an upgrade did: revision before (None when the store was empty) and after, backup made."""

    before: str | None
    after: str
    backup: Path | None


def configuration(connection: Connection | None = None) -> Config:
    """Return the Alembic configuration, which needs no file: the revisions come with the package."""
    config = Config()
    config.set_main_option("script_location", "drimbox.store:migrations")
    config.attributes["connection"] = connection
    return config


def upgrade(url: URL) -> Upgrade:
    """Upgrade the store at `url` to the newest revision, creating it when it does not exist.

    Blocks: `Database.open` calls it in a pool thread. Raises `StoreTooNew`, `StoreDamaged` or the
    database's own errors; then nothing has changed.
    """
    script = ScriptDirectory.from_config(configuration())
    head = script.get_current_head()
    assert head is not None
    path = engines.sqlite_path(url)
    if path is not None:
        engines.create_private(path)
    engine = engines.migration_engine(url)
    try:
        with engine.begin() as connection:
            if path is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            before = _revision(connection, script)
            backup = None
            if before == head:
                return Upgrade(before, head, None)
            if before is not None and path is not None:
                backup = _backup(path, before)
            command.upgrade(configuration(connection), "head")
            if path is not None:
                _check_references(connection)
            return Upgrade(before, head, backup)
    finally:
        engine.dispose()


def _revision(connection: Connection, script: ScriptDirectory) -> str | None:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        if inspect(connection).get_table_names():
            raise StoreDamaged("La base contient des tables qui ne sont pas celles de la DRIMbox.")
        return None
    if current not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreTooNew(f"La base vient d'une version plus récente (schéma {current}).")
    return current


def _backup(path: Path, revision: str) -> Path:
    """Copy the database, WAL included, beside itself; durable before we return.

    Older copies of the same revision go: those of upgrades that did not come to their end, one more at each
    start of a service that an init system starts again and again.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.{revision}-{stamp}.bak")
    partial = target.with_name(target.name + _PARTIAL)
    for left in path.parent.glob(f"{path.name}.*.bak{_PARTIAL}"):
        left.unlink()
    engines.copy_sqlite(path, partial)
    # The copy is closed: opening the file once more drops no lock of SQLite's.
    sync(partial)
    partial.rename(target)
    sync(target.parent)
    for old in path.parent.glob(f"{path.name}.{revision}-[0-9]*T[0-9]*Z.bak"):
        if old != target:
            old.unlink()
    return target


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise StoreDamaged(f"Mise à niveau annulée : {len(broken)} références sans objet.")
