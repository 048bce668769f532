"""What comes after a parked publication: it takes its place, so that neither waits for the other.

A publication carries the whole manifest of a study. Once a newer one of the same site or structure is on
its way, an older one that is parked must never leave any more: it would put the past over the present.
And it needs not: it is *dropped* here, in the transaction that makes it needless, and its KOS is no longer
waited for. Whether an attempt of it ever reached the DMP stays written on the row (`outcome_unknown`):
the newer one asks the DMP about it (`Archive.doubtful`) and replaces what is found.

The same goes for a publication whose own removal is queued behind it.

A removal needs no successor: it names one manifest, and asks what the DMP holds before it acts. A parked
one holds nobody back and may be played again at any time.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, bindparam, exists, or_, select, update

from drimbox.model import KosState
from drimbox.ports import parked_key
from drimbox.store.notices import close_notice
from drimbox.store.schema import DONE, DROPPED, PARKED, PUBLISH, REMOVE, WAITING, kos, outbox

_ALIVE = (WAITING, DONE, PARKED)
_NEWER, _THEIRS, _REMOVAL = outbox.alias("newer"), kos.alias("theirs"), outbox.alias("removal")
#: Asked at every publication, and hardly ever answered.
_ANY_PARKED = (
    select(outbox.c.id)
    .where(outbox.c.study_uid == bindparam("study"), outbox.c.state == PARKED, outbox.c.kind == PUBLISH)
    .limit(1)
)


def overtake(connection: Connection, study_uid: str, now: datetime) -> list[int]:
    """Drop the parked publications of a study that need not leave any more; return them.

    Of one that nobody was told about yet, the auditor still is (`parking`): `finished_at` stays empty.
    """
    if connection.execute(_ANY_PARKED, {"study": study_uid}).first() is None:
        return []
    query = (
        select(outbox.c.id, withdrawn().label("withdrawn"))
        .join(kos, kos.c.id == outbox.c.kos_id)
        .where(
            outbox.c.study_uid == study_uid,
            outbox.c.state == PARKED,
            outbox.c.kind == PUBLISH,
            or_(superseded(), withdrawn()),
        )
    )
    rows = connection.execute(query).all()
    for row in rows:
        if row.withdrawn:
            # Its KOS, and whether the DMP holds it, are the removal's affair.
            why = "retirée avant d'avoir abouti"
            _drop(connection, row.id, why, now, outcome_unknown=False)
        else:
            _drop(connection, row.id, "remplacée par une publication plus récente", now)
            _no_longer_pending(connection, row.id, now)
    return [row.id for row in rows]


def superseded() -> ColumnElement[bool]:
    """Condition on `outbox` joined to its `kos`: a newer publication carries what the study is now."""
    newer, theirs = _NEWER, _THEIRS
    return (
        exists()
        .where(
            newer.c.study_uid == outbox.c.study_uid,
            newer.c.id > outbox.c.id,
            newer.c.kind == PUBLISH,
            newer.c.state.in_(_ALIVE),
            theirs.c.id == newer.c.kos_id,
            or_(newer.c.site == outbox.c.site, theirs.c.structure_id == kos.c.structure_id),
        )
        .correlate(outbox, kos)
    )


def withdrawn() -> ColumnElement[bool]:
    """Condition on `outbox`: the removal of its KOS is on its way, or done."""
    removal = _REMOVAL
    return (
        exists()
        .where(removal.c.kos_id == outbox.c.kos_id, removal.c.kind == REMOVE, removal.c.state.in_(_ALIVE))
        .correlate(outbox)
    )


def give_up(connection: Connection, row_id: int, why: str, now: datetime) -> None:
    """Drop a row of the outbox that is not in hand; the KOS of a publication is no longer pending."""
    _drop(connection, row_id, why, now, finished_at=now)
    _no_longer_pending(connection, row_id, now)


def _no_longer_pending(connection: Connection, row_id: int, now: datetime) -> None:
    published = select(outbox.c.kos_id).where(outbox.c.id == row_id, outbox.c.kind == PUBLISH)
    connection.execute(
        update(kos)
        .where(kos.c.id == published.scalar_subquery(), kos.c.state == KosState.PENDING.value)
        .values(state=KosState.REFUSED.value, changed_at=now)
    )


def _drop(connection: Connection, row_id: int, why: str, now: datetime, **values: object) -> None:
    connection.execute(
        update(outbox)
        .where(outbox.c.id == row_id)
        .values(state=DROPPED, last_error=why, holder=None, held_until=None, **values)
    )
    close_notice(connection, parked_key("outbox", row_id), now)
