"""From parts to the client: one part at a time, memory within the window, the rest through the spool.

The part whose turn it is, the head, is written as its bytes come, what a few reads bring together
(`batch`). What cannot be written, because the client is slow or because it belongs to a later part, is held
in memory up to the window; then the associations are paused, all but the head's while the client still
reads: only its end lets the others on. A PACS does not wait for ever: after its patience (architecture.md,
rule 5) the associations read on and what they bring goes to disk (`overflow`); for a client that takes
nothing at all, soon: waiting would not help, and others may want the AE title, or the PACS. Without room on
disk, a slow client is cut.

An answer ends in one of two ways. `complete` writes the closing delimiter. Everything else is `fail`:
the connection is cut, so that nobody takes what was sent for the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from drimbox.dicom.moving import Channel
from drimbox.dicom.pdu import Buffer
from drimbox.ports import SpoolArea
from drimbox.source.batch import Batch
from drimbox.source.budget import Budget, Holding
from drimbox.source.overflow import Overflow
from drimbox.source.parts import Part, Spooled
from drimbox.wado.multipart import MultipartWriter

#: Part of the PACS's patience after which a client that took nothing will not make room in the rest.
_HICCUP = 0.1


class Sink(Protocol):
    """The answer, as the outflow writes it."""

    def start(self, content_type: str) -> None:
        """Send status 200 and the headers."""

    def write(self, *pieces: Buffer) -> None:
        """Send bytes of the body, in order. May call `Outflow.pause` before it returns."""

    def finish(self) -> None:
        """End the body in order."""

    def abort(self) -> None:
        """Cut the connection: what was sent must not look complete."""


class Outflow:
    """Writes the parts of one transfer to one answer.

    `window` is in bytes, `patience` and `stall` in seconds. `on_fail` is called once when the answer
    cannot be completed, with the reason; the answer is cut by then.
    """

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
        self._window = window
        self._patience = patience
        self._stall = stall
        self._on_fail = on_fail
        self._on_sent: Callable[[Part], None] = lambda part: None
        self._on_release: Callable[[], None] = lambda: None
        self._writer = MultipartWriter()
        self._holding = Holding(budget)
        self._overflow = Overflow(
            spool, self._holding, clock, patience=stall, changed=self._changed, broken=self.fail
        )
        self._parts: deque[Part] = deque()
        #: Bytes of the head that come before its queue.
        self._batch = Batch(clock, self._batch_due)
        self._channels: set[Channel] = set()
        #: Associations that do not read now, and those inside an instance of use only when it is whole.
        self._stopped: set[Channel] = set()
        self._gathering: set[Channel] = set()
        self._count = 0
        self.bytes_sent = 0
        #: Reactor time when the first part had been written whole; 0 before.
        self.first_part_at = 0.0
        self.started = False
        self.failed = False
        self._closed = False
        self._pumping = False
        #: True while the client's connection takes no more, and since when.
        self._paused = False
        self._paused_at = 0.0
        #: True while too much is held to read on.
        self._tight = False
        self._patience_call: IDelayedCall | None = None
        self._patience_end = 0.0
        self._stall_call: IDelayedCall | None = None
        self._drained: Deferred[None] | None = None
        budget.join(self._changed)

    # -- from the transfer -------------------------------------------------------------------------

    def attach(self, on_sent: Callable[[Part], None], on_release: Callable[[], None]) -> None:
        """Name who is told of each part written whole, and when paused associations are read again."""
        self._on_sent = on_sent
        self._on_release = on_release

    def join(self, channel: Channel) -> None:
        """Count an association among those to pause."""
        self._channels.add(channel)
        self._steer()

    def leave(self, channel: Channel) -> None:
        """Forget an association."""
        self._channels.discard(channel)
        self._stopped.discard(channel)
        self._gathering.discard(channel)

    def gather(self, channel: Channel, begun: bool) -> None:
        """Say that an instance to be transcoded begins, or ends, on an association.

        No codec, no disk and no client can take half of it: stopped there, the PACS would wait for what
        nothing brings about. Its size is bounded elsewhere.
        """
        if begun:
            self._gathering.add(channel)
        else:
            self._gathering.discard(channel)
            if self._tight:
                self._steer()

    def enlist(self, part: Part) -> None:
        """Give a part its place in the answer before its first byte is there."""
        if not self._closed and not part.queued:
            part.queued = True
            self._parts.append(part)

    def weigh(self, size: int) -> None:
        """Count bytes that are held elsewhere for this answer, or no more when negative."""
        if not self._closed:
            self._holding.add(size)
            self._press()

    def push(self, part: Part, chunks: list[Buffer]) -> None:
        """Take verified bytes of a part, in order."""
        if self._closed:
            return
        if chunks:
            self.enlist(part)
        if self._flows(part):
            if self._batch.add(chunks):
                self._write()
        else:
            self._hold(part, chunks)
        if part.ended:
            self._pump()
        self._press()

    def drop(self, part: Part, problem: str) -> None:
        """Give a part up: harmless while none of it was sent, the end of the answer after."""
        if part.opened:
            self.fail(problem)
        elif part.queued and not self._closed:
            if self._parts[0] is part:
                self._batch.take()
            self._parts.remove(part)
            self._forget(part)
            self._changed()

    async def drain(self) -> None:
        """Wait until every part received has been written to the client's connection."""
        self._pump()
        if self._parts and not self._closed:
            self._drained = Deferred()
            await self._drained

    def complete(self) -> None:
        """End the answer in order; only for an answer that is whole."""
        if self._closed:
            return
        if self._parts:
            raise RuntimeError("an answer completed with parts still to send")
        self._start()
        self._sink.write(self._writer.closing())
        self._sink.finish()
        self.close()

    def fail(self, problem: str) -> None:
        """Cut the answer."""
        if self.failed or self._closed:
            return
        self.failed = True
        if self.started:
            self._sink.abort()
        # Who waits for the end is woken last: by then it is known why it came.
        waiting, self._drained = self._drained, None
        self.close()
        self._on_fail(problem)
        if waiting is not None:
            waiting.callback(None)

    def close(self) -> None:
        """Let go of memory, spool, associations and timers; nothing is written any more."""
        if self._closed:
            return
        self._closed = True
        self._budget.leave(self._changed)
        self._parts.clear()
        self._batch.close()
        self._overflow.close()
        self._holding.close()
        self._tight = False
        self._wait()
        self._end_stall()
        self._steer()
        self._end_drain()

    # -- from the client's connection --------------------------------------------------------------

    def pause(self) -> None:
        """The client's connection takes no more; said again: it still does not, but the client reads."""
        if self._closed:
            return
        if not self._paused:
            self._paused = True
            self._paused_at = self._clock.seconds()
        self._end_stall()
        self._stall_call = self._clock.callLater(
            self._stall, self.fail, f"client sans lecture depuis {self._stall:.0f} s"
        )

    def resume(self) -> None:
        """The client's connection takes bytes again."""
        self._paused = False
        self._end_stall()
        self._changed()

    # -- state -------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self._holding.size

    @property
    def held_back(self) -> bool:
        """True while no association is read, for the client's sake or the disk's."""
        return self._tight and not self._gathering and self._head_channel() is None

    def _flows(self, part: Part) -> bool:
        """Say whether bytes of this part may go straight to the client."""
        return not self._paused and bool(self._parts) and self._parts[0] is part and not part.queue

    def _head_channel(self) -> Channel | None:
        """Return the association whose bytes go straight to the client, if there is one."""
        if not self._parts or not self._flows(self._parts[0]) or self._parts[0].ended:
            return None
        return self._parts[0].channel

    # -- writing -----------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self.started:
            self.started = True
            self._sink.start(self._writer.content_type)

    def _batch_due(self) -> None:
        if not self._paused:
            self._write()

    def _write(self) -> None:
        """Write what was put together, all of it bytes of the head."""
        pieces = self._batch.take()
        if not pieces:
            return
        part = self._parts[0]
        if not part.opened:
            part.opened = True
            self._count += 1
            self._start()
            pieces.insert(0, self._writer.part_header(part.syntax, self._count, self._host))
        self.bytes_sent += sum(map(len, pieces))
        self._sink.write(*pieces)

    def _changed(self) -> None:
        """Something may have become possible."""
        self._pump()
        self._press()
        if self._tight and self._overflow.active and not self._overflow.writing:
            # What came before the associations stopped is less than a block, and too much to let them go.
            self._overflow.begin(list(self._parts))

    def _pump(self) -> None:
        """Write what may be written."""
        if self._pumping:
            # Giving memory back may end somebody's wait, even our own, in the middle of the loop below.
            return
        self._pumping = True
        try:
            self._send()
        finally:
            self._pumping = False
        if not self._parts:
            self._end_drain()

    def _send(self) -> None:
        if self._batch.overdue and not self._paused:
            self._write()
        while self._parts and not self._paused:
            part = self._parts[0]
            if part.queue:
                piece = part.queue[0]
                if isinstance(piece, Spooled):
                    data: Buffer | None = self._overflow.take(piece)
                    if data is None:
                        return
                else:
                    data = piece
                    part.in_memory -= len(data)
                    self._holding.add(-len(data))
                if self._closed:
                    return
                part.queue.popleft()
                self._batch.add([data])
                self._write()
            elif part.ended and (part.opened or self._batch):
                self._write()
                if self._closed:
                    return
                self._parts.popleft()
                if not self.first_part_at:
                    self.first_part_at = self._clock.seconds()
                self._on_sent(part)
            else:
                return

    def _end_stall(self) -> None:
        call, self._stall_call = self._stall_call, None
        if call is not None and call.active():
            call.cancel()

    def _end_drain(self) -> None:
        waiting, self._drained = self._drained, None
        if waiting is not None:
            waiting.callback(None)

    # -- holding -----------------------------------------------------------------------------------

    def _hold(self, part: Part, chunks: list[Buffer]) -> None:
        for chunk in chunks:
            part.queue.append(chunk)
            part.in_memory += len(chunk)
            self._holding.add(len(chunk))
        if self._overflow.active:
            self._overflow.written_away(part, pressed=self._tight)

    def _forget(self, part: Part) -> None:
        self._holding.add(-part.in_memory)
        self._overflow.forget(part)
        part.queue.clear()
        part.in_memory = 0

    def _press(self) -> None:
        """Pause associations when too much is held, let them go when there is room again."""
        if self._closed:
            return
        held = self._holding.size
        crowded = held > 0 and self._budget.exceeded
        if not self._tight and (held > self._window or crowded):
            self._tight = True
            if self._overflow.active:
                self._overflow.begin(list(self._parts))
        elif self._tight and held <= self._window // 2 and not crowded:
            self._tight = False
        self._wait()
        if self._tight or self._stopped:
            self._steer()

    def _wait(self) -> None:
        """Count the PACS's patience while its associations are paused and no disk takes over."""
        waiting = self._tight and not self._overflow.active and not self._closed
        if waiting and self._patience_call is None:
            self._patience_end = self._clock.seconds() + self._patience
            self._impatient()
        elif not waiting and self._patience_call is not None:
            self._patience_call.cancel()
            self._patience_call = None

    def _steer(self) -> None:
        """Let each association read, or not."""
        head = self._head_channel()
        released = False
        for channel in self._channels:
            stop = self._tight and channel is not head and channel not in self._gathering
            if stop and channel not in self._stopped:
                self._stopped.add(channel)
                channel.pause()
            elif not stop and channel in self._stopped:
                self._stopped.discard(channel)
                channel.resume()
                released = True
        if released:
            self._on_release()

    def _impatient(self) -> None:
        """Read on, to disk, once the PACS has waited long enough, or when it would for nothing."""
        now = self._clock.seconds()
        unread = now - self._paused_at if self._paused else 0.0
        if self._overflow.enabled:
            left = min(self._patience_end - now, self._patience * _HICCUP - unread)
        else:
            # Only a client that does not read is to blame, not one whose part comes after another.
            left = max(self._patience_end - now, self._patience - unread)
        if left > 1e-6:
            self._patience_call = self._clock.callLater(left, self._impatient)
            return
        self._patience_call = None
        if self._overflow.enabled:
            self._overflow.begin(list(self._parts))
            self._press()
        else:
            self.fail("client trop lent, et pas d'espace tampon sur disque")
