"""An ordinary day, all at once on one gateway: all is served and in the trail, and nothing is left of it.

Some seconds of it in CI, half an hour with DRIMBOX_SOAK=1; DRIMBOX_MIXED_SECONDS says otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.conftest import REPORTS
from tests.histories import operations as ops
from tests.integration.mixed import trail
from tests.integration.mixed.consumers import Consumers
from tests.integration.mixed.day import Day
from tests.integration.mixed.desk import ErringRis, Moments, Monitoring, Operators
from tests.integration.mixed.stand import Mixed
from tests.integration.mixed.wards import Wards
from tests.integration.operator import drimbox
from tests.integration.probe import Holdings, Probe
from tests.integration.test_delivery_gone import MEGABYTE, same, unharmed
from tests.integration.test_feed_random import drawn
from tests.integration.waiting import pause, until, wait

SOAK = os.environ.get("DRIMBOX_SOAK") == "1"
SECONDS = float(os.environ.get("DRIMBOX_MIXED_SECONDS") or (1800 if SOAK else 20))
#: Seconds of it before anything is counted, at least.
FIRST = min(120.0, SECONDS / 3)
#: Histories drawn, operations of each, works of a kind at once.
HISTORIES, LENGTH = (60, 20) if SECONDS > 100 else (12, 6)
WARDS, CONSUMERS = 3, 3
#: By how much memory may differ: what the allocator does with its heap.
SLACK = 12 * MEGABYTE


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    hospital = Mixed(tmp_path_factory.mktemp("mixed"))
    try:
        wait(hospital.start())
        yield hospital
    finally:
        hospital.close()


class Scale:
    """Weighs the process all the time."""

    def __init__(self, probe: Probe, day: Day) -> None:
        self._probe, self._day = probe, day
        self.samples: list[int] = []

    async def work(self) -> None:
        self.samples.clear()
        while self._day.wants():
            self.samples.append(self._probe.resident())
            await pause(SECONDS / 200)

    @property
    def growth(self) -> float:
        """Bytes by which the last quarter outweighs the second."""
        quarter = max(1, len(self.samples) // 4)
        return statistics.median(self.samples[-quarter:]) - statistics.median(
            self.samples[quarter : 2 * quarter]
        )


async def rested(hospital: Mixed, probe: Probe) -> Holdings:
    """Wait until nothing is left to do and no connection is open that will be closed; count."""
    await hospital.stand.idle(seconds=120.0)
    await hospital.stand.all_arrived(seconds=120.0)
    seen: list[Holdings] = []

    async def steady() -> bool:
        # Longer than any connection is kept. What is done again and again, speed tests above all, may be
        # in hand at one look, and will not be at the next.
        await pause(1.2)
        seen.append(await deferToThread(probe.holdings))
        return len(seen) > 2 and len({repr(each.descriptors) for each in seen[-3:]}) == 1

    await until(steady, seconds=120.0, what="descriptors at rest")
    return seen[-1]


def settled(hospital: Mixed, wards: Wards) -> None:
    """Check that record, archive and reports agree, and that no row of a queue waits or was given up."""
    stand = hospital.stand
    archived = [row[0] for row in stand.query("SELECT sop_instance_uid FROM kos WHERE state = 'published'")]
    assert sorted(archived) == sorted(stand.published())
    wards.check()
    left = [
        (table, *row)
        for table, good in (("inbox", "done failed"), ("feed_job", "done failed"), ("outbox", "done"))
        for row in stand.query(f"SELECT id, state, last_error FROM {table}")
        if row[1] not in good.split()
    ]
    assert left == []


def whole(hospital: Mixed, records: int, chain: dict[str, Any]) -> None:
    """Check what `drimbox audit verify` says: every record is a link of an intact chain.

    There were `records` before it looked; one more may have been written since, of renewed certificates.
    """
    assert chain["intact"], chain
    assert records <= chain["checked"] <= sum(trail.written(hospital.stand).values()) <= records + 1


def flat(scale: Scale) -> None:
    """Check that memory does not grow while the day lasts."""
    assert scale.growth < SLACK, scale.samples


def report(day: Day, memory: Sequence[int], growth: float) -> None:
    """Keep what was done and measured."""
    REPORTS.mkdir(exist_ok=True)
    told = {
        "seconds": SECONDS,
        "done": dict(sorted(day.done.items())),
        "audited": dict(day.asked),
        "memory_mb": [round(each / MEGABYTE, 1) for each in memory[:: max(1, len(memory) // 20)]],
        "growth_mb": round(growth / MEGABYTE, 2),
    }
    (REPORTS / "mixed.json").write_text(json.dumps(told, indent=1), "utf-8")


@pytest.mark.slow
@pytest.mark.peer("curl", "dcmdjpls", "dcmdjpeg", "dcmconv")
@pytest.mark.requirement(
    "DB.SO.03", "DB.SO.11", "DB.SO.32", "DB.SO.35", "DB.SO.43", "DB.SO.46", "DB.SO.182", "DB.CS.06"
)
@pytest_twisted.ensureDeferred
async def test_an_ordinary_day_leaves_nothing_but_its_work(hospital: Mixed, tmp_path: Path) -> None:
    histories = drawn(ops.EVERYDAY, count=HISTORIES, length=LENGTH)
    day, probe = Day(), Probe(hospital)
    holding = await hospital.hold()
    day.asked["report"] += 4
    consumers, wards = Consumers(hospital, day, holding), Wards(hospital, day, histories, tmp_path)
    await consumers.prepare(tmp_path)
    operators, monitoring = Operators(hospital, day), Monitoring(hospital, day)
    moments, scale = Moments(hospital, day, every=1.5), Scale(probe, day)
    works = [
        *([wards.work] * WARDS),
        *(lambda seed=seed: consumers.work(seed) for seed in range(CONSUMERS)),
        operators.look,
        operators.search,
        operators.act,
        monitoring.weather,
        monitoring.scrape,
        ErringRis(hospital, day).work,
        moments.work,
        scale.work,
    ]
    # Everything once: threads, caches, connections.
    await day.run(FIRST, works, whole=True)
    before = await rested(hospital, probe)
    await day.run(SECONDS, works, whole=False)
    treated = moments.had()
    after = await rested(hospital, probe)
    growth = scale.growth
    report(day, scale.samples, growth)
    print(f"before {before}; after {after}; growth {growth / MEGABYTE:.1f} MB; {dict(day.done)}")
    records = sum(trail.written(hospital.stand).values())
    verified = await drimbox(hospital.stand.config, "audit", "verify", "--json")
    # After half an hour all that is wrong is worth knowing.
    wrong = []
    for check in (
        lambda: settled(hospital, wards),
        lambda: trail.check(hospital.stand, day.asked, treated, day.done["drimbox certificates reload"]),
        lambda: whole(hospital, records, json.loads(verified.stdout)),
        lambda: unharmed(hospital),
        lambda: same(before, after, memory=SLACK),
        lambda: flat(scale),
    ):
        try:
            check()
        except AssertionError as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("not as it should be", wrong)
