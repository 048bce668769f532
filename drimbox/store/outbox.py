"""The outbox: every transaction with the DMP, whole, before its first byte leaves (DB.SO.22).

Theory of operation. A row carries the complete `Submission`, or the complete `Removal` of a manifest: a
second attempt sends the same identifiers as the first. For each study only the oldest unfinished row is
handed out, so replacements and removals reach the DMP in order; while the DMP is down everything waits
here, and leaves in order when it is back (interfaces.md 4.9).

    take -> begin -> (bytes leave) -> published | removed | refused | retry

`begin` commits "an attempt has begun, its outcome is unknown" first. Whatever happens next, the row
says so until somebody learns the truth: after `kill -9` it comes back with `outcome_unknown`, and the
worker asks the DMP before it sends again.

A parked row holds nobody back. A publication behind it takes its place (`overtaking`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, exists, or_, select, update

from drimbox.model import KosState
from drimbox.ports import Count, Removal, Submission
from drimbox.store import codec
from drimbox.store.database import AnyRow
from drimbox.store.forgotten import tell
from drimbox.store.overtaking import overtake
from drimbox.store.queue import Claim, Queue
from drimbox.store.schema import DONE, FAILED, REMOVE, WAITING, kos, outbox
from drimbox.store.statistics import count_in


@attrs.frozen
class OutboxItem:
    """One publication or removal to make, or to find out about."""

    id: int
    kos_id: int
    site: str
    study_uid: str
    submission: Submission | Removal
    #: Attempts begun so far.
    attempts: int
    #: An attempt may have reached the DMP: ask before sending again.
    outcome_unknown: bool


_ITEM = (
    outbox.c.id,
    outbox.c.kos_id,
    outbox.c.site,
    outbox.c.study_uid,
    outbox.c.kind,
    outbox.c.submission,
    outbox.c.attempts,
    outbox.c.outcome_unknown,
)
_OTHER: Table = outbox.alias("other")  # type: ignore[assignment]


def _read(row: AnyRow) -> OutboxItem:
    removal = row.kind == REMOVE
    return OutboxItem(
        id=row.id,
        kos_id=row.kos_id,
        site=row.site,
        study_uid=row.study_uid,
        submission=(
            codec.loads(row.submission, Removal) if removal else codec.loads(row.submission, Submission)
        ),
        attempts=row.attempts,
        outcome_unknown=row.outcome_unknown,
    )


# Statements of every publication, made once.
_KOS_OF = (
    select(kos.c.id, kos.c.site, kos.c.study_uid, kos.c.structure_id, kos.c.patient_ins)
    .join(outbox, outbox.c.kos_id == kos.c.id)
    .where(outbox.c.id == bindparam("this_row"))
)
_ENDED = select(outbox.c.kind, outbox.c.attempts).where(outbox.c.id == bindparam("this_row"))
#: Of another site, only what the DMP lets it replace: the same structure's, in the same record.
_REPLACEABLE = and_(
    kos.c.structure_id == bindparam("new_structure_id"), kos.c.patient_ins == bindparam("new_patient_ins")
)
_REPLACE = (
    update(kos)
    .where(
        kos.c.study_uid == bindparam("new_study_uid"),
        kos.c.state == KosState.PUBLISHED.value,
        kos.c.id != bindparam("new_id"),
        or_(kos.c.site == bindparam("new_site"), _REPLACEABLE),
    )
    .values(state=KosState.REPLACED.value)
)
_PUBLISHED = update(kos).where(kos.c.id == bindparam("new_id")).values(state=KosState.PUBLISHED.value)


def _in_turn(held: Callable[[Table], ColumnElement[bool]]) -> Any:
    """Condition of the theory of operation, beside `Queue._due`; `held` says that a row is in hand."""
    other = _OTHER
    before = and_(
        other.c.state == WAITING,
        other.c.study_uid == outbox.c.study_uid,
        other.c.id != outbox.c.id,
        or_(other.c.id < outbox.c.id, held(other)),
    )
    return ~exists().where(before).correlate(outbox)


class Outbox(Queue):
    """The queue towards the DMP."""

    _table, _created = outbox, outbox.c.created_at

    @cached_property
    def _turn(self) -> Claim[OutboxItem]:
        return self._claiming(_ITEM, [outbox.c.id], _read, _in_turn(self._held), count=False)

    async def take(self, now: datetime, limit: int) -> list[OutboxItem]:
        """Take at most `limit` due rows, each the oldest unfinished of its study."""
        return await self._claim(self._turn, now, limit)

    def _park(self, connection: Connection, row_id: int, error: str) -> None:
        super()._park(connection, row_id, error)
        study = select(outbox.c.study_uid).where(outbox.c.id == row_id)
        overtake(connection, connection.execute(study).scalar_one(), self._clock.now())

    async def begin(self, item_id: int) -> None:
        """Commit that an attempt begins. Only then may its first byte leave.

        The row is ours for a whole lease from now, longer than an attempt may take: even of a node that
        cannot renew any more, no other makes a second attempt beside the first.
        """
        await self._database.run(
            lambda connection: self._change(
                connection,
                item_id,
                attempts=outbox.c.attempts + 1,
                outcome_unknown=True,
                held_until=self._leases.now(connection) + self._lease,
            )
        )

    async def retry(self, item_id: int, at: datetime, error: str, outcome_unknown: bool) -> None:
        """Put the row off until `at`.

        `outcome_unknown` must be True when any attempt may have reached the DMP and the DMP has not
        been asked since, even if the last attempt itself surely did not.
        """
        await self._put_off(item_id, at, error, outcome_unknown=outcome_unknown)

    async def published(self, item_id: int, entry_uuid: str | None, warnings: Sequence[str] = ()) -> None:
        """The DMP holds it: end the row, make its KOS the current one of its site and study.

        The KOS that was current becomes REPLACED, in the same transaction; so does the one of another of
        our sites that it took the place of, when the study has moved between two PACS.
        """
        words = codec.canonical([codec.clip(warning) for warning in warnings])
        await self._database.run(partial(self._published, item_id, entry_uuid, words))

    def _published(
        self, item_id: int, entry_uuid: str | None, warnings: str, connection: Connection
    ) -> None:
        if not self._end(connection, item_id, DONE, outcome_unknown=False, warnings=warnings):
            return
        new = connection.execute(_KOS_OF, {"this_row": item_id}).one()
        now = self._clock.now()
        replaced = connection.execute(
            _REPLACE, {**{f"new_{name}": value for name, value in new._mapping.items()}, "changed_at": now}
        ).rowcount
        count_in(connection, now, [Count("STF02" if replaced else "STF01", new.structure_id, new.site)])
        connection.execute(
            _PUBLISHED,
            {"new_id": new.id, "entry_uuid": entry_uuid, "published_at": now, "changed_at": now},
        )

    async def removed(self, item_id: int, warnings: Sequence[str] = ()) -> None:
        """The DMP does not hold it any more: end the row, its KOS is DEPUBLISHED (DB.SO.26).

        A KOS that is no longer the current one stays what it is. One whose publication was given up
        for this removal is PENDING until now. The nodes of the store learn it for their caches.
        """
        words = codec.canonical([codec.clip(warning) for warning in warnings])
        now = self._clock.now()

        def work(connection: Connection) -> None:
            if not self._end(connection, item_id, DONE, outcome_unknown=False, warnings=words):
                return
            self._count(connection, item_id, "STF03")
            kos_id = select(outbox.c.kos_id).where(outbox.c.id == item_id).scalar_subquery()
            connection.execute(
                update(kos)
                .where(
                    kos.c.id == kos_id,
                    kos.c.state.in_((KosState.PUBLISHED.value, KosState.PENDING.value)),
                )
                .values(state=KosState.DEPUBLISHED.value, changed_at=now)
            )
            if connection.dialect.name == "postgresql":
                row = connection.execute(
                    select(outbox.c.site, outbox.c.study_uid).where(outbox.c.id == item_id)
                ).one()
                tell(connection, row.site, row.study_uid, now)

        await self._database.run(work)

    async def refused(self, item_id: int, code: str, text: str) -> None:
        """The DMP refused for good: end the row as failed (E006, E007).

        The KOS of a publication is REFUSED; that of a removal stays what it is.
        """
        await self._database.run(partial(self._refused, item_id, code, codec.clip(text)))

    def _refused(self, item_id: int, code: str, text: str, connection: Connection) -> None:
        if not self._end(
            connection, item_id, FAILED, outcome_unknown=False, error_code=code, error_text=text
        ):
            return
        row = connection.execute(_ENDED, {"this_row": item_id}).one()
        sent = "STF05" if row.attempts else "STF04"
        self._count(connection, item_id, "STF06" if row.kind == REMOVE else sent)
        kos_id = select(outbox.c.kos_id).where(outbox.c.id == item_id).scalar_subquery()
        connection.execute(
            update(kos)
            .where(kos.c.id == kos_id, kos.c.state == KosState.PENDING.value)
            .values(state=KosState.REFUSED.value, changed_at=self._clock.now())
        )

    def _count(self, connection: Connection, item_id: int, stat: str) -> None:
        """Count the end of a row for the structure whose KOS it is about."""
        of = connection.execute(_KOS_OF, {"this_row": item_id}).one()
        count_in(connection, self._clock.now(), [Count(stat, of.structure_id, of.site)])
