"""KOS loaded by hand for test sessions (requirements.md 2.23, homologation mode).

A table of their own. The feed, the publication, the walks over the archive and its export work on other
tables and cannot see them: a test KOS is never sent to the DMP, never compared, never exported. Only the
answer to a request for images looks here, after the archive, and only while the mode is on.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

import attrs
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select

from drimbox.kos.reading import Manifest
from drimbox.model import KosState
from drimbox.ports import ArchivedKos, Clock
from drimbox.store.archive import MAX_CANDIDATES, Archive
from drimbox.store.database import AnyRow, Database
from drimbox.store.schema import homologation, kos

_LIGHT = tuple(column for column in homologation.c if column.name != "data")


@attrs.frozen
class LoadedCount:
    """How many test KOS there are, of how many patients."""

    kos: int
    patients: int


class LoadedKos:
    """The test KOS."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def load(self, site: str, manifest: Manifest, data: bytes) -> bool:
        """Keep one; False when it is here, or in the archive, already."""
        return await self._database.run(partial(_load, site, manifest, data, self._clock.now()))

    async def clear(self) -> int:
        """Remove them all; return how many."""
        return await self._database.run(
            lambda connection: connection.execute(delete(homologation)).rowcount
        )

    async def count(self) -> LoadedCount:
        """Count them."""
        query = select(func.count(), func.count(homologation.c.patient_ins.distinct()))
        row = await self._database.read(lambda connection: connection.execute(query).one())
        return LoadedCount(row[0], row[1])

    async def find(self, where: ColumnElement[bool], *, with_data: bool) -> list[ArchivedKos]:
        """Return those that meet a condition, newest first, numbered below zero."""
        columns = tuple(homologation.c) if with_data else _LIGHT
        query = select(*columns).where(where).order_by(homologation.c.id.desc()).limit(MAX_CANDIDATES)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_as_archived(row) for row in rows]


class ArchiveWithLoaded:
    """The archive as a delivery reads it, with the test KOS behind (a `delivery.KosArchive`)."""

    def __init__(self, archive: Archive, loaded: LoadedKos) -> None:
        self._archive = archive
        self._loaded = loaded

    async def candidates(self, site: str, study_uid: str, *, with_data: bool = False) -> list[ArchivedKos]:
        """Return every KOS a Consumer may know; those of the archive decide what became of a study."""
        real = await self._archive.candidates(site, study_uid, with_data=with_data)
        here = and_(homologation.c.study_uid == study_uid, homologation.c.site == site)
        return [*real, *await self._loaded.find(here, with_data=with_data)]

    async def get(self, kos_id: int) -> ArchivedKos:
        """Return one KOS with its bytes; `KeyError` when there is none."""
        if kos_id > 0:
            return await self._archive.get(kos_id)
        found = await self._loaded.find(homologation.c.id == -kos_id, with_data=True)
        if not found:
            raise KeyError(kos_id)
        return found[0]


def _load(site: str, manifest: Manifest, data: bytes, now: datetime, connection: Connection) -> bool:
    uid = manifest.sop_instance_uid
    for table in (kos, homologation):
        there = select(table.c.id).where(table.c.sop_instance_uid == uid)
        if connection.execute(there).first() is not None:
            return False
    connection.execute(
        insert(homologation).values(
            site=site,
            study_uid=manifest.study_uid,
            sop_instance_uid=uid,
            data=data,
            patient_ins=manifest.patient.ins,
            patient_ins_oid=manifest.patient.ins_oid,
            loaded_at=now,
        )
    )
    return True


def _as_archived(row: AnyRow) -> ArchivedKos:
    return ArchivedKos(
        id=-row.id,
        site=row.site,
        study_uid=row.study_uid,
        sop_instance_uid=row.sop_instance_uid,
        state=KosState.PUBLISHED,
        data=row._mapping.get("data", b""),
        metadata=b"",
        fingerprint="",
        structure_id="",
        patient_ins=row.patient_ins,
        patient_ins_oid=row.patient_ins_oid,
        patient_id="",
        report_ids=(),
        entry_uuid=None,
        created_at=row.loaded_at,
    )
