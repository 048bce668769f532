"""Time, and work off the reactor thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

T = TypeVar("T")


class InThread(Protocol):
    """Runs a function off the reactor thread and awaits its result."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return an awaitable of `work()`."""


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> datetime:
        """Return the present instant, with its time zone."""
