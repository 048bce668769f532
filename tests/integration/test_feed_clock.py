"""A clock that jumps, by hours or days, back or forward: nothing stuck, nothing twice, nothing lost.

Only the wall clock jumps, as when an operator or a time server sets it, or a virtual machine is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import attrs
import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Kind
from drimbox.sim.listening import utc_now
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from tests.integration.disturbed_stand import DisturbedStand
from tests.integration.feed_stand import POOL, Studies, after
from tests.integration.waiting import until, wait

HOUR, DAY = 3600, 86400
DMP = {"timeout": "1", "connect_timeout": "0.5", "retry_max": "1"}
JUMPS = pytest.mark.parametrize(
    "jump", [-DAY, -HOUR, HOUR, 30 * DAY], ids=["a day back", "an hour back", "an hour on", "a month on"]
)
pytestmark = pytest.mark.requirement("DB.SO.11", "DB.SO.14", "DB.SO.22")


@attrs.define
class World:
    stand: DisturbedStand
    pacs: SimulatedPacs
    studies: Studies
    shift: int = 0

    def set_clock(self, shift: int, *, everywhere: bool = True) -> None:
        """Make our clock wrong by `shift` seconds, and the DMP's with it unless told otherwise."""
        self.stand.disturbance.write("shift", str(shift))
        if everywhere:
            self.shift = shift

    def now(self) -> datetime:
        """What the DMP takes for the present."""
        return utc_now() + timedelta(seconds=self.shift)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("clock")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = DisturbedStand(folder, [PacsAddress("PACS", pacs.port, POOL)], extra={"dmp": DMP})
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    world = World(stand, pacs, Studies(folder / "studies"))
    wait(stand.up())
    stand.dmp._clock = world.now
    yield world
    wait(stand.stop())
    pacs.stop()


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """The same, everything right."""
    yield running
    running.set_clock(0)
    running.stand.dmp.script.reset()
    running.pacs.behaviour = PacsBehaviour()


@JUMPS
@pytest_twisted.ensureDeferred
async def test_what_waits_for_the_dmp_leaves_when_it_is_back(world: World, jump: int) -> None:
    stand = world.stand
    studies = [world.studies.new(world.pacs) for _ in range(3)]
    with stand.dmp_misbehaves(after("TD2.1", Kind.HTTP, status=503), None):
        for study in studies:
            await stand.report(study)
        put_off = "SELECT count(*) FROM outbox WHERE state = 'waiting' AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off) == [(3,)], what="three rows put off")
        world.set_clock(jump)
    late = world.studies.new(world.pacs)
    await stand.report(late)
    for study in [*studies, late]:
        await stand.published_one(study)
        assert len(stand.kos(study, None)) == 1


@JUMPS
@pytest_twisted.ensureDeferred
async def test_what_waits_for_the_pacs_goes_on_when_it_answers(world: World, jump: int) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    world.pacs.behaviour = PacsBehaviour(down=True)
    await stand.report(study)
    put_off = "SELECT 1 FROM feed_job WHERE study_uid = ? AND last_error IS NOT NULL"
    await until(lambda: stand.query(put_off, study.study_uid), what="a job put off")
    world.set_clock(jump)
    world.pacs.behaviour = PacsBehaviour()
    await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1


@JUMPS
@pytest_twisted.ensureDeferred
async def test_an_answer_that_never_comes_is_not_awaited_for_ever(world: World, jump: int) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after("TD2.1", Kind.SILENT)):
        await stand.report(study)
        await until(lambda: stand.kos(study), what="a KOS registered, unanswered")
        world.set_clock(jump)
        await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1


@JUMPS
@pytest_twisted.ensureDeferred
async def test_a_gateway_killed_and_started_on_another_clock_goes_on(world: World, jump: int) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    with stand.dmp_misbehaves(after("TD2.1", Kind.HTTP, status=503), None):
        await stand.report(study)
        put_off = "SELECT 1 FROM outbox WHERE state = 'waiting' AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off), what="a row put off")
        await stand.kill_gateway()
    world.set_clock(jump)
    await stand.start_gateway()
    await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1


@pytest.mark.requirement("DB.SO.97")
@pytest_twisted.ensureDeferred
async def test_a_report_sent_again_while_our_clock_is_behind_has_the_last_word(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    document = {"document_id": "2.999.7.8001"}
    now = world.now().astimezone()
    await stand.report(study, report=document, sent_at=f"{now:%Y%m%d%H%M%S}")
    first = await stand.published_one(study)
    world.set_clock(-DAY)
    later = now + timedelta(seconds=60)
    await stand.report(study, report=document, flags={"MASQUE_PS": "Y"}, sent_at=f"{later:%Y%m%d%H%M%S}")
    await until(lambda: first not in stand.kos(study), what="the KOS replaced")
    await stand.published_one(study)
    await stand.report(study, report=document, action=MessageAction.DELETE)
    await until(lambda: not stand.kos(study), what="the KOS removed")
    await stand.idle()


@pytest.mark.requirement("DB.SO.21")
@pytest.mark.parametrize("wrong", [-3 * HOUR, 3 * HOUR], ids=["behind", "ahead"])
@pytest_twisted.ensureDeferred
async def test_assertions_dated_by_a_wrong_clock_cost_no_publication(world: World, wrong: int) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    world.set_clock(wrong, everywhere=False)
    await stand.report(study)
    assert "Structure" in await stand.notice_about("n'admet pas notre demande", "E007")
    assert stand.kos(study, None) == []
    world.set_clock(0)
    await stand.published_one(study)
    assert len(stand.kos(study, None)) == 1
