"""The audit trail keeps its events as long as configured, and says in itself what it lets go (DB.CS.06).

Nobody removes an event: age does, from the old end alone (requirements.md 2.16, note of DB.CS.96).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from twisted.logger import Logger

from drimbox.audit.ontrail import trail_purged
from drimbox.config import Config
from drimbox.ports import AgeingTrail, Clock


class Retention:
    """Applies `[audit] keep`."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        trail: AgeingTrail,
        clock: Clock,
        exported: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """`exported` gives the number of the last event that the audit repository has, if there is one."""
        self._keep = config.audit.keep
        self._announce = partial(
            trail_purged, name=config.drimbox.name, source_name=config.sites[0].wado_fqdn
        )
        self._trail = trail
        self._clock = clock
        self._exported = exported

    async def apply(self) -> int:
        """Remove what is older than configured; return how many events."""
        if self._keep is None:
            return 0
        limit = self._clock.now() - timedelta(seconds=self._keep)
        removed = await self._trail.purge(
            limit,
            lambda last, link, count: self._announce(last_id=last, link=link, count=count),
            # What the audit repository does not have yet stays, however old.
            upto=await self._exported() if self._exported is not None else None,
        )
        if removed:
            self.log.info("audit: {count} events past retention removed", count=removed)
        return removed
