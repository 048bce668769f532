"""A series asked for again comes from the cache: after every check, by the same path, or from the PACS."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.syntaxes import IMPLICIT_LE, JPEG_BASELINE, JPEG_LS_LOSSLESS
from drimbox.errors import TokenInvalid
from drimbox.model import KosState
from drimbox.source import batch, dues
from drimbox.source.attempt import Delivered
from drimbox.wado.accept import parse
from tests.source.answers import CT, EXPLICIT, SERIES, STUDY, FakeSink, command, dataset
from tests.source.cachefakes import FakeCache
from tests.source.test_delivery import KOS, ONE, REQUEST, SITE, TWO, World, kos, result_of

KEY = ("site1", STUDY, SERIES)
pytestmark = pytest.mark.requirement("DB.SO.40")


class CachedWorld(World):
    """The same, with a cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        super().__init__(monkeypatch, **settings)
        self.cache = FakeCache()
        self.deliveries._means = attrs.evolve(self.deliveries._means, cache=self.cache)

    def hold(self, **options: Any) -> None:
        self.cache.put(KEY, (TWO, dataset(TWO)), (ONE, dataset(ONE)), **options)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CachedWorld:
    return CachedWorld(monkeypatch)


def served(world: CachedWorld, **changes: Any) -> tuple[FakeSink, Delivered]:
    sink, asked = world.ask(request=attrs.evolve(REQUEST, **changes))
    return sink, result_of(asked)


def move_all(world: CachedWorld, *instances: str) -> tuple[FakeSink, Deferred[Delivered]]:
    sink, asked = world.ask()
    for instance in instances:
        world.moves[-1].send(instance)
    return sink, asked


# -- keeping


def test_the_second_request_does_not_move_and_gets_the_same_bytes(world: CachedWorld) -> None:
    first, asked = move_all(world, TWO, ONE)
    assert not world.cache.entries
    world.moves[0].over(completed=2)
    assert not result_of(asked).cached
    world.clock.advance(1)
    second, result = served(world)
    assert len(world.moves) == 1
    assert second.finished
    # In the order of the PACS, too.
    assert second.parts() == first.parts()
    assert (result.error, result.instances, result.syntaxes) == (None, 2, {EXPLICIT: 2})
    assert result.cached
    assert result.first_image == 0
    assert world.cache.opened == 0


def test_what_is_kept_is_what_came_not_what_left(world: CachedWorld) -> None:
    _, asked = world.ask()
    move = world.moves[0]
    for instance in (ONE, TWO):
        data = dataset(instance, syntax=IMPLICIT_LE)
        move.receiver.store(move.channel, command(instance), IMPLICIT_LE)
        move.receiver.data(move.channel, data[:300], False)
        move.receiver.data(move.channel, data[300:], True)
    move.over(completed=2)
    assert result_of(asked).error is None
    slots = world.cache.writers[0].slots
    assert [(slot.uid, slot.sop_class, slot.syntax) for slot in slots] == [
        (ONE, CT, IMPLICIT_LE),
        (TWO, CT, IMPLICIT_LE),
    ]
    assert b"".join(slots[0].pieces) == dataset(ONE, syntax=IMPLICIT_LE)


def test_an_answer_does_not_wait_for_the_disk(world: CachedWorld) -> None:
    sink, asked = move_all(world, ONE, TWO)
    world.cache.writers[0].waiting = Deferred()
    world.moves[0].over(completed=2)
    assert sink.finished
    assert result_of(asked).error is None


@pytest.mark.requirement("DB.SO.195")
def test_one_instance_is_not_kept_as_a_series_and_comes_from_one(world: CachedWorld) -> None:
    request = attrs.evolve(REQUEST, instance_uid=TWO)
    _, asked = world.ask(request=request)
    move = world.moves[0]
    assert move.instance_uid == TWO
    move.send(TWO)
    move.over(completed=1)
    assert result_of(asked).error is None
    assert not world.cache.writers
    world.hold()
    sink, asked = world.ask(request=request)
    assert result_of(asked).cached
    assert result_of(asked).instances == 1
    assert len(sink.parts()) == 1
    # The entry is held against the whole series, of which one leaves.
    assert world.cache.asked[-1] == (KEY, frozenset({ONE, TWO}))


def test_what_is_not_complete_is_not_kept(world: CachedWorld) -> None:
    _, asked = move_all(world, ONE)
    world.moves[0].over(0xA702)
    assert result_of(asked).error is not None
    assert [writer.over for writer in world.cache.writers] == ["discarded"]


def test_what_nobody_read_to_its_end_is_not_kept(world: CachedWorld) -> None:
    sink, asked = move_all(world, ONE)
    sink.lost()
    assert result_of(asked).cut
    assert [writer.over for writer in world.cache.writers] == ["discarded"]


def test_what_differs_from_the_kos_is_purged_not_kept(world: CachedWorld) -> None:
    _, asked = move_all(world, ONE, TWO, "2.25.105")
    world.moves[0].over(completed=3)
    assert result_of(asked).differs
    assert [writer.over for writer in world.cache.writers] == ["discarded"]
    assert [slot.uid for slot in world.cache.writers[0].slots] == [ONE, TWO]
    assert world.cache.purged == [("site1", STUDY)]


def test_refused_and_half_received_instances_are_dropped(world: CachedWorld) -> None:
    _, asked = world.ask()
    move = world.moves[0]
    receiver = move.receiver
    receiver.store(move.channel, command(ONE), EXPLICIT)
    receiver.data(move.channel, dataset(ONE, StudyInstanceUID="2.25.9"), True)
    receiver.store(move.channel, command(ONE), EXPLICIT)
    receiver.data(move.channel, dataset(ONE)[:100], False)
    receiver.closed(move.channel, False)
    receiver.opened(move.channel)
    move.send(ONE)
    move.send(ONE)
    move.send(TWO)
    move.over(completed=2)
    assert result_of(asked).error is None
    states = [(slot.uid, slot.state) for slot in world.cache.writers[0].slots]
    assert states == [
        (ONE, "dropped"),
        (ONE, "dropped"),
        (ONE, "ended"),
        (ONE, "dropped"),
        (TWO, "ended"),
    ]


def test_what_the_pacs_may_have_degraded_for_one_client_is_not_kept_for_another(world: CachedWorld) -> None:
    accept = parse(
        [b'multipart/related; type="application/dicom"; transfer-syntax=' + JPEG_BASELINE.encode()]
    )
    for proposed, over in (((EXPLICIT, JPEG_BASELINE), "discarded"), ((JPEG_BASELINE,), "kept")):
        _, asked = world.ask(request=attrs.evolve(REQUEST, acceptable=accept))
        move = world.moves[-1]
        assert move.receiver.choose(ProposedContext(1, CT, proposed)) == JPEG_BASELINE
        for instance in (ONE, TWO):
            move.receiver.store(move.channel, command(instance), JPEG_BASELINE)
            move.receiver.data(move.channel, dataset(instance), True)
        move.over(completed=2)
        assert result_of(asked).error is None
        assert world.cache.writers[-1].over == over


def test_the_reference_study_is_neither_kept_nor_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CachedWorld(monkeypatch, reference_study=STUDY)
    _, asked = move_all(world, ONE)
    world.moves[0].over(completed=1)
    assert result_of(asked).error is None
    assert not world.cache.asked
    assert not world.cache.writers


# -- serving


def test_nothing_is_looked_for_before_every_check(world: CachedWorld) -> None:
    world.hold()
    world.token = TokenInvalid()
    assert served(world)[1].error is world.token
    world.token = None
    for archived, code in (
        ([], "E1001"),
        ([kos(uid="2.25.777")], "E1103"),
        ([kos(KosState.REPLACED)], "E1103"),
    ):
        world.archived = archived
        error = served(world)[1].error
        assert error is not None
        assert error.code == code
    assert not world.cache.asked
    assert not world.moves


def test_the_kos_of_the_request_says_what_the_entry_must_be(
    world: CachedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hold()
    promise = attrs.evolve(dues.promise_of(b""), series={SERIES: frozenset({ONE})})
    monkeypatch.setattr(dues, "promise_of", lambda _: promise)
    _, asked = world.ask()
    assert world.cache.asked == [(KEY, frozenset({ONE}))]
    assert world.moves
    assert not asked.called


def test_an_option_of_the_site_takes_instances_out_of_what_is_due(world: CachedWorld) -> None:
    world.hold()
    site = attrs.evolve(SITE, excluded_uid_roots=(TWO,))
    Deferred.fromCoroutine(world.deliveries.deliver(site, REQUEST, FakeSink()))
    assert world.cache.asked == [(KEY, frozenset({ONE}))]


def test_a_slow_client_holds_the_reading_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CachedWorld(monkeypatch, window=1000, stall_timeout=600.0)
    world.hold()
    world.cache.block = 500
    sink = FakeSink()
    sink.full = True
    _, asked = world.ask(sink)
    reads = world.cache.reads
    assert 0 < reads < 10
    # Longer than any PACS waits.
    world.clock.advance(500)
    assert world.cache.reads == reads
    assert not asked.called
    for _ in range(100):
        sink.resume()
        world.clock.advance(0)
    assert result_of(asked).error is None
    assert len(sink.parts()) == 2
    assert not world.clock.getDelayedCalls()


def test_a_client_that_leaves_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CachedWorld(monkeypatch, window=1000)
    world.hold()
    world.cache.block = 500
    sink = FakeSink()
    sink.full = True
    _, asked = world.ask(sink)
    reads = world.cache.reads
    sink.lost()
    world.clock.advance(0)
    assert result_of(asked).cut
    assert sink.aborted
    assert world.cache.reads == reads
    assert world.cache.opened == 0
    assert not world.moves


@pytest.mark.threat("images of another patient")
def test_damage_before_the_first_byte_asks_the_pacs(world: CachedWorld) -> None:
    world.hold()
    world.cache.damaged = {TWO: 0}
    sink, asked = world.ask()
    assert not sink.content_type
    assert world.cache.opened == 0
    for instance in (ONE, TWO):
        world.moves[0].send(instance)
    world.moves[0].over(completed=2)
    result = result_of(asked)
    assert (result.error, result.cached, result.instances) == (None, False, 2)
    assert len(sink.parts()) == 2
    assert world.cache.writers[-1].over == "kept"
    # The cache has dropped it itself; other series of the study are none the worse.
    assert not world.cache.purged


@pytest.mark.parametrize("damaged", [{TWO: 1200}, {ONE: 0}])
def test_damage_after_the_first_byte_cuts_the_answer(
    world: CachedWorld, damaged: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "TOGETHER", 500)
    world.hold()
    world.cache.block = 100
    world.cache.damaged = damaged
    sink, result = served(world)
    assert sink.aborted
    assert result.cut
    assert result.error is not None
    assert result.error.code == "E1004"
    assert "cache" in str(result.error)
    assert not world.moves


def test_an_entry_that_is_refused_now_is_forgotten_and_the_pacs_asked(world: CachedWorld) -> None:
    world.cache.put(
        KEY, (ONE, dataset(ONE, StudyInstanceUID="2.25.9")), (TWO, dataset(TWO, SeriesInstanceUID="2.25.8"))
    )
    _, asked = world.ask()
    assert world.moves
    assert not asked.called
    assert world.cache.purged == [("site1", STUDY)]


def test_a_form_the_entry_cannot_give_is_asked_of_the_pacs_and_the_entry_stays(world: CachedWorld) -> None:
    world.hold(syntax=JPEG_LS_LOSSLESS)
    accept = parse([b'multipart/related; type="application/dicom"; transfer-syntax=' + EXPLICIT.encode()])
    sink, asked = world.ask(request=attrs.evolve(REQUEST, acceptable=accept))
    assert world.cache.reads == 0
    assert not sink.content_type
    assert not world.cache.purged
    for instance in (ONE, TWO):
        world.moves[0].send(instance)
    world.moves[0].over(completed=2)
    result = result_of(asked)
    assert (result.error, result.cached, result.syntaxes) == (None, False, {EXPLICIT: 2})
    assert sink.finished


# -- purge


def test_a_study_gone_from_the_pacs_leaves_the_cache(world: CachedWorld) -> None:
    world.cache.put(("site1", STUDY, "2.25.1"), (ONE, dataset(ONE)))
    world.cache.put(("site1", "2.25.2", "2.25.3"), (ONE, dataset(ONE)))
    _, asked = world.ask()
    world.moves[0].over(completed=0)
    error = result_of(asked).error
    assert error is not None
    assert error.code == "E1002"
    assert list(world.cache.entries) == [("site1", "2.25.2", "2.25.3")]


def test_a_depublished_study_leaves_the_cache(world: CachedWorld) -> None:
    world.hold()
    world.archived = [kos(KosState.DEPUBLISHED, uid=KOS)]
    assert served(world)[1].error is not None
    assert not world.cache.entries


def test_the_life_cycle_clears_a_study(world: CachedWorld) -> None:
    world.hold()
    Deferred.fromCoroutine(world.deliveries.forget("site1", STUDY))
    assert not world.cache.entries
