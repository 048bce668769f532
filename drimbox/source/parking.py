"""Rows that are parked: the auditor and the administrator are told, each once (DB.SO.21, DB.SO.45).

The store parks a row in the transaction that counts its last failure; what is said of it is said from
here, and again until it is noted as said. Nothing is read of the content of the row: that may be what
breaks. The audit record is E008, with the patient and the study as far as they are known without it.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config
from drimbox.errors import Parked
from drimbox.ports import AuditTrail, Notices, ParkedRow, parked_key
from drimbox.source.structures import Structures

#: What a row of each queue is, for the administrator.
_WHAT = {"inbox": "message", "feed": "examen à publier", "outbox": "échange avec le DMP"}


class ParkedRows(Protocol):
    """Parked rows nobody was told about."""

    async def untold(self, limit: int = 100) -> list[ParkedRow]:
        """Return some of them."""

    async def told(self, row: ParkedRow) -> None:
        """Note that this one was told."""


class Parking:
    """Tells of rows that were parked."""

    log = Logger()

    def __init__(self, config: Config, rows: ParkedRows, audit: AuditTrail, notices: Notices) -> None:
        self._structures = Structures(config)
        self._rows = rows
        self._audit = audit
        self._notices = notices
        self._telling: Deferred[None] | None = None
        self._again = False

    def wake(self) -> None:
        """Something may have been parked: tell, one after the other, whatever breaks meanwhile."""
        self._again = True
        if self._telling is None:
            self._telling = Deferred.fromCoroutine(self._tell_on())
            self._telling.addErrback(lambda failure: self.log.failure("parked rows not told", failure))
            self._telling.addCallback(self._told)

    async def tell_again(self) -> None:
        """Tell of what could not be told when it was parked."""
        self.wake()

    async def tell(self) -> None:
        """Tell of every parked row that nobody was told about. Raises what audit or store raise."""
        while found := await self._rows.untold():
            for row in found:
                await self._tell(row)

    def _told(self, _: object) -> None:
        self._telling = None

    async def _tell_on(self) -> None:
        while self._again:
            self._again = False
            await self.tell()

    async def _tell(self, row: ParkedRow) -> None:
        error = Parked(f"{_WHAT[row.queue]} mis de côté : {row.error}")
        source_name = self._structures.source_name(row.structure_id)
        internal_id = self._structures.internal_id(row.structure_id)
        if row.queue == "inbox":
            event = messages.report_received(
                message=None, report=None, ris_address=row.peer, source_name=source_name, error=error
            )
        else:
            event = messages.feeding_broken(
                row=row, error=error, source_name=source_name, internal_id=internal_id
            )
        await self._audit.record(event)
        if not row.dropped:
            await self._notify(row, error)
        metrics.PARKED.labels(row.queue).inc()
        self.log.error("row {id} of {queue} parked: {error}", id=row.id, queue=row.queue, error=row.error)
        await self._rows.told(row)

    async def _notify(self, row: ParkedRow, error: Parked) -> None:
        about = f"Examen {row.study_uid}, " if row.study_uid else f"RIS {row.ris}, "
        hint = f"drimbox queue show {row.queue} {row.id}"
        text = f"{about}file {row.queue}, ligne {row.id} : {error} ({hint})"
        await self._notices.post(key=parked_key(row.queue, row.id), code=error.code, text=text)
