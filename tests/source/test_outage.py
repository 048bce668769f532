"""One system outside that does not answer: who asks, when, and what is told (DB.SO.14, DB.SO.21)."""

from __future__ import annotations

import pytest

from drimbox.source import outage as module
from drimbox.source.outage import STUCK_AFTER, Outage
from tests.source.fakes import Clock, Notices, run


class Stage:
    def __init__(self) -> None:
        self.clock, self.notices = Clock(), Notices()
        self.outage = Outage("pacs-a", "E003", self.notices, self.clock, 10.0, 160.0)

    def fail(self, row: int) -> module.PutOff:
        return run(self.outage.failed(row, f"muet {row}"))

    def wait(self) -> float:
        until = self.outage.shut()
        return 0.0 if until is None else (until - self.clock.now()).total_seconds()


@pytest.mark.requirement("DB.SO.14", "DB.SO.21")
def test_the_gate_shuts_longer_at_each_failure_in_a_row_and_is_bounded() -> None:
    stage = Stage()
    assert stage.outage.shut() is None
    for step in (10, 20, 40, 80, 160, 160, 160):
        put_off = stage.fail(1)
        assert step / 2 <= stage.wait() <= step
        assert put_off.due >= stage.clock.now()
        stage.clock.advance(stage.wait())
        assert stage.outage.shut() is None
    assert stage.notices.posted == ["pacs-a"] * 7
    assert stage.notices.open == {"pacs-a": ("E003", "muet 1")}


def test_failures_of_rows_that_were_asking_together_are_one_failure() -> None:
    stage = Stage()
    for row in range(5):
        stage.fail(row)
    assert stage.wait() <= 10


@pytest.mark.requirement("DB.SO.14", "DB.SO.21")
def test_an_answer_opens_the_gate_for_all_and_closes_the_notice() -> None:
    stage = Stage()
    stage.fail(1)
    run(stage.outage.answered())
    assert stage.outage.shut() is None
    assert stage.notices.open == {}
    stage.fail(2)
    assert stage.wait() <= 10


def test_the_first_answer_of_a_process_closes_what_the_one_before_left_open() -> None:
    stage = Stage()
    run(stage.outage.answered())
    run(stage.outage.answered())
    assert stage.notices.resolved == ["pacs-a"]


@pytest.mark.requirement("DB.SO.21")
def test_a_row_that_fails_alone_waits_longer_and_longer_and_is_told_apart() -> None:
    stage = Stage()
    for number in range(1, STUCK_AFTER + 2):
        run(stage.outage.answered())
        put_off = stage.fail(13)
        assert put_off.failures == number
        assert put_off.stuck is (number >= STUCK_AFTER)
        # The others wait one short step; the row waits its own.
        assert stage.wait() <= 10
        assert (put_off.due - stage.clock.now()).total_seconds() >= min(10 * 2 ** (number - 1), 160) / 2
        stage.clock.advance(200)
    assert stage.outage.forget(13) == STUCK_AFTER + 1
    assert stage.outage.forget(13) == 0
    assert stage.fail(13).failures == 1


def test_a_real_outage_is_not_taken_for_a_stuck_row() -> None:
    stage = Stage()
    for _ in range(10):
        assert not stage.fail(1).stuck
        stage.clock.advance(stage.wait())


def test_memory_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    stage = Stage()
    for row in range(10):
        stage.fail(row)
    assert [stage.outage.forget(row) for row in range(10)] == [0] * 7 + [1] * 3


@pytest.mark.requirement("DB.SO.14", "DB.SO.21")
def test_a_clock_set_back_opens_the_gate() -> None:
    stage = Stage()
    stage.fail(1)
    stage.clock.advance(-3600)
    assert stage.outage.shut() is None
    due = stage.fail(2).due
    assert (due - stage.clock.now()).total_seconds() <= 20
