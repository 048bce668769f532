"""Any order of events: what a client gets is whole parts in their order, or an answer that is cut."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drimbox.source.parts import Part
from tests.source.answers import FakeArea, FakeChannel, Scene, bare_part

WINDOW = 200


class Answering(RuleBasedStateMachine):
    """Associations push, the client pauses and reads, the disk ends its work or fails, time passes."""

    @initialize(room=st.sampled_from([0, 300, 2000, 1 << 40]), total=st.sampled_from([150, 1 << 40]))
    def begin(self, room: int, total: int) -> None:
        self.scene = Scene(FakeArea(room, enabled=room > 0), window=WINDOW, total=total)
        self.outflow = self.scene.outflow
        self.open: dict[FakeChannel, tuple[Part, bytearray] | None] = {}
        self.whole: dict[int, bytes] = {}
        self.complete = False
        self.counter = 0

    @property
    def over(self) -> bool:
        return self.complete or bool(self.scene.failures)

    @rule()
    def connect(self) -> None:
        if len(self.open) < 3:
            self.open[self.scene.channel()] = None

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data(), size=st.integers(1, 120), last=st.booleans())
    def push(self, data: st.DataObject, size: int, last: bool) -> None:
        readable = [channel for channel in self.open if not channel.paused]
        if not readable:
            return
        channel = data.draw(st.sampled_from(readable))
        part, content = self.open[channel] or (bare_part(channel), bytearray())
        self.counter += 1
        piece = bytes([self.counter % 251]) * size
        content += piece
        self.open[channel] = None if last else (part, content)
        part.ended = last
        if last:
            self.whole[id(part)] = bytes(content)
            part.content = bytes(content)  # type: ignore[attr-defined]
        self.outflow.push(part, [piece])

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(list(self.open)))
        half = self.open.pop(channel)
        self.outflow.leave(channel)
        if half is not None:
            self.outflow.drop(half[0], "association ended inside an instance")

    @rule()
    def client_pauses(self) -> None:
        self.scene.sink.full = True
        self.outflow.pause()

    @rule(full=st.booleans())
    def client_reads(self, full: bool) -> None:
        self.scene.sink.full = full
        self.outflow.resume()

    @rule(steps=st.integers(1, 4))
    def disk_works(self, steps: int) -> None:
        for _ in range(steps):
            self.scene.area.step()

    @rule(chance=st.integers(0, 20))
    def disk_fails(self, chance: int) -> None:
        if chance == 0:
            self.scene.area.step(OSError("disk"))

    @rule(seconds=st.sampled_from([1.0, 5.1]))
    def time_passes(self, seconds: float) -> None:
        self.scene.clock.advance(seconds)

    @precondition(lambda self: not self.over and not any(self.open.values()))
    @rule()
    def finish(self) -> None:
        self.scene.sink.full = False
        self.outflow.resume()
        self.scene.area.settle()
        if not self.over:
            self.outflow.complete()
            self.complete = True

    @invariant()
    def whole_parts_in_order(self) -> None:
        if not hasattr(self, "scene"):
            return
        parts, closed = self.scene.sink.read()
        sent = [part.content for part in self.scene.sent]  # type: ignore[attr-defined]
        # A part is known whole when the next delimiter comes: at most one more was sent than read.
        assert parts == sent[: len(parts)]
        assert len(sent) - len(parts) <= 1
        assert closed == self.complete
        if closed:
            assert parts == sent

    @invariant()
    def failure_is_never_closed(self) -> None:
        if hasattr(self, "scene") and self.scene.failures:
            assert len(self.scene.failures) == 1
            assert not self.scene.sink.finished
            assert self.scene.sink.aborted == bool(self.scene.sink.content_type)

    @invariant()
    def memory_is_counted(self) -> None:
        if not hasattr(self, "scene"):
            return
        assert 0 <= self.outflow.held == self.scene.budget.used
        if self.over:
            assert self.outflow.held == 0
        # The window, one piece beyond it from each association, and what the disk has not taken yet.
        writing = sum(1 for _ in self.scene.area.pending) * 400
        assert self.outflow.held <= WINDOW + 3 * 120 + writing

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        """A paused association has a client, a disk, a head or a clock to wait for."""
        if not hasattr(self, "scene") or self.over:
            return
        if any(channel.paused for channel in self.open):
            waits = self.scene.clock.getDelayedCalls() or self.scene.area.pending
            assert waits, "paused for ever"

    def teardown(self) -> None:
        if hasattr(self, "scene"):
            self.outflow.close()
            self.scene.quiet()
            assert not any(channel.paused for channel in self.open)


Answering.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnswering = Answering.TestCase
