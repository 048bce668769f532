"""The PACS test: what it measures, when it gives way, what it says of a run that measured nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from drimbox import metrics
from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.negotiation import ProposedContext
from drimbox.errors import (
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
    ServiceDisabled,
    TooManyRequests,
)
from drimbox.periodic import Periodic
from drimbox.ports import SpeedMeasure
from drimbox.source.speedtest import ROOM_WAIT, Counter, NoReferenceStudy, Tally
from tests.source.speedworld import CT, EXPLICIT, START, STEP, STUDY, Channel, Plan, World, study


def gauge(name: str, site: str = "radio") -> float | None:
    return metrics.REGISTRY.get_sample_value(name, {"site": site})


def counted(result: str, site: str = "radio") -> float:
    labels = {"site": site, "result": result}
    return metrics.REGISTRY.get_sample_value("drimbox_speedtests_total", labels) or 0.0


# --- what is measured -------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.102", "DB.SO.156", "DB.SO.87")
def test_latency_and_duration_are_those_of_the_statistics() -> None:
    world = World(3, 2)
    done = counted("done")
    # STF21: C-MOVE to first confirmation. STF20: first to last confirmation, the second move included.
    duration = 2 * 0.125 + 0.5 + 0.25 + 0.125
    assert world.once() == SpeedMeasure("radio", START + timedelta(seconds=1000), 0.25, duration, 5, 500)
    assert world.moved == [f"{STUDY}.0", f"{STUDY}.1"]
    assert gauge("drimbox_speedtest_latency_seconds") == 0.25
    assert gauge("drimbox_speedtest_duration_seconds") == duration
    assert counted("done") == done + 1
    assert (world.free, world.clock.getDelayedCalls()) == (3, [])


def test_what_comes_before_the_first_move_is_no_latency() -> None:
    world = World(1)
    world.find_pause = Deferred()
    world.tests.start(world.site)
    world.pass_time(3)
    world.find_pause.callback(None)
    world.pass_until(lambda: world.kept)
    assert (world.kept[0].latency, world.kept[0].duration) == (0.25, 0.0)


def test_what_comes_after_the_last_image_is_no_transfer() -> None:
    world = World(2)
    world.plan = Plan(tail=20.0)
    assert world.once().duration == 0.125


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    latency=st.integers(0, 40),
    gap=st.integers(0, 10),
    tail=st.integers(0, 10),
)
def test_the_figures_of_any_study_add_up(counts: list[int], latency: int, gap: int, tail: int) -> None:
    world = World(*counts)
    world.plan = Plan(latency=latency * STEP, gap=gap * STEP, tail=tail * STEP)
    measure = world.once()
    between = (tail + latency) * (len(counts) - 1)
    within = sum(count - 1 for count in counts) * gap
    # Each call of the clock at 0 s still takes one step.
    late = sum(counts) * 2 * STEP * (1 if 0 in (latency, gap, tail) else 0)
    assert measure.latency is not None
    assert measure.duration is not None
    assert latency * STEP <= measure.latency <= (latency + 1) * STEP
    assert (between + within) * STEP <= measure.duration <= (between + within) * STEP + late
    assert (measure.images, measure.bytes) == (sum(counts), sum(counts) * 100)


def test_foreign_and_repeated_instances_prove_nothing() -> None:
    world = World(2)
    world.plan = Plan(foreign=2, repeat=True)
    measure = world.once()
    # Latency ends with the first image of the study, after two foreign ones.
    assert (measure.images, measure.latency) == (2, 0.25 + 2 * 0.125)
    assert measure.bytes == 4 * 200


def test_the_syntax_the_pacs_names_first_is_accepted() -> None:
    counter = Counter(World().clock, {"1"}, Tally())
    assert counter.choose(ProposedContext(1, CT, ("1.2.840.10008.1.2.4.80", EXPLICIT))) == (
        "1.2.840.10008.1.2.4.80"
    )
    assert counter.choose(ProposedContext(1, CT, ())) is None


def test_an_instance_half_received_is_forgotten_with_its_association() -> None:
    world = World()
    tally = Tally()
    counter = Counter(world.clock, {"2.25.1"}, tally)
    channel = Channel()
    counter.store(channel, Command(CommandField.C_STORE_RQ, 1, affected_instance="2.25.1"), EXPLICIT)
    counter.data(channel, b"abc", False)
    assert (counter.busy, counter.satisfied, counter.last_activity) == (True, False, 1000)
    counter.closed(channel, False)
    assert (counter.busy, counter.satisfied, tally.images, channel.answers) == (False, False, 0, [])


def test_a_series_is_satisfied_when_its_last_image_is_confirmed() -> None:
    counter = Counter(World().clock, {"2.25.1", "2.25.2"}, Tally())
    seen = []
    for uid in ("2.25.1", "2.25.9", "2.25.2"):
        counter.store(Channel(), Command(CommandField.C_STORE_RQ, 1, affected_instance=uid), EXPLICIT)
        channel = next(iter(counter._current))
        counter.data(channel, b"abc", True)
        seen.append(counter.satisfied)
    assert seen == [False, False, True]


# --- what fails -------------------------------------------------------------------------------------


def never(world: World) -> None:
    """A PACS that never answers: the retrieval gives up for us."""
    world.plan = Plan(failure=RetrieveTimeout("aucune image du PACS après 60 s"))


FAULTS: dict[str, tuple[Callable[[World], Any], str]] = {
    "study absent": (lambda w: setattr(w, "study", None), "E1002"),
    "study without image": (lambda w: setattr(w, "study", study(0)), "E1002"),
    "question unanswered": (
        lambda w: setattr(w, "find_failure", PacsCommunicationError("injoignable")),
        "E1004",
    ),
    "move refused": (lambda w: setattr(w, "plan", Plan(failure=PacsUnavailable("rejetée"))), "E1004"),
    "silent": (never, "E1005"),
    "incomplete": (lambda w: setattr(w, "plan", Plan(skip=1)), "E1004"),
    "failed at the end": (lambda w: setattr(w, "plan", Plan(status=0xA702)), "E1004"),
    "bug": (lambda w: setattr(w, "find_failure", ZeroDivisionError()), "E1104"),
}


@pytest.mark.requirement("DB.SO.102", "DB.SO.155")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_kept_with_its_code_and_measures_nothing(fault: str) -> None:
    world = World(3, 2)
    spoil, code = FAULTS[fault]
    spoil(world)
    latency, failed = gauge("drimbox_speedtest_latency_seconds"), counted("failed")
    world.scheduled()
    world.pass_until(lambda: world.kept)
    (measure,) = world.kept
    assert measure.error.startswith(f"{code} - ")
    assert (measure.latency, measure.duration) == (None, None)
    assert world.notices["speedtest-radio"][0] == code
    assert measure.error in world.notices["speedtest-radio"][1]
    assert gauge("drimbox_speedtest_latency_seconds") == latency
    assert counted("failed") == failed + 1
    assert (world.free, world.clock.getDelayedCalls()) == (3, [])
    # What can be mended leaves no trace in the next run, and closes the notice.
    world.study, world.find_failure, world.plan = study(3, 2), None, Plan()
    assert world.once().error == ""
    assert world.notices == {}


def test_a_failure_on_the_way_says_how_far_it_came() -> None:
    world = World(3, 2)
    number = world.tests.start(world.site)
    world.pass_until(lambda: world.moved == [f"{STUDY}.0"])
    world.study = study(3, 1)  # the PACS has lost an image meanwhile
    world.pass_until(lambda: world.tests.progress(world.site).ended == number)
    (measure,) = world.kept
    assert (measure.images, measure.bytes, measure.latency) == (4, 400, None)
    assert "1 images manquantes" in measure.error


def test_whoever_asked_sees_the_failure_and_gets_no_notice() -> None:
    world = World()
    world.study = None
    assert world.once().error.startswith("E1002")
    assert world.notices == {}


def test_a_test_of_enormous_length_is_ended() -> None:
    world = World(1)
    world.plan = Plan(silent=True)
    world.tests.start(world.site)
    world.clock.pump([1.0] * 602)
    assert world.kept[0].error.startswith("E1005")
    assert (world.abandoned, world.clock.getDelayedCalls()) == (1, [])


def test_a_clock_set_back_is_no_measure() -> None:
    world = World(2)
    world.plan = Plan(jump=3600.0)
    measure = world.once()
    assert measure.error.startswith("E1104")
    assert "horloge" in measure.error


def test_a_store_that_fails_does_not_block_the_next_run() -> None:
    world = World()
    world.add_failure = OSError("disque plein")
    world.tests.start(world.site)
    world.pass_until(lambda: not world.tests.progress(world.site).running)
    assert world.kept == []
    last = world.tests.progress(world.site).last
    assert last is not None
    assert last.latency == 0.25
    world.add_failure = None
    assert world.once().error == ""


def test_without_reference_study_there_is_no_test() -> None:
    world = World(study=None)
    with pytest.raises(NoReferenceStudy):
        world.tests.start(world.site)
    assert not world.tests.progress(world.site).running


# --- images for people come first -------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.102", "DB.SO.35")
@pytest.mark.parametrize(("pool", "free"), [(3, 1), (3, 0), (1, 0)])
def test_a_busy_pool_makes_it_wait_then_skip(pool: int, free: int) -> None:
    world = World(pool=pool)
    world.free = free
    skipped = counted("skipped")
    world.scheduled()
    world.pass_time(ROOM_WAIT - 0.5)
    assert world.kept == []
    world.pass_time(1)
    (measure,) = world.kept
    assert measure.error.startswith("E1003 - ")
    assert (world.moved, world.notices, counted("skipped")) == ([], {}, skipped + 1)


@pytest.mark.parametrize(("pool", "free"), [(3, 2), (1, 1)])
def test_it_begins_as_soon_as_a_title_is_to_spare(pool: int, free: int) -> None:
    world = World(1, pool=pool)
    world.free = 0
    world.tests.start(world.site)
    world.pass_time(2)
    world.free = free
    world.pass_until(lambda: world.moved, seconds=0.25)
    world.pass_until(lambda: world.kept)
    assert world.kept[0].error == ""


def test_it_does_not_begin_while_somebody_waits() -> None:
    world = World()
    world.waiting = 1
    assert world.once().error.startswith("E1003")
    assert world.moved == []


@pytest.mark.requirement("DB.SO.102", "DB.SO.35")
def test_it_gives_its_title_back_when_somebody_has_to_wait() -> None:
    world = World(1)
    world.plan = Plan(latency=30.0)
    world.tests.start(world.site)
    world.pass_time(1)
    assert world.free == 2
    world.waiting = 1
    world.pass_until(lambda: world.free == 3, seconds=0.5)
    (measure,) = world.kept
    assert measure.error.startswith("E1003 - ")
    assert "délivrance" in measure.error
    assert (world.abandoned, world.clock.getDelayedCalls()) == (1, [])


def test_the_second_series_only_needs_the_title_of_the_first() -> None:
    world = World(1, 1)
    world.tests.start(world.site)
    world.pass_until(lambda: world.moved)
    world.free = 0  # the others are taken by deliveries that need not wait
    world.pass_until(lambda: world.kept)
    assert world.kept[0].error == ""


def test_a_title_taken_between_the_look_and_the_lease_is_a_skip() -> None:
    world = World()
    world.plan = Plan(failure=TooManyRequests("aucun titre AE libre"))
    world.scheduled()
    world.pass_until(lambda: world.kept)
    assert world.kept[0].error.startswith("E1003")
    assert world.notices == {}


# --- at its hour, never twice -----------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.155")
def test_it_runs_by_itself_at_the_period_of_its_site() -> None:
    world = World(1, period=60.0)
    service = Periodic(
        "essai", lambda: world.tests.run_if_due(world.site), 60.0, world.clock, first=0, random=lambda: 0.5
    )
    service.startService()
    world.clock.pump([0.25] * 4 * 182)
    starts = [each.started_at - START for each in world.kept]
    assert [round(each.total_seconds()) for each in starts] == [1000, 1060, 1120, 1180]
    assert {each.latency for each in world.kept} == {0.25}


@pytest.mark.requirement("DB.SO.155")
def test_a_process_that_starts_again_and_again_tests_no_more_often() -> None:
    world = World(1)
    world.scheduled()
    world.pass_until(lambda: world.kept)
    world.clock.advance(1700)
    world.scheduled()
    world.pass_time(3)
    assert len(world.kept) == 1
    world.clock.advance(200)
    world.scheduled()
    world.pass_time(3)
    assert len(world.kept) == 2
    # An instant from before the clock was set back proves nothing.
    world.clock.rightNow -= 86400
    world.scheduled()
    world.pass_time(3)
    assert len(world.kept) == 3


@pytest.mark.requirement("DB.SO.156")
def test_two_requests_at_once_are_one_run() -> None:
    world = World(3)
    scheduled = world.scheduled()
    world.pass_time(0.3)
    assert world.tests.start(world.site) == world.tests.start(world.site) == 1
    assert world.scheduled().called
    assert not scheduled.called
    world.pass_until(lambda: world.kept)
    world.pass_time(5)
    assert (len(world.kept), world.most_running, scheduled.called) == (1, 1, True)
    assert world.tests.start(world.site) == 2


def test_two_sites_may_run_at_once() -> None:
    world = World(3)
    other = world.make_site("cardio")
    world.tests.start(world.site)
    world.tests.start(other)
    world.pass_until(lambda: len(world.kept) == 2)
    assert world.most_running == 2
    assert {each.site for each in world.kept} == {"radio", "cardio"}


# --- the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["asking", "waiting", "moving"])
def test_a_stop_ends_the_run_and_notes_nothing(when: str) -> None:
    world = World(1)
    if when == "asking":
        world.find_pause = Deferred()
    elif when == "waiting":
        world.free = 0
    else:
        world.plan = Plan(silent=True)
    ended = world.scheduled()
    world.pass_time(1)
    stopped = Deferred.fromCoroutine(world.tests.stop())
    if world.find_pause is not None:
        assert not stopped.called
        world.find_pause.callback(None)
    world.pass_time(0.25)
    assert (stopped.called, ended.called, world.kept, world.notices) == (True, True, [], {})
    assert world.clock.getDelayedCalls() == []
    with pytest.raises(ServiceDisabled):
        world.tests.start(world.site)


def test_a_stop_without_a_run_is_over_at_once() -> None:
    assert Deferred.fromCoroutine(World().tests.stop()).called
