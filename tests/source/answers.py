"""What stands around an outflow in its tests: a client, associations and a disk, all played by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.pdu import Buffer
from drimbox.ports import SpoolFull
from drimbox.source.budget import Budget
from drimbox.source.outflow import Outflow
from drimbox.source.parts import Part
from drimbox.wado.multipart import End, MultipartParser, PartBegin, PartData, PartEnd, boundary_of
from tests.dicom import datasets

STUDY, SERIES, CT = "2.25.101", "2.25.102", "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = datasets.EXPLICIT


class FakeSink:
    """A client: `full` pauses the outflow after every write, as a connection without room does."""

    def __init__(self) -> None:
        self.content_type = ""
        self.output = bytearray()
        self.finished = self.aborted = False
        self.full = False
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        self.lost: Callable[[], None] = lambda: None

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        self.pause, self.resume, self.lost = pause, resume, lost

    def start(self, content_type: str) -> None:
        assert not self.content_type
        self.content_type = content_type

    def write(self, *pieces: Buffer) -> None:
        assert self.content_type
        assert not self.finished
        assert not self.aborted
        self.output += b"".join(pieces)
        if self.full:
            self.pause()

    def finish(self) -> None:
        assert not self.finished
        assert not self.aborted
        self.finished = True

    def abort(self) -> None:
        assert not self.finished
        self.aborted = True

    def parts(self) -> list[bytes]:
        """Return the whole parts of what came out."""
        return self.read()[0]

    def read(self) -> tuple[list[bytes], bool]:
        """Return the whole parts of what came out, and whether the closing delimiter did."""
        if not self.content_type:
            return [], False
        parser = MultipartParser(boundary_of(self.content_type.encode()))
        whole: list[bytes] = []
        current = bytearray()
        closed = False
        for event in parser.feed(bytes(self.output)):
            if isinstance(event, PartBegin):
                current = bytearray()
            elif isinstance(event, PartData):
                current += event.data
            elif isinstance(event, PartEnd):
                whole.append(bytes(current))
            elif isinstance(event, End):
                closed = True
        return whole, closed


class FakeChannel:
    """An association of the PACS."""

    def __init__(self) -> None:
        self.paused = False
        self.answers: list[tuple[str, int]] = []

    def respond(self, command: Command, status: int) -> None:
        self.answers.append((command.affected_instance or "", int(status)))

    def pause(self) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        raise AssertionError("nobody aborts it here")


class FakeArea:
    """A spool whose operations end when the test says so; `room` is what may be reserved in all."""

    def __init__(self, room: int = 1 << 40, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.room = room
        self.files: list[FakeFile] = []
        self.pending: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def open(self) -> FakeFile:
        self.files.append(FakeFile(self))
        return self.files[-1]

    def step(self, error: Exception | None = None) -> bool:
        """End the oldest operation, with `error` if given."""
        if not self.pending:
            return False
        waiting, work = self.pending.pop(0)
        if error is not None:
            waiting.errback(error)
        else:
            waiting.callback(work())
        return True

    def settle(self) -> None:
        """End every operation, and what follows from it."""
        while self.step():
            pass


class FakeFile:
    """One spool file in memory."""

    def __init__(self, area: FakeArea) -> None:
        self._area = area
        self._data = bytearray()
        self._size = 0
        self.closed = False

    def reserve(self, size: int) -> int:
        assert not self.closed
        if self._size + size > self._area.room:
            raise SpoolFull
        offset = self._size
        self._size += size
        return offset

    async def write(self, offset: int, data: bytes) -> None:
        def work() -> None:
            missing = offset + len(data) - len(self._data)
            self._data += bytes(max(0, missing))
            self._data[offset : offset + len(data)] = data

        await self._later(work)

    async def read(self, offset: int, size: int) -> bytes:
        def work() -> bytes:
            data = bytes(self._data[offset : offset + size])
            assert len(data) == size
            return data

        return bytes(await self._later(work))

    def empty(self) -> None:
        self._size = 0

    async def close(self) -> None:
        assert not self.closed
        self.closed = True

    async def _later(self, work: Callable[[], Any]) -> Any:
        assert not self.closed
        waiting: Deferred[Any] = Deferred()
        self._area.pending.append((waiting, work))
        return await waiting


class Scene:
    """An outflow between a client, a disk and a clock."""

    def __init__(self, area: FakeArea | None = None, *, window: int = 1000, total: int = 1 << 40) -> None:
        self.clock = Clock()
        self.sink = FakeSink()
        self.area = area or FakeArea()
        self.budget = Budget(total)
        self.failures: list[str] = []
        self.sent: list[Part] = []
        self.released = 0
        self.outflow = self.another(self.sink, window)

    def another(self, sink: FakeSink, window: int = 1000) -> Outflow:
        """Make a second answer that shares disk and budget."""
        outflow = Outflow(
            sink,
            host="db1.349.example",
            clock=self.clock,
            budget=self.budget,
            spool=self.area,
            window=window,
            patience=5.0,
            stall=60.0,
            on_fail=self.failures.append,
        )
        outflow.attach(self.sent.append, self._let_go)
        sink.listen(pause=outflow.pause, resume=outflow.resume, lost=lambda: outflow.fail("lost"))
        return outflow

    def _let_go(self) -> None:
        self.released += 1

    def channel(self) -> FakeChannel:
        """Open an association."""
        channel = FakeChannel()
        self.outflow.join(channel)
        return channel

    def quiet(self) -> None:
        """Check that nothing is left behind: memory, timers, files."""
        self.area.settle()
        assert self.budget.used == 0
        assert self.outflow.held == 0
        assert not self.clock.getDelayedCalls()
        assert all(file.closed for file in self.area.files)


def command(instance: str = "2.25.103", sop_class: str = CT) -> Command:
    """Make the command set of a C-STORE."""
    return Command(
        CommandField.C_STORE_RQ,
        message_id=1,
        affected_class=sop_class,
        affected_instance=instance,
        has_dataset=True,
    )


def bare_part(channel: FakeChannel | None = None, instance: str = "2.25.103") -> Part:
    """Make a part for pushing any bytes as if they were verified."""
    return Part(command(instance), EXPLICIT, study_uid=STUDY, series_uid=SERIES, channel=channel)


def dataset(instance: str = "2.25.103", *, syntax: str = EXPLICIT, **changes: str) -> bytes:
    """Encode a small CT image; `changes` are attributes given other values."""
    data = datasets.ct()
    data.SOPInstanceUID = instance
    for name, value in changes.items():
        setattr(data, name, value)
    return datasets.encode(data, syntax)
