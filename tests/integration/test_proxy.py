"""A whole gateway behind a real proxy (tinyproxy): nothing outside is reached any other way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.web import resource, server

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress, free_port
from drimbox.sim.studies import make_study
from tests.integration.feed_stand import POOL, FeedStand
from tests.integration.operator import drimbox
from tests.integration.waiting import until, wait

pytestmark = [
    pytest.mark.requirement("DB.SO.32", "DB.SO.111"),
    pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="needs the package tinyproxy"),
]
web: Any = reactor
PASSWORD = "un-mot-de-passe"


class Crl(resource.Resource):
    """Where the authority publishes its list, in plain HTTP."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.asked: list[bytes | None] = []

    def render_GET(self, request: Any) -> bytes:
        self.asked.append(request.getHeader(b"via"))
        return self.path.read_bytes()


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    log: Path
    crl: Crl
    port: int
    process: subprocess.Popen[bytes]

    def reached(self) -> set[int]:
        """Return the ports to which tunnels were opened."""
        text = self.log.read_text("utf-8", "replace")
        return {int(found) for found in re.findall(r"CONNECT [^ :]+:([0-9]+) HTTP", text)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("proxy")
    port, crl_port, dicom = free_port(), free_port(), free_port()
    log = folder / "tinyproxy.log"
    log.touch()
    (folder / "tinyproxy.conf").write_text(
        f'Port {port}\nListen {LOOPBACK}\nTimeout 60\nLogFile "{log}"\nLogLevel Info\nMaxClients 50\n'
        f"Allow {LOOPBACK}\nBasicAuth drimbox {PASSWORD}\n"
    )
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "password").chmod(0o600)
    process = subprocess.Popen(["tinyproxy", "-d", "-c", str(folder / "tinyproxy.conf")])
    pacs = SimulatedPacs("PACS", destinations=dict.fromkeys(POOL, (LOOPBACK, dicom)))
    pacs.start()
    stand = FeedStand(
        folder / "stand",
        [PacsAddress("PACS", pacs.port, POOL)],
        dicom_port=dicom,
        extra={
            "proxy": {
                "url": f'"http://{LOOPBACK}:{port}"',
                "user": '"drimbox"',
                "password_file": f'"{folder / "password"}"',
            },
            "trust": {"crl_urls": f'["http://{LOOPBACK}:{crl_port}/crl"]'},
        },
    )
    wait(stand.start())
    crl = Crl(stand.pki.crl_der)
    site = server.Site(crl)  # type: ignore[no-untyped-call]
    listening = web.listenTCP(crl_port, site, interface=LOOPBACK)
    wait(stand.start_gateway())
    world = World(stand, pacs, log, crl, port, process)
    yield world
    wait(stand.stop())
    pytest_twisted.blockon(listening.stopListening())
    pacs.stop()
    # Not the first one: a test has ended that, and started another.
    world.process.terminate()
    world.process.wait(20)


@pytest_twisted.ensureDeferred
async def test_everything_goes_through_it(world: World, tmp_path: Path) -> None:
    stand = world.stand
    assert world.crl.asked
    assert all(via is not None and b"tinyproxy" in via for via in world.crl.asked)
    study = make_study(tmp_path, instances=2, rows=64, columns=64, seed=21)
    world.pacs.load(study)
    await stand.report(study)
    entry = await stand.published_one(study)
    served = await stand.fetch(study.study_uid, study.series[0].series_uid, entry.unique_id)
    assert (served.status, len(served.parts)) == (200, 2)
    assert world.reached() >= {stand.dmp.port, stand.psc.port}
    done = await drimbox(stand.config, "doctor", "--json", "--study", study.study_uid)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, [each for each in findings if each["state"] == "error"]


@pytest_twisted.ensureDeferred
async def test_without_it_reports_wait_and_go_once_it_is_back(world: World, tmp_path: Path) -> None:
    stand = world.stand
    world.process.terminate()
    world.process.wait(20)
    study = make_study(tmp_path, instances=2, rows=64, columns=64, seed=22)
    world.pacs.load(study)
    try:
        before = len(stand.requests)
        await stand.report(study)
        done = await drimbox(stand.config, "doctor", "--json", "--study", study.study_uid)
        broken = {
            each["check"]: each["text"]
            for each in json.loads(done.stdout)["findings"]
            if each["state"] == "error"
        }
        assert done.returncode == 1
        assert set(broken) == {"dmp", "psc", "crl"}
        assert all("proxy injoignable" in text for text in broken.values()), broken
        assert len(stand.requests) == before, "nothing was sent another way"
    finally:
        world.process = subprocess.Popen(["tinyproxy", "-d", "-c", str(world.log.with_suffix(".conf"))])
    await stand.published_one(study)
    await until(lambda: len(stand.kos(study)) == 1, what="one KOS")
