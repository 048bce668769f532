"""Feed jobs: one study that a report asks to publish (DB.SO.12), until the record matches the PACS.

Order. Two reports about the same study must reach the DMP in the order they came, so a job is handed
out only when
- it is the oldest unfinished one of its study, and none of that study is in hand;
- every earlier message of the same RIS has been read (it might name the same study), except one that
  was put off: a message nobody can read yet must not hold back the whole RIS.

A job that leads to a publication ends in the transaction that archives the KOS and fills the outbox:
whatever stops the process, the work is either still to do or safely on its way, never both or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from drimbox.model import KosState
from drimbox.ports import Count, FeedJob, Purpose, Removal, Submission, parked_key
from drimbox.store import codec
from drimbox.store.archive import doubtful, insert_report, still_wanted
from drimbox.store.database import AnyRow
from drimbox.store.notices import close_notice
from drimbox.store.overtaking import overtake
from drimbox.store.queue import Claim, Queue
from drimbox.store.schema import (
    DONE,
    DROPPED,
    PARKED,
    PUBLISH,
    REMOVE,
    WAITING,
    feed_job,
    inbox,
    kos,
    outbox,
)
from drimbox.store.statistics import count_in

_JOB = (
    feed_job.c.id,
    feed_job.c.message_id,
    feed_job.c.study_uid,
    feed_job.c.ris,
    feed_job.c.attempts,
    feed_job.c.purpose,
)
_ADD_KOS, _ADD_SUBMISSION = insert(kos), insert(outbox)
#: Made once, as all aliases of the store: SQLAlchemy copies every column for one.
_OTHER: Table = feed_job.alias("other")  # type: ignore[assignment]


def _in_turn(held: Callable[[Table], ColumnElement[bool]]) -> Any:
    """Condition of the module's preamble, beside `Queue._due`; `held` says that a row is in hand."""
    other = _OTHER
    older = or_(
        other.c.message_id < feed_job.c.message_id,
        and_(other.c.message_id == feed_job.c.message_id, other.c.id < feed_job.c.id),
    )
    same_study = and_(
        other.c.state == WAITING,
        other.c.study_uid == feed_job.c.study_uid,
        other.c.id != feed_job.c.id,
        # An older one may appear while a younger one is worked on: it waits for it.
        or_(older, held(other)),
    )
    unread = and_(
        inbox.c.state == WAITING,
        inbox.c.ris == feed_job.c.ris,
        inbox.c.id < feed_job.c.message_id,
        inbox.c.last_error.is_(None),
    )
    return and_(
        ~exists().where(same_study).correlate(feed_job), ~exists().where(unread).correlate(feed_job)
    )


def _job(row: AnyRow) -> FeedJob:
    values = {column.name: getattr(row, column.name) for column in _JOB}
    return FeedJob(**{**values, "purpose": Purpose(row.purpose)})


def _held(connection: Connection, study_uid: str, where: ColumnElement[bool]) -> Sequence[AnyRow]:
    """Return the publications of what the DMP holds or may hold of a study, oldest first."""
    query = (
        select(outbox)
        .join(kos, kos.c.id == outbox.c.kos_id)
        .where(kos.c.study_uid == study_uid, outbox.c.kind == PUBLISH, where)
        .where(or_(still_wanted(), doubtful()))
        .order_by(outbox.c.id)
    )
    return connection.execute(query).all()


class FeedJobs(Queue):
    """The queue between the reading of a report and the outbox."""

    _table, _created = feed_job, feed_job.c.created_at

    @cached_property
    def _turn(self) -> Claim[FeedJob]:
        return self._claiming(_JOB, [feed_job.c.message_id, feed_job.c.id], _job, _in_turn(self._held))

    async def take(self, now: datetime, limit: int) -> list[FeedJob]:
        """Take at most `limit` due jobs, never two of the same study at once, in order of arrival.

        `attempts` is the number of times the job was taken before.
        """
        return await self._claim(self._turn, now, limit)

    async def finish(
        self, job_id: int, result: str, detail: str = "", *, count: Count | None = None
    ) -> None:
        """End the job without a publication: `result` is a word or an E-code, `detail` its text.

        `count` is what the statistics count of it.
        """
        await self._database.run(partial(self._finish, job_id, result, detail, count=count))

    def _finish(
        self, job_id: int, result: str, detail: str, connection: Connection, *, count: Count | None = None
    ) -> bool:
        ended = self._end(connection, job_id, DONE, result=codec.clip(result), detail=codec.clip(detail))
        if ended and count is not None:
            count_in(connection, self._clock.now(), [count])
        return ended

    async def retry(self, job_id: int, at: datetime, error: str) -> None:
        """Put the job off until `at` (PACS silent, DB.SO.14)."""
        await self._put_off(job_id, at, error)

    async def again(self, study_uid: str, purpose: Purpose = Purpose.MATCH) -> bool:
        """Compare a study once more: reopen its last job (DB.SO.190), for `purpose`.

        Returns False when the study has no job that can be: none is known, or one is on its way already.
        What may do anything takes over one that waits to do less: a difference seen meanwhile is not lost.
        """
        newest = select(func.max(feed_job.c.id)).where(feed_job.c.study_uid == study_uid)
        last = newest.scalar_subquery()
        reopen = (
            update(feed_job)
            .where(feed_job.c.id == last, feed_job.c.state.in_((DONE, PARKED, DROPPED)))
            .values(
                state=WAITING,
                due_at=self._clock.now(),
                attempts=0,
                failures=0,
                last_error=None,
                result=None,
                detail=None,
                finished_at=None,
                purpose=purpose.value,
            )
        )
        widen = (
            update(feed_job)
            .where(
                feed_job.c.id == last,
                feed_job.c.state == WAITING,
                feed_job.c.holder.is_(None),
                feed_job.c.purpose != Purpose.MATCH.value,
            )
            .values(purpose=Purpose.MATCH.value)
        )

        def work(connection: Connection) -> bool:
            if connection.execute(reopen).rowcount:
                close_notice(
                    connection,
                    parked_key("feed", connection.execute(newest).scalar_one()),
                    self._clock.now(),
                )
                return True
            return purpose is Purpose.MATCH and bool(connection.execute(widen).rowcount)

        return await self._database.run(work)

    async def last(self, study_uid: str) -> FeedJob | None:
        """Return the last job of a study, ended or not; None when it never had one."""
        query = (
            select(*_JOB).where(feed_job.c.study_uid == study_uid).order_by(feed_job.c.id.desc()).limit(1)
        )

        def work(connection: Connection) -> FeedJob | None:
            row = connection.execute(query).first()
            return None if row is None else _job(row)

        return await self._database.read(work)

    async def queue_publication(
        self,
        job_id: int,
        *,
        site: str,
        submission: Submission,
        metadata: bytes,
        fingerprint: str,
        series_uid: str = "",
        take_back: Callable[[Submission], Removal] | None = None,
    ) -> int:
        """Archive the KOS as PENDING, queue its submission and end the job; return the KOS's number.

        With `take_back`, which turns what was submitted into its removal, what the DMP holds or may hold of
        the study in another patient's record is removed before: no document is replaced across records.
        One transaction (architecture.md rule 4). Raises `NotInHand` when the job is not ours, and
        SQLAlchemy's `IntegrityError` when the SOP Instance UID is already archived; then nothing is
        changed.
        """
        text = codec.dumps(submission)
        return await self._database.run(
            partial(
                self._publish, job_id, site, submission, text, metadata, fingerprint, series_uid, take_back
            )
        )

    def _publish(
        self,
        job_id: int,
        site: str,
        submission: Submission,
        text: str,
        metadata: bytes,
        fingerprint: str,
        series_uid: str,
        take_back: Callable[[Submission], Removal] | None,
        connection: Connection,
    ) -> int:
        now = self._clock.now()
        if not self._finish(job_id, "queued", submission.sop_instance_uid, connection):
            known = select(kos.c.id).where(kos.c.sop_instance_uid == submission.sop_instance_uid)
            return int(connection.execute(known).scalar_one())
        report, study = submission.report, submission.study
        if take_back is not None:
            for row in _held(connection, study.study_uid, kos.c.patient_ins != report.patient.ins):
                self._remove(connection, row, take_back)
        key = connection.execute(
            _ADD_KOS,
            {
                "site": site,
                "study_uid": study.study_uid,
                "series_uid": series_uid,
                "sop_instance_uid": submission.sop_instance_uid,
                "state": KosState.PENDING.value,
                "data": submission.kos,
                "metadata": metadata,
                "fingerprint": fingerprint,
                "structure_id": submission.structure_id,
                "patient_ins": report.patient.ins,
                "patient_ins_oid": report.patient.ins_oid,
                "patient_id": report.ipp.value if report.ipp is not None else study.patient_id,
                "pacs_ins": study.ins,
                "created_at": now,
                "changed_at": now,
            },
        ).inserted_primary_key
        assert key is not None
        kos_id = int(key[0])
        insert_report(connection, kos_id, report.document_id)
        connection.execute(
            _ADD_SUBMISSION,
            {
                "kos_id": kos_id,
                "site": site,
                "study_uid": study.study_uid,
                "submission": text,
                "created_at": now,
                "due_at": now,
            },
        )
        overtake(connection, study.study_uid, now)
        return kos_id

    async def queue_removal(
        self,
        job_id: int,
        make: Callable[[Submission], Removal],
        *,
        sites: Collection[str] | None = None,
    ) -> int:
        """Queue the removal of everything the DMP holds or may hold of the study, and end the job.

        `make` turns what was submitted into its removal; `sites` are those it is about, None for all. A
        submission of which nothing has left yet is dropped instead, its KOS DEPUBLISHED at once; one that
        is parked will not be sent any more. Returns how many KOS this was about; with none, only the job
        ends. One transaction.
        """

        here = true() if sites is None else kos.c.site.in_(list(sites))

        def work(connection: Connection) -> int:
            study = connection.execute(
                select(feed_job.c.study_uid).where(feed_job.c.id == job_id)
            ).scalar_one()
            rows = _held(connection, study, here)
            if self._finish(job_id, "removal" if rows else "nothing", "", connection):
                for row in rows:
                    self._remove(connection, row, make)
                overtake(connection, study, self._clock.now())
            return len(rows)

        return await self._database.run(work)

    def _remove(self, connection: Connection, row: AnyRow, make: Callable[[Submission], Removal]) -> None:
        now = self._clock.now()
        if row.state in (WAITING, PARKED) and row.attempts == 0 and row.holder is None:
            connection.execute(
                update(outbox)
                .where(outbox.c.id == row.id)
                .values(state=DONE, finished_at=now, error_text="retiré avant son envoi")
            )
            connection.execute(
                update(kos)
                .where(kos.c.id == row.kos_id)
                .values(state=KosState.DEPUBLISHED.value, changed_at=now)
            )
            close_notice(connection, parked_key("outbox", row.id), now)
            return
        removal = make(codec.loads(row.submission, Submission))
        if row.state == DROPPED:
            # Whether the DMP holds it is the removal's affair from now on.
            known = update(outbox).where(outbox.c.id == row.id).values(outcome_unknown=False)
            connection.execute(known)
        connection.execute(
            insert(outbox).values(
                kos_id=row.kos_id,
                site=row.site,
                study_uid=row.study_uid,
                kind=REMOVE,
                submission=codec.dumps(removal),
                created_at=now,
                due_at=now,
            )
        )

    async def unchanged(
        self, job_id: int, kos_id: int, report_id: str, *, fingerprint: str | None = None
    ) -> None:
        """The archived KOS already says it all: add the report to it and end the job (DB.SO.12).

        `fingerprint` is its digest, when it had none of ours (DB.SO.30).
        """

        def work(connection: Connection) -> None:
            if self._finish(job_id, "unchanged", "", connection):
                insert_report(connection, kos_id, report_id)
                if fingerprint is not None:
                    connection.execute(
                        update(kos).where(kos.c.id == kos_id).values(fingerprint=fingerprint)
                    )

        await self._database.run(work)
