"""What is looked for in the audit trail, and the page of events that answers (DB.CS.10).

Newest first; the number of the last event of a page leads to the next one. Each criterion has an index
(`schema`), so that a page costs what it shows, whatever the size of the trail.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, text, union_all

from drimbox.ports import AuditEvent
from drimbox.store import codec
from drimbox.store.errors import StoreDamaged
from drimbox.store.schema import FAILURES, SEVERAL, audit

if TYPE_CHECKING:
    # It drags Twisted in, which the command line does not need.
    from drimbox.store.database import AnyRow

#: Rows one page may hold.
MAX_PAGE = 10_000


@attrs.frozen
class AuditRecord:
    """An event of the trail, with its place and its instant."""

    id: int
    instant: datetime
    event: AuditEvent
    hash: str


@attrs.frozen
class AuditQuery:
    """What an event must be: every criterion given, none for all events."""

    #: From (included) and to (excluded), None for open.
    start: datetime | None = None
    end: datetime | None = None
    #: National identifier of the patient.
    ins: str = ""
    #: StudyInstanceUID.
    study: str = ""
    #: EventID, and codes of EventTypeCode of which it has one.
    event_id: str = ""
    event_types: tuple[str, ...] = ()
    #: EventOutcomeIndicators of which it has one; empty for any.
    outcomes: tuple[int, ...] = ()


def page(
    connection: Connection, query: AuditQuery, *, limit: int = 1000, before: int | None = None
) -> list[AuditRecord]:
    """Return the newest events that match, newest first, those before the number `before`.

    At most `limit`, never over `MAX_PAGE`. Raises `StoreDamaged` when one cannot be read back.
    """
    statement = select(audit.c.id, audit.c.payload, audit.c.hash).where(*_conditions(query))
    if before is not None:
        statement = statement.where(audit.c.id < before)
    statement = statement.order_by(audit.c.id.desc()).limit(max(0, min(limit, MAX_PAGE)))
    return [read_record(row) for row in connection.execute(statement)]


def read_record(row: AnyRow) -> AuditRecord:
    """Return the event of a row (id, payload, hash). Raises `StoreDamaged`."""
    try:
        plain = json.loads(row.payload)
        instant, event = plain["instant"], plain["event"]
    except (ValueError, KeyError, TypeError):
        raise StoreDamaged(f"Événement d'audit {row.id} illisible.") from None
    return AuditRecord(
        id=row.id,
        instant=codec.from_plain(instant, datetime),
        event=codec.from_plain(event, AuditEvent),
        hash=row.hash,
    )


def _conditions(query: AuditQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = list(_period(query))
    if query.ins:
        found.append(audit.c.patient_ins == codec.clip(query.ins))
    if query.study:
        found.append(audit.c.id.in_(_about(query.study)))
    if query.event_id:
        found.append(audit.c.event_id == query.event_id)
    if query.event_types:
        # Canonical JSON: the first of the three strings of the type follows its key at once.
        heads = [f'"event_type":[{json.dumps(code)},' for code in query.event_types]
        found.append(or_(*(audit.c.payload.contains(head, autoescape=True) for head in heads)))
    if query.outcomes:
        found.append(audit.c.outcome.in_(query.outcomes))
        if 0 not in query.outcomes:
            # The words of the index of failures: SQLite looks for them.
            found.append(text(FAILURES))  # type: ignore[arg-type]
    return found


def _about(study: str) -> Any:
    """Numbers of the events about a study: alone in its column, or among several with blanks between."""
    among = (" " + audit.c.study_uid + " ").contains(f" {study} ", autoescape=True)
    return union_all(
        select(audit.c.id).where(audit.c.study_uid == study),
        select(audit.c.id).where(text(SEVERAL), among),
    )


def _period(query: AuditQuery) -> list[ColumnElement[bool]]:
    """The period itself; and as numbers, so that an old one is not sought from the newest event on."""
    within: list[ColumnElement[bool]] = []
    if query.start is not None:
        within.append(audit.c.instant >= query.start)
    if query.end is not None:
        within.append(audit.c.instant < query.end)
    if not within or query.ins or query.study:
        return within

    def bound(number: Any) -> Any:
        statement: Select[Any] = select(number).where(*within)
        return statement.scalar_subquery()

    return [*within, audit.c.id >= bound(func.min(audit.c.id)), audit.c.id <= bound(func.max(audit.c.id))]
