"""Series kept on disk as the PACS sent them, for those asked for again (DB.SO.40).

Theory of operation. An entry is one series of one site: the data sets as received, each in its own
transfer syntax, so that whatever a later Accept wants can be made of it. An entry appears when all of the
series is on the disk (`cachewriting`, `cachefiles`) and is given out only when it holds exactly what the
KOS of the request lists: less would be an incomplete answer, more may be what has since been removed
from the PACS. It is never a reason to skip a check: who asks has passed all of them before.

Bounds: bytes in all, number of series, age since the PACS sent it, bytes left free on the disk. The series
asked for longest ago goes first, never one that is being read. The order of use survives a restart in
the time stamps of the manifests.

The index lives in memory, on the reactor thread; the disk is only touched in threads, through `in_thread`.
An entry leaves the index before its files go, and enters it after they are there, so that none is found
in between. What the disk still holds of an entry that is gone, because somebody reads it, counts as used
until it is let go. A disk that fails costs entries, never a delivery.

Off, the cache makes no file, and removes at start what an earlier run kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from functools import partial
from pathlib import Path

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import CacheSettings
from drimbox.ports import CacheDamaged, CachedInstance, Clock, InThread
from drimbox.store.cachefiles import Folder, Found, OpenEntry
from drimbox.store.cachemanifest import Record, SeriesKey
from drimbox.store.cachewriting import SeriesWriter
from drimbox.systemerrors import system_reason

#: Bytes of all writers waiting in memory for the disk.
_MAX_HELD = 64 * 1024 * 1024
#: Seconds an entry may seem to come from the future, after a clock was set back.
_AHEAD = 300.0


@attrs.define(eq=False)
class _Entry:
    key: SeriesKey
    name: str
    size: int
    created: float
    readers: int = 0
    #: True once it has left the index.
    gone: bool = False
    #: True once its files have been removed: only readers keep its bytes.
    removed: bool = False


class Cache:
    """The cache of series of this gateway (a `SeriesCache`); `open` it before use.

    `folder` is the place when the settings name none. `in_thread` runs blocking work in a thread.
    """

    log = Logger()

    def __init__(self, settings: CacheSettings, folder: Path, *, clock: Clock, in_thread: InThread) -> None:
        self.folder = Folder(settings.folder or folder)
        self.in_thread = in_thread
        self._settings = settings
        self._clock = clock
        #: Least recently used first.
        self._index: OrderedDict[SeriesKey, _Entry] = OrderedDict()
        self._writers: dict[SeriesKey, SeriesWriter] = {}
        self._used = 0
        self._held = 0
        self._open = False
        #: What the administrator must know, in French: a cache that is wanted does not work, or one that is
        #: not wanted could not be erased. Empty otherwise.
        self.problem = ""

    @property
    def enabled(self) -> bool:
        """True while series are kept and given out."""
        return self._open

    @property
    def used(self) -> int:
        """Bytes on the disk, those of writers and of removed entries still read included."""
        return self._used

    @property
    def series(self) -> int:
        """Number of entries."""
        return len(self._index)

    # -- life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take over what an earlier run kept, or remove it when the cache is off.

        Never raises for a disk that fails: `problem` says so, and the cache stays off.
        """
        try:
            if not self._settings.enabled:
                await self.in_thread(self.folder.erase)
                return
            found = await self.in_thread(self.folder.open)
        except OSError as error:
            reason = system_reason(error)
            wanted = self._settings.enabled
            what = (
                "inutilisable" if wanted else "arrêté, mais des images y restent qui n'ont pu être effacées"
            )
            self.problem = f"Cache des séries {what} ({self.folder.root}) : {reason}"
            self.log.error("series cache not usable or not erased: {reason}", reason=reason)
            return
        for each in found:
            self._enter(each)
        self._used = sum(each.size for each in found)
        self._open = True
        await self.sweep()

    async def close(self) -> None:
        """Give up what is being written, and let the folder go."""
        self._open = False
        for writer in list(self._writers.values()):
            await writer.discard()
        await self.in_thread(self.folder.close)

    async def sweep(self) -> None:
        """Remove what is too old, and what is too much; to be called from time to time."""
        if not self._open:
            return
        for entry in [each for each in self._index.values() if self._expired(each)]:
            await self._drop(entry, "age")
        while self._used > self._settings.max_bytes or len(self._index) > self._settings.max_series:
            if not await self._evict("room"):
                break
        await self._leave_free(0)

    # -- SeriesCache -------------------------------------------------------------------------------

    async def find(self, site: str, study_uid: str, series_uid: str, due: Collection[str]) -> Reader | None:
        """Return the series when the cache holds exactly the instances `due`, else None (DB.SO.40)."""
        if not self._open:
            return None
        key = SeriesKey(site, study_uid, series_uid)
        entry = self._index.get(key)
        if entry is not None and self._expired(entry):
            await self._drop(entry, "age")
            entry = None
        if entry is None:
            metrics.CACHE_LOOKUPS.labels("miss").inc()
            return None
        reader, result = await self._reader(entry, frozenset(due))
        metrics.CACHE_LOOKUPS.labels(result).inc()
        return reader

    def begin(self, site: str, study_uid: str, series_uid: str) -> SeriesWriter | None:
        """Begin to keep a series; None when the cache is off, or has it, or somebody writes it already."""
        key = SeriesKey(site, study_uid, series_uid)
        if not self._open or key in self._index or key in self._writers:
            return None
        writer = self._writers[key] = SeriesWriter(self, key)
        return writer

    async def purge(self, site: str, study_uid: str) -> None:
        """Remove every series of a study, those being written included (requirements.md 2.7)."""

        def concerned(key: SeriesKey) -> bool:
            return key.site == site and key.study_uid == study_uid

        entries = [entry for key, entry in self._index.items() if concerned(key)]
        writers = [writer for key, writer in self._writers.items() if concerned(key)]
        # First of all nothing may be found, nor be kept, any more; then the files.
        for entry in entries:
            self._leave(entry, "purge")
        for writer in writers:
            writer.give_up("purge")
        for entry in entries:
            await self._remove(entry)
        for writer in writers:
            await writer.discard()

    def holds(self, site: str, study_uid: str, series_uid: str) -> bool:
        """Say whether a series is kept, whatever it is worth."""
        return SeriesKey(site, study_uid, series_uid) in self._index

    def studies(self) -> Collection[tuple[str, str]]:
        """Return site and StudyInstanceUID of all that is kept or being written."""
        return {(key.site, key.study_uid) for keys in (self._index, self._writers) for key in keys}

    # -- Keeper (for the writers) ------------------------------------------------------------------

    def hold(self, size: int) -> bool:
        """Count bytes waiting in memory; False when they are too many."""
        self._held += size
        return self._held <= _MAX_HELD

    async def room(self, size: int) -> bool:
        """Reserve bytes on the disk, evicting what must go; False when there is no room."""
        self._count(size)
        while self._used > self._settings.max_bytes:
            if not await self._evict("room"):
                self._count(-size)
                return False
        if not await self._leave_free(size):
            self._count(-size)
            return False
        return True

    def created(self) -> float:
        """Return the Unix time of now."""
        return self._clock.now().timestamp()

    def entered(self, writer: SeriesWriter, found: Found) -> None:
        """Take a published entry: the bytes of its writer become its own."""
        self._enter(found)
        self._count(found.size)

    def ended(self, writer: SeriesWriter, result: str) -> None:
        """Forget a writer, and the bytes it had reserved."""
        if self._writers.get(writer.key) is writer:
            del self._writers[writer.key]
        self._count(-writer.reserved)
        metrics.CACHE_WRITES.labels(result).inc()
        if result == "kept" and len(self._index) > self._settings.max_series:
            Deferred.fromCoroutine(self.sweep()).addErrback(
                lambda failure: self.log.failure("cache not swept", failure=failure)
            )

    # -- own ---------------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self._used += size
        metrics.CACHE_BYTES.set(self._used)

    def _enter(self, found: Found) -> None:
        entry = _Entry(found.head.key, found.name, found.size, found.head.created)
        self._index[entry.key] = entry
        metrics.CACHE_SERIES.set(len(self._index))

    def _expired(self, entry: _Entry) -> bool:
        age = self.created() - entry.created
        return age > self._settings.max_age or age < -_AHEAD

    async def _reader(self, entry: _Entry, due: frozenset[str]) -> tuple[Reader | None, str]:
        """Open an entry and judge it; an entry that cannot serve is dropped."""
        entry.readers += 1
        self._index.move_to_end(entry.key)
        opened: OpenEntry | None = None
        try:
            opened = await self.in_thread(partial(self.folder.read, entry.name, entry.key))
            if entry.gone:
                return None, "miss"
            if {record.instance.sop_instance_uid for record in opened.records} != due:
                await self._drop(entry, "stale")
                return None, "stale"
            reader = Reader(self, entry, opened)
        except (OSError, CacheDamaged) as error:
            self.log.warn("series cache: entry dropped: {error}", error=str(error))
            await self._drop(entry, "damaged")
            return None, "damaged"
        else:
            # Its pin is the reader's from here on.
            entry.readers += 1
            opened = None
            return reader, "hit"
        finally:
            if opened is not None:
                await self.in_thread(opened.close)
            self._unpin(entry)

    def _unpin(self, entry: _Entry) -> None:
        entry.readers -= 1
        if entry.removed and not entry.readers:
            self._count(-entry.size)

    def _leave(self, entry: _Entry, reason: str) -> None:
        """Take an entry out of the index: it is not found any more."""
        if not entry.gone:
            entry.gone = True
            del self._index[entry.key]
            metrics.CACHE_SERIES.set(len(self._index))
            metrics.CACHE_EVICTIONS.labels(reason).inc()

    async def _remove(self, entry: _Entry) -> None:
        """Remove the files of an entry that has left the index."""
        try:
            await self.in_thread(partial(self.folder.remove, entry.name))
        except OSError as error:
            self.log.error("series cache: entry not removed: {error}", error=str(error))
        entry.removed = True
        if not entry.readers:
            self._count(-entry.size)

    async def _drop(self, entry: _Entry, reason: str) -> None:
        if not entry.gone:
            self._leave(entry, reason)
            await self._remove(entry)

    async def _evict(self, reason: str) -> bool:
        """Remove the entry used longest ago that nobody reads; False when there is none."""
        entry = next((each for each in self._index.values() if not each.readers), None)
        if entry is None:
            return False
        await self._drop(entry, reason)
        return True

    async def _leave_free(self, size: int) -> bool:
        """Make the disk have `size` bytes more than what is to be left free; False when it cannot."""
        try:
            while await self.in_thread(self.folder.free) < self._settings.min_free + size:
                if not await self._evict("disk"):
                    return False
        except OSError:
            return False
        return True


class Reader:
    """An entry held open (a `CachedSeries`)."""

    def __init__(self, cache: Cache, entry: _Entry, opened: OpenEntry) -> None:
        self._cache = cache
        self._entry = entry
        self._opened = opened
        self._records: dict[str, Record] = {
            record.instance.sop_instance_uid: record for record in opened.records
        }
        # The file must not be closed while a thread reads it.
        self._lock = DeferredLock()
        self._closed = False

    @property
    def instances(self) -> tuple[CachedInstance, ...]:
        """The instances, in the order in which the PACS began to send them."""
        return tuple(record.instance for record in self._records.values())

    async def read(self, instance: CachedInstance) -> AsyncIterator[bytes]:
        """Yield the data set in blocks of at most 1 MiB. Raises `CacheDamaged`."""
        for run in self._records[instance.sop_instance_uid].runs:
            await self._lock.acquire()
            try:
                if self._closed:
                    raise RuntimeError("a cached series is read after it was closed")
                data = await self._cache.in_thread(partial(self._opened.read, run))
            except CacheDamaged:
                await self._cache._drop(self._entry, "damaged")
                raise
            finally:
                self._lock.release()
            yield data

    async def close(self) -> None:
        """Let go of it. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        await self._lock.acquire()
        try:
            await self._cache.in_thread(self._opened.close)
        finally:
            self._lock.release()
            self._cache._unpin(self._entry)
