"""Refused handshakes are audited, and whoever is refused cannot fill the trail."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from drimbox.limits import Why
from drimbox.trust.refusals import MAX_ADDRESSES, OTHERS, WINDOW, Refusals

pytestmark = pytest.mark.requirement("DB.SO.47", "DB.SO.111")


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.records: list[tuple[str, str, int]] = []
        self.reasons: list[Why] = []
        self.broken = False
        self.refusals = Refusals(self._record, self.clock)

    async def _record(self, address: str, name: str, why: Why, count: int) -> None:
        if self.broken:
            raise OSError("disk full")
        self.records.append((address, name, count))
        self.reasons.append(why)


def test_the_first_is_written_at_once_and_the_others_of_a_minute_as_one() -> None:
    scene = Scene()
    for _ in range(1000):
        scene.refusals.refused("10.0.0.1", "db1")
    scene.refusals.refused("10.0.0.2", "")
    assert scene.records == [("10.0.0.1", "db1", 1), ("10.0.0.2", "", 1)]
    scene.clock.advance(WINDOW)
    assert scene.records[2:] == [("10.0.0.1", "db1", 999)]
    scene.clock.advance(10 * WINDOW)
    assert len(scene.records) == 3
    scene.refusals.refused("10.0.0.1", "db2")
    assert scene.records[-1] == ("10.0.0.1", "db2", 1)


def test_each_reason_of_an_address_makes_its_own_record() -> None:
    scene = Scene()
    for why in (Why.RATE, Why.HANDSHAKE, Why.RATE):
        scene.refusals.refused("10.0.0.1", "", why)
    assert scene.reasons == [Why.RATE, Why.HANDSHAKE]
    scene.clock.advance(WINDOW)
    assert scene.records[2:] == [("10.0.0.1", "", 1)]
    assert scene.reasons[2:] == [Why.RATE]


@pytest.mark.threat("log and audit injection, flooding")
def test_ten_thousand_addresses_make_a_bounded_number_of_records() -> None:
    scene = Scene()
    for number in range(10_000):
        scene.refusals.refused(f"10.0.{number // 256}.{number % 256}", "db1")
    scene.clock.advance(WINDOW)
    assert len(scene.records) == MAX_ADDRESSES + 2
    assert sum(count for _, _, count in scene.records) == 10_000
    assert scene.records[-1][0] == OTHERS
    assert not scene.clock.getDelayedCalls()


def test_what_was_counted_is_written_at_the_stop() -> None:
    scene = Scene()
    for _ in range(3):
        scene.refusals.refused("10.0.0.1", "db1")
    scene.refusals.stop()
    assert scene.records == [("10.0.0.1", "db1", 1), ("10.0.0.1", "db1", 2)]
    assert not scene.clock.getDelayedCalls()


def test_a_trail_that_fails_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene()
    scene.broken = True
    scene.refusals.refused("10.0.0.1", "db1")
    scene.broken = False
    scene.refusals.refused("10.0.0.1", "db1")
    scene.clock.advance(WINDOW)
    assert scene.records == [("10.0.0.1", "db1", 1)]
