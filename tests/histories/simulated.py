"""A world in memory under a simulated clock: hundreds of histories a minute, each the same every time."""

from __future__ import annotations

import random
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
from pydicom.dataset import Dataset
from twisted.internet.task import Clock

from drimbox.config import Config, Ris
from drimbox.sim.ris import parse_ack
from tests.histories import operations as ops
from tests.histories import verdict
from tests.histories.gateway import Died, Gateway, Life
from tests.histories.images import Pacs, give
from tests.histories.messages import STRUCTURES, encoded
from tests.histories.model import INSIDE, Holding, study_uid
from tests.histories.record import Dmp, Line
from tests.histories.world import World
from tests.source import fakes
from tests.source.answers import FakeChannel

#: Seconds everything is given to come to rest once all is well.
PATIENCE = 400.0
_PEER = "192.0.2.7"


def configuration(state_dir: Path) -> Config:
    """Return the configuration: two PACS, two structures, key images, short waits."""
    sites = [fakes.site(number, excluded_uid_roots=(INSIDE,)) for number in range(1, ops.PACSES + 1)]
    config = fakes.config(*sites, structures=[fakes.structure(each) for each in STRUCTURES])
    return attrs.evolve(
        config,
        drimbox=attrs.evolve(config.drimbox, state_dir=state_dir, oid="1.2.250.1.999.349"),
        ris=(Ris("RIS", "RIS-Y"), Ris("PACS-Z", "PACS-Z")),
        wado=attrs.evolve(config.wado, instance_level=True),
        feed=attrs.evolve(config.feed, retry_first=1.0, retry_max=4.0),
        dmp=attrs.evolve(config.dmp, retry_first=1.0, retry_max=4.0),
    )


class Simulated(World):
    """A world in memory. `empty` is a store to copy, `seed` decides what happens at once."""

    def __init__(self, folder: Path, empty: Path, seed: int) -> None:
        super().__init__()
        clock = Clock()
        self.pacs_states = ["up"] * ops.PACSES
        self.config = configuration(folder / "state")
        self.dmp = Dmp(self.config, clock, due=self._due, refused=self._refused)
        #: By study, the number of its last refusal.
        self._refusals: dict[str, int] = {}
        self.gateway = Gateway(
            self.config,
            clock,
            random.Random(seed),
            self._archives,
            lambda life: Line(self.dmp, life),
            empty,
        )

    def close(self) -> None:
        """Let everything go."""
        self.gateway.close()

    def _archives(self, life: Life) -> Any:
        return {
            site.name: Pacs(number, self.model, self.pacs_states, life)
            for number, site in enumerate(self.config.sites)
        }

    def _due(self, uid: str) -> bool:
        return all(study_uid(study) != uid for study in self.model.absent)

    def _refused(self, uid: str) -> None:
        self._refusals[uid] = self.model.count()

    # -- to the gateway ----------------------------------------------------------------------------

    async def send(self, raw: bytes) -> None:
        ack = self._delivered(lambda: self.gateway.assembly.mllp.receiver.receive(raw, _PEER))
        assert parse_ack(ack).code == "AA", ack

    async def store(self, pacs: int, note: Dataset) -> None:
        channel, uid, data = FakeChannel(), str(note.SOPInstanceUID), encoded(note)

        async def store() -> None:
            life = self.gateway.life
            receiver: Any = self.gateway.assembly.acceptor.notes(f"PACS{pacs + 1}", _PEER)
            receiver.opened(channel)
            give(receiver, channel, uid, data)
            while not channel.answers:
                await life.answer(None, 0.001)

        self._delivered(store)
        assert channel.answers[-1] == (uid, 0)

    def _delivered(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Do something with the gateway; whoever gets no answer because it died does it again."""
        while True:
            self.gateway.start()
            try:
                return self.gateway.finish(make())
            except Died:
                continue

    async def kill(self, seconds: float, commits: int) -> None:
        life = self.gateway.life
        if commits:
            life.dies_at = life.commits + commits
        else:
            self.gateway.clock.callLater(seconds, self.gateway.kill, life)
            self.gateway.pass_time(0.0)

    async def pass_time(self, seconds: float) -> None:
        self.gateway.start()
        self.gateway.pass_time(seconds)

    async def rest(self) -> None:
        clock = self.gateway.clock
        limit = clock.seconds() + PATIENCE
        while (waiting := self.waiting()) or self.dmp.late:
            verdict.check(clock.seconds() < limit, f"work never ends: {waiting}")
            # The end of a life that was told to die may still be to come.
            await self.pass_time(1.0)
        # What a killed gateway had sent arrives.
        await self.pass_time(1.0)

    # -- around it ---------------------------------------------------------------------------------

    async def hold(self, pacs: int, study: int, holding: Holding) -> None:
        """The PACS hold what the model says."""

    async def set_pacs(self, pacs: int, state: str) -> None:
        self.pacs_states[pacs] = state

    async def set_dmp(self, state: str) -> None:
        self.dmp.state = state

    async def treat(self, transaction: str, treatment: str, times: int) -> None:
        if not treatment:
            self.dmp.next.clear()
        self.dmp.next.setdefault(transaction, deque()).extend([treatment] * times)

    # -- what is seen ------------------------------------------------------------------------------

    def current(self, study: int) -> list[verdict.Shown]:
        return [
            verdict.read(entry.document, entry.uuid, entry.confidentiality)
            for entry in self.dmp.of(study_uid(study))
        ]

    def known(self) -> Mapping[str, str]:
        return {uid: entry.uuid for uid, entry in self.dmp.entries.items()}

    def excused(self, study: int) -> bool:
        return self._refusals.get(study_uid(study), -1) > self.model.named[study]

    def changes(self) -> int:
        return self.dmp.changes

    def broken(self) -> Iterable[str]:
        return self.dmp.broken

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.gateway.path)) as connection:
            return connection.execute(sql, values).fetchall()


def happen(operations: Sequence[Any], folder: Path, empty: Path, seed: int = 0) -> Simulated:
    """Let a history happen in a folder of its own, and judge it."""
    world = Simulated(folder, empty, seed)
    try:
        # Nothing in it waits for anything but the simulated clock.
        world.run(operations).send(None)
    except StopIteration:
        return world
    finally:
        world.close()
    raise AssertionError("a simulated world waits for nobody")
