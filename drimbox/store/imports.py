"""Taking over the manifests of another DRIMbox: one transaction each, whole or not at all (DB.SO.30).

A manifest taken over is an ordinary citizen afterwards: its message is in the inbox, done, so that later
work can read it again; what its reports say is in the record of reports; its job is there to be reopened;
its submission is an outbox row that has ended. Nothing of it waits, so nothing is ever sent for it.

What this gateway knows itself is never set aside by something older: a manifest submitted before one of the
same study that is here already is kept as replaced (or as depublished, when that one was), and its reports
say nothing.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from drimbox.model import KosState, MessageAction
from drimbox.ports import IMPORTED, Clock
from drimbox.store import codec
from drimbox.store.archive import insert_report
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import DONE, feed_job, inbox, kos, outbox, report, report_study
from drimbox.xdm.takeover import Fate, Takeover

_HELD = (KosState.PUBLISHED.value, KosState.REPLACED.value, KosState.DEPUBLISHED.value)


class Imports:
    """Where an archive is loaded."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def take(self, record: Takeover) -> Fate:
        """Keep one manifest and say what became of it; doing it again changes nothing."""
        work = partial(_take, record, self._clock.now())
        try:
            return await self._database.run(work)
        except IntegrityError:
            # On a server, a publication of the same study was committed meanwhile: judge again.
            return await self._database.run(work)

    async def fate(self, record: Takeover) -> Fate:
        """Say what `take` would do."""
        return await self._database.read(lambda connection: _judge(connection, record)[0])


def _judge(connection: Connection, record: Takeover) -> tuple[Fate, str]:
    """Return what becomes of a manifest, and the state it gets."""
    made = record.submission
    known = connection.execute(
        select(kos.c.site).where(kos.c.sop_instance_uid == made.sop_instance_uid)
    ).scalar_one_or_none()
    if known is not None:
        return (Fate.KNOWN if known == record.site else Fate.ELSEWHERE), ""
    newest = (
        select(kos.c.state, kos.c.created_at)
        .where(kos.c.study_uid == made.study.study_uid, kos.c.site == record.site, kos.c.state.in_(_HELD))
        .order_by(kos.c.created_at.desc(), kos.c.id.desc())
        .limit(1)
    )
    there = connection.execute(newest).first()
    if there is None or there.created_at < made.submission_time:
        return Fate.LOADED, KosState.PUBLISHED.value
    gone = there.state == KosState.DEPUBLISHED.value
    return Fate.OLDER, KosState.DEPUBLISHED.value if gone else KosState.REPLACED.value


def _take(record: Takeover, now: datetime, connection: Connection) -> Fate:
    fate, state = _judge(connection, record)
    if fate not in (Fate.LOADED, Fate.OLDER):
        return fate
    made = record.submission
    if fate is Fate.LOADED:
        _set_aside(connection, record, now)
        messages = [_message(connection, record, each, now) for each in record.messages]
        _insert(
            connection,
            feed_job,
            message_id=messages[-1],
            ris=IMPORTED,
            study_uid=made.study.study_uid,
            created_at=now,
            result="import",
            **_ended(now),
        )
    kos_id = _insert(
        connection,
        kos,
        site=record.site,
        study_uid=made.study.study_uid,
        series_uid=record.series_uid,
        sop_instance_uid=made.sop_instance_uid,
        state=state,
        data=made.kos,
        metadata=record.metadata,
        fingerprint=IMPORTED,
        structure_id=made.structure_id,
        patient_ins=made.report.patient.ins,
        patient_ins_oid=made.report.patient.ins_oid,
        patient_id=made.report.ipp.value if made.report.ipp is not None else "",
        created_at=made.submission_time,
        published_at=record.published_at,
        changed_at=now,
    )
    for document_id, _ in record.messages:
        insert_report(connection, kos_id, document_id)
    _insert(
        connection,
        outbox,
        kos_id=kos_id,
        site=record.site,
        study_uid=made.study.study_uid,
        submission=codec.dumps(made),
        created_at=now,
        attempts=1,
        **_ended(now),
    )
    return fate


def _set_aside(connection: Connection, record: Takeover, now: datetime) -> None:
    """Let the manifest be the current one, and its reports those that speak of what archives bring."""
    study = record.submission.study.study_uid
    connection.execute(
        update(kos)
        .where(kos.c.study_uid == study, kos.c.site == record.site, kos.c.state == KosState.PUBLISHED.value)
        .values(state=KosState.REPLACED.value, changed_at=now)
    )
    listed = [document_id for document_id, _ in record.messages]
    earlier = (
        select(report.c.id)
        .join(inbox, inbox.c.id == report.c.message_id)
        .where(inbox.c.ris == IMPORTED, report.c.document_id.not_in(listed))
    )
    connection.execute(
        delete(report_study).where(
            report_study.c.study_uid == study, report_study.c.report_id.in_(earlier.scalar_subquery())
        )
    )


def _message(connection: Connection, record: Takeover, message: tuple[str, bytes], now: datetime) -> int:
    """Keep the message of one report, and what it says."""
    document_id, raw = message
    made = record.submission
    message_id = _insert(
        connection,
        inbox,
        ris=IMPORTED,
        peer=record.site,
        control_id=made.sop_instance_uid,
        raw=raw,
        received_at=now,
        result="import",
        **_ended(now),
    )
    if document_id:
        report_id = _insert(
            connection,
            report,
            message_id=message_id,
            document_id=document_id,
            action=MessageAction.NEW.value,
            sent_at=min(made.submission_time, now),
        )
        _insert(connection, report_study, report_id=report_id, study_uid=made.study.study_uid)
    return message_id


def _ended(now: datetime) -> dict[str, Any]:
    return {"state": DONE, "due_at": now, "finished_at": now}


def _insert(connection: Connection, table: Any, **values: Any) -> int:
    key: AnyRow | None = connection.execute(insert(table).values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])
