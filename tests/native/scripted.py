"""A store whose every answer the test gives, and a receiver that notes what reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.config import Native
from drimbox.dicom.moving import Channel, MoveResult
from drimbox.dicom.part10 import file_preamble
from drimbox.model import Instance, Series, Study
from drimbox.native.places import Places
from drimbox.native.pull import Pull
from drimbox.native.store import ImageStore, StoredInstance

STUDY, SERIES = "2.25.1", "2.25.2"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"
#: What the script of a store may hold for one step: bytes, an exception, or a wait for the test.
Step = bytes | Exception | Deferred[Any]


def uid(number: int) -> str:
    return f"2.25.1000.{number}"


def data_set(number: int, size: int = 2000) -> bytes:
    return bytes((number + place) % 251 for place in range(size))


def part10(
    number: int, data: bytes | None = None, *, syntax: str = EXPLICIT, preamble: bytes = b""
) -> bytes:
    head = file_preamble(CT, uid(number), syntax)
    return preamble.ljust(128, b"\0")[:128] + head[128:] + (data_set(number) if data is None else data)


def study(*numbers: int) -> Study:
    images = tuple(Instance(uid(number), CT, number) for number in numbers)
    return Study(STUDY, (Series(SERIES, "CT", images),))


class ScriptedStore(ImageStore):
    """Lists and reads what its script says. A Deferred in it is waited for; its result is the block."""

    def __init__(self) -> None:
        self.listing: list[StoredInstance | Step] = []
        self.files: dict[str, list[Step]] = {}
        self.study: Any = None
        self.asked: list[str] = []
        #: Files being read, and those whose reading was closed.
        self.open: set[str] = set()
        self.closed: list[str] = []
        self.most = 0

    def hold(self, *numbers: int, syntax: str = EXPLICIT) -> None:
        for number in numbers:
            self.listing.append(StoredInstance(uid(number), CT, syntax))
            self.files[uid(number)] = [part10(number, syntax=syntax)]

    async def find_study(self, study_uid: str) -> Any:
        answer = self.study
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, Deferred) else answer

    async def instances(
        self, study_uid: str, series_uid: str, instance_uid: str | None = None
    ) -> AsyncIterator[StoredInstance]:
        self.asked.append("list")
        for step in self.listing:
            if isinstance(step, StoredInstance):
                if instance_uid in (None, step.sop_instance_uid):
                    yield step
            else:
                await _played(step)

    async def read(self, instance: StoredInstance) -> AsyncIterator[bytes]:
        name = instance.sop_instance_uid
        self.asked.append(name)
        self.open.add(name)
        self.most = max(self.most, len(self.open))
        try:
            for step in self.files[name]:
                yield await _played(step)
        finally:
            self.open.discard(name)
            self.closed.append(name)


async def _played(step: Step) -> Any:
    if isinstance(step, Exception):
        raise step
    return await step if isinstance(step, Deferred) else step


@attrs.define
class Arrival:
    """One instance as the receiver got it."""

    uid: str
    syntax: str
    channel: Any
    data: bytes = b""
    whole: bool = False


class Receiver:
    """A `MoveReceiver` that takes the syntaxes it is told to."""

    last_activity = 0.0
    busy = held_back = satisfied = False

    def __init__(self, *takes: str, decodes: tuple[str, ...] = ()) -> None:
        self.takes = takes or (EXPLICIT, JPEG_LS)
        self.decodes = decodes
        self.proposed: list[tuple[str, str]] = []
        self.arrived: list[Arrival] = []
        self.channels: list[Any] = []
        self.ended: list[tuple[Any, bool]] = []
        self.pieces = 0
        self.on_data: Callable[[Any], None] = lambda channel: None
        self._current: dict[Channel, Arrival] = {}

    def choose(self, context: Any) -> str | None:
        (syntax,) = context.transfer_syntaxes
        self.proposed.append((context.abstract_syntax, syntax))
        return syntax if syntax in self.takes else None

    def second_choice(self, context: Any) -> str | None:
        (syntax,) = context.transfer_syntaxes
        return syntax if syntax in self.decodes else None

    def opened(self, channel: Any) -> None:
        assert channel not in self.channels
        self.channels.append(channel)

    def store(self, channel: Any, command: Any, transfer_syntax: str) -> None:
        assert channel in self.channels
        assert channel not in self._current
        assert command.affected_class == CT
        arrival = Arrival(command.affected_instance, transfer_syntax, channel)
        self._current[channel] = arrival
        self.arrived.append(arrival)

    def data(self, channel: Any, piece: Any, last: bool) -> None:
        arrival = self._current[channel]
        assert len(piece)
        arrival.data += bytes(piece)
        self.pieces += 1
        if last:
            arrival.whole = True
            del self._current[channel]
            channel.respond(None, 0)
        self.on_data(channel)

    def closed(self, channel: Any, clean: bool) -> None:
        self.ended.append((channel, clean))
        self._current.pop(channel, None)

    @property
    def whole(self) -> dict[str, bytes]:
        return {each.uid: each.data for each in self.arrived if each.whole}


class Scene:
    """A store, a receiver and a clock around one pull after the other."""

    def __init__(self, receiver: Receiver | None = None, **settings: Any) -> None:
        self.clock: Any = Clock()
        self.store = ScriptedStore()
        self.receiver = receiver or Receiver()
        keys = {"parallel": 1, "timeout": 10.0, "ceiling": 100.0, **settings}
        self.settings = Native("A", "python", factory="x:y", **keys)
        self.places = Places(self.settings.max_readings, self.clock)

    def pull(
        self, *, needed: Any = None, wait: float = 5.0, instance: str | None = None, receiver: Any = None
    ) -> tuple[Pull, Deferred[MoveResult]]:
        pull = Pull(self.store, self.settings, self.places, receiver or self.receiver, self.clock, needed)
        return pull, started(pull.run(STUDY, SERIES, wait=wait, instance_uid=instance))

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(2000):
            self.clock.advance(0)


def started(work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


def result(work: Deferred[Any]) -> Any:
    """Return what a Deferred has, or raise it."""
    got: list[Any] = []
    work.addBoth(got.append)
    assert got, "it waits for something"
    if hasattr(got[0], "raiseException"):
        got[0].raiseException()
    return got[0]


NOWHERE = Path("/nowhere")
