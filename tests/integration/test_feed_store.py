"""A store that takes nothing: full, locked by another process, read-only. Nothing accepted is lost.

While it lasts every message is answered `AR` (send again later), never `AA`, and the process stays up; what
it had accepted, or even begun to publish, goes on by itself once the fault is over.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import attrs
import pytest
import pytest_twisted

from drimbox.sim.behaviour import Kind
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from tests.integration.disturbed_stand import DisturbedStand
from tests.integration.feed_stand import POOL, Studies, after
from tests.integration.waiting import pause, until, wait

pytestmark = pytest.mark.requirement("DB.SO.03", "DB.SO.141", "DB.SO.21", "DB.SO.22")
#: Bytes of the state directory's own file system, and of the PDF in each report: too large for what a
#: full disk leaves free inside the files of the database.
DISK, PDF = 48 * 1024 * 1024, 1_500_000


_numbers = iter(range(700_000, 10**6))


@attrs.define
class World:
    stand: DisturbedStand
    pacs: SimulatedPacs
    studies: Studies

    @property
    def state(self) -> Path:
        return self.stand.folder / "state"


def _by_file(fault: str) -> Callable[[World], AbstractContextManager[None]]:
    """The fault that `disturbed` makes of this word."""

    @contextmanager
    def spoiled(world: World) -> Iterator[None]:
        world.stand.disturbance.write("store", fault)
        try:
            yield
        finally:
            world.stand.disturbance.write("store", "")

    return spoiled


@contextmanager
def _locked(world: World) -> Iterator[None]:
    """Another process (a backup that lasts) holds the database."""
    with closing(sqlite3.connect(world.state / "drimbox.db", timeout=20)) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextmanager
def _disk_full(world: World) -> Iterator[None]:
    """Something else has filled the file system."""
    if not os.path.ismount(world.state):
        pytest.skip("only root may mount a small file system of its own")
    filler = world.state / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(65536))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


FAULTS = pytest.mark.parametrize(
    "fault",
    [_disk_full, _by_file("full"), _by_file("readonly"), _locked],
    ids=["disk full", "database full", "read-only", "locked by another process"],
)


def _mount(folder: Path) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("store")
    mounted = _mount(folder / "state")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = DisturbedStand(folder, [PacsAddress("PACS", pacs.port, POOL)])
    stand.disturbance.write("busy", "0.3")
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    try:
        wait(stand.up())
        yield World(stand, pacs, Studies(folder / "studies"))
        wait(stand.stop())
    finally:
        pacs.stop()
        if mounted:
            subprocess.run(["umount", "-l", str(folder / "state")], timeout=30, check=True)


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """The same, everything well."""
    yield running
    running.stand.dmp.script.reset()
    running.pacs.behaviour = PacsBehaviour()


@FAULTS
@pytest_twisted.ensureDeferred
async def test_nothing_is_accepted_that_cannot_be_stored_and_nothing_accepted_is_lost(
    world: World, fault: Callable[[World], AbstractContextManager[None]]
) -> None:
    stand = world.stand
    at_the_dmp, at_the_pacs, new = (world.studies.new(world.pacs) for _ in range(3))
    with stand.dmp_misbehaves(after("TD2.1", Kind.HTTP, status=503), None):
        await stand.report(at_the_dmp)
        put_off = "SELECT 1 FROM outbox WHERE state = 'waiting' AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off), what="a row put off")
        world.pacs.behaviour = PacsBehaviour(down=True)
        await stand.report(at_the_pacs)
        put_off = "SELECT 1 FROM feed_job WHERE study_uid = ? AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off, at_the_pacs.study_uid), what="a job put off")
        pid = stand.pid
        with fault(world):
            message = stand.message(new, number=next(_numbers), report={"pdf_size": PDF})
            for _ in range(4):
                ack = await stand.send(message)
                assert ack.code == "AR"
                assert [error.code for error in ack.errors] == ["207"]
            world.pacs.behaviour = PacsBehaviour()
            stand.dmp.script.reset()
            # Time for what waits to try, and fail.
            await pause(1.5)
            assert (await stand.send(message)).code == "AR"
            assert stand.kos(new, None) == []
    assert (await stand.send(message)).code == "AA"
    for study in (at_the_dmp, at_the_pacs, new):
        await stand.published_one(study, seconds=60.0)
        assert len(stand.kos(study, None)) == 1
    assert (stand.pid, stand.running) == (pid, True)
    text = await stand.notice_about("Enregistrement impossible", "BASE")
    assert "5 message(s) refusé(s)" in text
    states = stand.query("SELECT DISTINCT state FROM kos")
    assert states == [("published",)]


@pytest.mark.threat("a delivery that leaves no audit record because the process dies")
@pytest.mark.requirement("DB.SO.46", "DB.SO.47")
@FAULTS
@pytest_twisted.ensureDeferred
async def test_no_image_leaves_whose_delivery_cannot_be_recorded(
    world: World, fault: Callable[[World], AbstractContextManager[None]], request: pytest.FixtureRequest
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    await stand.report(study)
    entry = await stand.published_one(study, seconds=60.0)
    asked = (study.study_uid, study.series[0].series_uid, entry.unique_id)
    with fault(world):
        results = [await stand.fetch(*asked) for _ in range(3)]
    served = [result for result in results if result.status == 200]
    refused = [result for result in results if result.status in (500, 503) and not result.parts]
    assert len(served) + len(refused) == 3, [result.status for result in results]
    # A full disk may leave room for the few hundred bytes of a record: then images leave, on record.
    assert not served or "full" in request.node.callspec.id
    assert (await stand.fetch(*asked)).complete
    recorded = "SELECT outcome FROM audit WHERE study_uid = ? AND payload LIKE '%RAD-107%'"

    def successes() -> bool:
        return stand.query(recorded, study.study_uid).count((0,)) == len(served) + 1

    await until(successes, seconds=90.0, what="a record of every answer")
    assert stand.query("SELECT count(*) FROM open_record") == [(0,)]


@FAULTS
@pytest_twisted.ensureDeferred
async def test_a_success_that_cannot_be_written_down_is_found_again(
    world: World, fault: Callable[[World], AbstractContextManager[None]]
) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    sent = len(stand.exchanges())
    with stand.dmp_misbehaves(after("TD2.1", Kind.NORMAL, seconds=0.7)):
        await stand.report(study)
        await until(lambda: stand.kos(study), what="a KOS registered, its answer under way")
        with fault(world):
            await pause(2.0)
    await stand.published_one(study, seconds=60.0)
    # It asked, or remembered; it did not send again.
    assert len(stand.exchanges()) == sent + 1
    assert len(stand.kos(study, None)) == 1
    state = stand.query("SELECT state FROM kos WHERE study_uid = ?", study.study_uid)
    assert state == [("published",)]
