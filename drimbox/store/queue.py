"""What the three queues have in common: take rows, hold them, put them off, end them.

Theory of operation. `take` marks due rows as in the hands of this process (`holder` is the node's name,
`held_until` the end of its lease) and returns them; nobody else gets them. The row ends by a transition
(`processed`, `published`, ...) or goes back by a delay. Every transition is one UPDATE that only matches
a row still waiting **and** in our hands: work whose lease was lost cannot write its result over another
node's, it gets `NotInHand`. A transition repeated after it was committed does nothing.

A stop, however brutal, leaves rows in hand. At start `release_all` gives back those of this node name;
with several nodes on PostgreSQL, `renew` moves the lease of a row forward as long as it is worked on, and
rows of a dead node come back when theirs end, by the database's clock (`leases`). A node that slept while
another took its name ends nothing any more (`seat`). On one box the lease plays no part: the holder is
always ourselves.

A row may be poison: its work breaks (`broke`), or kills the process that has it in hand. Each such
failure is counted, and makes the row wait longer; any ordinary end of a round, a delay included, sets the
count back to nothing, so that a PACS or a DMP that is silent for days parks nothing, and neither does a
row that was only in hand when something else brought the process down. After `Patience.max_failures` in a
row it is *parked*: kept with its reason, out of the way of the others, until somebody looks
(`store.mending`). A row that cannot even be read back is parked at once: waiting does not mend it.

Takers take turns (SQLite has one writer; PostgreSQL an advisory lock per queue), because "the oldest of
its study, and none of that study in hand" looks at other rows than the one it locks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

import attrs
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    func,
    or_,
    select,
    text,
    true,
    update,
)

from drimbox.ports import Clock
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.errors import NotInHand
from drimbox.store.failures import blames_row
from drimbox.store.leases import LeaseClock, seated
from drimbox.store.schema import DONE, DROPPED, FAILED, PARKED, WAITING, UtcDateTime

T = TypeVar("T")
#: Rows one `take` may return, whatever is asked.
MAX_TAKE = 500
#: Seconds a row stays with a node that no longer renews.
LEASE = 300.0
#: Why a row waits, or is parked, whose process ended while it was in hand.
INTERRUPTED = "processus interrompu pendant le traitement"
#: When rows are taken, and after which instant nothing is due that was dated by a sane clock.
_NOW, _BEYOND = bindparam("now", type_=UtcDateTime()), bindparam("beyond", type_=UtcDateTime())
#: The same instant by the clock of the leases.
_LEASES = bindparam("leases", type_=UtcDateTime())


@attrs.frozen
class Patience:
    """How long a queue bears with a row whose work breaks."""

    #: Failures in a row after which it is parked.
    max_failures: int = 10
    #: The wait after so many failures in a row (from 1).
    wait: Callable[[int], timedelta] = lambda _: timedelta(seconds=60)
    #: Nothing is ever put off for longer, whatever the reason.
    longest: timedelta = timedelta(days=7)


@attrs.frozen
class Backlog:
    """What of a queue is not done."""

    #: Rows waiting or in hand.
    waiting: int
    parked: int
    #: When the oldest of those waiting came, None when there is none.
    oldest: datetime | None


@attrs.frozen
class QueueCount:
    """How full a queue is. `waiting` counts rows not in hand."""

    waiting: int
    in_hand: int
    done: int
    failed: int
    parked: int
    dropped: int
    #: When the oldest unfinished row came, None when there is none.
    oldest: datetime | None


@attrs.define
class _Orphans:
    """Rows whose process died: those to be worked on at once, and how many later, or not any more."""

    ready: list[int] = attrs.field(factory=list)
    later: int = 0
    parked: int = 0


@attrs.frozen
class Claim(Generic[T]):
    """The statements that take rows of a queue, and what makes one of them what is worked on."""

    choose: Select[Any]
    load: Select[Any]
    take: Update
    read: Callable[[AnyRow], T]


class Queue:
    """The queue of one table, worked on by the process called `node`."""

    _table: ClassVar[Table]
    #: The column that says when a row came.
    _created: ClassVar[ColumnElement[Any]]

    #: Called after a row was parked; set by whoever tells the administrator.
    parked: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        node: str = "main",
        lease: float = LEASE,
        patience: Patience | None = None,
        shared: bool = False,
    ) -> None:
        """`shared`: leases count by the database's clock."""
        self._database = database
        self._clock = clock
        self._leases = LeaseClock(clock, shared=shared)
        self._node = node
        self._lease = timedelta(seconds=lease)
        self._seated: ColumnElement[bool] = true()
        self._patience = patience or Patience()
        # Made once: to build a statement costs SQLAlchemy more than SQLite takes to run it.
        table = self._table
        this = table.c.id == bindparam("this_row")
        self._mine = update(table).where(this, table.c.state == WAITING, table.c.holder == node)
        self._state = select(table.c.state).where(this)

    def seat(self, home: str) -> None:
        """From here on take and end rows only while our name is the process's in the state folder `home`.

        To be said before the first row is taken.
        """
        self._seated = seated(self._node, home)
        self._mine = self._mine.where(self._seated)

    async def release_all(self, node: str | None = None) -> int:
        """Give back every row in the hands of `node` (default: this one); return how many.

        Called at start, before the first `take`: what a killed process held is worked on again, at once
        the first time, later and later if the process keeps dying with it.
        """
        held = self._table.c.holder == (node or self._node)
        orphans = await self._database.run(lambda connection: self._orphaned(connection, held))
        self._tell(orphans.parked)
        return len(orphans.ready) + orphans.later + orphans.parked

    async def renew(self, row_ids: Collection[int]) -> int:
        """Let the lease of rows in our hands begin anew; return how many still are.

        Rows that have ended, were put off, or went to another node because we slept past our lease, are
        left alone.
        """
        column = self._table.c
        mine = and_(
            column.id.in_(row_ids), column.state == WAITING, column.holder == self._node, self._seated
        )

        def work(connection: Connection) -> int:
            until = self._leases.now(connection) + self._lease
            return connection.execute(update(self._table).where(mine).values(held_until=until)).rowcount

        return await self._database.run(work)

    async def backlog(self) -> Backlog:
        """Say what is not done: cheap however many rows are, for every look of a monitor."""
        state = self._table.c.state
        query = select(state, func.count()).where(state.in_((WAITING, PARKED))).group_by(state)

        def work(connection: Connection) -> Backlog:
            rows = {row[0]: row[1] for row in connection.execute(query)}
            oldest = connection.execute(self._first).scalar_one_or_none()
            return Backlog(rows.get(WAITING, 0), rows.get(PARKED, 0), oldest)

        return await self._database.read(work)

    @property
    def _first(self) -> Select[Any]:
        """When the oldest unfinished row came: the first by number, so that no other is read."""
        waiting = self._table.c.state == WAITING
        return select(self._created).where(waiting).order_by(self._table.c.id).limit(1)

    async def counts(self) -> QueueCount:
        """Count the rows by state."""
        table = self._table
        held = table.c.holder.is_not(None)
        query = select(table.c.state, held, func.count()).group_by(table.c.state, held)

        def work(connection: Connection) -> QueueCount:
            rows = {(row[0], bool(row[1])): row[2] for row in connection.execute(query)}
            ended = {state: rows.get((state, False), 0) for state in (DONE, FAILED, PARKED, DROPPED)}
            return QueueCount(
                waiting=rows.get((WAITING, False), 0),
                in_hand=rows.get((WAITING, True), 0),
                done=ended[DONE],
                failed=ended[FAILED],
                parked=ended[PARKED],
                dropped=ended[DROPPED],
                oldest=connection.execute(self._first).scalar_one_or_none(),
            )

        return await self._database.read(work)

    async def broke(self, row_id: int, error: str, *, blame: bool = True) -> bool:
        """The work on a row in hand broke in an unforeseen way: put it off, or park it.

        `error` says how, without patient data; False for `blame` when the row has nothing to do with it
        (`store.failures`): then it only waits. Returns whether it is parked now. Raises `NotInHand`.
        """
        column = self._table.c

        def work(connection: Connection) -> bool:
            before = select(column.failures).where(column.id == row_id)
            failures = int(connection.execute(before).scalar_one_or_none() or 0) + (1 if blame else 0)
            if failures >= self._patience.max_failures:
                self._change(connection, row_id, failures=failures)
                self._park(connection, row_id, error)
                return True
            self._change(
                connection,
                row_id,
                failures=failures,
                due_at=self._clock.now() + self._patience.wait(max(1, failures)),
                last_error=clip(f"erreur interne : {error}"),
                holder=None,
                held_until=None,
            )
            return False

        parked = await self._database.run(work)
        self._tell(parked)
        return parked

    # --- for the queues, inside a transaction -----------------------------------------------------

    def _due(self) -> ColumnElement[bool]:
        """Rows that wait, are due, and that nobody (alive) holds.

        One that is due later than anything is ever put off was dated by a clock that has been set back
        since: it is due now, or would wait until that clock's time comes round again.
        """
        column = self._table.c
        due = or_(column.due_at <= _NOW, column.due_at > _BEYOND)
        free = or_(column.holder.is_(None), and_(column.holder != self._node, column.held_until < _LEASES))
        return and_(column.state == WAITING, due, free, self._seated)

    def _held(self, rows: Table) -> ColumnElement[bool]:
        """Rows (of this table or an alias of it) in the hands of a living node.

        A dead node's row is nobody's: were it counted as held, it and the older row of its study
        that waits for it would block each other for ever.
        """
        return or_(rows.c.holder == self._node, rows.c.held_until >= _LEASES)

    def _claiming(
        self,
        columns: Sequence[ColumnElement[Any]],
        order: Sequence[ColumnElement[Any]],
        read: Callable[[AnyRow], T],
        *wanted: ColumnElement[bool],
        count: bool = True,
    ) -> Claim[T]:
        """Make the statements that take rows which are due and `wanted`, in `order`.

        `read` turns the `columns` of a row into what is worked on; with `count`, taking is an attempt.
        """
        table = self._table
        among = table.c.id.in_(bindparam("ids", expanding=True))
        taken: dict[str, Any] = {"holder": self._node, "held_until": bindparam("until")}
        if count:
            taken["attempts"] = table.c.attempts + 1
        return Claim(
            choose=select(table.c.id, table.c.holder)
            .where(self._due(), *wanted)
            .order_by(*order)
            .limit(bindparam("most"))
            .with_for_update(skip_locked=True, of=table),
            load=select(table.c.id.label("row_number"), *columns).where(among),
            take=update(table).where(among).values(taken),
            read=read,
        )

    async def _claim(self, claim: Claim[T], now: datetime, limit: int) -> list[T]:
        """Put at most `limit` rows in our hands and return them; a row that cannot be read is parked."""
        table = self._table
        most = max(0, min(limit, MAX_TAKE))
        asked = {"now": now, "beyond": now + self._patience.longest, "most": most}

        def work(connection: Connection) -> tuple[list[T], int]:
            if connection.dialect.name == "postgresql":
                turn = text("SELECT pg_advisory_xact_lock(hashtext(:queue))")
                connection.execute(turn, {"queue": f"drimbox.{table.name}"})
            leases = self._leases.now(connection)
            rows = connection.execute(claim.choose, {**asked, "leases": leases}).all()
            dead = [row.id for row in rows if row.holder is not None]
            orphans = self._orphaned(connection, table.c.id.in_(dead)) if dead else _Orphans()
            ids = [row.id for row in rows if row.holder is None or row.id in orphans.ready]
            found, damaged = _load(connection, claim, ids)
            for row_id, error in damaged.items():
                self._park(connection, row_id, f"ligne illisible : {error}")
            if found:
                connection.execute(claim.take, {"ids": list(found), "until": leases + self._lease})
            return [found[row_id] for row_id in ids if row_id in found], orphans.parked + len(damaged)

        taken, parked = await self._database.run(work)
        self._tell(parked)
        return taken

    def _orphaned(self, connection: Connection, which: ColumnElement[bool]) -> _Orphans:
        """Free waiting rows whose process died with them in hand.

        The first time nothing else changes: most deaths have nothing to do with the row.
        """
        table, now = self._table, self._clock.now()
        query = select(table.c.id, table.c.failures).where(table.c.state == WAITING, which)
        orphans = _Orphans()
        for row in connection.execute(query).all():
            failures = row.failures + 1
            values: dict[str, Any] = {"holder": None, "held_until": None, "failures": failures}
            if failures > 1:
                values |= {"last_error": INTERRUPTED, "due_at": now + self._patience.wait(failures - 1)}
            connection.execute(update(table).where(table.c.id == row.id).values(values))
            if failures >= self._patience.max_failures:
                self._park(connection, row.id, INTERRUPTED)
                orphans.parked += 1
            elif failures > 1:
                orphans.later += 1
            else:
                orphans.ready.append(row.id)
        return orphans

    def _park(self, connection: Connection, row_id: int, error: str) -> None:
        """Set a waiting row aside; `finished_at` stays empty until the administrator was told."""
        table = self._table
        connection.execute(
            update(table)
            .where(table.c.id == row_id, table.c.state == WAITING)
            .values(
                state=PARKED,
                last_error=clip(error),
                due_at=self._clock.now(),
                holder=None,
                held_until=None,
                finished_at=None,
            )
        )

    def _tell(self, parked: int) -> None:
        if parked:
            self.parked()

    def _change(self, connection: Connection, row_id: int, **values: Any) -> None:
        """Change a row that is in our hands, or raise `NotInHand`."""
        computed = {name: value for name, value in values.items() if isinstance(value, ColumnElement)}
        plain = {name: value for name, value in values.items() if name not in computed}
        change = self._mine.values(computed) if computed else self._mine
        if connection.execute(change, {"this_row": row_id, **plain}).rowcount != 1:
            raise NotInHand(self._table.name, row_id)

    def _end(self, connection: Connection, row_id: int, state: str, **values: Any) -> bool:
        """End a row that is in our hands; False when it had already ended in that very state."""
        now = connection.execute(self._state, {"this_row": row_id}).scalar_one_or_none()
        if now == state:
            return False
        self._change(
            connection,
            row_id,
            state=state,
            holder=None,
            held_until=None,
            finished_at=self._clock.now(),
            **values,
        )
        return True

    async def _put_off(self, row_id: int, at: datetime, error: str, **values: Any) -> None:
        await self._database.run(
            lambda connection: self._change(
                connection,
                row_id,
                due_at=at,
                last_error=clip(error),
                failures=0,
                holder=None,
                held_until=None,
                **values,
            )
        )


def _load(
    connection: Connection, claim: Claim[T], ids: Sequence[int]
) -> tuple[dict[int, T], dict[int, str]]:
    """Read rows; return those that can be read, and why the others cannot, by number."""

    def load(chosen: Sequence[int]) -> dict[int, T]:
        with connection.execute(claim.load, {"ids": chosen}) as rows:
            return {row.row_number: claim.read(row) for row in rows}

    try:
        return (load(ids) if ids else {}), {}
    except Exception as error:
        if not blames_row(error):
            raise
    # One of them: the others are not to wait for it.
    found: dict[int, T] = {}
    damaged: dict[int, str] = {}
    for row_id in ids:
        try:
            found |= load([row_id])
        except Exception as error:
            if not blames_row(error):
                raise
            # Its type alone: the text may quote what is in the row.
            damaged[row_id] = type(error).__name__
    return found, damaged
