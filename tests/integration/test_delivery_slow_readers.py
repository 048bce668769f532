"""A crowd that reads 10 KB a second: bounded memory and disk, a PACS never kept waiting, others unhurt.

Twelve clients for some seconds in CI, fifty for five minutes with DRIMBOX_SOAK; then they read the rest as
fast as it comes, which must be whole. At 10 KB a second the last byte of a large series comes after hours:
long after the PACS has been let go.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import PeerMissing
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy, SimPatient, make_study
from drimbox.source.overflow import BLOCK
from drimbox.trust.transport import SOCKET_BUFFER
from tests.integration.clients import Client, in_own_thread, tls_context
from tests.integration.hospital import ACCEPT, EXPLICIT_LE, PACS_SETTINGS, Hospital, Served, digests
from tests.integration.lanes import WatchedPacs
from tests.integration.probe import Probe, counted
from tests.integration.test_delivery_peers import DCMTK, ORTHANC, RealHospital
from tests.integration.waiting import pause, until, wait

MEGABYTE = 1024 * 1024
SOAK = os.environ.get("DRIMBOX_SOAK") == "1"
#: Clients, how long they are slow, in seconds, and bytes a second.
CROWD, SECONDS, RATE = (50, 300.0, 10_000) if SOAK else (12, 12.0, 10_000)
#: Where there is no disk for them; and with a real PACS, longer than Orthanc waits for an answer.
CUT_SECONDS = 60.0 if SOAK else 7.0
PEER_CROWD, PEER_SECONDS = (50, 240.0) if SOAK else (8, 14.0)
#: Images of half a megabyte in the series that slow clients ask for.
IMAGES = 80 if SOAK else 24
#: Four moves run at a time: together they want more than they may have.
WINDOW, TOTAL_WINDOW = 2 * MEGABYTE, 4 * MEGABYTE
#: What four associations have read before they can be told to stop (`dicom.transport`), twice over.
READ_AHEAD = 4 * 2 * 256 * 1024
#: Seconds a good client may take in the middle of the crowd, whose own answers take half an hour each.
#: Most of them are this process's, which is PACS and clients at once.
UNHURT = 10


class Crowded(Hospital):
    """Two sites with watched PACS, room for the crowd, and a window and a disk to be tested."""

    def __init__(self, folder: Path, *, spool: int, total_spool: int, stall: int = 60) -> None:
        self.watched: list[WatchedPacs] = []
        self.spool, self.total_spool = spool, total_spool
        wado = {**limits(spool, total_spool), "stall_timeout": str(stall)}
        super().__init__(folder, pacses=self._pacses, wado=wado)

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        addresses = []
        for name, pool in (("SLOW", ("S1", "S2", "S3", "S4")), ("OTHER", ("O1", "O2"))):
            pacs = WatchedPacs(name, destinations=dict.fromkeys(pool, (LOOPBACK, port)))
            pacs.start()
            self.watched.append(pacs)
            # Their threads share this process with the clients': a busy machine may keep us waiting.
            timeouts = dict.fromkeys(("first_image_timeout", "gap_timeout", "query_timeout"), "60")
            settings = {**PACS_SETTINGS, **timeouts}
            addresses.append(PacsAddress(pacs.ae_title, pacs.port, pool, settings=settings))
        return addresses

    async def stop(self) -> None:
        await super().stop()
        for pacs in self.watched:
            pacs.stop()


def limits(spool: int, total_spool: int) -> dict[str, str]:
    return {
        "window": str(WINDOW),
        "total_window": str(TOTAL_WINDOW),
        "spool": str(spool),
        "total_spool": str(total_spool),
        "max_deliveries": "80",
        "max_per_consumer": "80",
        "queue_timeout": "300",
    }


def large(folder: Path, seed: int, *, images: int = IMAGES) -> GeneratedStudy:
    """Half a megabyte an image."""
    patient = SimPatient(id=f"IPP{seed}", name=f"LENT^{seed}")
    return make_study(
        folder,
        instances=images,
        rows=512,
        columns=512,
        transfer_syntax=EXPLICIT_LE,
        patient=patient,
        seed=seed,
        distinct=8,
    )


@attrs.define
class Peaks:
    """The most that was seen, in bytes."""

    window: float = 0
    spool: float = 0
    memory: float = 0


async def watch(probe: Probe, peaks: Peaks, until_done: Deferred[Any]) -> None:
    """Sample the gateway until something is done."""
    while not until_done.called:
        gauges = await deferToThread(probe.gauges)
        peaks.window = max(peaks.window, gauges["drimbox_window_bytes"])
        peaks.spool = max(peaks.spool, gauges["drimbox_spool_bytes"])
        peaks.memory = max(peaks.memory, probe.resident())
        await pause(0.1)


def slow(hospital: Hospital, context: ssl.SSLContext, served: Served, seconds: float) -> Client:
    """Ask, read at 10 KB a second for a while, then everything that is left; return the client."""
    with Client(hospital, context, site=served.site, timeout=240) as client:
        # Nothing else: dcmqrscp fails a whole move that may be JPEG-LS before it sends it as it is.
        client.send(hospital.request(served).replace(b"syntax=*", b"syntax=" + EXPLICIT_LE.encode()))
        client.read_at(RATE, seconds=seconds)
        client.early = client.received
        client.read_all()
        return client


def is_whole(client: Client, served: Served) -> bool:
    """Say whether an answer is complete; if it says so, it must be."""
    if client.complete:
        assert client.status == 200
        assert sorted(client.digests) == sorted(digests(served.study).values())
    return client.complete


async def fetched(hospital: Hospital, served: Served) -> float:
    """Ask as a good client, check everything, return how long it took."""
    accept = (ACCEPT.format(EXPLICIT_LE),)
    result = await hospital.fetch(served, keep="sha256", timeout=120.0, accept=accept)
    assert result.complete, (result.status, result.problem, result.error)
    assert len(result.parts) == len(served.study.instances)
    return float(result.t_total)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Crowded, Served, Served, Served]]:
    """The hospital, the series for the slow, and one that others ask for at each site."""
    folder = tmp_path_factory.mktemp("crowded")
    # The kernel holds megabytes for each client: at 10 KB a second they do not leave it in eight seconds.
    hospital = Crowded(folder, spool=256 * MEGABYTE, total_spool=4096 * MEGABYTE, stall=8)
    try:
        with counted(folder):
            wait(hospital.start())
        studies = [
            large(folder / "slow", 801),
            *(large(folder / f"{n}", 802 + n, images=10) for n in (0, 1)),
        ]
        for study, site in zip(studies, (0, 0, 1), strict=True):
            hospital.watched[site].load(study)
        crowd, same, other = (
            wait(hospital.publish(study, site, load=False))
            for study, site in zip(studies, (0, 0, 1), strict=True)
        )
        yield hospital, crowd, same, other
    finally:
        wait(hospital.stop())


@pytest.mark.slow
@pytest.mark.requirement("DB.SO.32", "DB.SO.35", "DB.SO.85")
@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_a_crowd_of_slow_readers_costs_what_is_configured_and_hurts_nobody(
    crowded: tuple[Crowded, Served, Served, Served],
) -> None:
    hospital, served, same, other = crowded
    probe, peaks, pacs = Probe(hospital), Peaks(), hospital.watched[0]
    context = tls_context(hospital)
    usual = [await fetched(hospital, each) for each in (same, other, same, other)]
    before = await deferToThread(probe.holdings)
    finals, start = pacs.finals[0], time.monotonic()
    reading = gatherResults(
        [in_own_thread(lambda: slow(hospital, context, served, SECONDS)) for _ in range(CROWD)],
        consumeErrors=True,
    )
    watching = Deferred.fromCoroutine(watch(probe, peaks, reading))
    # At the other site nobody waits, not even while the crowd's moves run.
    meanwhile = []
    while pacs.finals[0] < finals + CROWD:
        meanwhile.append(await fetched(hospital, other))
        assert time.monotonic() < start + SECONDS, "the PACS is kept waiting"
        await pause(0.2)
    moved = time.monotonic() - start
    # The titles are back at the PACS's pace: the crowd has its answers before it, others take the titles.
    await until(lambda: all_free(hospital), what="AE titles given back")
    after = [await fetched(hospital, each) for each in (same, other, same, other)]
    assert not reading.called
    clients: list[Client] = await reading
    await watching
    early = max(client.early for client in clients)
    print(
        f"{CROWD} moves in {moved:.1f} s; good clients {max(usual):.2f} s before, {max(meanwhile):.2f} s "
        f"during the moves, {max(after):.2f} s after; {early} bytes read slowly; {peaks}; {before}"
    )
    assert early < served.study.size / 4
    assert all(is_whole(client, served) for client in clients), [client.error for client in clients]
    assert max(meanwhile + after) < UNHURT
    # What is counted as memory, what waits in user space for each socket, and the disk.
    assert TOTAL_WINDOW / 2 < peaks.window <= TOTAL_WINDOW + READ_AHEAD
    assert WINDOW < peaks.spool <= min(hospital.total_spool, CROWD * hospital.spool)
    assert peaks.memory - before.memory < TOTAL_WINDOW + CROWD * (SOCKET_BUFFER + BLOCK) + 32 * MEGABYTE
    # Never a C-MOVE that failed because we paused it.
    assert set(pacs.finals) == {0}
    assert not pacs.counts["refused"]
    assert not pacs.counts["move-aborted"]
    assert not pacs.overlaps
    await deferToThread(probe.at_rest)
    await until(lambda: probe.descriptors() == before.descriptors, what="descriptors given back")


async def all_free(hospital: Hospital, site: int = 0) -> bool:
    return set((await hospital.titles(site)).values()) == {"free"}


@pytest.mark.slow
@pytest.mark.requirement("DB.SO.32", "DB.SO.35")
@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("full", ["of one answer", "of all"])
@pytest_twisted.ensureDeferred
async def test_a_slow_reader_for_whom_there_is_no_disk_is_cut_and_the_others_go_on(
    tmp_path: Path, full: str
) -> None:
    """Room on disk for a third of the series, or for a third of the crowd."""
    study = large(tmp_path / "slow", 811, images=24)
    room = study.size // 3 if full == "of one answer" else CROWD * study.size // 3
    hospital = Crowded(tmp_path, spool=room, total_spool=CROWD * study.size // 3)
    try:
        with counted(tmp_path):
            await hospital.start()
        few = large(tmp_path / "few", 812, images=10)
        hospital.watched[0].load(study)
        hospital.watched[1].load(few)
        served = await hospital.publish(study, 0, load=False)
        other = await hospital.publish(few, 1, load=False)
        probe, peaks, context = Probe(hospital), Peaks(), tls_context(hospital)
        await fetched(hospital, other)
        before = await deferToThread(probe.holdings)
        done: list[Client] = []
        reading = gatherResults(
            [
                in_own_thread(lambda: slow(hospital, context, served, CUT_SECONDS)).addCallback(done.append)
                for _ in range(CROWD)
            ],
            consumeErrors=True,
        )
        watching = Deferred.fromCoroutine(watch(probe, peaks, reading))
        # In the middle of them one who reads: a disk that is full is nothing to him.
        assert await fetched(hospital, other) < UNHURT
        await reading
        await watching
        whole = [client for client in done if is_whole(client, served)]
        print(f"{full}: {len(whole)} of {CROWD} whole; {peaks}; {before}")
        for client in done:
            assert client.complete or client.error.startswith("connection"), client.error
        rows = hospital.database("select payload from audit where payload like '%RAD-107%'")
        reasons = Counter(json.loads(payload)["event"].get("outcome_description") for (payload,) in rows)
        cut = sum(count for why, count in reasons.items() if why and "sur disque plein" in why)
        assert cut == CROWD - len(whole) > 0, reasons
        # Nobody had to be cut while there was room for him.
        assert len(whole) == 0 if full == "of one answer" else len(whole) >= CROWD // 4
        assert peaks.spool <= hospital.total_spool
        assert peaks.window <= TOTAL_WINDOW + READ_AHEAD
        await deferToThread(probe.at_rest)
        await until(lambda: probe.descriptors() == before.descriptors, what="descriptors given back")
        await fetched(hospital, served)
    finally:
        await hospital.stop()


# -- with programs not ours ------------------------------------------------------------------------


class CrowdedPeers(RealHospital):
    """dcmqrscp and a stock Orthanc, and the patience that goes with them by default."""

    def __init__(self, folder: Path) -> None:
        self.peers = []
        wado = limits(spool=256 * MEGABYTE, total_spool=4096 * MEGABYTE)
        Hospital.__init__(self, folder, pacses=self._pacses, wado=wado)

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        timeouts = dict.fromkeys(("first_image_timeout", "gap_timeout", "query_timeout"), "60")
        return [
            attrs.evolve(each, settings={**each.settings, "patience": "5", **timeouts})
            for each in super()._pacses(port)
        ]


@pytest.mark.slow
@pytest.mark.peer("dcmqrscp", "Orthanc")
@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("site", [DCMTK, ORTHANC], ids=["dcmqrscp", "Orthanc"])
@pytest_twisted.ensureDeferred
async def test_no_real_pacs_gives_a_move_up_because_of_slow_readers(
    peers: CrowdedPeers, tmp_path: Path, site: int
) -> None:
    """Stock Orthanc drops a whole move 10 s after an instance without an answer."""
    study = large(tmp_path / "slow", 821 + site)
    few = large(tmp_path / "few", 823 + site, images=10)
    for each in (study, few):
        await deferToThread(peers.peers[site].load, list(each.files))
    served, other = [await peers.publish(each, site) for each in (study, few)]
    probe, peaks, context = Probe(peers), Peaks(), tls_context(peers)
    usual = max([await fetched(peers, other) for _ in range(2)])
    before = await deferToThread(probe.holdings)
    log = peers.peers[site].log
    said, start = log.stat().st_size, time.monotonic()
    reading = gatherResults(
        [in_own_thread(lambda: slow(peers, context, served, PEER_SECONDS)) for _ in range(PEER_CROWD)],
        consumeErrors=True,
    )
    watching = Deferred.fromCoroutine(watch(probe, peaks, reading))
    await until(lambda: probe.gauges()["drimbox_deliveries_running"] == PEER_CROWD, what="a crowd")
    await until(lambda: all_free(peers, site), seconds=PEER_SECONDS, what="AE titles given back")
    moved = time.monotonic() - start
    after = max([await fetched(peers, other) for _ in range(2)])
    assert not reading.called
    clients: list[Client] = await reading
    await watching
    print(
        f"{PEER_CROWD} moves in {moved:.1f} s; good client {usual:.2f} s before, {after:.2f} s among them; "
        f"{max(client.early for client in clients)} bytes read slowly; {peaks}; {before}"
    )
    assert all(is_whole(client, served) for client in clients), [client.error for client in clients]
    assert after < UNHURT
    assert peaks.window <= TOTAL_WINDOW + READ_AHEAD
    complaints = [line for line in log.read_bytes()[said:].splitlines() if line.startswith((b"E", b"W"))]
    # dcmqrscp would like every move to be on an association that could find too.
    assert not [line for line in complaints if b"Move Presentation Context but no Find" not in line]
    await deferToThread(probe.at_rest)
    await until(lambda: probe.descriptors() == before.descriptors, what="descriptors given back")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrowdedPeers]:
    folder = tmp_path_factory.mktemp("peers")
    try:
        hospital = CrowdedPeers(folder)
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        with counted(folder):
            wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())
