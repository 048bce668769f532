"""Messages go before the work on those stored, and never keep it waiting for long."""

from __future__ import annotations

from twisted.internet.task import Clock

from drimbox.source.precedence import FREE, HELD, QUIET, Precedence


def test_the_feed_is_free_while_nothing_comes() -> None:
    assert Precedence(Clock()).wait() == 0.0


def test_the_feed_waits_for_a_message_in_hand_and_a_moment_longer() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    with precedence.message():
        clock.advance(HELD / 2)
        assert precedence.wait() == QUIET
    assert precedence.wait() == QUIET
    clock.advance(QUIET)
    assert precedence.wait() == 0.0


def test_messages_side_by_side_all_count() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    with precedence.message():
        with precedence.message():
            pass
        clock.advance(QUIET)
        assert precedence.wait() == QUIET


def test_a_burst_without_end_leaves_the_feed_its_part() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    free = 0
    for _ in range(10_000):
        with precedence.message():
            clock.advance(QUIET / 2)
            free += precedence.wait() == 0.0
    assert abs(free / 10_000 - FREE / (HELD + FREE)) < 0.01


def test_a_message_long_after_the_last_one_begins_a_burst_of_its_own() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    with precedence.message():
        pass
    clock.advance(HELD + FREE / 2)
    with precedence.message():
        assert precedence.wait() == QUIET


def test_a_message_that_breaks_is_over_too() -> None:
    clock = Clock()
    precedence = Precedence(clock)
    try:
        with precedence.message():
            raise ValueError
    except ValueError:
        clock.advance(QUIET)
    assert precedence.wait() == 0.0
