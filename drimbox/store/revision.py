"""The revision of a store's schema, for who may look but not upgrade, and does not wait for Alembic."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from drimbox.store.errors import StoreDamaged, StoreOutdated, StoreTooNew


def newest() -> str:
    """Return the newest revision of this version: the files of `migrations` are called by their numbers."""
    files = (Path(__file__).parent / "migrations" / "versions").iterdir()
    return max(found[1] for file in files if (found := re.fullmatch(r"r(\d{4})_\w+\.py", file.name)))


def revision_of(connection: Connection) -> str:
    """Return a store's revision. Raises `StoreTooNew`, and `StoreDamaged` for what is no store of ours.

    Raises `DatabaseError` when it cannot be read.
    """
    try:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except ProgrammingError:
        found = None
    except OperationalError as error:
        # What SQLite says of a missing table; all else is about the file or the server, not the schema.
        if "no such table" not in str(error.orig):
            raise
        found = None
    if found is None:
        raise StoreDamaged("La base n'est pas celle d'une DRIMbox, ou n'a jamais servi.")
    if found > newest():
        raise StoreTooNew(f"La base vient d'une version plus récente (schéma {found}).")
    return str(found)


def require_current(connection: Connection) -> None:
    """Let a store pass whose schema is of this version. Raises as `revision_of`, and `StoreOutdated`."""
    if revision_of(connection) < newest():
        raise StoreOutdated("La base est d'une version plus ancienne : démarrer d'abord le service.")
