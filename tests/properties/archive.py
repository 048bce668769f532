"""A PACS in memory that serves each C-MOVE by its plan, and remembers every C-STORE it made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import attrs
from pydicom.dataset import Dataset
from twisted.internet.defer import Deferred, gatherResults

from drimbox.dicom.dimse import Command, CommandField, Status
from tests.properties.associations import VERIFICATION, Control, Storing, bounded, later, proposal
from tests.properties.holdings import CT, EXPLICIT, IMPLICIT, JPEG_LS, SERIES, Held, Instance
from tests.properties.network import Network
from tests.properties.plans import WHOLE, Plan, Step, steps

HOST, PORT, GATEWAY = "10.0.0.1", 104, 11112
OURS = "DRIMBOX"
#: Seconds it waits for the answer to an instance, as stock Orthanc does.
PATIENCE = 10.0
#: Seconds of a pause inside a data set, and of a silence nobody has to bear.
_SLOW, _HANG = 2.0, 40.0
#: Pieces of a data set that comes with such pauses between them: longer than any silence is borne.
_DRIPS = 12


@attrs.define(eq=False)
class Sent:
    """One C-STORE."""

    number: int
    move: MoveServed
    step: Step
    #: Title called, SOP instance and syntax of the command.
    called: str
    claim: str
    syntax: str
    #: When the association was asked for, and open.
    asked_at: float
    opened_at: float
    #: Message id of the C-MOVE it names.
    named: int | None = None
    #: True once every byte of it was written to the connection.
    whole: bool = False
    status: int | None = None
    answered_at: float = 0.0


@attrs.define(eq=False)
class MoveServed:
    """One C-MOVE as the PACS saw it."""

    plan: Plan
    title: str
    held: Held | None
    number: int
    began_at: float
    control: Control
    #: When the final response was written.
    final_at: float | None = None
    #: Status and completed sub-operations of the final response.
    status: int | None = None
    claimed: int = 0
    over: bool = False
    #: It gave up waiting for the answer to an instance.
    impatient: bool = False
    completed: int = 0
    failed: int = 0
    done: int = 0


class Archive:
    """The PACS; `plans` are those of its next C-MOVEs, a good one when there is no more."""

    def __init__(self, net: Network, pool: Iterable[str], plans: Iterable[Plan]) -> None:
        self.net = net
        self.pool = tuple(pool)
        self.plans = deque(plans)
        self.moves: list[MoveServed] = []
        #: Called when a C-MOVE has come.
        self.on_move: Callable[[MoveServed], None] = lambda move: None
        self.sent: list[Sent] = []
        #: When it last did something on each title.
        self.touched: dict[str, float] = {}
        #: Associations for a C-MOVE that it did not take.
        self.rejected = 0
        #: Moves and associations that still go on.
        self.busy = 0
        net.listening[PORT] = self._listen

    def _listen(self, host: str) -> Control:
        plan = self.plans.popleft() if self.plans else Plan()
        self.rejected += plan.request in ("reject", "silent", "close")
        return Control(
            self.net, plan.request, lambda control, command, data: self._asked(plan, control, command, data)
        )

    def _asked(self, plan: Plan, control: Control, command: Command, identifier: Dataset) -> None:
        held = next((each for each in SERIES if each.uid == identifier.SeriesInstanceUID), None)
        assert held is not None
        assert held.study == identifier.StudyInstanceUID
        if "SOPInstanceUID" in identifier and not plan.coarse:
            wanted = tuple(one for one in held.instances if one.uid == identifier.SOPInstanceUID)
            held = attrs.evolve(held, instances=wanted)
        move = MoveServed(
            plan,
            command.move_destination or "",
            held,
            command.message_id or 0,
            self.net.seconds(),
            control,
        )
        self.moves.append(move)
        self.on_move(move)
        self._run(self._serve(move, held))

    def _run(self, work: object) -> Deferred[None]:
        self.busy += 1
        running: Deferred[None] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]

        def done(result: object) -> object:
            self.busy -= 1
            return result

        return running.addBoth(done)

    # -- one move ------------------------------------------------------------------------------------

    async def _serve(self, move: MoveServed, held: Held) -> None:
        plan = move.plan
        try:
            if plan.request == "refuse":
                move.control.answer(plan.status or 0xA801)
                move.final_at = self.net.seconds()
                return
            rows = steps(plan, held)
            total = sum(len(row) for row in rows)
            if plan.final == "first":
                self._final(move)
            lanes = []
            for row in rows:
                lane = self._run(self._lane(move, row, total))
                if not plan.parallel:
                    await lane
                lanes.append(lane)
            await gatherResults(lanes)
            self._final(move)
        finally:
            move.over = True

    def _final(self, move: MoveServed) -> None:
        plan = move.plan
        if move.final_at is not None or plan.final == "never":
            return
        status: int = Status.SUCCESS
        if move.control.cancelled and not plan.deaf:
            status = Status.CANCEL
        elif move.failed:
            status = Status.WARNING if move.completed else 0xA702
        if plan.status is not None:
            status = plan.status
        completed = max(0, move.completed + plan.lie)
        if move.control.answer(status, completed=completed, failed=move.failed, warning=0):
            move.final_at = self.net.seconds()
            move.status, move.claimed = status, completed

    def _ends(self, move: MoveServed) -> bool:
        """Say whether the sub-operations are to stop here."""
        plan = move.plan
        if plan.abandons and move.failed:
            return True
        if move.control.over and not plan.orphan:
            return True
        return move.control.cancelled and not plan.deaf

    async def _lane(self, move: MoveServed, row: list[Step], total: int) -> None:
        plan = move.plan
        storing: Storing | None = None
        asked = opened = 0.0
        for step in row:
            if self._ends(move):
                break
            if storing is not None and step.reopen:
                await storing.release()
                storing = None
            await later(self.net, plan.gap + step.pause)
            if storing is None or storing.over:
                asked = self.net.seconds()
                storing = await self._open(move, move.title, "PACS", row)
                opened = self.net.seconds()
                if storing is None:
                    move.failed += 1
                    move.done += 1
                    continue
            if step.drop_move:
                move.control.close()
            if plan.final == "early" and move.done == total - 1:
                self._final(move)
            if step.to is not None or step.calling != "PACS":
                await self._astray(move, step)
            else:
                await self._one(move, storing, step, move.title, asked, opened)
            move.done += 1
            if plan.pending:
                move.control.answer(
                    Status.PENDING, completed=move.completed, failed=move.failed, remaining=1
                )
            if step.stop:
                break
        if storing is not None:
            if plan.linger and not storing.over:
                # The final response does not wait for it.
                self._run(self._linger(storing, plan.linger))
            else:
                await storing.release()

    async def _linger(self, storing: Storing, seconds: float) -> None:
        await later(self.net, seconds)
        await storing.release()

    async def _astray(self, move: MoveServed, step: Step) -> None:
        """Send to another title, or as somebody else: on an association of its own."""
        called = (
            move.title
            if step.to is None
            else "NOBODY"
            if step.to < 0
            else self.pool[step.to % len(self.pool)]
        )
        asked = self.net.seconds()
        storing = await self._open(move, called, step.calling, [step])
        if storing is not None:
            await self._one(move, storing, step, called, asked, self.net.seconds())
            await storing.release()

    async def _open(self, move: MoveServed, called: str, calling: str, row: list[Step]) -> Storing | None:
        syntaxes = dict.fromkeys(step.instance.syntax for step in row)
        contexts = [(CT, _proposed(syntax, move.plan.proposes_more)) for syntax in syntaxes]
        request = proposal(calling, called, contexts)
        self.touched[called] = self.net.seconds()
        made: list[Storing] = []

        def make() -> Storing:
            made.append(Storing(self.net, request, move.plan.pdu))
            return made[0]

        if self.net.connect(make, HOST, GATEWAY) is None:
            return None
        return made[0] if await made[0].open(5.0) else None

    # -- one instance --------------------------------------------------------------------------------

    async def _one(
        self, move: MoveServed, storing: Storing, step: Step, called: str, asked: float, opened: float
    ) -> None:
        """Carry out one C-STORE, or what stands in its place."""
        own = step.to is None and step.calling == "PACS"
        if step.echo:
            command = Command(CommandField.C_ECHO_RQ, affected_class=VERIFICATION)
            context = storing.context(VERIFICATION, (IMPLICIT,))
            assert context is not None
            storing.raw(b"".join(storing.message(context[0], command, None)))
            began = self.net.seconds()
            answer = await storing.answered(PATIENCE)
            assert answer in (0, None)
            move.impatient |= answer is None and self.net.seconds() - began >= PATIENCE - 0.001
        if step.how in ("skip", "fail"):
            move.completed += step.how == "skip"
            move.failed += step.how == "fail"
            return
        context = storing.context(CT, _sendable(step.instance))
        if context is None:
            move.failed += own
            return
        number, syntax = context
        claim = step.claim or step.instance.uid
        sent = Sent(len(self.sent) + 1, move, step, called, claim, syntax, asked, opened)
        self.sent.append(sent)
        name, originator = self._originator(move, step.originator)
        sent.named = originator
        command = Command(
            CommandField.C_STORE_RQ,
            affected_class=CT,
            affected_instance=claim,
            priority=0,
            originator_ae_title=name,
            originator_message_id=originator,
        )
        pdus = storing.message(number, command, step.instance.data(sent.number, syntax=syntax))
        await self._write(storing, step.how, pdus)
        sent.whole = step.how in WHOLE and not storing.over
        began = self.net.seconds()
        sent.status = await storing.answered(PATIENCE)
        sent.answered_at = self.touched[called] = self.net.seconds()
        if sent.status is None and sent.answered_at - began >= PATIENCE - 0.001:
            move.impatient = True
        if own:
            move.completed += sent.status == Status.SUCCESS
            move.failed += sent.status != Status.SUCCESS

    def _originator(self, move: MoveServed, kind: str) -> tuple[str | None, int | None]:
        running = [each for each in self.moves if each is not move and not each.over]
        other = running[0].number if running else (move.number + 1) % 65536
        return {
            "right": (OURS, move.number),
            "absent": (None, None),
            "wrong title": ("SOMEBODY", move.number),
            "wrong number": (OURS, (move.number + 7) % 65536),
            "other move": (OURS, other),
        }[kind]

    async def _write(self, storing: Storing, how: str, pdus: list[bytes]) -> None:
        stream = b"".join(pdus)
        # What ends a PDU is said between two PDUs; the connection goes in the middle of one.
        half = (
            len(b"".join(pdus[: (len(pdus) + 1) // 2]))
            if how in ("abort", "garbage")
            else len(stream) * 2 // 3
        )
        if how == "whole":
            storing.raw(stream)
            return
        if how == "drip":
            size = len(stream) // _DRIPS + 1
            for start in range(0, len(stream), size):
                if start:
                    await later(self.net, _SLOW)
                if not storing.over:
                    storing.raw(stream[start : start + size])
            return
        storing.raw(stream[:half])
        if how in ("slow", "hang"):
            waiting: Deferred[None] = Deferred()
            await bounded(self.net, waiting, _SLOW if how == "slow" else _HANG)
            if not storing.over:
                storing.raw(stream[half:])
        elif how == "garbage":
            storing.raw(b"\x99\x00\x00\x00\x00\x02no")
        elif how == "abort":
            storing.abort()
        else:
            storing.close()


def _proposed(syntax: str, more: bool) -> tuple[str, ...]:
    if not more:
        return (syntax,)
    return {EXPLICIT: (EXPLICIT, JPEG_LS), IMPLICIT: (IMPLICIT, EXPLICIT), JPEG_LS: (EXPLICIT, JPEG_LS)}[
        syntax
    ]


def _sendable(instance: Instance) -> tuple[str, ...]:
    """Return what the PACS can send an instance in: implicit turned explicit, else only as held."""
    return (IMPLICIT, EXPLICIT) if instance.syntax == IMPLICIT else (instance.syntax,)
