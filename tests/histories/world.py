"""A history happens: each operation to the gateway, to what is around it, and to the model.

`World` knows the operations; how a message is sent or a PACS silenced is left to those that make one: in
memory under a simulated clock (`simulated`), or over sockets. `run` plays a history to its end: everything
up, queues empty, the record judged; then every study is named once more, after which nothing that was
missed excuses anything; then once again, which must change nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset

from tests.histories import operations as ops
from tests.histories import verdict
from tests.histories.messages import change_message, key_object, report_message, withdrawal_message
from tests.histories.model import INSIDE, Holding, Model, Said, Thing, study_uid


class World(abc.ABC):
    """One history and what became of it; `number` says whose studies and documents it is about."""

    def __init__(self, number: int = 0) -> None:
        self.model = Model(number)
        self._first = 1000 * number
        self._messages: list[Callable[[], Awaitable[None]]] = []
        self._number = 0
        #: Objects made; the first ones were there before.
        self._made = 10

    # -- left to those that make a world -----------------------------------------------------------

    @abc.abstractmethod
    async def send(self, raw: bytes) -> None:
        """Send an HL7 message until it is acknowledged, whatever happens to the gateway meanwhile."""

    @abc.abstractmethod
    async def store(self, pacs: int, note: Dataset) -> None:
        """Send a key object by C-STORE until it is taken."""

    @abc.abstractmethod
    async def hold(self, pacs: int, study: int, holding: Holding) -> None:
        """Let a PACS hold this of a study; the model is told by the caller."""

    @abc.abstractmethod
    async def set_pacs(self, pacs: int, state: str) -> None:
        """Let a PACS be as `operations.PacsIs` says."""

    @abc.abstractmethod
    async def set_dmp(self, state: str) -> None:
        """Let the DMP be as `operations.DmpIs` says."""

    @abc.abstractmethod
    async def treat(self, transaction: str, treatment: str, times: int) -> None:
        """Let the DMP treat the next requests as `operations.DmpNext` says; "" is well from now on."""

    @abc.abstractmethod
    async def kill(self, seconds: float, commits: int) -> None:
        """`kill -9`, as `operations.Kill` says."""

    @abc.abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let time pass for a gateway that runs: one that was killed is started again."""

    @abc.abstractmethod
    async def rest(self) -> None:
        """Wait until nothing is left to do; fails when that takes too long."""

    @abc.abstractmethod
    def current(self, study: int) -> list[verdict.Shown]:
        """Return the manifests of a study that the record shows."""

    @abc.abstractmethod
    def known(self) -> Mapping[str, str]:
        """Return the registry's identifiers of all documents that ever were in it, by uniqueId."""

    @abc.abstractmethod
    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the store beside the gateway."""

    @abc.abstractmethod
    def excused(self, study: int) -> bool:
        """Say whether the record refused something about a study since it was last named."""

    @abc.abstractmethod
    def changes(self) -> int:
        """Count what was changed in the record so far."""

    def broken(self) -> Iterable[str]:
        """Return what the record had to bear and nobody should do."""
        return ()

    # -- the history -------------------------------------------------------------------------------

    async def run(self, operations: Sequence[Any]) -> None:
        """Let a history happen, and judge it."""
        for operation in operations:
            await self.do(operation)
        await self.do(ops.Calm())
        everything = ops.Change(tuple(self.model.studies))
        await self.do(everything)
        await self.do(ops.Calm())
        changes = self.changes()
        await self.do(everything)
        await self.do(ops.Calm())
        verdict.check(self.changes() == changes, "nothing had changed, and yet something was sent")

    async def do(self, operation: Any) -> None:
        """Carry out one operation."""
        await getattr(self, f"_{type(operation).__name__.lower()}")(operation)

    def judge(self) -> None:
        """Hold record and archive against the model."""
        broken = "; ".join(self.broken())
        verdict.check(not broken, broken)
        # Nothing here is beyond the gateway: nobody has to come and look.
        verdict.check(not (parked := self._rows("parked")), f"parked: {parked}")
        known = self.known()
        for study in self.model.studies:
            excused = self.excused(study) or self.model.claimed_twice(study)
            current = self.current(study)
            archived = self.archived(study)
            verdict.judge(self.model, study, current, excused=excused)
            verdict.judge_archive(study, current, archived, known)
            if not excused:
                verdict.judge_reports(study, self.model, archived)
        self.model.judged()

    def archived(self, study: int) -> list[verdict.Archived]:
        """Return what the archive says of a study."""
        rows = self.query(
            "SELECT sop_instance_uid, state, site, entry_uuid,"
            " (SELECT group_concat(report_id) FROM kos_report WHERE kos_id = kos.id)"
            " FROM kos WHERE study_uid = ? ORDER BY id",
            study_uid(study),
        )
        return [verdict.Archived(*row[:4], frozenset((row[4] or "").split(","))) for row in rows]

    def waiting(self) -> list[tuple[Any, ...]]:
        """Return what the queues of the gateway still hold."""
        return self._rows("waiting")

    def _rows(self, state: str) -> list[tuple[Any, ...]]:
        return [
            row
            for table in ("inbox", "feed_job", "outbox")
            for row in self.query(f"SELECT '{table}', id, last_error FROM {table} WHERE state = ?", state)
        ]

    # -- what is said ------------------------------------------------------------------------------

    async def _report(self, report: ops.Report) -> None:
        sent, number = self._sent(report.lag)
        raw = report_message(report, sent, number)
        said = Said(report.document, report.replaces, False, frozenset(report.studies), sent, report, raw)
        await self._say(raw, None if report.flaw else said)

    async def _withdraw(self, withdraw: ops.Withdraw) -> None:
        sent, number = self._sent(withdraw.lag)
        raw = withdrawal_message(withdraw, sent, number)
        await self._say(
            raw, Said(withdraw.document, None, True, frozenset(withdraw.studies), sent, None, raw)
        )

    async def _say(self, raw: bytes, said: Said | None) -> None:
        async def again() -> None:
            await self.send(raw)
            if said is not None:
                self.model.say(said)

        self._messages.append(again)
        await again()

    async def _again(self, again: ops.Again) -> None:
        if self._messages:
            await self._messages[-1 - again.back % len(self._messages)]()

    def _sent(self, lag: int) -> tuple[int, int]:
        """Return the second of MSH-7 and the number of a message overtaken by `lag` others."""
        self._number += 1
        sent = 60 * (self._number - lag) - 30 * (lag > 0) + self._number % 29
        return sent, self._first + self._number

    async def _change(self, change: ops.Change) -> None:
        self._number += 1
        await self.send(change_message(change, self._first + self._number))
        self.model.name(*change.studies)

    async def _note(self, note: ops.Note) -> None:
        self._number += 1
        study, uid = study_uid(note.study), f"2.999.4.{self._first + self._number}"
        series, cited = f"{study}.8{self._number}", {f"{study}.1.1": f"{study}.1"}
        if note.title in ops.REJECTIONS and self._number % 2:
            # Many a PACS keeps it in the study, and lists it even when nothing else is left.
            kept = Thing(uid, series, self._number, note.title, frozenset(cited))
            held = self.model.holdings[note.pacs][note.study]
            await self._hold(note.pacs, note.study, held | {kept})
        await self.store(note.pacs, key_object(study, note.title, uid, series, cited))
        self.model.name(note.study)

    async def _told(self, study: int, pacs: int, told: str) -> None:
        if told == "omi":
            await self._change(ops.Change((study,)))
        elif told:
            await self._note(ops.Note(study, told, pacs))

    # -- what the PACS hold ------------------------------------------------------------------------

    async def _hold(self, pacs: int, study: int, holding: Holding) -> None:
        self.model.hold(pacs, study, holding)
        await self.hold(pacs, study, holding)

    async def _images(self, images: ops.Images) -> None:
        held = set(self.model.holdings[images.pacs][images.study])
        for _ in range(images.add):
            self._made += 1
            series = f"{study_uid(images.study)}.{1 + self._made % 2}"
            root = f"{INSIDE}.{images.study}" if images.inside else series
            held.add(Thing(f"{root}.{self._made}", series, self._made))
        for thing in sorted(held, key=lambda each: each.number)[: images.remove]:
            held.discard(thing)
        await self._hold(images.pacs, images.study, frozenset(held))
        await self._told(images.study, images.pacs, images.told)

    async def _move(self, move: ops.Move) -> None:
        first, second = self.model.held(move.study)
        source, target = (0, 1) if first else (1, 0)
        await self._hold(target, move.study, first | second)
        await self._hold(source, move.study, frozenset())
        self.model.moved(move.study)
        await self._told(move.study, target, move.told)

    async def _keyimage(self, key: ops.KeyImage) -> None:
        held = self.model.holdings[key.pacs][key.study]
        images = sorted(thing.uid for thing in held if not thing.title)
        if not images:
            return
        self._made += 1
        series = f"{study_uid(key.study)}.9{self._made}"
        note = Thing(f"{series}.1", series, 1, ops.OF_INTEREST, frozenset(images[:2]))
        await self._hold(key.pacs, key.study, held | {note})
        await self._told(key.study, key.pacs, key.told)

    # -- what goes wrong ---------------------------------------------------------------------------

    async def _pacsis(self, pacs: ops.PacsIs) -> None:
        await self.set_pacs(pacs.pacs, pacs.state)
        self.model.immobile[pacs.pacs] = pacs.state == "immobile"
        self.model.look()

    async def _dmpis(self, dmp: ops.DmpIs) -> None:
        await self.set_dmp(dmp.state)

    async def _dmpnext(self, treated: ops.DmpNext) -> None:
        await self.treat(treated.transaction, treated.treatment, treated.times)

    async def _kill(self, kill: ops.Kill) -> None:
        await self.kill(kill.seconds, kill.commits)

    async def _wait(self, wait: ops.Wait) -> None:
        await self.pass_time(wait.seconds)

    async def _calm(self, calm: ops.Calm) -> None:
        for pacs in range(ops.PACSES):
            await self._pacsis(ops.PacsIs(pacs, "up"))
        await self.set_dmp("up")
        await self.treat("", "", 0)
        await self.pass_time(0.0)
        await self.rest()
        self.judge()
