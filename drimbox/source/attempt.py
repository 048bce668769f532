"""One try to answer one request: from PACS or cache through `transfer` and `outflow` to the client.

Whatever ends it, the associations are told, the memory is given back, and the answer is either complete
or cut. An attempt that sent nothing asks for another one when that was because of the transfer syntaxes
it chose (`AnotherSyntax`) or of what the cache held (`CacheUnusable`); every other failure is a coded
error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox.config import Site, WadoSettings
from drimbox.dicom.dimse import Status
from drimbox.dicom.moving import Abandoned, MoveResult
from drimbox.dicom.syntaxes import offered_text
from drimbox.dicom.transcoding import Transcoder
from drimbox.errors import (
    DrimboxError,
    ImageError,
    KosDepublished,
    NotAcceptable,
    PacsCommunicationError,
    PacsUnavailable,
    RetrieveTimeout,
)
from drimbox.ports import (
    ArchivedKos,
    Archives,
    CacheDamaged,
    CachedSeries,
    Introspection,
    MoveRun,
    SeriesCache,
    SpoolArea,
)
from drimbox.source.budget import Budget
from drimbox.source.cached import PATIENCE, Replay
from drimbox.source.clearance import Clearance
from drimbox.source.conversion import Conversion
from drimbox.source.handling import Handling
from drimbox.source.keeping import Keeping
from drimbox.source.outflow import Outflow, Sink
from drimbox.source.transfer import Transfer
from drimbox.wado.request import ImagesRequest


class Answer(Sink, Protocol):
    """The answer: a sink that also tells when the client's connection pauses, resumes or is gone."""

    def listen(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """Name who is told; at once, when the connection is paused or gone already."""


@attrs.define
class Delivered:
    """What became of one request, for audit, statistics and metrics."""

    study_uid: str
    site: str
    introspection: Introspection | None = None
    #: KOS the request was judged against.
    kos: ArchivedKos | None = None
    #: Instances written whole, and bytes written.
    instances: int = 0
    bytes: int = 0
    #: Seconds from request to first instance written, and to the end.
    first_image: float | None = None
    seconds: float = 0.0
    #: None when the answer was complete.
    error: DrimboxError | None = None
    #: True when the answer had begun before it failed.
    cut: bool = False
    #: Instances by transfer syntax (STF09), and what made them (STF10), empty when the KOS does not say.
    syntaxes: dict[str, int] = attrs.field(factory=dict)
    modality: str = ""
    #: True when KOS and PACS disagree: a comparison is due (DB.SO.190).
    differs: bool = False
    #: True when the images came from the cache (DB.SO.40).
    cached: bool = False
    #: Seconds the request waited for its turn.
    waited: float = 0.0


class ClientGone(ImageError):
    """The client closed its connection before the answer was complete."""

    title = "Connexion fermée par la DRIMbox consommatrice avant la fin"


class Incomplete(ImageError):
    """The PACS did not deliver every instance due; the answer was cut."""

    code = "E1004"
    title = "Livraison incomplète par le PACS source"
    http_status = 502


class AnotherSyntax(Exception):
    """The PACS could send nothing in the syntaxes we chose; it proposed others (decisions.md)."""

    def __init__(self, syntaxes: set[str]) -> None:
        super().__init__()
        self.syntaxes = syntaxes


class CacheUnusable(Exception):
    """What the cache holds of the series cannot be delivered; nothing was sent, the PACS has the images.

    `refused` when its content is to blame: the entry is still there, and is as useless to the next.
    """

    def __init__(self, refused: bool) -> None:
        super().__init__()
        self.refused = refused


@attrs.frozen
class Means:
    """What every attempt of the gateway shares."""

    settings: WadoSettings
    clock: IReactorTime
    archives: Archives
    spool: SpoolArea
    budget: Budget
    #: None leaves out what the client does not take as it is.
    transcoder: Transcoder | None = None
    #: Longest instance transcoded, bytes.
    max_collected: int = 0
    #: None keeps nothing.
    cache: SeriesCache | None = None


class Attempt:
    """One C-MOVE of what was asked for, a series or one instance, or one reading of it from the cache.

    `due` is what the KOS lists of it and may leave, None for the reference study; `handling` is what the
    options of the site do to each instance; `avoid` are transfer syntaxes that failed in an earlier
    attempt; nothing leaves before the `clearance`; `series` is what the cache holds of that series, which
    its owner closes.
    """

    log = Logger()

    def __init__(
        self,
        means: Means,
        site: Site,
        request: ImagesRequest,
        answer: Answer,
        due: frozenset[str] | None,
        handling: Handling,
        avoid: frozenset[str],
        clearance: Clearance,
        series: CachedSeries | None = None,
    ) -> None:
        self._means = means
        self._site = site
        self._archive = means.archives[site.name]
        self._request = request
        self._failure: DrimboxError | None = None
        self._checked = due is not None
        self._outflow = Outflow(
            answer,
            host=site.wado_fqdn,
            clock=means.clock,
            budget=means.budget,
            spool=means.spool,
            window=means.settings.window,
            patience=self._archive.patience if series is None else PATIENCE,
            stall=means.settings.stall_timeout,
            on_fail=self._output_failed,
        )
        conversion = None
        if means.transcoder is not None:
            conversion = Conversion(means.transcoder, request.acceptable, self._outflow, self._refuse)
        self._transfer = Transfer(
            study_uid=request.study_uid,
            series_uid=request.series_uid,
            due=due,
            handling=handling,
            refuse=self._refuse,
            acceptable=request.acceptable,
            outflow=self._outflow,
            clock=means.clock,
            avoid=avoid,
            conversion=conversion,
            max_collected=means.max_collected,
            only=request.instance_uid,
        )
        self._keeping: Keeping | None = None
        self._feeder: Replay | MoveRun
        if series is not None:
            self._feeder = Replay(series, self._transfer, means.clock, request.instance_uid)
        else:
            self._keeping = self._keep(due)
            self._feeder = self._archive.retrieval(self._keeping or self._transfer, due)
        self._gone = False
        #: True while images come: only then is there something to abandon.
        self._moving = False
        answer.listen(pause=self._outflow.pause, resume=self._outflow.resume, lost=self._lost)
        if not clearance.granted:
            # As if the client took nothing yet: the PACS is asked meanwhile.
            self._outflow.pause()
            clearance.listen(self._outflow.resume, self._refuse)

    async def run(self, result: Delivered, start: float) -> None:
        """Have the series sent and end the answer.

        `start` is the reactor time of the request. Raises `AnotherSyntax`, `CacheUnusable`, or the coded
        error that ended the attempt; the answer is cut by then if it had begun.
        """
        whole = False
        settings = self._means.settings
        too_long = RetrieveTimeout(f"plus de {settings.delivery_ceiling:.0f} s pour une réponse")
        ceiling = self._means.clock.callLater(settings.delivery_ceiling, self._refuse, too_long)
        try:
            if self._failure is not None:
                raise self._failure
            if isinstance(self._feeder, Replay):
                result.cached = True
                await self._play(self._feeder)
            else:
                await self._move(self._feeder, result)
            await self._outflow.drain()
            if self._failure is not None:
                raise self._failure
            self._outflow.complete()
            whole = not result.differs
        except DrimboxError as error:
            # The first reason is the true one: what follows from cutting the answer is not.
            failure = self._failure = self._failure or error
            self._outflow.fail(str(failure))
            raise failure from None
        except (AnotherSyntax, CacheUnusable):
            raise
        except BaseException:
            # A bug of ours: what was sent must not look complete.
            self._outflow.fail("interrupted")
            raise
        finally:
            if ceiling.active():
                ceiling.cancel()
            self._transfer.discard()
            self._outflow.close()
            if self._keeping is not None:
                self._keeping.settle(whole)
            self._account(result, start)

    def _keep(self, due: frozenset[str] | None) -> Keeping | None:
        """Begin to keep what comes, if it is worth trying; never the reference study, only whole series."""
        request = self._request
        if self._means.cache is None or due is None or request.instance_uid is not None:
            return None
        writer = self._means.cache.begin(self._site.name, request.study_uid, request.series_uid)
        return Keeping(self._transfer, writer, due) if writer is not None else None

    async def _play(self, replay: Replay) -> None:
        """Take the series from the cache; what cannot be delivered from there is the PACS's to send."""
        damaged = False
        self._moving = True
        try:
            await replay.run()
        except NotAcceptable as error:
            self._failure = error
        except CacheDamaged:
            damaged = True
        except Abandoned:
            pass
        finally:
            self._moving = False
        # What is refused now was not when it came: the KOS, or an option, is another one since.
        useless = damaged or self._transfer.tally.refused or (not self._failure and self._transfer.missing)
        # The PACS may hold or make another form than the one it sent last time.
        unfit = isinstance(self._failure, NotAcceptable)
        if (useless or unfit) and not self._outflow.started and not self._gone:
            raise CacheUnusable(refused=not damaged and not unfit)
        if self._failure is not None:
            raise self._failure
        if useless:
            raise Incomplete("série du cache endommagée" if damaged else "image du cache refusée")

    async def _move(self, retrieval: MoveRun, result: Delivered) -> None:
        request = self._request
        self._moving = True
        try:
            move = await retrieval.run(
                request.study_uid,
                request.series_uid,
                # Never nothing: whoever has waited for its turn shall not lose it for a title.
                wait=max(1.0, self._means.settings.queue_timeout - result.waited),
                instance_uid=request.instance_uid,
            )
        except Abandoned:
            raise self._failure or ClientGone() from None
        finally:
            self._moving = False
        if self._failure is not None:
            raise self._failure
        transfer = self._transfer
        # What did not come in a move that failed says nothing about what the PACS holds.
        result.differs = bool(transfer.unexpected or (transfer.missing and move.success))
        if transfer.received == 0 and not self._outflow.started:
            await self._nothing_came(move, result)
        if not self._complete(move):
            self.log.warn(
                "incomplete move from {pacs}: status 0x{status:04X}, {missing} of the KOS missing",
                pacs=self._archive.name,
                status=move.status,
                missing=len(transfer.missing),
            )
            raise Incomplete(f"état 0x{move.status:04X}, {len(transfer.missing)} instances manquantes")

    def _complete(self, move: MoveResult) -> bool:
        """Say whether everything due was received (retrieval-engine.md, rule 2).

        With a KOS, its list decides; what the UID-root filter or a repetition took away was answered with
        success. Without one (the reference study), the PACS's own counts decide.
        """
        if self._checked:
            return not self._transfer.missing and move.success
        counted = self._transfer.received if move.completed is None else move.completed
        return move.status == Status.SUCCESS and counted == self._transfer.received

    async def _nothing_came(self, move: MoveResult, result: Delivered) -> None:
        """Find the right words for a move that sent nothing."""
        transfer = self._transfer
        tally = transfer.tally
        result.differs = False
        if tally.chosen_among:
            raise AnotherSyntax(tally.chosen_among)
        if tally.unacceptable:
            raise NotAcceptable(offered_text(tally.unacceptable))
        if move.success and not tally.refused:
            try:
                study = await self._archive.find_study(self._request.study_uid)
            except PacsCommunicationError as error:
                # A code of the feed (E003) is none of an image request.
                raise PacsUnavailable(error.detail) from error
            if study is None:
                result.differs = True
                raise KosDepublished("examen absent du PACS")
            gone = transfer.missing - study.instance_uids
            result.differs = bool(gone)
            if gone and gone == transfer.missing:
                raise KosDepublished("images absentes du PACS")
        raise PacsUnavailable("le PACS n'a envoyé aucune image")

    def _refuse(self, error: ImageError) -> None:
        """An instance cannot be had as the client wants it: no answer without it is whole."""
        if self._failure is None:
            self._failure = error
        self._outflow.fail(str(error))

    def _lost(self) -> None:
        self._gone = True
        self._outflow.fail("client gone")

    def _output_failed(self, problem: str) -> None:
        """The answer is cut: stop the PACS, or the reading, as well."""
        if self._failure is None:
            self._failure = ClientGone() if self._gone else ImageError(problem)
        self.log.info("delivery ends early: {problem}", problem=problem)
        self._transfer.discard()
        if self._moving:
            self._feeder.abandon()

    def _account(self, result: Delivered, start: float) -> None:
        outflow, tally = self._outflow, self._transfer.tally
        result.cut = outflow.started and outflow.failed
        result.instances += len(tally.delivered)
        result.bytes += outflow.bytes_sent
        result.syntaxes = tally.syntaxes
        if outflow.first_part_at:
            result.first_image = outflow.first_part_at - start
