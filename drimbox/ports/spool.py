"""Disk space of deliveries whose client is slower than the patience of the PACS."""

from __future__ import annotations

from typing import Protocol


class SpoolFull(Exception):
    """No room left in the spool, for this delivery or for all of them."""


class SpoolFile(Protocol):
    """Disk space of one delivery whose client is slower than the PACS's patience."""

    def reserve(self, size: int) -> int:
        """Return the offset where the next `size` bytes go. Raises `SpoolFull`."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write reserved bytes. Raises `OSError`."""

    async def read(self, offset: int, size: int) -> bytes:
        """Read bytes written before. Raises `OSError`."""

    def empty(self) -> None:
        """Start again at the beginning: everything written has been read."""

    async def close(self) -> None:
        """Give the space back."""


class SpoolArea(Protocol):
    """The spool as a delivery sees it."""

    @property
    def enabled(self) -> bool:
        """False when switched off."""

    def open(self) -> SpoolFile:
        """Make an empty file."""
