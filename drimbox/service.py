"""The composition root: builds the gateway from a `Config`, starts it and stops it in order.

The only module that knows everybody. Starting: store, trust, DICOM, then the doors to the outside, then
the workers; a failure on the way undoes what was begun and ends the process. Stopping is the same list
backwards: the doors take no more, what runs is drained for `drain_timeout` seconds, then closed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DatabaseError
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from drimbox import __version__
from drimbox.administration import Administration
from drimbox.assembly import Assembly
from drimbox.audit import messages
from drimbox.clock import SystemClock
from drimbox.config import Config
from drimbox.doctor import database, own
from drimbox.doctor.examination import Doors as ExaminationDoors
from drimbox.doctor.examination import Examination
from drimbox.doctor.findings import Finding
from drimbox.doctor.runner import Doctor
from drimbox.errors import DrimboxError
from drimbox.gauges import Gauges
from drimbox.guard import Guard
from drimbox.listening import Listening
from drimbox.ports import OutageNotices
from drimbox.presence import OwnNotices
from drimbox.status import Status
from drimbox.store.errors import StoreError
from drimbox.store.words import database_reason
from drimbox.stores import Stores
from drimbox.systemerrors import system_reason
from drimbox.waiting import at_most, settled
from drimbox.weather import Weather
from drimbox.web.access import ACTS, CALLER

T = TypeVar("T")
#: Threads for CPU work and the spool.
_THREADS = 4


class Gateway(Service):
    """The whole appliance as one service."""

    log = Logger()

    def __init__(self, config: Config, reactor: Any, path: Path | None = None) -> None:
        """`path` is the file that `config` was read from, None when it came from nowhere."""
        self.setName("drimbox")
        self.config = config
        self._path = path
        self._reactor = reactor
        self._clock = SystemClock()
        self._threads = ThreadPool(1, _THREADS, "drimbox")
        self._started: Deferred[None] | None = None
        #: Ends of what was begun, run backwards.
        self._undo: list[Callable[[], Awaitable[object]]] = []
        self._stores = Stores(config, reactor, self._clock)
        self._guard: Guard
        self._assembly: Assembly
        self._listening: Listening
        self._status: Status

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
        await settled(self._started)

    def _not_started(self, failure: Failure) -> None:
        if why := _refusal(failure.value):
            self.log.critical("DRIMbox ne démarre pas : {why}", why=why)
        self.log.failure("the gateway could not start", failure=failure)
        # What fails before its first wait does so before the reactor of twistd runs.
        self._reactor.callWhenRunning(self._end_failed)

    def _end_failed(self) -> None:
        # twistd ends with status 0 whatever happened; the init system must learn that we failed.
        # `stopService` undoes what was begun, then everything else of the shutdown has run.
        self._reactor.addSystemEventTrigger("after", "shutdown", _exit_failed)
        self._reactor.callLater(0, self._reactor.stop)

    async def _start(self) -> None:
        config = self.config
        config.drimbox.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._threads.start()
        self._undo.append(self._stop_threads)
        await self._stores.open()
        self._undo.append(self._stores.close)
        self._guard = Guard(
            config,
            self._reactor,
            self._clock,
            self._own_notices(),
            self._defer,
            self._note,
            self._stores.audit,
        )
        await self._guard.start()
        self._undo.append(self._farewell)
        self._assembly = Assembly(
            config,
            self._reactor,
            self._clock,
            self._stores,
            self._guard.whitelist,
            self._defer,
            self._guard.tls.watch,
            self._guard.stands,
            self._guard.turned_away,
            self._guard.revocation.revokes,
        )
        self._status = Status(config, self._stores, self._assembly, self._guard.whitelist)
        self._gauges = Gauges(
            config, self._reactor, self._clock, self._stores, self._guard.whitelist, self._defer
        )
        self._undo += [
            self._assembly.images.close_natives,
            self._assembly.cache.close,
            self._assembly.codecs.close,
            self._assembly.record.close,
        ]
        self._undo += [self._stop_pools, self._stop_workers]
        self._assembly.periodics += self._guard.periodics()
        await self._open_cache()
        await self._tell_homologation()
        await self._stores.audit.record(messages.application_start(**self._names()))
        # What our predecessor left; other nodes are looked at once our clock is known to be right.
        await self._stores.open_records.tend(others=False)
        # Before any work is taken: a node whose clock is wrong takes none.
        await self._assembly.presence.beat()
        self._listen()
        await self._open_weather()
        for worker in [*self._assembly.feed.workers, *self._assembly.periodics]:
            worker.startService()
        self._gauges.start()
        self._undo.append(self._gauges.stop)
        await self._assembly.resync.look()
        self._status.ready = True
        self.log.info("gateway {version} started", version=__version__)

    async def _stop(self) -> None:
        if self._started is not None:
            await settled(self._started)
        if hasattr(self, "_status"):
            self._status.ready = False
        while self._undo:
            undo = self._undo.pop()
            try:
                await undo()
            except Exception:
                # One end that fails must not keep the others from ending.
                self.log.failure("stop went wrong", failure=Failure())

    async def _note(self, action: str, subject: str, why: str = "") -> None:
        """Note in the audit trail what an administrator asked for, or with `why` that it was not done."""
        names, acts = self._names(), ACTS.get()
        event = messages.administration(
            name=names["name"],
            source_name=names["source_name"],
            user=CALLER.get(),
            action=action,
            subject=subject,
            error=DrimboxError(why) if why else None,
        )
        await self._stores.audit.record(event)
        if acts is not None and not why:
            acts.append((action, subject))

    # -- doors -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._listening = Listening(self.config, self._reactor, self._assembly, self._guard)
        self._doctor = Doctor(self._examination)
        self._administration = Administration(
            self.config,
            self._path,
            self._reactor,
            self._clock,
            stores=self._stores,
            assembly=self._assembly,
            guard=self._guard,
            status=self._status,
            gauges=self._gauges,
            doctor=self._doctor,
            defer=self._defer,
            note=self._note,
            homologation_changed=self._tell_homologation,
        )
        self._undo.append(self._doctor.stop)
        self._listening.open(self._administration.api(), self._administration.access())
        self._undo += [self._listening.close, self._stop_periodics]

    def _examination(self, study: str, send: bool) -> Examination:
        """Prepare an examination of every link (`drimbox doctor`)."""
        config, path, stores = self.config, self._path, self._stores

        async def file() -> list[Finding]:
            return [] if path is None else await self._defer(lambda: own.configuration(path, config))

        async def store() -> list[Finding]:
            return await database.inside(config, stores, self._clock, self._reactor)

        async def doors() -> list[Finding]:
            return own.listening(config, self._listening.connected())

        return Examination(
            ExaminationDoors(
                config,
                self._reactor,
                self._clock,
                self._defer,
                self._guard.whitelist,
                self._assembly.images.doors(),
                own=(("configuration", file), ("store", store), ("listener", doors)),
            ),
            study,
            send=send,
        )

    async def _stop_periodics(self) -> None:
        """Before the doors close: what runs gives its AE titles back to those who still are served."""
        if self._assembly.atna is not None:
            self._assembly.atna.stop()
        stopping = [each.stopService() for each in self._assembly.periodics if each.running]
        for watch in self._assembly.watches.values():
            watch.stop()
        self._assembly.notifier.stop()
        ended = Deferred.fromCoroutine(self._assembly.speed_tests.stop())
        archived = Deferred.fromCoroutine(self._assembly.archive_jobs.stop())
        walked = Deferred.fromCoroutine(self._assembly.resync.close())
        administered = Deferred.fromCoroutine(self._administration.stop())
        running = [each for each in stopping if each is not None]
        waited = gatherResults([ended, archived, walked, administered, *running])
        await at_most(waited, self.config.drimbox.drain_timeout, self._reactor)

    async def _stop_workers(self) -> None:
        stopping = [worker.stopService() for worker in self._assembly.feed.workers if worker.running]
        running = [each for each in stopping if each is not None]
        await at_most(gatherResults(running), self.config.drimbox.drain_timeout, self._reactor)

    async def _stop_pools(self) -> None:
        self._assembly.images.pools.stop()

    async def _farewell(self) -> None:
        self._guard.stop()
        await self._stores.open_records.tend(others=False)
        await self._stores.audit.record(messages.application_stop(**self._names()))

    def _names(self) -> dict[str, str]:
        config = self.config
        return {"name": config.drimbox.name, "source_name": config.sites[0].wado_fqdn}

    async def _stop_threads(self) -> None:
        self._threads.stop()

    async def _open_weather(self) -> None:
        """Answer the weather service (DB.SO.182, DB.SO.183)."""
        assembly = self._assembly
        weather = Weather(
            self.config,
            self._reactor,
            self._clock,
            guard=self._guard,
            gate=assembly.gate,
            doors=self._listening.doors,
            verify=assembly.images.verifications(),
            notices=self._own_notices(),
            defer=self._defer,
        )
        await weather.probes.start()
        assembly.periodics += weather.periodics()

    # -- own ---------------------------------------------------------------------------------------

    def _own_notices(self) -> OutageNotices:
        """Return where to tell of what each node has of its own: of several, the notice says which."""
        notices = self._stores.notices
        if self._stores.database.dialect == "sqlite":
            return notices
        return OwnNotices(notices, self.config.drimbox.node)

    async def _open_cache(self) -> None:
        """Take over the cache of series; what is wrong with it costs no delivery, but is to be known."""
        cache = self._assembly.cache
        await cache.open()
        if cache.problem:
            await self._own_notices().post(key="cache", code="CACHE", text=cache.problem)
        else:
            await self._own_notices().resolve("cache")

    async def _tell_homologation(self) -> None:
        """A test session that goes on, or left something behind, is to be known."""
        loaded = self._assembly.homologation
        warning = loaded.warning(await loaded.count())
        if warning:
            self.log.warn("homologation: {warning}", warning=warning)
            await self._stores.notices.post(key="homologation", code="HOMOLOGATION", text=warning)
        else:
            await self._stores.notices.resolve("homologation")

    def _defer(self, work: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, work)


def _refusal(error: BaseException | None) -> str:
    """Say in French what an operator can mend of what kept us from starting, empty for all else."""
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, DatabaseError):
        return f"base de données : {database_reason(error)}"
    if isinstance(error, CannotListenError):
        reason = error.socketError
        why = system_reason(reason) if isinstance(reason, OSError) else "écoute impossible"
        return f"{error.interface}:{error.port} : {why}"
    if isinstance(error, OSError):
        return f"{error.filename or 'système'} : {system_reason(error)}"
    return ""


def _exit_failed() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def make_service(config: Config, path: Path | None = None) -> Gateway:
    """Build the gateway of a configuration, read from `path`; nothing happens before `startService`."""
    from twisted.internet import reactor

    return Gateway(config, reactor, path)
