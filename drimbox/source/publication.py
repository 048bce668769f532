"""From a queued submission to the national record (requirements.md 4.2 steps 8 to 13; architecture.md 4).

A submission is fixed before its first attempt. "Attempt begun" is committed before the first byte
leaves; when the answer of an attempt never came, the DMP is asked what it holds under our uniqueId
before anything is sent again. So a crash, a cut or a time-out at any point publishes exactly once.

Removals take the same way (`removal`); what both share, silences above all, is in `dmp_exchange`. A row
ends after its audit and its notice are kept, so that a crash between the two repeats them rather than
losing them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit.messages import DmpExchange
from drimbox.config import Config, Structure
from drimbox.errors import DrimboxError, PatientMismatch, PatientNotInDmp, PublicationError
from drimbox.model import KosState
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    DmpUnavailable,
    Doubtful,
    Outcome,
    Refused,
    Removal,
    Submission,
)
from drimbox.source.dmp_exchange import APPROVED, Attempt, CannotSend, Doors, Exchanges, check_ours
from drimbox.source.publication_audit import Item, Unanswered
from drimbox.source.removal import Removals

#: What a registry may answer to a replacement that it has made already.
ALREADY_REPLACED = frozenset({"XDSRegistryDeprecatedDocumentError", "XDSReplaceFailed"})
__all__ = ["APPROVED", "Doors", "Publication"]


async def _nobody(site: str, study_uid: str) -> None:
    """Nobody wants to know."""


class Publication:
    """Sends submissions to the DMP until it has said yes, or no for good."""

    log = Logger()

    def __init__(
        self, config: Config, doors: Doors, removed: Callable[[str, str], Awaitable[None]] = _nobody
    ) -> None:
        """`removed` is told site and study of each manifest that the DMP does not hold any more."""
        self._config = config
        self._doors = doors
        self._exchanges = Exchanges(config, doors)
        self._removals = Removals(self._exchanges, doors, removed)

    async def publish(self, item: Item) -> None:
        """Work on one row of the outbox until it is done, refused, or put off."""
        due = self._exchanges.shut(item)
        if due is not None:
            await self._exchanges.wait(item, due)
            return
        attempt = Attempt(item)
        try:
            if isinstance(item.submission, Removal):
                await self._removals.remove(attempt, item.submission)
            else:
                await self._publish(attempt, item.submission)
        except DmpUnavailable as error:
            await self._unanswered(attempt, error)
        except CannotSend as error:
            await self._exchanges.hindered(item, error)
        except DrimboxError as error:
            await self._give_up(attempt, error)

    async def _publish(self, attempt: Attempt, submission: Submission) -> None:
        item = attempt.item
        structure = self._exchanges.structure(item)
        if item.outcome_unknown and await self._already_there(item, submission, structure):
            return
        replaces = await self._prepare(item, structure)
        await self._doors.outbox.begin(item.id)
        attempt.begun = True
        sending = self._doors.record.publish(structure, submission, replaces)
        outcome = await self._exchanges.call(structure, sending)
        attempt.answered = True
        if isinstance(outcome, Doubtful):
            if await self._already_there(item, submission, structure, outcome.held.warnings):
                return
            if isinstance(outcome.absent, DmpUnavailable):
                raise outcome.absent
            outcome = outcome.absent
        if isinstance(outcome, Accepted):
            entry_uuid = await self._entry_uuid(item, structure)
            await self._done(item, entry_uuid, outcome.warnings, replaced=replaces is not None)
            return
        assert isinstance(outcome, Refused)
        if outcome.duplicate or outcome.code in ALREADY_REPLACED:
            if await self._already_there(item, submission, structure):
                return
            if outcome.duplicate and item.attempts:
                # We have sent it before, and what the DMP holds cannot be seen: neither yes nor no.
                raise DmpUnavailable(
                    f"le DMP dit détenir ce KOS et ne le montre pas : {outcome.text}", sent=True
                )
        raise _refusal(outcome)

    async def _already_there(
        self, item: Item, submission: Submission, structure: Structure, warnings: Sequence[str] = ()
    ) -> bool:
        """Ask the DMP what it holds under our uniqueId; end the row when it is ours and in force.

        Raises `PublicationError` when it holds something else under that identifier, or has put ours out
        of force since: what it is said to hold must be what it holds.
        """
        entry = await self._exchanges.find_entry(item, structure, submission.sop_instance_uid)
        if entry is None:
            return False
        check_ours(entry, submission.kos)
        if entry.status not in ("", APPROVED):
            state = entry.status.rpartition(":")[2]
            raise PublicationError(f"le DMP a reçu ce KOS, et ne le détient plus en vigueur ({state})")
        previous = await self._doors.archive.published(item.site, item.study_uid, with_data=False)
        await self._done(item, entry.entry_uuid, warnings, replaced=previous is not None)
        return True

    async def _prepare(self, item: Item, structure: Structure) -> str | None:
        """Return the entryUUID to replace; make sure the patient has a record when there is none."""
        for previous in await self._previous(item):
            entry = await self._exchanges.find_entry(item, structure, previous.sop_instance_uid)
            if entry is not None and entry.status in ("", APPROVED):
                return entry.entry_uuid
            if previous.state is KosState.PUBLISHED:
                self.log.warn("the DMP holds no current KOS of {study} to replace", study=item.study_uid)
        report = item.submission.report
        outcome: Outcome = await self._exchanges.ask(
            DmpExchange.EXISTENCE,
            item,
            structure,
            lambda: self._doors.record.patient_exists(structure, report),
        )
        if isinstance(outcome, Refused):
            raise PatientNotInDmp(f"{outcome.code} {outcome.text}".strip())
        return None

    async def _previous(self, item: Item) -> list[ArchivedKos]:
        """Return the KOS this one takes the place of: its site's, else those of our other PACS.

        Another site counts when the same structure published there: the study has moved between two
        PACS, and two current manifests of one study would stand side by side. Last come those that were
        given up although an attempt may have reached the DMP.
        """
        submission, archive = item.submission, self._doors.archive
        others = [site.name for site in self._config.sites if site.name != item.site]
        published = [
            await archive.published(site, item.study_uid, with_data=False) for site in (item.site, *others)
        ]
        found = []
        for kos in (*published, *await archive.doubtful(item.study_uid)):
            if kos is None or (kos.site != item.site and kos.structure_id != submission.structure_id):
                continue
            if kos.patient_ins != submission.report.patient.ins:
                # A document is only replaced within one record (ITI TF-3 4.2.2.2.3). Its removal came
                # before this row, and the DMP refused it: two patients must not have one study.
                raise PatientMismatch(
                    "un KOS de cet examen reste publié sous un autre INS et doit être retiré du DMP"
                )
            found.append(kos)
        return found

    async def _entry_uuid(self, item: Item, structure: Structure) -> str | None:
        """Ask for the registry's identifier of what was just published (DB.SO.22); it may come later."""
        try:
            entry = await self._exchanges.find_entry(item, structure, item.submission.sop_instance_uid)
        except (DmpUnavailable, DrimboxError, CannotSend):
            return None
        return entry.entry_uuid if entry is not None else None

    # -- ends --------------------------------------------------------------------------------------

    async def _done(
        self, item: Item, entry_uuid: str | None, warnings: Sequence[str], *, replaced: bool
    ) -> None:
        await self._exchanges.audit.published(item, replaced=replaced)
        await self._doors.outbox.published(item.id, entry_uuid, warnings)
        metrics.PUBLICATIONS.labels("published").inc()
        self.log.info("KOS of {study} published", study=item.study_uid)
        await self._exchanges.forget(item)

    async def _give_up(self, attempt: Attempt, error: DrimboxError) -> None:
        """The DMP will never do it: tell auditor (DB.SO.45) and administrator, end the row."""
        item = attempt.item
        await self._exchanges.audit.failed(item, error, sent=attempt.begun)
        self.log.warn("DMP and {study}: given up with {code}", study=item.study_uid, code=error.code)
        await self._exchanges.give_up(item, error)

    async def _unanswered(self, attempt: Attempt, error: DmpUnavailable) -> None:
        # Once answered, it is a question about it that got none.
        left = attempt.begun and (error.sent or attempt.answered)
        if left:
            await self._exchanges.audit.failed(attempt.item, Unanswered(str(error)), sent=True)
        await self._exchanges.unanswered(attempt.item, error, left=left)


def _refusal(outcome: Refused) -> DrimboxError:
    text = f"{outcome.code} {outcome.text}".strip()
    return PatientNotInDmp(text) if outcome.unknown_patient else PublicationError(text)
