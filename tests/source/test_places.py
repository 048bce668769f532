"""Limits in all and per Consumer, and the line before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from drimbox import metrics
from drimbox.errors import TooManyRequests
from drimbox.source.places import Places

pytestmark = pytest.mark.requirement("DB.SO.35")


class Line:
    """Places, and who asked for one."""

    def __init__(self, total: int = 3, each: int = 2, line: int = 4) -> None:
        self.clock = Clock()
        self.places = Places(total=total, each=each, line=line, clock=self.clock)
        self.leave: list[Callable[[], None]] = []

    def ask(self, consumer: str, timeout: float = 20.0) -> Deferred[None]:
        return Deferred.fromCoroutine(self.places.take(consumer, timeout, self.leave.append))


def refused(asked: Deferred[None]) -> TooManyRequests:
    failures: list[object] = []
    asked.addErrback(lambda failure: failures.append(failure.value))
    assert len(failures) == 1
    assert isinstance(failures[0], TooManyRequests)
    return failures[0]


def test_a_consumer_at_its_limit_waits_while_another_is_served() -> None:
    line = Line()
    line.ask("A"), line.ask("A")
    third = line.ask("A")
    assert not third.called
    assert line.ask("B").called
    line.places.leave("A")
    assert third.called


def test_whoever_has_least_comes_first_then_whoever_waits_longest() -> None:
    line = Line(total=3, each=3, line=8)
    for _ in range(3):
        assert line.ask("A").called
    fourth, first_b, second_b, first_c = line.ask("A"), line.ask("B"), line.ask("B"), line.ask("C")
    line.places.leave("A")
    assert (first_b.called, first_c.called) == (True, False)
    line.places.leave("A")
    assert (first_c.called, second_b.called, fourth.called) == (True, False, False)
    line.places.leave("A")
    assert (fourth.called, second_b.called) == (True, False)


def test_the_line_is_bounded_and_half_of_it_for_each() -> None:
    line = Line(total=3, each=3, line=4)
    for _ in range(3):
        line.ask("A")
    waiting = [line.ask("A"), line.ask("A")]
    error = refused(line.ask("A"))
    assert (error.code, error.status) == ("E1003", 503)
    assert error.retry_after
    waiting += [line.ask("B"), line.ask("C")]
    assert refused(line.ask("D")).retry_after
    assert not any(each.called for each in waiting)


def test_no_line_no_waiting() -> None:
    line = Line(total=3, each=3, line=0)
    for _ in range(3):
        line.ask("A")
    assert refused(line.ask("B"))


def test_the_wait_is_bounded() -> None:
    line = Line()
    line.ask("A"), line.ask("A")
    third = line.ask("A", timeout=7.0)
    line.clock.advance(6.9)
    assert not third.called
    line.clock.advance(0.2)
    assert refused(third).retry_after == 7
    # It left the line: the place that comes free is nobody's.
    line.places.leave("A")
    assert line.ask("A").called
    assert not line.clock.getDelayedCalls()


def test_a_client_that_leaves_the_line_takes_no_place() -> None:
    line = Line()
    line.ask("A"), line.ask("A")
    gone, staying = line.ask("A"), line.ask("A")
    line.leave[0]()
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    line.places.leave("A")
    assert staying.called
    assert not line.clock.getDelayedCalls()


def test_the_figures_are_published() -> None:
    line = Line()
    for _ in range(3):
        line.ask("A")

    def figure(name: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(name)

    assert figure("drimbox_deliveries_running") == 2
    assert figure("drimbox_deliveries_waiting") == 1
    line.places.leave("A")
    assert figure("drimbox_deliveries_running") == 2
    assert figure("drimbox_deliveries_waiting") == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.sampled_from(["ask", "leave", "gone", "late"])), max_size=60
    )
)
def test_no_limit_is_passed_and_no_place_is_lost(steps: list[tuple[str, str]]) -> None:
    line = Line(total=3, each=2, line=6)
    running: list[str] = []
    waiting: list[tuple[str, Deferred[None]]] = []

    def ask(consumer: str) -> None:
        asked = line.ask(consumer, timeout=5.0)
        asked.addErrback(lambda failure: failure.trap(TooManyRequests, CancelledError) and "refused")
        waiting.append((consumer, asked))

    def settle() -> None:
        for each in list(waiting):
            consumer, asked = each
            if asked.called:
                waiting.remove(each)
                if asked.result != "refused":  # type: ignore[attr-defined]
                    running.append(consumer)

    for consumer, step in steps:
        if step == "ask":
            ask(consumer)
        elif step == "leave" and consumer in running:
            running.remove(consumer)
            line.places.leave(consumer)
        elif step == "gone" and line.leave:
            line.leave.pop()()
        elif step == "late":
            line.clock.advance(2.0)
        settle()
        assert len(running) <= 3
        assert all(running.count(name) <= 2 for name in "ABC")
        # Nobody waits for a place that is free.
        assert all(len(running) == 3 or running.count(name) == 2 for name, _ in waiting)
    for consumer in list(running):
        running.remove(consumer)
        line.places.leave(consumer)
        settle()
