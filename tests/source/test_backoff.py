"""Waiting between two tries: doubled, jittered, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drimbox.source.backoff import backoff


@given(
    st.integers(-5, 10**6),
    st.floats(0.001, 1e4, allow_nan=False),
    st.floats(0.001, 1e6, allow_nan=False),
)
def test_the_wait_is_between_half_and_whole_of_a_bounded_step(
    attempts: int, first: float, longest: float
) -> None:
    step = min(first * 2 ** min(max(attempts - 1, 0), 32), longest)
    wait = backoff(attempts, first, longest).total_seconds()
    assert step * 0.5 - 1e-6 <= wait <= step + 1e-6


def test_it_doubles_and_stays_at_the_longest() -> None:
    highest = [max(backoff(n, 1.0, 8.0).total_seconds() for _ in range(200)) for n in (1, 2, 3, 4, 5)]
    assert [round(value) for value in highest] == [1, 2, 4, 8, 8]


def test_a_queue_that_waited_does_not_come_back_at_one_instant() -> None:
    assert len({backoff(3, 1.0, 8.0) for _ in range(20)}) > 10
