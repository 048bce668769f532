"""Deliveries under way: the audit record each of them leaves is in the store before its first byte.

Theory of operation. `begin` commits what would be recorded if nobody lived to tell the end; `end` replaces
it by what is to be recorded, in the transaction that appends the record and counts for the statistics: of
each delivery the trail has one record, whatever stops the process. What a dead process left is made into
records by the next one in its state folder when it starts, or by any node once the lease of the dead one
has ended (`tend`), each in a transaction of its own that only the first who comes gets: a stop in the
middle, or two nodes at once, change nothing.

A record that could not be written at its end (database away) is kept in memory and written by `tend`; were
the process to die first, the row speaks for it. While too many wait, no delivery begins.

A node that lost its lease and goes on all the same may find its row gone when a delivery ends: the record
says "interrupted, extent unknown" by then, and there is no second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, insert, or_, select
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.audit import messages
from drimbox.ports import AuditEvent, Clock, Count
from drimbox.store import auditchain, codec
from drimbox.store.database import Database
from drimbox.store.errors import StoreBusy, StoreDamaged
from drimbox.store.schema import UtcDateTime, node, open_record
from drimbox.store.statistics import count_in

#: Ends that may wait in memory to be written.
MOST_LATE = 1000
_ADD = insert(open_record)
_KEY = open_record.c.key == bindparam("this_key")
_REMOVE = delete(open_record).where(_KEY)


@attrs.frozen
class Left:
    """What a delivery leaves: its audit record, and what it counts for."""

    event: AuditEvent
    counts: tuple[Count, ...] = ()


class OpenRecords:
    """Implements `ports.OpenRecords` for the process called `node_name` in the state folder `home`.

    Only one process at a time may own `home` (`nodes.Home`): all rows of it that are not ours now are those
    of a dead one.
    """

    log = Logger()

    def __init__(self, database: Database, *, clock: Clock, node_name: str, home: str) -> None:
        self._database = database
        self._clock = clock
        self._node = node_name
        self._home = home
        #: Keys of the rows that may be in the store for deliveries of this process.
        self._ours: set[str] = set()
        #: Ends still to be written, by key.
        self._late: dict[str, Left] = {}
        alive = (
            select(node.c.name)
            .where(
                node.c.name == open_record.c.node,
                node.c.home == open_record.c.home,
                node.c.held_until >= bindparam("now", type_=UtcDateTime()),
            )
            .correlate(open_record)
            .exists()
        )
        mine = open_record.c.home == home
        self._listing = {False: _keys(mine), True: _keys(or_(mine, ~alive))}
        self._claim = (
            delete(open_record)
            .where(_KEY, or_(mine, ~alive))
            .returning(open_record.c.node, open_record.c.begun_at, open_record.c.content)
        )

    async def begin(self, key: str, event: AuditEvent, counts: Sequence[Count]) -> None:
        """Commit what a delivery leaves if it never ends; `key` is new, of at most 32 characters.

        Raises `StoreBusy` while too many ends wait to be written, and what the database raises; then the
        row may be there or not, and `end` must be told so.
        """
        if len(self._late) >= MOST_LATE:
            raise StoreBusy(f"{len(self._late)} événements d'audit attendent d'être écrits.")
        row = {
            "key": key,
            "node": self._node,
            "home": self._home,
            "begun_at": self._clock.now(),
            "content": codec.dumps(Left(event, tuple(counts))),
        }
        self._ours.add(key)

        def work(connection: Connection) -> None:
            connection.execute(_ADD, row)

        await self._database.run(work)

    async def end(self, key: str, event: AuditEvent, counts: Sequence[Count], *, begun: bool) -> None:
        """Record how a delivery ended, in the place of what it had begun with.

        With `begun`, what the database refuses now is written later (`tend`). Without (nothing begun, or
        nobody knows), raises what the database raises.
        """
        left = Left(event, tuple(counts))
        try:
            await self._end(key, left, begun)
        except Exception:
            if begun or key in self._ours:
                self._late[key] = left
            if not begun:
                raise
            self.log.failure("end of a delivery not recorded yet", failure=Failure())

    async def tend(self, *, others: bool) -> int:
        """Write what could not be written; record what the dead left. Return how many of those there were.

        `others` looks at other nodes too: not to be said while our clock may be wrong. Raises what the
        database raises.
        """
        for key, left in list(self._late.items()):
            try:
                await self._end(key, left, True)
            except Exception:
                # It must not keep the others.
                self.log.failure("end of a delivery still not recorded", failure=Failure())
            else:
                self._late.pop(key, None)
        asked = {"now": self._clock.now()}
        found = await self._database.read(
            lambda connection: list(connection.execute(self._listing[others], asked).scalars())
        )
        count = 0
        for key in found:
            # One of ours is known before it can be seen, and gone before it is forgotten.
            event = None if key in self._ours else await self._database.run(partial(self._record, key))
            if event is not None:
                count += 1
                self.log.warn(
                    "study {study}: {what}", study=event.study_uid, what=event.outcome_description
                )
        return count

    async def _end(self, key: str, left: Left, begun: bool) -> None:
        if not await self._database.run(partial(self._close, key, left, begun)):
            self.log.warn(
                "delivery of {study} has its record already, not that of its end (outcome {outcome})",
                study=left.event.study_uid,
                outcome=left.event.outcome,
            )
        self._ours.discard(key)

    # -- in a transaction --------------------------------------------------------------------------

    def _close(self, key: str, left: Left, begun: bool, connection: Connection) -> bool:
        """Put the end in the place of the row; False when that is done, or another node has taken it."""
        # The row before the chain, here and below: whoever holds one waits for nobody who holds the other.
        removed = connection.execute(_REMOVE, {"this_key": key}).rowcount
        if begun and not removed:
            return False
        self._append(connection, left)
        return True

    def _record(self, key: str, connection: Connection) -> AuditEvent | None:
        """Make a record of what a dead process left; None when somebody has."""
        now = self._clock.now()
        row = connection.execute(self._claim, {"this_key": key, "now": now}).one_or_none()
        if row is None:
            return None
        try:
            left = codec.loads(row.content, Left)
        except StoreDamaged:
            # It is not known of what, but it is known that, and it must not keep the others.
            left = Left(messages.images_served(study_uid="", caller_address="", source_name="", kos=None))
        event = messages.interrupted(left.event, node=row.node, begun_at=row.begun_at, found_at=now)
        self._append(connection, attrs.evolve(left, event=event))
        return event

    def _append(self, connection: Connection, left: Left) -> None:
        auditchain.append(connection, self._clock, left.event, codec.to_plain(left.event))
        count_in(connection, self._clock.now(), left.counts)


def _keys(which: ColumnElement[bool]) -> Select[Any]:
    return select(open_record.c.key).where(which).order_by(open_record.c.begun_at)
