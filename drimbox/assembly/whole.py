"""All working parts, joined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cryptography.x509 import Certificate
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from drimbox.assembly.delivering import WatchFiles, make_deliveries, make_introspector
from drimbox.assembly.feeding import FeedLine
from drimbox.assembly.ground import Defer, Ground
from drimbox.assembly.images import Images
from drimbox.assembly.rounds import Rounds
from drimbox.assembly.telling import make_atna, make_notifier
from drimbox.clock import SystemClock
from drimbox.config import Config
from drimbox.dicom.acceptor import AcceptorFactory
from drimbox.dicom.codecpool import CodecPool
from drimbox.hl7.server import MllpFactory
from drimbox.limits import Why
from drimbox.periodic import Periodic
from drimbox.presence import Presence
from drimbox.source.archiveexport import ArchiveExport
from drimbox.source.archiveimport import ArchiveImport
from drimbox.source.changenotes import ChangeNotes
from drimbox.source.examining import make_examiner
from drimbox.source.homologation import Homologation
from drimbox.source.jobs import Jobs
from drimbox.source.link import Link
from drimbox.source.parking import Parking
from drimbox.source.reception import Reception
from drimbox.source.resync import Resync
from drimbox.source.sharedcache import SharedCache
from drimbox.source.speedtest import Doors as SpeedTestDoors
from drimbox.source.speedtest import SpeedTests
from drimbox.source.storing import Storing
from drimbox.source.unreadable import RefusedReports
from drimbox.source.walking import Doors as WalkDoors
from drimbox.source.watch import Watch
from drimbox.store.cache import Cache
from drimbox.stores import Stores
from drimbox.trust.listener import names_shown
from drimbox.trust.outgoing import Revoked, client_policy
from drimbox.trust.ways import Ways
from drimbox.trust.whitelist import WhitelistHolder
from drimbox.wado.gate import WadoGate
from drimbox.xds.client import DmpClient

_log = Logger()


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
        watch: WatchFiles,
        stands: Callable[[list[Certificate]], Awaitable[None]] | None = None,
        turned_away: Callable[[str, str, Why], None] = lambda door, address, why: None,
        revoked: Revoked = lambda certificate: False,
    ) -> None:
        """`turned_away` is told of connections refused at once: at which door, from which address, why.

        `revoked` says of a certificate whether a revocation list held has it.
        """
        ground = self._ground = Ground(config, reactor, clock, stores, defer)
        ways = Ways(reactor, config.proxy)
        self.images = Images(ground)
        self.codecs = CodecPool(reactor, config.transcoding)
        self.cache = Cache(config.cache, config.drimbox.state_dir / "cache", clock=clock, in_thread=defer)
        #: What the other nodes forget too; None on a store of one's own.
        self._shared_cache = (
            SharedCache(self.cache, stores.forgotten) if stores.database.dialect != "sqlite" else None
        )
        self.presence = Presence(stores.nodes, stores.notices, reactor, lease=config.store.lease)
        parking = self._make_parking()
        self.record = DmpClient(
            config,
            reactor,
            clock=clock,
            tls_policy=partial(client_policy, revoked=revoked),
            run=defer,
            way=partial(ways.to, "dmp"),
        )
        self._link = Link(self.images.archives, stores.walks.controls)
        introspector = make_introspector(ground, ways, watch, revoked)
        self._deliveries = make_deliveries(
            ground, introspector, self.images.archives, self.codecs, self._shared_cache or self.cache
        )
        self.feed = FeedLine(
            ground,
            self.presence,
            self.record,
            self.images.archives,
            self._link,
            forget=self._deliveries.forget,
            removed=self.cache.purge,
        )
        storing = Storing(stores.inbox, stores.notices, clock)
        notes = ChangeNotes(storing, defer, stored=self.feed.reading.wake)
        self.acceptor = AcceptorFactory(
            config.dicom,
            self.images.pools,
            reactor,
            notes=notes.receiver,
            refused=partial(turned_away, "dicom"),
        )
        self.gate = WadoGate(
            config,
            self._deliveries,
            whitelist,
            stores.audit,
            stores.notices,
            self.feed.compare,
            stores.statistics,
            stores.open_records,
            stands,
        )
        self.mllp = self._make_mllp(storing, turned_away)
        self.speed_tests = self._make_speed_tests()
        self.resync = self._make_resync()
        self.watches = {name: self._make_watch(name) for name in self.images.natives}
        self.notifier = make_notifier(ground, ways)
        self.atna = make_atna(ground)
        self.periodics = self._make_periodics(parking)
        self.archive_jobs = Jobs(clock, "l'archive")
        self.export = ArchiveExport(config, stores.listing, defer, stores.waiting)
        reports = config.drimbox.state_dir / "imports"
        self.homologation = Homologation(config.homologation.enabled, stores.loaded, defer)
        self.archive_import = ArchiveImport(config, stores.imports, defer, clock, reports)

    def _make_parking(self) -> Parking:
        """Make what tells of parked rows, at once when a queue parks one."""
        config, stores = self._ground.config, self._ground.stores
        parking = Parking(config, stores.parked, stores.audit, stores.notices)
        tell = self.presence.alone("parked", parking.tell_again)
        for queue in stores.queues.values():
            queue.parked = partial(_aside, tell)
        return parking

    def _make_mllp(self, storing: Storing, turned_away: Callable[[str, str, Why], None]) -> MllpFactory:
        ground = self._ground
        reception = Reception(
            ground.config,
            storing,
            ground.stores.notices,
            ground.clock,
            ground.defer,
            stored=self.feed.reading.wake,
            precedence=self.feed.precedence,
            refused=RefusedReports(ground.config, ground.stores.audit).refused,
        )
        return MllpFactory(
            ground.config.hl7,
            reception,
            ground.reactor,
            ground.clock.now,
            known=reception.register.knows,
            refused=partial(turned_away, "hl7"),
            shown=names_shown,
        )

    def _make_resync(self) -> Resync:
        ground, stores = self._ground, self._ground.stores
        doors = WalkDoors(
            store=stores.walks,
            jobs=stores.jobs,
            link=self._link,
            notices=stores.notices,
            clock=ground.reactor,
            wall=ground.clock,
            busy=self.images.busy,
            wake=self.feed.matching.wake,
        )
        examiner = partial(make_examiner, ground.config, self.feed.doors, stores.jobs, stores.archive)
        return Resync(
            ground.config,
            doors,
            examiner,
            leads=partial(self.presence.leads, "walks"),
            holds=partial(self.presence.holds, "walks"),
        )

    def _make_speed_tests(self) -> SpeedTests:
        ground, images = self._ground, self.images
        return SpeedTests(
            SpeedTestDoors(
                find=images.find,
                mover=images.mover,
                pool=lambda pacs: images.pools.by_pacs[pacs.name],
                measures=ground.stores.measures,
                notices=ground.stores.notices,
                clock=ground.reactor,
                wall=ground.clock,
            )
        )

    def _make_watch(self, site: str) -> Watch:
        return Watch(
            site,
            self.images.natives[site],
            self._ground.stores.natives,
            self._ground.stores.notices,
            compare=self.feed.compare,
            forget=self._deliveries.forget,
        )

    def _make_periodics(self, parking: Parking) -> list[Periodic]:
        rounds = Rounds(self._ground, self.presence)
        rounds.keep(self.resync, parking)
        rounds.tell(self.notifier, self.atna)
        rounds.sweep(self.cache, self._shared_cache)
        rounds.look(self.watches, self.speed_tests)
        return rounds.all


def _aside(work: Callable[[], Awaitable[object]]) -> None:
    """Begin work that nobody waits for."""
    Deferred.fromCoroutine(_done(work)).addErrback(lambda failure: _log.failure("not done", failure))


async def _done(work: Callable[[], Awaitable[object]]) -> None:
    await work()
