"""Walks over the archive: position, counters and what became of each study (DB.SO.28, 31, 88).

Keyset order. The published KOS of a site are read by StudyInstanceUID, through the very index that allows
one of them per site and study: a page costs the same anywhere in a million, and a study that gets a new
KOS because of the walk is not met again. Position, counters and verdicts of a page are one transaction: a
process killed at any moment judges at most one page twice, and counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from drimbox.model import KosState
from drimbox.ports import Clock
from drimbox.store.archive import still_wanted
from drimbox.store.codec import clip
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import kos, walk, walk_study
from drimbox.store.walkstudies import MAX_ROWS, STUDY, at_step, follow_job, follow_submission
from drimbox.walks import (
    OPEN_STATES,
    Finding,
    JudgedStudy,
    Milestone,
    Step,
    Verdict,
    Walk,
    WalkKind,
    WalkOpen,
    WalkState,
)

_OPEN = [state.value for state in OPEN_STATES]
#: Written out, not bound: only so can SQLite see that its partial index answers.
_CURRENT = kos.c.state == literal_column(f"'{KosState.PUBLISHED.value}'")


def _published(site: str) -> ColumnElement[bool]:
    return and_(kos.c.site == site, _CURRENT, still_wanted())


def page_query(site: str, after: str, limit: int) -> Select[Any]:
    """Return the query of one page."""
    return (
        select(kos.c.id, kos.c.study_uid)
        .where(_published(site), kos.c.study_uid > after)
        .order_by(kos.c.study_uid)
        .limit(max(0, min(limit, MAX_ROWS)))
    )


class Walks:
    """Implements `walks.WalkStore`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    # -- walks -------------------------------------------------------------------------------------

    async def begin(self, kind: WalkKind, site: str, *, dry_run: bool, address: str) -> Walk:
        """Begin a walk of a site (STR01 is counted now). Raises `WalkOpen`."""
        before = await self._count(site)
        values = {
            "kind": kind.value,
            "site": site,
            "dry_run": dry_run,
            "state": WalkState.RUNNING.value,
            "address": address,
            "started_at": self._clock.now(),
            "kos_before": before,
        }

        def work(connection: Connection) -> Walk:
            key = connection.execute(insert(walk).values(values)).inserted_primary_key
            assert key is not None
            return _get(connection, int(key[0]))

        try:
            return await self._database.run(work)
        except IntegrityError:
            found = await self.open_walk(site)
            if found is None:
                raise
            raise WalkOpen(found.id) from None

    async def get(self, number: int) -> Walk:
        """Return one walk; `KeyError` when there is none."""
        return await self._database.read(lambda connection: _get(connection, number))

    async def open_walk(self, site: str) -> Walk | None:
        """Return the open walk of a site."""
        found = await self._walks(select(walk).where(walk.c.site == site, walk.c.state.in_(_OPEN)))
        return next(iter(found), None)

    async def running(self) -> list[Walk]:
        """Return the walks in state RUNNING."""
        return await self._walks(select(walk).where(walk.c.state == WalkState.RUNNING.value))

    async def listed(
        self,
        *,
        kind: WalkKind | None = None,
        site: str = "",
        before: int | None = None,
        limit: int = MAX_ROWS,
    ) -> list[Walk]:
        """Return walks, newest first; `before` is the number of the last one of the page before."""
        query = select(walk).order_by(walk.c.id.desc()).limit(max(0, min(limit, MAX_ROWS)))
        if kind is not None:
            query = query.where(walk.c.kind == kind.value)
        if site:
            query = query.where(walk.c.site == site)
        if before is not None:
            query = query.where(walk.c.id < before)
        return await self._walks(query)

    async def set_state(self, number: int, state: WalkState, reason: str = "") -> Walk:
        """Change the state; DONE also counts STR05. An ended walk stays as it is."""
        values: dict[str, Any] = {"state": state.value, "reason": clip(reason)}
        if state not in OPEN_STATES:
            values["ended_at"] = self._clock.now()
            values["kos_after"] = await self._count((await self.get(number)).site)
        change = update(walk).where(walk.c.id == number, walk.c.state.in_(_OPEN)).values(values)

        def work(connection: Connection) -> Walk:
            connection.execute(change)
            return _get(connection, number)

        return await self._database.run(work)

    async def confirm(self, number: int) -> Walk:
        """Release what a SUSPENDED walk would withdraw: it is RUNNING again."""
        change = (
            update(walk)
            .where(walk.c.id == number, walk.c.state == WalkState.SUSPENDED.value)
            .values(state=WalkState.RUNNING.value, confirmed=True, reason="")
        )

        def work(connection: Connection) -> Walk:
            connection.execute(change)
            return _get(connection, number)

        return await self._database.run(work)

    async def controls(self, site: str) -> tuple[str, ...]:
        """Return the studies that the newest resynchronisation of a site saw it hold."""
        query = select(walk).where(walk.c.site == site, walk.c.kind == WalkKind.RESYNC.value)
        found = await self._walks(query.order_by(walk.c.id.desc()).limit(1))
        return found[0].controls if found else ()

    async def purge(self, site: str, keep: int, limit: int) -> int:
        """Drop the studies of all but the newest `keep` walks of a site, `limit` rows at most."""
        newest = select(walk.c.id).where(walk.c.site == site).order_by(walk.c.id.desc()).limit(keep)
        of_site = select(walk.c.id).where(walk.c.site == site, walk.c.state.not_in(_OPEN))

        def work(connection: Connection) -> int:
            kept = set(connection.execute(newest).scalars())
            for number in connection.execute(of_site).scalars().all():
                if number in kept:
                    continue
                first = select(walk_study.c.study_uid).where(walk_study.c.walk_id == number)
                uids = (
                    connection.execute(first.order_by(walk_study.c.study_uid).limit(limit)).scalars().all()
                )
                if uids:
                    old = and_(walk_study.c.walk_id == number, walk_study.c.study_uid <= uids[-1])
                    return connection.execute(delete(walk_study).where(old)).rowcount
            return 0

        return await self._database.run(work)

    # -- the way -----------------------------------------------------------------------------------

    async def page(self, site: str, after: str, limit: int) -> list[Milestone]:
        """Return the next published, still wanted KOS of a site whose study follows `after`."""
        query = page_query(site, after, limit)
        return await self._database.read(
            lambda connection: [Milestone(row.id, row.study_uid) for row in connection.execute(query)]
        )

    async def advance(
        self,
        walk_: Walk,
        judged: Sequence[tuple[Milestone, Finding, Step]],
        controls: Sequence[str],
        *,
        complete: bool = False,
    ) -> Walk:
        """Keep what was found, and the position behind it, in one transaction."""
        now = self._clock.now()
        rows = [
            {
                "walk_id": walk_.id,
                "study_uid": at.study_uid,
                "kos_id": at.kos_id,
                "verdict": finding.verdict.value,
                "detail": clip(finding.detail),
                "step": step.value,
                "judged_at": now,
            }
            for at, finding, step in judged
        ]
        values: dict[str, Any] = {"complete": complete, "controls": " ".join(controls)}
        for verdict in Verdict:
            count = sum(finding.verdict is verdict for _, finding, _ in judged)
            if count:
                values[verdict.value] = walk.c[verdict.value] + count
        if judged:
            values["position"] = judged[-1][0].study_uid

        def work(connection: Connection) -> Walk:
            if rows:
                connection.execute(insert(walk_study), rows)
            connection.execute(update(walk).where(walk.c.id == walk_.id).values(values))
            return _get(connection, walk_.id)

        return await self._database.run(work)

    # -- studies -----------------------------------------------------------------------------------

    async def studies(self, number: int, step: Step, limit: int, *, after: str = "") -> list[JudgedStudy]:
        """Return the studies at a step that follow `after`, in order."""
        query = STUDY.where(walk_study.c.walk_id == number, walk_study.c.step == step.value)
        return await self._studies(query.where(walk_study.c.study_uid > after), limit)

    async def report(
        self, number: int, *, after: str = "", verdict: Verdict | None = None, limit: int = MAX_ROWS
    ) -> list[JudgedStudy]:
        """Return the studies of a walk that follow `after`, in order."""
        query = STUDY.where(walk_study.c.walk_id == number, walk_study.c.study_uid > after)
        if verdict is not None:
            query = query.where(walk_study.c.verdict == verdict.value)
        return await self._studies(query, limit)

    async def move(self, number: int, studies: Collection[str], step: Step) -> None:
        """Take studies to another step."""
        change = (
            update(walk_study)
            .where(walk_study.c.walk_id == number, walk_study.c.study_uid.in_(list(studies)))
            .values(step=step.value)
        )
        await self._database.run(lambda connection: connection.execute(change).rowcount)

    async def release(self, number: int) -> int:
        """Take every HELD study to RELEASED; return how many."""
        change = (
            update(walk_study)
            .where(walk_study.c.walk_id == number, walk_study.c.step == Step.HELD.value)
            .values(step=Step.RELEASED.value)
        )
        return await self._database.run(lambda connection: connection.execute(change).rowcount)

    async def settle(self, number: int) -> dict[Step, int]:
        """Follow what became of the jobs and submissions; return how many studies are at each step."""

        def work(connection: Connection) -> dict[Step, int]:
            for row in at_step(connection, number, Step.QUEUED):
                follow_job(connection, number, row)
            for row in at_step(connection, number, Step.SENT):
                follow_submission(connection, number, row)
            open_ = [step.value for step in Step if step is not Step.ENDED]
            query = (
                select(walk_study.c.step, func.count())
                .where(walk_study.c.walk_id == number, walk_study.c.step.in_(open_))
                .group_by(walk_study.c.step)
            )
            found = {row[0]: row[1] for row in connection.execute(query)}
            return {step: found.get(step.value, 0) for step in Step if step is not Step.ENDED}

        return await self._database.run(work)

    async def elsewhere(self, number: int) -> int:
        """Count the studies found CHANGED whose KOS of then is still the current one (DB.SO.31)."""
        query = (
            select(func.count())
            .select_from(walk_study.join(kos, kos.c.id == walk_study.c.kos_id))
            .where(
                walk_study.c.walk_id == number,
                walk_study.c.verdict == Verdict.CHANGED.value,
                kos.c.state == KosState.PUBLISHED.value,
            )
        )
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))

    # -- own ---------------------------------------------------------------------------------------

    async def _count(self, site: str) -> int:
        query = select(func.count()).select_from(kos).where(_published(site))
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))

    async def _walks(self, query: Select[Any]) -> list[Walk]:
        return await self._database.read(
            lambda connection: [_walk(row) for row in connection.execute(query)]
        )

    async def _studies(self, query: Select[Any], limit: int) -> list[JudgedStudy]:
        query = query.order_by(walk_study.c.study_uid).limit(max(0, min(limit, MAX_ROWS)))
        return await self._database.read(
            lambda connection: [_study(row) for row in connection.execute(query)]
        )


def _get(connection: Connection, number: int) -> Walk:
    row = connection.execute(select(walk).where(walk.c.id == number)).first()
    if row is None:
        raise KeyError(number)
    return _walk(row)


def _walk(row: AnyRow) -> Walk:
    values = dict(row._mapping)
    counts = {verdict: values.pop(verdict.value) for verdict in Verdict}
    values["kind"], values["state"] = WalkKind(values["kind"]), WalkState(values["state"])
    values["controls"] = tuple(values["controls"].split())
    return Walk(**values, counts=counts)


def _study(row: AnyRow) -> JudgedStudy:
    values = {**row._mapping, "verdict": Verdict(row.verdict), "step": Step(row.step)}
    return JudgedStudy(**values)
