"""Periodic work: its hour, its jitter, errors, lateness, clocks that jump, and how it stops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from drimbox.periodic import JITTER, Periodic


class Work:
    """Notes when it is done; `pending` holds a run until the test ends it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.began: list[float] = []
        self.pending: Deferred[None] | None = None
        self.failure: Exception | None = None

    async def __call__(self) -> None:
        self.began.append(self.clock.seconds())
        if self.failure is not None:
            raise self.failure
        if self.pending is not None:
            await self.pending


def periodic(
    period: float = 100.0, first: float = 10.0, random: Callable[[], float] = lambda: 0.5
) -> tuple[Periodic, Work, Clock]:
    clock = Clock()
    clock.advance(1000)
    work = Work(clock)
    made = Periodic("essai", work, period, clock, first=first, random=random)
    made.startService()
    return made, work, clock


def test_the_work_is_done_at_its_hour_again_and_again() -> None:
    _, work, clock = periodic()
    clock.pump([1.0] * 210)
    assert work.began == [1005, 1105, 1205]


def test_the_jitter_stays_within_its_part_and_the_first_time_too() -> None:
    for extreme, first, second in (
        (0.0, 1000, 1000 + 100 * (1 - JITTER)),
        (1.0, 1010, 1110 + 100 * JITTER),
    ):
        _, work, clock = periodic(random=partial(float, extreme))
        clock.pump([0.0, *[0.5] * 240])
        assert work.began[:2] == [first, second]


def test_the_real_jitter_differs_from_time_to_time() -> None:
    instants = set()
    for _ in range(20):
        clock = Clock()
        work = Work(clock)
        Periodic("essai", work, 100, clock, first=1000).startService()
        instants.add(clock.getDelayedCalls()[0].getTime())
        assert 0 <= clock.getDelayedCalls()[0].getTime() <= 1000
    assert len(instants) > 10


def test_an_error_is_logged_and_does_not_end_the_series() -> None:
    _, work, clock = periodic()
    work.failure = RuntimeError("cassé")
    seen: list[object] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_level") is LogLevel.critical:
            seen.append(event["name"])

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    try:
        clock.pump([1.0] * 110)
    finally:
        globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    assert work.began == [1005, 1105]
    assert seen == ["essai", "essai"]


def test_work_that_outlasts_its_period_is_never_done_twice_at_once() -> None:
    _, work, clock = periodic()
    work.pending = Deferred()
    clock.pump([1.0] * 255)
    assert work.began == [1005]
    pending, work.pending = work.pending, None
    pending.callback(None)
    # Begun at 1005: 1105 and 1205 went by, the next is 1305.
    clock.pump([1.0] * 60)
    assert work.began == [1005, 1305]


def test_a_clock_set_back_makes_nobody_wait_longer_than_one_step() -> None:
    _, work, clock = periodic()
    work.pending = Deferred()
    clock.advance(5)
    clock.rightNow -= 86400
    work.pending.callback(None)
    assert clock.getDelayedCalls()[0].getTime() - clock.seconds() == 100


def test_stopping_ends_the_series() -> None:
    made, work, clock = periodic()
    assert made.stopService() is None
    clock.pump([1.0] * 300)
    assert work.began == []
    assert clock.getDelayedCalls() == []


def test_stopping_waits_for_the_work_in_hand_and_begins_no_more() -> None:
    made, work, clock = periodic()
    work.pending = Deferred()
    clock.advance(5)
    stopped = [made.stopService(), made.stopService()]
    assert [each is not None and not each.called for each in stopped] == [True, True]
    work.pending.callback(None)
    assert all(each is not None and each.called for each in stopped)
    clock.pump([1.0] * 300)
    assert work.began == [1005]


@pytest.mark.parametrize("during", [False, True])
def test_a_start_after_a_stop_goes_on(during: bool) -> None:
    made, work, clock = periodic()
    pending: Deferred[None] = Deferred()
    if during:
        work.pending = pending
        clock.advance(5)
    made.stopService()
    made.startService()
    work.pending = None
    pending.callback(None)
    clock.pump([1.0] * 110)
    assert len(work.began) == 2
    assert len(clock.getDelayedCalls()) == 1
