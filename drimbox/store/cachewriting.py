"""One series on its way into the cache: never a burden on the delivery that feeds it (DB.SO.40).

The delivery hands over the bytes it receives and goes on: they are gathered into blocks, and written by
one thread job at a time. Should the disk be slower than the PACS, the series is given up rather than the
delivery slowed; the same when the disk fails, or there is no room. What was written is removed then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.dicom.elements import Buffer
from drimbox.ports import CachedInstance, InThread
from drimbox.store.cachefiles import Folder, Found, Partial
from drimbox.store.cachemanifest import BLOCK, Head, Record, Run, SeriesKey

T = TypeVar("T")
#: Instances of one series beyond which it is not kept.
MAX_INSTANCES = 100_000
#: Bytes written by one thread job.
_BATCH = 8 * BLOCK


class Keeper(Protocol):
    """What a writer needs of its cache."""

    folder: Folder
    in_thread: InThread

    def hold(self, size: int) -> bool:
        """Count `size` bytes (negative: give them back) waiting in memory; False when they are too many."""

    async def room(self, size: int) -> bool:
        """Reserve `size` bytes on the disk, evicting what must go; False when there is no room."""

    def created(self) -> float:
        """Return the Unix time an entry made now was created at."""

    def entered(self, writer: SeriesWriter, found: Found) -> None:
        """Take a published entry: `writer.reserved` bytes become its own."""

    def ended(self, writer: SeriesWriter, result: str) -> None:
        """Forget a writer that is over; `writer.reserved` bytes are given back."""


@attrs.define(eq=False)
class Slot:
    """One instance being written (an `InstanceWriter`)."""

    writer: SeriesWriter
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    gathered: list[Buffer] = attrs.field(factory=list)
    #: Bytes in `gathered`.
    waiting: int = 0
    runs: list[Run] = attrs.field(factory=list)
    #: True once nothing more comes, and once it is given up.
    whole: bool = False
    dead: bool = False

    def write(self, data: Buffer) -> None:
        """Take the next bytes of the data set."""
        if not (self.dead or self.whole):
            self.writer.take(self, data)

    def end(self) -> None:
        """Say that the data set is whole."""
        if not self.dead:
            self.whole = True
            self.writer.flush(self)

    def drop(self) -> None:
        """Forget the instance."""
        if not self.dead:
            self.dead = True
            self.writer.forget(self)


class SeriesWriter:
    """Writes one series; over once it is committed, discarded or given up (a `CacheWriter`)."""

    log = Logger()

    def __init__(self, keeper: Keeper, key: SeriesKey) -> None:
        self.key = key
        #: Bytes of the disk counted for it.
        self.reserved = 0
        self._keeper = keeper
        self._slots: dict[str, Slot] = {}
        self._blocks: list[tuple[Slot, list[Buffer], int]] = []
        self._partial: Partial | None = None
        self._held = 0
        self._writing = False
        #: Why it is given up; empty while it is not.
        self._problem = ""
        self._over = False
        self._idle: list[Deferred[None]] = []
        self._endings: list[Deferred[None]] = []

    # -- from the delivery -------------------------------------------------------------------------

    def add(self, sop_instance_uid: str, sop_class_uid: str, transfer_syntax_uid: str) -> Slot:
        """Begin an instance; one that is there already is dropped."""
        slot = Slot(self, sop_instance_uid, sop_class_uid, transfer_syntax_uid)
        known = self._slots.get(sop_instance_uid)
        if self._over or self._problem or (known is not None and not known.dead):
            slot.dead = True
        elif len(self._slots) >= MAX_INSTANCES:
            slot.dead = True
            self.give_up("instances")
        else:
            self._slots.pop(sop_instance_uid, None)
            self._slots[sop_instance_uid] = slot
        return slot

    async def commit(self, due: Collection[str]) -> bool:
        """Keep the series when it holds exactly `due`, each whole; say whether it is kept."""
        if self._over:
            return False
        await self._quiet()
        live = [slot for slot in self._slots.values() if not slot.dead]
        whole = all(slot.whole for slot in live) and {slot.sop_instance_uid for slot in live} == set(due)
        if not self._problem and not (whole and live):
            self.give_up("incomplete")
        if self._problem:
            await self.discard()
            return False
        # Nobody may remove the folder while a thread makes an entry of it.
        self._writing = True
        found = await self._publish(live)
        if found is None or self.given_up:
            if found is not None:
                # The study was purged meanwhile.
                await self._try(partial(self._keeper.folder.remove, found.name))
            self._ready()
            await self.discard()
            return False
        self._over = True
        self._keeper.entered(self, found)
        self._keeper.ended(self, "kept")
        self._ready()
        return True

    async def discard(self) -> None:
        """Forget everything; returns when its files are gone."""
        self.give_up("discarded")
        if self._over:
            return
        ending: Deferred[None] = Deferred()
        self._endings.append(ending)
        if len(self._endings) == 1:
            await self._quiet()
            if not self._over:
                if self._partial is not None:
                    await self._try(self._partial.remove)
                self._over = True
                self._keeper.ended(self, self._problem)
            endings, self._endings = self._endings, []
            for waiting in endings:
                waiting.callback(None)
        await ending

    # -- from the cache and the slots --------------------------------------------------------------

    @property
    def given_up(self) -> bool:
        """True once it takes nothing more and will not be kept."""
        return bool(self._problem)

    def give_up(self, problem: str) -> None:
        """Take nothing more; `commit` or `discard`, which must still come, removes what was written."""
        if self._problem or self._over:
            return
        self._problem = problem
        for slot in self._slots.values():
            slot.dead = True
            slot.gathered.clear()
        self._blocks.clear()
        self._keeper.hold(-self._held)
        self._held = 0

    def take(self, slot: Slot, data: Buffer) -> None:
        """Hold bytes of an instance until they are a block."""
        if not self._keeper.hold(len(data)):
            self._keeper.hold(-len(data))
            self.give_up("slow")
            return
        self._held += len(data)
        slot.gathered.append(data)
        slot.waiting += len(data)
        if slot.waiting >= BLOCK:
            self.flush(slot)

    def flush(self, slot: Slot) -> None:
        """Have what is gathered of an instance written."""
        if slot.waiting:
            self._blocks.append((slot, slot.gathered, slot.waiting))
            slot.gathered, slot.waiting = [], 0
            if not self._writing:
                self._writing = True
                Deferred.fromCoroutine(self._write()).addErrback(
                    lambda failure: self.log.failure("cache writer failed", failure=failure)
                )

    def forget(self, slot: Slot) -> None:
        """Let go of the bytes in memory of an instance given up."""
        self._release(slot.waiting)
        slot.gathered.clear()
        slot.waiting = 0

    # -- own ---------------------------------------------------------------------------------------

    def _release(self, size: int) -> None:
        # After giving up nothing is held any more.
        size = min(size, self._held)
        self._held -= size
        self._keeper.hold(-size)

    async def _write(self) -> None:
        """Write block after block, a batch a job."""
        try:
            while self._blocks:
                batch, size = self._batch()
                if not await self._keeper.room(size):
                    self.give_up("full")
                    break
                self.reserved += size
                written = await self._try(partial(self._put, batch))
                self._release(size)
                if written is None:
                    self.give_up("disk")
                    break
                for (slot, _, _), runs in zip(batch, written, strict=True):
                    slot.runs += runs
        finally:
            self._ready()

    def _batch(self) -> tuple[list[tuple[Slot, list[Buffer], int]], int]:
        count = size = 0
        while count < len(self._blocks) and size < _BATCH:
            size += self._blocks[count][2]
            count += 1
        batch = self._blocks[:count]
        del self._blocks[:count]
        return batch, size

    def _put(self, batch: list[tuple[Slot, list[Buffer], int]]) -> list[list[Run]]:
        """Write blocks (in a thread)."""
        if self._partial is None:
            self._partial = self._keeper.folder.begin()
        return [self._partial.write(b"".join(pieces)) for _, pieces, _ in batch]

    async def _publish(self, live: list[Slot]) -> Found | None:
        records = [
            Record(
                CachedInstance(
                    slot.sop_instance_uid,
                    slot.sop_class_uid,
                    slot.transfer_syntax_uid,
                    sum(run.size for run in slot.runs),
                ),
                tuple(slot.runs),
            )
            for slot in live
        ]
        created = self._keeper.created()

        def work() -> Found:
            written = self._partial = self._partial or self._keeper.folder.begin()
            head = Head(self.key, created, written.size)
            return self._keeper.folder.publish(written, head, records)

        found = await self._try(work)
        if found is None:
            self.give_up("disk")
        return found

    async def _try(self, work: Callable[[], T]) -> T | None:
        """Run work on the disk; None when the disk fails, which costs the entry and nothing else."""
        try:
            return await self._keeper.in_thread(work)
        except OSError as error:
            self.log.warn("cache: {error}", error=error.strerror or type(error).__name__)
            return None

    async def _quiet(self) -> None:
        """Wait until no thread works for it."""
        while self._writing:
            waiting: Deferred[None] = Deferred()
            self._idle.append(waiting)
            await waiting

    def _ready(self) -> None:
        self._writing = False
        idle, self._idle = self._idle, []
        for waiting in idle:
            waiting.callback(None)
