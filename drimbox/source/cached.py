"""A series of the cache played into a transfer, as if the PACS sent it (DB.SO.40).

The transfer cannot tell: each instance is verified, converted, completed and ordered by the very path of
one that just came, whatever the Accept of this request and the options of the site are. Only the pace
differs: nobody waits at the other end, so a slow client holds the reading for as long as it is allowed to
be slow, and nothing goes to the spool.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.moving import Abandoned
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.syntaxes import offered_text
from drimbox.errors import NotAcceptable
from drimbox.ports import CachedInstance, CachedSeries
from drimbox.source.transfer import Transfer

#: Seconds the outflow of a replay may hold the reading: the limit of a client's slowness is its own.
PATIENCE = 86400.0


class Replay:
    """Plays one series, or `only` one instance of it, into one transfer (a `Channel`).

    Instances come in the order in which the PACS sent them.
    """

    def __init__(
        self, series: CachedSeries, transfer: Transfer, clock: IReactorTime, only: str | None = None
    ) -> None:
        self._series = series
        self._instances = [each for each in series.instances if only in (None, each.sop_instance_uid)]
        self._transfer = transfer
        self._clock = clock
        self._stopped = False
        #: Fires when the reading may go on, None while it may.
        self._pause: Deferred[None] | None = None

    async def run(self) -> None:
        """Play every instance.

        Raises `NotAcceptable` (before anything is read) when the client takes no form of one of them,
        `CacheDamaged` and `Abandoned`; what was begun is then left to whoever ends the transfer.
        """
        self._negotiate()
        self._transfer.opened(self)
        for number, instance in enumerate(self._instances, 1):
            await self._play(number, instance)
        self._transfer.closed(self, True)

    def abandon(self) -> None:
        """Read no more: the answer is cut."""
        self._stopped = True
        self._go_on()

    # -- Channel -----------------------------------------------------------------------------------

    def respond(self, command: Command, status: int) -> None:
        """Nobody waits for it; what was refused is in the tally of the transfer."""

    def pause(self) -> None:
        """Read no further for now."""
        if self._pause is None and not self._stopped:
            self._pause = Deferred()

    def resume(self) -> None:
        """Read on."""
        self._go_on()

    def abort(self) -> None:
        """Read no more."""
        self.abandon()

    # -- own ---------------------------------------------------------------------------------------

    def _negotiate(self) -> None:
        """Let the transfer say of each form that is kept whether it can leave."""
        held = {(each.sop_class_uid, each.transfer_syntax_uid) for each in self._instances}
        for sop_class, syntax in held:
            context = ProposedContext(1, sop_class, (syntax,))
            if self._transfer.choose(context) is None and self._transfer.second_choice(context) is None:
                raise NotAcceptable(offered_text({syntax for _, syntax in held}))

    async def _play(self, number: int, instance: CachedInstance) -> None:
        await self._ready()
        command = Command(
            CommandField.C_STORE_RQ,
            message_id=number & 0xFFFF,
            affected_class=instance.sop_class_uid,
            affected_instance=instance.sop_instance_uid,
            has_dataset=True,
        )
        self._transfer.store(self, command, instance.transfer_syntax_uid)
        left = instance.size
        async for block in self._series.read(instance):
            if self._stopped:
                raise Abandoned
            left -= len(block)
            self._transfer.data(self, block, left <= 0)
            await self._ready()

    async def _ready(self) -> None:
        while self._pause is not None:
            await self._pause
        if self._stopped:
            raise Abandoned

    def _go_on(self) -> None:
        waiting, self._pause = self._pause, None
        if waiting is not None:
            # Never from within: the outflow is in the middle of something when it lets us go.
            self._clock.callLater(0, waiting.callback, None)
