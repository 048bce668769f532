"""By whose clock leases count, and that a node works under its name only while the name is its own.

Between nodes it is the database's clock: whoever's own is wrong neither takes what a living node holds, nor
keeps what it has let go. A store of one's own needs none; tests have a clock of theirs.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, exists, text

from drimbox.ports import Clock
from drimbox.store.schema import node


class LeaseClock:
    """The database's clock with `shared`, on a server; else `clock`."""

    def __init__(self, clock: Clock, *, shared: bool) -> None:
        self._clock = clock
        self._shared = shared

    def now(self, connection: Connection) -> datetime:
        """Return the instant by which leases count."""
        if self._shared and connection.dialect.name == "postgresql":
            return database_now(connection)
        return self._clock.now()


def database_now(connection: Connection) -> datetime:
    """Return the instant of a PostgreSQL server, not that at which the transaction began."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def seated(name: str, home: str) -> ColumnElement[bool]:
    """Condition: the node `name` is the process in the state folder `home`, and no other by now."""
    return exists().where(node.c.name == name, node.c.home == home)
