"""The national record of a random history: a strict registry, behind a network that loses things.

It takes what `xds.metadata` writes, reads it with the simulator's reader, and refuses whatever ITI-42 and
the DMP refuse: an identifier used before, a replacement of what is not current, another patient's or
another structure's. Beside that it notes what it would have to bear but nobody should do (`broken`): two
current manifests of one study, a submission sent again without asking what became of the first, a
manifest taken out although it was due.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import pydicom
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.config import Config, Structure
from drimbox.model import Report
from drimbox.ports import (
    Accepted,
    DmpUnavailable,
    Outcome,
    Refused,
    RegistryEntry,
    Removal,
    Submission,
)
from drimbox.sim.dmp_registry import APPROVED, DELETED, DEPRECATED, RPLC
from drimbox.sim.dmp_rim import read_submission
from drimbox.sim.dmp_rules import CONFIDENTIALITY, PATIENT, SET_UNIQUE, UNIQUE
from drimbox.sim.dmp_trust import Findings
from drimbox.xds.metadata import submission_metadata
from drimbox.xds.sender import Sender
from drimbox.xml import safe_parse
from tests.histories.gateway import Life

T = TypeVar("T")
#: Seconds after which the gateway gives an answer up, and after which a late request is carried out.
TIMEOUT, LATE = 5.0, 9.0
_NO = "XDSRegistryError"


@attrs.define
class Entry:
    """One document of the record."""

    uuid: str
    unique_id: str
    patient: str
    study: str
    structure: str
    status: str
    document: bytes = attrs.field(repr=False)
    confidentiality: frozenset[str] = frozenset()

    @property
    def current(self) -> bool:
        """True when a search finds it."""
        return self.status == APPROVED


class Dmp:
    """The record itself, which outlives the gateway."""

    def __init__(
        self, config: Config, clock: Clock, *, due: Callable[[str], bool], refused: Callable[[str], None]
    ) -> None:
        """`due` says that a manifest of a study had to be there lately; `refused` is told of refusals."""
        self._config = config
        self.clock = clock
        self._due = due
        self.refused = refused
        self.state = "up"
        #: Treatments of the next requests, by transaction.
        self.next: dict[str, deque[str]] = {}
        self.entries: dict[str, Entry] = {}
        self.broken: list[str] = []
        self._used: set[str] = set()
        #: Documents of which something was sent that was never answered.
        self._unanswered: set[str] = set()
        #: Requests carried out: TD2.1 and TD3.3c that changed something.
        self.changes = 0
        #: Requests that lie somewhere, and will be carried out.
        self.late = 0

    def of(self, study: str) -> list[Entry]:
        """Return the current manifests of a study."""
        return [entry for entry in self.entries.values() if entry.current and entry.study == study]

    def treatment(self, transaction: str) -> str:
        """Return how the next request of a kind is treated."""
        if self.state != "up":
            return self.state
        waiting = self.next.get(transaction)
        return waiting.popleft() if waiting else ""

    def metadata(self, structure: Structure, submission: Submission, replaces: str | None) -> bytes:
        """Return the real metadata of a submission, around a signature that is none."""
        sender = Sender(self._config.drimbox, self._config.dmp, structure)
        return submission_metadata(sender, submission, b"<Signature/>", replaces)

    # -- what it does ------------------------------------------------------------------------------

    def submit(self, structure: Structure, submission: Submission, replaces: str | None) -> Outcome:
        """TD2.1."""
        findings = Findings()
        text = self.metadata(structure, submission, replaces)
        found = read_submission(safe_parse(text), findings)
        assert found is not None
        assert not findings.errors, findings.errors
        entry = next(each for each in found.entries if each.id == "DocumentKOS")
        study = _study_of(submission.kos)
        used = {found.package.external[SET_UNIQUE], *(each.external[UNIQUE] for each in found.entries)}
        if used & self._used:
            return Refused("XDSDuplicateUniqueIdInRegistry", "déjà là", duplicate=True)
        targets = [a.get("targetObject") for a in found.associations if a.get("associationType") == RPLC]
        for target in targets:
            old = next((each for each in self.entries.values() if each.uuid == target), None)
            problem = _not_replaceable(old, entry.external[PATIENT], structure.id)
            if problem:
                return self._no(study, problem)
        self._used |= used
        for old in self.entries.values():
            if old.uuid in targets:
                old.status = DEPRECATED
        new = Entry(
            f"urn:uuid:{len(self.entries)}",
            entry.external[UNIQUE],
            entry.external[PATIENT],
            study,
            structure.id,
            APPROVED,
            submission.kos,
            frozenset(each.code for each in entry.classified(CONFIDENTIALITY)),
        )
        if self.of(study):
            self.broken.append(f"two current manifests of {study}: {[*self.of(study), new]}")
        self.entries[new.unique_id] = new
        self.changes += 1
        return Accepted()

    def withdraw(self, structure: Structure, removal: Removal, uuid: str) -> Outcome:
        """TD3.3c."""
        entry = next((each for each in self.entries.values() if each.uuid == uuid), None)
        if entry is None or not entry.current or removal.submission_uid in self._used:
            return Refused("XDSMetadataUpdateError", "l'entrée n'est pas en vigueur")
        if entry.structure != structure.id or removal.report.patient.ins not in entry.patient:
            return self._no(entry.study, "l'entrée est d'un autre")
        if self._due(entry.study):
            self.broken.append(f"manifest of {entry.study} taken out although it is due")
        self._used.add(removal.submission_uid)
        entry.status = DELETED
        self.changes += 1
        return Accepted()

    def find(self, report: Report, unique_id: str) -> RegistryEntry | None:
        """TD3.1 GetDocuments: other patients' documents are not shown."""
        entry = self.entries.get(unique_id)
        if entry is None or not entry.patient.startswith(report.patient.ins):
            return None
        digest = hashlib.sha1(entry.document, usedforsecurity=False).hexdigest()
        return RegistryEntry(entry.uuid, unique_id, digest, len(entry.document), entry.status)

    def _no(self, study: str, problem: str) -> Refused:
        self.broken.append(f"{study}: sent what the registry must refuse: {problem}")
        return Refused(_NO, problem)

    # -- what it is asked --------------------------------------------------------------------------

    def leaves(self, unique_id: str) -> None:
        """A submission leaves the gateway."""
        if unique_id in self._unanswered:
            self.broken.append(f"{unique_id} sent again without asking")
        self._unanswered.add(unique_id)

    def known(self, unique_id: str) -> None:
        """The gateway has an answer about a document."""
        self._unanswered.discard(unique_id)


class Line:
    """The record as one life of the gateway reaches it (a `ports.Record`)."""

    def __init__(self, dmp: Dmp, life: Life) -> None:
        self._dmp = dmp
        self._life = life

    def metadata(self, structure: Structure, submission: Submission) -> bytes:
        return self._dmp.metadata(structure, submission, None)

    async def patient_exists(self, structure: Structure, report: Report) -> Outcome:
        # It is refused for whichever of its studies asks.
        studies = [act.study_uid for act in report.acts]
        no = Refused("AE", "inconnu", unknown_patient=True)
        return await self._exchange("TD0.2", Accepted, no, studies=studies)

    async def publish(self, structure: Structure, submission: Submission, replaces: str | None) -> Outcome:
        unique_id = submission.sop_instance_uid
        return await self._exchange(
            "TD2.1",
            lambda: self._dmp.submit(structure, submission, replaces),
            Refused(_NO, "non"),
            studies=[submission.study.study_uid],
            leaves=unique_id,
            answers=unique_id,
        )

    async def remove(self, structure: Structure, removal: Removal, entry_uuid: str) -> Outcome:
        return await self._exchange(
            "TD3.3c",
            lambda: self._dmp.withdraw(structure, removal, entry_uuid),
            Refused(_NO, "non"),
            studies=[self._dmp.entries[removal.sop_instance_uid].study],
        )

    async def find_entry(
        self, structure: Structure, report: Report, unique_id: str
    ) -> RegistryEntry | None:
        def ask() -> RegistryEntry | None:
            return self._dmp.find(report, unique_id)

        return await self._exchange("TD3.1", ask, None, answers=unique_id)

    async def _exchange(
        self,
        transaction: str,
        act: Callable[[], T],
        no: T,
        *,
        studies: Sequence[str] = (),
        leaves: str = "",
        answers: str = "",
    ) -> T:
        dmp, life, chance = self._dmp, self._life, self._life.chance
        treatment = dmp.treatment(transaction)
        if treatment == "down":
            await life.answer(None, 0.01)
            raise DmpUnavailable("connexion refusée", sent=False)
        if leaves:
            dmp.leaves(leaves)
        if treatment == "refuse" and transaction == "TD3.1":
            treatment = "busy"
        answered: Deferred[Any] = Deferred()

        def reply(result: object) -> None:
            if answers:
                dmp.known(answers)
            answered.callback(result)

        def carry_out() -> None:
            # The request is on its way whatever becomes of who sent it.
            dmp.late -= treatment == "late"
            result = act()
            if treatment == "twice":
                result = act()
            if treatment in ("unanswered", "late"):
                return
            life.callLater(chance.choice((0.0, 0.02, 0.4)), reply, result)

        if treatment == "refuse":
            for study in studies:
                dmp.refused(study)
            life.callLater(0.02, reply, no)
        elif treatment == "late":
            dmp.late += 1
            dmp.clock.callLater(LATE, carry_out)
        elif treatment not in ("busy", "lost"):
            dmp.clock.callLater(chance.choice((0.0, 0.02, 0.4)), carry_out)
        if treatment in ("unanswered", "late", "busy", "lost"):
            await life.answer(None, 0.02 if treatment == "busy" else TIMEOUT)
            raise DmpUnavailable("503" if treatment == "busy" else "délai dépassé", sent=True)
        result: T = await answered
        return result


def _not_replaceable(old: Entry | None, patient: str, structure: str) -> str:
    if old is None:
        return "replaces what is unknown"
    if old.patient != patient:
        return "replaces another patient's"
    if old.structure != structure:
        return "replaces another structure's"
    return "" if old.current else "replaces what is not current"


def _study_of(document: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(document), specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
