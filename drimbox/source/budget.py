"""Bytes in memory: what one answer holds, and what all of them together may.

The budget of the process is exceeded before it is refused: whoever holds something is asked to stop
reading until others have let go, and is told when there is room again.
"""

from __future__ import annotations

from collections.abc import Callable

from drimbox import metrics


class Budget:
    """Bytes that all deliveries together may hold in memory."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._told: set[Callable[[], None]] = set()

    def join(self, told: Callable[[], None]) -> None:
        """Call `told` whenever there is room again after there was none."""
        self._told.add(told)

    def leave(self, told: Callable[[], None]) -> None:
        """Call it no more."""
        self._told.discard(told)

    def add(self, size: int) -> None:
        """Count bytes in, or out when negative."""
        before = self.exceeded
        self._used += size
        metrics.WINDOW_BYTES.set(self._used)
        if before and not self.exceeded:
            for told in list(self._told):
                told()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    @property
    def exceeded(self) -> bool:
        """True while too much is held."""
        return self._used > self._total


class Holding:
    """The share of one answer; once closed it counts nothing more, whatever still comes to an end."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._closed = False
        self.size = 0

    def add(self, size: int) -> None:
        """Count bytes in, or out when negative."""
        if not self._closed:
            self.size += size
            self._budget.add(size)

    def close(self) -> None:
        """Give everything back."""
        size, self.size = self.size, 0
        if not self._closed:
            self._closed = True
            self._budget.add(-size)
