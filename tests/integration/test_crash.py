"""`kill -9` anywhere loses nothing and publishes nothing twice (architecture.md rule 4).

The gateway is a real process and the kill a real SIGKILL. What is acknowledged is the promise: after the
restart every study of an acknowledged report has exactly one KOS in the DMP, current, and never had
another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import error, reactor, task
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.ris import NoAck
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import POOL, FeedStand, Studies, after
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.11", "DB.SO.13", "DB.SO.22", "DB.SO.141")

#: Changed by hand to look for other moments; every value must do.
SEED = 20260112


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies

    async def crash(self) -> None:
        await self.stand.kill_gateway()

    async def check(self, studies: list[GeneratedStudy]) -> None:
        """Wait until everything is published; exactly one KOS of each study, and its audit."""
        stand = self.stand
        for study in studies:
            await stand.published_one(study, seconds=60.0)
        assert {study.study_uid: len(stand.kos(study, None)) for study in studies} == {
            study.study_uid: 1 for study in studies
        }
        for study in studies:
            rows = stand.query("SELECT state FROM kos WHERE study_uid = ?", study.study_uid)
            assert rows == [("published",)]
            kinds = [event["event_type"][0] for event in stand.audits(study.study_uid)]
            assert "RAD-128" in kinds
            assert "ITI-41" in kinds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("crash")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = FeedStand(
        folder, [PacsAddress("PACS", pacs.port, POOL)], extra={"dmp": {"timeout": "10", "retry_max": "1"}}
    )
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest_twisted.ensureDeferred
async def test_killed_right_after_the_acknowledgement(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.crash()
    await world.stand.start_gateway()
    await world.check([study])


@pytest_twisted.ensureDeferred
async def test_killed_while_the_pacs_is_asked(world: World) -> None:
    study = world.studies.new(world.pacs)
    world.pacs.behaviour = PacsBehaviour(find_delay=30.0)
    try:
        before = len(world.pacs.seen("find"))
        await world.stand.report(study)
        await until(lambda: len(world.pacs.seen("find")) > before)
        await world.crash()
    finally:
        world.pacs.behaviour = PacsBehaviour()
    await world.stand.start_gateway()
    await world.check([study])


@pytest.mark.parametrize("late", [0.3, 4.0], ids=["carried out before the restart", "and after it"])
@pytest_twisted.ensureDeferred
async def test_killed_while_the_submission_is_on_the_wire(world: World, late: float) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    stand.late = late
    try:
        seen = len(stand.requests)
        await stand.report(study)
        await until(lambda: [r for r in stand.requests[seen:] if stand.dmp.service.identify(r) == "TD2.1"])
        assert stand.kos(study) == []
        await world.crash()
        await stand.start_gateway()
        await world.check([study])
    finally:
        stand.late = 0.0


@pytest.mark.parametrize("kind", [Kind.SILENT, Kind.NORMAL], ids=["silent", "slow"])
@pytest_twisted.ensureDeferred
async def test_killed_between_the_registration_and_its_answer(world: World, kind: Kind) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after("TD2.1", kind, seconds=8.0)):
        await stand.report(study)
        await until(lambda: stand.kos(study))
        await world.crash()
    sent = len(stand.exchanges())
    assert stand.query("SELECT outcome_unknown FROM outbox ORDER BY id DESC LIMIT 1") == [(1,)]
    await stand.start_gateway()
    await world.check([study])
    # It asked; it did not send again.
    assert len(stand.exchanges()) == sent


@pytest_twisted.ensureDeferred
async def test_killed_between_the_registration_of_a_replacement_and_its_answer(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    await stand.report(study)
    first = await stand.published_one(study)
    world.studies.new(world.pacs, instances=3, study_uid=study.study_uid, seed=97)
    with stand.dmp_misbehaves(after("TD2.1", Kind.SILENT)):
        await stand.report(study)
        await until(lambda: len(stand.kos(study, None)) == 2)
        await world.crash()
    await stand.start_gateway()
    second = await stand.published_one(study)
    assert second.unique_id != first.unique_id
    assert [entry.unique_id for entry in stand.kos(study, "Deprecated")] == [first.unique_id]
    states = stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
    assert states == [("replaced",), ("published",)]


class Ris:
    """Sends reports one after the other, each again until it is acknowledged, as a RIS does."""

    def __init__(self, stand: FeedStand, studies: list[GeneratedStudy]) -> None:
        self._stand = stand
        self._messages = [stand.message(study, number=800_000 + rank) for rank, study in enumerate(studies)]
        self.sent = self.acknowledged = 0

    async def run(self) -> None:
        for message in self._messages:
            while True:
                self.sent += 1
                try:
                    ack = await self._stand.send(message, seconds=20.0)
                except (NoAck, error.ConnectError, error.ConnectionClosed):
                    await sleep(0.05)
                    continue
                if ack.code == "AA":
                    self.acknowledged += 1
                    break
                await sleep(0.05)


async def sleep(seconds: float) -> None:
    await task.deferLater(_clock, seconds)


_clock: Any = reactor


@pytest_twisted.ensureDeferred
async def test_killed_at_random_over_a_burst_of_thirty_reports(world: World) -> None:
    stand = world.stand
    chance = random.Random(SEED)
    studies = [world.studies.new(world.pacs, instances=1) for _ in range(30)]
    ris = Ris(stand, studies)
    # A DMP that takes its time, so that the kills find attempts on the wire.
    with stand.dmp_misbehaves(Behaviour(Kind.NORMAL, seconds=0.15), None):
        sending = Deferred.fromCoroutine(ris.run())
        for _ in range(6):
            await sleep(chance.uniform(0.05, 0.9))
            await world.crash()
            await stand.start_gateway()
        await gatherResults([sending])
        assert ris.acknowledged == 30
        await world.check(studies)
    killed = stand.query("SELECT count(*) FROM outbox WHERE attempts > 0")
    assert killed[0][0] >= 30


@pytest_twisted.ensureDeferred
async def test_stopped_in_order_it_finishes_what_it_holds(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after("TD2.1", Kind.NORMAL, seconds=0.5)):
        await stand.report(study)
        await until(lambda: stand.kos(study))
        await stand.stop_gateway()
    state = stand.query("SELECT state FROM outbox WHERE study_uid = ?", study.study_uid)
    assert state == [("done",)]
    await stand.start_gateway()
    await world.check([study])
