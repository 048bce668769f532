"""The PACS test on a gateway process: real and simulated PACS, the `drimbox` command, deliveries first."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.assembly import Assembly
from drimbox.clock import SystemClock
from drimbox.configfile import load
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc, Peer, free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress, Stand, _section, _text
from drimbox.sim.studies import GeneratedStudy, make_study
from drimbox.stores import Stores
from drimbox.trust.whitelist import WhitelistHolder
from tests.integration import operator
from tests.integration.hospital import data_set
from tests.integration.waiting import pause, until
from tests.operator_files import good_config

POOL = ("DBX1", "DBX2", "DBX3")


class SpeedStand(Stand):
    """`Stand` whose sites have a reference study."""

    def __init__(self, folder: Path, pacs: PacsAddress, study: str, port: int, **extra: Any) -> None:
        super().__init__(folder, reactor, [pacs], dicom_port=port, extra=extra)
        self._study = study

    def _site(self, number: int, pacs: PacsAddress) -> list[str]:
        speedtest = _section("[site.speedtest]", {"study": _text(self._study)})
        return [*super()._site(number, pacs), *speedtest]

    async def drimbox(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `drimbox speedtest` in a process of its own, as an operator would."""
        return await operator.drimbox(self.config, "speedtest", *arguments)

    async def titles(self) -> set[str]:
        """Return the states of the AE titles."""
        _, body = await self.admin("/status")
        return set(json.loads(body)["sites"][0]["ae_titles"].values())

    def audited(self) -> list[str]:
        """Return the types of the audited events, oldest first."""
        path = self.folder / "state" / "drimbox.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT payload FROM audit ORDER BY id").fetchall()
        return [json.loads(row[0])["event"]["event_type"][0] for row in rows]

    async def running(self) -> bool:
        """Say whether a test is on its way."""
        _, body = await self.admin("/speedtest")
        found: bool = json.loads(body)["sites"][0]["running"]
        return found


def size_of(study: GeneratedStudy) -> int:
    """Bytes of all data sets."""
    return sum(len(data_set(path.read_bytes())) for path in study.files)


@pytest.mark.requirement("DB.SO.102", "DB.SO.156", "DB.SO.87")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dcmqrscp", marks=pytest.mark.peer("dcmqrscp")),
        pytest.param("orthanc", marks=pytest.mark.peer("Orthanc")),
    ],
)
@pytest_twisted.inlineCallbacks
def test_a_real_pacs_is_measured_by_the_command(name: str, tmp_path: Path) -> object:
    # dcmqrscp proposes the syntax it is told to and converts nothing: it must hold what it proposes.
    syntax = JPEGLSLossless if name == "dcmqrscp" else ExplicitVRLittleEndian
    study = make_study(
        tmp_path / "study", instances=40, series=2, rows=64, columns=64, transfer_syntax=syntax
    )
    port = free_port()
    destinations = dict.fromkeys(POOL, (LOOPBACK, port))
    peer: Peer
    if name == "dcmqrscp":
        peer = Dcmqrscp(tmp_path / "peer", "PACS", move_destinations=destinations)
    else:
        peer = Orthanc(tmp_path / "peer", "PACS", modalities=destinations, clients=["DRIMBOX"])
    yield deferToThread(peer.start)
    stand = SpeedStand(tmp_path / "stand", PacsAddress("PACS", peer.port, POOL), study.study_uid, port)

    async def body() -> None:
        await stand.start()
        await stand.start_gateway()
        absent = await stand.drimbox("--site", "site1")
        assert absent.returncode == 1
        assert "E1002" in absent.stdout
        await deferToThread(peer.load, study.files)
        began = time.monotonic()
        done = await stand.drimbox("--site", "site1", "--json")
        lasted = time.monotonic() - began
        assert done.returncode == 0, done.stdout + done.stderr
        (measure,) = json.loads(done.stdout)
        assert (measure["images"], measure["error"]) == (40, "")
        # Orthanc writes the data set anew, with the same content.
        assert measure["bytes"] == pytest.approx(size_of(study), rel=0 if name == "dcmqrscp" else 0.02)
        assert 0 < measure["latency"] < lasted
        assert 0 < measure["duration"] < lasted
        assert measure["latency"] + measure["duration"] < lasted
        await until(lambda: _free(stand), what="every AE title free")
        shown = await stand.drimbox("results")
        assert shown.stdout.splitlines()[1].split()[1:4] == ["site1", "2", "1"]
        raw = (await stand.drimbox("results", "--csv")).stdout.splitlines()
        assert len(raw) == 3
        assert f"{measure['latency']}" in raw[1]
        await deferToThread(peer.stop)
        down = await stand.drimbox()
        assert down.returncode == 1
        assert "E1004" in down.stdout
        _, exposed = await stand.admin("/metrics")
        latency = f'drimbox_speedtest_latency_seconds{{site="site1"}} {measure["latency"]}'
        assert latency in exposed.decode()
        # The reference study and its patient are nobody's business.
        for said in (done, shown, down, absent):
            assert study.study_uid not in said.stdout + said.stderr

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        yield deferToThread(peer.stop)


async def _free(stand: SpeedStand) -> bool:
    return await stand.titles() == {"free"}


def slow_world(
    tmp_path: Path, pool: Sequence[str], **behaviour: Any
) -> tuple[SimulatedPacs, SpeedStand, GeneratedStudy]:
    """A PACS whose reference study takes half a minute, and a small study anybody may ask for."""
    reference = make_study(tmp_path / "reference", instances=120, rows=8, columns=8, seed=1)
    wanted = make_study(tmp_path / "wanted", instances=2, rows=8, columns=8, seed=2)
    port = free_port()
    pacs = SimulatedPacs("PACS", destinations=dict.fromkeys(pool, (LOOPBACK, port)))
    pacs.load(reference)
    pacs.load(wanted)
    pacs.behaviour = Behaviour(pause=0.25, **behaviour)
    pacs.start()
    stand = SpeedStand(
        tmp_path / "stand",
        PacsAddress("PACS", pacs.port, pool),
        reference.study_uid,
        port,
        wado={"reference_study": _text(wanted.study_uid)},
    )
    return pacs, stand, wanted


@pytest.mark.requirement("DB.SO.102", "DB.SO.35")
@pytest_twisted.inlineCallbacks
def test_somebody_who_wants_images_does_not_wait_for_a_test(tmp_path: Path) -> object:
    pacs, stand, wanted = slow_world(tmp_path, POOL[:1])

    async def body() -> None:
        await stand.start()
        await stand.start_gateway()
        testing = Deferred.fromCoroutine(stand.drimbox())
        await until(stand.running, what="the test begun")
        await pause(1.0)
        assert await stand.titles() == {"leased"}
        began = time.monotonic()
        result = await stand.fetch(wanted.study_uid, wanted.series[0].series_uid, "2.25.1")
        assert (result.status, len(result.parts)) == (200, 2)
        # The test alone would go on for half a minute.
        assert time.monotonic() - began < 15
        said = await testing
        assert said.returncode == 1
        assert "E1003" in said.stdout
        assert "une délivrance attend" in said.stdout
        assert len(pacs.seen("cancel")) == 1

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        pacs.stop()


@pytest_twisted.inlineCallbacks
def test_a_stop_ends_a_running_test(tmp_path: Path) -> object:
    pacs, stand, _ = slow_world(tmp_path, POOL)

    async def body() -> None:
        await stand.start()
        await stand.start_gateway()
        testing = Deferred.fromCoroutine(stand.drimbox())
        await until(stand.running, what="the test begun")
        # Before its first image a PACS that is stopped only finds the door shut, and tells nothing of it.
        await until(lambda: pacs.seen("stored"), what="the first image")
        began = time.monotonic()
        await stand.stop_gateway()
        assert time.monotonic() - began < 20
        assert (await testing).returncode == 1
        # It was told, and told again by the end of either association, whichever it saw first.
        await until(
            lambda: (
                pacs.seen("cancel", "move-aborted")
                or any(event.details["status"] is None for event in pacs.seen("stored"))
            ),
            what="the PACS told",
        )
        assert len(pacs.seen("stored")) < 120
        # Started, asked for a test, stopped in order.
        assert stand.audited() == ["110120", "110132", "110121"]
        assert '"level": "critical"' not in stand.log.read_text("utf-8")

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        pacs.stop()


@pytest.mark.requirement("DB.SO.155")
@pytest.mark.parametrize("enabled", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_period_is_only_served_where_it_is_enabled(tmp_path: Path, enabled: bool) -> None:
    extra = f'\n[site.speedtest]\nstudy = "2.25.1"\nenabled = {str(enabled).lower()}\nperiod = "2h"\n'
    config = load(good_config(tmp_path, extra=extra))
    clock = SystemClock()
    whitelist = WhitelistHolder(config.trust, config.sites, clock.now)
    stores = Stores(config, reactor, clock)
    await stores.open()
    try:
        assembly = Assembly(config, reactor, clock, stores, whitelist, deferToThread, lambda *_: None)
    finally:
        await stores.close()
    periods = {each.name: each._period for each in assembly.periodics if each.name.startswith("speedtest-")}
    assert periods == {"speedtest-purge": 86400.0} | ({"speedtest-radio": 7200.0} if enabled else {})
