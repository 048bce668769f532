"""The chain of the audit trail, as functions of a connection: one more link, and the walk that verifies.

Each event is one row that carries `sha256(hash of the row before + its own text)`. `audit_head` remembers
the last link, `audit_anchor` the last event that retention removed: the chain is whole when it leads from
the anchor to the head. Before retention removes anything it says so in the trail itself (an object of type
`PURGE`), so that somebody who cuts the old end behind the triggers, and moves the anchor, is found out.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
from sqlalchemy import Connection, bindparam, insert, select, update

from drimbox.audit.ontrail import PURGE, read_purge
from drimbox.ports import AuditEvent, Clock
from drimbox.store import codec
from drimbox.store.schema import GENESIS, audit, audit_anchor, audit_head

if TYPE_CHECKING:
    # It drags Twisted in, which the command line does not need.
    from drimbox.store.database import AnyRow

#: Rows verified in one transaction.
BATCH = 1000
#: The statements of one more link, made once: every exchange with the DMP adds one.
_LAST = select(audit_head.c.last_id, audit_head.c.hash).with_for_update()
_ADD = insert(audit)
_MOVE = update(audit_head).values(last_id=bindparam("number"), hash=bindparam("link"))


@attrs.frozen
class ChainHead:
    """A link: number of its event, and the hash that vouches for it and all before it."""

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
    #: What retention removed, up to this event.
    anchor: ChainHead = ChainHead(0, GENESIS)

    def facts(self) -> dict[str, object]:
        """Return what is shown of it; the head as it can be given back later, `number:hash`."""
        return {
            "intact": self.fault is None,
            "checked": self.checked,
            "head": f"{self.head.last_id}:{self.head.hash}",
            "purged": self.anchor.last_id,
            "fault": self.fault,
            "fault_id": self.fault_id,
        }


def link_of(previous: str, payload: str) -> str:
    """Return the hash of an event that follows the hash `previous`."""
    return hashlib.sha256((previous + payload).encode("utf-8")).hexdigest()


def row_of(number: int, instant: datetime, event: AuditEvent, plain: Any, previous: str) -> dict[str, Any]:
    """Return the row of an event; `plain` is the event as `codec.to_plain` says it."""
    payload = codec.canonical({"id": number, "instant": codec.to_plain(instant), "event": plain})
    return {
        "id": number,
        "instant": instant,
        "event_id": event.event_id,
        "outcome": event.outcome,
        "patient_ins": codec.clip(event.patient_ins),
        "study_uid": codec.clip(event.study_uid),
        "payload": payload,
        "prev_hash": previous,
        "hash": link_of(previous, payload),
    }


def append(connection: Connection, clock: Clock, event: AuditEvent, plain: Any) -> int:
    """Add one event at the end; return its number."""
    # FOR UPDATE: on PostgreSQL the other nodes wait here; SQLite has one writer anyway.
    last = connection.execute(_LAST).one()
    # The clock is read inside the turn: instants follow the order of the chain as far as it does.
    row = row_of(last.last_id + 1, clock.now(), event, plain, last.hash)
    connection.execute(_ADD, row)
    connection.execute(_MOVE, {"number": row["id"], "link": row["hash"]})
    number: int = row["id"]
    return number


def head_of(connection: Connection) -> ChainHead:
    """Return the last link."""
    row = connection.execute(select(audit_head.c.last_id, audit_head.c.hash)).one()
    return ChainHead(row.last_id, row.hash)


def anchor_of(connection: Connection) -> ChainHead:
    """Return the link that retention left the chain to begin after."""
    row = connection.execute(select(audit_anchor.c.last_id, audit_anchor.c.hash)).one()
    return ChainHead(row.last_id, row.hash)


class ChainWalk:
    """Verifies the chain step by step: call `step` in a transaction of its own until it returns False.

    Events may be added, and retention may remove some, between two steps. Memory is that of one step.
    `known` is a head kept elsewhere, which must be part of the chain (unless retention has passed it).
    """

    def __init__(self, known: ChainHead | None = None) -> None:
        self._known = known
        self._begun = False
        #: Where the walk is: the last good link.
        self._at = self._anchor = ChainHead(0, GENESIS)
        self._head = self._at
        self._checked = 0
        #: What the last purge of the trail announced.
        self._announced: ChainHead | None = None
        self._result: ChainCheck | None = None

    @property
    def result(self) -> ChainCheck:
        """What was found, once `step` has returned False."""
        assert self._result is not None
        return self._result

    @property
    def checked(self) -> int:
        """Events found good so far."""
        return self._checked

    def step(self, connection: Connection) -> bool:
        """Verify some more; return False when the walk is over."""
        anchor = anchor_of(connection)
        if not self._begun:
            self._begun = True
            self._head = head_of(connection)
            self._known_already(anchor)
            if anchor.last_id <= 0 and anchor != ChainHead(0, GENESIS):
                self._fault("l'origine de la chaîne ne correspond pas", anchor.last_id)
        elif anchor != self._anchor:
            # The old end moves on; why is said by an event younger than the head known so far.
            self._head = head_of(connection)
        if anchor.last_id > self._at.last_id or self._at.last_id == 0:
            # The first event kept cites what was removed last.
            self._at = anchor
        self._anchor = anchor
        if self._result is None and self._at.last_id < self._head.last_id:
            self._batch(connection)
        elif self._result is None:
            self._end(connection)
        return self._result is None

    def _known_already(self, anchor: ChainHead) -> None:
        """Compare what is known elsewhere with both ends."""
        known = self._known
        if known is None:
            return
        if known.last_id > self._head.last_id:
            self._fault("des événements connus ailleurs ont disparu", self._head.last_id + 1)
        elif known.last_id == anchor.last_id and known.hash != anchor.hash:
            self._fault("événement différent de celui connu ailleurs", known.last_id)

    def _batch(self, connection: Connection) -> None:
        after = self._at.last_id
        upto = min(after + BATCH, self._head.last_id)
        query = select(audit).where(audit.c.id > after, audit.c.id <= upto).order_by(audit.c.id)
        number = after
        for row in connection.execute(query):
            number += 1
            fault = _fault(number, row, self._at.hash) or self._other(row)
            if fault is not None:
                self._fault(fault, number)
                return
            if row.event_id == "110113" and PURGE in row.payload:
                self._announced = _announced(row) or self._announced
            self._at = ChainHead(number, row.hash)
            self._checked += 1
        if number < upto:
            self._fault("événement manquant", number + 1)

    def _other(self, row: AnyRow) -> str | None:
        known = self._known
        differs = known is not None and known.last_id == row.id and known.hash != row.hash
        return "événement différent de celui connu ailleurs" if differs else None

    def _end(self, connection: Connection) -> None:
        if self._at != self._head:
            self._fault("le dernier maillon ne correspond pas", self._head.last_id)
            return
        anchor, said = self._anchor, self._announced
        if anchor.last_id and (said is None or anchor.last_id > said.last_id):
            self._fault("des événements ont été effacés hors du délai de conservation", anchor.last_id)
        elif said is not None and anchor.last_id == said.last_id and anchor.hash != said.hash:
            self._fault("le maillon d'ancrage ne correspond pas", anchor.last_id)
        elif (extra := _beyond(connection, anchor)) is not None:
            self._fault("événement ajouté hors de la chaîne", extra)
        else:
            self._result = ChainCheck(self._checked, self._head, anchor=anchor)

    def _fault(self, text: str, number: int) -> None:
        self._result = ChainCheck(self._checked, self._head, text, number, self._anchor)


def _fault(number: int, row: AnyRow, link: str) -> str | None:
    if row.id != number:
        return "événement manquant"
    if row.prev_hash != link or row.hash != link_of(link, row.payload):
        return "événement modifié"
    try:
        plain = json.loads(row.payload)
        event = plain["event"]
        said = (plain["id"], plain["instant"], event["event_id"], event["outcome"])
        about = (codec.clip(event["patient_ins"]), codec.clip(event["study_uid"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "événement illisible"
    shown = (number, codec.to_plain(row.instant), row.event_id, row.outcome)
    if said != shown or about != (row.patient_ins, row.study_uid):
        return "colonnes de recherche modifiées"
    return None


def _announced(row: AnyRow) -> ChainHead | None:
    for one in json.loads(row.payload)["event"]["objects"]:
        if one["id_type"] == PURGE and (found := read_purge(one["id"])) is not None:
            return ChainHead(*found)
    return None


def _beyond(connection: Connection, anchor: ChainHead) -> int | None:
    """Number of a row outside both ends, unless it was added properly since."""
    now = head_of(connection).last_id
    query = select(audit.c.id).where((audit.c.id > now) | (audit.c.id <= anchor.last_id)).limit(1)
    found: int | None = connection.execute(query).scalar_one_or_none()
    return found
