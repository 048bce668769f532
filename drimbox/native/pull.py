"""An archive that is read, played into a receiver as if a PACS sent it (DB.SO.165).

Theory of operation. A *pull* is to a native archive what a C-MOVE is to a PACS: it brings the instances of
one series to one receiver, which cannot tell the difference. A few *readings* run side by side, each in
the role of an association: it takes the next instance of the list, reads it, hands its bytes over, takes
the next. So order, memory, back-pressure and every check are those of the receiver, whoever fills it.

A reading is paused by the receiver like an association; then it simply asks for no further block. It never
holds more than two blocks itself. Readings are counted for the whole archive (`places`): a pull gets one,
after waiting for it if it must, and a few more while some are free.

Time is watched from outside, because the class of an archive is somebody else's: a reading that has waited
longer than `timeout` for the archive, or a pull that lasts longer than `ceiling`, ends the pull. What the
archive's class raises becomes a coded error here; what it leaves open is closed here. A reading that does
not end when it is cancelled keeps its place, and nothing of it reaches the receiver any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Collection, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from drimbox.config import Native
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.moving import Abandoned, MoveReceiver, MoveResult
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.syntaxes import offered_text
from drimbox.errors import NotAcceptable, PacsUnavailable, RetrieveTimeout
from drimbox.model import is_uid
from drimbox.native.failures import image_error
from drimbox.native.files import FileReader
from drimbox.native.places import Places
from drimbox.native.store import ImageStore, InstanceGone, StoredInstance, StoreUnavailable

T = TypeVar("T")

#: Seconds between two looks at the clocks of a running pull.
_TICK = 0.5
#: Longest piece handed over at once, bytes.
_PIECE = 256 * 1024
#: Bytes handed over before everybody else gets a turn, and those an instance counts for at least.
_BURST, _LEAST = 512 * 1024, 16 * 1024
#: Instances of one series beyond which the list is taken for nonsense.
MAX_INSTANCES = 200_000


class Reading:
    """One line of instances into the receiver (a `Channel`)."""

    def __init__(self, pull: Pull, clock: IReactorTime) -> None:
        self._pull = pull
        self._clock = clock
        #: Fires when the reading may go on, None while it may.
        self._pause: Deferred[None] | None = None
        #: Reactor time since when it waits for the archive, None while it does not.
        self.waiting: float | None = None
        #: True once the receiver knows it, and while it is inside an instance.
        self.opened = self.inside = False
        #: Instances begun.
        self.count = 0

    def respond(self, command: Command, status: int) -> None:
        """Nobody waits for it; what was refused is in the tally of the receiver."""

    def pause(self) -> None:
        """Read no further for now."""
        if self._pause is None:
            self._pause = Deferred()

    def resume(self) -> None:
        """Read on."""
        waiting, self._pause = self._pause, None
        if waiting is not None:
            # Never from within: the receiver is in the middle of something when it lets us go.
            self._clock.callLater(0, _go_on, waiting)

    def abort(self) -> None:
        """End the pull: nobody else can complete what this reading has begun."""
        self._pull.end(PacsUnavailable("lecture interrompue"))

    async def ready(self) -> None:
        """Wait until the receiver lets us read. Raises `CancelledError` once the pull has ended."""
        while self._pause is not None:
            await self._pause
        if self._pull.ended:
            raise CancelledError

    async def answer(self, question: Awaitable[T]) -> T:
        """Return what the archive answers, noting since when we wait for it."""
        self.waiting = self._clock.seconds()
        try:
            return await question
        finally:
            self.waiting = None


class Pull:
    """One pull of a series, or of one instance of it (a `ports.MoveRun`).

    `needed` are the instances without which the receiver's answer is worth nothing, None for all: one of
    them in a form that the receiver does not take ends the pull with `NotAcceptable`.
    """

    def __init__(
        self,
        store: ImageStore,
        settings: Native,
        places: Places,
        receiver: MoveReceiver,
        clock: IReactorTime,
        needed: Collection[str] | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._places = places
        self._receiver = receiver
        self._clock = clock
        self._needed = frozenset(needed) if needed is not None else None
        self._listing: AsyncIterator[StoredInstance] | None = None
        #: Who asks for the next instance of the list; the others wait for their turn.
        self._turn = DeferredLock()
        self._listed = self._completed = self._gone = self._handed = 0
        #: What the receiver said of each SOP class in each transfer syntax.
        self._taken: dict[tuple[str, str], bool] = {}
        self._taking: Deferred[None] | None = None
        self._readings: dict[Reading, Deferred[None] | None] = {}
        self._left = 0
        self._started: float | None = None
        self._looking: IDelayedCall | None = None
        self._over: Deferred[None] = Deferred()
        self.ended = False
        self._why: BaseException | None = None

    # -- MoveRun -----------------------------------------------------------------------------------

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Bring the series, or one instance of it; return once everything the archive lists has come.

        `wait` is the time to wait for a place to read, in seconds. Raises `TooManyRequests`,
        `PacsUnavailable`, `RetrieveTimeout`, `NotAcceptable` or `Abandoned`.
        """
        await self._take_place(wait)
        more = 0 if instance_uid is not None else self._places.more(self._settings.parallel - 1)
        self._left = 1 + more
        self._started = self._clock.seconds()
        self._listing = self._store.instances(study_uid, series_uid, instance_uid)
        for _ in range(self._left):
            self._begin(Reading(self, self._clock))
        self._watch()
        await self._over
        for reading in self._readings:
            if reading.opened:
                self._receiver.closed(reading, not reading.inside)
        if self._why is not None:
            raise self._why
        return MoveResult(Status.WARNING if self._gone else Status.SUCCESS, self._completed, self._gone, 0)

    @property
    def sent_at(self) -> float | None:
        """Reactor time at which the archive was first asked, None before."""
        return self._started

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""
        self.end(Abandoned())

    # -- own ---------------------------------------------------------------------------------------

    def end(self, why: BaseException | None) -> None:
        """End the pull, with an error or in order; the first end counts."""
        if self.ended:
            return
        self.ended = True
        self._why = why
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        if self._taking is not None:
            self._taking.cancel()
        for work in list(self._readings.values()):
            if work is not None:
                work.cancel()
        self._over.callback(None)

    async def _take_place(self, wait: float) -> None:
        if self.ended:
            raise Abandoned
        self._taking = Deferred.fromCoroutine(self._places.take(wait))
        try:
            await self._taking
        except CancelledError:
            raise Abandoned from None
        finally:
            self._taking = None

    def _watch(self) -> None:
        """Look at the clocks, again and again until the pull has ended."""
        if self.ended:
            return
        now, limit = self._clock.seconds(), self._settings.timeout
        since = [reading.waiting for reading in self._readings if reading.waiting is not None]
        if since and now - min(since) > limit:
            self.end(RetrieveTimeout(f"aucune réponse de l'archive en {limit:.0f} s"))
        elif self._started is not None and now - self._started > self._settings.ceiling:
            self.end(RetrieveTimeout(f"plus de {self._settings.ceiling:.0f} s pour une série"))
        else:
            self._looking = self._clock.callLater(_TICK, self._watch)

    def _begin(self, reading: Reading) -> None:
        self._readings[reading] = None
        work = Deferred.fromCoroutine(self._work(reading))
        if not work.called:
            self._readings[reading] = work
        work.addBoth(lambda _: self._worked(reading))

    def _worked(self, reading: Reading) -> None:
        """A reading is over: its place is free, and with the last one the list is."""
        self._readings[reading] = None
        self._places.give_back()
        self._left -= 1
        if not self._left:
            Deferred.fromCoroutine(_close(self._listing)).addErrback(lambda _: None)
            self.end(None)

    async def _work(self, reading: Reading) -> None:
        """Bring instance after instance; never raises."""
        try:
            while (instance := await self._next(reading)) is not None:
                await self._bring(reading, instance)
        except (CancelledError, Exception) as error:
            if not self.ended:
                self.end(image_error(error))

    async def _next(self, reading: Reading) -> StoredInstance | None:
        """Return the next instance of the list, None at its end."""
        await reading.ready()
        await self._turn.acquire()
        try:
            await reading.ready()
            assert self._listing is not None
            instance = await reading.answer(anext(self._listing, None))
        finally:
            self._turn.release()
        self._listed += 1
        if self._listed > MAX_INSTANCES:
            raise StoreUnavailable(f"plus de {MAX_INSTANCES} images dans une série")
        return instance

    async def _bring(self, reading: Reading, instance: StoredInstance) -> None:
        """Read one instance into the receiver."""
        known = instance.transfer_syntax_uid
        if known and not self._takes(instance, instance.sop_class_uid, known):
            return
        blocks = self._store.read(instance)
        try:
            await self._read(reading, instance, blocks)
        except InstanceGone:
            if reading.inside:
                raise StoreUnavailable("image retirée de l'archive pendant sa lecture") from None
            self._gone += 1
        finally:
            await _close(blocks)

    async def _read(self, reading: Reading, instance: StoredInstance, blocks: AsyncIterator[bytes]) -> None:
        file = FileReader() if instance.part10 else None
        #: Handed over when the next piece is there: the last one must be called so.
        held: Buffer = b""
        block: bytes | None = b""
        while block is not None:
            block = await reading.answer(anext(blocks, None))
            await reading.ready()
            for piece in _pieces(block, file):
                if not reading.inside:
                    if not self._announce(reading, instance, file):
                        return
                else:
                    await self._hand_over(reading, held, last=False)
                held = piece
        if not held:
            raise DatasetRefused("an instance without a byte")
        await self._hand_over(reading, held, last=True)
        self._completed += 1

    def _announce(self, reading: Reading, instance: StoredInstance, file: FileReader | None) -> bool:
        """Begin an instance; False when the receiver does not take its form."""
        syntax, sop_class = instance.transfer_syntax_uid, instance.sop_class_uid
        if file is not None and file.meta is not None:
            # What describes the bytes is the file itself, not what the archive's index says of it.
            syntax, sop_class = file.meta.transfer_syntax_uid, sop_class or file.meta.sop_class_uid
        if not self._takes(instance, sop_class, syntax):
            return False
        if not reading.opened:
            reading.opened = True
            self._receiver.opened(reading)
        reading.count += 1
        reading.inside = True
        command = Command(
            CommandField.C_STORE_RQ,
            message_id=reading.count & 0xFFFF,
            affected_class=sop_class,
            affected_instance=instance.sop_instance_uid,
            has_dataset=True,
        )
        self._receiver.store(reading, command, syntax)
        return True

    def _takes(self, instance: StoredInstance, sop_class: str, syntax: str) -> bool:
        """Say whether the receiver takes this form. Raises `NotAcceptable` when it must and does not."""
        if not is_uid(syntax) or not is_uid(sop_class):
            raise StoreUnavailable("classe SOP ou syntaxe de transfert absente ou invalide")
        form, receiver = (sop_class, syntax), self._receiver
        if form not in self._taken:
            context = ProposedContext(1, sop_class, (syntax,))
            self._taken[form] = (
                receiver.choose(context) is not None or receiver.second_choice(context) is not None
            )
        if self._taken[form]:
            return True
        if self._needed is None or instance.sop_instance_uid in self._needed:
            raise NotAcceptable(offered_text({syntax}))
        return False

    async def _hand_over(self, reading: Reading, piece: Buffer, *, last: bool) -> None:
        """Give a piece to the receiver, and now and then a turn to everybody else."""
        await reading.ready()
        reading.inside = not last
        self._receiver.data(reading, piece, last)
        self._handed += max(len(piece), _LEAST)
        if self._handed >= _BURST:
            self._handed = 0
            await deferLater(self._clock, 0)


def _pieces(block: bytes | None, file: FileReader | None) -> Iterator[Buffer]:
    """Cut what a block brings of the data set; None is the end. Raises `DatasetRefused`."""
    data: Buffer = block or b""
    if file is not None:
        data = file.finish() if block is None else file.feed(block)
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


def _go_on(waiting: Deferred[None]) -> None:
    if not waiting.called:
        waiting.callback(None)


async def _close(iterator: Any) -> None:
    """Let an iterator of the archive's class run its `finally`, if it has one."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
