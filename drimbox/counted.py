"""Counts what is asked of the PACS and of native archives: questions, C-MOVEs, images (STF12 to STF16).

And notes whether they answered (`reached`).

Each class stands before what it is named after and does the same. What never left us counts nowhere: a
question for which we had no association left, a C-MOVE that found no AE title. A C-MOVE that we stop
because whoever asked is gone was a good one. Counting waits for nobody and fails nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.config import Config, Pacs
from drimbox.dicom.dimse import Command
from drimbox.dicom.moving import Abandoned, Channel, MoveReceiver, MoveResult
from drimbox.dicom.requestor import PacsBusy
from drimbox.errors import PacsCommunicationError, PacsUnavailable, RetrieveTimeout
from drimbox.model import Study
from drimbox.ports import Count, ImageArchive, MoveRun, PacsMover, Statistics
from drimbox.reached import Reached
from drimbox.source.structures import Structures

T = TypeVar("T")


class Counter:
    """Counts for each site, for the one structure that works there; for none where several do."""

    log = Logger()

    def __init__(self, config: Config, statistics: Statistics, reached: Reached) -> None:
        self._statistics = statistics
        #: What the exchanges say of whether an archive answers.
        self.reached = reached
        structures = Structures(config)
        self._structures = {site.name: structures.only_at(site.name) for site in config.sites}
        #: Site of each PACS, by its name.
        self.sites = {site.pacs.name: site.name for site in config.sites if site.pacs is not None}

    def count(self, site: str, **amounts: int) -> None:
        """Count events of a site, by their statistic; whoever calls goes on at once."""
        structure = self._structures[site]
        counts = [Count(stat, structure, site, amount=amount) for stat, amount in amounts.items()]
        Deferred.fromCoroutine(self._statistics.add(counts)).addErrback(
            lambda failure: self.log.warn(
                "{stats} not counted: {why!r}", stats=[*amounts], why=failure.value
            )
        )

    async def question(self, site: str, asking: Awaitable[T]) -> T:
        """Count a question by what becomes of it."""
        try:
            answer = await self.asked(site, asking)
        except PacsBusy:
            raise
        except PacsCommunicationError:
            self.count(site, STF13=1)
            raise
        self.count(site, STF12=1)
        return answer

    async def asked(self, site: str, asking: Awaitable[T]) -> T:
        """Note whether the archive answered what counts nowhere."""
        try:
            answer = await asking
        except PacsBusy:
            raise
        except PacsCommunicationError as error:
            self.reached.failed(site, error.detail or str(error))
            raise
        self.reached.answered(site)
        return answer


class CountedFind:
    """`find_study` of a PACS."""

    def __init__(self, find: Callable[[Pacs, str], Awaitable[Study | None]], counter: Counter) -> None:
        self._find = find
        self._counter = counter

    async def __call__(self, pacs: Pacs, study_uid: str) -> Study | None:
        """List a study's instances. Raises what it stands before does."""
        return await self._counter.question(self._counter.sites[pacs.name], self._find(pacs, study_uid))


class CountedMover:
    """A `ports.PacsMover`."""

    def __init__(self, mover: PacsMover, counter: Counter) -> None:
        self._mover = mover
        self._counter = counter

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver) -> MoveRun:
        """Prepare one C-MOVE."""
        counted = _Received(receiver)
        run = self._mover.retrieval(pacs, cast(MoveReceiver, counted))
        return _CountedRun(run, counted, self._counter, self._counter.sites[pacs.name])


class CountedArchive:
    """A native archive (`ports.ImageArchive`) of one site."""

    def __init__(self, archive: ImageArchive, counter: Counter, site: str) -> None:
        self._archive = archive
        self._counter = counter
        self._site = site

    @property
    def name(self) -> str:
        """Its name for operators."""
        return self._archive.name

    @property
    def patience(self) -> float:
        """Longest pause it bears, in seconds."""
        return self._archive.patience

    async def find_study(self, study_uid: str) -> Study | None:
        """List a study's instances."""
        return await self._counter.question(self._site, self._archive.find_study(study_uid))

    async def verify(self) -> None:
        """Verify that it answers at all."""
        await self._counter.asked(self._site, self._archive.verify())

    async def holds(self, study_uid: str) -> bool:
        """Say whether it lists instances of the study."""
        return await self._counter.question(self._site, self._archive.holds(study_uid))

    def retrieval(self, receiver: MoveReceiver, needed: Collection[str] | None = None) -> MoveRun:
        """Prepare to bring a series to `receiver`."""
        counted = _Received(receiver)
        run = self._archive.retrieval(cast(MoveReceiver, counted), needed)
        return _CountedRun(run, counted, self._counter, self._site)


class _Received:
    """Counts the instances that come to a receiver, and is it in everything else."""

    def __init__(self, receiver: MoveReceiver) -> None:
        self._receiver = receiver
        self.count = 0
        #: The receiver's own: it is called for every piece of every image.
        self.data = receiver.data

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        self.count += 1
        self._receiver.store(channel, command, transfer_syntax)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._receiver, name)


class _CountedRun:
    """A `ports.MoveRun`."""

    def __init__(self, run: MoveRun, received: _Received, counter: Counter, site: str) -> None:
        self._run = run
        self._received = received
        self._counter = counter
        self._site = site

    @property
    def sent_at(self) -> float | None:
        """Reactor time at which the request was sent, None before."""
        return self._run.sent_at

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""
        self._run.abandon()

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Bring the series, and count how it went. Raises what it stands before does."""
        good = False
        try:
            result = await self._run.run(study_uid, series_uid, wait=wait, instance_uid=instance_uid)
            good = result.success
            self._counter.reached.answered(self._site)
            return result
        except Abandoned:
            good = True
            raise
        except (PacsUnavailable, RetrieveTimeout) as error:
            if self._run.sent_at is not None:
                self._counter.reached.failed(self._site, error.detail or str(error))
            raise
        finally:
            if self._run.sent_at is not None:
                end = "STF14" if good else "STF15"
                self._counter.count(self._site, **{end: 1, "STF16": self._received.count})
