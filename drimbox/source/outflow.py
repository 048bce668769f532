"""From parts to the client: one part at a time, memory within the window, the rest through the spool.

The head part is written as its bytes come. What cannot be written, because the client is slow or because
it belongs to a later part, is held in memory up to the window; then the associations are paused. A PACS
does not wait for ever: after its patience (architecture.md, rule 5) the associations read on and what
they bring goes to disk. Without room there, the client is too slow and is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox import metrics
from drimbox.dicom.moving import Channel
from drimbox.dicom.pdu import Buffer
from drimbox.ports import SpoolArea, SpoolFile, SpoolFull
from drimbox.source.parts import Part, Spooled
from drimbox.wado.multipart import MultipartWriter

#: Bytes gathered before one write to the spool.
_SPOOL_BLOCK = 1024 * 1024


class Sink(Protocol):
    """The answer, as the outflow writes it."""

    def start(self, content_type: str) -> None:
        """Send status 200 and the headers."""

    def write(self, data: Buffer) -> None:
        """Send bytes of the body. May call `Outflow.pause` before it returns."""

    def finish(self) -> None:
        """End the body in order."""

    def abort(self) -> None:
        """Cut the connection: what was sent must not look complete."""


class Budget:
    """Bytes that all deliveries together may hold in memory."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0

    def add(self, size: int) -> None:
        """Count bytes in, or out when negative."""
        self._used += size
        metrics.WINDOW_BYTES.set(self._used)

    @property
    def exceeded(self) -> bool:
        """True while too much is held."""
        return self._used > self._total


class Outflow:
    """Writes the parts of one transfer to one answer.

    `window` is in bytes, `patience` and `stall` in seconds. `on_fail` is called once when the answer
    cannot be completed, with the reason; the answer is cut by then.
    """

    log = Logger()

    def __init__(
        self,
        sink: Sink,
        *,
        host: str,
        clock: IReactorTime,
        budget: Budget,
        spool: SpoolArea,
        window: int,
        patience: float,
        stall: float,
        on_fail: Callable[[str], None],
    ) -> None:
        self._sink = sink
        self._host = host
        self._clock = clock
        self._budget = budget
        self._spool = spool
        self._window = window
        self._patience = patience
        self._stall = stall
        self._on_fail = on_fail
        self._writer = MultipartWriter()
        self._parts: deque[Part] = deque()
        self._channels: set[Channel] = set()
        self._on_sent: Callable[[Part], None] = lambda part: None
        #: Bytes held in memory for this answer.
        self._held = 0
        self._count = 0
        self.bytes_sent = 0
        #: Reactor time when the first part had been written whole; 0 before.
        self.first_part_at = 0.0
        self.started = False
        self.failed = False
        self._paused = False
        #: True while the associations are paused for the client's sake.
        self.holding = False
        self._patience_call: IDelayedCall | None = None
        self._stall_call: IDelayedCall | None = None
        self._file: SpoolFile | None = None
        self._spooling = False
        self._on_disk = 0
        self._block: list[Buffer] = []
        self._block_size = 0
        self._block_part: Part | None = None
        self._loading = False
        self._drained: Deferred[None] | None = None

    # -- from the transfer -------------------------------------------------------------------------

    def attach(self, on_sent: Callable[[Part], None]) -> None:
        """Name who is told of each part written whole."""
        self._on_sent = on_sent

    def join(self, channel: Channel) -> None:
        """Count an association among those to pause."""
        self._channels.add(channel)
        if self.holding:
            channel.pause()

    def leave(self, channel: Channel) -> None:
        """Forget an association."""
        self._channels.discard(channel)

    def push(self, part: Part, chunks: list[Buffer]) -> None:
        """Take verified bytes of a part, in order."""
        if self.failed:
            return
        if chunks and not part.opened and part not in self._parts:
            self._parts.append(part)
        head = bool(self._parts) and self._parts[0] is part
        if head and not part.queue and not self._paused and part is not self._block_part:
            self._write(part, chunks)
        else:
            for chunk in chunks:
                self._hold(part, chunk)
        if part.ended:
            if part is self._block_part:
                self._flush_block()
            self._pump()
        self._press()

    def drop(self, part: Part, problem: str) -> None:
        """Give a part up: harmless while none of it was sent, the end of the answer after."""
        if part.opened:
            self.fail(problem)
            return
        if part in self._parts:
            self._forget(part)
            self._parts.remove(part)
            self._pump()
        self._press()

    async def drain(self) -> None:
        """Wait until every part received has been written to the client's connection."""
        self._pump()
        if self._parts and not self.failed:
            self._drained = Deferred()
            await self._drained

    def complete(self) -> None:
        """End the answer in order; only for an answer that is whole."""
        if self.failed:
            return
        self._start()
        self._sink.write(self._writer.closing())
        self._sink.finish()
        self.close()

    def fail(self, problem: str) -> None:
        """Cut the answer."""
        if self.failed:
            return
        self.failed = True
        if self.started:
            self._sink.abort()
        self.close()
        if self._drained is not None and not self._drained.called:
            self._drained.callback(None)
        self._on_fail(problem)

    def close(self) -> None:
        """Let go of memory, spool and timers."""
        for part in self._parts:
            self._forget(part)
        self._parts.clear()
        self._block, self._block_size, self._block_part = [], 0, None
        self._budget.add(-self._held)
        self._held = 0
        for call in (self._patience_call, self._stall_call):
            if call is not None and call.active():
                call.cancel()
        self._release()
        if self._file is not None:
            file, self._file = self._file, None
            Deferred.fromCoroutine(file.close()).addErrback(self._spool_broken)

    # -- from the client's connection --------------------------------------------------------------

    def pause(self) -> None:
        """The client's connection takes no more for now."""
        if not self._paused:
            self._paused = True
            self._stall_call = self._clock.callLater(
                self._stall, self.fail, f"client sans lecture depuis {self._stall:.0f} s"
            )

    def resume(self) -> None:
        """The client's connection takes bytes again."""
        self._paused = False
        if self._stall_call is not None and self._stall_call.active():
            self._stall_call.cancel()
        self._stall_call = None
        self._pump()
        self._press()

    # -- writing -----------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self.started:
            self.started = True
            self._sink.start(self._writer.content_type)

    def _write(self, part: Part, chunks: list[Buffer]) -> None:
        if not chunks:
            return
        if not part.opened:
            part.opened = True
            self._count += 1
            self._start()
            chunks = [self._writer.part_header(part.syntax, self._count, self._host), *chunks]
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.bytes_sent += len(data)
        self._sink.write(data)

    def _pump(self) -> None:
        """Write what may be written; called whenever something changed."""
        while self._parts and not self._paused and not self.failed:
            part = self._parts[0]
            if part.queue:
                chunk = part.queue[0]
                if isinstance(chunk, Spooled):
                    if chunk.data is None:
                        self._load(chunk)
                        return
                    data: Buffer = chunk.data
                    self._from_disk(chunk)
                else:
                    data = chunk
                part.queue.popleft()
                self._count_held(-len(data))
                self._write(part, [data])
            elif part is self._block_part:
                self._unblock(part)
            elif part.ended:
                self._parts.popleft()
                self._sent(part)
            else:
                return
        if not self._parts and self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _sent(self, part: Part) -> None:
        if not self.first_part_at:
            self.first_part_at = self._clock.seconds()
        self._on_sent(part)

    # -- holding -----------------------------------------------------------------------------------

    def _count_held(self, size: int) -> None:
        self._held += size
        self._budget.add(size)

    def _hold(self, part: Part, chunk: Buffer) -> None:
        self._count_held(len(chunk))
        if not self._spooling:
            part.queue.append(chunk)
            return
        if self._block_part is not part:
            self._flush_block()
            self._block_part = part
        self._block.append(chunk)
        self._block_size += len(chunk)
        if self._block_size >= _SPOOL_BLOCK:
            self._flush_block()

    def _press(self) -> None:
        """Pause the associations when too much is held, let them go when there is room again."""
        if self.failed:
            return
        if self._held > self._window or self._budget.exceeded:
            if not self.holding:
                self.holding = True
                for channel in self._channels:
                    channel.pause()
                if not self._spooling:
                    self._patience_call = self._clock.callLater(self._patience, self._overflow)
        elif self.holding and self._held <= self._window // 2:
            self._release()

    def _release(self) -> None:
        if self._patience_call is not None and self._patience_call.active():
            self._patience_call.cancel()
        self._patience_call = None
        if self.holding:
            self.holding = False
            for channel in list(self._channels):
                channel.resume()

    # -- spool -------------------------------------------------------------------------------------

    def _overflow(self) -> None:
        """The PACS has waited long enough: read on, to disk."""
        self._patience_call = None
        if not self._spool.enabled:
            self.fail("client trop lent, et pas d'espace tampon sur disque")
            return
        self._spooling = True
        if self._file is None:
            self._file = self._spool.open()
        # What is held already goes to disk too, so that the window is free for what comes.
        for part in list(self._parts):
            self._spool_queue(part)
        self._press()

    def _spool_queue(self, part: Part) -> None:
        waiting = [chunk for chunk in part.queue if not isinstance(chunk, Spooled)]
        if not waiting or len(waiting) != len(part.queue):
            return
        part.queue.clear()
        self._spool_write(part, b"".join(waiting))

    def _flush_block(self) -> None:
        part, block = self._block_part, self._block
        self._block, self._block_size, self._block_part = [], 0, None
        if part is not None and block:
            self._spool_write(part, b"".join(block))

    def _unblock(self, part: Part) -> None:
        """The head part caught up with the block being gathered: send it without the detour."""
        block = self._block
        self._block, self._block_size, self._block_part = [], 0, None
        part.queue.extend(block)

    def _spool_write(self, part: Part, data: bytes) -> None:
        assert self._file is not None
        try:
            offset = self._file.reserve(len(data))
        except SpoolFull:
            self.fail("client trop lent, espace tampon sur disque plein")
            return
        spooled = Spooled(offset, len(data), data)
        part.queue.append(spooled)
        self._on_disk += 1
        writing = Deferred.fromCoroutine(self._file.write(offset, data))
        writing.addCallbacks(lambda _: self._written(spooled), self._spool_broken)

    def _written(self, spooled: Spooled) -> None:
        if spooled.data is None or self.failed:
            return
        spooled.data = None
        self._count_held(-spooled.size)
        self._press()

    def _load(self, spooled: Spooled) -> None:
        if self._loading or self._file is None:
            return
        self._loading = True
        reading = Deferred.fromCoroutine(self._file.read(spooled.offset, spooled.size))
        reading.addCallbacks(lambda data: self._loaded(spooled, data), self._spool_broken)

    def _loaded(self, spooled: Spooled, data: bytes) -> None:
        self._loading = False
        if self.failed or self._file is None:
            return
        spooled.data = data
        self._count_held(len(data))
        self._pump()
        self._press()

    def _from_disk(self, spooled: Spooled) -> None:
        """A spooled piece leaves; with the last one, memory takes over again."""
        spooled.data = None
        self._on_disk -= 1
        if self._on_disk == 0 and not self._block and self._file is not None:
            self._spooling = False
            self._file.empty()

    def _forget(self, part: Part) -> None:
        for chunk in part.queue:
            if isinstance(chunk, Spooled):
                self._on_disk -= 1
                if chunk.data is not None:
                    self._count_held(-chunk.size)
            else:
                self._count_held(-len(chunk))
        part.queue.clear()
        if part is self._block_part:
            self._count_held(-self._block_size)
            self._block, self._block_size, self._block_part = [], 0, None

    def _spool_broken(self, failure: Failure) -> None:
        self.log.failure("spool failed", failure=failure)
        self.fail("espace tampon sur disque en erreur")
