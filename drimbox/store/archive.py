"""The archive of KOS objects, with everything needed to replace, answer for or export them (DB.SO.22).

A KOS enters PENDING with its outbox row, becomes PUBLISHED when the DMP holds it, then REPLACED by a
newer one or DEPUBLISHED; REFUSED ends one the DMP did not want. Nothing leaves the archive: a request
for an old identifier must get its precise answer (E1002, E1103).

The bytes are read only when asked for: judging an image request needs identifiers and states alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import attrs
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from drimbox.model import KosState
from drimbox.ports import ArchivedKos, Clock, Submission
from drimbox.store import codec
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import DROPPED, PARKED, PUBLISH, REMOVE, WAITING, kos, kos_report, outbox

_LIGHT = (
    kos.c.id,
    kos.c.site,
    kos.c.study_uid,
    kos.c.sop_instance_uid,
    kos.c.state,
    kos.c.fingerprint,
    kos.c.structure_id,
    kos.c.patient_ins,
    kos.c.patient_ins_oid,
    kos.c.patient_id,
    kos.c.entry_uuid,
    kos.c.created_at,
    kos.c.pacs_ins,
)
_PENDING, _PUBLISHED = KosState.PENDING.value, KosState.PUBLISHED.value
#: KOS of one study looked at to judge a request: more versions than a study ever has.
MAX_CANDIDATES = 100


def still_wanted() -> ColumnElement[bool]:
    """Condition on `kos`: the DMP holds it, or will, and it is not being withdrawn."""
    leaving = (
        exists()
        .where(outbox.c.kos_id == kos.c.id, outbox.c.kind == REMOVE, outbox.c.state.in_((WAITING, PARKED)))
        .correlate(kos)
    )
    return and_(kos.c.state.in_((_PENDING, _PUBLISHED)), ~leaving)


def doubtful() -> ColumnElement[bool]:
    """Condition on `outbox`: a dropped publication of which an attempt may have reached the DMP."""
    return and_(outbox.c.kind == PUBLISH, outbox.c.state == DROPPED, outbox.c.outcome_unknown)


@attrs.frozen
class _Query:
    """A question to the archive, newest KOS first; `whole` reads their bytes too.

    Made once: to build a statement costs SQLAlchemy more than SQLite takes to run it.
    """

    light: Select[Any]
    whole: Select[Any]


def _query(*where: ColumnElement[bool], most: int = 1) -> _Query:
    def select_(*columns: ColumnElement[Any]) -> Select[Any]:
        return select(*columns).where(*where).order_by(kos.c.id.desc()).limit(most)

    return _Query(select_(*_LIGHT), select_(*_LIGHT, kos.c.data, kos.c.metadata))


_STUDY, _SITE = kos.c.study_uid == bindparam("study"), kos.c.site == bindparam("site")
_BY_NUMBER = _query(kos.c.id == bindparam("kos"))
_LATEST = _query(_STUDY, still_wanted())
_CURRENT = _query(_STUDY, _SITE, kos.c.state == _PUBLISHED)
_DOUBTFUL = _query(
    _STUDY,
    kos.c.state == KosState.REFUSED.value,
    exists().where(outbox.c.kos_id == kos.c.id, doubtful()).correlate(kos),
    most=MAX_CANDIDATES,
)
_BEGUN = exists().where(outbox.c.kos_id == kos.c.id, outbox.c.attempts > 0).correlate(kos)
_CANDIDATES = _query(
    _STUDY,
    _SITE,
    or_(
        kos.c.state.in_((_PUBLISHED, KosState.REPLACED.value, KosState.DEPUBLISHED.value)),
        and_(kos.c.state == _PENDING, _BEGUN),
    ),
    most=MAX_CANDIDATES,
)
_REPORTS = (
    select(kos_report.c.kos_id, kos_report.c.report_id)
    .where(kos_report.c.kos_id.in_(bindparam("ids", expanding=True)))
    .order_by(kos_report.c.id)
)
_LED = select(kos_report.c.id).where(
    kos_report.c.kos_id == bindparam("kos"), kos_report.c.report_id == bindparam("report")
)
_LEADS = insert(kos_report)


def insert_report(connection: Connection, kos_id: int, report_id: str) -> None:
    """Record that this report led to this KOS, once; no report, nothing."""
    if not report_id:
        return
    led = {"kos": kos_id, "report": report_id}
    if connection.execute(_LED, led).first() is None:
        connection.execute(_LEADS, {"kos_id": kos_id, "report_id": report_id})


class Archive:
    """The KOS archive. `data` and `metadata` are empty in what is read `with_data=False`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, kos_id: int, *, with_data: bool = True) -> ArchivedKos:
        """Return one KOS; `KeyError` when there is none."""
        found = await self._one(_BY_NUMBER, with_data, kos=kos_id)
        if found is None:
            raise KeyError(kos_id)
        return found

    async def latest(self, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the newest KOS of the study that the DMP is to hold, at any site (DB.SO.13).

        Not one whose removal is on its way.
        """
        return await self._one(_LATEST, with_data, study=study_uid)

    async def published(self, site: str, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the KOS the DMP holds now for this site and study."""
        return await self._one(_CURRENT, with_data, site=site, study=study_uid)

    async def doubtful(self, study_uid: str) -> list[ArchivedKos]:
        """Return the KOS of a study, newest first, that the DMP may hold although they were dropped."""
        return await self._find(_DOUBTFUL, False, study=study_uid)

    async def candidates(self, site: str, study_uid: str, *, with_data: bool = False) -> list[ArchivedKos]:
        """Return every KOS a Consumer may know for this site and study, newest first (DB.SO.38).

        PUBLISHED, REPLACED and DEPUBLISHED ones; of the PENDING ones those of which an attempt has
        begun, since the DMP may hold them although its answer never came; never a REFUSED one. The
        caller judges by the state and the SOP Instance UID: an empty list is E1001.
        """
        return await self._find(_CANDIDATES, with_data, site=site, study=study_uid)

    async def add_report(self, kos_id: int, report_id: str) -> None:
        """Record one more report that led to this KOS; `KeyError` when there is no such KOS."""

        def work(connection: Connection) -> None:
            if connection.execute(select(kos.c.id).where(kos.c.id == kos_id)).first() is None:
                raise KeyError(kos_id)
            insert_report(connection, kos_id, report_id)

        await self._database.run(work)

    async def submission(self, kos_id: int) -> Submission | None:
        """Return what was (or is to be) sent for this KOS, whole: report, study, structure."""
        query = (
            select(outbox.c.submission)
            .where(outbox.c.kos_id == kos_id, outbox.c.kind == PUBLISH)
            .order_by(outbox.c.id)
            .limit(1)
        )

        def work(connection: Connection) -> Submission | None:
            text = connection.execute(query).scalar_one_or_none()
            return None if text is None else codec.loads(text, Submission)

        return await self._database.read(work)

    async def depublished(self, kos_id: int) -> None:
        """The DMP has withdrawn this KOS: a request for it gets E1002 from now on (DB.SO.26 note 2).

        Does nothing unless it is PUBLISHED.
        """
        gone = (
            update(kos)
            .where(kos.c.id == kos_id, kos.c.state == _PUBLISHED)
            .values(state=KosState.DEPUBLISHED.value, changed_at=self._clock.now())
        )
        await self._database.run(lambda connection: connection.execute(gone).rowcount)

    async def counts(self) -> dict[KosState, int]:
        """Count the KOS by state; every state is there."""
        query = select(kos.c.state, func.count()).group_by(kos.c.state)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        found = {row[0]: row[1] for row in rows}
        return {state: found.get(state.value, 0) for state in KosState}

    # --- inside ---------------------------------------------------------------------------------

    async def _find(self, query: _Query, with_data: bool, **asked: object) -> list[ArchivedKos]:
        return await self._database.read(partial(_load, query.whole if with_data else query.light, asked))

    async def _one(self, query: _Query, with_data: bool, **asked: object) -> ArchivedKos | None:
        return next(iter(await self._find(query, with_data, **asked)), None)


def _load(query: Select[Any], asked: Mapping[str, object], connection: Connection) -> list[ArchivedKos]:
    rows = connection.execute(query, asked).all()
    reports = _reports(connection, [row.id for row in rows]) if rows else {}
    return [_kos(row, reports.get(row.id, ())) for row in rows]


def _reports(connection: Connection, ids: Iterable[int]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for kos_id, report_id in connection.execute(_REPORTS, {"ids": list(ids)}):
        found[kos_id] = (*found.get(kos_id, ()), report_id)
    return found


def _kos(row: AnyRow, reports: tuple[str, ...]) -> ArchivedKos:
    values = {"data": b"", "metadata": b"", **row._mapping}
    values["state"] = KosState(values["state"])
    return ArchivedKos(**values, report_ids=reports)
