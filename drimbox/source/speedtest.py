"""The throughput and latency test of a PACS: a C-MOVE of the reference study, measured (DB.SO.102).

Theory of operation. One run retrieves every series of the configured study, one C-MOVE after the other as
a Consumer's requests would, to a receiver that answers each C-STORE and drops its data: what is measured
is the PACS and the network to it. Two figures come out (requirements.md 3.3): STF21, from the first C-MOVE
request to our confirmation of the first image, and STF20, from there to that of the last image.

Images for people come first. A run begins only while another AE title stays free for them, waits for that
a few seconds at most, and ends at once when somebody has to wait for a title; such a run is noted with
E1003 and measures nothing. A site never has two runs at once.

A run that fails is kept with its E-code and has no figures: half a study would look like a fast PACS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox import metrics
from drimbox.config import Pacs, Site
from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.moving import Abandoned, Channel
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.pdu import Buffer
from drimbox.errors import (
    DrimboxError,
    ImageError,
    KosDepublished,
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
    ServiceDisabled,
    TooManyRequests,
)
from drimbox.model import Series, Study
from drimbox.ports import Clock, MoveRun, PacsMover, SpeedMeasure, SpeedMeasures
from drimbox.source.attempt import Incomplete
from drimbox.source.outage import OutageNotices
from drimbox.source.pauses import after

#: Seconds a run waits until the pool has room for it, and for an association once it has a title.
ROOM_WAIT = 5.0
_ASSOCIATION_WAIT = 1.0
#: Seconds between two looks at the pool: before a series, and during one.
_ROOM_LOOK = 0.05
_MOVE_LOOK = 0.25


class TitlePool(Protocol):
    """How busy the AE titles of a PACS are."""

    @property
    def free(self) -> int:
        """Titles that a move could lease at once."""

    @property
    def waiting(self) -> int:
        """Moves that wait for a title."""


@attrs.frozen
class Doors:
    """What the test needs from outside."""

    #: Lists a study without asking for what C-FIND does not tell: an earlier C-MOVE would warm the PACS.
    find: Callable[[Pacs, str], Awaitable[Study | None]]
    mover: PacsMover
    pool: Callable[[Pacs], TitlePool]
    measures: SpeedMeasures
    notices: OutageNotices
    #: Time in seconds, and the time of day.
    clock: IReactorTime
    wall: Clock


class NoReferenceStudy(Exception):
    """The site has no reference study, or no PACS: there is nothing to retrieve."""


@attrs.define
class Tally:
    """What one run has received so far; reactor times."""

    first: float | None = None
    last: float | None = None
    images: int = 0
    bytes: int = 0


class Counter:
    """Receives one series, counts and drops it (a `MoveReceiver`). `due` are the instances it holds."""

    held_back = False

    def __init__(self, clock: IReactorTime, due: Collection[str], tally: Tally) -> None:
        self.last_activity = 0.0
        self.missing = set(due)
        self._clock = clock
        self._tally = tally
        self._current: dict[Channel, Command] = {}

    @property
    def busy(self) -> bool:
        """True inside an instance."""
        return bool(self._current)

    @property
    def satisfied(self) -> bool:
        """True when the whole series has been confirmed."""
        return not self.missing

    def choose(self, context: ProposedContext) -> str | None:
        """Accept what the PACS names first: what it holds, which it need not convert."""
        return context.transfer_syntaxes[0] if context.transfer_syntaxes else None

    def second_choice(self, context: ProposedContext) -> str | None:
        """Take nothing that was refused once."""
        return None

    def opened(self, channel: Channel) -> None:
        """Nothing to do."""

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        """An instance begins."""
        self.last_activity = self._clock.seconds()
        self._current[channel] = command

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        """Count and drop; with the last piece, confirm and note when."""
        self.last_activity = self._clock.seconds()
        self._tally.bytes += len(piece)
        if not last:
            return
        command = self._current.pop(channel)
        channel.respond(command, Status.SUCCESS)
        instance = command.affected_instance
        # Repeated or foreign instances prove nothing about the study.
        if instance in self.missing:
            self.missing.remove(instance)
            self._tally.images += 1
            self._tally.last = self._clock.seconds()
            if self._tally.first is None:
                self._tally.first = self._tally.last

    def closed(self, channel: Channel, clean: bool) -> None:
        """Forget a half-received instance."""
        self._current.pop(channel, None)


class Run:
    """One test of one site."""

    def __init__(self, doors: Doors, site: Site, pacs: Pacs, study_uid: str) -> None:
        self.tally = Tally()
        #: Reactor time of the first C-MOVE request.
        self.sent: float | None = None
        self._doors = doors
        self._clock = doors.clock
        self._site = site
        self._pacs = pacs
        self._study_uid = study_uid
        self._began = doors.clock.seconds()
        self._move: MoveRun | None = None
        self._looking: IDelayedCall | None = None
        #: Why it must end before its end.
        self._why: DrimboxError | None = None

    async def measure(self) -> tuple[float, float]:
        """Retrieve the study; return latency and duration in seconds. Raises coded errors."""
        for series in await self._series():
            await self._retrieve(series)
        assert self.sent is not None
        assert self.tally.first is not None
        assert self.tally.last is not None
        latency, duration = self.tally.first - self.sent, self.tally.last - self.tally.first
        if latency < 0 or duration < 0:
            raise ImageError("l'horloge de la machine a reculé pendant le test")
        return latency, duration

    def stop(self, why: DrimboxError) -> None:
        """End the run; `measure` raises `why`."""
        self._why = self._why or why
        if self._move is not None:
            self._move.abandon()

    async def _series(self) -> list[Series]:
        try:
            study = await self._doors.find(self._pacs, self._study_uid)
        except PacsCommunicationError as error:
            raise PacsUnavailable(error.detail) from error
        series = [each for each in study.series if each.instances] if study is not None else []
        if not series:
            raise KosDepublished("examen de référence absent du PACS")
        return series

    async def _retrieve(self, series: Series) -> None:
        """Move one series. Only the first needs a spare title: later ones take back their own."""
        await self._room(min(2, len(self._pacs.pool)) if self.sent is None else 1)
        counter = Counter(self._clock, {each.sop_instance_uid for each in series.instances}, self.tally)
        move = self._move = self._doors.mover.retrieval(self._pacs, counter)
        self._looking = self._clock.callLater(_MOVE_LOOK, self._look)
        try:
            result = await move.run(self._study_uid, series.series_uid, wait=_ASSOCIATION_WAIT)
        except Abandoned:
            raise self._why or ServiceDisabled() from None
        finally:
            self._move = None
            if self.sent is None:
                self.sent = move.sent_at
            if self._looking.active():
                self._looking.cancel()
        if counter.missing or not result.success:
            raise Incomplete(f"état 0x{result.status:04X}, {len(counter.missing)} images manquantes")

    async def _room(self, wanted: int) -> None:
        """Wait until `wanted` titles are free and nobody waits for one."""
        deadline = self._clock.seconds() + ROOM_WAIT
        while self._why is None:
            pool = self._doors.pool(self._pacs)
            if pool.free >= wanted and not pool.waiting:
                return
            if self._clock.seconds() >= deadline:
                raise TooManyRequests("test remis : aucun AE title disponible")
            pause: Deferred[None] = Deferred()
            self._clock.callLater(_ROOM_LOOK, pause.callback, None)
            await pause
        raise self._why

    def _look(self) -> None:
        """Give way to whoever waits for a title, and end a run that lasts too long."""
        ceiling = self._pacs.move_ceiling
        if self._doors.pool(self._pacs).waiting:
            self.stop(TooManyRequests("test interrompu : une délivrance attend un AE title"))
        elif self._clock.seconds() - self._began > ceiling:
            self.stop(RetrieveTimeout(f"plus de {ceiling:.0f} s pour l'examen de référence"))
        else:
            self._looking = self._clock.callLater(_MOVE_LOOK, self._look)


@attrs.define
class Progress:
    """The runs of one site in this process."""

    #: Runs begun and ended; one is running while they differ.
    begun: int = 0
    ended: int = 0
    last: SpeedMeasure | None = None

    @property
    def running(self) -> bool:
        """True while a run is on its way."""
        return self.begun > self.ended


class SpeedTests:
    """The tests of all sites."""

    log = Logger()

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._progress: dict[str, Progress] = {}
        self._runs: dict[str, tuple[Run, Deferred[None]]] = {}
        self._stopped = False

    def progress(self, site: Site) -> Progress:
        """Return how far the runs of a site are."""
        return self._progress.setdefault(site.name, Progress())

    def start(self, site: Site) -> int:
        """Begin a run unless one is on its way; return the number it will have ended under (DB.SO.156).

        Raises `NoReferenceStudy`, or `ServiceDisabled` when the gateway stops.
        """
        self._begin(site, scheduled=False)
        return self.progress(site).begun

    async def run_if_due(self, site: Site) -> None:
        """Run the test at its hour (DB.SO.155), unless one was run half a period ago or later.

        So that a process that starts again and again does not test the PACS each time.
        """
        last = await self._doors.measures.last(site.name)
        half = timedelta(seconds=site.speedtest.period / 2)
        if last is not None and timedelta() <= self._doors.wall.now() - last < half:
            return
        ended = self._begin(site, scheduled=True)
        if ended is not None:
            await ended

    async def stop(self) -> None:
        """Begin no more, end what runs without noting it, and wait for it."""
        self._stopped = True
        running = list(self._runs.values())
        for run, _ in running:
            run.stop(ServiceDisabled("arrêt de la passerelle"))
        await gatherResults([after(ended) for _, ended in running])

    # -- own ---------------------------------------------------------------------------------------

    def _begin(self, site: Site, *, scheduled: bool) -> Deferred[None] | None:
        """Begin a run; return what fires when it has ended, None when another is on its way."""
        if self._stopped:
            raise ServiceDisabled("arrêt de la passerelle")
        study, pacs = site.speedtest.study, site.pacs
        if study is None or pacs is None:
            raise NoReferenceStudy(site.name)
        progress = self.progress(site)
        if progress.running:
            return None
        progress.begun += 1
        run = Run(self._doors, site, pacs, study)
        ended: Deferred[None] = Deferred()
        self._runs[site.name] = (run, ended)
        work = Deferred.fromCoroutine(self._see_through(site, run, progress, scheduled=scheduled))
        work.addErrback(self._unexpected)
        work.addCallback(self._ended, site, progress, ended)
        return after(ended)

    def _ended(self, _: object, site: Site, progress: Progress, ended: Deferred[None]) -> None:
        progress.ended = progress.begun
        del self._runs[site.name]
        ended.callback(None)

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure("speed test: result not kept", failure=failure)

    async def _see_through(self, site: Site, run: Run, progress: Progress, *, scheduled: bool) -> None:
        started_at = self._doors.wall.now()
        latency = duration = error = None
        try:
            latency, duration = await run.measure()
        except DrimboxError as reason:
            error = reason
        except Exception:
            self.log.failure("speed test of {site} broke", site=site.name)
            error = ImageError("erreur interne, voir le journal")
        if self._stopped and error is not None:
            return
        measure = progress.last = SpeedMeasure(
            site=site.name,
            started_at=started_at,
            latency=latency,
            duration=duration,
            images=run.tally.images,
            bytes=run.tally.bytes,
            error=str(error) if error is not None else "",
        )
        self._publish(measure, error)
        await self._doors.measures.add(measure)
        key = f"speedtest-{site.name}"
        if error is None:
            await self._doors.notices.resolve(key)
        elif scheduled and not isinstance(error, TooManyRequests):
            text = f"Site {site.name} : test du PACS en échec : {error}"
            await self._doors.notices.post(key=key, code=error.code, text=text)

    def _publish(self, measure: SpeedMeasure, error: DrimboxError | None) -> None:
        site = measure.site
        if measure.latency is None or measure.duration is None:
            skipped = isinstance(error, TooManyRequests)
            metrics.SPEEDTESTS.labels(site, "skipped" if skipped else "failed").inc()
            self.log.warn("speed test of {site}: {error}", site=site, error=measure.error)
            return
        metrics.SPEEDTESTS.labels(site, "done").inc()
        metrics.SPEEDTEST_LATENCY.labels(site).set(measure.latency)
        metrics.SPEEDTEST_DURATION.labels(site).set(measure.duration)
        self.log.info(
            "speed test of {site}: latency {latency:.3f} s, {images} images in {duration:.3f} s",
            site=site,
            latency=measure.latency,
            duration=measure.duration,
            images=measure.images,
        )
