"""From a queued submission to the national record (requirements.md 4.2 steps 8 to 13; architecture.md 4).

A submission is fixed before its first attempt. "Attempt begun" is committed before the first byte
leaves; when the answer of an attempt never came, the DMP is asked what it holds under our uniqueId
before anything is sent again. So a crash, a cut or a time-out at any point publishes exactly once.

Who is to blame decides what follows. The DMP says no: the row ends with E006 or E007 and somebody must
look. The DMP does not answer, or our own certificate or configuration is in the way: the row waits
(`outage`), however long it takes, because nothing is wrong with it. Every request that left is audited,
with its answer (SC.DMP/CONF.14); a row ends after its audit and its notice are kept, so that a crash
between the two repeats them rather than losing them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit.messages import DmpExchange
from drimbox.config import Config, Structure
from drimbox.errors import DrimboxError, PatientMismatch, PatientNotInDmp, PublicationError
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    AuditTrail,
    Clock,
    DmpUnavailable,
    Outcome,
    Record,
    Refused,
    RegistryEntry,
    Submission,
)
from drimbox.source.outage import STUCK_AFTER, Outage, OutageNotices
from drimbox.source.publication_audit import Item, PublicationAudit, Unanswered
from drimbox.source.structures import Structures

T = TypeVar("T")
APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"


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
    notices: OutageNotices
    clock: Clock


class _CannotSend(Exception):
    """Our own certificate or configuration is in the way; the DMP has nothing to do with it."""

    def __init__(self, error: PublicationError) -> None:
        super().__init__(str(error))


@attrs.define
class _Attempt:
    """What one round of work on a row has come to."""

    item: Item
    #: TD2.1 may have left in this round.
    begun: bool = False


class Publication:
    """Sends submissions to the DMP until it has said yes, or no for good."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = Structures(config)
        self._audit = PublicationAudit(config, doors.audit)
        self._dmp = self._outage("dmp-unavailable")
        #: By structure, for what hinders us before anything leaves.
        self._hindrances: dict[str, Outage] = {}

    def _outage(self, key: str) -> Outage:
        settings, doors = self._config.dmp, self._doors
        return Outage(key, "E007", doors.notices, doors.clock, settings.retry_first, settings.retry_max)

    async def publish(self, item: Item) -> None:
        """Work on one row of the outbox until it is published, refused, or put off."""
        hindrance = self._hindrance(item.submission.structure_id)
        due = self._dmp.shut() or hindrance.shut()
        if due is not None:
            await self._doors.outbox.retry(item.id, due, "en attente du DMP", item.outcome_unknown)
            return
        attempt = _Attempt(item)
        try:
            await self._publish(attempt)
        except DmpUnavailable as error:
            await self._unanswered(attempt, error)
        except _CannotSend as error:
            text = f"Structure {item.submission.structure_id} : {error} ; ses publications attendent"
            await self._put_off(item, hindrance, text, str(error), item.outcome_unknown)
        except DrimboxError as error:
            await self._give_up(attempt, error)

    async def _publish(self, attempt: _Attempt) -> None:
        item = attempt.item
        submission = item.submission
        structure = self._structures.find(submission.structure_id)
        if structure is None:
            # It was there when the report came: a mistake in the configuration must cost no publication.
            raise _CannotSend(PublicationError("aucun certificat configuré pour cette structure"))
        if item.outcome_unknown and await self._already_there(item, structure):
            return
        replaces = await self._prepare(item, structure)
        await self._doors.outbox.begin(item.id)
        attempt.begun = True
        outcome = await self._call(structure, self._doors.record.publish(structure, submission, replaces))
        if isinstance(outcome, Accepted):
            entry_uuid = await self._entry_uuid(item, structure)
            await self._done(item, entry_uuid, outcome.warnings, replaced=replaces is not None)
            return
        assert isinstance(outcome, Refused)
        if outcome.duplicate:
            if await self._already_there(item, structure):
                return
            if item.attempts:
                # Nobody but us makes this identifier, and we have sent it before (interfaces.md 4.9).
                await self._done(item, None, (outcome.text,), replaced=replaces is not None)
                return
        raise _refusal(outcome)

    async def _already_there(self, item: Item, structure: Structure) -> bool:
        """Ask the DMP what it holds under our uniqueId; end the row when it is ours.

        Raises `PublicationError` when it holds something else under that identifier.
        """
        entry = await self._find_entry(item, structure, item.submission.sop_instance_uid)
        if entry is None:
            return False
        if not _is_ours(entry, item.submission):
            raise PublicationError("le DMP détient un autre document sous l'identifiant de ce KOS")
        previous = await self._doors.archive.published(item.site, item.study_uid, with_data=False)
        await self._done(item, entry.entry_uuid, (), replaced=previous is not None)
        return True

    async def _prepare(self, item: Item, structure: Structure) -> str | None:
        """Return the entryUUID to replace; make sure the patient has a record when there is none."""
        for previous in await self._previous(item):
            entry = await self._find_entry(item, structure, previous.sop_instance_uid)
            if entry is not None and entry.status in ("", APPROVED):
                return entry.entry_uuid
            self.log.warn("the DMP holds no current KOS of {study} to replace", study=item.study_uid)
        report = item.submission.report
        asked = self._doors.record.patient_exists(structure, report)
        outcome: Outcome = await self._exchange(DmpExchange.EXISTENCE, item, structure, asked)
        if isinstance(outcome, Refused):
            raise PatientNotInDmp(f"{outcome.code} {outcome.text}".strip())
        return None

    async def _previous(self, item: Item) -> list[ArchivedKos]:
        """Return the KOS this one takes the place of: its site's, else those of our other PACS.

        Another site counts when the same structure published there: the study has moved between two
        PACS, and two current manifests of one study would stand side by side.
        """
        submission = item.submission
        others = [site.name for site in self._config.sites if site.name != item.site]
        found = []
        for site in (item.site, *others):
            kos = await self._doors.archive.published(site, item.study_uid, with_data=False)
            if kos is None or (site != item.site and kos.structure_id != submission.structure_id):
                continue
            if kos.patient_ins != submission.report.patient.ins:
                # A document is only replaced within one record (ITI TF-3 4.2.2.2.3).
                await self._tell_other_patient(item)
                continue
            found.append(kos)
        return found

    async def _entry_uuid(self, item: Item, structure: Structure) -> str | None:
        """Ask for the registry's identifier of what was just published (DB.SO.22); it may come later."""
        try:
            entry = await self._find_entry(item, structure, item.submission.sop_instance_uid)
        except (DmpUnavailable, DrimboxError, _CannotSend):
            return None
        return entry.entry_uuid if entry is not None else None

    # -- asking ------------------------------------------------------------------------------------

    async def _find_entry(self, item: Item, structure: Structure, unique_id: str) -> RegistryEntry | None:
        question = self._doors.record.find_entry(structure, item.submission.report, unique_id)
        return await self._exchange(DmpExchange.SEARCH, item, structure, question, unique_id)

    async def _exchange(
        self,
        kind: DmpExchange,
        item: Item,
        structure: Structure,
        question: Awaitable[T],
        unique_id: str = "",
    ) -> T:
        """Put a question to the DMP and audit it, unless it never left (SC.DMP/CONF.14)."""
        try:
            answer = await self._call(structure, question)
        except DmpUnavailable as failure:
            if failure.sent:
                await self._audit.asked(kind, item, unique_id, Unanswered(str(failure)))
            raise
        no = (
            PatientNotInDmp(f"{answer.code} {answer.text}".strip()) if isinstance(answer, Refused) else None
        )
        await self._audit.asked(kind, item, unique_id, no)
        return answer

    async def _call(self, structure: Structure, call: Awaitable[T]) -> T:
        """Await an exchange; any answer means that the DMP and our certificates are well."""
        try:
            answer = await call
        except PublicationError as error:
            raise _CannotSend(error) from error
        await self._dmp.answered()
        await self._hindrance(structure.id).answered()
        return answer

    def _hindrance(self, structure_id: str) -> Outage:
        if structure_id not in self._hindrances:
            self._hindrances[structure_id] = self._outage(f"publication-{structure_id}")
        return self._hindrances[structure_id]

    # -- ends --------------------------------------------------------------------------------------

    async def _done(
        self, item: Item, entry_uuid: str | None, warnings: Sequence[str], *, replaced: bool
    ) -> None:
        await self._audit.published(item, replaced=replaced)
        await self._doors.outbox.published(item.id, entry_uuid, warnings)
        metrics.PUBLICATIONS.labels("published").inc()
        self.log.info("KOS of {study} published", study=item.study_uid)
        await self._forget(item)

    async def _give_up(self, attempt: _Attempt, error: DrimboxError) -> None:
        """The DMP will never take it: tell auditor and administrator (DB.SO.45, DB.SO.21), end the row."""
        item = attempt.item
        self.log.warn("KOS of {study} not published: {code}", study=item.study_uid, code=error.code)
        await self._audit.failed(item, error, sent=attempt.begun)
        await self._doors.notices.post(
            key=f"{error.code}-{item.study_uid}", code=error.code, text=f"Examen {item.study_uid} : {error}"
        )
        await self._doors.outbox.refused(item.id, error.code, error.detail)
        metrics.PUBLICATIONS.labels(error.code).inc()
        await self._forget(item)

    async def _unanswered(self, attempt: _Attempt, error: DmpUnavailable) -> None:
        item = attempt.item
        left = attempt.begun and error.sent
        if left:
            await self._audit.failed(item, Unanswered(str(error)), sent=True)
        text = f"DMP indisponible, publications en attente : {error}"
        await self._put_off(item, self._dmp, text, str(error), item.outcome_unknown or left)

    async def _put_off(
        self, item: Item, outage: Outage, text: str, reason: str, outcome_unknown: bool
    ) -> None:
        put_off = await outage.failed(item.id, text)
        if put_off.stuck:
            await self._doors.notices.post(
                key=_stuck(item),
                code="E007",
                text=f"Examen {item.study_uid} : publication sans succès après {put_off.failures} essais,"
                f" alors que d'autres passent : {reason}",
            )
        await self._doors.outbox.retry(item.id, put_off.due, reason, outcome_unknown)
        metrics.PUBLICATIONS.labels("retry").inc()

    async def _forget(self, item: Item) -> None:
        """The row has ended: close what was said about its waiting."""
        outages = (self._dmp, self._hindrance(item.submission.structure_id))
        if max([outage.forget(item.id) for outage in outages]) >= STUCK_AFTER:
            await self._doors.notices.resolve(_stuck(item))

    # -- what is told ------------------------------------------------------------------------------

    async def _tell_other_patient(self, item: Item) -> None:
        error = PatientMismatch(
            "un KOS de cet examen a été publié sous un autre INS ; il y reste et doit être retiré du DMP"
        )
        await self._doors.notices.post(
            key=f"{error.code}-{item.study_uid}", code=error.code, text=f"Examen {item.study_uid} : {error}"
        )


def _stuck(item: Item) -> str:
    return f"bloque-{item.study_uid}"


def _is_ours(entry: RegistryEntry, submission: Submission) -> bool:
    """Compare what the DMP holds with what we sent; hash and size of XDS are SHA-1 and bytes.

    An entry that does not tell them is ours by its identifier, which nobody else can have made.
    """
    digest = hashlib.sha1(submission.kos, usedforsecurity=False).hexdigest()
    return entry.hash.lower() in ("", digest) and entry.size in (0, len(submission.kos))


def _refusal(outcome: Refused) -> DrimboxError:
    text = f"{outcome.code} {outcome.text}".strip()
    return PatientNotInDmp(text) if outcome.unknown_patient else PublicationError(text)
