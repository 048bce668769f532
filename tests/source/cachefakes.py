"""A cache of series played by hand: what was kept, what is found, and a disk that fails or waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from twisted.internet.defer import Deferred

from drimbox.dicom.elements import Buffer
from drimbox.ports import CacheDamaged, CachedInstance
from tests.source.answers import CT, EXPLICIT

Key = tuple[str, str, str]


class FakeCache:
    """Entries in memory; `opened` are those found and not closed yet."""

    def __init__(self) -> None:
        self.entries: dict[Key, dict[str, tuple[CachedInstance, bytes]]] = {}
        self.asked: list[tuple[Key, frozenset[str]]] = []
        self.writers: list[FakeWriter] = []
        self.purged: list[tuple[str, str]] = []
        self.opened = 0
        #: Bytes a read gives at a time, and after how many of them each read fails.
        self.block = 1 << 20
        self.damaged: dict[str, int] = {}
        self.reads = 0

    def put(self, key: Key, *data: tuple[str, bytes], syntax: str = EXPLICIT) -> None:
        self.entries[key] = {
            uid: (CachedInstance(uid, CT, syntax, len(content)), content) for uid, content in data
        }

    async def find(
        self, site: str, study_uid: str, series_uid: str, due: Collection[str]
    ) -> FakeSeries | None:
        key = (site, study_uid, series_uid)
        self.asked.append((key, frozenset(due)))
        entry = self.entries.get(key)
        if entry is None or set(entry) != set(due):
            return None
        self.opened += 1
        return FakeSeries(self, entry)

    def begin(self, site: str, study_uid: str, series_uid: str) -> FakeWriter | None:
        self.writers.append(FakeWriter(self, (site, study_uid, series_uid)))
        return self.writers[-1]

    async def purge(self, site: str, study_uid: str) -> None:
        self.purged.append((site, study_uid))
        self.entries = {key: each for key, each in self.entries.items() if key[:2] != (site, study_uid)}


class FakeSeries:
    """An entry held open."""

    def __init__(self, cache: FakeCache, entry: dict[str, tuple[CachedInstance, bytes]]) -> None:
        self._cache = cache
        self._entry = entry

    @property
    def instances(self) -> tuple[CachedInstance, ...]:
        return tuple(instance for instance, _ in self._entry.values())

    async def read(self, instance: CachedInstance) -> AsyncIterator[bytes]:
        data = self._entry[instance.sop_instance_uid][1]
        limit = self._cache.damaged.get(instance.sop_instance_uid, len(data) + 1)
        for start in range(0, len(data), self._cache.block):
            self._cache.reads += 1
            if start >= limit:
                raise CacheDamaged("not what was written")
            yield data[start : start + self._cache.block]

    async def close(self) -> None:
        self._cache.opened -= 1


class FakeWriter:
    """A series being kept; `waiting` holds its end up."""

    def __init__(self, cache: FakeCache, key: Key) -> None:
        self._cache = cache
        self.key = key
        self.slots: list[FakeSlot] = []
        self.over = ""
        self.waiting: Deferred[None] | None = None

    def add(self, sop_instance_uid: str, sop_class_uid: str, transfer_syntax_uid: str) -> FakeSlot:
        self.slots.append(FakeSlot(sop_instance_uid, sop_class_uid, transfer_syntax_uid))
        return self.slots[-1]

    async def commit(self, due: Collection[str]) -> bool:
        live = [slot for slot in self.slots if slot.state != "dropped"]
        assert {slot.uid for slot in live} == set(due)
        assert all(slot.state == "ended" for slot in live)
        self.over = "kept"
        if self.waiting is not None:
            await self.waiting
        self._cache.put(self.key, *((slot.uid, b"".join(slot.pieces)) for slot in live))
        return True

    async def discard(self) -> None:
        self.over = self.over or "discarded"


class FakeSlot:
    """An instance being kept."""

    def __init__(self, uid: str, sop_class: str, syntax: str) -> None:
        self.uid, self.sop_class, self.syntax = uid, sop_class, syntax
        self.pieces: list[Buffer] = []
        self.state = "open"

    def write(self, data: Buffer) -> None:
        assert self.state == "open"
        self.pieces.append(bytes(data))

    def end(self) -> None:
        assert self.state == "open"
        self.state = "ended"

    def drop(self) -> None:
        self.state = "dropped"
