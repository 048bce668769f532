"""What the admin listener of a running gateway answers: every route joined to what does the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from drimbox.assembly import Assembly
from drimbox.assembly.ground import Defer
from drimbox.backup.running import BackupRuns
from drimbox.clock import SystemClock
from drimbox.config import Config
from drimbox.doctor.runner import Doctor
from drimbox.gauges import Gauges
from drimbox.guard import Guard
from drimbox.source.jobs import Jobs
from drimbox.status import Status
from drimbox.stores import Stores
from drimbox.web import (
    archive,
    audit,
    backup,
    doctor,
    homologation,
    notices,
    queues,
    sites,
    speedtest,
    statistics,
    trust,
    walks,
)
from drimbox.web.access import Access, Note
from drimbox.web.admin import AdminApi, core_api


class Administration:
    """Answers administrators. `note` writes an act of theirs in the audit trail."""

    def __init__(
        self,
        config: Config,
        path: Path | None,
        reactor: Any,
        clock: SystemClock,
        *,
        stores: Stores,
        assembly: Assembly,
        guard: Guard,
        status: Status,
        gauges: Gauges,
        doctor: Doctor,
        defer: Defer,
        note: Note,
        homologation_changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`path` is the file of the configuration, None when it came from nowhere."""
        self._config = config
        self._reactor = reactor
        self._stores = stores
        self._assembly = assembly
        self._guard = guard
        self._status = status
        self._gauges = gauges
        self._doctor = doctor
        self._defer = defer
        self._note = note
        self._homologation_changed = homologation_changed
        self._backups = BackupRuns(config, path, reactor, clock, defer)
        self._verifications = Jobs(clock, "le journal d'audit")

    def access(self) -> Access:
        """Return who may call."""
        settings = self._config.admin
        return Access(settings.accounts, self._reactor, self._defer, self._note, settings.clients)

    async def stop(self) -> None:
        """End the long works that were begun here."""
        ending = (self._backups.stop(), self._verifications.stop())
        await gatherResults([Deferred.fromCoroutine(each) for each in ending])

    def api(self) -> AdminApi:
        """Return what is answered."""
        config, stores, assembly, note = self._config, self._stores, self._assembly, self._note
        api = core_api(
            status=self._status.status, ready=self._status.readiness, exposition=self._gauges.exposition
        )
        trust.register(api, self._guard, note)
        speedtest.register(api, config.sites, assembly.speed_tests, stores.measures, note)
        audit.register(api, stores.audit, config.drimbox.system_id, self._verifications, note)
        statistics.register(api, stores.statistics, stores.measures, note)
        jobs = assembly.archive_jobs
        archive.register(api, config.sites, jobs, assembly.export, assembly.archive_import, note)
        homologation.register(
            api, config.sites, jobs, assembly.homologation, note, self._homologation_changed
        )
        notices.register(api, stores.notices, assembly.notifier, note)
        queues.register(api, stores.rows, stores.mending, note, assembly.feed.wake)
        walks.register(api, config, assembly.resync, stores.walks, note)
        sites.register(
            api,
            config,
            pools=assembly.images.pools.by_pacs,
            places={name: native.places for name, native in assembly.images.natives.items()},
            reached=assembly.images.reached,
            served=self._guard.whitelist.serves,
        )
        doctor.register(api, self._doctor, note)
        backup.register(api, self._backups, note)
        return api
