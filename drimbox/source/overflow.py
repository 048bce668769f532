"""The part of an answer that waits on disk, because the PACS does not wait for the client.

A part's queue is always `on disk ... on disk, in memory ... in memory`: while the overflow is active, the
pieces in memory at its end are written away in blocks. They stay counted as memory until the disk has
them, so that a slow disk slows the PACS and not the other way round. Reading back goes one block at a
time, for the part whose turn it is. Once nothing is left on disk, memory alone serves again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.dicom.pdu import Buffer
from drimbox.ports import SpoolArea, SpoolFile, SpoolFull
from drimbox.source.budget import Holding
from drimbox.source.parts import Part, Spooled

#: Bytes gathered before one write to the spool, and read back at once.
BLOCK = 1024 * 1024


class Overflow:
    """The blocks of one answer in the spool.

    `changed` is called when memory was freed or a block asked for has come, `broken` with the reason
    when the spool cannot go on; `patience` bounds one read, in seconds.
    """

    log = Logger()

    def __init__(
        self,
        area: SpoolArea,
        holding: Holding,
        clock: IReactorTime,
        *,
        patience: float,
        changed: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        self._area = area
        self._holding = holding
        self._clock = clock
        self._patience = patience
        self._changed = changed
        self._broken = broken
        self._file: SpoolFile | None = None
        #: Blocks not yet both written and read.
        self._blocks = 0
        #: Blocks on their way to the disk.
        self.writing = 0
        self._loading: IDelayedCall | None = None
        self._closed = False
        #: True while new pieces go to disk.
        self.active = False

    @property
    def enabled(self) -> bool:
        """False when there is no spool."""
        return self._area.enabled

    def begin(self, parts: Iterable[Part]) -> None:
        """Write away what is held, and whatever comes until the client has caught up."""
        self.active = True
        if self._file is None:
            self._file = self._area.open()
        for part in parts:
            self.write(part)

    def written_away(self, part: Part, *, pressed: bool) -> None:
        """Look at a part that got more: write it when a block is full or the part is over.

        `pressed` tells that memory is short and nothing more is read: then nothing would fill a block, and
        what is there is written as soon as the disk is done with what it has.
        """
        if part.ended or part.in_memory >= BLOCK or (pressed and not self.writing):
            self.write(part)

    def write(self, part: Part) -> None:
        """Move the pieces in memory of a part to disk."""
        for block in _blocks(_tail(part)):
            if self._closed or self._file is None:
                return
            try:
                offset = self._file.reserve(len(block))
            except SpoolFull:
                self._broken("client trop lent, espace tampon sur disque plein")
                return
            spooled = Spooled(offset, len(block), block, writing=True)
            part.queue.append(spooled)
            self._blocks += 1
            self.writing += 1
            writing = Deferred.fromCoroutine(self._file.write(offset, block))
            writing.addCallbacks(self._written, self._failed, callbackArgs=(spooled,))

    def take(self, spooled: Spooled) -> bytes | None:
        """Return a block whose turn has come; None when it is on disk: `changed` says when to ask again."""
        data = spooled.data
        if data is None:
            self._load(spooled)
            return None
        self._done(spooled)
        return data

    def forget(self, part: Part) -> None:
        """Give a part's blocks up."""
        for piece in part.queue:
            if isinstance(piece, Spooled):
                self._done(piece)
        self._idle()

    def close(self) -> None:
        """Give the disk space back."""
        self._closed = True
        self.active = False
        if self._loading is not None and self._loading.active():
            self._loading.cancel()
        file, self._file = self._file, None
        if file is not None:
            Deferred.fromCoroutine(file.close()).addErrback(self._failed)

    # -- own ---------------------------------------------------------------------------------------

    def _written(self, _: None, spooled: Spooled) -> None:
        spooled.writing = False
        self.writing -= 1
        self._holding.add(-spooled.size)
        spooled.data = None
        if spooled.taken:
            self._blocks -= 1
            self._idle()
        if not self._closed:
            self._changed()

    def _done(self, spooled: Spooled) -> None:
        """Count a block out that was sent or given up; while it is being written, its write will."""
        spooled.taken = True
        if spooled.writing:
            return
        self._blocks -= 1
        if spooled.data is not None:
            spooled.data = None
            self._holding.add(-spooled.size)
        self._idle()

    def _idle(self) -> None:
        if self._blocks == 0 and self._file is not None:
            self.active = False
            self._file.empty()

    def _load(self, spooled: Spooled) -> None:
        if self._loading is not None or self._file is None:
            return
        self._loading = self._clock.callLater(
            self._patience, self._broken, "espace tampon sur disque sans réponse"
        )
        reading = Deferred.fromCoroutine(self._file.read(spooled.offset, spooled.size))
        reading.addCallbacks(self._loaded, self._failed, callbackArgs=(spooled,))

    def _loaded(self, data: bytes, spooled: Spooled) -> None:
        loading, self._loading = self._loading, None
        if loading is not None and loading.active():
            loading.cancel()
        if self._closed:
            return
        if not spooled.taken:
            spooled.data = data
            self._holding.add(spooled.size)
        self._changed()

    def _failed(self, failure: Failure) -> None:
        self.log.failure("spool failed", failure=failure)
        if not self._closed:
            self._broken("espace tampon sur disque en erreur")


def _tail(part: Part) -> Iterator[Buffer]:
    """Take the pieces in memory off the end of a part's queue, in order."""
    pieces: list[Buffer] = []
    while part.queue and not isinstance(part.queue[-1], Spooled):
        piece = part.queue.pop()
        assert not isinstance(piece, Spooled)
        pieces.append(piece)
    part.in_memory = 0
    return reversed(pieces)


def _blocks(pieces: Iterable[Buffer]) -> Iterator[bytes]:
    """Join pieces into blocks of `BLOCK` bytes, or a piece more."""
    gathered: list[Buffer] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
