"""What the national record must hold, from what was said and what the PACS hold. Knows no product code.

Rules, with where they are written ("1.4" and the like are sections of the formats, DB.SO.* the
requirements):

* A report speaks for each study it cites (DB.SO.12) until it is taken back: withdrawn (1.4 "depublish"),
  replaced (1.4 "replace", also by a report that cites fewer studies: DB.SO.97), or said again otherwise
  (1.4 "change visibility", "same study again"). A report that is not for the DMP, has no qualified INS,
  or lacks a value says nothing (DB.SO.11, 2.1).
* Messages may overtake each other. A replacement or a withdrawal counts against what came before it and
  against what was sent before it (MSH-7); of the same report said twice, the one sent last counts.
* Of the reports that speak for a study the one that came last has the word: its accession numbers, all
  of them (DB.SO.12, second reading: 5.2-7), and its visibility (2.4). The same message twice is once.
* The manifest lists what a PACS holds of the study, less what stays inside (DB.SO.199), with the key
  images marked (DB.SO.194), at that PACS's address. Which PACS, when several hold it, is free (DB.SO.14).
* No report, or no image in any PACS: no manifest (DB.SO.15, DB.SO.26, DB.SO.97).
* A change of a PACS that nobody announced may be seen or not, until a message names the study.
* The record is that of the patient of the report. While reports of two patients claim one study nobody but
  the administrator can tell whose it is: nothing is said here of which of them keeps it (DB.SO.16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from tests.histories import operations as ops

#: Instances under this root stay inside, whatever PACS holds them.
INSIDE = "2.999.66"


def study_uid(study: int) -> str:
    """Return the UID of a study."""
    return f"2.999.1{study}"


@attrs.frozen
class Thing:
    """One instance in a PACS: an image, or a key object that cites some."""

    uid: str
    series: str
    number: int
    #: Title of a key object.
    title: str = ""
    cites: frozenset[str] = frozenset()


#: What a PACS holds of one study.
Holding = frozenset[Thing]


@attrs.frozen
class Manifest:
    """A manifest that would be right."""

    pacs: int
    #: Instances by series.
    listed: Mapping[str, frozenset[str]]
    #: Key image notes by instance; None when they could not all be fetched.
    marks: Mapping[str, frozenset[str]] | None
    document: int
    hidden: frozenset[str]
    accessions: frozenset[str]
    patient: int


@attrs.frozen
class Said:
    """What one message says."""

    document: int
    replaces: int | None
    withdraws: bool
    studies: frozenset[int]
    #: Minutes of MSH-7.
    sent: int
    report: ops.Report | None
    raw: bytes = attrs.field(repr=False)


def _beginning(pacs: int, study: int) -> Holding:
    """Return what a PACS holds of a study at first: the last study is in the second PACS."""
    if pacs != (1 if study % ops.STUDIES == ops.STUDIES - 1 else 0):
        return frozenset()
    series = f"{study_uid(study)}.1"
    return frozenset(Thing(f"{series}.{number}", series, number) for number in (1, 2))


def listing(holding: Holding) -> dict[str, frozenset[str]]:
    """Return what a manifest lists of a holding: no rejection note, nothing kept inside (DB.SO.199)."""
    found: dict[str, set[str]] = {}
    for thing in holding:
        if not thing.uid.startswith(INSIDE + ".") and thing.title not in ops.REJECTIONS:
            found.setdefault(thing.series, set()).add(thing.uid)
    return {series: frozenset(uids) for series, uids in found.items()}


def marks(holding: Holding) -> dict[str, frozenset[str]]:
    """Return the key image notes of each listed image (DB.SO.194)."""
    images = {thing.uid for thing in holding if not thing.title and not thing.uid.startswith(INSIDE + ".")}
    found: dict[str, set[str]] = {}
    for thing in holding:
        if thing.title == ops.OF_INTEREST:
            for uid in thing.cites & images:
                found.setdefault(uid, set()).add(thing.uid)
    return {uid: frozenset(notes) for uid, notes in found.items()}


class Model:
    """The truth, and what of it may have been seen, about the studies of one number (`operations`)."""

    def __init__(self, number: int = 0) -> None:
        self.studies = ops.studies_of(number)
        #: By PACS and study.
        self.holdings: list[dict[int, Holding]] = [
            {study: _beginning(pacs, study) for study in self.studies} for pacs in range(ops.PACSES)
        ]
        #: In the order in which they came.
        self.said: list[Said] = []
        #: By study, what its PACS held at every moment since a message last named it.
        self.window: dict[int, list[tuple[Holding, ...]]] = {s: [self.held(s)] for s in self.studies}
        #: Studies whose key image notes could not be fetched in that time.
        self.unmarked: set[int] = set()
        #: Studies of which nothing was due at some moment since they were last judged.
        self.absent: set[int] = set(self.studies)
        #: Number of the last message that named each study, counted with whatever else is counted.
        self.named: dict[int, int] = dict.fromkeys(self.studies, 0)
        self._count = 0
        #: By PACS, whether it lists but sends nothing.
        self.immobile = [False] * ops.PACSES

    def count(self) -> int:
        """Return the next number of a sequence of events."""
        self._count += 1
        return self._count

    # -- what happens ------------------------------------------------------------------------------

    def held(self, study: int) -> tuple[Holding, ...]:
        """Return what each PACS holds of a study."""
        return tuple(each[study] for each in self.holdings)

    def hold(self, pacs: int, study: int, holding: Holding) -> None:
        """A PACS holds something else now."""
        self.holdings[pacs][study] = holding
        self.window[study].append(self.held(study))
        self.look()

    def moved(self, study: int) -> None:
        """A study went from one PACS to another: who asks one after the other may find it in neither."""
        self.window[study].append(tuple(frozenset() for _ in self.holdings))
        self.window[study].append(self.held(study))
        self.look()

    def say(self, said: Said) -> None:
        """A report's message was acknowledged."""
        # The same bytes again say nothing that was not said: only the studies are named once more.
        if all(said.raw != before.raw for before in self.said):
            self.said.append(said)
        documents = {said.document, said.replaces}
        for before in (said, *self.said):
            if before.document in documents:
                self.name(*before.studies)

    def name(self, *studies: int) -> None:
        """A message named these studies: from now on they are looked at."""
        for study in studies:
            self.window[study] = [self.held(study)]
            self.named[study] = self.count()
            self.unmarked.discard(study)
        self.look()

    def look(self) -> None:
        """Note what may be seen now."""
        for study in self.studies:
            patients = {said.report.patient for said in self.said if said.report and study in said.studies}
            if None in self.allowed(study) or len(patients) > 1:
                # With the patient the record changes: in the first one nothing is due any more.
                self.absent.add(study)
            if any(self.immobile):
                self.unmarked.add(study)

    def judged(self) -> None:
        """The record agreed: what was seen before does not count any more."""
        self.absent = {study for study in self.studies if None in self.allowed(study)}

    # -- what must be ------------------------------------------------------------------------------

    def speaker(self, study: int) -> Said | None:
        """Return the message that has the word on a study."""
        speaking = [said for said in self.said if self._speaks(said, study)]
        return speaking[-1] if speaking else None

    def claimed_twice(self, study: int) -> bool:
        """Say whether reports of two patients stand for a study."""
        standing = {said.report.patient for said in self.said if said.report and self._speaks(said, study)}
        return len(standing) > 1

    def _speaks(self, said: Said, study: int) -> bool:
        return study in said.studies and not said.withdraws and not self._taken_back(said)

    def _taken_back(self, said: Said) -> bool:
        place = self.said.index(said)
        for number, other in enumerate(self.said):
            came_after, sent_after = number > place, other.sent > said.sent
            if other.withdraws:
                if other.document == said.document and (came_after or sent_after):
                    return True
            elif other.document == said.document:
                if sent_after or (came_after and other.sent == said.sent):
                    return True
            elif other.replaces == said.document and (came_after or sent_after):
                return True
        return False

    def allowed(self, study: int) -> list[Manifest | None]:
        """Return every state of the record that is right for a study; None is no manifest."""
        said = self.speaker(study)
        if said is None or said.report is None:
            return [None]
        found: list[Manifest | None] = []
        for moment in self.window[study]:
            listed = [(pacs, listing(held), held) for pacs, held in enumerate(moment)]
            if not any(each for _, each, _ in listed):
                found.append(None)
            for pacs, each, held in listed:
                if each:
                    found.append(
                        Manifest(
                            pacs,
                            each,
                            None if study in self.unmarked else marks(held),
                            said.document,
                            frozenset(ops.FLAGS[letter] for letter in said.report.hidden),
                            frozenset(said.report.accessions),
                            said.report.patient,
                        )
                    )
        return found

    def __repr__(self) -> str:
        shown: dict[str, Any] = {
            study_uid(study): {"speaker": self.speaker(study), "allowed": self.allowed(study)}
            for study in self.studies
        }
        return repr(shown)
