"""The pool of AE titles under a clock: waiting, every way back, and the quarantine."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from drimbox import metrics
from drimbox.dicom.aetitles import Pools, Title, TitleState
from drimbox.errors import TooManyRequests
from tests.dicom.box import PACS, Sink, apart

FREE, LEASED, QUARANTINED = TitleState.FREE, TitleState.LEASED, TitleState.QUARANTINED


class Line:
    """An association that is open on a title."""

    def __init__(self, title: Title | None = None) -> None:
        self.title = title
        self.aborted = 0

    def abort(self) -> None:
        """The connection closes a moment later, as a real one."""
        self.aborted += 1

    def respond(self, command: Any, status: int) -> None:
        """Not needed."""

    pause = resume = lambda self: None


class Bench:
    """One pool of two titles under a clock."""

    def __init__(self, **changes: Any) -> None:
        self.clock = Clock()
        self.pacs = attrs.evolve(PACS, quarantine=60.0, **changes)
        self.pools = Pools([self.pacs], self.clock)
        self.pool = self.pools.by_pacs["p1"]

    def lease(self, timeout: float = 0) -> Any:
        """Ask for a title; look at `called`, `result`."""
        return apart(self.pool.lease(Sink(self.clock), timeout))

    def title(self) -> Title:
        """Lease one that is free."""
        title: Title = self.lease().result
        assert title.state is LEASED
        return title


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_title_asked_for_by_name_is_that_one_now_or_not_at_all(bench: Bench) -> None:
    first, second = bench.pacs.pool[:2]
    named = apart(bench.pool.lease(Sink(bench.clock), 10.0, second))
    assert named.result.ae_title == second
    assert bench.pool.titles[first].state is FREE
    busy = apart(bench.pool.lease(Sink(bench.clock), 10.0, second))
    busy.addErrback(lambda failure: failure.value)
    assert isinstance(busy.result, TooManyRequests)
    assert not bench.pool.waiting
    named.result.release(final=True)
    assert bench.pool.free == 2


def failure(deferred: Any) -> Any:
    """The error of a deferred that has one."""
    failures: list[Any] = []
    deferred.addErrback(failures.append)
    assert failures, "no failure yet"
    return failures[0].value


@pytest.mark.requirement("DB.SO.85")
def test_titles_are_exclusive_and_who_waited_longest_comes_first(bench: Bench) -> None:
    first, second = bench.title(), bench.title()
    assert first is not second
    waiting = [bench.lease(30) for _ in range(3)]
    assert not any(each.called for each in waiting)
    assert metrics.POOL_WAITING.labels("p1")._value.get() == 3
    second.release(final=True)
    assert [each.called for each in waiting] == [True, False, False]
    assert waiting[0].result is second
    assert second.state is LEASED
    first.release(final=True)
    assert waiting[1].result is first
    assert not waiting[2].called
    first.release(final=True)
    assert waiting[2].result is first
    first.release(final=True)
    second.release(final=True)
    assert {title.state for title in bench.pool.titles.values()} == {FREE}
    assert bench.clock.getDelayedCalls() == []


def test_the_receiver_and_the_message_of_a_lease_end_with_it(bench: Bench) -> None:
    title = bench.title()
    title.message_id = 5
    assert title.receiver is not None
    title.release(final=False)
    assert title.receiver is None
    assert title.message_id is None
    title.release(final=True)
    assert title.state is QUARANTINED


@pytest.mark.requirement("DB.SO.85")
def test_waiting_ends_in_e1003_with_a_time_to_come_back(bench: Bench) -> None:
    bench.title(), bench.title()
    waiting = bench.lease(7)
    bench.clock.advance(6.9)
    assert not waiting.called
    bench.clock.advance(0.2)
    error = failure(waiting)
    assert isinstance(error, TooManyRequests)
    assert (error.code, error.status, error.retry_after) == ("E1003", 503, 7)
    assert failure(bench.lease(0)).retry_after == 1
    assert metrics.POOL_WAITING.labels("p1")._value.get() == 0


def test_who_gave_up_waiting_gets_no_title(bench: Bench) -> None:
    title, _ = bench.title(), bench.title()
    first, second = bench.lease(30), bench.lease(30)
    first.cancel()
    assert isinstance(failure(first), TooManyRequests)
    title.release(final=True)
    assert second.result is title


def test_a_final_response_with_nothing_open_frees_at_once(bench: Bench) -> None:
    title = bench.title()
    line = Line()
    title.attached(line)
    title.detached(line)
    title.release(final=True)
    assert title.state is FREE


def test_a_final_response_with_an_association_open_waits_for_its_end(bench: Bench) -> None:
    title, line = bench.title(), Line()
    title.attached(line)
    title.release(final=True)
    assert title.state is QUARANTINED
    bench.clock.advance(5)
    title.detached(line)
    assert title.state is FREE
    assert line.aborted == 0
    assert bench.clock.getDelayedCalls() == []


def test_an_association_that_outlives_the_final_response_is_ended(bench: Bench) -> None:
    title, lines = bench.title(), [Line(), Line()]
    for line in lines:
        title.attached(line)
    title.release(final=True)
    bench.clock.advance(10.1)
    assert [line.aborted for line in lines] == [1, 1]
    assert title.state is QUARANTINED
    title.detached(lines[0])
    assert title.state is QUARANTINED
    title.detached(lines[1])
    assert title.state is FREE


def test_without_a_final_response_the_title_is_quiet_for_a_while(bench: Bench) -> None:
    title = bench.title()
    title.release(final=False)
    assert title.state is QUARANTINED
    waiting = bench.lease(100)
    assert waiting.called
    waiting = bench.lease(100)
    bench.clock.advance(59.9)
    assert not waiting.called
    bench.clock.advance(0.2)
    assert waiting.result is title


def test_the_end_of_a_late_association_starts_the_quiet_time_again(bench: Bench) -> None:
    title, line = bench.title(), Line()
    title.attached(line)
    title.release(final=False)
    bench.clock.advance(50)
    title.detached(line)
    bench.clock.advance(50)
    assert title.state is QUARANTINED
    title.disturbed()
    bench.clock.advance(59)
    assert title.state is QUARANTINED
    bench.clock.advance(2)
    assert title.state is FREE


def test_what_is_open_after_the_quiet_time_is_ended_before_the_title_is_used_again(bench: Bench) -> None:
    title, line = bench.title(), Line()
    title.attached(line)
    title.release(final=False)
    bench.title()
    waiting = bench.lease(100)
    bench.clock.advance(60.1)
    assert line.aborted == 1
    assert not waiting.called
    title.detached(line)
    assert waiting.result is title


def test_a_disturbance_of_a_title_in_use_or_free_changes_nothing(bench: Bench) -> None:
    title = bench.title()
    title.disturbed()
    assert title.state is LEASED
    title.release(final=True)
    title.disturbed()
    assert title.state is FREE
    assert bench.clock.getDelayedCalls() == []


def test_a_stopped_pool_leases_no_more_and_leaves_no_timer(bench: Bench) -> None:
    first, second = bench.title(), bench.title()
    waiting = bench.lease(30)
    first.release(final=False)
    bench.pools.stop()
    assert isinstance(failure(waiting), TooManyRequests)
    second.release(final=False)
    first.disturbed()
    assert isinstance(failure(bench.lease(30)), TooManyRequests)
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.requirement("DB.SO.140")
def test_each_pacs_has_titles_of_its_own() -> None:
    clock = Clock()
    other = attrs.evolve(PACS, name="p2", pool=("DRIM3",))
    pools = Pools([PACS, other], clock)
    found = pools.find("DRIM3")
    assert found is not None
    assert found.pacs is other
    assert pools.find("DRIM1") is pools.by_pacs["p1"].titles["DRIM1"]
    assert pools.find("DRIM9") is None
    lease = apart(pools.by_pacs["p2"].lease(Sink(clock), 0))
    assert lease.result is found
    assert isinstance(failure(apart(pools.by_pacs["p2"].lease(Sink(clock), 0))), TooManyRequests)
    assert apart(pools.by_pacs["p1"].lease(Sink(clock), 0)).called
