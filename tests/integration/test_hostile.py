"""The gateway besieged: ten thousand failures leave nothing behind, and ordinary work goes on beside them.

In CI a part of both; the whole with DRIMBOX_SOAK=1.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.dicom.syntaxes import JPEG_LOSSLESS_SV1
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import SimPatient, make_study
from tests.conftest import REPORTS
from tests.integration.hospital import ACCEPT, JPEG_LS, Served, behave, digests, received
from tests.integration.hostile import associations, handshakes, messages, pixels, requests, slow
from tests.integration.hostile.stand import Besieged
from tests.integration.hostile.target import Attack, Target, certificates, target_of
from tests.integration.waiting import pause, until, wait

pytestmark = pytest.mark.slow

SOAK = os.environ.get("DRIMBOX_SOAK") == "1"
#: Failures of each kind, and seconds of the run beside ordinary traffic.
FAILURES, SECONDS = (10_000, 1800.0) if SOAK else (2_000, 15.0)
#: Megabytes by which memory may differ: what the allocator does with its heap.
SLACK = 12.0
#: The patient of the reports.
PATIENT = SimPatient(id="P000123")
ROWS: dict[str, list[Attack]] = {}
for _part in (handshakes, requests, associations, messages, slow):
    for _row, _attacks in _part.ATTACKS.items():
        ROWS.setdefault(_row, []).extend(_attacks)


def attacker(number: int) -> str:
    """Return one of some hundred addresses of the loop that attackers call from."""
    return f"127.66.{number % 4}.{number % 61 + 1}"


def strike(attack: Attack, target: Target, chance: random.Random, source: str) -> None:
    """Attack once; being refused is what should happen."""
    with suppress(OSError):
        attack(target, chance, source)


@attrs.frozen
class Scene:
    besieged: Besieged
    target: Target
    scan: Served
    other: Served
    #: A study of the second PACS whose pixels lie.
    forged: Served


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    besieged = Besieged(tmp_path_factory.mktemp("besieged"))
    hospital = besieged.hospital
    try:
        scan = make_study(
            tmp_path_factory.mktemp("scan"),
            instances=5,
            patient=PATIENT,
            transfer_syntax=JPEG_LS,
            seed=91,
        )
        other = make_study(tmp_path_factory.mktemp("other"), instances=5, patient=PATIENT, seed=92)
        forged = pixels.forged_study(tmp_path_factory.mktemp("forged"), 93, patient=PATIENT)
        pairs = certificates(hospital, 0)
        besieged.start()
        served: Served = wait(hospital.publish(scan))
        titles = tuple(wait(hospital.titles(1)))
        target = target_of(hospital, served, pairs, pacs=hospital.pacs[1].ae_title, titles=titles)
        hospital.pacs[0].behaviour = behave(propose="stored")
        theirs = [wait(hospital.publish(study, 1)) for study in (other, forged)]
        yield Scene(besieged, target, served, *theirs)
    finally:
        besieged.stop()


async def count(scene: Scene, metric: str) -> float:
    """Return the sum of a metric over its labels."""
    _, body = await scene.besieged.hospital.stand.admin("/metrics")
    lines = [line for line in body.decode().splitlines() if line.partition("{")[0].split(" ")[0] == metric]
    return sum(float(line.split()[-1]) for line in lines)


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.threat("memory leaks by repeated requests")
@pytest.mark.requirement("DB.SO.111", "DB.SO.03", "DB.SO.05")
@pytest.mark.parametrize(
    ("attacks", "metric"),
    [
        (handshakes.FAILING, "drimbox_tls_refused_total"),
        ((associations.failing,), "drimbox_associations_total"),
        ((messages.failing,), "drimbox_hl7_messages_total"),
    ],
    ids=["handshakes", "associations", "mllp"],
)
@pytest_twisted.ensureDeferred
async def test_failures_leave_memory_and_descriptors_where_they_were(
    scene: Scene, attacks: tuple[Attack, ...], metric: str
) -> None:
    besieged, hospital = scene.besieged, scene.besieged.hospital

    def work(count: int, seed: int) -> None:
        chance = random.Random(seed)
        for number in range(count):
            strike(attacks[number % len(attacks)], scene.target, chance, attacker(number * 3 + seed))

    async def fail(count: int) -> None:
        await gatherResults(
            [deferToThread(work, count // 3, seed) for seed in range(3)], consumeErrors=True
        )

    async def rested(descriptors: int) -> None:
        await until(lambda: besieged.descriptors() <= descriptors, what="descriptors", seconds=40)

    quiet = besieged.descriptors()
    await fail(max(300, FAILURES // 4))
    await rested(quiet + 4)
    memory, descriptors = besieged.resident(), besieged.descriptors()
    failed = await count(scene, metric)
    await fail(FAILURES)
    # The others ended before there was anything to refuse.
    assert await count(scene, metric) - failed > FAILURES / 3
    await rested(descriptors + 2)
    assert besieged.resident() - memory < SLACK
    assert (await hospital.fetch(scene.scan)).status == 200
    assert besieged.bugs() == []


# -- beside ordinary traffic --------------------------------------------------------------------------


class Siege:
    """Attackers in threads; whoever finds something that must not be notes it."""

    def __init__(self, target: Target) -> None:
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        self._target = target
        self._over = threading.Event()
        fast = [(row, attack) for row, all_ in ROWS.items() for attack in all_ if row not in slow.ATTACKS]
        calm = [(row, attack) for row, attacks in slow.ATTACKS.items() for attack in attacks]
        self._threads = [
            threading.Thread(target=self._attack, args=(number, attacks), daemon=True)
            for number, attacks in enumerate([fast, fast, fast, fast, calm, calm])
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it, and wait for those in the middle of something."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "an attacker hangs"

    def _attack(self, number: int, attacks: list[tuple[str, Attack]]) -> None:
        chance = random.Random(number)
        rounds = 0
        while not self._over.is_set():
            # Every one in turn, from a place of its own; then again.
            row, attack = attacks[(rounds + number * len(attacks) // 4) % len(attacks)]
            source = attacker(rounds * 7 + number)
            if attack in (associations.nasty, associations.unasked, messages.hostile_xml, messages.costly):
                # A PACS and a RIS may be taken over: from their own address, now and then.
                source = chance.choice((source, LOOPBACK))
            try:
                strike(attack, self._target, chance, source)
            except AssertionError as error:
                self.found.append(f"{row} ({attack.__name__}): {error}")
            except Exception as error:
                self.found.append(f"{row} ({attack.__name__}) went wrong: {error!r}")
            self.counts[row] += 1
            rounds += 1
            time.sleep(0.02)


#: What a PACS that is taken over does to a move, none of which takes long.
DECEITS: tuple[dict[str, Any], ...] = (
    {"intruder": "study"},
    {"intruder": "series"},
    {"intruder": "patient"},
    {"intruder": "disguise"},
    {"connection": "garbage"},
    {"move": "garbage"},
    {"move": "abort"},
    {"final": "garbage"},
    {"final": "early"},
    {"fail": (1,)},
    {"skip": (2,)},
    {"tear": (1,)},
    {"repeat": (0,)},
    {"store_calling": "NOBODY"},
    {"originator": "wrong"},
)


class Traffic:
    """Ordinary work: images, as held and transcoded, reports, an administrator.

    And a PACS that lies, about what it sends and in the pixels themselves, whose images are no loss.
    """

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.done: Counter[str] = Counter()
        self._scene = scene
        self._folder = folder
        clock: Any = reactor
        self._now: Callable[[], float] = clock.seconds
        self._end = 0.0
        self._studies = 0

    async def run(self, seconds: float) -> None:
        """Work for so long; nothing of it may fail."""
        self._end = self._now() + seconds
        works = (
            self._images(),
            self._transcoded(),
            self._reports(),
            self._administrator(),
            self._deceived(),
            self._forged(),
        )
        await gatherResults([Deferred.fromCoroutine(work) for work in works], consumeErrors=True)

    @property
    def _going(self) -> bool:
        return self._now() < self._end

    async def _images(self) -> None:
        hospital, scan = self._scene.besieged.hospital, self._scene.scan
        while self._going:
            result = await hospital.fetch(scan)
            good = (result.complete, result.status) == (True, 200)
            assert good, (self.done, result, self._scene.besieged.last_words())
            assert received(result) == digests(scan.study)
            self.done["images"] += 1
            await pause(0.3)

    async def _transcoded(self) -> None:
        hospital, scan = self._scene.besieged.hospital, self._scene.scan
        while self._going:
            result = await hospital.fetch(scan, accept=(ACCEPT.format(JPEG_LOSSLESS_SV1),))
            good = (result.complete, result.status) == (True, 200)
            assert good, (self.done, result, self._scene.besieged.last_words())
            assert {part.transfer_syntax for part in result.parts} == {JPEG_LOSSLESS_SV1}
            assert set(received(result)) == set(digests(scan.study))
            self.done["transcoded"] += 1
            await pause(0.5)

    async def _reports(self) -> None:
        hospital = self._scene.besieged.hospital
        while self._going:
            self._studies += 1
            folder = self._folder / str(self._studies)
            study = make_study(
                folder, instances=1, rows=16, columns=16, patient=PATIENT, seed=500 + self._studies
            )
            # Sent, acknowledged, published.
            await hospital.publish(study)
            self.done["reports"] += 1
            await pause(2.0)

    async def _administrator(self) -> None:
        stand = self._scene.besieged.hospital.stand
        while self._going:
            for path in ("/status", "/metrics", "/ready"):
                status, _ = await stand.admin(path)
                assert status == 200, path
            self.done["administrator"] += 1
            await pause(1.0)

    async def _deceived(self) -> None:
        hospital, other = self._scene.besieged.hospital, self._scene.other
        while self._going:
            lie = DECEITS[self.done["deceits"] % len(DECEITS)]
            # Its pixels as they are held: so ours are the codecs that meet the forged ones.
            hospital.pacs[1].behaviour = behave(propose="stored", **lie)
            result = await hospital.fetch(other)
            if result.complete and result.status == 200:
                assert received(result) == digests(other.study), lie
            self.done["deceits"] += 1
            await pause(0.3)

    async def _forged(self) -> None:
        hospital, forged = self._scene.besieged.hospital, self._scene.forged
        while self._going:
            kind = self.done["forged"] % len(pixels.KINDS)
            result = await hospital.fetch(forged, kind, accept=pixels.accept(kind))
            assert not (result.complete and result.status == 200), pixels.KINDS[kind]
            self.done["forged"] += 1
            await pause(0.3)


@pytest.mark.threat(*ROWS, "forged dimensions, codec out of bounds")
@pytest.mark.requirement("DB.SO.32", "DB.SO.35", "DB.SO.111", "DB.SO.03")
@pytest_twisted.ensureDeferred
async def test_ordinary_work_goes_on_under_every_attack(scene: Scene, tmp_path: Path) -> None:
    besieged, hospital = scene.besieged, scene.besieged.hospital
    quiet = besieged.descriptors()
    siege = Siege(scene.target)
    siege.start()
    try:
        traffic = Traffic(scene, tmp_path)
        await traffic.run(SECONDS / 5)
        memory = besieged.resident()
        await traffic.run(SECONDS)
    finally:
        await deferToThread(siege.stop)
    hospital.pacs[1].behaviour = behave()
    assert siege.found == []
    assert set(siege.counts) == set(ROWS)
    assert min(traffic.done.values()) >= 3
    await hospital.idle()
    await until(lambda: besieged.descriptors() <= quiet + 4, what="descriptors", seconds=60)
    assert besieged.resident() - memory < 2 * SLACK
    assert (await hospital.fetch(scene.scan)).status == 200
    assert (await hospital.fetch(scene.other)).status == 200
    assert besieged.bugs() == []
    REPORTS.mkdir(exist_ok=True)
    told = {"seconds": SECONDS, "attacks": dict(siege.counts), "ordinary": dict(traffic.done)}
    (REPORTS / "hostile.json").write_text(json.dumps(told, indent=1), "utf-8")
