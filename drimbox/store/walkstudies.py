"""What becomes of each study of a walk: its job, then its submission, and what they say of the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, update

from drimbox.ports import ABSENT
from drimbox.store.database import AnyRow
from drimbox.store.schema import DONE, FAILED, PARKED, WAITING, feed_job, outbox, walk, walk_study
from drimbox.walks import Step, Verdict

#: Rows one call returns.
MAX_ROWS = 1000
#: Results of jobs after which the DMP has something to answer.
_SUBMITTED = ("queued", "removal")
STUDY = select(
    walk_study.c.study_uid,
    walk_study.c.kos_id,
    walk_study.c.verdict,
    walk_study.c.detail,
    walk_study.c.step,
    walk_study.c.result,
    walk_study.c.judged_at,
)


def at_step(connection: Connection, number: int, step: Step) -> Sequence[AnyRow]:
    """Read at most a page of studies at a step: what waits here is bounded by whoever queues it."""
    query = STUDY.where(walk_study.c.walk_id == number, walk_study.c.step == step.value)
    return connection.execute(query.order_by(walk_study.c.study_uid).limit(MAX_ROWS)).all()


def follow_job(connection: Connection, number: int, row: AnyRow) -> None:
    """A job that has ended says what became of its study, and sometimes that the verdict was another."""
    query = (
        select(feed_job.c.state, feed_job.c.result)
        .where(feed_job.c.study_uid == row.study_uid)
        .order_by(feed_job.c.id.desc())
        .limit(1)
    )
    job = connection.execute(query).first()
    if job is None or job.state == WAITING:
        return
    result = job.result or FAILED
    verdict, step = Verdict(row.verdict), Step.SENT if result in _SUBMITTED else Step.ENDED
    if result == ABSENT:
        verdict, step = Verdict.GONE, Step.HELD
    elif verdict is Verdict.GONE and result == "unchanged":
        verdict = Verdict.UNCHANGED
    elif verdict is Verdict.GONE and result == "queued":
        verdict = Verdict.CHANGED
    _update(connection, number, row, verdict=verdict, step=step, result=result)


def follow_submission(connection: Connection, number: int, row: AnyRow) -> None:
    """What the DMP was sent has been answered when no submission of the study waits any more."""
    last = {
        state: connection.execute(
            select(func.max(outbox.c.id)).where(
                outbox.c.state == state, outbox.c.study_uid == row.study_uid
            )
        ).scalar_one()
        for state in (WAITING, DONE, FAILED, PARKED)
    }
    if last[WAITING] is not None:
        return
    result = row.result
    broken = max(last[FAILED] or 0, last[PARKED] or 0)
    if broken > (last[DONE] or 0):
        code = select(outbox.c.error_code).where(outbox.c.id == broken)
        result = connection.execute(code).scalar_one() or FAILED
    _update(connection, number, row, verdict=Verdict(row.verdict), step=Step.ENDED, result=result)


def _update(
    connection: Connection, number: int, row: AnyRow, *, verdict: Verdict, step: Step, result: str
) -> None:
    connection.execute(
        update(walk_study)
        .where(walk_study.c.walk_id == number, walk_study.c.study_uid == row.study_uid)
        .values(verdict=verdict.value, step=step.value, result=result)
    )
    if verdict.value != row.verdict:
        counters = {
            row.verdict: walk.c[row.verdict] - 1,
            verdict.value: walk.c[verdict.value] + 1,
        }
        connection.execute(update(walk).where(walk.c.id == number).values(counters))
