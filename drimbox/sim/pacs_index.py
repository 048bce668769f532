"""What the simulated PACS holds: files by study and series, and the matching of C-FIND identifiers."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

#: Attributes that belong to each level of the Study Root model, beside the unique keys (PS3.4 C.6.2.1).
_UNIQUE = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
LEVELS = tuple(_UNIQUE)
_COUNTS = {
    "NumberOfStudyRelatedSeries": ("StudyInstanceUID", "SeriesInstanceUID"),
    "NumberOfStudyRelatedInstances": ("StudyInstanceUID", "SOPInstanceUID"),
    "NumberOfSeriesRelatedInstances": ("SeriesInstanceUID", "SOPInstanceUID"),
}
_NOT_MATCHED = {"QueryRetrieveLevel", "SpecificCharacterSet", "ModalitiesInStudy", *_COUNTS}


@attrs.frozen(eq=False)
class Entry:
    """One file: where it is, its transfer syntax, and its header without pixels."""

    path: Path
    transfer_syntax: str
    header: Dataset

    def uid(self, keyword: str) -> str:
        """Return a UID of the header."""
        return str(self.header.get(keyword, ""))


class Index:
    """The files of the PACS in the order they came; safe for threads."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        #: The same by study: thousands of studies cost a question about one of them nothing.
        self._studies: dict[str, dict[str, Entry]] = {}
        self._lock = threading.Lock()

    def add(self, path: Path) -> Entry:
        """Read the header of one Part 10 file and keep it, in place of an older one of the same UID."""
        header = dcmread(path, stop_before_pixels=True)
        entry = Entry(path, str(header.file_meta.TransferSyntaxUID), header)
        uid, study = entry.uid("SOPInstanceUID"), entry.uid("StudyInstanceUID")
        with self._lock:
            old = self._entries.get(uid)
            if old is not None and old.uid("StudyInstanceUID") != study:
                self._drop(uid)
            self._entries[uid] = entry
            self._studies.setdefault(study, {})[uid] = entry
        return entry

    def remove(self, sop_instance_uid: str) -> None:
        """Forget one instance; its file stays."""
        with self._lock:
            self._drop(sop_instance_uid)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._studies.clear()

    def entries(self) -> list[Entry]:
        """Return everything held."""
        with self._lock:
            return list(self._entries.values())

    def _drop(self, uid: str) -> None:
        old = self._entries.pop(uid, None)
        if old is not None:
            del self._studies[old.uid("StudyInstanceUID")][uid]

    def _among(self, identifier: Dataset) -> list[Entry]:
        """Return what an identifier may mean: everything of the studies it names, or everything."""
        studies = _values(identifier, "StudyInstanceUID")
        if not studies:
            return self.entries()
        with self._lock:
            return [
                entry for uid in dict.fromkeys(studies) for entry in self._studies.get(uid, {}).values()
            ]

    def retrieve(self, identifier: Dataset) -> list[Entry]:
        """Return the instances a C-MOVE identifier names by unique keys (PS3.4 C.4.2.1.4)."""
        wanted = {key: _values(identifier, key) for key in _UNIQUE.values()}
        return [
            entry
            for entry in self._among(identifier)
            if all(not uids or entry.uid(key) in uids for key, uids in wanted.items())
        ]

    def find(self, identifier: Dataset, *, omit: Iterable[str] = ()) -> list[Dataset]:
        """Return the answers to a C-FIND identifier, one per match at its level (PS3.4 C.4.1)."""
        level = str(identifier.get("QueryRetrieveLevel", "")).strip()
        everything = self._among(identifier)
        answers: dict[str, Dataset] = {}
        for entry in everything:
            key = entry.uid(_UNIQUE[level])
            if key not in answers and _matches(entry, identifier, everything):
                answers[key] = _answer(entry, identifier, level, everything, frozenset(omit))
        return list(answers.values())


def missing_keys(identifier: Dataset, *, relational: bool) -> list[str]:
    """Return the unique keys above its level that a hierarchical identifier lacks (PS3.4 C.4.1.3.1)."""
    level = str(identifier.get("QueryRetrieveLevel", "")).strip()
    if level not in _UNIQUE:
        return ["QueryRetrieveLevel"]
    if relational:
        return []
    above = LEVELS[: LEVELS.index(level)]
    return [_UNIQUE[name] for name in above if len(_values(identifier, _UNIQUE[name])) != 1]


def _values(identifier: Dataset, keyword: str) -> list[str]:
    value = identifier.get(keyword)
    if value is None or value == "":
        return []
    values: Sequence[object] = value if isinstance(value, MultiValue) else [value]
    return [str(one) for one in values if str(one)]


def _matches(entry: Entry, identifier: Dataset, everything: list[Entry]) -> bool:
    modalities = _values(identifier, "ModalitiesInStudy")
    if modalities and not set(modalities) & _modalities(entry, everything):
        return False
    for element in identifier:
        if element.VR == "SQ" or element.keyword in _NOT_MATCHED:
            continue
        wanted = _values(identifier, element.keyword)
        if wanted and not any(
            _match_one(value, str(entry.header.get(element.keyword, "")), element.VR) for value in wanted
        ):
            return False
    return True


def _match_one(wanted: str, held: str, vr: str) -> bool:
    if vr in ("DA", "TM") and "-" in wanted:
        start, _, end = wanted.partition("-")
        return bool(held) and (not start or held >= start) and (not end or held <= end)
    if vr != "UI" and ("*" in wanted or "?" in wanted):
        return fnmatch.fnmatchcase(held.upper(), wanted.upper().replace("[", "[[]"))
    if vr == "PN":
        return wanted.upper() == held.upper()
    return wanted == held


def _answer(
    entry: Entry, identifier: Dataset, level: str, everything: list[Entry], omit: frozenset[str]
) -> Dataset:
    answer = Dataset()
    answer.SpecificCharacterSet = entry.header.get("SpecificCharacterSet", "ISO_IR 100")
    answer.QueryRetrieveLevel = level
    for element in identifier:
        keyword = element.keyword
        if keyword in omit or keyword in ("QueryRetrieveLevel", "SpecificCharacterSet"):
            continue
        if keyword in _COUNTS:
            scope, counted = _COUNTS[keyword]
            value = entry.uid(scope)
            uids = {other.uid(counted) for other in everything if other.uid(scope) == value}
            setattr(answer, keyword, len(uids))
        elif keyword == "ModalitiesInStudy":
            answer.ModalitiesInStudy = sorted(_modalities(entry, everything))
        elif element.tag in entry.header:
            answer[element.tag] = entry.header[element.tag]
        else:
            answer.add_new(element.tag, element.VR, [] if element.VR == "SQ" else None)
    return answer


def _modalities(entry: Entry, everything: list[Entry]) -> set[str]:
    study = entry.uid("StudyInstanceUID")
    return {other.uid("Modality") for other in everything if other.uid("StudyInstanceUID") == study}
