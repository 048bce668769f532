"""The client is gone, at whatever state of its request: nothing of it is left, and the next is served.

Four lanes (`lanes`) each ask and leave, state after state in random order, against a gateway in a process
of its own: some hundreds of requests in CI, ten thousand with DRIMBOX_SOAK. Afterwards the process is
what it was before: descriptors, objects, memory, AE titles.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import PeerMissing
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import SimPatient, make_study
from tests.integration.clients import Client, leave_in_handshake, tls_context
from tests.integration.hospital import (
    JPEG_LS,
    PACS_SETTINGS,
    Hospital,
    Served,
    behave,
    digests,
    received,
)
from tests.integration.lanes import HeldIntrospection, Holding, Lane, WatchedPacs
from tests.integration.probe import Holdings, Probe, counted
from tests.integration.test_delivery_peers import DCMTK, ORTHANC, RealHospital
from tests.integration.waiting import pause, until, wait

MEGABYTE = 1024 * 1024
LANES = 4
#: How often each state comes up; the stubborn PACS keeps its title for many seconds.
WEIGHTS = {
    "in the handshake": 4,
    "in the request": 3,
    "during introspection": 4,
    "waiting for a title": 1,
    "before the first image": 4,
    "between images": 4,
    "inside an image": 4,
    "paused": 3,
    "spooled": 3,
    "before the closing boundary": 4,
    "transcoding": 3,
    "stubborn PACS": 0.3,
    "not at all": 2,
}


class Lanes(Hospital):
    """One gateway, a watched PACS with two AE titles for each lane."""

    def __init__(self, folder: Path) -> None:
        self.watched: list[WatchedPacs] = []
        super().__init__(
            folder,
            pacses=self._pacses,
            wado={
                "queue_timeout": "20",
                "window": str(MEGABYTE),
                "total_window": str(32 * MEGABYTE),
                "spool": str(64 * MEGABYTE),
                "total_spool": str(256 * MEGABYTE),
                "max_deliveries": "64",
                "max_per_consumer": "64",
            },
            # One, so that there are as many before as after.
            more={"transcoding": {"workers": "1"}},
        )

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        addresses = []
        for number in range(1, LANES + 1):
            pool = (f"L{number}A", f"L{number}B")
            pacs = WatchedPacs(f"PACS{number}", destinations=dict.fromkeys(pool, (LOOPBACK, port)))
            pacs.start()
            self.watched.append(pacs)
            settings = {
                **PACS_SETTINGS,
                "patience": "0.2",
                "first_image_timeout": "10",
                "gap_timeout": "10",
            }
            addresses.append(PacsAddress(pacs.ae_title, pacs.port, pool, settings=settings))
        return addresses

    async def stop(self) -> None:
        await super().stop()
        for pacs in self.watched:
            pacs.stop()


async def hold(hospital: Lanes, folder: Path, site: int) -> Holding:
    """Make the three series of a lane, put them into its PACS, publish them."""
    held = []
    for number, how in enumerate(
        (
            {"instances": 4, "rows": 64, "columns": 64},
            {"instances": 3, "rows": 2048, "columns": 1024},
            {"instances": 4, "rows": 1024, "columns": 1024, "transfer_syntax": JPEG_LS},
        )
    ):
        patient = SimPatient(id=f"IPP{site}{number}", name=f"VOIE{site}^{number}")
        study = make_study(
            folder / f"{site}-{number}", patient=patient, seed=700 + 10 * site + number, **how
        )
        hospital.watched[site].load(study)
        held.append(await hospital.publish(study, site, load=False))
    return Holding(*held)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lanes, list[Lane]]]:
    folder = tmp_path_factory.mktemp("lanes")
    hospital = Lanes(folder)
    try:
        with counted(folder):
            wait(hospital.start())
        held, context = HeldIntrospection(hospital), tls_context(hospital)
        yield (
            hospital,
            [
                Lane(hospital, site, pacs, wait(hold(hospital, folder, site)), context, held, seed=site)
                for site, pacs in enumerate(hospital.watched)
            ],
        )
    finally:
        wait(hospital.stop())


def along(lane: Lane, states: Sequence[str]) -> None:
    for state in states:
        lane.go(state)


async def leave_everywhere(all_lanes: Sequence[Lane], rounds: Sequence[Sequence[str]]) -> None:
    """Each lane goes through its states, all lanes at once."""
    await gatherResults(
        [deferToThread(along, lane, states) for lane, states in zip(all_lanes, rounds, strict=True)],
        consumeErrors=True,
    )


def drawn(count: int, seed: int) -> list[str]:
    """Every state, then states by weight, `count` in all, shuffled."""
    chance = random.Random(seed)
    states = list(WEIGHTS)
    states += chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=max(0, count - len(states)))
    chance.shuffle(states)
    return states


def soak() -> bool:
    return os.environ.get("DRIMBOX_SOAK") == "1"


async def served_fast(hospital: Hospital, served: Sequence[Served]) -> float:
    """Ask for all of these at once, as good clients; return the longest time, in seconds."""
    results: list[Any] = await gatherResults(
        [Deferred.fromCoroutine(hospital.fetch(each, timeout=20.0)) for each in served]
    )
    for each, result in zip(served, results, strict=True):
        assert result.complete, (result.status, result.problem, result.error)
        assert received(result) == digests(each.study)
    return max(result.t_total for result in results)


def unharmed(hospital: Hospital) -> None:
    """Check that the gateway saw no bug of its own."""
    text = hospital.stand.log.read_text("utf-8", "replace")
    for word in ('"critical"', '"error"', "Traceback", "Unhandled"):
        assert word not in text, text[max(0, text.index(word) - 500) :][:3000]


def same(before: Holdings, after: Holdings, *, memory: int) -> None:
    """Check that the process holds what it held before, and at most `memory` bytes more."""
    # A few come and go with caches of statements; what leaks at one state leaks a dozen times.
    grown = after.more_than(before, tolerance=3)
    # Timers that were cancelled stay in the reactor's heap until they are half of it.
    grown.pop("twisted.internet.base.DelayedCall", None)
    assert not grown
    assert after.descriptors == before.descriptors
    assert after.processes == before.processes
    assert after.memory - before.memory < memory, (before, after)


@pytest.mark.threat("memory leaks by repeated requests")
@pytest.mark.slow
@pytest.mark.requirement("DB.SO.85", "DB.SO.32")
@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_nothing_is_left_of_clients_gone_at_every_state(lanes: tuple[Lanes, list[Lane]]) -> None:
    """240 requests; 10,000 with DRIMBOX_SOAK=1."""
    hospital, all_lanes = lanes
    probe = Probe(hospital)
    small = [lane.holding.small for lane in all_lanes] * 2
    # Everything has been used once before it is counted: threads, workers, caches, connections.
    await leave_everywhere(all_lanes, [drawn(20, seed) for seed in range(LANES)])
    await deferToThread(probe.at_rest)
    usual = await served_fast(hospital, small)
    before = await deferToThread(probe.holdings)
    made: Counter[str] = Counter()
    total, seed, start = 10_000 if soak() else 240, 100, time.monotonic()
    while made.total() < total:
        for lane in all_lanes:
            lane.made.clear()
        count = min(500, total - made.total()) // LANES + 1
        await leave_everywhere(all_lanes, [drawn(count, seed + number) for number in range(LANES)])
        made.update(sum((lane.made for lane in all_lanes), Counter()))
        rest = await deferToThread(probe.at_rest)
        after = await deferToThread(probe.holdings)
        seconds = time.monotonic() - start
        print(f"{made.total()} requests in {seconds:.0f} s, at rest {rest:.1f} s later: {after}")
        seed += LANES
    print(f"before: {before}; {dict(made)}")
    assert set(made) == set(WEIGHTS)
    same(before, after, memory=12 * MEGABYTE)
    again = await served_fast(hospital, small)
    print(f"eight good clients at once: {usual:.2f} s before, {again:.2f} s after")
    assert again < 2 * usual + 3
    unharmed(hospital)
    for pacs in hospital.watched:
        assert not pacs.overlaps
        assert pacs.counts["cancel"] > 0
        # None had to be aborted: every association was read on, to the answer of the C-STORE in flight.
        assert not pacs.counts["move-aborted"]


def held(gauges: Mapping[str, float]) -> bool:
    """Say whether the gateway keeps for a client what it does not read."""
    return gauges["drimbox_window_bytes"] > MEGABYTE or gauges["drimbox_spool_bytes"] > 0


@pytest_twisted.ensureDeferred
async def test_what_was_paused_is_read_on_for_who_left(lanes: tuple[Lanes, list[Lane]]) -> None:
    """A PACS blocked in the middle of an image would not look at a C-CANCEL, only at an abort."""
    hospital, all_lanes = lanes
    probe, pacs, served = Probe(hospital), hospital.watched[-1], all_lanes[-1].holding.long
    await deferToThread(probe.at_rest)
    pacs.behaviour = behave()
    before, cancelled, context = pacs.last(), pacs.finals[0xFE00], tls_context(hospital)

    def ask_and_wait() -> bool:
        with Client(hospital, context, site=served.site) as client:
            client.send(hospital.request(served))
            pacs.wait(served.uid, before, "move")
            limit = time.monotonic() + 20
            while not held(gauges := probe.gauges()):
                assert time.monotonic() < limit, f"nothing held: {gauges}"
            client.leave(reset=True)
            return not gauges["drimbox_spool_bytes"]

    # On a busy machine the disk may take over before we have looked.
    assert await deferToThread(lambda: any(ask_and_wait() for _ in range(5)))
    assert await deferToThread(probe.at_rest) < 4
    assert pacs.finals[0xFE00] > cancelled
    assert not pacs.counts["move-aborted"]


@pytest.mark.requirement("DB.SO.85")
@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_a_title_is_used_again_when_the_old_move_is_over_and_not_before(
    lanes: tuple[Lanes, list[Lane]],
) -> None:
    """Both titles of a lane are left to moves that never end: the next request waits for their end."""
    hospital, all_lanes = lanes
    lane, pacs = all_lanes[0], hospital.watched[0]
    await deferToThread(Probe(hospital).at_rest)
    pacs.behaviour = behave(final="never")
    gone = [deferToThread(lane.leave_after_all_images) for _ in range(2)]
    await gatherResults(gone)
    start = time.monotonic()
    pacs.behaviour = behave()
    asked = Deferred.fromCoroutine(hospital.fetch(lane.holding.small, timeout=30.0))
    seen: set[tuple[str, ...]] = set()
    while not asked.called:
        seen.add(tuple(sorted((await hospital.titles()).values())))
        await pause(0.05)
    result: Any = await asked
    assert result.complete, (result.status, result.problem)
    assert received(result) == digests(lane.holding.small.study)
    # Five seconds of grace, then a second without a word.
    assert 5.5 < time.monotonic() - start < 20
    assert ("quarantined", "quarantined") in seen
    assert not pacs.overlaps
    await hospital.idle()


# -- with programs not ours ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHospital]:
    folder = tmp_path_factory.mktemp("real")
    try:
        hospital = RealHospital(folder)
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        with counted(folder):
            wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


def family(pid: int) -> tuple[int, int]:
    """Return how many children a process has, and how many descriptors."""
    folder = Path(f"/proc/{pid}")
    children = (folder / "task" / str(pid) / "children").read_text().split()
    return len(children), len(list((folder / "fd").iterdir()))


def leave_anywhere(hospital: Hospital, context: Any, served: Served, chance: random.Random) -> None:
    """Ask and leave: in the handshake, after the request, or after any number of bytes."""
    how, reset = chance.random(), chance.random() < 0.5
    if how < 0.1:
        where = chance.choice(["hello", "after hello", "answer"])
        leave_in_handshake(hospital, context, where, site=served.site, reset=reset)
        return
    with Client(hospital, context, site=served.site) as client:
        client.send(hospital.request(served))
        wanted = 0 if how < 0.2 else chance.randrange(1, served.study.size)
        client.read_until(lambda: client.received >= wanted)
        client.leave(reset=reset)


@pytest.mark.slow
@pytest.mark.peer("dcmqrscp", "Orthanc")
@pytest.mark.requirement("DB.SO.85")
@pytest.mark.parametrize("site", [DCMTK, ORTHANC], ids=["dcmqrscp", "Orthanc"])
@pytest_twisted.ensureDeferred
async def test_a_real_pacs_is_let_go_by_clients_that_leave(
    real: RealHospital, tmp_path: Path, site: int
) -> None:
    """40 requests; 1,000 with DRIMBOX_SOAK=1."""
    how = {"instances": 40, "rows": 512, "columns": 512, "transfer_syntax": JPEG_LS}
    study = make_study(tmp_path, seed=750 + site, **how)
    await deferToThread(real.peers[site].load, list(study.files))
    served = await real.publish(study, site)
    probe, context, chance = Probe(real), tls_context(real), random.Random(site)
    pid = real.peers[site].pid

    def leave(count: int) -> None:
        for _ in range(count):
            leave_anywhere(real, context, served, chance)

    await deferToThread(leave, 10)
    await deferToThread(probe.at_rest)
    usual = await served_fast(real, [served])
    before, theirs = await deferToThread(probe.holdings), family(pid)
    start, count = time.monotonic(), 1000 if soak() else 40
    await gatherResults([deferToThread(leave, count // 2) for _ in range(2)])
    taken = time.monotonic() - start
    rest = await deferToThread(probe.at_rest)
    after = await deferToThread(probe.holdings)
    print(f"{count} in {taken:.0f} s, at rest {rest:.1f} s later: {before} {after} {theirs} {family(pid)}")
    same(before, after, memory=12 * MEGABYTE)
    await until(lambda: family(pid)[0] <= theirs[0] and family(pid)[1] <= theirs[1], what="a PACS at rest")
    again = await served_fast(real, [served])
    assert again < 2 * usual + 3
    unharmed(real)
