"""Makes the national record match the PACS for one study (requirements.md 4.2, steps 3 to 7).

Judge the study (`judging`), and queue a submission when anything changed (DB.SO.13), or a removal when no
report speaks for it any more or its images are gone (DB.SO.26, DB.SO.97). A PACS that is silent, or a
certificate that cannot be used, keeps the request waiting for as long as it takes (`outage`); what the
PACS or the report cannot give ends it with its code.

A job's purpose says how far it may go. One that a resynchronisation reopened withdraws nothing because a
study is absent, unless its removal was released, and then only over a link beyond doubt (DB.SO.28). One
that a change of address reopened asks no PACS: the archive says what the study holds (DB.SO.31).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from twisted.logger import Logger

from drimbox import metrics
from drimbox.audit import messages
from drimbox.config import Config, Site, Structure
from drimbox.errors import (
    DrimboxError,
    PacsCommunicationError,
    PatientMismatch,
    PublicationError,
    ReportNotInterpretable,
)
from drimbox.kos.manifest import build_manifest, remarks, retrieve_base
from drimbox.kos.reading import gives_address
from drimbox.model import Study, new_uid
from drimbox.ports import ABSENT, Count, FeedJob, Purpose, Removal, Submission
from drimbox.source.archived import ArchiveWitness
from drimbox.source.backoff import backoff
from drimbox.source.feed_doors import Doors
from drimbox.source.judging import Absent, Comparison, Judge, NotAnswered, Reading, Unheard
from drimbox.source.keynotes import Marks
from drimbox.source.outage import STUCK_AFTER, Outage
from drimbox.source.structures import Structures
from drimbox.source.unreadable import unreadable

#: Times a job waits for key objects that cannot be fetched; then the KOS is made of what is known.
_NOTE_TRIES = 3


class Matching:
    """Works on the jobs of the feed, one study each. It is its own `Witness`: it asks the PACS."""

    log = Logger()

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._judge = Judge(config, doors)
        self._archived = ArchiveWitness(doors.archive, doors.rejections, doors.in_thread)
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
        """End the job as queued, unchanged, withdrawn, absent or failed, or put it off."""
        doors = self._doors
        reading = await self._judge.read(job)
        if reading is Unheard.RETRACTED:
            metrics.FEED_JOBS.labels(await self._withdraw(job, None)).inc()
            await self._ended(job)
            return
        if reading is Unheard.NEVER_CITED:
            await doors.jobs.finish(job.id, "nothing")
            metrics.FEED_JOBS.labels("nothing").inc()
            return
        if reading is Unheard.UNREADABLE:
            await self._unreadable(job)
            return
        assert isinstance(reading, Reading)
        try:
            result = await self._match(reading)
        except NotAnswered as waiting:
            await doors.jobs.retry(job.id, waiting.due, str(waiting))
            metrics.FEED_JOBS.labels("retry").inc()
            return
        except DrimboxError as error:
            await self._failed(reading, error)
            failed = Count("STF04", reading.report.structure.id)
            await doors.jobs.finish(job.id, error.code, error.detail, count=failed)
            metrics.FEED_JOBS.labels(error.code).inc()
        else:
            metrics.FEED_JOBS.labels(result).inc()
        await self._ended(job)

    async def _match(self, reading: Reading) -> str:
        job = reading.job
        readdress = job.purpose is Purpose.READDRESS
        found = await self._judge.compare(reading, self._archived if readdress else self)
        if isinstance(found, Absent):
            return await self._absent(job, found)
        if found.latest is not None and found.same and not (readdress and await self._elsewhere(found)):
            digest = found.fingerprint if found.adopted else None
            await self._doors.jobs.unchanged(
                job.id, found.latest.id, reading.report.document_id, fingerprint=digest
            )
            return "unchanged"
        await self._check_patient(reading, found)
        await self._queue(reading, found)
        return "queued"

    async def _check_patient(self, reading: Reading, found: Comparison) -> None:
        """Let no report take a study out of the record of a patient of whom another report still stands.

        One of the two is about another study than it says, and nobody here can tell which. A report that
        was corrected, replaced or withdrawn stands no longer. Raises `PatientMismatch` (E001).
        """
        latest, report = found.latest, reading.report
        if latest is None or latest.patient_ins == report.patient.ins:
            return
        for message_id, document_id in (await self._doors.reports.standing(reading.job.study_uid)).items():
            ins = await self._judge.patient_of(message_id)
            # Of one that cannot be read any more, its document tells.
            if ins == latest.patient_ins or (not ins and document_id in latest.report_ids):
                raise PatientMismatch(
                    "un compte rendu toujours valable a fait publier cet examen sous un autre INS ;"
                    " rien n'est publié ni retiré du DMP"
                )

    async def _absent(self, job: FeedJob, absent: Absent) -> str:
        """The images are gone: withdraw, as far as the purpose of the job allows."""
        if job.purpose is Purpose.UPDATE:
            await self._doors.jobs.finish(job.id, ABSENT)
            return ABSENT
        if job.purpose is Purpose.WITHDRAW:
            for site in self._config.sites:
                doubt = await self._doors.doubt(site) if site.name in absent.sites else ""
                if doubt:
                    settings = self._config.feed
                    wait = backoff(job.attempts + 1, settings.retry_first, settings.retry_max)
                    raise NotAnswered(self._doors.clock.now() + wait, f"retrait remis : {doubt}")
        return await self._withdraw(job, absent.sites)

    async def _elsewhere(self, found: Comparison) -> bool:
        """Say whether the archived KOS itself, whatever its fingerprint, gives another address."""
        latest = await self._doors.archive.latest(found.study.study_uid)
        base = retrieve_base(found.site, self._config.wado)
        return latest is not None and bool(
            await self._doors.in_thread(lambda: not gives_address(latest.data, base))
        )

    # -- the PACS, as a witness --------------------------------------------------------------------

    async def study(self, reading: Reading, site: Site) -> Study | None:
        """Ask a PACS for the study, unless it is known to be silent. Raises `NotAnswered`."""
        outage = self._pacses[site.archive]
        due = outage.shut()
        if due is None:
            try:
                study = await self._doors.archives[site.name].find_study(reading.job.study_uid)
            except PacsCommunicationError as error:
                text = f"PACS {site.archive} injoignable, examens en attente : {error}"
                due = await self._unlucky(reading, outage, error, text)
            else:
                await outage.answered()
                return study
        raise NotAnswered(due, "PACS injoignable")

    async def marks(self, reading: Reading, site: Site, study: Study) -> Marks:
        """Find the key images; what cannot be fetched is waited for, a few times (DB.SO.194)."""
        notes = self._doors.key_notes
        if notes is None:
            return Marks()
        marks = await notes.marks(self._doors.archives[site.name], study)
        self._wait_for_notes(reading, marks.complete)
        return marks

    async def rejections(self, reading: Reading, site: Site, study: Study) -> frozenset[str]:
        """Find the rejection notes; key objects that cannot be fetched are waited for, a few times."""
        found = await self._doors.rejections.among(study, self._doors.archives[site.name])
        self._wait_for_notes(reading, found.complete)
        return found.notes

    def _wait_for_notes(self, reading: Reading, complete: bool) -> None:
        if not complete and reading.job.attempts < _NOTE_TRIES:
            later = self._doors.clock.now() + timedelta(seconds=self._config.feed.retry_first)
            raise NotAnswered(later, "objets clés non récupérés")

    # -- withdrawal --------------------------------------------------------------------------------

    async def _withdraw(self, job: FeedJob, sites: Collection[str] | None) -> str:
        """Take back what the DMP holds of a study: nobody speaks for it, or its images are gone.

        The structure that published each manifest withdraws it (DB.SO.97).
        """
        count = await self._doors.jobs.queue_removal(job.id, self._take_back(), sites=sites)
        self.log.info("{count} KOS of {study} to be removed", count=count, study=job.study_uid)
        return "removal" if count else "nothing"

    def _take_back(self) -> Callable[[Submission], Removal]:
        """Return what turns a submission into its removal."""
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

        return make

    # -- the submission ----------------------------------------------------------------------------

    async def _queue(self, reading: Reading, found: Comparison) -> None:
        config, doors = self._config, self._doors
        message, report = reading.message, reading.report
        structure, site, study = found.structure, found.site, found.study
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
                key_images=found.marks.images,
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

        made = await self._make(reading, structure, work)
        assert isinstance(made, tuple)
        submission, metadata = made
        await doors.jobs.queue_publication(
            reading.job.id,
            site=site.name,
            submission=submission,
            metadata=metadata,
            fingerprint=found.fingerprint,
            series_uid=series_uid,
            take_back=self._take_back(),
        )

    async def _make(self, reading: Reading, structure: Structure, work: Callable[[], object]) -> object:
        """Build and sign; a certificate that cannot be used today may be mended without a restart."""
        outage = self._certificates[structure.id]
        due = outage.shut()
        if due is None:
            try:
                made = await self._doors.in_thread(work)
            except PublicationError as error:
                text = f"Structure {structure.id} : {error} ; ses examens attendent"
                due = await self._unlucky(reading, outage, error, text)
            else:
                await outage.answered()
                return made
        raise NotAnswered(due, "certificat de signature inutilisable")

    # -- what is told ------------------------------------------------------------------------------

    async def _unlucky(self, reading: Reading, outage: Outage, error: DrimboxError, text: str) -> datetime:
        """Note that the job must wait for what is behind `outage`; return when it may try again."""
        job = reading.job
        put_off = await outage.failed(job.id, text)
        if put_off.recorded:
            await self._audit_failure(reading, error)
        if put_off.stuck:
            await self._notify(job, error)
        return put_off.due

    async def _failed(self, reading: Reading, error: DrimboxError) -> None:
        """Tell auditor and administrator (DB.SO.45, DB.SO.21)."""
        job = reading.job
        self.log.warn("study {study}: {code}", study=job.study_uid, code=error.code)
        await self._audit_failure(reading, error)
        await self._notify(job, error)

    async def _unreadable(self, job: FeedJob) -> None:
        """End a job whose report could be read once and cannot any more."""
        error = ReportNotInterpretable("message devenu illisible")
        self.log.error("study {study}: its message cannot be read any more", study=job.study_uid)
        await self._doors.audit.record(unreadable(self._structures, None, error, job.study_uid))
        await self._notify(job, error)
        await self._doors.jobs.finish(job.id, error.code, error.detail, count=Count("STF04"))
        metrics.FEED_JOBS.labels(error.code).inc()

    async def _audit_failure(self, reading: Reading, error: DrimboxError) -> None:
        structure = reading.report.structure.id
        await self._doors.audit.record(
            messages.kos_failed(
                report=reading.report,
                study_uid=reading.job.study_uid,
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
