"""This node among the others: it shows that it lives, and does alone what one node does for all.

A node whose clock is far from the database's, that has lost its name to another, or has not shown for as
long as its lease that it lives, takes no new work: the others count it as dead, or it counts them so. What
it has in hand it may end if the store still lets it (`store.queue`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox.periodic import Periodic
from drimbox.ports import OutageNotices
from drimbox.store.errors import NodeRefused
from drimbox.store.nodes import Nodes

#: Seconds by which clocks may differ, however long the lease is.
MAX_AHEAD = 30.0
#: Seconds between two looks of a worker that is held back.
_LOOK = 5.0
_CODE = "NOEUD"


class Presence:
    """Keeps one node present. `lease` is in seconds."""

    log = Logger()

    def __init__(self, nodes: Nodes, notices: OutageNotices, clock: IReactorTime, *, lease: float) -> None:
        self._nodes = nodes
        self._notices = notices
        self._clock = clock
        self._lease = lease
        self._most = timedelta(seconds=min(MAX_AHEAD, lease / 4))
        #: When it last showed that it lives; it is not counted before it has begun to.
        self._shown: float | None = None
        self._barred = ""

    def periodic(self) -> Periodic:
        """Return what shows that the node lives."""
        period = self._lease / 4
        return Periodic("node", self.beat, period, self._clock, first=period)

    async def beat(self) -> None:
        """Show that the node lives. Raises what the store raises when it is not there."""
        began = self._clock.seconds()
        try:
            ahead = await self._nodes.beat()
        except NodeRefused as refused:
            await self._bar(str(refused))
            return
        self._shown = began
        if abs(ahead) <= self._most:
            await self._admit()
            return
        await self._bar(
            f"Horloge du nœud « {self._nodes.name} » à {ahead.total_seconds():+.0f} s de celle de la "
            "base : le nœud ne prend plus de travail. Vérifier la synchronisation (NTP) des deux machines."
        )

    def hold(self) -> float:
        """Return the seconds until the next look while this node may take no work, else 0."""
        late = self._shown is not None and self._clock.seconds() - self._shown > self._lease
        return _LOOK if self._barred or late else 0.0

    def sure(self) -> bool:
        """Say whether this node has shown that it lives, and that its clock is right."""
        return self._shown is not None and not self.hold()

    def holds(self, role: str) -> bool:
        """Say whether this node surely does this alone for all."""
        return not self.hold() and self._nodes.holds(role)

    async def leads(self, role: str) -> bool:
        """Say whether this node is to do this alone for all; nobody else does it then."""
        return not self.hold() and await self._nodes.leads(role)

    def alone(self, role: str, work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
        """Return `work` that one node at a time does."""

        async def do() -> None:
            if await self.leads(role):
                await work()

        return do

    async def _bar(self, why: str) -> None:
        if why != self._barred:
            self.log.error("this node takes no work: {why}", why=why)
        self._barred = why
        await self._nodes.resign()
        await self._notices.post(key=self._key, code=_CODE, text=why)

    async def _admit(self) -> None:
        if self._barred:
            self._barred = ""
            self.log.info("this node takes work again")
            await self._notices.resolve(self._key)

    @property
    def _key(self) -> str:
        return f"noeud-{self._nodes.name}"


class OwnNotices:
    """Notices about what every node has of its own (certificates, lists, disk): they name the node."""

    def __init__(self, notices: OutageNotices, node: str) -> None:
        self._notices = notices
        self._node = node

    async def post(self, *, key: str, code: str, text: str) -> None:
        """Show `text` as this node's."""
        await self._notices.post(key=f"{key}@{self._node}", code=code, text=f"Nœud {self._node} : {text}")

    async def resolve(self, key: str) -> bool:
        """Close this node's open notice of this key."""
        return await self._notices.resolve(f"{key}@{self._node}")
