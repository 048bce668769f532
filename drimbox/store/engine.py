"""SQLAlchemy engines: how a connection to SQLite or PostgreSQL is made safe before anybody uses it.

SQLite: WAL, `synchronous=FULL` (an acknowledged message survives the power cut, architecture.md rule 4),
foreign keys on, `BEGIN IMMEDIATE` for writers so that a transaction never fails half-way for want of the
write lock, and query-only connections for readers. The file holds patient data: only its owner may
read it. Statement parameters are never shown in error texts, for the same reason.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from drimbox.secretfile import SecretUnusable, read_secret

#: Seconds a connection waits for a lock held by somebody else (a backup, the command line).
BUSY_TIMEOUT = 15.0


#: SQLSTATE of a change that a server, or a session, is too read-only for.
_READ_ONLY = "25006"
#: What libpq is told (seconds; milliseconds for the last of TCP), unless the URL says otherwise. A server
#: that is gone is noticed. A node frozen inside a transaction loses it before the others, who wait for its
#: locks with all their connections, give up.
_SERVER: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "drimbox",
    "options": "-c idle_in_transaction_session_timeout=15s -c lock_timeout=30s -c statement_timeout=300s",
}


def parse_url(url: str, password_file: Path | None = None) -> URL:
    """Read a `[store] url`, and the password that goes with it; blocks.

    Raises `ValueError` (French text) for what cannot hold durable state, `SecretUnusable` for the file.
    """
    try:
        parsed = make_url(url)
    except Exception:
        # The original text quotes the URL, password included.
        raise ValueError("URL de base de données illisible") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"base de données « {backend} » non prise en charge (sqlite ou postgresql)")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("la base SQLite doit être un fichier : en mémoire, rien n'est durable")
    if backend == "postgresql" and password_file is not None:
        return parsed.set(password=read_secret(password_file, blanks=True))
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """Return the database file, or None for a server database."""
    if url.get_backend_name() != "sqlite":
        return None
    assert url.database is not None
    return Path(url.database)


def create_private(path: Path) -> None:
    """Create an empty file that only its owner reads, unless it is already there.

    The `-wal` and `-shm` files SQLite makes beside it take its mode.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database to a file that only its owner reads, while others use it.

    SQLite's backup call, not a file copy: it takes the committed state whatever the WAL holds. In one go:
    in steps, every commit of somebody else would have it begin anew.
    """
    create_private(target)
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
        there.backup(here)


def _sqlite_hooks(engine: Engine, *, begin: str, pragmas: tuple[str, ...]) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        # The sqlite3 module would open transactions on its own, and not before DDL: `begin` does it.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)


_WRITER = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF")
#: A migration rebuilds tables: with foreign keys on, dropping the old one would empty its children.
_MIGRATION = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=OFF")
_READER = ("foreign_keys=ON", "trusted_schema=OFF", "query_only=ON")


def writer_engine(url: URL, threads: int, password_file: Path | None = None) -> Engine:
    """Engine of `Database.run`: one connection on SQLite, `threads` on a server.

    With `password_file` each new connection to a server reads its password anew: it may be changed while
    the service runs. Without, that of the URL lasts as long as the engine.
    """
    if url.get_backend_name() == "sqlite":
        engine = _sqlite(url, 1)
        _sqlite_hooks(engine, begin="BEGIN IMMEDIATE", pragmas=_WRITER)
        return engine
    engine = _server(url, threads)
    _leave_standby(engine)
    if password_file is not None:
        _read_password(engine, password_file)
    return engine


def reader_engine(url: URL, threads: int) -> Engine:
    """Engine of `Database.read` on SQLite: WAL lets it read while the writer writes."""
    engine = _sqlite(url, threads)
    _sqlite_hooks(engine, begin="BEGIN", pragmas=_READER)
    return engine


def migration_engine(url: URL) -> Engine:
    """Engine for one schema upgrade; DDL is inside the transaction, on both databases."""
    if url.get_backend_name() != "sqlite":
        # An upgrade may take its time, and waits for that of another node.
        patient = {key: value for key, value in _server_arguments(url).items() if key != "options"}
        return create_engine(url, poolclass=NullPool, connect_args=patient, hide_parameters=True)
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT}, hide_parameters=True
    )
    _sqlite_hooks(engine, begin="BEGIN IMMEDIATE", pragmas=_MIGRATION)
    return engine


def _sqlite(url: URL, size: int) -> Engine:
    return create_engine(
        url,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False},
        hide_parameters=True,
    )


def _server(url: URL, size: int) -> Engine:
    return create_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args=_server_arguments(url),
        hide_parameters=True,
    )


def _leave_standby(engine: Engine) -> None:
    @event.listens_for(engine, "handle_error")
    def failed(context: Any) -> None:
        # A server that became a standby may keep our connections: new ones find its successor.
        if getattr(context.original_exception, "sqlstate", "") == _READ_ONLY:
            context.is_disconnect = True


def _read_password(engine: Engine, path: Path) -> None:
    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, _arguments: Any, named: dict[str, Any]) -> None:
        try:
            named["password"] = read_secret(path, blanks=True)
        except SecretUnusable as error:
            # For whoever wants a connection: the server cannot be reached now, and may be later.
            raise dialect.loaded_dbapi.OperationalError(str(error)) from None


def _server_arguments(url: URL) -> dict[str, Any]:
    return {key: value for key, value in _SERVER.items() if key not in url.query}
