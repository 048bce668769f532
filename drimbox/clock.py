"""The wall clock."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The wall clock (a `ports.Clock`)."""

    def now(self) -> datetime:
        """Return the present instant."""
        return datetime.now(UTC).astimezone()
