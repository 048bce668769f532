"""One C-MOVE from lease to release: sends it, watches over it, and never leaves its title in doubt.

The control association carries the request and its responses; the images come over associations that the
PACS opens to the leased AE title and go to the receiver. A retrieval ends in one of three ways: the final
response came and the store associations are drained; something failed or took too long; or whoever asked
is gone. In the last two, C-CANCEL, a grace, then A-ABORT, and the title goes into quarantine
(retrieval-engine.md, rule 5).
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.config import Pacs
from drimbox.dicom.aetitles import Pools, Title
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.moving import Abandoned, Channel, MoveReceiver, MoveResult
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.requestor import STUDY_ROOT_MOVE, Links, Requestor
from drimbox.errors import PacsCommunicationError, PacsUnavailable, RetrieveTimeout

#: Seconds between two looks at the clocks of a running move.
_TICK = 0.25
#: Seconds a PACS gets to answer a C-CANCEL before its association is aborted.
_CANCEL_GRACE = 5.0
#: Quiet seconds after the final response before what is missing counts as missing.
_SETTLE = 2.0


class Retrieval:
    """One C-MOVE of a series, or of one instance of it."""

    log = Logger()

    def __init__(
        self, links: Links, pools: Pools, clock: IReactorTime, pacs: Pacs, receiver: MoveReceiver
    ) -> None:
        self._links = links
        self._pool = pools.by_pacs[pacs.name]
        self._clock = clock
        self._pacs = pacs
        self._receiver = receiver
        self._title: Title | None = None
        self._outcome: Deferred[MoveResult] = Deferred()
        self._started = 0.0

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Move the series to ourselves; return once everything that can arrive has arrived.

        `wait` is the time to wait for an AE title, in seconds. Raises `TooManyRequests`,
        `PacsUnavailable`, `RetrieveTimeout` or `Abandoned`.
        """
        title = self._title = await self._pool.lease(self._receiver, wait)
        try:
            requestor = await self._links.open(self._pacs, [STUDY_ROOT_MOVE])
        except PacsCommunicationError as error:
            title.release(final=True)
            raise PacsUnavailable(error.detail) from error
        final = False
        try:
            message_id = requestor.begin(
                STUDY_ROOT_MOVE,
                Command(CommandField.C_MOVE_RQ, priority=0, move_destination=title.ae_title),
                _identifier(study_uid, series_uid, instance_uid),
            )
            title.message_id = message_id
            self._started = self._clock.seconds()
            Deferred.fromCoroutine(self._follow(requestor)).addErrback(self._failed)
            self._clock.callLater(_TICK, self._watch)
            result = await self._outcome
            final = True
            await self._drain(title)
            return result
        except PacsCommunicationError as error:
            raise PacsUnavailable(error.detail) from error
        finally:
            if final:
                title.release(final=True)
                Deferred.fromCoroutine(self._links.done(requestor)).addErrback(self._unexpected)
            else:
                Deferred.fromCoroutine(self._wind_down(requestor, title)).addErrback(self._unexpected)

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""
        if not self._outcome.called:
            self._outcome.errback(Abandoned())

    async def _follow(self, requestor: Requestor) -> None:
        while True:
            response = await requestor.response(self._pacs.move_ceiling + _CANCEL_GRACE)
            command = response.command
            if command.status in (Status.PENDING, Status.PENDING_WARNING):
                continue
            if not self._outcome.called:
                self._outcome.callback(
                    MoveResult(
                        command.status if command.status is not None else Status.CANNOT_UNDERSTAND,
                        command.completed,
                        command.failed,
                        command.warning,
                        command.error_comment or "",
                    )
                )
            return

    def _failed(self, failure: Failure) -> None:
        if not self._outcome.called:
            self._outcome.errback(failure)

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure("C-MOVE not wound down in order", failure=failure)

    def _watch(self) -> None:
        if self._outcome.called:
            return
        now = self._clock.seconds()
        last = self._receiver.last_activity
        problem = ""
        if now - self._started > self._pacs.move_ceiling:
            problem = f"plus de {self._pacs.move_ceiling:.0f} s pour une série"
        elif self._receiver.held_back:
            pass
        elif not last and now - self._started > self._pacs.first_image_timeout:
            problem = f"aucune image du PACS après {self._pacs.first_image_timeout:.0f} s"
        elif last and now - last > self._pacs.gap_timeout:
            problem = f"plus d'image du PACS depuis {self._pacs.gap_timeout:.0f} s"
        if problem:
            self._outcome.errback(RetrieveTimeout(problem))
            return
        self._clock.callLater(_TICK, self._watch)

    async def _drain(self, title: Title) -> None:
        """Wait for what the PACS may still be sending after its final response."""
        limit = self._clock.seconds() + self._pacs.gap_timeout
        while not self._receiver.satisfied and title.channels:
            now = self._clock.seconds()
            quiet = now - max(self._receiver.last_activity, limit - self._pacs.gap_timeout)
            if now > limit or (
                quiet > _SETTLE and not self._receiver.busy and not self._receiver.held_back
            ):
                return
            pause: Deferred[None] = Deferred()
            self._clock.callLater(0.05, pause.callback, None)
            await pause

    async def _wind_down(self, requestor: Requestor, title: Title) -> None:
        """End a move nobody wants any more: C-CANCEL, grace, A-ABORT, quarantine."""
        final = False
        title.receiver = None
        try:
            if title.message_id is not None:
                requestor.cancel(STUDY_ROOT_MOVE, title.message_id)
            while not final:
                response = await requestor.response(_CANCEL_GRACE)
                final = response.command.status not in (Status.PENDING, Status.PENDING_WARNING)
        except PacsCommunicationError:
            # Silent or gone: `response` has aborted the association.
            final = False
        finally:
            title.release(final=final)
            await self._links.done(requestor)


def _identifier(study_uid: str, series_uid: str, instance_uid: str | None) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE" if instance_uid else "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    if instance_uid:
        identifier.SOPInstanceUID = instance_uid
    return identifier


class ClassLearner:
    """Learns the SOP class of each instance from C-STORE commands; the data is dropped (decisions.md)."""

    def __init__(self, clock: IReactorTime) -> None:
        self.classes: dict[str, str] = {}
        self.last_activity = 0.0
        self._clock = clock
        self._current: dict[Channel, Command] = {}

    busy = False
    held_back = False

    @property
    def satisfied(self) -> bool:
        """True between two instances: what a late one would teach is asked again when it is missing."""
        return not self._current

    def choose(self, context: ProposedContext) -> str | None:
        """Accept whatever the PACS names first: what it holds needs no conversion."""
        return context.transfer_syntaxes[0] if context.transfer_syntaxes else None

    def opened(self, channel: Channel) -> None:
        """Nothing to do."""

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """Note the class."""
        if command.affected_instance and command.affected_class:
            self.classes[command.affected_instance] = command.affected_class
        self._current[channel] = command

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Drop the data, answer success."""
        self.last_activity = self._clock.seconds()
        if last:
            channel.respond(self._current.pop(channel), Status.SUCCESS)

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget a half-received instance."""
        self._current.pop(channel, None)


class Mover:
    """Starts C-MOVEs (an implementation of `ports.PacsMover`)."""

    def __init__(self, links: Links, pools: Pools, clock: IReactorTime) -> None:
        self._links = links
        self._pools = pools
        self._clock = clock

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver) -> Retrieval:
        """Prepare one C-MOVE from `pacs`; nothing happens before its `run`."""
        return Retrieval(self._links, self._pools, self._clock, pacs, receiver)
