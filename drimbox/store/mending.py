"""What an operator does to a row of a queue: play it again, or give it up. Never to one in hand.

Playing again means, by queue:

- *inbox*: the message is read again, with the program and the configuration of today;
- *feed*: the study is compared with its PACS again, and the record is made to match; whatever the job
  ended with, that is harmless;
- *outbox*: the same submission, or removal, is tried again, and the DMP is asked first what it holds. Not
  so when the study was looked at again meanwhile: that decided anew what the DMP must hold, and an old
  row must not undo it. Then the last job of the study is the one to play again.

Giving up leaves the row, with the reason. A publication given up in doubt is asked about by the next of its
study (`overtaking`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import attrs
from sqlalchemy import Connection, exists, or_, select, update

from drimbox.model import KosState
from drimbox.ports import Clock, parked_key
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.notices import close_notice
from drimbox.store.overtaking import give_up, superseded, withdrawn
from drimbox.store.parking import TABLES
from drimbox.store.queuelist import in_state
from drimbox.store.schema import DONE, DROPPED, FAILED, PARKED, PUBLISH, WAITING, feed_job, kos, outbox

#: Rows one `retry_all` looks at.
BATCH = 100


class CannotMend(Exception):
    """The row is not one that can be played again, or given up; the text (French) says why."""


@attrs.frozen
class Retried:
    """What became of a batch: rows played again, those that could not be and why, and where to go on."""

    done: list[int]
    refused: dict[int, str]
    #: None when nothing is left.
    after: int | None


class Mending:
    """Plays rows again, or gives them up."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def retry(self, queue: str, row_id: int) -> None:
        """Play one row again. Raises `KeyError` when there is none, `CannotMend` when it cannot be."""
        await self._database.run(partial(self._retry, queue, row_id))

    async def retry_all(self, queue: str, state: str, *, after: int = 0) -> Retried:
        """Play again the next rows of a queue that are "failed" or "parked", after a number."""
        table = TABLES[queue]
        query = (
            select(table.c.id)
            .where(in_state(queue, state, self._clock.now()), table.c.id > after)
            .order_by(table.c.id)
            .limit(BATCH)
        )

        def work(connection: Connection) -> Retried:
            done, refused = [], {}
            ids = list(connection.execute(query).scalars())
            for row_id in ids:
                try:
                    self._retry(queue, row_id, connection)
                    done.append(row_id)
                except CannotMend as reason:
                    refused[row_id] = str(reason)
            return Retried(done, refused, ids[-1] if len(ids) == BATCH else None)

        return await self._database.run(work)

    async def drop(self, queue: str, row_id: int, reason: str) -> None:
        """Give one row up, for `reason`. Raises as `retry`."""

        def work(connection: Connection) -> None:
            row, now = _row(connection, queue, row_id), self._clock.now()
            if row.state in (DONE, DROPPED) and not _failed_job(queue, row):
                raise CannotMend("elle est déjà terminée")
            why = clip(f"abandonnée : {reason}")
            if queue == "outbox":
                give_up(connection, row_id, why, now)
            else:
                values = {"state": DROPPED, "last_error": why, "finished_at": now}
                connection.execute(update(TABLES[queue]).where(TABLES[queue].c.id == row_id).values(values))
            _close(connection, queue, row, now)

        await self._database.run(work)

    def _retry(self, queue: str, row_id: int, connection: Connection) -> None:
        row, now = _row(connection, queue, row_id), self._clock.now()
        if row.state == WAITING:
            # It waits already: now rather than later.
            _change(connection, queue, row_id, due_at=now)
            return
        _AGAIN[queue](connection, row, now)
        _close(connection, queue, row, now)


def _row(connection: Connection, queue: str, row_id: int) -> AnyRow:
    column = TABLES[queue].c
    own = {
        "inbox": ("error_code",),
        "feed": ("result", "study_uid"),
        "outbox": ("error_code", "study_uid", "kind"),
    }
    wanted = [column[name] for name in ("id", "state", "holder", *own[queue])]
    row = connection.execute(select(*wanted).where(column.id == row_id).with_for_update()).first()
    if row is None:
        raise KeyError(row_id)
    if row.state == WAITING and row.holder is not None:
        raise CannotMend("elle est en cours de traitement")
    return row


def _change(connection: Connection, queue: str, row_id: int, **values: Any) -> None:
    connection.execute(update(TABLES[queue]).where(TABLES[queue].c.id == row_id).values(values))


def _fresh(now: datetime) -> dict[str, Any]:
    """Return the columns of a row that waits as if nothing had been tried."""
    return {"state": WAITING, "due_at": now, "failures": 0, "last_error": None, "finished_at": None}


def _failed_job(queue: str, row: AnyRow) -> bool:
    return queue == "feed" and row.state == DONE and (row.result or "").startswith("E00")


def _message_again(connection: Connection, row: AnyRow, now: datetime) -> None:
    if row.state not in (FAILED, PARKED, DROPPED):
        raise CannotMend("ce message a été interprété ; rejouer plutôt ses examens (file feed)")
    _change(connection, "inbox", row.id, **_fresh(now), error_code=None, error_detail=None)


def _job_again(connection: Connection, row: AnyRow, now: datetime) -> None:
    waiting = select(feed_job.c.id).where(
        feed_job.c.study_uid == row.study_uid, feed_job.c.state == WAITING
    )
    if connection.execute(waiting).first() is not None:
        raise CannotMend("un travail plus récent sur cet examen attend déjà")
    _change(connection, "feed", row.id, **_fresh(now), attempts=0, result=None, detail=None)


def _exchange_again(connection: Connection, row: AnyRow, now: datetime) -> None:
    if row.state not in (FAILED, PARKED):
        raise CannotMend("elle est terminée ; rejouer plutôt le travail de l'examen (file feed)")
    joined = select(outbox.c.id).join(kos, kos.c.id == outbox.c.kos_id).where(outbox.c.id == row.id)
    if row.kind == PUBLISH and connection.execute(joined.where(or_(superseded(), withdrawn()))).first():
        raise CannotMend("une publication ou un retrait plus récent de ce KOS l'a remplacée")
    if row.state == FAILED and connection.execute(joined.where(_looked_at_since())).first():
        raise CannotMend(
            "l'examen a été réexaminé depuis ; rejouer plutôt son dernier travail (file feed), "
            "qui décide de ce que le DMP doit contenir"
        )
    # Whatever is known of earlier attempts, the DMP is asked what it holds before anything is sent.
    again = {"outcome_unknown": True, "error_code": None, "error_text": None}
    _change(connection, "outbox", row.id, **_fresh(now), **again)
    refused = select(outbox.c.kos_id).where(outbox.c.id == row.id, outbox.c.kind == PUBLISH)
    connection.execute(
        update(kos)
        .where(kos.c.id == refused.scalar_subquery(), kos.c.state == KosState.REFUSED.value)
        .values(state=KosState.PENDING.value, changed_at=now)
    )


def _looked_at_since() -> Any:
    """Condition on `outbox`: a job of the study waits, or ended after this row did."""
    since = or_(feed_job.c.state == WAITING, feed_job.c.finished_at > outbox.c.finished_at)
    return exists().where(feed_job.c.study_uid == outbox.c.study_uid, since).correlate(outbox)


_AGAIN: dict[str, Callable[[Connection, AnyRow, datetime], None]] = {
    "inbox": _message_again,
    "feed": _job_again,
    "outbox": _exchange_again,
}


def _close(connection: Connection, queue: str, row: AnyRow, now: datetime) -> None:
    """Close what was said of the row: it is tried again, or given up."""
    keys = {parked_key(queue, row.id)}
    if queue == "inbox":
        keys.add(f"message-{row.id}")
    else:
        code = row.result if queue == "feed" else row.error_code
        keys.add(f"{code}-{row.study_uid}")
    for key in keys:
        close_notice(connection, key, now)
