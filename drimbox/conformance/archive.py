"""Validating a whole XDM archive, a month of KOS (DB.SO.29, DB.SO.30; IHE ITI XDM).

Set by set, so that memory grows by names and marks only: the form of names and pages, what a DRIMbox that
loads it would refuse, and in each set the metadata and the manifest by the rules of their own validators.
What the same rule says of many sets is one finding with the first of them. Never raises for what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from drimbox.conformance.kos_rules import validate_kos
from drimbox.conformance.report import Report, shown
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds.validate import validate_xds
from drimbox.systemerrors import system_reason
from drimbox.xdm import names
from drimbox.xdm.checking import NO_REPORT, RefusedKos, TakenKos, check_set
from drimbox.xdm.opening import ArchiveRefused, FileRefused, SetArchive, open_archive
from drimbox.xdm.rebuilding import structure_of, submitted_at
from drimbox.xdm.takeover import bounds
from drimbox.xdm.writing import FAT_LIMIT

_EXPORT: Final = "DB.SO.29"
_IMPORT: Final = "DB.SO.30"
_XDM: Final = "DB.SO.29 ; IHE ITI TF-2 3.32"

RULES = RuleBook("archive")
_UNUSABLE = RULES.error("unusable", "archive inutilisable : {why}", _IMPORT)
_NAME = RULES.warning("name", "nom de l'archive : KAAAAAMM attendu, avec ou sans préfixe", _EXPORT)
_LARGE = RULES.warning("large", "fichier de plus de 4 Gio : aucun support FAT32 ne le tient", _EXPORT)
_EMPTY = RULES.error("empty", "aucun jeu SSNNNNNN dans IHE_XDM", _XDM)
_NUMBERS = RULES.warning("numbers", "numéros des jeux : SS000001 et suivants, sans trou, attendus", _EXPORT)
_PAGE = RULES.error("page", "{name} absent", _XDM)
_PAGE_DAMAGED = RULES.error("page_damaged", "{why}", _XDM)
_NOT_LISTED = RULES.error("not_listed", "KOS absent de la liste d'INDEX.HTM", _EXPORT)
_DAMAGED = RULES.error("set_damaged", "jeu illisible : {why}", _IMPORT)
_REFUSED = RULES.error("refused", "une DRIMbox ne chargerait pas ce KOS : {why}", _IMPORT)
_NO_METADATA = RULES.error("metadata", "METADATA.XML absent", _XDM)
_NO_REPORTS = RULES.error("reports", "CR.TXT absent ou vide : rien ne dit de quel compte rendu", _EXPORT)
_REMARK = RULES.warning("remark", "{why}", _IMPORT)
_SEVERAL = RULES.warning("several", "plusieurs KOS dans un jeu : un seul est recommandé", _EXPORT)
_KOS_NAME = RULES.warning("kos_name", "KOS_Y_Z.DCM : Y n'est pas le numéro du jeu", _EXPORT)
_OTHER_SET = RULES.error("uri_set", "URI qui nomme un autre jeu que le sien", _XDM)
_MONTH = RULES.warning("month", "soumis au DMP après le mois de l'archive", _EXPORT)
_KOS_TWICE = RULES.error("kos_twice", "le même KOS (SOPInstanceUID) dans plusieurs jeux", _EXPORT)
_STUDY_TWICE = RULES.warning(
    "study_twice", "plusieurs KOS du même examen : un seul peut être publié", "DB.SO.22 ; DB.SO.29"
)

_PATH = re.compile(rb"IHE_XDM[/\\]SS([0-9]{1,9})[/\\](KOS_?[0-9]+_?[0-9]*\.DCM)", re.IGNORECASE)
#: Longest path in the index: what may be cut between two pieces of it.
_LONGEST_PATH: Final = 64
#: A month of another time zone.
_ZONES: Final = timedelta(days=1)
_KOS_PARTS = re.compile(r"KOS_([0-9]+)_[0-9]+\.DCM")


class Known:
    """KOS and studies met so far, in one archive and the ones before: eight bytes of each."""

    def __init__(self) -> None:
        self._met: dict[str, set[int]] = {"kos": set(), "study": set()}

    def again(self, kind: str, uid: str) -> bool:
        """Say whether a UID was met before, and note it."""
        met, mark = self._met[kind], hash(uid)
        before = mark in met
        met.add(mark)
        return before


def validate_archive(
    path: Path, *, known: Known | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Judge the archive at `path`, a zip or the folder it was unpacked to.

    `known` goes from one archive of an export to the next; `progress` is told sets judged and in all.
    """
    out = Report("archive XDM")
    if names.archive_month(path.name) is None:
        _NAME.broken(out)
    try:
        if path.is_file() and path.stat().st_size > FAT_LIMIT:
            _LARGE.broken(out)
        with open_archive(path) as archive:
            _Archive(archive, names.archive_month(path.name), known or Known(), out).check(progress)
    except ArchiveRefused as refusal:
        _UNUSABLE.broken(out, why=shown(str(refusal)))
    except OSError as error:
        _UNUSABLE.broken(out, why=f"lecture impossible ({system_reason(error)})")
    return out


class _Archive:
    """One archive under judgement."""

    def __init__(self, archive: SetArchive, month: names.Month | None, known: Known, out: Report) -> None:
        self._archive = archive
        self._month = month
        self._known = known
        self._out = out
        self._kos = 0

    def check(self, progress: Callable[[int, int], None] | None) -> None:
        """Judge pages and sets."""
        out, sets = self._out, self._archive.sets
        if not sets:
            _EMPTY.broken(out)
        if sets != [names.set_name(number) for number in range(1, len(sets) + 1)]:
            _NUMBERS.broken(out)
        listed = self._listed()
        for _ in self._page(names.README):
            continue  # to its end: it may be damaged
        for count, name in enumerate(sets, 1):
            self._set(name, listed)
            if progress is not None:
                progress(count, len(sets))
        out.facts |= {"sets": len(sets), "kos": self._kos}

    def _listed(self) -> set[tuple[int, str]] | None:
        """Return the KOS that INDEX.HTM lists, by set and file; None when it cannot be read."""
        found: set[tuple[int, str]] = set()
        rest, whole = b"", False
        for piece in self._page(names.INDEX):
            whole = True
            text = rest + piece
            found |= {(int(path[1]), path[2].decode().upper()) for path in _PATH.finditer(text)}
            rest = text[-_LONGEST_PATH:]
        return found if whole else None

    def _page(self, name: str) -> Iterator[bytes]:
        pieces = self._archive.page(name)
        if pieces is None:
            _PAGE.broken(self._out, name=name)
            return
        try:
            yield from pieces
        except FileRefused as refusal:
            _PAGE_DAMAGED.broken(self._out, why=str(refusal))

    def _set(self, name: str, listed: set[tuple[int, str]] | None) -> None:
        out, number = self._out, int(name[2:])
        try:
            files = self._archive.files(name)
        except FileRefused as refusal:
            _DAMAGED.broken(out, at_set=number, why=str(refusal))
            return
        manifests = [file for file in files if names.is_kos(file)]
        self._kos += len(manifests)
        if len(manifests) > 1:
            _SEVERAL.broken(out, at_set=number)
        for file in manifests:
            parts = _KOS_PARTS.fullmatch(file)
            if parts is not None and int(parts[1]) != number:
                _KOS_NAME.broken(out, at_set=number)
            if listed is not None and (number, file) not in listed:
                _NOT_LISTED.broken(out, at_set=number)
            out.include(validate_kos(files[file]), "KOS", set=number)
        self._metadata(name, number, files)
        for found in check_set(files):
            self._taken(found, number)
        if not files.get(names.REPORTS, b"").strip():
            _NO_REPORTS.broken(out, at_set=number)

    def _metadata(self, name: str, number: int, files: Mapping[str, bytes]) -> None:
        out = self._out
        if names.METADATA not in files:
            _NO_METADATA.broken(out, at_set=number)
            return

        def beside(uri: str) -> bytes | None:
            folder, _, file = uri.upper().rpartition("/")
            if folder != name:
                _OTHER_SET.broken(out, at_set=number)
            return files.get(file)

        out.include(validate_xds(files[names.METADATA], folder=beside), names.METADATA, set=number)

    def _taken(self, found: TakenKos | RefusedKos, number: int) -> None:
        out = self._out
        if isinstance(found, RefusedKos):
            _REFUSED.broken(out, at_set=number, why=found.reason)
            return
        for warning in found.warnings:
            if warning != NO_REPORT:
                _REMARK.broken(out, at_set=number, why=warning)
        if self._known.again("kos", found.manifest.sop_instance_uid):
            _KOS_TWICE.broken(out, at_set=number)
        elif self._known.again("study", found.manifest.study_uid):
            _STUDY_TWICE.broken(out, at_set=number)
        if not structure_of(found).id:
            _REFUSED.broken(out, at_set=number, why="structure absente de METADATA.XML")
        # Filed by its publication, which may be long after its submission, and never before.
        if self._month is not None and submitted_at(found) > bounds(self._month)[1] + _ZONES:
            _MONTH.broken(out, at_set=number)
