"""Loading the archive of another DRIMbox of the same site (DB.SO.30).

No exchange with the DMP is made or queued here: the record already holds what is loaded. What it says is
checked later, by a resynchronisation. Each manifest is its own transaction, so that a load may be stopped,
killed and begun again; what happened to each is a line of a report on disk.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.config import Config, Site
from drimbox.ports import Clock, InThread
from drimbox.source.archiveexport import os_reason
from drimbox.source.jobs import JobFailed, Progress
from drimbox.source.structures import Structures
from drimbox.xdm import names
from drimbox.xdm.checking import RefusedKos, TakenKos, check_set
from drimbox.xdm.opening import ArchiveRefused, FileRefused, SetArchive, find_archives, open_archive
from drimbox.xdm.rebuilding import structure_of
from drimbox.xdm.takeover import Fate, Takeover, takeover

#: Lines of refusals in the result; the report on disk has them all.
_MAX_SHOWN = 100
#: Paths of one load.
MAX_PATHS = 200
_COLUMNS = ("archive", "jeu", "fichier", "examen", "kos", "sort", "motif")


class Imports(Protocol):
    """The store as a load writes it."""

    async def take(self, record: Takeover) -> Fate:
        """Keep one manifest and say what became of it."""

    async def fate(self, record: Takeover) -> Fate:
        """Say what `take` would do."""


@attrs.frozen
class Line:
    """What became of one manifest."""

    archive: str
    set_name: str
    file: str
    study_uid: str
    sop_instance_uid: str
    fate: Fate
    reason: str

    def cells(self) -> tuple[str, ...]:
        """Return its cells in the report."""
        return (
            *(self.archive, self.set_name, self.file, self.study_uid, self.sop_instance_uid),
            *(self.fate.value, self.reason),
        )


class ArchiveImport:
    """Loads archives into one site."""

    log = Logger()

    def __init__(
        self, config: Config, imports: Imports, in_thread: InThread, clock: Clock, reports: Path
    ) -> None:
        """`reports` is the folder where each load leaves its report."""
        self._structures = Structures(config)
        self._imports = imports
        self._in_thread = in_thread
        self._clock = clock
        self._reports = reports

    async def run(
        self, progress: Progress, *, site: Site, paths: Sequence[Path], dry_run: bool = False
    ) -> Mapping[str, Any]:
        """Load what is at these paths of the server, in the order of the months.

        Returns `counts` by fate, `archives` that could not be opened, the first `refused` manifests, how
        many were taken with a warning, and where the `report` is. Raises `JobFailed`, `JobStopped`.
        """
        try:
            archives = await self._in_thread(lambda: _archives(paths))
            report = await self._in_thread(lambda: _Report(self._reports, self._clock, dry_run))
        except ArchiveRefused as refusal:
            raise JobFailed(str(refusal)) from None
        except OSError as error:
            raise JobFailed(f"rapport impossible à écrire : {os_reason(error)}") from None
        unusable: list[Mapping[str, str]] = []
        try:
            for path in archives:
                try:
                    await self._archive(progress, site, path, report, dry_run)
                except ArchiveRefused as refusal:
                    unusable.append({"archive": path.name, "reason": str(refusal)})
        finally:
            await self._in_thread(report.close)
        return {
            "site": site.name,
            "dry_run": dry_run,
            "archives": len(archives),
            "unusable": unusable,
            "counts": {fate.value: report.counts[fate] for fate in Fate},
            "warnings": report.warnings,
            "refused": report.shown,
            "report": str(report.path),
        }

    async def _archive(
        self, progress: Progress, site: Site, path: Path, report: _Report, dry_run: bool
    ) -> None:
        opened = open_archive(path)
        archive = await self._in_thread(lambda: _enter(opened))
        try:
            month = names.archive_month(path.name)
            progress.total += len(archive.sets)
            for name in archive.sets:
                lines = []
                for found in await self._in_thread(partial(self._judge, archive, name)):
                    fate, reason = await self._take(site, found, month, dry_run)
                    lines.append(_line(path.name, name, found, fate, reason))
                await self._in_thread(_noting(report, lines))
                progress.step()
        finally:
            await self._in_thread(lambda: opened.__exit__(None, None, None))
        self.log.info("{name}: {sets} sets looked at", name=path.name, sets=len(archive.sets))

    def _judge(self, archive: SetArchive, name: str) -> list[TakenKos | RefusedKos]:
        """Read one set and check it, in a thread; whatever is wrong with it costs no other."""
        try:
            return check_set(archive.files(name))
        except ArchiveRefused:
            raise
        except FileRefused as refusal:
            return [RefusedKos("", str(refusal))]
        except Exception:
            self.log.failure("set {name} broke its reader", name=name, failure=Failure())
            return [RefusedKos("", "jeu illisible (erreur interne, voir le journal)")]

    async def _take(
        self, site: Site, found: TakenKos | RefusedKos, month: names.Month | None, dry_run: bool
    ) -> tuple[Fate, str]:
        """Keep one manifest; return what became of it, and what is to be said about it."""
        if isinstance(found, RefusedKos):
            return Fate.REFUSED, found.reason
        publisher = structure_of(found)
        structure = self._structures.find(publisher.id)
        if not publisher.id:
            return Fate.REFUSED, "structure absente de METADATA.XML : personne ne pourrait le mettre à jour"
        structure_id = structure.id if structure is not None else publisher.id
        try:
            record = await self._in_thread(
                lambda: takeover(found, site=site.name, structure_id=structure_id, month=month)
            )
        except Exception:
            self.log.failure("{file} broke its reader", file=found.file, failure=Failure())
            return Fate.REFUSED, "jeu illisible (erreur interne, voir le journal)"
        fate = await (self._imports.fate(record) if dry_run else self._imports.take(record))
        remarks = list(found.warnings)
        if structure is None:
            remarks.append(f"structure {publisher.id} sans certificat ici : ni mise à jour ni retrait")
        if fate is Fate.OLDER:
            remarks.append("un KOS plus récent de cet examen est déjà là ; vérifier ce que le DMP détient")
        return fate, " ; ".join(remarks)


class _Report:
    """The report on disk, and what is shown of it."""

    def __init__(self, folder: Path, clock: Clock, dry_run: bool) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        stamp = f"{clock.now():%Y%m%d-%H%M%S-%f}"
        self.path = folder / f"import-{stamp}{'-essai' if dry_run else ''}.csv"
        self.counts: Counter[Fate] = Counter()
        self.warnings = 0
        self.shown: list[Mapping[str, str]] = []
        self._file: IO[str] = self.path.open("x", encoding="utf-8-sig", newline="")
        self._writer = csv.writer(self._file, delimiter=";", lineterminator="\r\n")
        self._writer.writerow(_COLUMNS)

    def note(self, lines: Sequence[Line]) -> None:
        """Write what became of the manifests of one set."""
        for line in lines:
            self.counts[line.fate] += 1
            self.warnings += bool(line.reason) and line.fate is not Fate.REFUSED
            if line.fate in (Fate.REFUSED, Fate.ELSEWHERE, Fate.OLDER) and len(self.shown) < _MAX_SHOWN:
                self.shown.append(dict(zip(_COLUMNS, line.cells(), strict=True)))
            self._writer.writerow(line.cells())

    def close(self) -> None:
        """Keep it."""
        self._file.close()


def _archives(paths: Sequence[Path]) -> list[Path]:
    """Return the archives at these paths. Raises `ArchiveRefused` when they are of several PACS."""
    found = [archive for path in paths for archive in find_archives(path)]
    several = sorted({names.archive_prefix(path.name) for path in found})
    if len(several) > 1:
        raise ArchiveRefused(
            "archives de plusieurs PACS (" + ", ".join(each or "sans préfixe" for each in several) + ") : "
            "un chargement va dans un seul site, nommer les archives de ce site"
        )
    return found


def _enter(opened: AbstractContextManager[SetArchive]) -> SetArchive:
    return opened.__enter__()


def _noting(report: _Report, lines: Sequence[Line]) -> Callable[[], None]:
    return lambda: report.note(lines)


def _line(archive: str, set_name: str, found: TakenKos | RefusedKos, fate: Fate, reason: str) -> Line:
    if isinstance(found, RefusedKos):
        study, sop = found.study_uid, found.sop_instance_uid
    else:
        study, sop = found.manifest.study_uid, found.manifest.sop_instance_uid
    return Line(archive, set_name, found.file, study, sop, fate, reason)
