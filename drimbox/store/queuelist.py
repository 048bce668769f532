"""The rows of the three queues as an operator sees them: by state, by study, one with all that is known.

What a row looks like here names studies and systems, never a patient; texts go through `redaction` once
more, because they end on a screen. Instants are read as text: a damaged one must not hide its row.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    String,
    Table,
    and_,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    type_coerce,
)

from drimbox.ports import Clock
from drimbox.redaction import redact
from drimbox.store.database import AnyRow, Database
from drimbox.store.failures import blames_row
from drimbox.store.parking import TABLES
from drimbox.store.schema import DONE, DROPPED, FAILED, PARKED, WAITING, feed_job, inbox, kos, outbox

#: Rows of one page, at most.
MAX_PAGE = 500
#: States an operator tells apart; without a choice the list holds all but the last two.
STATES = ("waiting", "in_hand", "put_off", "failed", "parked", "done", "dropped")
_ENDED = ("done", "dropped")
#: Rows of another queue shown beside one.
_RELATED = 50
_CAME = {"inbox": inbox.c.received_at, "feed": feed_job.c.created_at, "outbox": outbox.c.created_at}
#: Column of the E-code, and of its text, by queue.
_CODE = {"inbox": inbox.c.error_code, "feed": feed_job.c.result, "outbox": outbox.c.error_code}
_DETAIL = {"inbox": inbox.c.error_detail, "feed": feed_job.c.detail, "outbox": outbox.c.error_text}
_INSTANTS = ("due_at", "came_at", "finished_at")


def in_state(queue: str, state: str, now: datetime) -> ColumnElement[bool]:
    """Condition on a queue's table: the rows of one of `STATES`."""
    column = TABLES[queue].c
    # A job that ends with an E-code has ended; to an operator it has failed.
    failed = column.state == FAILED
    if queue == "feed":
        failed = and_(column.state == DONE, feed_job.c.result.like("E00_"))
    put_off = and_(column.last_error.is_not(None), column.due_at > now)
    free = and_(column.state == WAITING, column.holder.is_(None))
    conditions = {
        "waiting": and_(free, not_(put_off)),
        "put_off": and_(free, put_off),
        "in_hand": and_(column.state == WAITING, column.holder.is_not(None)),
        "failed": failed,
        "parked": column.state == PARKED,
        "done": and_(column.state == DONE, not_(failed)) if queue == "feed" else column.state == DONE,
        "dropped": column.state == DROPPED,
    }
    return conditions[state]


class QueueList:
    """Reads rows for operators."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def page(
        self,
        queue: str,
        *,
        state: str = "",
        study: str = "",
        before: int | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Return rows of a queue, newest first; `before` is the number a page goes on from.

        `state` is one of `STATES`, "" for all that has not ended well.
        """
        now = self._clock.now()
        chosen = [state] if state else [each for each in STATES if each not in _ENDED]
        query = _rows(queue).where(or_(*(in_state(queue, each, now) for each in chosen)))
        if study:
            query = query.where(_about(queue, study))
        if before is not None:
            query = query.where(TABLES[queue].c.id < before)
        query = query.order_by(TABLES[queue].c.id.desc()).limit(max(1, min(limit, MAX_PAGE)))
        return await self._database.read(partial(_page, queue, query, now))

    async def one(self, queue: str, row_id: int) -> dict[str, Any] | None:
        """Return all that is known of one row, but its content; None when there is none."""
        now = self._clock.now()
        query = _rows(queue, details=True).where(TABLES[queue].c.id == row_id)

        def work(connection: Connection) -> dict[str, Any] | None:
            try:
                row = connection.execute(query).first()
            except Exception as error:
                if not blames_row(error):
                    raise
                return _damaged(connection, queue, row_id)
            if row is None:
                return None
            return {**_shown(queue, row, now), **_details(connection, queue, row)}

        return await self._database.read(work)

    async def raw(self, queue: str, row_id: int) -> bytes | None:
        """Return the content of a row: the message, or what is sent to the DMP; None when there is none.

        That of a job is the message it came from.
        """
        content: dict[str, Select[Any]] = {
            "inbox": select(inbox.c.raw).where(inbox.c.id == row_id),
            "feed": select(inbox.c.raw)
            .join(feed_job, feed_job.c.message_id == inbox.c.id)
            .where(feed_job.c.id == row_id),
            "outbox": select(self._bytes(outbox.c.submission)).where(outbox.c.id == row_id),
        }
        found = await self._database.read(
            lambda connection: connection.execute(content[queue]).scalar_one_or_none()
        )
        return found.encode("utf-8", "surrogateescape") if isinstance(found, str) else found

    def _bytes(self, column: ColumnElement[str]) -> ColumnElement[Any]:
        """Return a text as its bytes: a damaged one cannot be read as text."""
        if self._database.dialect == "postgresql":
            return func.convert_to(column, "UTF8")
        return cast(column, LargeBinary)


def _rows(queue: str, *, details: bool = False) -> Select[Any]:
    table: Table = TABLES[queue]
    column = table.c
    columns: list[ColumnElement[Any]] = [
        column.id,
        column.state,
        column.holder,
        column.attempts,
        column.failures,
        column.last_error,
        _CODE[queue].label("code"),
        _DETAIL[queue].label("detail"),
        type_coerce(column.due_at, String).label("due_at"),
        type_coerce(_CAME[queue], String).label("came_at"),
        type_coerce(column.finished_at, String).label("finished_at"),
    ]
    own: dict[str, list[ColumnElement[Any]]] = {
        "inbox": [inbox.c.ris],
        "feed": [feed_job.c.ris, feed_job.c.study_uid, feed_job.c.message_id],
        "outbox": [outbox.c.site, outbox.c.study_uid, outbox.c.kind, outbox.c.outcome_unknown],
    }
    more: dict[str, list[ColumnElement[Any]]] = {
        "inbox": [inbox.c.peer, inbox.c.result, func.length(inbox.c.raw).label("size")],
        "feed": [feed_job.c.purpose],
        "outbox": [outbox.c.warnings, outbox.c.kos_id, kos.c.sop_instance_uid, kos.c.state.label("kos")],
    }
    columns += own[queue] + (more[queue] if details else [])
    if queue == "outbox" and details:
        return select(*columns).select_from(outbox.join(kos, kos.c.id == outbox.c.kos_id))
    return select(*columns)


def _page(queue: str, query: Select[Any], now: datetime, connection: Connection) -> list[dict[str, Any]]:
    try:
        return [_shown(queue, row, now) for row in connection.execute(query).all()]
    except Exception as error:
        if not blames_row(error):
            raise
    # A damaged one: it must not hide the others, nor itself.
    number = TABLES[queue].c.id
    found = []
    for row_id in connection.execute(query.with_only_columns(number)).scalars().all():
        try:
            row = connection.execute(_rows(queue).where(number == row_id)).one()
            found.append(_shown(queue, row, now))
        except Exception as error:
            if not blames_row(error):
                raise
            found.append(_damaged(connection, queue, row_id))
    return found


def _damaged(connection: Connection, queue: str, row_id: int) -> dict[str, Any]:
    """Return what a list shows of a row that cannot be read."""
    column = TABLES[queue].c
    state = connection.execute(select(column.state).where(column.id == row_id)).scalar_one()
    return {
        "queue": queue,
        "id": row_id,
        "state": state,
        "code": "",
        "reason": "ligne illisible",
        "came_at": None,
        "due_at": None,
    }


def _about(queue: str, study: str) -> ColumnElement[bool]:
    if queue != "inbox":
        wanted: ColumnElement[bool] = TABLES[queue].c.study_uid == study
        return wanted
    jobs = exists(literal(1)).where(feed_job.c.message_id == inbox.c.id, feed_job.c.study_uid == study)
    return jobs.correlate(inbox)


def _shown(queue: str, row: AnyRow, now: datetime) -> dict[str, Any]:
    """Return what a list shows of a row."""
    values = dict(row._mapping)
    for key in _INSTANTS:
        values[key] = _instant(values[key])
    holder, state = values.pop("holder"), values.pop("state")
    error, code, detail = values.pop("last_error"), values.pop("code"), values.pop("detail")
    failed = queue == "feed" and state == DONE and _is_code(code)
    if state == WAITING and holder is not None:
        state = "in_hand"
    elif state == WAITING and error and (values["due_at"] or "") > _text(now):
        state = "put_off"
    elif failed:
        state = FAILED
    if queue == "feed" and not failed:
        values["result"], code, detail = code, "", detail if state == DONE else ""
    reason = detail if state in (FAILED, DONE) else error
    values |= {"queue": queue, "state": state, "code": code or "", "reason": redact(reason or "")}
    return values


def _is_code(code: str | None) -> bool:
    return code is not None and len(code) == 4 and code.startswith("E00")


def _details(connection: Connection, queue: str, row: AnyRow) -> dict[str, Any]:
    """Return what stands beside a row in the other queues, and the DMP's own words."""
    if queue == "inbox":
        jobs = select(feed_job.c.id, feed_job.c.study_uid).where(feed_job.c.message_id == row.id)
        found = connection.execute(jobs.order_by(feed_job.c.id).limit(_RELATED))
        return {"jobs": [dict(each._mapping) for each in found]}
    lines = select(outbox.c.id, outbox.c.kind, outbox.c.state).where(outbox.c.study_uid == row.study_uid)
    found = connection.execute(lines.order_by(outbox.c.id.desc()).limit(_RELATED))
    details: dict[str, Any] = {"outbox": [dict(each._mapping) for each in found]}
    if queue == "outbox":
        jobs = select(feed_job.c.id, feed_job.c.message_id).where(feed_job.c.study_uid == row.study_uid)
        found = connection.execute(jobs.order_by(feed_job.c.id.desc()).limit(_RELATED))
        details["jobs"] = [dict(each._mapping) for each in found]
        details["warnings"] = [redact(words) for words in _words(row.warnings)]
    return details


def _words(warnings: str | None) -> list[str]:
    try:
        found = json.loads(warnings or "[]")
    except ValueError:
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds")


def _instant(value: object) -> str | None:
    """Write an instant of the database in UTC; a damaged one as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return str(value)
    if not isinstance(value, datetime):
        return None
    return _text(value if value.tzinfo is not None else value.replace(tzinfo=UTC))
