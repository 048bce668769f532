"""The DMP is down for a day while reports come in; then everything leaves, in order, once.

The day passes by moving the clock, hour after hour, under the settings of a real site: each time every row
comes due, one asks, the others are put off. 150 reports in CI, 10,000 with DRIMBOX_SOAK=1.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.dmp_registry import Entry
from drimbox.sim.dmp_rules import CONFIDENTIALITY
from drimbox.sim.listening import utc_now
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.disturbed_stand import DisturbedStand
from tests.integration.feed_stand import POOL, Studies, kos_study
from tests.integration.waiting import until, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.requirement("DB.SO.11", "DB.SO.13", "DB.SO.14", "DB.SO.21", "DB.SO.22"),
]
SOAK = bool(os.environ.get("DRIMBOX_SOAK"))
STUDIES, ROUNDS = (1000, 10) if SOAK else (50, 3)
#: Hours between two moves of the clock.
STEP = 4
SENDERS = 6
#: What the whole backlog may cost the gateway, MB.
MOST_MEMORY = 120


@attrs.define
class World:
    stand: DisturbedStand
    studies: list[GeneratedStudy]
    hours: int = 0

    def now(self) -> datetime:
        """What gateway and DMP take for the present."""
        return utc_now() + timedelta(hours=self.hours)

    def advance(self, hours: int) -> None:
        """Let time pass."""
        self.hours += hours
        self.stand.disturbance.write("shift", str(3600 * self.hours))

    def memory(self) -> float:
        """Return the most memory that the gateway process has held, MB."""
        status = Path(f"/proc/{self.stand.pid}/status").read_text("ascii")
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

    def count(self, sql: str, *values: Any) -> int:
        """Return the number that a query of the store gives."""
        return int(self.stand.query(f"SELECT count(*) FROM {sql}", *values)[0][0])

    async def send_round(self, masked: bool) -> None:
        """Send one report about each study, and wait until each waits for the DMP."""
        stand, waiting = self.stand, iter(self.studies)

        async def sender() -> None:
            for study in waiting:
                await stand.report(study, flags={"MASQUE_PS": "Y" if masked else "N"})

        await gatherResults([Deferred.fromCoroutine(sender()) for _ in range(SENDERS)])
        await until(
            lambda: not self.count("inbox WHERE state = 'waiting'") + self._unmatched(),
            seconds=600,
            what="every report matched",
        )

    def _unmatched(self) -> int:
        return self.count("feed_job WHERE state = 'waiting'")

    async def asked_in_vain(self) -> None:
        """Wait until every row that is due, and the first of its study, was put off once more."""
        instant = self.now().astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        first = "SELECT min(id) FROM outbox WHERE state = 'waiting' GROUP BY study_uid"
        due = f"outbox WHERE id IN ({first}) AND due_at <= ?"
        await until(lambda: not self.count(due, instant), seconds=600, what="every row put off")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("backlog")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    # Its defaults are the settings of a real site.
    settings = {"dmp": {"retry_first": "5", "retry_max": "1800"}}
    stand = DisturbedStand(folder, [PacsAddress("PACS", pacs.port, POOL)], extra=settings)
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    studies = Studies(folder / "studies")
    world = World(stand, [studies.new(pacs, instances=1) for _ in range(STUDIES)])
    wait(stand.up())
    stand.dmp._clock = world.now
    yield world
    wait(stand.stop())
    pacs.stop()


def masked(entry: Entry) -> bool:
    codes = [each.code for each in entry.metadata.classified(CONFIDENTIALITY)]
    return "MASQUE_PS" in codes


def by_study(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Sort the manifests by study, in the order the DMP took them."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.mime_type == "application/dicom":
            found[kos_study(entry)].append(entry)
    return found


@pytest_twisted.ensureDeferred
async def test_a_day_of_reports_leaves_in_order_and_once(world: World) -> None:
    stand = world.stand
    before = world.memory()
    await stand.dmp.down()
    for number in range(ROUNDS):
        await world.send_round(masked=bool(number % 2))
        world.advance(STEP)
        await world.asked_in_vain()
        if number == ROUNDS // 2:
            peak = world.memory()
            await stand.kill_gateway()
            await stand.start_gateway()
    total = STUDIES * ROUNDS
    assert world.count("outbox WHERE state = 'waiting'") == total
    assert await stand.notice_about("DMP indisponible", "E007")
    stand.dmp.up()
    world.advance(STEP)
    registry = stand.dmp.service.registry
    await until(lambda: len(registry.entries) >= total, seconds=1800, what="half of it in the DMP")
    await stand.kill_gateway()
    await stand.start_gateway()
    await stand.idle(seconds=1800)
    assert max(peak, world.memory()) - before < MOST_MEMORY
    assert not [text for text in (await stand.notices()).values() if "DMP indisponible" in text]
    # One after the other, the last in force, each version in its turn.
    sent = by_study(list(registry.entries.values()))
    assert sent.keys() == {study.study_uid for study in world.studies}
    for uid, entries in sent.items():
        states = [entry.status.rpartition(":")[2] for entry in entries]
        assert states == ["Deprecated"] * (ROUNDS - 1) + ["Approved"]
        assert [masked(entry) for entry in entries] == [bool(n % 2) for n in range(ROUNDS)]
        rows = stand.query("SELECT sop_instance_uid, state FROM kos WHERE study_uid = ? ORDER BY id", uid)
        assert rows == [
            (entry.unique_id, "published" if entry is entries[-1] else "replaced") for entry in entries
        ]
