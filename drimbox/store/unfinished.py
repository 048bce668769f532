"""The mark of a restore that has not ended: while it stands, no store is made in its place.

A file beside the store, locked while the restore lives. It goes with a restore that put all in place, or
nothing; after a kill, or a failure half-way, it stays and says so.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from drimbox.durable import sync
from drimbox.store.errors import StoreLocked, StoreUnfinished

#: Name of the mark in the state folder.
NAME = "restauration.inachevee"


def refuse_unfinished(database: Path) -> None:
    """Raise `StoreUnfinished` when a restore was to put `database` in place and has not. Blocks."""
    mark = database.with_name(NAME)
    # The store comes last: once it is there, it is whole.
    if mark.exists() and not database.exists():
        raise StoreUnfinished(
            f"Une restauration n'est pas terminée dans {database.parent} : relancer « drimbox restore ». "
            f"Pour y renoncer et partir d'une base vide, supprimer {mark}."
        )


class Mark:
    """The mark, from `with` to its end. Raises `StoreLocked` while another restore is at work there."""

    def __init__(self, folder: Path, text: str) -> None:
        self._path = folder / NAME
        self._text = text
        self._file = -1
        self._kept = False

    def keep(self) -> None:
        """Something is put in place from here on: a failure leaves the mark."""
        self._kept = True

    def drop(self) -> None:
        """All is in place."""
        self._kept = False

    def __enter__(self) -> Mark:
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._file).st_nlink:
                # Another one ended, and took it away, just now.
                raise BlockingIOError
            # One that was there already has seen something put in place, perhaps.
            self._kept = os.fstat(self._file).st_size > 0
            os.pwrite(self._file, self._text.encode("utf-8", "replace"), 0)
            os.fsync(self._file)
            sync(self._path.parent)
        except BlockingIOError:
            os.close(self._file)
            raise StoreLocked("Une autre restauration est en cours dans ce dossier.") from None
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._kept:
                self._path.unlink(missing_ok=True)
                sync(self._path.parent)
        finally:
            os.close(self._file)
