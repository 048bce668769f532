"""What the national record should hold of one study, and whether it does: judged, never acted upon.

One judgement serves everybody: the feed (`matching`), which then acts, and the walks over the archive
(`resync`), which may only want to know (DB.SO.28). The report that speaks for the study says for whom, by
which structure and at which sites; a `Witness` says what the study holds: its PACS, or the archive itself
when only an address has changed (DB.SO.31).

The site that holds the published KOS is asked first and alone answers for it while it is silent: another
PACS with a copy would else put a second manifest of the same study beside the first one. And the
structure that published a study goes on publishing it, whoever signs the second reading, because the DMP
lets nobody else replace its document (interfaces.md 4.6).
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Protocol

import attrs

from drimbox.config import Config, Site, Structure
from drimbox.errors import DrimboxError, FeedError, PublicationError, ReportNotInterpretable, StudyNotInPacs
from drimbox.kos.compare import fingerprint
from drimbox.kos.manifest import retrieve_base
from drimbox.model import Report, ReportMessage, Study
from drimbox.ports import IMPORTED, ArchivedKos, FeedJob, Speaker, Voice
from drimbox.source.adoption import is_adoptable, same_content
from drimbox.source.feed_doors import Doors
from drimbox.source.feed_identity import check_patient
from drimbox.source.filters import UidRootFilter, restricted
from drimbox.source.interpretation import Interpretation, interpret
from drimbox.source.keynotes import Marks
from drimbox.source.structures import Structures


class Unheard(enum.Enum):
    """Why no report says what the record should hold of a study."""

    #: All that cited it were taken back: the record should hold nothing.
    RETRACTED = "retracted"
    #: A PACS named it, no report ever did.
    NEVER_CITED = "never cited"
    #: Its message cannot be read any more.
    UNREADABLE = "unreadable"


@attrs.frozen
class Reading:
    """The report that speaks for a study; `job` is that of the study, as if it came from that report."""

    job: FeedJob
    message: ReportMessage
    report: Report
    #: Why it cannot count although it can be read.
    trouble: DrimboxError | None = None


@attrs.frozen
class Absent:
    """No site that may hold the study does, the one of its published KOS among them."""

    sites: frozenset[str]
    latest: ArchivedKos


@attrs.frozen
class Comparison:
    """What a manifest would be made of now, beside the newest one of the archive."""

    site: Site
    study: Study
    marks: Marks
    structure: Structure
    fingerprint: str
    #: None when the study has no KOS yet.
    latest: ArchivedKos | None
    #: An archive of another DRIMbox brought the newest one, and it is what we would publish (DB.SO.30).
    adopted: bool = False

    @property
    def same(self) -> bool:
        """True when the archived KOS already says it all."""
        return self.adopted or (self.latest is not None and self.latest.fingerprint == self.fingerprint)


class NotAnswered(Exception):
    """Nobody can tell now what the study holds: ask again at `due`. The text says why, in French."""

    def __init__(self, due: datetime, reason: str) -> None:
        super().__init__(reason)
        self.due = due


class Witness(Protocol):
    """Tells what a study holds at a site. Its methods raise `NotAnswered` when it cannot tell now."""

    async def study(self, reading: Reading, site: Site) -> Study | None:
        """List the study, or None when the site does not hold it."""

    async def marks(self, reading: Reading, site: Site, study: Study) -> Marks:
        """Return the key images of what `study` listed (DB.SO.194)."""

    async def rejections(self, reading: Reading, site: Site, study: Study) -> frozenset[str]:
        """Return which instances of what `study` listed are rejection notes."""


class Judge:
    """Judges studies by the report that speaks for each."""

    def __init__(self, config: Config, doors: Doors) -> None:
        self._config = config
        self._doors = doors
        self._structures = Structures(config)

    async def read(self, job: FeedJob) -> Reading | Unheard:
        """Return what the report that speaks for the study says now, be it another than the job's own.

        Whatever came in between, in whatever order, every job of a study has the same end.
        """
        doors = self._doors
        speaker = await doors.reports.speaker(job.study_uid)
        if speaker is Voice.NONE_LEFT:
            return Unheard.RETRACTED
        if isinstance(speaker, Speaker):
            job = attrs.evolve(job, message_id=speaker.message_id, ris=speaker.ris)
        stored = await doors.messages.message(job.message_id)
        read = await doors.in_thread(lambda: interpret(stored.raw, self._config.hl7))
        assert isinstance(read, Interpretation)
        if read.changed:
            return Unheard.NEVER_CITED
        if read.message is None or read.report is None:
            # It fed when it was read: only another version of the gateway can think otherwise.
            return Unheard.UNREADABLE
        trouble = read.error or (ReportNotInterpretable(read.reason) if read.reason else None)
        return Reading(job, read.message, read.report, trouble)

    async def patient_of(self, message_id: int) -> str:
        """Return the INS of the report that a message carries, empty when it cannot be read."""
        stored = await self._doors.messages.message(message_id)
        read = await self._doors.in_thread(lambda: interpret(stored.raw, self._config.hl7))
        assert isinstance(read, Interpretation)
        return read.report.patient.ins if read.report is not None else ""

    async def compare(self, reading: Reading, witness: Witness) -> Comparison | Absent:
        """Compare what the record should hold of the study with the newest KOS of the archive.

        Raises the coded errors of what the report or the PACS cannot give, and whatever `witness` raises.
        """
        doors, job, report = self._doors, reading.job, reading.report
        if reading.trouble is not None:
            raise reading.trouble
        named = self._structures.find(report.structure.id)
        if named is None:
            raise PublicationError(f"aucun certificat configuré pour la structure {report.structure.id}")
        before = await doors.archive.latest(job.study_uid, with_data=False)
        sites = self._candidates(job, named, before)
        try:
            site, study = await self._find(reading, witness, sites, before)
        except StudyNotInPacs:
            asked = frozenset(each.name for each in sites)
            if before is None or before.site not in asked:
                raise
            # No dead links: the PACS that had the images says that it has them no more (DB.SO.25, 190).
            return Absent(asked, before)
        check_patient(site, study, report)
        marks = await witness.marks(reading, site, study)
        # Asked again: much may have happened to it while the PACS took its time.
        latest = await doors.archive.latest(job.study_uid, with_data=False)
        first = self._structures.find(latest.structure_id) if latest is not None else None
        structure = first or named
        # The digest holds the address of the site: a study that moved to another PACS has changed.
        print_ = await doors.in_thread(
            lambda: fingerprint(
                report=report,
                study=study,
                site=site,
                structure_id=structure.id,
                visibility=reading.message.visibility,
                retrieve_base=retrieve_base(site, self._config.wado),
                key_images=marks.images,
            )
        )
        assert isinstance(print_, str)
        adopted = latest is not None and await self._adoptable(job, latest, site, study, marks)
        return Comparison(site, study, marks, structure, print_, latest, adopted)

    async def _adoptable(
        self, job: FeedJob, latest: ArchivedKos, site: Site, study: Study, marks: Marks
    ) -> bool:
        """Say whether what an archive brought of this study is what we would publish."""
        if latest.site != site.name or not is_adoptable(latest, job.ris):
            return False
        kos, base = await self._doors.archive.get(latest.id), retrieve_base(site, self._config.wado)
        return bool(await self._doors.in_thread(lambda: same_content(kos.data, study, base, marks.images)))

    async def _find(
        self, reading: Reading, witness: Witness, sites: list[Site], latest: ArchivedKos | None
    ) -> tuple[Site, Study]:
        """Ask the sites of the RIS, in configured order, until one holds the study (DB.SO.140, 14, 15)."""
        if not sites:
            raise FeedError("aucun site configuré pour ce RIS et cette structure")
        silences: list[NotAnswered] = []
        for site in sites:
            try:
                study = await witness.study(reading, site)
            except NotAnswered as silence:
                silences.append(silence)
                if latest is not None and latest.site == site.name:
                    break
                continue
            if study is not None:
                study = await self._listed(reading, witness, site, study)
                if study.instance_count:
                    return site, study
        if silences:
            raise min(silences, key=lambda silence: silence.due)
        raise StudyNotInPacs("PACS interrogés : " + ", ".join(site.archive for site in sites))

    async def _listed(self, reading: Reading, witness: Witness, site: Site, study: Study) -> Study:
        """Return what a KOS lists of a study that a site holds."""
        # What stays inside is not in the KOS either (DB.SO.199).
        study = UidRootFilter(site.excluded_uid_roots).study(study)
        if site.list_rejection_notes:
            return study
        notes = await witness.rejections(reading, site, study)
        return restricted(study, lambda one: one.sop_instance_uid not in notes)

    def _candidates(self, job: FeedJob, structure: Structure, latest: ArchivedKos | None) -> list[Site]:
        sites = [
            site
            for site in self._config.sites
            if (_loaded_at(site, latest) if job.ris == IMPORTED else not site.ris or job.ris in site.ris)
            and (not site.structures or structure.id in site.structures)
        ]
        return sorted(sites, key=lambda site: latest is None or site.name != latest.site)


def _loaded_at(site: Site, latest: ArchivedKos | None) -> bool:
    """Say whether a site is the one that the archive of a study was loaded for."""
    return latest is not None and latest.site == site.name
