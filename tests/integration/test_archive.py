"""A DRIMbox is replaced: its archive leaves on a medium, and lives on in another one."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pydicom
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.model import MessageAction
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import find_program
from drimbox.sim.ris import build_change
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import (
    POOL,
    SECOND_POOL,
    FeedStand,
    Studies,
    held_instances,
    kos_instances,
)
from tests.integration.waiting import until, wait
from tests.xdm.builders import published, write
from tests.xds.builders import samples

pytestmark = pytest.mark.requirement("DB.SO.29", "DB.SO.30", "DB.SO.22")
NEW, REPLACE, DELETE = MessageAction.NEW, MessageAction.REPLACE, MessageAction.DELETE


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies
    folder: Path
    exports: int = 0

    async def command(self, *words: str) -> tuple[int, Any, str]:
        """Run `drimbox archive …`; return its status, its JSON, and what it says on stderr."""
        program = Path(sys.executable).parent / "drimbox"
        line = [str(program), "archive", *words, "--json"]
        line += ["--admin", f"{LOOPBACK}:{self.stand.admin_port}"]
        done = await deferToThread(
            subprocess.run, line, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    async def export(self, *words: str) -> Path:
        """Export to a new folder and return it."""
        self.exports += 1
        folder = self.folder / f"medium-{self.exports}"
        folder.mkdir()
        status, job, said = await self.command("export", "--to", str(folder), *words)
        assert (status, job["error"], job["result"]["failed"]) == (0, "", []), said
        return folder

    async def load(self, *paths: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Load archives; return what became of them."""
        words = [str(path) for path in paths]
        _, job, said = await self.command("import", "--site", "site1", *options, *words)
        assert job["error"] == "", said
        result: dict[str, Any] = job["result"]
        return result

    async def new_box(self) -> None:
        """Put a DRIMbox with an empty store in the place of the running one."""
        await self.stand.stop_gateway()
        state = self.stand.folder / "state"
        if state.exists():
            shutil.move(state, self.folder / f"old-{len(list(self.folder.iterdir()))}")
        await self.stand.start_gateway()

    def states(self, study: GeneratedStudy) -> list[str]:
        rows = self.stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
        return [str(row[0]) for row in rows]

    def rows(self) -> dict[str, int]:
        """Count what the store holds."""
        tables = ("kos", "outbox", "inbox", "feed_job", "report", "report_study", "kos_report")
        return {table: int(self.stand.query(f"SELECT count(*) FROM {table}")[0][0]) for table in tables}

    async def fetched(self, study: GeneratedStudy, kos: str) -> int:
        result = await self.stand.fetch(study.study_uid, study.series[0].series_uid, kos)
        return result.status


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("archive")
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    stand = FeedStand(folder / "stand", [PacsAddress("PACS-A", pacs.port, POOL)], ris={"PACS-Z": "PACS-Z"})
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"), folder)
    wait(stand.stop())
    pacs.stop()


@pytest.fixture
def world(running: World) -> World:
    wait(running.new_box())
    return running


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest_twisted.ensureDeferred
async def test_an_archive_lives_on_in_another_drimbox(world: World) -> None:
    stand = world.stand
    replaced, withdrawn, kept = (world.studies.new(world.pacs) for _ in range(3))
    first = await stand.report(replaced)
    second = await stand.report(withdrawn)
    await stand.report(kept)
    entries = [await stand.published_one(study) for study in (replaced, withdrawn, kept)]
    medium = await world.export()
    sent = len(stand.requests)
    await world.new_box()
    assert world.rows()["kos"] == 0

    # A trial changes nothing.
    result = await world.load(medium, options=("--dry-run",))
    assert (result["counts"]["charge"], world.rows()["kos"]) == (3, 0)
    result = await world.load(medium)
    assert (result["counts"]["charge"], result["counts"]["refuse"], result["warnings"]) == (3, 0, 0)
    before = world.rows()
    again = await world.load(medium)
    assert (again["counts"]["deja-present"], world.rows()) == (3, before)
    report = Path(again["report"]).read_text("utf-8-sig")
    assert report.count("deja-present") == 3
    # Nothing was said to the DMP, nothing waits to be.
    assert await stand.waiting() == 0
    assert len(stand.requests) == sent

    # The images are served for the manifests that Consumers know (DB.SO.38).
    assert await world.fetched(replaced, entries[0].unique_id) == 200
    assert await world.fetched(replaced, entries[1].unique_id) == 404

    # Written again, the archive is the same, byte for byte.
    assert digests(await world.export()) == digests(medium)

    # The next report replaces the entry that the other box published.
    await stand.report(replaced, report={"replaces": f"2.999.7.{first}"}, action=REPLACE)
    await until(lambda: stand.kos(replaced)[0].unique_id != entries[0].unique_id, what="a replacement")
    await stand.idle()
    assert len(stand.kos(replaced)) == 1
    assert stand.dmp.service.registry.entries[entries[0].entry_uuid].status.endswith(":Deprecated")
    assert world.states(replaced) == ["replaced", "published"]

    # The withdrawal of a report that only the other box received takes its manifest out.
    document = {"document_id": f"2.999.7.{second}", "set_id": f"2.999.7.{second}"}
    await stand.report(withdrawn, report=document, action=DELETE)
    await until(lambda: not stand.kos(withdrawn), what="a removal")
    await stand.idle()
    assert world.states(withdrawn) == ["depublished"]
    assert await world.fetched(withdrawn, entries[1].unique_id) == 410

    # What nothing was said about is as it was.
    assert world.states(kept) == ["published"]


@pytest_twisted.ensureDeferred
async def test_a_study_that_did_not_change_is_not_published_again(world: World) -> None:
    stand = world.stand
    same, more, gone = (world.studies.new(world.pacs, instances=3) for _ in range(3))
    world.pacs.index.remove(more.instances[0].sop_instance_uid)
    for study in (same, more, gone):
        await stand.report(study)
    entries = {study.study_uid: await stand.published_one(study) for study in (same, more, gone)}
    medium = await world.export()
    await world.new_box()
    await world.load(medium)
    submissions = len(stand.exchanges("TD2.1"))
    world.pacs.load(more)
    for instance in gone.instances:
        world.pacs.index.remove(instance.sop_instance_uid)
    # The PACS says that all three may have changed: each is compared, as a resynchronisation would.
    change = build_change([study.study_uid for study in (same, more, gone)], control_id="C1")
    assert (await stand.send(change)).code == "AA"
    await until(lambda: not stand.kos(gone), what="a removal")
    await until(lambda: len(stand.exchanges("TD2.1")) > submissions, what="a publication")
    await stand.idle()
    assert len(stand.exchanges("TD2.1")) == submissions + 1
    assert world.states(same) == ["published"]
    assert world.states(more) == ["replaced", "published"]
    assert world.states(gone) == ["depublished"]
    assert stand.kos(same)[0].unique_id == entries[same.study_uid].unique_id
    assert kos_instances(stand.kos(more)[0]) == held_instances(more)
    # It was compared by its content once; now it has a digest of ours.
    ((digest,),) = stand.query("SELECT fingerprint FROM kos WHERE study_uid = ?", same.study_uid)
    assert len(digest) == 64


@pytest.mark.threat("zip bomb, zip slip (XDM)")
@pytest_twisted.ensureDeferred
async def test_a_bad_set_costs_the_others_nothing(world: World) -> None:
    stand = world.stand
    studies = [world.studies.new(world.pacs) for _ in range(3)]
    for study in studies:
        await stand.report(study)
        await stand.published_one(study)
    medium = await world.export()
    (path,) = medium.iterdir()
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    victim = next(name for name in held if name.endswith("SS000002/KOS_2_1.DCM"))
    held[victim] = held[victim][:-2]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    (medium / "KA202001.ZIP").write_bytes(b"not a zip")
    await world.new_box()
    status, job, _ = await world.command("import", "--site", "site1", str(medium))
    result = job["result"]
    assert status == 1
    assert (result["counts"]["charge"], result["counts"]["refuse"]) == (2, 1)
    assert result["unusable"][0]["archive"] == "KA202001.ZIP"
    (line,) = result["refused"]
    assert (line["jeu"], line["fichier"]) == ("SS000002", "KOS_2_1.DCM")
    assert "illisible" in line["motif"]
    assert len(stand.query("SELECT id FROM kos")) == 2
    # What was asked for is in the audit trail.
    audits = stand.query("SELECT payload FROM audit WHERE event_id = '110113'")
    assert any("Chargement d'une archive XDM" in row[0] for row in audits)


@pytest_twisted.ensureDeferred
async def test_killed_in_the_middle_and_begun_again_it_is_loaded_once(world: World) -> None:
    stand = world.stand
    folder = world.folder / "many"
    folder.mkdir()
    write(folder, *(published(number).exported() for number in range(1, 301)))
    command = deferToThread(_import_quietly, stand.admin_port, folder)
    await until(lambda: len(stand.query("SELECT id FROM kos")) > 20, what="some loaded")
    await stand.kill_gateway()
    await command
    some = len(stand.query("SELECT id FROM kos"))
    assert 20 < some < 300
    await stand.start_gateway()
    result = await world.load(folder)
    assert result["counts"]["deja-present"] == some
    assert result["counts"]["charge"] == 300 - some
    assert world.rows() == dict.fromkeys(world.rows(), 300)
    assert await stand.waiting() == 0


def _import_quietly(port: int, folder: Path) -> None:
    line = [sys.executable, "-m", "drimbox.cli", "archive", "import", "--site", "site1", str(folder)]
    subprocess.run([*line, "--admin", f"{LOOPBACK}:{port}"], capture_output=True, timeout=120, check=False)


@pytest.mark.peer("unzip", "dciodvfy")
@pytest_twisted.ensureDeferred
async def test_other_programs_read_what_is_exported(world: World) -> None:
    study = world.studies.new(world.pacs)
    await world.stand.report(study)
    await world.stand.published_one(study)
    (path,) = (await world.export()).iterdir()
    assert path.name.startswith("KA")
    target = world.folder / f"unzipped-{path.stat().st_ino}"
    subprocess.run(["unzip", "-q", str(path), "-d", str(target)], check=True, timeout=60)
    (kos,) = target.rglob("KOS_*.DCM")
    done = subprocess.run(
        [str(find_program("dciodvfy")), str(kos)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Error" not in done.stderr + done.stdout
    assert (
        str(pydicom.dcmread(kos).CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID)
        == study.study_uid
    )
    # And the unpacked folder can be loaded, too.
    await world.new_box()
    result = await world.load(next(target.iterdir()))
    assert result["counts"]["charge"] == 1


@pytest_twisted.ensureDeferred
async def test_the_published_sample_of_the_agency_is_loaded(world: World) -> None:
    sample = samples() / "XDM" / "KA202401"
    if not sample.exists():
        pytest.skip("the agency's samples are not here")
    result = await world.load(sample)
    assert result["counts"]["charge"] == 1
    assert "sans certificat ici" in Path(result["report"]).read_text("utf-8-sig")
    first, second = await world.export(), await world.export()
    assert [path.name for path in first.iterdir()] == ["KA202401.ZIP"]
    assert digests(first) == digests(second)


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_done_is_said(world: World) -> None:
    status, job, said = await world.command("export", "--to", "/nowhere/at/all")
    assert (status, "dossier du serveur" in job["error"], said.count("Error")) == (1, True, 0)
    status, job, said = await world.command("import", "--site", "nobody", "/tmp")
    assert (status, job) == (1, None)
    assert "site inconnu" in said
    medium = world.folder / "several"
    medium.mkdir()
    for name in ("A_KA202601.ZIP", "B_KA202601.ZIP"):
        (medium / name).write_bytes(b"")
    status, job, _ = await world.command("import", "--site", "site1", str(medium))
    assert status == 1
    assert "plusieurs PACS" in job["error"]


@pytest.fixture(scope="module")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, GeneratedStudy]]:
    """One gateway, two PACS; that of `World` is the second site's."""
    folder = tmp_path_factory.mktemp("two-sites")
    pacses = [SimulatedPacs("PACS-A"), SimulatedPacs("PACS-B")]
    for pacs in pacses:
        pacs.start()
    held = list(zip(pacses, (POOL, SECOND_POOL), strict=True))
    addresses = [PacsAddress(pacs.ae_title, pacs.port, pool) for pacs, pool in held]
    stand = FeedStand(folder / "stand", addresses)
    for pacs, pool in held:
        pacs.destinations.update(dict.fromkeys(pool, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    world = World(stand, pacses[1], Studies(folder / "studies"), folder)
    yield world, world.studies.new(pacses[0])
    wait(stand.stop())
    for pacs in pacses:
        pacs.stop()


@pytest_twisted.ensureDeferred
async def test_the_archive_of_one_pacs_is_loaded_alone(two_sites: tuple[World, GeneratedStudy]) -> None:
    """`first` is in the PACS of the first site."""
    world, first = two_sites
    stand = world.stand
    second = world.studies.new(world.pacs)
    entries = {}
    for study in (first, second):
        await stand.report(study)
        entries[study.study_uid] = await stand.published_one(study)
    medium = await world.export()
    found = sorted(path.name.partition("_KA")[0] for path in medium.iterdir())
    assert found == ["SITE1", "SITE2"]
    (path,) = medium.glob("SITE2_*")
    await world.new_box()
    status, job, said = await world.command("import", "--site", "site2", str(path))
    assert (status, job["result"]["counts"]["charge"]) == (0, 1), said
    assert stand.query("SELECT site, study_uid FROM kos") == [("site2", second.study_uid)]
    served = await stand.fetch(
        second.study_uid,
        second.series[0].series_uid,
        entries[second.study_uid].unique_id,
        site=stand.sites[1],
    )
    assert served.status == 200
    assert await world.fetched(first, entries[first.study_uid].unique_id) == 404
    # Both are there again once the other is loaded, and the export is what it was.
    await world.command("import", "--site", "site1", str(next(medium.glob("SITE1_*"))))
    assert await world.fetched(first, entries[first.study_uid].unique_id) == 200
    assert digests(await world.export()) == digests(medium)
