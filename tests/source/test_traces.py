"""No byte of an answer leaves before its record is safe, and the PACS does not wait for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox.audit import messages
from drimbox.errors import AuditUnavailable, TokenInvalid
from drimbox.ports import AuditEvent, Count
from drimbox.source.attempt import ClientGone, Delivered
from drimbox.source.clearance import Clearance
from drimbox.source.traces import Trace
from tests.source.answers import FakeSink
from tests.source.test_delivery import ONE, REQUEST, TWO, World, kos, result_of
from tests.source.test_delivery_cache import CachedWorld

pytestmark = pytest.mark.requirement("DB.SO.46", "DB.SO.47")


class Records:
    """A store that answers when the test says so (a `ports.OpenRecords`)."""

    def __init__(self) -> None:
        self.asked: Deferred[None] = Deferred()
        self.rows: dict[str, AuditEvent] = {}
        self.ended: list[tuple[str, AuditEvent, list[Count], bool]] = []

    async def begin(self, key: str, event: AuditEvent, counts: Sequence[Count]) -> None:
        self.rows[key] = event
        await self.asked

    async def end(self, key: str, event: AuditEvent, counts: Sequence[Count], *, begun: bool) -> None:
        self.ended.append((key, event, list(counts), begun))


def trace_of(records: Records) -> Trace:
    def describe(result: Delivered) -> AuditEvent:
        return messages.images_served(
            study_uid=result.study_uid,
            caller_address="192.0.2.7",
            source_name="db1.349.example",
            kos=result.kos,
            introspection=result.introspection,
            error=result.error,
            cut=result.cut,
        )

    return Trace(records, REQUEST, describe)


class Scene:
    """One request whose record the store is asked to open."""

    def __init__(self, world: World, sink: FakeSink | None = None) -> None:
        self.world, self.records = world, Records()
        self.trace = trace_of(self.records)
        self.sink, self.asked = world.ask(sink, begin=self.trace.begin)

    def move(self, *instances: str, over: bool = True) -> None:
        """Let the PACS send these, and end."""
        for instance in instances:
            self.world.moves[0].send(instance)
        if over:
            self.world.moves[0].over(completed=len(instances))

    def end(self) -> Delivered:
        """Write the record of the end."""
        result = result_of(self.asked)
        done = Deferred.fromCoroutine(self.trace.end(result))
        assert done.called
        return result


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(World(monkeypatch))


def test_the_pacs_sends_meanwhile_and_nothing_leaves(scene: Scene) -> None:
    (event,) = scene.records.rows.values()
    assert event.participants[0].alternative_user_id == "899700000000"
    assert event.patient_ins == kos().patient_ins
    scene.move(ONE, TWO)
    assert [status for _, status in scene.world.moves[0].channel.answers] == [0, 0]
    assert not scene.sink.content_type
    assert not scene.asked.called
    scene.records.asked.callback(None)
    assert scene.sink.finished
    assert len(scene.sink.read()[0]) == 2
    assert scene.end().error is None
    ((key, event, _, begun),) = scene.records.ended
    assert (list(scene.records.rows), begun, event.outcome) == ([key], True, 0)


def test_once_it_is_safe_the_images_flow_as_they_come(scene: Scene) -> None:
    scene.records.asked.callback(None)
    scene.move(ONE, over=False)
    assert scene.sink.output
    scene.move(TWO, over=False)
    scene.world.moves[0].over(completed=2)
    assert scene.end().error is None


def test_a_store_that_refuses_lets_nothing_leave_and_ends_the_move(scene: Scene) -> None:
    scene.move(ONE, over=False)
    scene.records.asked.errback(OSError("disk full"))
    result = scene.end()
    assert isinstance(result.error, AuditUnavailable)
    assert (result.error.code, result.error.status, result.cut) == ("E1104", 503, False)
    assert not scene.sink.content_type
    assert scene.world.abandoned == 1
    ((_, event, _, begun),) = scene.records.ended
    assert (begun, event.outcome) == (False, 4)


def test_a_store_that_refuses_at_once_has_no_image_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world, records = World(monkeypatch), Records()
    records.asked.errback(OSError("disk full"))
    _, asked = world.ask(begin=trace_of(records).begin)
    assert isinstance(result_of(asked).error, AuditUnavailable)
    assert not world.moves[0].receiver._outflow.started


def test_a_client_that_leaves_meanwhile_has_its_end_recorded_after_the_beginning(scene: Scene) -> None:
    scene.move(ONE, over=False)
    scene.sink.lost()
    result = result_of(scene.asked)
    assert isinstance(result.error, ClientGone)
    done = Deferred.fromCoroutine(scene.trace.end(result))
    assert not done.called
    scene.records.asked.callback(None)
    assert done.called
    assert scene.records.ended[0][3]
    assert not scene.sink.content_type


def test_what_the_cache_holds_waits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CachedWorld(monkeypatch)
    world.hold()
    scene = Scene(world)
    assert not scene.sink.content_type
    scene.records.asked.callback(None)
    assert len(scene.sink.read()[0]) == 2
    assert scene.end().cached


def test_a_request_without_a_good_token_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.token = TokenInvalid()
    scene = Scene(world)
    scene.end()
    assert scene.records.rows == {}
    assert not scene.records.ended[0][3]


def test_a_clearance_is_told_once_to_each_whenever_they_ask() -> None:
    work: Deferred[None] = Deferred()
    told: list[str] = []

    async def wait() -> None:
        await work

    clearance = Clearance(wait())
    clearance.listen(lambda: told.append("first"), lambda error: told.append("no"))
    settled = Deferred.fromCoroutine(clearance.settled())
    assert (told, clearance.granted, settled.called) == ([], False, False)
    work.callback(None)
    clearance.listen(lambda: told.append("second"), lambda error: told.append("no"))
    result: Any = settled
    assert (told, clearance.granted, result.result) == (["first", "second"], True, True)


def test_the_request_for_one_instance_counts_nowhere_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[Count]] = []

    class Counting(Records):
        async def begin(self, key: str, event: AuditEvent, counts: Sequence[Count]) -> None:
            seen.append(list(counts))

    for request in (REQUEST, attrs.evolve(REQUEST, instance_uid=ONE)):
        result = Delivered(REQUEST.study_uid, "site1", kos=kos())
        assert Trace(Counting(), request, trace_of(Records())._describe).begin(result).granted
    assert seen == [[Count("STF08", kos().structure_id, "site1")], []]
