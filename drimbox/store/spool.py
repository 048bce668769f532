"""Disk space for deliveries whose client is slower than the PACS's patience (architecture.md, rule 5).

Files are nameless (they vanish with the process), written and read in pool threads, one operation at a
time per file so that order is kept. The sum of all files is bounded; space counts as used until the disk
has it back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox import metrics
from drimbox.ports import SpoolFull


class Spool:
    """All spool files of the gateway: `per_file` and `total` are byte limits, 0 switches it off."""

    def __init__(
        self, folder: Path, *, per_file: int, total: int, in_thread: Callable[..., Deferred[object]]
    ) -> None:
        self._folder = folder
        self.per_file = per_file
        self._total = total
        self._used = 0
        self._in_thread = in_thread

    @property
    def enabled(self) -> bool:
        """False when switched off."""
        return self.per_file > 0 and self._total > 0

    @property
    def used(self) -> int:
        """Bytes reserved now."""
        return self._used

    def open(self) -> SpoolFile:
        """Make an empty file of one delivery."""
        return SpoolFile(self, self._folder, self._in_thread)

    def take(self, size: int) -> None:
        """Reserve `size` bytes. Raises `SpoolFull`."""
        if self._used + size > self._total:
            raise SpoolFull
        self._used += size
        metrics.SPOOL_BYTES.set(self._used)

    def give(self, size: int) -> None:
        """Give reserved bytes back."""
        self._used -= size
        metrics.SPOOL_BYTES.set(self._used)


class SpoolFile:
    """One nameless file, appended to and read anywhere."""

    log = Logger()

    def __init__(self, spool: Spool, folder: Path, in_thread: Callable[..., Deferred[object]]) -> None:
        self._spool = spool
        self._folder = folder
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._closed = False

    def reserve(self, size: int) -> int:
        """Return the offset where the next `size` bytes go. Raises `SpoolFull`."""
        if self._closed or self._size + size > self._spool.per_file:
            raise SpoolFull
        self._spool.take(size)
        offset = self._size
        self._size += size
        return offset

    async def write(self, offset: int, data: bytes) -> None:
        """Write reserved bytes. Raises `OSError`."""

        def work() -> None:
            descriptor = self._open()
            written = 0
            while written < len(data):
                # A disk that fills up writes a part before it says so.
                written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)

        await self._lock.run(self._in_thread, work)

    async def read(self, offset: int, size: int) -> bytes:
        """Read bytes written before. Raises `OSError`."""

        def work() -> bytes:
            data = os.pread(self._open(), size, offset)
            if len(data) != size:
                raise OSError("spool file shorter than what was written to it")
            return data

        data = await self._lock.run(self._in_thread, work)
        assert isinstance(data, bytes)
        return data

    def empty(self) -> None:
        """Start again at the beginning: everything written has been read."""
        size, self._size = self._size, 0
        if not size:
            return

        def work() -> None:
            if self._file is not None:
                os.ftruncate(self._file.fileno(), 0)

        # Before whatever is written next: operations keep their order.
        emptied = self._lock.run(self._in_thread, work)
        emptied.addErrback(self._unexpected)
        emptied.addCallback(lambda _: self._spool.give(size))

    async def close(self) -> None:
        """Give the space back."""
        if self._closed:
            return
        self._closed = True

        def work() -> None:
            if self._file is not None:
                self._file.close()
                self._file = None

        try:
            await self._lock.run(self._in_thread, work)
        finally:
            size, self._size = self._size, 0
            self._spool.give(size)

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure("spool file not emptied", failure=failure)

    def _open(self) -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Lives as long as the delivery, not as long as this call.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        return self._file.fileno()
