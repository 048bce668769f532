"""What the process says of itself: the provider behind `drimbox status` and `/ready`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drimbox import __version__
from drimbox.assembly import Assembly
from drimbox.config import Config, Site
from drimbox.store.nodes import SeenNode
from drimbox.stores import Stores
from drimbox.trust.whitelist import WhitelistHolder


class Status:
    """Looks at stores, pools and whitelist of a running gateway."""

    def __init__(
        self, config: Config, stores: Stores, assembly: Assembly, whitelist: WhitelistHolder
    ) -> None:
        self._config = config
        self._stores = stores
        self._pools = assembly.images.pools
        self._natives = assembly.images.natives
        self._whitelist = whitelist
        #: True between the opening of the doors and the first step of the stop.
        self.ready = False

    async def status(self) -> Mapping[str, Any]:
        """Return what `drimbox status` shows."""
        queues = {}
        for name, queue in self._stores.queues.items():
            count = await queue.counts()
            queues[name] = {
                "waiting": count.waiting,
                "in_hand": count.in_hand,
                "done": count.done,
                "failed": count.failed,
                "parked": count.parked,
                "dropped": count.dropped,
                "oldest": count.oldest.isoformat() if count.oldest is not None else None,
            }
        open_notices = await self._stores.notices.count_open()
        kos = await self._stores.archive.counts()
        loaded = await self._stores.loaded.count()
        return {
            "version": __version__,
            "ready": self.ready,
            "queues": queues,
            "kos": {state.value: count for state, count in kos.items()},
            "homologation": {"enabled": self._config.homologation.enabled, "kos": loaded.kos},
            "notices": open_notices,
            "node": self._config.drimbox.node,
            "nodes": [self._node(node) for node in await self._stores.nodes.seen()],
            "sites": [self._site(site) for site in self._config.sites],
        }

    def _node(self, node: SeenNode) -> dict[str, Any]:
        return {
            "name": node.name,
            "version": node.version,
            "since": node.since.isoformat(),
            "alive": self._stores.nodes.alive(node),
            "roles": list(node.roles),
        }

    def _site(self, site: Site) -> dict[str, Any]:
        facts = {
            "name": site.name,
            "wado": site.wado_fqdn,
            "image_access": self._whitelist.serves(site),
        }
        if site.pacs is None:
            places = self._natives[site.name].places
            readings = {"used": places.total - places.free, "most": places.total, "waiting": places.waiting}
            return {**facts, "archive": site.archive, "readings": readings}
        pool = self._pools.by_pacs[site.pacs.name]
        titles = {title.ae_title: title.state.value for title in pool.titles.values()}
        return {**facts, "pacs": site.pacs.name, "ae_titles": titles}

    async def readiness(self) -> Mapping[str, bool]:
        """Return the checks that must all hold before work is sent to us."""
        return {
            "started": self.ready,
            "whitelist": self._whitelist.current is not None,
            "store": await self._stores.answers(),
        }
