"""The audit trail as a command reads it, beside the gateway that writes it, without a reactor.

Reading goes through connections that cannot change anything. What a search leaves in the trail itself is
one short transaction of its own, before the first page: on SQLite it waits for its turn behind the
gateway's. The schema is never touched: a store of another version is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DatabaseError

from drimbox.ports import AuditEvent, Clock
from drimbox.store import auditchain, codec
from drimbox.store import engine as engines
from drimbox.store.auditchain import ChainCheck, ChainHead, ChainWalk
from drimbox.store.auditsearch import AuditQuery, AuditRecord, page
from drimbox.store.errors import StoreError, StoreMissing
from drimbox.store.revision import require_current
from drimbox.store.words import database_reason

T = TypeVar("T")
#: Events read at once.
PAGE = 500


class AuditDesk:
    """Opens the trail of a store; a context manager. Every method blocks.

    Raises `StoreMissing` when there is no store, `StoreTooNew` or `StoreDamaged` when it is of another
    version, `StoreError` when the database refuses.
    """

    def __init__(self, url: URL) -> None:
        path = engines.sqlite_path(url)
        try:
            missing = path is not None and not path.exists()
        except OSError:
            missing = False
        if missing:
            raise StoreMissing(f"{path} : base de données absente.")
        self._url = url
        self._reader: Engine = engines.reader_engine(url, 1) if path else engines.writer_engine(url, 1)
        self._readonly = {} if path else {"postgresql_readonly": True}

    def __enter__(self) -> AuditDesk:
        try:
            self._read(require_current)
        except BaseException:
            self._reader.dispose()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.dispose()

    def record(self, event: AuditEvent, clock: Clock) -> int:
        """Commit one event; return its number."""
        writer = engines.writer_engine(self._url, 1)
        try:
            with writer.begin() as connection:
                return auditchain.append(connection, clock, event, codec.to_plain(event))
        except DatabaseError as error:
            raise StoreError(f"L'audit ne peut pas être écrit ({database_reason(error)}).") from None
        finally:
            writer.dispose()

    def search(self, query: AuditQuery, *, limit: int | None, before: int) -> Iterator[AuditRecord]:
        """Yield the events before a number that match, newest first, page by page; without `limit`, all."""
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            found = self._read(partial(page, query=query, limit=size, before=before))
            yield from found
            if len(found) < size:
                return
            before = found[-1].id
            left = None if left is None else left - len(found)

    def verify(self, known: ChainHead | None, told: Callable[[int], None]) -> ChainCheck:
        """Walk the whole chain; `told` hears how many events were found good, now and then."""
        walk = ChainWalk(known)
        while self._read(walk.step):
            told(walk.checked)
        return walk.result

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._reader.connect().execution_options(**self._readonly) as connection:
                return work(connection)
        except DatabaseError as error:
            raise StoreError(
                f"La base de données ne peut pas être lue ({database_reason(error)})."
            ) from None
