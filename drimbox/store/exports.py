"""What an export reads: the published manifests of a site, month by month (DB.SO.29).

The order is that of the SOP Instance UIDs: it depends on nothing but the manifests, so that an archive
loaded elsewhere and written again is the same.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, and_, func, select

from drimbox.model import KosState
from drimbox.store.database import Database
from drimbox.store.reports import silenced
from drimbox.store.schema import kos, kos_report
from drimbox.xdm.reports import ReportLine
from drimbox.xdm.writing import ExportedKos


class ArchiveListing:
    """The archive as an export reads it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def span(self, site: str) -> tuple[datetime, datetime] | None:
        """Return when the first and the last of a site's published manifests were published."""
        query = select(func.min(kos.c.published_at), func.max(kos.c.published_at)).where(
            kos.c.site == site, kos.c.state == KosState.PUBLISHED.value
        )
        first, last = await self._database.read(lambda connection: connection.execute(query).one())
        return None if first is None else (first, last)

    async def numbers(self, site: str, start: datetime, end: datetime) -> list[int]:
        """Return the numbers of the manifests published from `start` to before `end`, in order."""
        here = and_(
            kos.c.site == site,
            kos.c.state == KosState.PUBLISHED.value,
            kos.c.published_at >= start,
            kos.c.published_at < end,
        )
        query = select(kos.c.id).where(here).order_by(kos.c.sop_instance_uid)
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def load(self, kos_id: int) -> ExportedKos | None:
        """Read one manifest; None when it is no longer published."""

        def work(connection: Connection) -> ExportedKos | None:
            row = connection.execute(
                select(kos).where(kos.c.id == kos_id, kos.c.state == KosState.PUBLISHED.value)
            ).first()
            if row is None:
                return None
            listed = select(kos_report.c.report_id).where(kos_report.c.kos_id == kos_id)
            every = list(connection.execute(listed.order_by(kos_report.c.id)).scalars())
            # A report that was taken back is not attached to the study any more.
            left = silenced(connection, row.study_uid)
            reports = [each for each in every if each not in left] or every
            lines = (ReportLine(each, row.patient_ins, row.patient_ins_oid) for each in reports)
            return ExportedKos(row.sop_instance_uid, row.study_uid, row.data, row.metadata, tuple(lines))

        return await self._database.read(work)
