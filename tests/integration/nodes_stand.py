"""Several gateways on one PostgreSQL: one world (DMP, Pro Santé Connect, PACS), a process for each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from twisted.internet import error

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.postgres import Cluster
from drimbox.sim.ris import NoAck
from drimbox.sim.stand import LOOPBACK, PacsAddress, Stand, _text
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import FeedStand, Studies
from tests.integration.waiting import pause

#: Seconds: the least that the configuration allows with the DMP's time-out of these tests.
LEASE = 13


class Node(FeedStand):
    """One gateway. The first one makes the world, the others live in it."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        database: str,
        pacs: SimulatedPacs,
        number: int,
        *,
        world: Node | None = None,
        extra: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.name = f"noeud{number}"
        self.titles = (f"DBX{number}A", f"DBX{number}B")
        self._cluster, self._database = cluster, database
        settings = {
            "drimbox": {"node": _text(self.name)},
            "store": {"url": _text(cluster.url(database)), "lease": f'"{LEASE}s"'},
        }
        for section, keys in (extra or {}).items():
            settings[section] = {**settings.get(section, {}), **keys}
        super().__init__(
            folder, [PacsAddress(pacs.ae_title, pacs.port, self.titles)], extra=settings, world=world
        )
        pacs.destinations.update(dict.fromkeys(self.titles, (LOOPBACK, self.dicom_port)))

    def _toml(self) -> str:
        # The second structure belongs to the world's own gateway alone.
        return super()._toml() if self._world is None else Stand._toml(self)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the store beside the gateways."""
        address = f"host={self._cluster.folder} user=drimbox dbname={self._database}"
        with psycopg.connect(address, connect_timeout=10) as connection:
            return connection.execute(sql, values).fetchall()  # type: ignore[arg-type]

    async def roles(self) -> dict[str, set[str]]:
        """Return the roles of each node that lives."""
        found = await self.status()
        return {node["name"]: set(node["roles"]) for node in found["nodes"] if node["alive"]}


class Nodes:
    """`nodes` of one store beside one PACS."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        *,
        count: int = 2,
        extra: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self.cluster, self.extra = folder, cluster, extra
        self.database = cluster.create()
        self.pacs = SimulatedPacs("PACS-A")
        self.pacs.start()
        self.studies = Studies(folder / "studies")
        self.nodes: list[Node] = []
        for number in range(1, count + 1):
            self.nodes.append(self.another(number))

    def another(self, number: int, **changes: Mapping[str, str]) -> Node:
        """Make one more node, with `changes` of its configuration."""
        world = self.nodes[0] if self.nodes else None
        return Node(
            self.folder / f"node{number}",
            self.cluster,
            self.database,
            self.pacs,
            number,
            world=world,
            extra={**(self.extra or {}), **changes},
        )

    async def up(self) -> None:
        """Start the first node, then the others at once: they come upon a store that is being made."""
        await self.nodes[0].start()
        first, *others = self.nodes
        first.dmp.answer = first._answer(first.dmp.answer)  # type: ignore[method-assign]
        for node in others:
            await node.start()
        for node in self.nodes:
            node.spawn_gateway()
        for node in self.nodes:
            await node.ready()

    async def down(self) -> None:
        """Stop everything."""
        for node in reversed(self.nodes):
            await node.stop()
        self.pacs.stop()

    def check(self, studies: list[GeneratedStudy]) -> None:
        """Each study stands in the record once, as archived, and no document was registered twice."""
        first = self.nodes[0]
        for study in studies:
            (entry,) = first.kos(study)
            rows = first.query(
                "SELECT sop_instance_uid FROM kos WHERE study_uid = %s AND state = 'published'",
                study.study_uid,
            )
            assert rows == [(entry.unique_id,)]
        registered = [each.unique_id for each in first.dmp.service.registry.entries.values()]
        assert len(registered) == len(set(registered))
        waiting = first.query("SELECT count(*) FROM outbox WHERE state <> 'done'")
        assert waiting == [(0,)]


class Ris:
    """Sends reports in order, each to one node after the other until one acknowledges it."""

    def __init__(self, nodes: list[Node], messages: list[bytes], *, first: int = 0) -> None:
        self._nodes, self._messages, self._first = nodes, messages, first
        self.acknowledged = 0
        self.answers: Counter[str] = Counter()

    async def run(self) -> None:
        """Send them all."""
        turn = self._first
        for message in self._messages:
            while True:
                node = self._nodes[turn % len(self._nodes)]
                try:
                    ack = await node.send(message, seconds=20.0)
                except (NoAck, error.ConnectError, error.ConnectionClosed) as reason:
                    self.answers[type(reason).__name__] += 1
                else:
                    self.answers[ack.code] += 1
                    if ack.code == "AA":
                        self.acknowledged += 1
                        break
                turn += 1
                await pause(0.1)
