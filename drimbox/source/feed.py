"""From a stored report to a queued publication (requirements.md 4.2, steps 2 to 7).

Two steps, each a queue of the store. *Reading* turns a message into one job per StudyInstanceUID
(DB.SO.12). *Matching* makes the record match the PACS for one study: it asks the PACS what the study
holds, builds the manifest, compares it with the archive, and queues a submission when anything changed
(DB.SO.13). Either step may be killed at any moment: its row is still there, and doing it again changes
nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Protocol, TypeVar

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.cda.header import build_report
from drimbox.config import Config, Site, Structure
from drimbox.errors import (
    DrimboxError,
    FeedError,
    PacsCommunicationError,
    PublicationError,
    ReportNotInterpretable,
    StudyNotInPacs,
)
from drimbox.hl7.message import read_report_message
from drimbox.hl7.refusal import Hl7Refused
from drimbox.kos.compare import fingerprint
from drimbox.kos.manifest import build_manifest, remarks, retrieve_base
from drimbox.model import MessageAction, Report, ReportMessage, Study, new_uid
from drimbox.ports import (
    ArchivedKos,
    AuditTrail,
    Clock,
    FeedJob,
    InboxMessage,
    Notices,
    Pacses,
    Record,
    Submission,
)
from drimbox.source.backoff import backoff

T = TypeVar("T")
#: Runs CPU work off the reactor thread.
InThread = Callable[[Callable[[], T]], Awaitable[T]]


class MessageQueue(Protocol):
    """The inbox as the feed works on it."""

    async def message(self, message_id: int) -> InboxMessage:
        """Read a message again."""

    async def processed(self, message_id: int, *, result: str, studies: Iterable[str]) -> None:
        """End the message and create one job per study, in one transaction."""

    async def failed(self, message_id: int, code: str, detail: str) -> None:
        """End the message; it is kept."""


class JobQueue(Protocol):
    """The jobs, one per study of a report."""

    async def finish(self, job_id: int, result: str, detail: str = "") -> None:
        """End the job without a publication."""

    async def retry(self, job_id: int, at: datetime, error: str) -> None:
        """Put the job off."""

    async def unchanged(self, job_id: int, kos_id: int, report_id: str) -> None:
        """The archived KOS already says it all: add the report to it and end the job."""

    async def queue_publication(
        self,
        job_id: int,
        *,
        site: str,
        submission: Submission,
        metadata: bytes,
        fingerprint: str,
        series_uid: str = "",
    ) -> int:
        """Archive the KOS as pending, queue its submission and end the job, in one transaction."""


class LatestKos(Protocol):
    """The archive as the feed reads it."""

    async def latest(self, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the newest KOS of the study that the DMP holds or will hold."""


@attrs.frozen
class Doors:
    """What the feed needs from outside."""

    messages: MessageQueue
    jobs: JobQueue
    archive: LatestKos
    pacses: Pacses
    record: Record
    audit: AuditTrail
    notices: Notices
    clock: Clock
    in_thread: Callable[[Callable[[], object]], Awaitable[object]]


class Feed:
    """Reads reports, and makes the record match the PACS."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = {structure.id: structure for structure in config.structures}

    # -- reading -----------------------------------------------------------------------------------

    async def read(self, stored: InboxMessage) -> None:
        """Read one stored message: audit its reception, and say which studies it feeds (DB.SO.11, 43)."""
        doors = self._doors
        message: ReportMessage | None = None
        try:
            message, report = await self._parse(stored.raw)
            reason = self._why_not(message)
        except (ReportNotInterpretable, Hl7Refused) as error:
            await self._unreadable(stored, message, error)
            return
        await doors.audit.record(
            messages.report_received(
                message=message, report=report, ris_address=stored.peer, source_name=self._name(report)
            )
        )
        if reason:
            self.log.info("message {id} does not feed: {reason}", id=stored.id, reason=reason)
            await doors.messages.processed(stored.id, result=reason, studies=())
            return
        studies = dict.fromkeys(act.study_uid for act in report.acts)
        await doors.messages.processed(stored.id, result="feed", studies=studies)

    async def _parse(self, raw: bytes) -> tuple[ReportMessage, Report]:
        def work() -> tuple[ReportMessage, Report]:
            message = read_report_message(raw)
            return message, build_report(message)

        result = await self._doors.in_thread(work)
        assert isinstance(result, tuple)
        return result

    def _why_not(self, message: ReportMessage) -> str:
        """Return why a readable message does not feed, empty when it does (DB.SO.11)."""
        if message.to_dmp is False:
            return "destdmp-n"
        if message.to_dmp is None and self._config.hl7.missing_destdmp != "yes":
            raise ReportNotInterpretable("segment DESTDMP absent")
        if not message.ins_qualified:
            return "ins-non-qualified"
        if message.action is MessageAction.DELETE:
            raise ReportNotInterpretable(
                "dépublication non prise en charge : retirer le KOS du DMP à la main"
            )
        return ""

    async def _unreadable(
        self, stored: InboxMessage, message: ReportMessage | None, cause: Exception
    ) -> None:
        error = cause if isinstance(cause, DrimboxError) else ReportNotInterpretable(str(cause))
        self.log.warn("message {id} not interpretable: {code}", id=stored.id, code=error.code)
        await self._doors.audit.record(
            messages.report_received(
                message=message,
                report=None,
                ris_address=stored.peer,
                source_name=self._config.sites[0].wado_fqdn,
                error=error,
            )
        )
        await self._doors.notices.post(
            key=f"message-{stored.id}",
            code=error.code,
            text=f"Message {stored.id} ({stored.ris}) : {error}",
        )
        await self._doors.messages.failed(stored.id, error.code, error.detail)

    def _name(self, report: Report) -> str:
        """DNS name of the gateway for the audit: the WADO name of the first site of the structure."""
        for site in self._config.sites:
            if not site.structures or report.structure.id in site.structures:
                return site.wado_fqdn
        return self._config.sites[0].wado_fqdn

    # -- matching ----------------------------------------------------------------------------------

    async def match(self, job: FeedJob) -> None:
        """Make the record match the PACS for one study of one report."""
        doors = self._doors
        stored = await doors.messages.message(job.message_id)
        message, report = await self._parse(stored.raw)
        try:
            result = await self._match(job, message, report)
        except PacsCommunicationError as error:
            # The PACS is silent: the request waits, however long it takes (DB.SO.14).
            await self._failed(job, report, error)
            settings = self._config.feed
            wait = backoff(job.attempts + 1, settings.retry_first, settings.retry_max)
            await doors.jobs.retry(job.id, doors.clock.now() + wait, str(error))
            metrics.FEED_JOBS.labels("retry").inc()
        except DrimboxError as error:
            await self._failed(job, report, error)
            await doors.jobs.finish(job.id, error.code, error.detail)
            metrics.FEED_JOBS.labels(error.code).inc()
        else:
            metrics.FEED_JOBS.labels(result).inc()

    async def _match(self, job: FeedJob, message: ReportMessage, report: Report) -> str:
        structure = self._structure(report)
        site, study = await self._find(job, structure)
        latest = await self._doors.archive.latest(job.study_uid, with_data=False)
        print_ = fingerprint(
            report=report,
            study=study,
            site=site,
            structure_id=structure.id,
            visibility=message.visibility,
            retrieve_base=retrieve_base(site, self._config.wado),
        )
        if latest is not None and latest.fingerprint == print_ and latest.site == site.name:
            await self._doors.jobs.unchanged(job.id, latest.id, report.document_id)
            return "unchanged"
        await self._queue(job, message, report, structure, site, study, print_)
        return "queued"

    def _structure(self, report: Report) -> Structure:
        """Find the structure whose certificates publish this report (requirements.md 2.5)."""
        structure = self._structures.get(report.structure.id)
        if structure is None:
            # A FINESS is also given bare, without its prefix 1 (interfaces.md 0.1): a last resort.
            bare = report.structure.id
            prefixed = [self._structures.get("1" + bare), self._structures.get(bare[1:])]
            length = {9: prefixed[0], 10: prefixed[1] if bare.startswith("1") else None}
            structure = length.get(len(bare))
        if structure is None:
            raise PublicationError(f"aucun certificat configuré pour la structure {report.structure.id}")
        return structure

    async def _find(self, job: FeedJob, structure: Structure) -> tuple[Site, Study]:
        """Ask the PACS of the RIS, in configured order, until one holds the study (DB.SO.140, 14, 15)."""
        silent: PacsCommunicationError | None = None
        asked = []
        for site in self._config.sites:
            if site.ris and job.ris not in site.ris:
                continue
            if site.structures and structure.id not in site.structures:
                continue
            asked.append(site.pacs.name)
            try:
                study = await self._doors.pacses.find_study(site.pacs, job.study_uid)
            except PacsCommunicationError as error:
                silent = error
                continue
            if study is not None and study.instance_count:
                return site, study
        if silent is not None:
            raise silent
        if not asked:
            raise FeedError("aucun site configuré pour ce RIS et cette structure")
        raise StudyNotInPacs(f"PACS interrogés : {', '.join(asked)}")

    async def _queue(
        self,
        job: FeedJob,
        message: ReportMessage,
        report: Report,
        structure: Structure,
        site: Site,
        study: Study,
        print_: str,
    ) -> None:
        config = self._config
        root = config.drimbox.uid_root
        now = self._doors.clock.now()
        for remark in remarks(report, structure):
            self.log.warn("KOS of {study}: {remark}", study=study.study_uid, remark=remark)
        sop_instance_uid, series_uid = new_uid(root), new_uid(root)

        def work() -> tuple[Submission, bytes]:
            manifest = build_manifest(
                report=report,
                study=study,
                site=site,
                structure=structure,
                wado=config.wado,
                appliance=config.drimbox,
                sop_instance_uid=sop_instance_uid,
                series_uid=series_uid,
                created=now,
            )
            submission = Submission(
                kos=manifest,
                sop_instance_uid=sop_instance_uid,
                submission_uid=new_uid(root),
                signature_uid=new_uid(None),
                submission_time=now,
                report=report,
                visibility=message.visibility,
                secret_connection=message.secret_connection,
                patient_class=message.patient_class,
                study=study,
                structure_id=structure.id,
            )
            return submission, self._doors.record.metadata(structure, submission)

        made = await self._doors.in_thread(work)
        assert isinstance(made, tuple)
        submission, metadata = made
        await self._doors.jobs.queue_publication(
            job.id,
            site=site.name,
            submission=submission,
            metadata=metadata,
            fingerprint=print_,
            series_uid=series_uid,
        )

    async def _failed(self, job: FeedJob, report: Report, error: DrimboxError) -> None:
        """Tell the auditor each time, the administrator once (DB.SO.45, DB.SO.21)."""
        self.log.warn("study {study}: {code}", study=job.study_uid, code=error.code)
        await self._doors.audit.record(
            messages.kos_failed(
                report=report, study_uid=job.study_uid, source_name=self._name(report), error=error
            )
        )
        await self._doors.notices.post(
            key=f"{error.code}-{job.study_uid}", code=error.code, text=f"Examen {job.study_uid} : {error}"
        )
