"""What `drimbox doctor` asks a store: its server, our rights, its nodes, what came last from each RIS.

Nothing is changed, but for one message in the log of PostgreSQL that nobody reads: a commit that has
something to write is the only one that waits for the disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Connection, Table, bindparam, select, text
from sqlalchemy.sql import func

from drimbox.store.nodes import SeenNode, read_nodes
from drimbox.store.schema import DONE, DROPPED, FAILED, PARKED, WAITING, audit, inbox, metadata

#: Settings of a server without which a commit that was answered may be lost with the power.
SAFE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
#: Of `synchronous_commit`, what waits for the disk of the server at least.
_WAITS = ("on", "local", "remote_write", "remote_apply")
_STATES = (WAITING, DONE, FAILED, PARKED, DROPPED)


@attrs.frozen
class Server:
    """A database server as we see it."""

    #: As it says it, "15.4 (Debian ...)", and as a number, 150004.
    version: str
    number: int
    #: Whether it is a copy that only reads.
    standby: bool
    #: Settings that endanger what was answered, with their values.
    unsafe: Mapping[str, str]
    #: Rights that we lack, "INSERT audit".
    missing: tuple[str, ...]
    #: Whether we may make tables, as an upgrade does.
    creates: bool


@attrs.frozen
class StoreFacts:
    """What one look at a store found."""

    #: None of SQLite.
    server: Server | None
    nodes: list[SeenNode]
    #: Instant of the last message of each RIS, None when none ever came; without those not asked about.
    last: Mapping[str, datetime | None]


def look(connection: Connection, ris: Collection[str]) -> StoreFacts:
    """Ask everything of a store of this version; `ris` are the declared ones."""
    server = _server(connection) if connection.dialect.name == "postgresql" else None
    if server is not None and any(right.startswith("SELECT") for right in server.missing):
        # What may not be read would end the transaction.
        return StoreFacts(server, [], {})
    return StoreFacts(server, read_nodes(connection), {name: _last(connection, name) for name in ris})


def commit_something(connection: Connection) -> None:
    """Have the commit of this transaction write to the log of a PostgreSQL server, if we may."""
    may = (
        select(func.count())
        .select_from(text("pg_proc"))
        .where(text("proname = 'pg_logical_emit_message' AND has_function_privilege(oid, 'EXECUTE')"))
    )
    if connection.execute(may).scalar_one():
        connection.execute(text("SELECT pg_logical_emit_message(true, 'drimbox', 'doctor')"))


def _server(connection: Connection) -> Server:
    def show(name: str) -> str:
        return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())

    values = {name: show(name) for name in SAFE}
    unsafe = {
        name: value
        for name, value in values.items()
        if value not in (_WAITS if name == "synchronous_commit" else (SAFE[name],))
    }
    return Server(
        version=show("server_version"),
        number=int(show("server_version_num")),
        standby=bool(connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()),
        unsafe=unsafe,
        missing=_missing(connection),
        creates=bool(
            connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar_one()
        ),
    )


def _missing(connection: Connection) -> tuple[str, ...]:
    """Return the rights we lack on our tables; the audit trail is append-only but for its retention."""
    allowed = text("SELECT has_table_privilege(:table, :right)").bindparams(
        bindparam("table"), bindparam("right")
    )
    found = []
    for table in metadata.sorted_tables:
        rights = ["SELECT", "INSERT"] if table is audit else ["SELECT", "INSERT", "UPDATE", "DELETE"]
        for right in rights:
            asked: dict[str, Any] = {"table": table.name, "right": right}
            if not connection.execute(allowed, asked).scalar_one():
                found.append(f"{right} {table.name}")
        found += _unnumbered(connection, table)
    return tuple(found)


def _unnumbered(connection: Connection, table: Table) -> list[str]:
    """Return the right we lack on what numbers the rows of a table, if something does."""
    column = table.autoincrement_column
    if column is None:
        return []
    asked = text("SELECT pg_get_serial_sequence(:table, :column)")
    sequence = connection.execute(asked, {"table": table.name, "column": column.name}).scalar_one()
    if sequence is None:
        return []
    allowed = text("SELECT has_sequence_privilege(:sequence, 'USAGE')")
    may = connection.execute(allowed, {"sequence": sequence}).scalar_one()
    return [] if may else [f"USAGE {sequence}"]


def _last(connection: Connection, ris: str) -> datetime | None:
    """Return when the last message of a RIS came; by the index, whatever the number of messages."""
    newest = [
        connection.execute(
            select(func.max(inbox.c.id)).where(inbox.c.state == state, inbox.c.ris == ris)
        ).scalar_one()
        for state in _STATES
    ]
    last = max((each for each in newest if each is not None), default=None)
    if last is None:
        return None
    found: datetime = connection.execute(select(inbox.c.received_at).where(inbox.c.id == last)).scalar_one()
    return found
