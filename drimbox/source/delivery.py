"""Answering a Consumer's WADO-RS request (DB.SO.32, DB.SO.195, requirements.md 4.1 steps 9 to 11).

The chain of checks, in the order of interfaces.md 6.4: access token, KOS identifier, state of the
archive. Then the images: from the cache when it holds exactly what the KOS lists (DB.SO.40), else from
the PACS. What fails before the first byte is a coded error for the caller to turn into a status; what
fails after it cuts the connection without the closing boundary, so that no truncated answer ever looks
complete. The answer ends in order only when the final C-MOVE response has come, its associations are
drained, and every instance the KOS lists has been written whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox.config import Config, Site
from drimbox.dicom.transcoding import Transcoder
from drimbox.errors import DrimboxError, KosDepublished, KosMismatch, KosUnknown
from drimbox.model import Identifier, KosState
from drimbox.ports import ArchivedKos, Archives, Introspector, SeriesCache, SpoolArea
from drimbox.source.attempt import (
    AnotherSyntax,
    Answer,
    Attempt,
    CacheUnusable,
    ClientGone,
    Delivered,
    Means,
)
from drimbox.source.budget import Budget
from drimbox.source.clearance import Clearance
from drimbox.source.dues import Dues, Promise
from drimbox.source.filters import UidRootFilter
from drimbox.source.handling import Handling
from drimbox.source.identity import check_identity
from drimbox.source.places import Places
from drimbox.wado.request import ImagesRequest


async def _at_once(work: Callable[[], Promise]) -> Promise:
    return work()


def _nothing() -> None:
    """Nothing has been written: there is nothing to pause."""


def _asked(series: frozenset[str], request: ImagesRequest) -> frozenset[str]:
    """Return what is asked for of what may leave. Raises `KosUnknown` for an instance not listed."""
    if request.instance_uid is None:
        return series
    if request.instance_uid not in series:
        raise KosUnknown("instance absente du KOS")
    return frozenset({request.instance_uid})


class KosArchive(Protocol):
    """The archive as a delivery reads it."""

    async def candidates(self, site: str, study_uid: str, *, with_data: bool = False) -> list[ArchivedKos]:
        """Return every KOS a Consumer may know for this site and study, newest first."""

    async def get(self, kos_id: int) -> ArchivedKos:
        """Return one KOS with its bytes."""


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
        archives: Archives,
        spool: SpoolArea,
        in_thread: Callable[[Callable[[], Promise]], Awaitable[Promise]] = _at_once,
        transcoder: Transcoder | None = None,
        cache: SeriesCache | None = None,
    ) -> None:
        """`in_thread` runs what would hold the reactor up (reading a manifest) elsewhere."""
        self._config = config
        self._clock = clock
        self._introspector = introspector
        self._archive = archive
        self._dues = Dues(archive.get, in_thread)
        self._means = Means(
            settings=config.wado,
            clock=clock,
            archives=archives,
            spool=spool,
            budget=Budget(config.wado.total_window),
            transcoder=transcoder,
            max_collected=config.transcoding.max_instance_bytes,
            cache=cache,
        )
        self._places = Places(
            total=config.wado.max_deliveries,
            each=config.wado.max_per_consumer,
            line=config.wado.max_waiting,
            clock=clock,
        )

    async def deliver(
        self,
        site: Site,
        request: ImagesRequest,
        answer: Answer,
        consumer: str = "",
        begin: Callable[[Delivered], Clearance] = lambda result: Clearance(),
    ) -> Delivered:
        """Answer one request of `consumer`; never raises a coded error, `Delivered.error` holds it.

        `begin` is told once it is known who asks and for which KOS; nothing leaves before its clearance.
        When `error` is set and `cut` is not, nothing has been written: the caller sends the status.
        """
        start = self._clock.seconds()
        result = Delivered(request.study_uid, site.name)
        try:
            try:
                await self._take_place(consumer, answer)
            finally:
                result.waited = self._clock.seconds() - start
            try:
                result.introspection = await self._introspector.introspect(request.token, consumer)
                if request.study_uid != self._config.wado.reference_study:
                    result.kos = await self._kos(site, request)
                await self._answer(site, request, answer, result, start, begin(result))
            finally:
                self._places.leave(consumer)
        except DrimboxError as error:
            result.error = error
        finally:
            if result.differs or isinstance(result.error, KosDepublished):
                self._aside(self.forget(site.name, request.study_uid))
            result.seconds = self._clock.seconds() - start
        return result

    async def _take_place(self, consumer: str, answer: Answer) -> None:
        """Wait for the turn of a request. Raises `TooManyRequests` or `ClientGone`."""

        def leaving(gone: Callable[[], None]) -> None:
            answer.listen(pause=_nothing, resume=_nothing, lost=gone)

        try:
            await self._places.take(consumer, self._config.wado.queue_timeout, leaving)
        except CancelledError:
            raise ClientGone from None

    async def forget(self, site: str, study_uid: str) -> None:
        """Let nothing of a study be delivered from the cache any more: it has left the PACS, or changed.

        Returns when its files are gone (requirements.md 2.7).
        """
        if self._means.cache is not None:
            await self._means.cache.purge(site, study_uid)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Have done what no answer waits for."""
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self.log.failure("cache not cleared", failure=failure)
        )

    # -- checks ------------------------------------------------------------------------------------

    async def _answer(
        self,
        site: Site,
        request: ImagesRequest,
        answer: Answer,
        result: Delivered,
        start: float,
        clearance: Clearance,
    ) -> None:
        due = None
        handling = Handling()
        if result.kos is not None:
            listed = await self._dues.of(result.kos.id, request.series_uid)
            result.modality = await self._dues.modality(result.kos.id, request.series_uid)
            handling = await self._handling(site, result.kos)
            series = handling.roots.kept(listed)
            due = _asked(series, request)
            if await self._from_cache(
                site, request, answer, series, due, handling, result, start, clearance
            ):
                return
        avoid: frozenset[str] = frozenset()
        while True:
            try:
                attempt = Attempt(self._means, site, request, answer, due, handling, avoid, clearance)
                await attempt.run(result, start)
            except AnotherSyntax as again:
                # Ends: what was chosen is never proposed to `choose` again.
                avoid |= again.syntaxes
            else:
                return

    async def _from_cache(
        self,
        site: Site,
        request: ImagesRequest,
        answer: Answer,
        whole: frozenset[str],
        due: frozenset[str],
        handling: Handling,
        result: Delivered,
        start: float,
        clearance: Clearance,
    ) -> bool:
        """Answer from the cache when it holds the series exactly; every check has been made by now.

        `whole` is what may leave of the series, `due` what was asked for of it.
        """
        cache = self._means.cache
        if cache is None:
            return False
        series = await cache.find(site.name, request.study_uid, request.series_uid, whole)
        if series is None:
            return False
        try:
            none: frozenset[str] = frozenset()
            attempt = Attempt(self._means, site, request, answer, due, handling, none, clearance, series)
            await attempt.run(result, start)
        except CacheUnusable as unusable:
            result.cached = False
            if unusable.refused:
                # Before the PACS is asked, so that what it sends may be kept instead.
                self._aside(self.forget(site.name, request.study_uid))
            return False
        finally:
            self._aside(series.close())
        return True

    async def _handling(self, site: Site, kos: ArchivedKos) -> Handling:
        """Say what the options of the site do to each instance of this KOS."""
        if not (site.check_identity or site.insert_traits or site.excluded_uid_roots):
            return Handling()
        patient = await self._dues.patient(kos.id)
        ipp = Identifier(kos.patient_id, "") if kos.patient_id else None
        return Handling(
            examine=(lambda header: check_identity(header, patient, ipp)) if site.check_identity else None,
            traits_of=patient if site.insert_traits else None,
            roots=UidRootFilter(site.excluded_uid_roots),
        )

    async def _kos(self, site: Site, request: ImagesRequest) -> ArchivedKos:
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
        return named
