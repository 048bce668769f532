"""Homologation mode in the real gateway: test KOS are served while it is on, and never leave it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.kos.manifest import build_manifest
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import POOL, FeedStand, Studies
from tests.integration.waiting import wait
from tests.source.fakes import config, site, structure
from tests.store import samples

pytestmark = pytest.mark.requirement("DB.SO.38")


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies
    folder: Path

    async def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable,
            "-m",
            "drimbox.cli",
            *words,
            "--admin",
            f"{LOOPBACK}:{self.stand.admin_port}",
        ]
        done: subprocess.CompletedProcess[str] = await deferToThread(
            subprocess.run, line, capture_output=True, text=True, timeout=120, check=False
        )
        return done

    def manifest(self, study: GeneratedStudy, uid: str) -> Path:
        """Write a manifest of a study in the PACS that nobody ever published."""
        held = attrs.evolve(
            samples.study(study.study_uid),
            series=tuple(
                attrs.evolve(
                    samples.study().series[0],
                    series_uid=series.series_uid,
                    instances=tuple(
                        attrs.evolve(
                            samples.study().series[0].instances[0],
                            sop_instance_uid=one.sop_instance_uid,
                            sop_class_uid=one.sop_class_uid,
                        )
                        for one in series.instances
                    ),
                )
                for series in study.series
            ),
        )
        here = config()
        data = build_manifest(
            report=samples.report(study.study_uid),
            study=held,
            site=site(),
            structure=structure(),
            wado=here.wado,
            appliance=here.drimbox,
            sop_instance_uid=uid,
            series_uid=f"{uid}.1",
            created=samples.START,
        )
        path = self.folder / f"{uid}.dcm"
        path.write_bytes(data)
        return path

    async def status(self, study: GeneratedStudy, uid: str) -> int:
        result = await self.stand.fetch(study.study_uid, study.series[0].series_uid, uid)
        return result.status

    def switch(self, on: bool) -> None:
        text = self.stand.config.read_text("utf-8").replace("[homologation]\nenabled = true\n", "")
        if on:
            text = "[homologation]\nenabled = true\n" + text
        self.stand.config.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("homologation")
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    stand = FeedStand(folder / "stand", [PacsAddress("PACS-A", pacs.port, POOL)])
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"), folder)
    wait(stand.stop())
    pacs.stop()


def loads(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


@pytest_twisted.ensureDeferred
async def test_a_test_session_from_its_first_to_its_last_step(world: World) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    uid = "2.25.777001"
    path = world.manifest(study, uid)
    sent = len(stand.requests)

    # Off by default: nothing can be loaded.
    refused = await world.command("homologation", "load", str(path))
    assert refused.returncode == 1
    assert "désactivé" in refused.stderr
    assert not any(key.endswith("HOMOLOGATION") for key in await stand.notices())

    await stand.stop_gateway()
    world.switch(on=True)
    await stand.start_gateway()
    await stand.notice_about("actif", "HOMOLOGATION")
    assert await world.status(study, uid) == 404
    done = await world.command("homologation", "load", str(path))
    assert (done.returncode, "1 KOS de test chargés" in done.stdout) == (0, True), done.stderr
    assert (await stand.status())["homologation"] == {"enabled": True, "kos": 1}
    assert await world.status(study, uid) == 200
    assert await world.status(study, "2.25.777002") == 404

    # It is sent nowhere, compared with nothing, exported never.
    medium = world.folder / "medium"
    medium.mkdir()
    exported = await world.command("archive", "export", "--to", str(medium), "--json")
    assert loads(exported)["result"]["files"] == []
    assert (len(stand.requests), await stand.waiting()) == (sent, 0)
    assert stand.query("SELECT count(*) FROM kos") == [(0,)]

    # Switched off, it is not answered for any more; it is said that it is still there.
    await stand.stop_gateway()
    world.switch(on=False)
    await stand.start_gateway()
    assert await world.status(study, uid) == 404
    await stand.notice_about("clear", "HOMOLOGATION")
    cleared = await world.command("homologation", "clear")
    assert "1 KOS de test effacés" in cleared.stdout
    assert not any(key.endswith("HOMOLOGATION") for key in await stand.notices())
    audits = stand.query("SELECT payload FROM audit WHERE event_id = '110113'")
    assert any("Effacement des KOS de test" in row[0] for row in audits)
    state = await world.command("homologation", "status")
    assert state.stdout == "Mode homologation désactivé, 0 KOS de test de 0 patients.\n"


@pytest_twisted.ensureDeferred
async def test_clearing_ends_the_access_at_once(world: World) -> None:
    study = world.studies.new(world.pacs)
    uid = "2.25.777101"
    await world.stand.stop_gateway()
    world.switch(on=True)
    await world.stand.start_gateway()
    await world.command("homologation", "load", str(world.manifest(study, uid)))
    assert await world.status(study, uid) == 200
    await world.command("homologation", "clear")
    assert await world.status(study, uid) == 404
    await world.stand.stop_gateway()
    world.switch(on=False)
    await world.stand.start_gateway()
