"""Waiting between two tries: doubled each time, jittered, bounded."""

from __future__ import annotations

import random
from datetime import timedelta

_random = random.SystemRandom()


def backoff(attempts: int, first: float, longest: float) -> timedelta:
    """Return how long to wait after `attempts` failed tries (from 1), in [half, whole] of the step.

    The jitter keeps a queue that filled up during an outage from coming back all at once.
    """
    step = min(first * 2.0 ** min(max(attempts - 1, 0), 32), longest)
    return timedelta(seconds=step * _random.uniform(0.5, 1.0))
