"""The hours in which a walk may work."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from drimbox.source.hours import until_open

pytestmark = pytest.mark.requirement("DB.SO.28")
NIGHT = ("22:00-05:00",)


def at(clock: str) -> datetime:
    hour, minute, second = (int(part) for part in clock.split(":"))
    return datetime(2026, 3, 1, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("hours", "now", "seconds"),
    [
        ((), "12:00:00", 0),
        (NIGHT, "22:00:00", 0),
        (NIGHT, "23:59:59", 0),
        (NIGHT, "00:00:00", 0),
        (NIGHT, "04:59:59", 0),
        (NIGHT, "05:00:00", 17 * 3600),
        (NIGHT, "21:59:30", 30),
        (NIGHT, "12:00:15", 10 * 3600 - 15),
        (("12:00-13:30",), "13:29:00", 0),
        (("12:00-13:30",), "13:30:00", 22.5 * 3600),
        (("12:00-13:00", "20:00-21:00"), "15:00:00", 5 * 3600),
        (("12:00-13:00", "20:00-21:00"), "20:30:00", 0),
        (("00:00-23:59",), "23:59:10", 50),
    ],
)
def test_a_walk_waits_for_the_next_interval(hours: tuple[str, ...], now: str, seconds: float) -> None:
    assert until_open(hours, at(now)) == seconds
