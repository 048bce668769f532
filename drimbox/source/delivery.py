"""Answering a Consumer's WADO-RS request for one series (DB.SO.32, requirements.md 4.1 steps 9 to 11).

The chain of checks, in the order of interfaces.md 6.4: access token, KOS identifier, state of the
archive, then the PACS. What fails before the first byte is a coded error for the caller to turn into a
status; what fails after it cuts the connection without the closing boundary, so that no truncated answer
ever looks complete. The answer ends in order only when the final C-MOVE response has come, its
associations are drained, and every instance the KOS lists has been written whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import Config, Site
from drimbox.dicom.dimse import Status
from drimbox.dicom.moving import Abandoned, MoveResult
from drimbox.dicom.syntaxes import offered_text
from drimbox.errors import (
    DrimboxError,
    ImageError,
    KosDepublished,
    KosMismatch,
    KosUnknown,
    NotAcceptable,
    PacsUnavailable,
    TooManyRequests,
)
from drimbox.kos.reading import Manifest, ManifestRefused, read_manifest
from drimbox.model import KosState
from drimbox.ports import ArchivedKos, Introspection, Introspector, Pacses, PacsMover, SpoolArea
from drimbox.source.outflow import Budget, Outflow, Sink
from drimbox.source.transfer import Transfer
from drimbox.wado.request import SeriesRequest


class KosArchive(Protocol):
    """The archive as a delivery reads it."""

    async def candidates(self, site: str, study_uid: str, *, with_data: bool = False) -> list[ArchivedKos]:
        """Return every KOS a Consumer may know for this site and study, newest first."""

    async def get(self, kos_id: int) -> ArchivedKos:
        """Return one KOS with its bytes."""


class Answer(Sink, Protocol):
    """The answer: a sink that also tells when the client's connection pauses, resumes or is gone."""

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """Name who is told."""


@attrs.define
class Delivered:
    """What became of one request, for audit, statistics and metrics."""

    study_uid: str
    site: str
    introspection: Introspection | None = None
    #: KOS the request was judged against.
    kos: ArchivedKos | None = None
    instances: int = 0
    bytes: int = 0
    #: Seconds from request to first instance written, and to the end.
    first_image: float | None = None
    seconds: float = 0.0
    #: None when the answer was complete.
    error: DrimboxError | None = None
    #: True when the answer had begun before it failed.
    cut: bool = False
    syntaxes: dict[str, int] = attrs.field(factory=dict)
    #: True when KOS and PACS disagree: a comparison is due (DB.SO.190).
    differs: bool = False


class ClientGone(ImageError):
    """The client closed its connection before the answer was complete."""

    title = "Connexion fermée par la DRIMbox consommatrice avant la fin"


class Incomplete(ImageError):
    """The PACS did not deliver every instance due; the answer was cut."""

    code = "E1004"
    title = "Livraison incomplète par le PACS source"


class Deliveries:
    """All deliveries of the gateway: their limits and what they share."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        *,
        clock: IReactorTime,
        introspector: Introspector,
        archive: KosArchive,
        pacses: Pacses,
        mover: PacsMover,
        spool: SpoolArea,
    ) -> None:
        self._config = config
        self._clock = clock
        self._introspector = introspector
        self._archive = archive
        self._pacses = pacses
        self._mover = mover
        self._spool = spool
        self._budget = Budget(config.wado.total_window)
        self._running = 0
        self._idle: list[Deferred[None]] = []

    async def deliver(self, site: Site, request: SeriesRequest, answer: Answer) -> Delivered:
        """Answer one request; never raises a coded error, `Delivered.error` holds it.

        When `error` is set and `cut` is not, nothing has been written: the caller sends the status.
        """
        start = self._clock.seconds()
        result = Delivered(request.study_uid, site.name)
        if self._running >= self._config.wado.max_deliveries:
            result.error = TooManyRequests("limite de requêtes simultanées atteinte", retry_after=5)
            return result
        self._running += 1
        metrics.DELIVERIES_RUNNING.set(self._running)
        try:
            await self._answer(site, request, answer, result, start)
        except DrimboxError as error:
            result.error = error
        finally:
            self._running -= 1
            metrics.DELIVERIES_RUNNING.set(self._running)
            result.seconds = self._clock.seconds() - start
            if not self._running:
                idle, self._idle = self._idle, []
                for waiting in idle:
                    waiting.callback(None)
        return result

    async def drained(self) -> None:
        """Wait until no delivery runs."""
        if self._running:
            waiting: Deferred[None] = Deferred()
            self._idle.append(waiting)
            await waiting

    # -- checks ------------------------------------------------------------------------------------

    async def _answer(
        self, site: Site, request: SeriesRequest, answer: Answer, result: Delivered, start: float
    ) -> None:
        result.introspection = await self._introspector.introspect(request.token)
        due = None
        if request.study_uid != self._config.wado.reference_study:
            result.kos = await self._kos(site, request)
            due = self._due(result.kos, request)
        avoid: set[str] = set()
        while True:
            attempt = _Attempt(self, site, request, answer, due, frozenset(avoid))
            try:
                await attempt.run(result, start)
            except _AnotherSyntax as again:
                avoid |= again.syntaxes
                continue
            return

    async def _kos(self, site: Site, request: SeriesRequest) -> ArchivedKos:
        """Find the KOS this request may be answered for (DB.SO.38)."""
        candidates = await self._archive.candidates(site.name, request.study_uid)
        if not candidates:
            raise KosUnknown
        named = next((kos for kos in candidates if kos.sop_instance_uid == request.kos_uid), None)
        current = candidates[0]
        if current.state is KosState.DEPUBLISHED:
            raise KosDepublished
        if named is None or named.state not in (KosState.PENDING, KosState.PUBLISHED):
            raise KosMismatch
        return await self._archive.get(named.id)

    def _due(self, kos: ArchivedKos, request: SeriesRequest) -> frozenset[str]:
        """List what the KOS promises of the series; a series it does not list is not served."""
        try:
            manifest: Manifest = read_manifest(kos.data)
        except ManifestRefused as error:
            raise ImageError("KOS archivé illisible") from error
        for series in manifest.series:
            if series.series_uid == request.series_uid:
                return frozenset(instance.sop_instance_uid for instance in series.instances)
        raise KosUnknown("série absente du KOS")


class _AnotherSyntax(Exception):
    """The PACS could send nothing in the syntaxes we chose; it proposed others (decisions.md)."""

    def __init__(self, syntaxes: set[str]) -> None:
        super().__init__()
        self.syntaxes = syntaxes


class _Attempt:
    """One C-MOVE for one request."""

    log = Logger()

    def __init__(
        self,
        deliveries: Deliveries,
        site: Site,
        request: SeriesRequest,
        answer: Answer,
        due: frozenset[str] | None,
        avoid: frozenset[str],
    ) -> None:
        settings = deliveries._config.wado
        clock = deliveries._clock
        self._pacses = deliveries._pacses
        self._site = site
        self._request = request
        self._answer = answer
        self._wait = settings.queue_timeout
        self._failure: DrimboxError | None = None
        self._outflow = Outflow(
            answer,
            host=site.wado_fqdn,
            clock=clock,
            budget=deliveries._budget,
            spool=deliveries._spool,
            window=settings.window,
            patience=site.pacs.patience,
            stall=settings.stall_timeout,
            on_fail=self._output_failed,
        )
        self._transfer = Transfer(
            study_uid=request.study_uid,
            series_uid=request.series_uid,
            due=due,
            acceptable=request.acceptable,
            outflow=self._outflow,
            clock=clock,
            avoid=avoid,
        )
        self._retrieval = deliveries._mover.retrieval(site.pacs, self._transfer)
        self._gone = False
        answer.listen(pause=self._outflow.pause, resume=self._outflow.resume, lost=self._lost)

    async def run(self, result: Delivered, start: float) -> None:
        """Move the series and end the answer; raises the coded error that ended it otherwise."""
        try:
            await self._move(result)
            await self._outflow.drain()
            if self._failure is not None:
                raise self._failure
            self._outflow.complete()
        except DrimboxError as error:
            self._fail(error)
            raise self._failure or error from None
        finally:
            self._transfer.discard()
            self._outflow.close()
            self._account(result, start)

    async def _move(self, result: Delivered) -> None:
        request = self._request
        try:
            move = await self._retrieval.run(request.study_uid, request.series_uid, wait=self._wait)
        except Abandoned:
            raise self._failure or ClientGone() from None
        if self._failure is not None:
            raise self._failure
        transfer = self._transfer
        result.differs = bool(transfer.missing or transfer.unexpected)
        if transfer.received == 0:
            await self._nothing_came(move.success, result)
        if not self._complete(move, checked=result.kos is not None):
            self.log.warn(
                "incomplete move from {pacs}: status 0x{status:04X}, {missing} of the KOS missing",
                pacs=self._site.pacs.name,
                status=move.status,
                missing=len(transfer.missing),
            )
            raise Incomplete(f"état 0x{move.status:04X}, {len(transfer.missing)} instances manquantes")

    def _complete(self, move: MoveResult, *, checked: bool) -> bool:
        """Say whether everything due was received (retrieval-engine.md, rule 2).

        With a KOS, its list decides; what the UID-root filter or a repetition took away was answered with
        success. Without one (the reference study), the PACS's own counts decide.
        """
        if checked:
            return not self._transfer.missing and move.success
        counted = self._transfer.received if move.completed is None else move.completed
        return move.status == Status.SUCCESS and counted == self._transfer.received

    async def _nothing_came(self, success: bool, result: Delivered) -> None:
        """Find the right words for a move that sent nothing."""
        transfer = self._transfer
        if transfer.tally.chosen_among:
            raise _AnotherSyntax(transfer.tally.chosen_among)
        if transfer.tally.unacceptable:
            raise NotAcceptable(offered_text(transfer.tally.unacceptable))
        if success and not transfer.tally.refused:
            study = await self._pacses.find_study(self._site.pacs, self._request.study_uid)
            if study is None:
                result.differs = True
                raise KosDepublished("examen absent du PACS")
        raise PacsUnavailable("le PACS n'a envoyé aucune image")

    def _lost(self) -> None:
        self._gone = True
        self._outflow.fail("client gone")

    def _output_failed(self, problem: str) -> None:
        """The answer is cut: stop the PACS as well."""
        self.log.info("delivery cut: {problem}", problem=problem)
        if self._failure is None:
            self._failure = ClientGone() if self._gone else ImageError(problem)
        self._transfer.discard()
        self._retrieval.abandon()

    def _fail(self, error: DrimboxError) -> None:
        if self._failure is None:
            self._failure = error
        if self._outflow.started:
            self._outflow.fail(str(error))

    def _account(self, result: Delivered, start: float) -> None:
        outflow = self._outflow
        result.cut = outflow.started and outflow.failed
        result.instances += len(self._transfer.tally.delivered)
        result.bytes += outflow.bytes_sent
        result.syntaxes = self._transfer.tally.syntaxes
        if outflow.first_part_at:
            result.first_image = outflow.first_part_at - start
