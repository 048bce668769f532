"""Joins the health check to what it looks at: doors, whitelist, PACS, and the list of who may ask.

The three parts that the agency names (requirements.md 3.13) are looked at from inside, because nobody can
try them from the Internet without an identity. `VISIONNEUSE` and `WADO-RS` are up while their name shows a
certificate that has not expired, access to images is switched on, and something answers there;
`LISTEBLANCHE` is up while the whitelist in force has the site (DB.CS.164).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from drimbox.config import Config, Site
from drimbox.guard import Guard
from drimbox.periodic import Periodic
from drimbox.ports import Clock, InThread, OutageNotices
from drimbox.source.health import ArchiveChecks, Check, Remembered
from drimbox.trust.contexts import site_of
from drimbox.trust.download import over_https
from drimbox.trust.ways import Ways
from drimbox.wado.gate import WadoGate
from drimbox.web.doors import Doors
from drimbox.web.health import PATH, HealthResource
from drimbox.web.probes import MAX_BYTES, Probes

#: What the viewer's page is called, below the viewer name.
VIEWER = b"visionneuse"
#: Seconds between two looks at the list of probes, until the first, and for one fetch.
_LOOK, _SETTLED, _FETCH = 300.0, 5.0, 30.0


class Weather:
    """The health check of one gateway; `verify` maps each PACS or archive to the question it is asked."""

    def __init__(
        self,
        config: Config,
        reactor: Any,
        clock: Clock,
        *,
        guard: Guard,
        gate: WadoGate,
        doors: Doors,
        verify: Mapping[str, Callable[[], Awaitable[None]]],
        notices: OutageNotices,
        defer: InThread,
    ) -> None:
        settings = config.health
        self._reactor = reactor
        self._clock = clock
        self._guard = guard
        self._gate = gate
        self._doors = doors
        url, roots = settings.addresses_url, settings.addresses_url_roots
        self.probes = Probes(
            settings,
            notices,
            fetch=None
            if url is None
            else over_https(
                Ways(reactor, config.proxy), "probes", url, roots, timeout=_FETCH, limit=MAX_BYTES
            ),
            now=clock.now,
            in_thread=defer,
            folder=config.drimbox.state_dir,
        )
        archives = ArchiveChecks(verify, reactor, settings.pacs_timeout)
        looks = {site.name: partial(self._look, site) for site in config.sites}
        page = HealthResource(
            {name: Remembered(look, reactor, settings.keep) for name, look in looks.items()},
            Remembered(archives.look, reactor, settings.keep),
            self.probes,
            site_of=lambda transport: site_of(transport).name,
            down_is_503=settings.down_is_503,
        )
        doors.open(PATH, page)

    def periodics(self) -> list[Periodic]:
        """Return the work done again and again."""
        refresh = self.probes.refresh_if_due
        return [Periodic("health-probes", refresh, _LOOK, self._reactor, first=_SETTLED)]

    async def _look(self, site: Site) -> Sequence[Check]:
        now, shows = self._clock.now(), self._guard.contexts.shows
        enabled = self._gate.enabled(site)
        viewer = enabled and shows(site.viewer_fqdn, now) and self._doors.is_open(VIEWER)
        return (
            Check("VISIONNEUSE", viewer),
            Check("WADO-RS", enabled and shows(site.wado_fqdn, now)),
            Check("LISTEBLANCHE", self._guard.whitelist.serves(site)),
        )
