"""What publication and removal share: questions to the DMP, its silences, and the ends of a row.

Who is to blame decides what follows. The DMP says no: the row ends and somebody must look. The DMP does
not answer, turns us away, or our own certificate or configuration is in the way: the row waits (`outage`),
however long it takes, because nothing is wrong with it. Every request that left is audited, with its answer
(SC.DMP/CONF.14); so is, now and then, that a row waits although nothing could leave (DB.SO.45).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit.messages import DmpExchange
from drimbox.config import Config, Structure
from drimbox.errors import DrimboxError, PatientNotInDmp, PublicationError
from drimbox.ports import (
    ArchivedKos,
    AuditTrail,
    Clock,
    DmpUnavailable,
    NotAdmitted,
    Record,
    Refused,
    RegistryEntry,
)
from drimbox.source.outage import STUCK_AFTER, Outage, OutageNotices
from drimbox.source.publication_audit import Item, PublicationAudit, Unanswered
from drimbox.source.structures import Structures

T = TypeVar("T")
APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"


class Outbox(Protocol):
    """The outbox as the exchanges with the DMP work on it."""

    async def begin(self, item_id: int) -> None:
        """Commit that an attempt begins."""

    async def retry(self, item_id: int, at: datetime, error: str, outcome_unknown: bool) -> None:
        """Put the row off."""

    async def published(self, item_id: int, entry_uuid: str | None, warnings: Sequence[str] = ()) -> None:
        """End the row: the DMP holds it."""

    async def removed(self, item_id: int, warnings: Sequence[str] = ()) -> None:
        """End the row: the DMP does not hold it any more."""

    async def refused(self, item_id: int, code: str, text: str) -> None:
        """End the row: the DMP will never do it."""


class PublishedKos(Protocol):
    """The archive as the publication reads it."""

    async def published(self, site: str, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the KOS the DMP holds now for this site and study."""

    async def doubtful(self, study_uid: str) -> list[ArchivedKos]:
        """Return the KOS of a study that the DMP may hold although their publication was given up."""


@attrs.frozen
class Doors:
    """What an exchange with the DMP needs from outside."""

    outbox: Outbox
    archive: PublishedKos
    record: Record
    audit: AuditTrail
    notices: OutageNotices
    clock: Clock


@attrs.define
class Attempt:
    """What one round of work on a row has come to."""

    item: Item
    #: What the row is about may have left in this round; and the DMP has answered it, whatever it said.
    begun: bool = False
    answered: bool = False


class CannotSend(Exception):
    """Our own certificate or configuration is in the way; the DMP has nothing to do with it."""

    def __init__(self, error: PublicationError) -> None:
        super().__init__(str(error))
        self.detail = error.detail


class Exchanges:
    """The talk of one gateway with the DMP, row by row."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = Structures(config)
        self.audit = PublicationAudit(config, doors.audit)
        self._dmp = self._outage("dmp-unavailable")
        #: By structure, for what hinders us before anything leaves.
        self._hindrances: dict[str, Outage] = {}

    def shut(self, item: Item) -> datetime | None:
        """Return until when a row has to wait, None when it may be tried now."""
        return self._dmp.shut() or self._hindrance(item.submission.structure_id).shut()

    def structure(self, item: Item) -> Structure:
        """Return the structure a row speaks for. Raises `CannotSend` when it is no longer configured."""
        structure = self._structures.find(item.submission.structure_id)
        if structure is None:
            # It was there when the report came: a mistake in the configuration must cost no row.
            raise CannotSend(PublicationError("aucun certificat configuré pour cette structure"))
        return structure

    async def find_entry(self, item: Item, structure: Structure, unique_id: str) -> RegistryEntry | None:
        """Ask what the DMP holds under an identifier."""
        return await self.ask(
            DmpExchange.SEARCH,
            item,
            structure,
            lambda: self._doors.record.find_entry(structure, item.submission.report, unique_id),
            unique_id,
        )

    async def ask(
        self,
        kind: DmpExchange,
        item: Item,
        structure: Structure,
        question: Callable[[], Awaitable[T]],
        unique_id: str = "",
    ) -> T:
        """Put a question to the DMP and audit it, each time that it left (SC.DMP/CONF.14).

        It is put once more when its connection was cut and had carried another one before.
        """
        try:
            return await self._ask(kind, item, structure, question(), unique_id)
        except DmpUnavailable as failure:
            if not failure.stale:
                raise
        return await self._ask(kind, item, structure, question(), unique_id)

    async def _ask(
        self, kind: DmpExchange, item: Item, structure: Structure, question: Awaitable[T], unique_id: str
    ) -> T:
        try:
            answer = await self.call(structure, question)
        except DmpUnavailable as failure:
            if failure.sent:
                await self.audit.asked(kind, item, unique_id, Unanswered(str(failure)))
            raise
        no = (
            PatientNotInDmp(f"{answer.code} {answer.text}".strip()) if isinstance(answer, Refused) else None
        )
        await self.audit.asked(kind, item, unique_id, no)
        return answer

    async def call(self, structure: Structure, call: Awaitable[T]) -> T:
        """Await an exchange; any answer means that the DMP and our certificates are well."""
        try:
            answer = await call
        except PublicationError as error:
            raise CannotSend(error) from error
        except NotAdmitted:
            # It is there, and does not want this structure.
            await self._dmp.answered()
            raise
        await self._dmp.answered()
        await self._hindrance(structure.id).answered()
        return answer

    # -- ends --------------------------------------------------------------------------------------

    async def give_up(self, item: Item, error: DrimboxError) -> None:
        """The DMP will never do it: tell the administrator (DB.SO.21), end the row."""
        await self._doors.notices.post(
            key=f"{error.code}-{item.study_uid}", code=error.code, text=f"Examen {item.study_uid} : {error}"
        )
        await self._doors.outbox.refused(item.id, error.code, error.detail)
        metrics.PUBLICATIONS.labels(error.code).inc()
        await self.forget(item)

    async def wait(self, item: Item, due: datetime) -> None:
        """The row waits with all the others."""
        await self._doors.outbox.retry(item.id, due, "en attente du DMP", item.outcome_unknown)

    async def unanswered(self, item: Item, error: DmpUnavailable, *, left: bool) -> None:
        """The DMP did not answer; `left` tells whether what the row is about may have reached it."""
        if isinstance(error, NotAdmitted):
            await self.hindered(item, error)
            return
        text = f"DMP indisponible, publications en attente : {error}"
        unknown = item.outcome_unknown or left
        await self._put_off(item, self._dmp, text, str(error), unknown, recorded=error.sent or left)

    async def hindered(self, item: Item, error: CannotSend | NotAdmitted) -> None:
        """Something of ours is in the way: the structure's rows wait until the administrator mends it."""
        structure_id = item.submission.structure_id
        text = f"Structure {structure_id} : {error} ; ses publications attendent"
        reason = error.detail if isinstance(error, CannotSend) else str(error)
        recorded = isinstance(error, NotAdmitted)
        outage = self._hindrance(structure_id)
        await self._put_off(item, outage, text, reason, item.outcome_unknown, recorded=recorded)

    async def forget(self, item: Item) -> None:
        """The row has ended: close what was said about its waiting."""
        outages = (self._dmp, self._hindrance(item.submission.structure_id))
        if max([outage.forget(item.id) for outage in outages]) >= STUCK_AFTER:
            await self._doors.notices.resolve(_stuck(item))

    async def _put_off(
        self, item: Item, outage: Outage, text: str, reason: str, outcome_unknown: bool, *, recorded: bool
    ) -> None:
        """Have the row wait; `recorded` says that the exchange which failed is in the audit trail."""
        put_off = await outage.failed(item.id, text)
        if put_off.recorded and not recorded:
            await self.audit.failed(item, Unanswered(reason), sent=False)
        if put_off.stuck:
            await self._doors.notices.post(
                key=_stuck(item),
                code="E007",
                text=f"Examen {item.study_uid} : publication sans succès après {put_off.failures} essais,"
                f" alors que d'autres passent : {reason}",
            )
        await self._doors.outbox.retry(item.id, put_off.due, reason, outcome_unknown)
        metrics.PUBLICATIONS.labels("retry").inc()

    def _outage(self, key: str) -> Outage:
        settings, doors = self._config.dmp, self._doors
        return Outage(key, "E007", doors.notices, doors.clock, settings.retry_first, settings.retry_max)

    def _hindrance(self, structure_id: str) -> Outage:
        if structure_id not in self._hindrances:
            self._hindrances[structure_id] = self._outage(f"publication-{structure_id}")
        return self._hindrances[structure_id]


def check_ours(entry: RegistryEntry, kos: bytes) -> None:
    """Compare what the DMP holds with a KOS of ours; hash and size of XDS are SHA-1 and bytes.

    An entry that does not tell them is ours by its identifier, which nobody else can have made. Raises
    `PublicationError` (E007).
    """
    digest = hashlib.sha1(kos, usedforsecurity=False).hexdigest()
    if entry.hash.lower() not in ("", digest) or entry.size not in (0, len(kos)):
        raise PublicationError("le DMP détient un autre document sous l'identifiant de ce KOS")


def _stuck(item: Item) -> str:
    return f"bloque-{item.study_uid}"
