"""A copy of the store, consistent while the gateway works, and what a restore makes of it (DB.SO.24).

SQLite only: a database server has backups of its own, which hold the point in time of every node at once.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import attrs
from sqlalchemy import create_engine, func, select, update
from sqlalchemy.pool import NullPool

from drimbox.store import engine as engines
from drimbox.store.auditchain import ChainHead
from drimbox.store.errors import StoreDamaged, StoreError, StoreMissing
from drimbox.store.notices import open_notice
from drimbox.store.revision import revision_of
from drimbox.store.schema import WAITING, audit_head, feed_job, inbox, kos, outbox


@attrs.frozen
class Facts:
    """What a copy holds."""

    revision: str
    head: ChainHead
    kos: int


def copy_store(source: Path, target: Path) -> Facts:
    """Copy the store of a running or stopped gateway to `target`, which must not exist; examine the copy.

    Raises `StoreMissing`, and `StoreDamaged` when the copy is not sound.
    """
    if not source.is_file():
        raise StoreMissing(f"{source} : base de données absente.")
    engines.copy_sqlite(source, target)
    return examine(target)


def examine(path: Path) -> Facts:
    """Check that a store is sound, and say what it holds. Raises `StoreDamaged`, `StoreTooNew`."""
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, hide_parameters=True)
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
            if found != "ok":
                raise StoreDamaged("la base copiée est endommagée (integrity_check)")
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise StoreDamaged("la base copiée a des références rompues")
            revision = revision_of(connection)
            head = connection.execute(select(audit_head.c.last_id, audit_head.c.hash)).one()
            count = connection.execute(select(func.count()).select_from(kos)).scalar_one()
            return Facts(revision, ChainHead(head.last_id, head.hash), count)
    except StoreError:
        raise
    except Exception as error:
        raise StoreDamaged(f"la base copiée ne se lit pas ({type(error).__name__})") from None
    finally:
        engine.dispose()


def prepare_restored(path: Path, made_at: datetime, now: datetime) -> int:
    """Have a restored store ask before it sends: what waited may have been published after the copy.

    Every waiting publication counts as of unknown outcome, so that the DMP is asked what it holds first.
    Nothing is in anybody's hands. The administrator is told. Returns how many publications wait.
    """
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, hide_parameters=True)
    try:
        with engine.begin() as connection:
            for table in (inbox, feed_job, outbox):
                connection.execute(
                    update(table).where(table.c.state == WAITING).values(holder=None, held_until=None)
                )
            doubtful = update(outbox).where(outbox.c.state == WAITING).values(outcome_unknown=True)
            waiting = connection.execute(doubtful).rowcount
            text = (
                f"Base restaurée d'une sauvegarde du {made_at.astimezone():%d/%m/%Y à %H:%M}. Faire "
                "renvoyer par les RIS les messages acquittés depuis, puis lancer une resynchronisation "
                "(drimbox resync start)."
            )
            open_notice(connection, "restauration", "RESTAURATION", text, now)
            return int(waiting)
    finally:
        engine.dispose()
