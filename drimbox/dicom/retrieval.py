"""One C-MOVE from lease to release: sends it, watches over it, and never leaves its title in doubt.

The control association carries the request and its responses; the images come over associations that the
PACS opens to the leased AE title and go to the receiver. A retrieval ends in one of three ways: the final
response came and the store associations are drained; something failed or took too long; or whoever asked
is gone. In the last two, C-CANCEL, a grace, then A-ABORT, and the title goes into quarantine
(retrieval-engine.md, rule 5).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.config import Pacs
from drimbox.dicom.aetitles import Pools, Title
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.moving import Abandoned, Channel, MoveReceiver, MoveResult
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.requestor import STUDY_ROOT_MOVE, Links, PacsBusy, Requestor
from drimbox.errors import (
    ImageError,
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
    TooManyRequests,
)

T = TypeVar("T")

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
        self,
        links: Links,
        pools: Pools,
        clock: IReactorTime,
        pacs: Pacs,
        receiver: MoveReceiver,
        title: str = "",
    ) -> None:
        self._links = links
        self._title = title
        self._pool = pools.by_pacs[pacs.name]
        self._clock = clock
        self._pacs = pacs
        self._receiver = receiver
        #: What `run` waits for before the request is sent, then what it waits for after.
        self._starting: Deferred[Any] | None = None
        self._outcome: Deferred[MoveResult] = Deferred()
        self._looking: IDelayedCall | None = None
        self._started = 0.0
        #: True once the request is sent.
        self._running = False
        self._abandoned = False
        self._final = False

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Move the series to ourselves; return once everything that can arrive has arrived.

        `wait` is the time to wait for an AE title and for an association, in seconds. Raises
        `TooManyRequests`, `PacsUnavailable`, `RetrieveTimeout` or `Abandoned`.
        """
        deadline = self._clock.seconds() + wait
        title = await self._unless_abandoned(self._pool.lease(self._receiver, wait, self._title))
        requestor = None
        try:
            left = max(0.0, deadline - self._clock.seconds())
            requestor = await self._unless_abandoned(
                self._links.open(self._pacs, [STUDY_ROOT_MOVE], wait=left)
            )
            title.message_id = requestor.begin(
                STUDY_ROOT_MOVE,
                Command(CommandField.C_MOVE_RQ, priority=0, move_destination=title.ae_title),
                _identifier(study_uid, series_uid, instance_uid),
            )
        except BaseException as error:
            # Nothing was asked of the PACS: nothing can arrive.
            title.release(final=True)
            if requestor is not None:
                self._apart(self._links.done(requestor))
            if isinstance(error, PacsBusy):
                raise TooManyRequests(error.detail, retry_after=max(1, math.ceil(wait))) from error
            if isinstance(error, PacsCommunicationError):
                raise PacsUnavailable(error.detail) from error
            raise
        return await self._see_through(requestor, title)

    @property
    def sent_at(self) -> float | None:
        """Reactor time at which the C-MOVE request was sent, None before."""
        return self._started if self._running else None

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""
        self._abandoned = True
        if self._starting is not None:
            self._starting.cancel()
        elif self._running:
            self._end(Failure(Abandoned()))

    # -- own ---------------------------------------------------------------------------------------

    async def _unless_abandoned(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what comes before the request; `abandon` cuts it short."""
        if self._abandoned:
            work.close()
            raise Abandoned
        self._starting = Deferred.fromCoroutine(work)
        try:
            result: T = await self._starting
        except (ImageError, PacsCommunicationError, CancelledError):
            if self._abandoned:
                raise Abandoned from None
            raise
        finally:
            self._starting = None
        return result

    async def _see_through(self, requestor: Requestor, title: Title) -> MoveResult:
        """Watch over the move until it has ended one way or the other."""
        self._running = True
        self._started = self._clock.seconds()
        followed = Deferred.fromCoroutine(self._follow(requestor))
        self._watch()
        try:
            result = await self._outcome
            await self._drain(title)
            return result
        except PacsCommunicationError as error:
            raise PacsUnavailable(error.detail) from error
        finally:
            if self._looking is not None and self._looking.active():
                self._looking.cancel()
            if self._final:
                title.release(final=True)
                self._apart(self._links.done(requestor))
            else:
                self._apart(self._wind_down(requestor, title, followed))

    async def _follow(self, requestor: Requestor) -> None:
        """Take the responses, this one place alone, to the last; never raises."""
        try:
            response = await requestor.final(self._pacs.move_ceiling + _CANCEL_GRACE)
        except PacsCommunicationError:
            self._end(Failure())
            return
        except Exception:
            self.log.failure("C-MOVE responses not understood")
            self._end(Failure())
            requestor.abort()
            return
        command = response.command
        self._final = True
        self._end(
            MoveResult(
                command.status if command.status is not None else Status.CANNOT_UNDERSTAND,
                command.completed,
                command.failed,
                command.warning,
                command.error_comment or "",
            )
        )

    def _end(self, outcome: MoveResult | Failure) -> None:
        """Say how it ended; what comes after that changes nothing."""
        if self._outcome.called:
            return
        if isinstance(outcome, Failure):
            self._outcome.errback(outcome)
        else:
            self._outcome.callback(outcome)

    def _apart(self, work: Coroutine[Any, Any, None]) -> None:
        """Let the end of a move go on by itself: whoever asked need not wait for it."""
        Deferred.fromCoroutine(work).addErrback(self._unexpected)

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure("C-MOVE not wound down in order", failure=failure)

    def _watch(self) -> None:
        """Look at the clocks, again and again until the move has ended."""
        if self._outcome.called:
            return
        problem = self._overdue()
        if problem:
            self._end(Failure(RetrieveTimeout(problem)))
            return
        self._looking = self._clock.callLater(_TICK, self._watch)

    def _overdue(self) -> str:
        now = self._clock.seconds()
        last = self._receiver.last_activity
        pacs = self._pacs
        if now - self._started > pacs.move_ceiling:
            return f"plus de {pacs.move_ceiling:.0f} s pour une série"
        if self._receiver.held_back:
            return ""
        if last < self._started:
            if now - self._started > pacs.first_image_timeout:
                return f"aucune image du PACS après {pacs.first_image_timeout:.0f} s"
        elif now - last > pacs.gap_timeout:
            return f"plus d'image du PACS depuis {pacs.gap_timeout:.0f} s"
        return ""

    async def _drain(self, title: Title) -> None:
        """Wait for what the PACS may still be sending after its final response."""
        since = self._clock.seconds()
        while not self._receiver.satisfied and title.channels:
            now = self._clock.seconds()
            # As before the final response: as long as something comes, however slowly, it is waited for.
            quiet = now - max(self._receiver.last_activity, since)
            patience = self._pacs.gap_timeout if self._receiver.busy else _SETTLE
            if quiet > patience and not self._receiver.held_back:
                return
            if now - self._started > self._pacs.move_ceiling:
                return
            pause: Deferred[None] = Deferred()
            self._clock.callLater(0.05, pause.callback, None)
            await pause
            if self._abandoned:
                raise Abandoned

    async def _wind_down(self, requestor: Requestor, title: Title, followed: Deferred[None]) -> None:
        """End a move nobody wants any more: C-CANCEL, grace, A-ABORT, quarantine."""
        title.receiver = None
        # One grace for all: a PACS that ignores the C-CANCEL goes on answering "pending".
        grace = self._clock.callLater(_CANCEL_GRACE, requestor.abort)
        try:
            if title.message_id is not None:
                requestor.cancel(STUDY_ROOT_MOVE, title.message_id)
            await followed
        finally:
            if grace.active():
                grace.cancel()
            title.release(final=self._final)
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
    """Learns the SOP class of each instance from C-STORE commands; the data is dropped (decisions.md).

    `due` are the instances whose class is wanted: nothing else is noted. `avoid` are transfer syntaxes in
    which an earlier try of the same move brought nothing.
    """

    def __init__(self, clock: IReactorTime, due: Collection[str], avoid: Collection[str] = ()) -> None:
        self.classes: dict[str, str] = {}
        #: Transfer syntaxes chosen although the PACS proposed others that are not avoided.
        self.chosen_among: set[str] = set()
        self.last_activity = 0.0
        self._clock = clock
        self._due = frozenset(due)
        self._avoid = frozenset(avoid)
        self._current: dict[Channel, Command] = {}

    held_back = False

    @property
    def busy(self) -> bool:
        """True inside an instance."""
        return bool(self._current)

    @property
    def satisfied(self) -> bool:
        """True when every class wanted is known: some PACS answer before the last instance is sent."""
        return not self._current and len(self.classes) == len(self._due)

    def choose(self, context: ProposedContext) -> str | None:
        """Accept what the PACS names first of what has not failed yet."""
        proposed = [each for each in context.transfer_syntaxes if each not in self._avoid]
        if len(proposed) > 1:
            self.chosen_among.add(proposed[0])
        return proposed[0] if proposed else None

    def second_choice(self, context: ProposedContext) -> str | None:
        """Take nothing that was refused once."""
        return None

    def opened(self, channel: Channel) -> None:
        """Nothing to do."""

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """Note the class."""
        self.last_activity = self._clock.seconds()
        instance, sop_class = command.affected_instance, command.affected_class
        if instance in self._due and sop_class:
            self.classes[instance] = sop_class
        self._current[channel] = command

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Drop the data, answer success."""
        self.last_activity = self._clock.seconds()
        if last:
            channel.respond(self._current.pop(channel), Status.SUCCESS)

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget a half-received instance: its class is known all the same."""
        self._current.pop(channel, None)


class Mover:
    """Starts C-MOVEs (an implementation of `ports.PacsMover`)."""

    def __init__(self, links: Links, pools: Pools, clock: IReactorTime) -> None:
        self._links = links
        self._pools = pools
        self._clock = clock

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver, title: str = "") -> Retrieval:
        """Prepare one C-MOVE from `pacs`, to any title of ours or to `title`.

        Nothing happens before its `run`.
        """
        return Retrieval(self._links, self._pools, self._clock, pacs, receiver, title)
