"""From a queued submission to the national record (requirements.md 4.2 steps 8 to 13; architecture.md 4).

A submission is fixed before its first attempt. "Attempt begun" is committed before the first byte
leaves; when the answer of an attempt never came, the DMP is asked what it holds under our uniqueId
before anything is sent again. So a crash, a cut or a time-out at any point publishes exactly once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config, Structure
from drimbox.errors import DrimboxError, PatientNotInDmp, PublicationError
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    AuditTrail,
    Clock,
    DmpUnavailable,
    Notices,
    Record,
    Refused,
    RegistryEntry,
    Submission,
)
from drimbox.source.backoff import backoff

APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"


class Item(Protocol):
    """One row of the outbox."""

    @property
    def id(self) -> int: ...
    @property
    def site(self) -> str: ...
    @property
    def study_uid(self) -> str: ...
    @property
    def submission(self) -> Submission: ...
    @property
    def attempts(self) -> int: ...
    @property
    def outcome_unknown(self) -> bool: ...


class Outbox(Protocol):
    """The outbox as the publication works on it."""

    async def begin(self, item_id: int) -> None:
        """Commit that an attempt begins."""

    async def retry(self, item_id: int, at: datetime, error: str, outcome_unknown: bool) -> None:
        """Put the row off."""

    async def published(self, item_id: int, entry_uuid: str | None, warnings: Sequence[str] = ()) -> None:
        """End the row: the DMP holds it."""

    async def refused(self, item_id: int, code: str, text: str) -> None:
        """End the row: the DMP will never take it."""


class PublishedKos(Protocol):
    """The archive as the publication reads it."""

    async def published(self, site: str, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the KOS the DMP holds now for this site and study."""


@attrs.frozen
class Doors:
    """What a publication needs from outside."""

    outbox: Outbox
    archive: PublishedKos
    record: Record
    audit: AuditTrail
    notices: Notices
    clock: Clock


class Publication:
    """Sends submissions to the DMP until it has said yes, or no for good."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = {structure.id: structure for structure in config.structures}

    async def publish(self, item: Item) -> None:
        """Work on one row of the outbox until it is published, refused, or put off."""
        try:
            await self._publish(item)
        except DmpUnavailable as error:
            await self._put_off(item, error)
        except DrimboxError as error:
            await self._give_up(item, error)

    async def _publish(self, item: Item) -> None:
        submission = item.submission
        structure = self._structures.get(submission.structure_id)
        if structure is None:
            raise PublicationError(
                f"aucun certificat configuré pour la structure {submission.structure_id}"
            )
        if item.outcome_unknown and await self._already_there(item, structure):
            return
        replaces = await self._prepare(item, structure)
        await self._doors.outbox.begin(item.id)
        outcome = await self._doors.record.publish(structure, submission, replaces)
        if isinstance(outcome, Accepted):
            await self._done(
                item, await self._entry_uuid(structure, submission), outcome.warnings, replaces
            )
            return
        assert isinstance(outcome, Refused)
        if outcome.duplicate and await self._already_there(item, structure):
            return
        raise _refusal(outcome)

    async def _already_there(self, item: Item, structure: Structure) -> bool:
        """Ask the DMP what it holds under our uniqueId; end the row when it is ours.

        Raises `PublicationError` when it holds something else under that identifier.
        """
        submission = item.submission
        entry = await self._doors.record.find_entry(
            structure, submission.report, submission.sop_instance_uid
        )
        if entry is None:
            return False
        if not _is_ours(entry, submission):
            raise PublicationError("le DMP détient un autre document sous l'identifiant de ce KOS")
        await self._done(item, entry.entry_uuid, (), None)
        return True

    async def _prepare(self, item: Item, structure: Structure) -> str | None:
        """Return the entryUUID to replace; make sure the patient has a record when there is none."""
        submission = item.submission
        previous = await self._doors.archive.published(item.site, item.study_uid, with_data=False)
        if previous is not None:
            entry = await self._doors.record.find_entry(
                structure, submission.report, previous.sop_instance_uid
            )
            if entry is not None and entry.status == APPROVED:
                return entry.entry_uuid
            self.log.warn("the DMP holds no current KOS of {study} to replace", study=item.study_uid)
        outcome = await self._doors.record.patient_exists(structure, submission.report)
        if isinstance(outcome, Refused):
            raise PatientNotInDmp(f"{outcome.code} {outcome.text}".strip())
        return None

    async def _entry_uuid(self, structure: Structure, submission: Submission) -> str | None:
        """Ask for the registry's identifier of what was just published (DB.SO.22); it may come later."""
        try:
            entry = await self._doors.record.find_entry(
                structure, submission.report, submission.sop_instance_uid
            )
        except (DmpUnavailable, DrimboxError):
            return None
        return entry.entry_uuid if entry is not None else None

    # -- ends --------------------------------------------------------------------------------------

    async def _done(
        self, item: Item, entry_uuid: str | None, warnings: Sequence[str], replaces: str | None
    ) -> None:
        await self._doors.outbox.published(item.id, entry_uuid, warnings)
        metrics.PUBLICATIONS.labels("published").inc()
        self.log.info("KOS of {study} published", study=item.study_uid)
        await self._doors.audit.record(
            messages.kos_published(
                submission=item.submission,
                study_uid=item.study_uid,
                dmp=self._config.dmp.base_url,
                source_name=self._name(item),
                replaced=replaces is not None,
            )
        )

    async def _give_up(self, item: Item, error: DrimboxError) -> None:
        await self._doors.outbox.refused(item.id, error.code, error.detail)
        metrics.PUBLICATIONS.labels(error.code).inc()
        await self._tell(item, error)

    async def _put_off(self, item: Item, error: DmpUnavailable) -> None:
        settings = self._config.dmp
        wait = backoff(item.attempts + 1, settings.retry_first, settings.retry_max)
        await self._doors.outbox.retry(
            item.id, self._doors.clock.now() + wait, str(error), error.sent or item.outcome_unknown
        )
        metrics.PUBLICATIONS.labels("retry").inc()
        await self._doors.notices.post(
            key="dmp-unavailable", code="E007", text=f"DMP indisponible, publications en attente : {error}"
        )

    async def _tell(self, item: Item, error: DrimboxError) -> None:
        """Tell auditor and administrator (DB.SO.45, DB.SO.21)."""
        self.log.warn("KOS of {study} not published: {code}", study=item.study_uid, code=error.code)
        await self._doors.audit.record(
            messages.kos_failed(
                report=item.submission.report,
                study_uid=item.study_uid,
                source_name=self._name(item),
                error=error,
            )
        )
        await self._doors.notices.post(
            key=f"{error.code}-{item.study_uid}", code=error.code, text=f"Examen {item.study_uid} : {error}"
        )

    def _name(self, item: Item) -> str:
        return next((site.wado_fqdn for site in self._config.sites if site.name == item.site), item.site)


def _is_ours(entry: RegistryEntry, submission: Submission) -> bool:
    """Compare what the DMP holds with what we sent; hash and size of XDS are SHA-1 and bytes."""
    digest = hashlib.sha1(submission.kos, usedforsecurity=False).hexdigest()
    return entry.hash.lower() == digest and entry.size == len(submission.kos)


def _refusal(outcome: Refused) -> DrimboxError:
    text = f"{outcome.code} {outcome.text}".strip()
    return PatientNotInDmp(text) if outcome.unknown_patient else PublicationError(text)
