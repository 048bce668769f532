"""The audit trail: append-only and chained (DB.CS.06, DB.CS.10).

Each event is one row. The database refuses to change or delete it (triggers), and each row carries
`sha256(hash of the row before + its own text)`, so a change made behind the triggers shows: `verify` walks
the chain from its first link to `audit_head`, which remembers the last. Somebody who rewrites every row,
the head and the triggers can still lie; comparing `head` with a copy kept elsewhere (the log, another
machine) catches that too.

The text holds number, instant and event; the other columns repeat what searches need, and `verify`
checks that they agree.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import partial
from typing import Any

import attrs
from sqlalchemy import Connection, bindparam, insert, or_, select, update

from drimbox.ports import AuditEvent, Clock
from drimbox.store import codec
from drimbox.store.database import AnyRow, Database
from drimbox.store.errors import StoreDamaged
from drimbox.store.schema import GENESIS, audit, audit_head

#: Rows one search may return, and rows verified in one transaction.
MAX_SEARCH = 10_000
_BATCH = 1000
#: The statements of one more link, made once: every exchange with the DMP adds one.
_LAST = select(audit_head.c.last_id, audit_head.c.hash).with_for_update()
_ADD = insert(audit)
_MOVE = update(audit_head).values(last_id=bindparam("number"), hash=bindparam("link"))


@attrs.frozen
class AuditRecord:
    """An event of the trail, with its place and its instant."""

    id: int
    instant: datetime
    event: AuditEvent
    hash: str


@attrs.frozen
class ChainHead:
    """The last link: number of events, and the hash that vouches for all of them."""

    last_id: int
    hash: str


@attrs.frozen
class ChainCheck:
    """What a verification found. `fault` is None when the chain is whole, else French text."""

    checked: int
    head: ChainHead
    fault: str | None = None
    #: Number of the first faulty event.
    fault_id: int | None = None


def _link(previous: str, payload: str) -> str:
    return hashlib.sha256((previous + payload).encode("utf-8")).hexdigest()


class AuditStore:
    """Implements `ports.AuditTrail`; offers search and verification, and no deletion."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record(self, event: AuditEvent) -> None:
        """Commit one event with the present instant."""
        plain = codec.to_plain(event)
        await self._database.run(partial(self._append, event, plain))

    def _append(self, event: AuditEvent, plain: Any, connection: Connection) -> None:
        # FOR UPDATE: on PostgreSQL the other nodes wait here; SQLite has one writer anyway.
        last = connection.execute(_LAST).one()
        number = last.last_id + 1
        # Read inside the turn: instants follow the order of the chain as far as the clock does.
        instant = self._clock.now()
        payload = codec.canonical({"id": number, "instant": codec.to_plain(instant), "event": plain})
        link = _link(last.hash, payload)
        row = {
            "id": number,
            "instant": instant,
            "event_id": event.event_id,
            "outcome": event.outcome,
            "patient_ins": codec.clip(event.patient_ins),
            "study_uid": codec.clip(event.study_uid),
            "payload": payload,
            "prev_hash": last.hash,
            "hash": link,
        }
        connection.execute(_ADD, row)
        connection.execute(_MOVE, {"number": number, "link": link})

    async def search(
        self,
        *,
        period: tuple[datetime | None, datetime | None] = (None, None),
        ins: str = "",
        study: str = "",
        event_id: str = "",
        limit: int = 1000,
        before: int | None = None,
    ) -> list[AuditRecord]:
        """Return the newest events that match every given criterion (DB.CS.10), newest first.

        `period` is from (included) and to (excluded), None for open. At most `limit` (never over
        10,000) are returned; pass the `id` of the last one as `before` for the next page. Raises
        `StoreDamaged` when an event cannot be read back.
        """
        query = select(audit.c.id, audit.c.payload, audit.c.hash)
        start, end = period
        if start is not None:
            query = query.where(audit.c.instant >= start)
        if end is not None:
            query = query.where(audit.c.instant < end)
        if ins:
            query = query.where(audit.c.patient_ins == ins)
        if study:
            # A report about several studies carries them all in one column, blanks between.
            several = (" " + audit.c.study_uid + " ").contains(f" {study} ", autoescape=True)
            query = query.where(or_(audit.c.study_uid == study, several))
        if event_id:
            query = query.where(audit.c.event_id == event_id)
        if before is not None:
            query = query.where(audit.c.id < before)
        query = query.order_by(audit.c.id.desc()).limit(max(0, min(limit, MAX_SEARCH)))
        return await self._database.read(
            lambda connection: [_record(row) for row in connection.execute(query)]
        )

    async def head(self) -> ChainHead:
        """Return the last link, to be kept elsewhere and compared later."""
        return await self._database.read(_head)

    async def verify(self, *, known: ChainHead | None = None) -> ChainCheck:
        """Walk the whole chain; `known` is a head kept elsewhere, which must be part of it."""
        head = await self.head()
        if known is not None and known.last_id > head.last_id:
            return ChainCheck(0, head, "des événements connus ailleurs ont disparu", head.last_id + 1)
        checked, link = 0, GENESIS
        while checked < head.last_id:
            upto = min(checked + _BATCH, head.last_id)
            count, link, fault = await self._database.read(
                partial(_verify_batch, checked, upto, link, known)
            )
            checked += count
            if fault is not None:
                return ChainCheck(checked, head, fault, checked + 1)
        if link != head.hash:
            return ChainCheck(checked, head, "le dernier maillon ne correspond pas", head.last_id)
        extra = await self._database.read(partial(_beyond, head.last_id))
        if extra is not None:
            return ChainCheck(checked, head, "événement ajouté hors de la chaîne", extra)
        return ChainCheck(checked, head)


def _head(connection: Connection) -> ChainHead:
    row = connection.execute(select(audit_head.c.last_id, audit_head.c.hash)).one()
    return ChainHead(row.last_id, row.hash)


def _record(row: AnyRow) -> AuditRecord:
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


def _verify_batch(
    after: int, upto: int, link: str, known: ChainHead | None, connection: Connection
) -> tuple[int, str, str | None]:
    """Check events `after` + 1 to `upto`: how many are good, the last good link, the first fault."""
    rows = connection.execute(
        select(audit).where(audit.c.id > after, audit.c.id <= upto).order_by(audit.c.id)
    ).all()
    good = 0
    for number, row in zip(range(after + 1, upto + 1), rows, strict=False):
        fault = _fault(number, row, link)
        if fault is None and known is not None and known.last_id == number and known.hash != row.hash:
            fault = "événement différent de celui connu ailleurs"
        if fault is not None:
            return good, link, fault
        link, good = row.hash, good + 1
    if good < upto - after:
        return good, link, "événement manquant"
    return good, link, None


def _fault(number: int, row: AnyRow, link: str) -> str | None:
    if row.id != number:
        return "événement manquant"
    if row.prev_hash != link or row.hash != _link(link, row.payload):
        return "événement modifié"
    try:
        record = _record(row)
    except StoreDamaged:
        return "événement illisible"
    said = (record.event.event_id, record.event.outcome, record.event.patient_ins, record.event.study_uid)
    shown = (row.event_id, row.outcome, row.patient_ins, row.study_uid)
    if (
        json.loads(row.payload).get("id") != number
        or record.instant != row.instant
        or shown != (said[0], said[1], codec.clip(said[2]), codec.clip(said[3]))
    ):
        return "colonnes de recherche modifiées"
    return None


def _beyond(last_id: int, connection: Connection) -> int | None:
    """Number of a row that the head does not know, unless it was added properly since."""
    now = _head(connection).last_id
    query = select(audit.c.id).where((audit.c.id > now) | (audit.c.id < 1)).limit(1)
    found: int | None = connection.execute(query).scalar_one_or_none()
    return found
