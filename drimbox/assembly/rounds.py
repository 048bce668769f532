"""What is done again and again: by one node for all, but for what each has of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial

from drimbox.assembly.ground import Ground
from drimbox.periodic import Periodic
from drimbox.presence import Presence
from drimbox.source.atnaexport import AtnaExport
from drimbox.source.notifying import Notifier
from drimbox.source.parking import Parking
from drimbox.source.resync import Resync
from drimbox.source.retention import Retention
from drimbox.source.sharedcache import SharedCache
from drimbox.source.speedtest import SpeedTests
from drimbox.source.watch import Watch
from drimbox.store.cache import Cache

_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
#: Seconds after the start within which periodic work begins.
_SETTLED = 300.0
#: The same for work that takes little at once.
_SOON = 5.0
#: Seconds between two looks for notices to send, at most.
_LOOK = 10.0
#: Seconds between two looks at what other nodes have forgotten.
_OTHERS = 5.0


class Rounds:
    """Collects periodic work in `all`; nothing begins before that is started."""

    def __init__(self, ground: Ground, presence: Presence) -> None:
        self._ground = ground
        self._presence = presence
        self.all: list[Periodic] = [presence.periodic()]

    def _each(
        self, name: str, work: Callable[[], Awaitable[object]], period: float, *, first: float
    ) -> None:
        """Add what every node does."""
        self.all.append(Periodic(name, work, period, self._ground.reactor, first=first))

    def _alone(
        self, name: str, work: Callable[[], Awaitable[object]], period: float, *, first: float
    ) -> None:
        """Add what one node at a time does for all."""
        self._each(name, self._presence.alone(name, work), period, first=first)

    def keep(self, resync: Resync, parking: Parking) -> None:
        """Add the walks, and what keeps the store small and told of."""
        stores, lease = self._ground.stores, self._ground.config.store.lease
        self._each("open-records", self._tend_records, lease / 4, first=lease / 4)
        self._each("walks", resync.look, _LOOK, first=_LOOK)
        self._alone("speedtest-purge", stores.measures.purge, _DAY, first=_SETTLED)
        self._alone("statistics-purge", stores.statistics.purge, _DAY, first=_SETTLED)
        # What could not be told when it happened, in this process or the one before.
        self._alone("parked", parking.tell_again, _MINUTE, first=0.0)
        self._alone("notice-purge", self._purge_notices, _DAY, first=_SETTLED)

    def tell(self, notifier: Notifier, atna: AtnaExport | None) -> None:
        """Add the notices, and the audit trail: sent on, and purged."""
        config, stores = self._ground.config, self._ground.stores
        period = min(_LOOK, config.notifications.interval)
        for channel in notifier.channels:
            look = partial(notifier.look, channel)
            self._alone(f"notices-{channel.name}", look, period, first=period)
        if atna is not None and config.audit.atna is not None:
            period = config.audit.atna.period
            self._alone("audit-export", atna.look, period, first=period)
        if config.audit.keep is not None:
            exported = stores.audit_export.position if atna is not None else None
            retention = Retention(config, stores.audit, self._ground.clock, exported)
            self._alone("audit-purge", retention.apply, _DAY, first=_SOON)

    def sweep(self, cache: Cache, shared: SharedCache | None) -> None:
        """Add what takes old series out of the cache of this node, and what the others have forgotten.

        `shared` is None on a store of one's own.
        """
        enabled = self._ground.config.cache.enabled
        if enabled:
            self._each("cache-sweep", cache.sweep, _HOUR, first=_SETTLED)
        if shared is not None:
            self._alone("cache-forgotten", self._ground.stores.forgotten.purge, _DAY, first=_SETTLED)
        if shared is not None and enabled:
            self._each("cache-others", shared.look, _OTHERS, first=_OTHERS)

    def look(self, watches: Mapping[str, Watch], speed_tests: SpeedTests) -> None:
        """Add what each site asks for: looks for changes, speed tests."""
        for site in self._ground.config.sites:
            if site.native is not None:
                watch, poll = watches[site.name], site.native.poll
                self._alone(f"changes-{site.name}", watch.look, poll, first=poll)
            if site.speedtest.enabled:
                run, test = partial(speed_tests.run_if_due, site), site.speedtest.period
                self._alone(f"speedtest-{site.name}", run, test, first=min(test, _SETTLED))

    async def _tend_records(self) -> None:
        """Record deliveries whose end could not be recorded, and those that dead nodes left."""
        await self._ground.stores.open_records.tend(others=self._presence.sure())

    async def _purge_notices(self) -> int:
        keep = timedelta(seconds=self._ground.config.notifications.keep)
        return await self._ground.stores.notices.purge(keep)
