"""The hours of the day in which a walk over the archive may work (DB.SO.28).

An interval is written `22:00-05:00`, in the time of the hospital; one that ends before it begins goes
through midnight. Its end is outside. No interval at all is any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

_DAY = 24 * 60


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)


def until_open(hours: Sequence[str], now: datetime) -> float:
    """Return the seconds until the next interval begins, 0 inside one; `now` is local time."""
    at = now.hour * 60 + now.minute
    waits = []
    for interval in hours:
        begin, _, end = interval.partition("-")
        if (at - _minutes(begin)) % _DAY < (_minutes(end) - _minutes(begin)) % _DAY:
            return 0.0
        waits.append((_minutes(begin) - at) % _DAY * 60 - now.second - now.microsecond / 1e6)
    return min(waits, default=0.0)
