"""The metrics that nobody moves when something happens: looked at when somebody scrapes.

A scrape that cannot look, because the store is busy or gone, gets everything else in time, and a count of
such looks: whoever watches must not go blind when something is wrong. The lag of the reactor is measured
all the time, by a timer of its own.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from drimbox import backupfiles, metrics
from drimbox.config import Config
from drimbox.ports import Clock, InThread
from drimbox.stores import Stores
from drimbox.trust.whitelist import WhitelistHolder

#: Seconds a scrape waits for the store, and between two measures of the lag.
_LOOK, _LAG = 5.0, 1.0


class Gauges:
    """Everything of a running gateway that is to be looked at."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: Clock,
        stores: Stores,
        whitelist: WhitelistHolder,
        in_thread: InThread,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self._stores = stores
        self._whitelist = whitelist
        self._in_thread = in_thread
        self._timer: IDelayedCall | None = None
        self._backups = backupfiles.expected_in(config)
        self._listing = False

    def start(self) -> None:
        """Measure the lag of the reactor from now on."""
        _begin(self._config)
        metrics.BACKUP_EXPECTED.set(int(self._backups is not None))
        self._look_for_backups()
        self._wait()

    def _wait(self) -> None:
        self._timer = self._reactor.callLater(_LAG, self._late, self._reactor.seconds() + _LAG)

    async def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _late(self, due: float) -> None:
        metrics.REACTOR_LAG_SECONDS.observe(max(0.0, self._reactor.seconds() - due))
        self._wait()

    async def exposition(self) -> bytes:
        """Return the metrics in the Prometheus text format, as they are now."""
        for site in self._config.sites:
            metrics.WHITELIST_HAS_SITE.labels(site.name).set(int(self._whitelist.serves(site)))
        self._look_for_backups()
        looking = Deferred.fromCoroutine(self._look())
        looking.addTimeout(_LOOK, self._reactor)
        try:
            await looking
        except Exception as error:
            metrics.LOOKS_FAILED.inc()
            self.log.warn("metrics: the store was not looked at: {why!r}", why=error)
        return metrics.exposition()

    def _look_for_backups(self) -> None:
        """Look for the newest backup, without the scrape that asked: what it finds is for the next one.

        The folder may lie on a file server that has stopped answering: that must hold up nothing, and no
        second thread.
        """
        if self._backups is not None and not self._listing:
            self._listing = True
            Deferred.fromCoroutine(self._list_backups(self._backups))

    async def _list_backups(self, folder: Path) -> None:
        system_id, made = self._config.drimbox.system_id, None
        try:
            made = await self._in_thread(lambda: backupfiles.newest(folder, system_id))
        except OSError as error:
            self.log.warn("metrics: the folder of the backups cannot be read: {why!r}", why=error)
        finally:
            self._listing = False
        metrics.BACKUP_MADE_SECONDS.set(made.timestamp() if made is not None else 0.0)

    async def _look(self) -> None:
        folder: Path = self._config.drimbox.state_dir
        metrics.STATE_FREE_BYTES.set(await self._in_thread(lambda: _free(folder)))
        now = self._clock.now()
        for name, queue in self._stores.queues.items():
            backlog = await queue.backlog()
            metrics.QUEUE_DEPTH.labels(name).set(backlog.waiting)
            metrics.QUEUE_PARKED.labels(name).set(backlog.parked)
            metrics.QUEUE_OLDEST_SECONDS.labels(name).set(_age(backlog.oldest, now))
        metrics.NOTICES_OPEN.set(await self._stores.notices.count_open())
        if self._config.audit.atna is not None:
            # Not by whoever sends: another node may do so tomorrow, and this one would show its last word.
            unsent = await self._stores.audit_export.backlog()
            metrics.AUDIT_WAITING.set(unsent.count)
            metrics.AUDIT_WAITING_SECONDS.set(_age(unsent.oldest, now))


def _begin(config: Config) -> None:
    """Let the series that alerts count begin at zero: the first failure of a kind is an increase too."""
    for site in config.sites:
        for code in ("ok", "E1003", "E1004", "E1005", "E1104"):
            metrics.DELIVERIES.labels(site.name, code)
        for result in ("done", "failed"):
            metrics.SPEEDTESTS.labels(site.name, result)
        for result in ("answered", "failed"):
            metrics.ARCHIVE_EXCHANGES.labels(site.name, result)
    for ris in config.ris:
        for ack in ("AA", "AE", "AR"):
            metrics.HL7_MESSAGES.labels(ris.name, ack)
    for result in ("published", "removed", *(f"E00{number}" for number in range(1, 8))):
        metrics.PUBLICATIONS.labels(result)
    for result in ("accepted", "unreachable", "refused"):
        metrics.ASSOCIATIONS.labels("requestor", result)
    for outcome in ("active", "refused", "unavailable", "timeout"):
        metrics.INTROSPECTIONS.labels(outcome)
    for transaction in ("TD0.2", "TD2.1", "TD3.1", "TD3.3c"):
        for result in ("answered", "4xx", "5xx", "unavailable"):
            metrics.DMP_EXCHANGES.labels(transaction, result)


def _age(oldest: datetime | None, now: datetime) -> float:
    """Return the seconds since `oldest`, 0 for none and for what a clock that was set back has dated."""
    return max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
