"""What the store raises of its own. Errors of the database itself pass through as SQLAlchemy's."""

from __future__ import annotations


class StoreError(Exception):
    """Base of the store's own errors; the text is French, for the operator, without patient data."""


class StoreBusy(StoreError):
    """Too many pieces of work already wait: the caller must slow its own peer down."""


class StoreClosed(StoreError):
    """The store is not open, or is closing."""


class StoreLocked(StoreError):
    """Another process already owns this store."""


class NodeRefused(StoreError):
    """This node may not work on the store beside those that do: same name, folder or AE titles."""


class StoreMissing(StoreError):
    """There is no store where one was looked for."""


class StoreUnfinished(StoreError):
    """A restore was begun in the place of this store, and has not ended."""


class StoreTooNew(StoreError):
    """The database was written by a later version of the gateway."""


class StoreOutdated(StoreError):
    """The database was written by an earlier version, and whoever asks may not upgrade it."""


class StoreDamaged(StoreError):
    """A stored row cannot be read back: wrong version of the program, or damage."""


class NotInHand(StoreError):
    """A queue row is not (or no longer) in the hands of this process: its result is not accepted."""

    def __init__(self, table: str, row_id: int) -> None:
        super().__init__(f"La ligne {row_id} de la file « {table} » n'est pas prise par ce processus.")
        self.table = table
        self.row_id = row_id
