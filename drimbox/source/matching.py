"""Makes the national record match the PACS for one study (requirements.md 4.2, steps 3 to 7).

Ask the PACS what the study holds, digest what a manifest would be made of, compare with the archive, and
queue a submission when anything changed (DB.SO.13), or a removal when no report speaks for the study any
more or its images are gone (DB.SO.26, DB.SO.97). A PACS that is silent, or a certificate that cannot
be used, keeps the request waiting for as long as it takes (`outage`); what the PACS or the report cannot
give ends it with its code.

The PACS that holds the published KOS is asked first and alone answers for it while it is silent: another
PACS with a copy would else put a second manifest of the same study beside the first one. And the
structure that published a study goes on publishing it, whoever signs the second reading, because the DMP
lets nobody else replace its document (interfaces.md 4.6).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config, Site, Structure
from drimbox.errors import (
    DrimboxError,
    FeedError,
    PacsCommunicationError,
    PublicationError,
    ReportNotInterpretable,
    StudyNotInPacs,
)
from drimbox.kos.compare import fingerprint
from drimbox.kos.manifest import build_manifest, remarks, retrieve_base
from drimbox.model import Report, ReportMessage, Study, new_uid
from drimbox.ports import (
    ArchivedKos,
    FeedJob,
    Removal,
    Speaker,
    Submission,
    Voice,
)
from drimbox.source.feed_doors import Doors
from drimbox.source.feed_identity import check_patient
from drimbox.source.filters import UidRootFilter
from drimbox.source.interpretation import Interpretation, interpret
from drimbox.source.keynotes import Marks
from drimbox.source.outage import STUCK_AFTER, Outage
from drimbox.source.structures import Structures

#: Times a job waits for key image notes that cannot be fetched; then the KOS goes without them.
_MARK_TRIES = 3


class _Waiting(Exception):
    """The job must wait until `due`; the text says for what, in French."""

    def __init__(self, due: datetime, reason: str) -> None:
        super().__init__(reason)
        self.due = due


class Matching:
    """Works on the jobs of the feed, one study each."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = Structures(config)
        self._pacses = {site.archive: self._outage(f"pacs-{site.archive}", "E003") for site in config.sites}
        self._certificates = {
            structure.id: self._outage(f"certificat-{structure.id}", "E007")
            for structure in config.structures
        }

    def _outage(self, key: str, code: str) -> Outage:
        settings, doors = self._config.feed, self._doors
        return Outage(key, code, doors.notices, doors.clock, settings.retry_first, settings.retry_max)

    async def match(self, job: FeedJob) -> None:
        """End the job as queued, unchanged, withdrawn or failed, or put it off.

        The report that counts is the one that speaks for the study now, be it another than the job's own:
        whatever came in between, in whatever order, every job of a study has the same end.
        """
        doors = self._doors
        speaker = await doors.reports.speaker(job.study_uid)
        if speaker is Voice.NONE_LEFT:
            metrics.FEED_JOBS.labels(await self._withdraw(job, None)).inc()
            await self._ended(job)
            return
        if isinstance(speaker, Speaker):
            job = attrs.evolve(job, message_id=speaker.message_id, ris=speaker.ris)
        stored = await doors.messages.message(job.message_id)
        read = await doors.in_thread(lambda: interpret(stored.raw, self._config.hl7))
        assert isinstance(read, Interpretation)
        message, report = read.message, read.report
        if read.changed:
            # A PACS named a study that no report ever cited.
            await doors.jobs.finish(job.id, "nothing")
            metrics.FEED_JOBS.labels("nothing").inc()
            return
        if message is None or report is None:
            # It fed when it was read: only another version of the gateway can think otherwise.
            await doors.jobs.finish(job.id, "E005", "message devenu illisible")
            return
        try:
            if read.error is not None or read.reason:
                raise read.error or ReportNotInterpretable(read.reason)
            result = await self._match(job, message, report)
        except _Waiting as waiting:
            await doors.jobs.retry(job.id, waiting.due, str(waiting))
            metrics.FEED_JOBS.labels("retry").inc()
            return
        except DrimboxError as error:
            await self._failed(job, report, error)
            await doors.jobs.finish(job.id, error.code, error.detail)
            metrics.FEED_JOBS.labels(error.code).inc()
        else:
            metrics.FEED_JOBS.labels(result).inc()
        await self._ended(job)

    async def _match(self, job: FeedJob, message: ReportMessage, report: Report) -> str:
        doors = self._doors
        named = self._structures.find(report.structure.id)
        if named is None:
            raise PublicationError(f"aucun certificat configuré pour la structure {report.structure.id}")
        before = await doors.archive.latest(job.study_uid, with_data=False)
        try:
            site, study = await self._find(job, report, named, before)
        except StudyNotInPacs:
            asked = {each.name for each in self._candidates(job, named, before)}
            if before is None or before.site not in asked:
                raise
            # No dead links: the PACS that had the images says that it has them no more (DB.SO.25, 190).
            return await self._withdraw(job, asked)
        check_patient(site, study, report)
        # Asked again: much may have happened to it while the PACS took its time.
        latest = await doors.archive.latest(job.study_uid, with_data=False)
        first = self._structures.find(latest.structure_id) if latest is not None else None
        structure = first or named
        marks = await self._marks(job, site, study)
        print_ = await doors.in_thread(
            lambda: fingerprint(
                report=report,
                study=study,
                site=site,
                structure_id=structure.id,
                visibility=message.visibility,
                retrieve_base=retrieve_base(site, self._config.wado),
                key_images=marks.images,
            )
        )
        assert isinstance(print_, str)
        # The digest holds the address of the site: a study that moved to another PACS has changed.
        if latest is not None and latest.fingerprint == print_:
            await doors.jobs.unchanged(job.id, latest.id, report.document_id)
            return "unchanged"
        await self._queue(job, message, report, structure, site, study, marks, print_)
        return "queued"

    async def _marks(self, job: FeedJob, site: Site, study: Study) -> Marks:
        """Find the key images; what cannot be fetched is waited for, a few times (DB.SO.194)."""
        notes = self._doors.key_notes
        if notes is None:
            return Marks()
        marks = await notes.marks(self._doors.archives[site.name], study)
        if not marks.complete and job.attempts < _MARK_TRIES:
            later = self._doors.clock.now() + timedelta(seconds=self._config.feed.retry_first)
            raise _Waiting(later, "notes d'images clés non récupérées")
        return marks

    # -- the PACS ----------------------------------------------------------------------------------

    async def _find(
        self, job: FeedJob, report: Report, structure: Structure, latest: ArchivedKos | None
    ) -> tuple[Site, Study]:
        """Ask the PACS of the RIS, in configured order, until one holds the study (DB.SO.140, 14, 15)."""
        sites = self._candidates(job, structure, latest)
        if not sites:
            raise FeedError("aucun site configuré pour ce RIS et cette structure")
        waits: list[datetime] = []
        for site in sites:
            outage = self._pacses[site.archive]
            due = outage.shut()
            if due is None:
                try:
                    study = await self._doors.archives[site.name].find_study(job.study_uid)
                except PacsCommunicationError as error:
                    text = f"PACS {site.archive} injoignable, examens en attente : {error}"
                    due = await self._unlucky(job, report, outage, error, text)
                else:
                    await outage.answered()
                    if study is not None:
                        # What stays inside is not in the KOS either (DB.SO.199).
                        study = UidRootFilter(site.excluded_uid_roots).study(study)
                    if study is not None and study.instance_count:
                        return site, study
            if due is not None:
                waits.append(due)
                if latest is not None and latest.site == site.name:
                    break
        if waits:
            raise _Waiting(min(waits), "PACS injoignable")
        raise StudyNotInPacs("PACS interrogés : " + ", ".join(site.archive for site in sites))

    def _candidates(self, job: FeedJob, structure: Structure, latest: ArchivedKos | None) -> list[Site]:
        sites = [
            site
            for site in self._config.sites
            if (not site.ris or job.ris in site.ris)
            and (not site.structures or structure.id in site.structures)
        ]
        return sorted(sites, key=lambda site: latest is None or site.name != latest.site)

    # -- withdrawal --------------------------------------------------------------------------------

    async def _withdraw(self, job: FeedJob, sites: Collection[str] | None) -> str:
        """Take back what the DMP holds of a study: nobody speaks for it, or its images are gone.

        The structure that published each manifest withdraws it (DB.SO.97).
        """
        root, now = self._config.drimbox.uid_root, self._doors.clock.now()

        def make(made: Submission) -> Removal:
            return Removal(
                sop_instance_uid=made.sop_instance_uid,
                submission_uid=new_uid(root),
                submission_time=now,
                report=made.report,
                patient_class=made.patient_class,
                structure_id=made.structure_id,
            )

        count = await self._doors.jobs.queue_removal(job.id, make, sites=sites)
        self.log.info("{count} KOS of {study} to be removed", count=count, study=job.study_uid)
        return "removal" if count else "nothing"

    # -- the submission ----------------------------------------------------------------------------

    async def _queue(
        self,
        job: FeedJob,
        message: ReportMessage,
        report: Report,
        structure: Structure,
        site: Site,
        study: Study,
        marks: Marks,
        print_: str,
    ) -> None:
        config, doors = self._config, self._doors
        root = config.drimbox.uid_root
        now = doors.clock.now()
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
                key_images=marks.images,
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
            return submission, doors.record.metadata(structure, submission)

        made = await self._make(job, report, structure, work)
        assert isinstance(made, tuple)
        submission, metadata = made
        await doors.jobs.queue_publication(
            job.id,
            site=site.name,
            submission=submission,
            metadata=metadata,
            fingerprint=print_,
            series_uid=series_uid,
        )

    async def _make(
        self, job: FeedJob, report: Report, structure: Structure, work: Callable[[], object]
    ) -> object:
        """Build and sign; a certificate that cannot be used today may be mended without a restart."""
        outage = self._certificates[structure.id]
        due = outage.shut()
        if due is None:
            try:
                made = await self._doors.in_thread(work)
            except PublicationError as error:
                text = f"Structure {structure.id} : {error} ; ses examens attendent"
                due = await self._unlucky(job, report, outage, error, text)
            else:
                await outage.answered()
                return made
        raise _Waiting(due, "certificat de signature inutilisable")

    # -- what is told ------------------------------------------------------------------------------

    async def _unlucky(
        self, job: FeedJob, report: Report, outage: Outage, error: DrimboxError, text: str
    ) -> datetime:
        """Note that `job` must wait for what is behind `outage`; return when it may try again."""
        put_off = await outage.failed(job.id, text)
        # An outage of days must not fill the trail: the first, the second, the fourth time ...
        if put_off.failures & (put_off.failures - 1) == 0:
            await self._audit_failure(job, report, error)
        if put_off.stuck:
            await self._notify(job, error)
        return put_off.due

    async def _failed(self, job: FeedJob, report: Report, error: DrimboxError) -> None:
        """Tell auditor and administrator (DB.SO.45, DB.SO.21)."""
        self.log.warn("study {study}: {code}", study=job.study_uid, code=error.code)
        await self._audit_failure(job, report, error)
        await self._notify(job, error)

    async def _audit_failure(self, job: FeedJob, report: Report, error: DrimboxError) -> None:
        structure = report.structure.id
        await self._doors.audit.record(
            messages.kos_failed(
                report=report,
                study_uid=job.study_uid,
                source_name=self._structures.source_name(structure),
                internal_id=self._structures.internal_id(structure),
                error=error,
            )
        )

    async def _notify(self, job: FeedJob, error: DrimboxError) -> None:
        await self._doors.notices.post(
            key=f"{error.code}-{job.study_uid}", code=error.code, text=f"Examen {job.study_uid} : {error}"
        )

    async def _ended(self, job: FeedJob) -> None:
        """The job waits for nothing any more: close what was said about its waiting."""
        for code, outages in (("E003", self._pacses), ("E007", self._certificates)):
            failures = [outage.forget(job.id) for outage in outages.values()]
            if any(count >= STUCK_AFTER for count in failures):
                await self._doors.notices.resolve(f"{code}-{job.study_uid}")
