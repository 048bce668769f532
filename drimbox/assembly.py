"""Builds the working parts of the gateway: use-cases on their adapters, and the workers that run them.

Nothing is opened, listened to or started here; `service` does that, in its order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cryptography.x509 import Certificate
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.audit.link import AtnaLink
from drimbox.clock import SystemClock
from drimbox.config import Config, Site
from drimbox.counted import CountedArchive, CountedFind, CountedMover, Counter
from drimbox.dicom.acceptor import AcceptorFactory
from drimbox.dicom.aetitles import Pool, Pools
from drimbox.dicom.archive import PacsArchive
from drimbox.dicom.codecpool import CodecPool
from drimbox.dicom.directory import find_study
from drimbox.dicom.gateway import PacsGateway
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover
from drimbox.doctor.pacs import PacsDoors
from drimbox.errors import PacsCommunicationError
from drimbox.hl7.server import MllpFactory
from drimbox.limits import Why
from drimbox.native.archive import NativeArchive
from drimbox.native.loading import open_archive
from drimbox.native.places import Places
from drimbox.notify.mail import MailChannel
from drimbox.notify.webhook import WebhookChannel
from drimbox.periodic import Periodic
from drimbox.ports import Archives, FeedJob, ImageArchive, InboxMessage, Introspector
from drimbox.presence import Presence
from drimbox.psc.introspection import TokenIntrospector
from drimbox.psc.remembered import RememberingIntrospector
from drimbox.source.archiveexport import ArchiveExport
from drimbox.source.archiveimport import ArchiveImport
from drimbox.source.archivejobs import ArchiveJobs
from drimbox.source.atnaexport import AtnaExport
from drimbox.source.changenotes import ChangeNotes
from drimbox.source.delivery import Deliveries
from drimbox.source.examining import make_examiner
from drimbox.source.feed import Doors as FeedDoors
from drimbox.source.feed import Feed
from drimbox.source.homologation import Homologation
from drimbox.source.keynotes import KeyNotes
from drimbox.source.link import Link
from drimbox.source.notifying import Channel, Notifier
from drimbox.source.parking import Parking
from drimbox.source.precedence import Precedence
from drimbox.source.publication import Doors as PublicationDoors
from drimbox.source.publication import Publication
from drimbox.source.reception import Reception
from drimbox.source.rejections import RejectionNotes
from drimbox.source.resync import Resync
from drimbox.source.retention import Retention
from drimbox.source.speedtest import Doors as SpeedTestDoors
from drimbox.source.speedtest import SpeedTests
from drimbox.source.storing import Storing
from drimbox.source.walking import Doors as WalkDoors
from drimbox.source.watch import Watch
from drimbox.store.archive import Archive
from drimbox.store.cache import Cache
from drimbox.store.failures import blames_row, describe
from drimbox.store.homologation import ArchiveWithLoaded
from drimbox.store.outbox import OutboxItem
from drimbox.store.queue import Queue
from drimbox.store.spool import Spool
from drimbox.stores import Stores
from drimbox.trust.outgoing import client_policy
from drimbox.trust.ways import Ways
from drimbox.trust.whitelist import WhitelistHolder
from drimbox.wado.gate import WadoGate
from drimbox.worker import Worker
from drimbox.xds.client import DmpClient

T = TypeVar("T")
_log = Logger()
_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
#: Seconds after the start within which periodic work begins.
_SETTLED = 300.0
#: The same for work that takes little at once.
_SOON = 5.0
#: Seconds between two looks for notices to send, at most.
_LOOK = 10.0


class Defer(Protocol):
    """Runs work off the reactor thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Return what fires with the result."""


class Assembly:
    """The use-cases, joined to their adapters.

    `defer` runs work off the reactor thread; `watch` has a function called when one of some files changes;
    `stands` is that of `WadoGate`.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: SystemClock,
        stores: Stores,
        whitelist: WhitelistHolder,
        defer: Defer,
        watch: Callable[[Iterable[Path], Callable[[], None]], None],
        stands: Callable[[list[Certificate]], Awaitable[None]] | None = None,
        turned_away: Callable[[str, str, Why], None] = lambda door, address, why: None,
    ) -> None:
        """`turned_away` is told of connections refused at once: at which door, from which address, why."""
        self._config = config
        self._watch = watch
        self._reactor = reactor
        self._clock = clock
        self._stores = stores
        self._defer = defer
        self._ways = Ways(reactor, config.proxy)
        self.pools = Pools([site.pacs for site in config.sites if site.pacs is not None], reactor)
        self._links = Links(config.dicom, reactor)
        self._counter = Counter(config, stores.statistics)
        #: What `drimbox doctor` moves is no activity of the site's.
        self._plain_mover = Mover(self._links, self.pools, reactor)
        self._mover = CountedMover(self._plain_mover, self._counter)
        self._find = CountedFind(partial(find_study, self._links), self._counter)
        self._pacses = PacsGateway(self._links, self._mover, reactor, find=self._find)
        self.natives = self._make_natives()
        self._archives = self._make_archives()
        self.codecs = CodecPool(reactor, config.transcoding)
        self.cache = Cache(config.cache, config.drimbox.state_dir / "cache", clock=clock, in_thread=defer)
        self.presence = Presence(stores.nodes, stores.notices, reactor, lease=config.store.lease)
        self.parking = Parking(config, stores.parked, stores.audit, stores.notices)
        tell = self.presence.alone("parked", self.parking.tell_again)
        for queue in stores.queues.values():
            queue.parked = partial(_aside, tell)
        self.record = DmpClient(
            config,
            reactor,
            clock=clock,
            tls_policy=client_policy,
            run=defer,
            way=partial(self._ways.to, "dmp"),
        )
        self._link = Link(self._archives, stores.walks.controls)
        self._feed_doors = self._make_feed_doors()
        self._precedence = Precedence(reactor)
        self._reading, self._matching, self._publishing = self._make_workers()
        storing = Storing(stores.inbox, stores.notices, clock)
        notes = ChangeNotes(storing, defer, stored=self._reading.wake)
        self.acceptor = AcceptorFactory(
            config.dicom, self.pools, reactor, notes=notes.receiver, refused=partial(turned_away, "dicom")
        )
        self.workers: list[Worker[Any]] = [self._reading, self._matching, self._publishing]
        self._deliveries = self._make_deliveries()
        self.gate = WadoGate(
            config,
            self._deliveries,
            whitelist,
            stores.audit,
            stores.notices,
            self._compare,
            stores.statistics,
            stands,
        )
        reception = Reception(
            config,
            storing,
            stores.notices,
            clock,
            self._defer,
            stored=self._reading.wake,
            precedence=self._precedence,
        )
        self.mllp = MllpFactory(
            config.hl7,
            reception,
            reactor,
            clock.now,
            known=reception.register.knows,
            refused=partial(turned_away, "hl7"),
        )
        self.speed_tests = self._make_speed_tests()
        self.resync = self._make_resync()
        self.watches = {name: self._make_watch(name) for name in self.natives}
        self.notifier = self._make_notifier()
        self.atna = self._make_atna()
        self.periodics = self._make_periodics()
        self.archive_jobs = ArchiveJobs(clock)
        self.export = ArchiveExport(config, stores.listing, defer, stores.waiting)
        reports = config.drimbox.state_dir / "imports"
        self.homologation = Homologation(config.homologation.enabled, stores.loaded, defer)
        self.archive_import = ArchiveImport(config, stores.imports, defer, clock, reports)

    def wake(self, queue: str) -> None:
        """Somebody put rows of a queue ("inbox", "feed", "outbox") back to work."""
        workers: dict[str, Worker[Any]] = {
            "inbox": self._reading,
            "feed": self._matching,
            "outbox": self._publishing,
        }
        workers[queue].wake()

    async def close_natives(self) -> None:
        """Let go of the native archives."""
        for archive in self.natives.values():
            # One that fails to close keeps no other open.
            with suppress(PacsCommunicationError):
                await archive.close()

    async def _compare(self, study_uid: str) -> bool:
        """KOS and archive differ: make the record match the archive (DB.SO.190, DB.SO.27).

        Returns False when that is on its way already, or the study has no job.
        """
        queued = await self._stores.jobs.again(study_uid)
        if queued:
            self._matching.wake()
        return queued

    def _make_natives(self) -> dict[str, NativeArchive]:
        """Make the native archives, by site. Raises `NativeUnusable`."""
        return {
            site.name: open_archive(
                site.name, site.native, self._reactor, self._defer, client_policy(site.native.roots, None)
            )
            for site in self._config.sites
            if site.native is not None
        }

    def _make_archives(self) -> Archives:
        archives: dict[str, ImageArchive] = {
            name: CountedArchive(archive, self._counter, name) for name, archive in self.natives.items()
        }
        for site in self._config.sites:
            if site.pacs is not None:
                archives[site.name] = PacsArchive(site.pacs, self._pacses, self._mover)
        return archives

    def verifications(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the question that tells whether each PACS, or native archive, is there, by its name."""
        return {
            site.archive: self.natives[site.name].verify
            if site.pacs is None
            else partial(self._pacses.is_there, site.pacs)
            for site in self._config.sites
        }

    def pacs_doors(self) -> PacsDoors:
        """Return what the trial of the PACS needs (`drimbox doctor`)."""
        return PacsDoors(
            archives=lambda site: self._archives[site.name],
            find=partial(find_study, self._links),
            mover=self._plain_mover,
            pools=self.pools,
            controls=self._stores.walks.controls,
            clock=self._reactor,
        )

    def _known(self) -> Archive | ArchiveWithLoaded:
        """Return the KOS that image requests are answered for, those of a test session with them."""
        stores = self._stores
        if self._config.homologation.enabled:
            return ArchiveWithLoaded(stores.archive, stores.loaded)
        return stores.archive

    def _make_deliveries(self) -> Deliveries:
        config, reactor = self._config, self._reactor
        return Deliveries(
            config,
            clock=reactor,
            introspector=self._make_introspector(),
            archive=self._known(),
            archives=self._archives,
            spool=Spool(
                config.drimbox.state_dir / "spool",
                per_file=config.wado.spool,
                total=config.wado.total_spool,
                in_thread=self._defer,
            ),
            in_thread=self._defer,
            transcoder=self.codecs,
            cache=self.cache,
        )

    def _make_introspector(self) -> Introspector:
        psc, reactor, now = self._config.psc, self._reactor, self._clock.now
        policy = client_policy(psc.roots, psc.certificate)
        if psc.certificate is not None:
            self._watch(psc.certificate.files, policy.reload)
        agent = self._ways.agent("psc", policy, psc.timeout)
        asking = TokenIntrospector(psc, agent, reactor, now)
        if not psc.cache_time:
            return asking
        return RememberingIntrospector(asking, reactor, now, seconds=psc.cache_time, most=psc.cache_entries)

    def _make_feed_doors(self) -> FeedDoors:
        stores = self._stores
        key_notes = KeyNotes(self._reactor, self._defer) if self._config.wado.instance_level else None
        return FeedDoors(
            messages=stores.inbox,
            jobs=stores.jobs,
            reports=stores.reports,
            archive=stores.archive,
            archives=self._archives,
            record=self.record,
            audit=stores.audit,
            notices=stores.notices,
            clock=self._clock,
            in_thread=self._defer,
            key_notes=key_notes,
            rejections=RejectionNotes(self._reactor, self._defer, stores.key_titles),
            forget=self._forget_everywhere,
            doubt=self._link.doubt,
        )

    def _make_resync(self) -> Resync:
        stores = self._stores
        doors = WalkDoors(
            store=stores.walks,
            jobs=stores.jobs,
            link=self._link,
            notices=stores.notices,
            clock=self._reactor,
            wall=self._clock,
            busy=self._busy,
            wake=self._matching.wake,
        )
        examiner = partial(make_examiner, self._config, self._feed_doors, stores.jobs, stores.archive)
        return Resync(
            self._config,
            doors,
            examiner,
            leads=partial(self.presence.leads, "walks"),
            holds=partial(self.presence.holds, "walks"),
        )

    def _hold(self) -> float:
        """Return for how many seconds no row is to be taken."""
        return max(self._precedence.wait(), self.presence.hold())

    def _busy(self, site: Site) -> bool:
        """Say whether somebody waits for an image of the site, or would have to."""
        places: Pool | Places = (
            self.natives[site.name].places if site.pacs is None else self.pools.by_pacs[site.pacs.name]
        )
        return bool(places.waiting) or not places.free

    def _publication(self) -> Publication:
        stores = self._stores
        return Publication(
            self._config,
            PublicationDoors(
                outbox=stores.outbox,
                archive=stores.archive,
                record=self.record,
                audit=stores.audit,
                notices=stores.notices,
                clock=self._clock,
            ),
            removed=self._forget,
        )

    async def _forget(self, site: str, study_uid: str) -> None:
        """What was removed from the record leaves the cache too (requirements.md 2.7)."""
        await self._deliveries.forget(site, study_uid)

    async def _forget_everywhere(self, study_uid: str) -> None:
        for site in self._config.sites:
            await self._deliveries.forget(site.name, study_uid)

    def _make_workers(self) -> tuple[Worker[InboxMessage], Worker[FeedJob], Worker[OutboxItem]]:
        """Make one worker a queue; each wakes the next."""
        settings = self._config.feed
        feed, publication = Feed(self._config, self._feed_doors), self._publication()
        publish: Worker[OutboxItem] = Worker(
            "publication",
            take=lambda limit: self._stores.outbox.take(self._clock.now(), limit),
            work=publication.publish,
            broken=partial(_broke, self._stores.outbox),
            renew=partial(self._renew, self._stores.outbox),
            parallel=self._config.dmp.parallel,
            clock=self._reactor,
            hold=self._hold,
            renew_every=self._config.store.lease / 4,
        )

        async def match(job: FeedJob) -> None:
            await feed.match(job)
            publish.wake()

        matching: Worker[FeedJob] = Worker(
            "matching",
            take=lambda limit: self._stores.jobs.take(self._clock.now(), limit),
            work=match,
            broken=partial(_broke, self._stores.jobs),
            renew=partial(self._renew, self._stores.jobs),
            parallel=settings.parallel,
            clock=self._reactor,
            hold=self._hold,
            renew_every=self._config.store.lease / 4,
        )

        async def read(message: InboxMessage) -> None:
            await feed.read(message)
            matching.wake()

        reading: Worker[InboxMessage] = Worker(
            "reading",
            take=lambda limit: self._stores.inbox.take(self._clock.now(), limit),
            work=read,
            broken=partial(_broke, self._stores.inbox),
            renew=partial(self._renew, self._stores.inbox),
            parallel=settings.parallel,
            clock=self._reactor,
            hold=self._hold,
            renew_every=self._config.store.lease / 4,
        )
        return reading, matching, publish

    async def _renew(self, queue: Queue, rows: Sequence[InboxMessage | FeedJob | OutboxItem]) -> None:
        """Keep rows of a queue in our hands while they are worked on."""
        await queue.renew([row.id for row in rows], self._clock.now())

    def _make_speed_tests(self) -> SpeedTests:
        return SpeedTests(
            SpeedTestDoors(
                find=self._find,
                mover=self._mover,
                pool=lambda pacs: self.pools.by_pacs[pacs.name],
                measures=self._stores.measures,
                notices=self._stores.notices,
                clock=self._reactor,
                wall=self._clock,
            )
        )

    def _make_periodics(self) -> list[Periodic]:
        """Make what is done again and again: by one node for all, but for what each has of its own."""
        period = min(_LOOK, self._config.notifications.interval)
        periodics = [
            self.presence.periodic(),
            Periodic("walks", self.resync.look, _LOOK, self._reactor, first=_LOOK),
            self._alone("speedtest-purge", self._stores.measures.purge, _DAY, first=_SETTLED),
            self._alone("statistics-purge", self._stores.statistics.purge, _DAY, first=_SETTLED),
            # What could not be told when it happened, in this process or the one before.
            self._alone("parked", self.parking.tell_again, _MINUTE, first=0.0),
            self._alone("notice-purge", self._purge_notices, _DAY, first=_SETTLED),
        ]
        for channel in self.notifier.channels:
            look = partial(self.notifier.look, channel)
            periodics.append(self._alone(f"notices-{channel.name}", look, period, first=period))
        if self.atna is not None and self._config.audit.atna is not None:
            period = self._config.audit.atna.period
            periodics.append(self._alone("audit-export", self.atna.look, period, first=period))
        if self._config.audit.keep is not None:
            exported = self._stores.audit_export.position if self.atna is not None else None
            retention = Retention(self._config, self._stores.audit, self._clock, exported)
            periodics.append(self._alone("audit-purge", retention.apply, _DAY, first=_SOON))
        if self._config.cache.enabled:
            sweep = self.cache.sweep
            periodics.append(Periodic("cache-sweep", sweep, _HOUR, self._reactor, first=_SETTLED))
        for site in self._config.sites:
            if site.native is not None:
                watch, poll = self.watches[site.name], site.native.poll
                periodics.append(self._alone(f"changes-{site.name}", watch.look, poll, first=poll))
            if site.speedtest.enabled:
                run, test = partial(self.speed_tests.run_if_due, site), site.speedtest.period
                periodics.append(
                    self._alone(f"speedtest-{site.name}", run, test, first=min(test, _SETTLED))
                )
        return periodics

    def _alone(
        self, name: str, work: Callable[[], Awaitable[object]], period: float, *, first: float
    ) -> Periodic:
        """Make what one node at a time does for all."""
        return Periodic(name, self.presence.alone(name, work), period, self._reactor, first=first)

    async def _purge_notices(self) -> int:
        return await self._stores.notices.purge(timedelta(seconds=self._config.notifications.keep))

    def _make_notifier(self) -> Notifier:
        settings, stores = self._config.notifications, self._stores
        channels: list[Channel] = []
        if settings.mail is not None:
            channels.append(MailChannel(settings.mail, self._reactor, self._defer))
        if settings.webhook is not None:
            channels.append(WebhookChannel(settings.webhook, self._ways, self._defer))
        return Notifier(
            self._config.drimbox, settings, channels, stores.notice_deliveries, stores.notices, self._clock
        )

    def _make_atna(self) -> AtnaExport | None:
        settings, stores = self._config.audit.atna, self._stores
        if settings is None:
            return None
        link = AtnaLink(settings, self._reactor, self._defer)
        return AtnaExport(
            self._config, settings, stores.audit_export, link, stores.notices, self._clock, self._defer
        )

    def _make_watch(self, site: str) -> Watch:
        return Watch(
            site,
            self.natives[site],
            self._stores.natives,
            self._stores.notices,
            compare=self._compare,
            forget=self._deliveries.forget,
        )


def _aside(work: Callable[[], Awaitable[object]]) -> None:
    """Begin work that nobody waits for."""
    Deferred.fromCoroutine(_done(work)).addErrback(lambda failure: _log.failure("not done", failure))


async def _done(work: Callable[[], Awaitable[object]]) -> None:
    await work()


async def _broke(queue: Queue, row: InboxMessage | FeedJob | OutboxItem, error: Exception) -> bool:
    return await queue.broke(row.id, describe(error), blame=blames_row(error))
