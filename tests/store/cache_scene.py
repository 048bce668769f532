"""A cache on a real folder, with threads the test steps by hand, or none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred

from drimbox.config import CacheSettings
from drimbox.ports import CachedInstance
from drimbox.store.cache import Cache, Reader
from tests.store.samples import TestClock

T = TypeVar("T")
EXPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"
CT = "1.2.840.10008.5.1.4.1.1.2"
SETTINGS = CacheSettings(enabled=True, min_free=0)


class Threads:
    """Runs work at once, or when told: `by_hand` keeps it until `step`."""

    def __init__(self) -> None:
        self.by_hand = False
        self.pending: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        waiting: Deferred[T] = Deferred()
        self.pending.append((waiting, work))
        if not self.by_hand:
            self.step()
        return waiting

    def step(self) -> None:
        """Do the oldest work."""
        waiting, work = self.pending.pop(0)
        try:
            result = work()
        except Exception as error:
            waiting.errback(error)
        else:
            waiting.callback(result)

    def settle(self) -> None:
        """Do all work, and what follows from it."""
        while self.pending:
            self.step()


def start(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Begin a coroutine."""
    return Deferred.fromCoroutine(work)


def now(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that has nothing to wait for."""
    results: list[T] = []
    failures: list[Any] = []
    start(work).addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "it still waits"
    return results[0]


class Scene:
    """A cache, its folder, its clock and its threads."""

    def __init__(self, root: Path, settings: CacheSettings = SETTINGS, **changes: Any) -> None:
        self.root = root
        self.settings = attrs.evolve(settings, **changes)
        self.clock = TestClock()
        self.threads = Threads()
        self.cache = self.reopen()

    def reopen(self, **changes: Any) -> Cache:
        """Start again on the same folder, as after a crash."""
        self.settings = attrs.evolve(self.settings, **changes)
        if hasattr(self, "cache"):
            self.cache.folder.close()
        self.cache = Cache(self.settings, self.root, clock=self.clock, in_thread=self.threads)
        now(self.cache.open())
        return self.cache

    def keep(self, series: str = "1.5", *, study: str = "1.4", size: int = 1000, count: int = 2) -> bool:
        """Keep a series of `count` instances of `size` bytes; say whether the cache kept it."""
        writer = self.cache.begin("site", study, series)
        if writer is None:
            return False
        for uid, data in content(series, size, count).items():
            slot = writer.add(uid, CT, EXPLICIT)
            slot.write(data)
            slot.end()
        return now(writer.commit(content(series, size, count)))

    def find(
        self, series: str = "1.5", *, study: str = "1.4", count: int = 2, due: set[str] | None = None
    ) -> Reader | None:
        wanted = set(content(series, 0, count)) if due is None else due
        return now(self.cache.find("site", study, series, wanted))

    def has(self, series: str = "1.5", *, study: str = "1.4") -> bool:
        """Look without a trace in the order of use."""
        return any(k.series_uid == series and k.study_uid == study for k in self.cache._index)

    def files(self) -> list[Path]:
        """Return the files of entries, complete or not."""
        return sorted(
            path
            for name in ("entries", "partial", "trash")
            for path in (self.root / name).rglob("*")
            if path.is_file()
        )

    def on_disk(self) -> int:
        """Return the bytes of those files."""
        return sum(path.stat().st_size for path in self.files())


def content(series: str, size: int, count: int) -> dict[str, bytes]:
    """Make instances that differ."""
    return {
        f"{series}.{n}": (f"{series}.{n} ".encode() * (size // 4 + 1))[:size] for n in range(1, count + 1)
    }


async def read(reader: Reader, instance: CachedInstance) -> bytes:
    return b"".join([block async for block in reader.read(instance)])


def read_all(reader: Reader) -> dict[str, bytes]:
    """Read every instance and close."""
    found = {each.sop_instance_uid: now(read(reader, each)) for each in reader.instances}
    now(reader.close())
    return found
