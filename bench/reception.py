"""What a receiver counted."""

from __future__ import annotations

import attrs


@attrs.define
class Reception:
    """Counts of one receiver since they were last cleared; instants are of the system's monotonic clock.

    That clock is one for all processes of a Linux machine, so an instant noted by a receiver can be
    set against the start of the move noted by another process.
    """

    instances: int = 0
    #: Bytes received: all of the connections (null), or the data sets alone (pynetdicom).
    bytes: int = 0
    associations: int = 0
    #: When the first and the last data set ended; 0 when none did.
    first_at: float = 0.0
    last_at: float = 0.0

    def count(self, now: float) -> None:
        """Add one instance that ended now."""
        self.instances += 1
        self.last_at = now
        self.first_at = self.first_at or now

    def clear(self) -> None:
        """Begin again from nothing."""
        self.instances = self.bytes = self.associations = 0
        self.first_at = self.last_at = 0.0
