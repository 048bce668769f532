"""Judging one study of a walk, without acting: by its site, or by the address its KOS gives.

Both use the very judgement of the feed (`judging`). What cannot be judged is *undecidable* and stays as it
is; only a site that cannot be asked is raised, for the walk to wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

from twisted.logger import Logger

from drimbox.config import Config, Site
from drimbox.errors import DrimboxError, PacsCommunicationError
from drimbox.kos.compare import difference
from drimbox.kos.manifest import retrieve_base
from drimbox.kos.reading import gives_address
from drimbox.model import Study
from drimbox.ports import ArchivedKos, Archives, Clock, FeedJob, Purpose
from drimbox.source.archived import ArchiveWitness
from drimbox.source.feed_doors import Doors, LatestKos
from drimbox.source.judging import Absent, Comparison, Judge, NotAnswered, Reading, Unheard, Witness
from drimbox.source.keynotes import KeyNotes, Marks
from drimbox.source.rejections import RejectionNotes
from drimbox.walks import Finding, Milestone, Verdict, WalkKind

InThread = Callable[[Callable[[], object]], Awaitable[object]]


class KnownJobs(Protocol):
    """The feed's queue as a walk uses it."""

    async def last(self, study_uid: str) -> FeedJob | None:
        """Return the last job of a study."""

    async def again(self, study_uid: str, purpose: Purpose = Purpose.MATCH) -> bool:
        """Reopen it for `purpose`; False when it is on its way."""


class KosArchive(LatestKos, Protocol):
    """The archive as a walk reads it."""

    async def get(self, kos_id: int) -> ArchivedKos:
        """Return one KOS."""


class SiteWitness:
    """Asks the sites themselves, each time (a `judging.Witness`)."""

    def __init__(
        self, archives: Archives, key_notes: KeyNotes | None, rejections: RejectionNotes, clock: Clock
    ) -> None:
        self._archives = archives
        self._key_notes = key_notes
        self._rejections = rejections
        self._clock = clock

    async def study(self, reading: Reading, site: Site) -> Study | None:
        """List the study. Raises `NotAnswered`."""
        try:
            return await self._archives[site.name].find_study(reading.job.study_uid)
        except PacsCommunicationError as error:
            raise self._silent(error.detail) from None

    async def marks(self, reading: Reading, site: Site, study: Study) -> Marks:
        """Find the key images. Raises `NotAnswered` when some notes cannot be fetched."""
        if self._key_notes is None:
            return Marks()
        marks = await self._key_notes.marks(self._archives[site.name], study)
        if not marks.complete:
            raise self._silent("objets clés non récupérés")
        return marks

    async def rejections(self, reading: Reading, site: Site, study: Study) -> frozenset[str]:
        """Find the rejection notes. Raises `NotAnswered` when some key objects cannot be fetched."""
        found = await self._rejections.among(study, self._archives[site.name])
        if not found.complete:
            raise self._silent("objets clés non récupérés")
        return found.notes

    def _silent(self, reason: str) -> NotAnswered:
        now: datetime = self._clock.now()
        return NotAnswered(now, reason)


class Examiner:
    """Judges studies by what `witness` says of them."""

    log = Logger()

    def __init__(self, judge: Judge, witness: Witness, jobs: KnownJobs, archive: KosArchive) -> None:
        self._judge = judge
        self._witness = witness
        self._jobs = jobs
        self._archive = archive

    async def examine(self, at: Milestone) -> Finding:
        """Judge one study. Raises `NotAnswered`."""
        try:
            return await self._examine(at)
        except DrimboxError as error:
            return Finding(Verdict.UNDECIDABLE, str(error))

    async def _examine(self, at: Milestone) -> Finding:
        job = await self._jobs.last(at.study_uid)
        if job is None:
            return Finding(Verdict.UNDECIDABLE, "aucun compte rendu connu")
        reading = await self._judge.read(job)
        if reading is Unheard.RETRACTED:
            return Finding(Verdict.RETRACTED, "plus aucun compte rendu ne cite l'examen")
        if not isinstance(reading, Reading):
            return Finding(Verdict.UNDECIDABLE, "aucun compte rendu lisible")
        found = await self._judge.compare(reading, self._witness)
        if isinstance(found, Absent):
            return Finding(Verdict.GONE)
        if found.same:
            return Finding(Verdict.UNCHANGED, site=found.site.name)
        return Finding(Verdict.CHANGED, await self._what(found), found.site.name)

    async def _what(self, found: Comparison) -> str:
        """Say what changed."""
        before = await self._archive.submission(found.latest.id) if found.latest is not None else None
        if before is not None:
            images = difference(before.study, found.study)
            if images:
                return str(images)
        if found.latest is not None and found.latest.site != found.site.name:
            return f"passé sur le site {found.site.name}"
        return "mêmes images ; adresse, compte rendu ou description différents"


class AddressExaminer:
    """Judges whether a KOS gives the address of today; `examiner` asks the archive only (DB.SO.31)."""

    def __init__(
        self, config: Config, site: Site, examiner: Examiner, archive: KosArchive, in_thread: InThread
    ) -> None:
        self._base = retrieve_base(site, config.wado)
        self._examiner = examiner
        self._archive = archive
        self._in_thread = in_thread

    async def examine(self, at: Milestone) -> Finding:
        """Judge one study. Never raises `NotAnswered`."""
        data = (await self._archive.get(at.kos_id)).data
        if await self._in_thread(lambda: gives_address(data, self._base)):
            return Finding(Verdict.UNCHANGED)
        finding = await self._examiner.examine(at)
        if finding.verdict is Verdict.GONE:
            return Finding(Verdict.UNDECIDABLE, "l'archive ne dit pas ce que contient l'examen")
        if finding.verdict is Verdict.UNCHANGED:
            return Finding(Verdict.CHANGED, "autre adresse")
        return finding


def make_examiner(
    config: Config, doors: Doors, jobs: KnownJobs, archive: KosArchive, kind: WalkKind, site: Site
) -> Examiner | AddressExaminer:
    """Return what judges the studies of a walk of this kind; `doors` are those of the feed."""
    judge = Judge(config, doors)
    if kind is WalkKind.RESYNC:
        witness = SiteWitness(doors.archives, doors.key_notes, doors.rejections, doors.clock)
        return Examiner(judge, witness, jobs, archive)
    examiner = Examiner(judge, ArchiveWitness(archive, doors.rejections, doors.in_thread), jobs, archive)
    return AddressExaminer(config, site, examiner, archive, doors.in_thread)
