"""The composition root: builds the gateway from a `Config`, starts it and stops it in order.

The only module that knows everybody. Starting: store, trust, DICOM, then the doors to the outside, then
the workers; a failure on the way undoes what was begun and ends the process. Stopping is the same list
backwards: the doors take no more, what runs is drained for `drain_timeout` seconds, then closed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.client import Agent

from drimbox import __version__, metrics
from drimbox.audit import messages
from drimbox.config import Config, Site
from drimbox.dicom.acceptor import AcceptorFactory
from drimbox.dicom.aetitles import Pools
from drimbox.dicom.directory import find_study
from drimbox.dicom.gateway import PacsGateway
from drimbox.dicom.requestor import Links
from drimbox.dicom.retrieval import Mover
from drimbox.hl7.server import MllpFactory
from drimbox.periodic import Periodic
from drimbox.ports import FeedJob, InboxMessage
from drimbox.psc.introspection import TokenIntrospector
from drimbox.source.delivery import Deliveries
from drimbox.source.feed import Doors as FeedDoors
from drimbox.source.feed import Feed
from drimbox.source.publication import Doors as PublicationDoors
from drimbox.source.publication import Publication
from drimbox.source.reception import Reception
from drimbox.source.speedtest import Doors as SpeedTestDoors
from drimbox.source.speedtest import SpeedTests
from drimbox.store.archive import Archive
from drimbox.store.audit import AuditStore
from drimbox.store.database import Database
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.inbox import Inbox
from drimbox.store.notices import NoticeStore
from drimbox.store.outbox import Outbox, OutboxItem
from drimbox.store.speedtests import SpeedTestStore
from drimbox.store.spool import Spool
from drimbox.trust.contexts import client_policy, server_context_factory
from drimbox.trust.transport import BulkTLSFactory
from drimbox.trust.whitelist import WhitelistHolder
from drimbox.wado.channel import WadoFactory
from drimbox.wado.gate import WadoGate
from drimbox.wado.server import WadoResource
from drimbox.web import speedtest
from drimbox.web.admin import admin_factory, core_api
from drimbox.worker import Worker

T = TypeVar("T")
#: Seconds after which a row whose work broke in an unforeseen way is tried again.
_BROKEN_DELAY = timedelta(seconds=60)
_DAY = 86400.0
#: Seconds after the start within which periodic work begins.
_SETTLED = 300.0
#: Threads for CPU work and the spool.
_THREADS = 4


class SystemClock:
    """The wall clock (a `ports.Clock`)."""

    def now(self) -> datetime:
        """Return the present instant."""
        return datetime.now(UTC).astimezone()


class Gateway(Service):
    """The whole appliance as one service."""

    log = Logger()

    def __init__(self, config: Config, reactor: Any) -> None:
        self.setName("drimbox")
        self.config = config
        self._reactor = reactor
        self._clock = SystemClock()
        self._threads = ThreadPool(1, _THREADS, "drimbox")
        self._ports: list[IListeningPort] = []
        self._workers: list[Worker[Any]] = []
        self._periodics: list[Periodic] = []
        self._started: Deferred[None] | None = None
        #: Ends of what was begun, run backwards.
        self._undo: list[Callable[[], Awaitable[object]]] = []
        self._ready = False
        url = config.store.url or f"sqlite:///{config.drimbox.state_dir / 'drimbox.db'}"
        self._database = Database(url, reactor=reactor, threads=config.store.threads, exclusive=True)
        self.archive = Archive(self._database, clock=self._clock)
        self.audit = AuditStore(self._database, clock=self._clock)
        self.notices = NoticeStore(self._database, clock=self._clock)
        self._inbox = Inbox(self._database, clock=self._clock)
        self._jobs = FeedJobs(self._database, clock=self._clock)
        self._outbox = Outbox(self._database, clock=self._clock)
        self._measures = SpeedTestStore(self._database, clock=self._clock)
        self.whitelist = WhitelistHolder(config.trust, config.sites, self._clock.now)

    # -- Service -----------------------------------------------------------------------------------

    def startService(self) -> None:
        """Start; what fails on the way ends the process with its reason in the log."""
        super().startService()
        self._started = Deferred.fromCoroutine(self._start())
        self._started.addErrback(self._not_started)

    def stopService(self) -> Deferred[None]:
        """Stop in order: refuse, drain, close."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def started(self) -> None:
        """Wait until the doors are open (tests and the demonstration do)."""
        assert self._started is not None
        await _settled(self._started)

    def _not_started(self, failure: Failure) -> None:
        self.log.failure("the gateway could not start", failure=failure)
        if self._reactor.running:
            # twistd ends with status 0 whatever happened; the init system must learn that we failed.
            # `stopService` undoes what was begun, then everything else of the shutdown has run.
            self._reactor.addSystemEventTrigger("after", "shutdown", _exit_failed)
            self._reactor.callLater(0, self._reactor.stop)

    async def _start(self) -> None:
        config = self.config
        config.drimbox.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._threads.start()
        self._undo.append(self._stop_threads)
        await self._database.open()
        self._undo.append(self._database.close)
        for queue in (self._inbox, self._jobs, self._outbox):
            await queue.release_all()
        await self._load_whitelist()
        self._undo.append(self._farewell)
        self._build()
        name = config.sites[0].wado_fqdn
        await self.audit.record(messages.application_start(name=config.drimbox.name, source_name=name))
        self._listen()
        for worker in [*self._workers, *self._periodics]:
            worker.startService()
        self._ready = True
        self.log.info("gateway {version} started", version=__version__)

    async def _stop(self) -> None:
        self._ready = False
        if self._started is not None:
            await _settled(self._started)
        while self._undo:
            undo = self._undo.pop()
            try:
                await undo()
            except Exception:
                # One end that fails must not keep the others from ending.
                self.log.failure("stop went wrong", failure=Failure())

    # -- building ----------------------------------------------------------------------------------

    def _build(self) -> None:
        config, reactor = self.config, self._reactor
        pools = Pools([site.pacs for site in config.sites], reactor)
        links = Links(config.dicom, reactor)
        mover = Mover(links, pools, reactor)
        pacses = PacsGateway(links, mover, reactor)
        spool = Spool(
            config.drimbox.state_dir / "spool",
            per_file=config.wado.spool,
            total=config.wado.total_spool,
            in_thread=self._defer,
        )
        record = self._record()
        feed = Feed(
            config,
            FeedDoors(
                messages=self._inbox,
                jobs=self._jobs,
                archive=self.archive,
                pacses=pacses,
                record=record,
                audit=self.audit,
                notices=self.notices,
                clock=self._clock,
                in_thread=self._defer,
            ),
        )
        publication = Publication(
            config,
            PublicationDoors(
                outbox=self._outbox,
                archive=self.archive,
                record=record,
                audit=self.audit,
                notices=self.notices,
                clock=self._clock,
            ),
        )
        self.deliveries = Deliveries(
            config,
            clock=reactor,
            introspector=TokenIntrospector(
                config.psc,
                Agent(reactor, client_policy(config.psc.roots, None), connectTimeout=config.psc.timeout),
                reactor,
                self._clock.now,
            ),
            archive=self.archive,
            pacses=pacses,
            mover=mover,
            spool=spool,
            in_thread=self._defer,
        )
        self._pools = pools
        self._acceptor = AcceptorFactory(config.dicom, pools, reactor)
        self._gate = WadoGate(config, self.deliveries, self.whitelist, self.audit, self.notices)
        self._make_workers(feed, publication)
        self._make_speed_tests(links, mover, pools)
        reception = Reception(
            config, self._inbox, self.notices, self._clock, self._defer, stored=self._workers[0].wake
        )
        self._mllp = MllpFactory(config.hl7, reception, reactor)
        self._undo += [self._stop_pools, self._stop_workers]

    def _record(self) -> Any:
        # Imported here: the DMP client pulls xmlsec in, which tools that only read the archive do without.
        from drimbox.xds.client import DmpClient

        return DmpClient(
            self.config, self._reactor, clock=self._clock, tls_policy=client_policy, run=self._defer
        )

    def _make_workers(self, feed: Feed, publication: Publication) -> None:
        settings = self.config.feed
        publish: Worker[OutboxItem] = Worker(
            "publication",
            take=lambda limit: self._outbox.take(self._clock.now(), limit),
            work=publication.publish,
            broken=lambda item: self._outbox.retry(item.id, self._later(), "erreur interne", True),
            parallel=self.config.dmp.parallel,
            clock=self._reactor,
        )

        async def match(job: FeedJob) -> None:
            await feed.match(job)
            publish.wake()

        matching: Worker[FeedJob] = Worker(
            "matching",
            take=lambda limit: self._jobs.take(self._clock.now(), limit),
            work=match,
            broken=lambda job: self._jobs.retry(job.id, self._later(), "erreur interne"),
            parallel=settings.parallel,
            clock=self._reactor,
        )

        async def read(message: InboxMessage) -> None:
            await feed.read(message)
            matching.wake()

        reading: Worker[InboxMessage] = Worker(
            "reading",
            take=lambda limit: self._inbox.take(self._clock.now(), limit),
            work=read,
            broken=lambda message: self._inbox.retry_later(message.id, self._later(), "erreur interne"),
            parallel=settings.parallel,
            clock=self._reactor,
        )
        self._workers = [reading, matching, publish]

    def _make_speed_tests(self, links: Links, mover: Mover, pools: Pools) -> None:
        self._speed_tests = SpeedTests(
            SpeedTestDoors(
                find=partial(find_study, links),
                mover=mover,
                pool=lambda pacs: pools.by_pacs[pacs.name],
                measures=self._measures,
                notices=self.notices,
                clock=self._reactor,
                wall=self._clock,
            )
        )
        self._periodics.append(
            Periodic("speedtest-purge", self._measures.purge, _DAY, self._reactor, first=_SETTLED)
        )
        for site in self.config.sites:
            if site.speedtest.enabled:
                run = partial(self._speed_tests.run_if_due, site)
                period = site.speedtest.period
                self._periodics.append(
                    Periodic(
                        f"speedtest-{site.name}",
                        run,
                        period,
                        self._reactor,
                        first=min(period, _SETTLED),
                    )
                )

    async def _note_speed_test(self, site: str) -> None:
        event = messages.administration(
            name=self.config.drimbox.name,
            source_name=self.config.sites[0].wado_fqdn,
            user="admin",
            action="Test de débit du PACS à la demande",
            subject=site,
        )
        await self.audit.record(event)

    def _later(self) -> datetime:
        return self._clock.now() + _BROKEN_DELAY

    # -- doors -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        config, reactor = self.config, self._reactor
        names = [name for site in config.sites for name in (site.wado_fqdn, site.viewer_fqdn)]
        self._images = WadoResource(self._gate, config.wado, names)
        self._wado = WadoFactory(self._images, config.wado, reactor)
        tls = BulkTLSFactory(server_context_factory(config), False, self._wado)
        api = core_api(
            status=self.status,
            ready=self._readiness,
            notices=self._notice_list,
            acknowledge=lambda number: self.notices.acknowledge(number, "admin"),
        )
        speedtest.register(api, config.sites, self._speed_tests, self._measures, self._note_speed_test)
        for settings, factory in (
            (config.admin, admin_factory(api, config.admin, reactor)),
            (config.dicom, self._acceptor),
            (config.wado, tls),
            (config.hl7, self._mllp),
        ):
            self._ports.append(reactor.listenTCP(settings.port, factory, interface=settings.host))
        self._undo += [self._close_doors, self._stop_periodics]

    async def _close_doors(self) -> None:
        """Refuse, drain, close."""
        timeout = self.config.drimbox.drain_timeout
        self._gate.open = False
        admin, dicom, wado, hl7 = self._ports
        # The DICOM door stays open until the deliveries are drained: their images come through it.
        await gatherResults([_stop(port) for port in (wado, hl7)])
        closed = Deferred.fromCoroutine(self._wado.closed())
        await self._mllp.drain(timeout)
        # Not when the last byte was written, but when the client has it.
        await self._at_most(closed, timeout)
        self._wado.abort_all()
        # Every answer is noted in the audit trail, those just cut too.
        await self._at_most(Deferred.fromCoroutine(self._images.drained()), timeout)
        await gatherResults([_stop(port) for port in (dicom, admin)])
        self._acceptor.abort_all()

    async def _stop_periodics(self) -> None:
        """Before the doors close: what runs gives its AE titles back to those who still are served."""
        stopping = [each.stopService() for each in self._periodics if each.running]
        ended = Deferred.fromCoroutine(self._speed_tests.stop())
        waited = gatherResults([ended, *(each for each in stopping if each is not None)])
        await self._at_most(waited, self.config.drimbox.drain_timeout)

    async def _stop_workers(self) -> None:
        stopping = [worker.stopService() for worker in self._workers if worker.running]
        running = [each for each in stopping if each is not None]
        await self._at_most(gatherResults(running), self.config.drimbox.drain_timeout)

    async def _stop_pools(self) -> None:
        self._pools.stop()

    async def _farewell(self) -> None:
        name = self.config.sites[0].wado_fqdn
        await self.audit.record(messages.application_stop(name=self.config.drimbox.name, source_name=name))

    async def _stop_threads(self) -> None:
        self._threads.stop()

    async def _at_most(self, work: Deferred[Any], seconds: float) -> None:
        """Wait for `work`, no longer than `seconds`; it is not cancelled."""
        waiting = _settled(work)
        timer = self._reactor.callLater(seconds, waiting.callback, None)
        await waiting
        if timer.active():
            timer.cancel()

    # -- status ------------------------------------------------------------------------------------

    async def status(self) -> Mapping[str, Any]:
        """Return what `drimbox status` shows."""
        queues = {}
        for name, queue in (("inbox", self._inbox), ("feed", self._jobs), ("outbox", self._outbox)):
            count = await queue.counts()
            metrics.QUEUE_DEPTH.labels(name).set(count.waiting + count.in_hand)
            queues[name] = {
                "waiting": count.waiting,
                "in_hand": count.in_hand,
                "done": count.done,
                "failed": count.failed,
                "oldest": count.oldest.isoformat() if count.oldest is not None else None,
            }
        open_notices = await self.notices.count_open()
        metrics.NOTICES_OPEN.set(open_notices)
        kos = await self.archive.counts()
        return {
            "version": __version__,
            "ready": self._ready,
            "queues": queues,
            "kos": {state.value: count for state, count in kos.items()},
            "notices": open_notices,
            "sites": [self._site(site) for site in self.config.sites],
        }

    def _site(self, site: Site) -> dict[str, Any]:
        pool = self._pools.by_pacs[site.pacs.name]
        return {
            "name": site.name,
            "wado": site.wado_fqdn,
            "pacs": site.pacs.name,
            "image_access": self.whitelist.serves(site),
            "ae_titles": {title.ae_title: title.state.value for title in pool.titles.values()},
        }

    async def _readiness(self) -> Mapping[str, bool]:
        return {"started": self._ready, "whitelist": self.whitelist.current is not None}

    async def _notice_list(self) -> list[Mapping[str, Any]]:
        return [
            {
                "id": notice.id,
                "code": notice.code,
                "text": notice.text,
                "count": notice.count,
                "first": notice.first_at.isoformat(),
                "last": notice.last_at.isoformat(),
            }
            for notice in await self.notices.open()
        ]

    # -- own ---------------------------------------------------------------------------------------

    async def _load_whitelist(self) -> None:
        """Read the whitelist; without a good one the gateway does not start, unless told so."""
        try:
            self.whitelist.start()
        finally:
            for reason in self.whitelist.reasons:
                text = f"Liste blanche inutilisable : {reason}"
                await self.notices.post(key="whitelist", code="LISTEBLANCHE", text=text)
        for site in self.whitelist.unlisted:
            text = f"Site {site.name} : certificat absent de la liste blanche, accès aux images désactivé"
            await self.notices.post(key=f"unlisted-{site.name}", code="LISTEBLANCHE", text=text)

    def _defer(self, work: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, work)


def _exit_failed() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _settled(work: Deferred[Any]) -> Deferred[None]:
    """Return what fires when `work` is over, leaving its result to whoever else waits for it."""
    waiting: Deferred[None] = Deferred()

    def over(result: Any) -> Any:
        if not waiting.called:
            waiting.callback(None)
        return result

    work.addBoth(over)
    return waiting


def _stop(port: IListeningPort) -> Deferred[Any]:
    stopped = port.stopListening()
    return stopped if isinstance(stopped, Deferred) else _now()


def _now() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done


def make_service(config: Config) -> Gateway:
    """Build the gateway of a configuration; nothing happens before `startService`."""
    from twisted.internet import reactor

    return Gateway(config, reactor)
