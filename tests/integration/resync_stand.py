"""A gateway with published studies in simulated PACS, and the commands that walk over its archive."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from drimbox.sim.dmp_registry import Entry
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import POOL, SECOND_POOL, FeedStand, Studies
from tests.integration.waiting import until, wait

#: Time-outs and paces short enough to be waited for.
QUICK = {"query_timeout": "2", "quarantine": "1"}
RESYNC = {"rate": "200", "parallel": "2"}


class Archive:
    """A stand with a few PACS; site n is PACS n."""

    def __init__(
        self,
        folder: Path,
        *,
        pacses: int = 1,
        resync: Mapping[str, str] | None = None,
        sites: Sequence[Mapping[str, str]] = (),
        extra: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.pacs = [SimulatedPacs(f"PACS-{number}") for number in range(1, pacses + 1)]
        for pacs in self.pacs:
            pacs.start()
        pools = (POOL, SECOND_POOL)
        addresses = [
            PacsAddress(pacs.ae_title, pacs.port, pool, settings=QUICK)
            for pacs, pool in zip(self.pacs, pools, strict=False)
        ]
        self.stand = FeedStand(
            folder / "stand",
            addresses,
            sites=sites,
            extra={"resync": {**RESYNC, **(resync or {})}, **(extra or {})},
        )
        for pacs, pool in zip(self.pacs, pools, strict=False):
            pacs.destinations.update(dict.fromkeys(pool, (LOOPBACK, self.stand.dicom_port)))
        self.studies = Studies(folder / "studies")

    async def up(self) -> None:
        await self.stand.up()

    async def down(self) -> None:
        try:
            await self.stand.stop()
        finally:
            for pacs in self.pacs:
                pacs.stop()

    # -- content -----------------------------------------------------------------------------------

    async def publish(self, count: int, site: int = 0, *, instances: int = 2) -> list[GeneratedStudy]:
        """Publish new studies, in the order of their UIDs."""
        made = [self.studies.new(self.pacs[site], instances=instances) for _ in range(count)]
        for study in made:
            await self.stand.report(study)
        await until(lambda: all(self.stand.kos(study) for study in made), seconds=60, what="KOS in the DMP")
        await self.stand.idle()
        return sorted(made, key=lambda study: study.study_uid)

    def drop(self, study: GeneratedStudy, count: int | None = None, site: int = 0) -> None:
        """Let a PACS forget a study, or some of its instances."""
        for instance in study.instances[:count]:
            self.pacs[site].index.remove(instance.sop_instance_uid)

    def asked(self, *kinds: str, site: int = 0) -> int:
        """How often a PACS was asked."""
        return len(self.pacs[site].seen(*(kinds or ("find",))))

    def behave(self, site: int = 0, **values: Any) -> None:
        self.pacs[site].behaviour = Behaviour(**values)

    def entry(self, study: GeneratedStudy) -> Entry:
        (entry,) = self.stand.kos(study)
        return entry

    def held(self, studies: Sequence[GeneratedStudy]) -> int:
        """How many of the studies have a current KOS in the DMP."""
        return sum(len(self.stand.kos(study)) for study in studies)

    # -- commands ----------------------------------------------------------------------------------

    async def command(self, *arguments: str, fails: bool = False) -> str:
        """Run a command of the operator; return what it wrote."""
        drimbox = str(Path(sys.executable).parent / "drimbox")
        line = [drimbox, *arguments, "--admin", f"{LOOPBACK}:{self.stand.admin_port}"]
        done: Any = await deferToThread(subprocess.run, line, capture_output=True, timeout=60)
        assert (done.returncode == 1) == fails, (done.returncode, done.stdout, done.stderr)
        return str((done.stderr if fails else done.stdout).decode())

    async def start(self, *options: str, command: str = "resync") -> int:
        """Begin a walk of one site; return its number."""
        (walk,) = json.loads(await self.command(command, "start", "--json", *options))
        return int(walk["walk"])

    async def walk(self, number: int) -> dict[str, Any]:
        _, body = await self.stand.admin(f"/walks/{number}")
        found: dict[str, Any] = json.loads(body)
        return found

    async def ended(self, number: int, state: str = "done", *, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until a walk is in this state; return it."""

        async def there() -> bool:
            return bool((await self.walk(number))["state"] == state)

        await until(there, seconds=seconds, what=f"walk {number} {state}")
        return await self.walk(number)

    async def waits(self, number: int, word: str) -> str:
        """Wait until a running walk says that it waits for this, longer than a PACS is given to answer."""

        async def there() -> str:
            walk = await self.walk(number)
            return str(walk["waiting"]) if walk["state"] == "running" and word in walk["waiting"] else ""

        return str(await until(there, seconds=90, what=f"walk {number} waiting for {word}"))

    async def run(self, *options: str, command: str = "resync") -> dict[str, Any]:
        """Begin a walk of one site and wait for its end."""
        return await self.ended(await self.start(*options, command=command))

    async def verdicts(self, number: int) -> dict[str, str]:
        """Return the verdict of each study, from the CSV of the command."""
        text = await self.command("resync", "studies", str(number))
        rows = list(csv.DictReader(io.StringIO(text), delimiter=";"))
        return {row["examen"]: row["verdict"] for row in rows}

    def administration(self) -> list[tuple[str, str]]:
        """Return what the audit trail says that administrators did, and to what."""
        rows = self.stand.query("SELECT payload FROM audit WHERE event_id = '110113' ORDER BY id")
        events = [json.loads(row[0])["event"] for row in rows]
        return [
            (dict(one["objects"][0]["details"])["Alert Description"], one["objects"][0]["id"])
            for one in events
        ]

    async def reconfigure(self, **sections: Mapping[str, str]) -> None:
        """Start the gateway again with other keys in these sections."""
        for section, keys in sections.items():
            self.stand._extra.setdefault(section, {}).update(keys)
        await self.stand.stop_gateway()
        self.stand.config.write_text(self.stand._toml(), "utf-8")
        await self.stand.start_gateway()


Make = Callable[..., Awaitable[Archive]]


def worlds(folder: Path) -> Iterator[Make]:
    """Yield what makes the one world of a test; it is taken down afterwards."""
    made: list[Archive] = []

    async def make(**options: Any) -> Archive:
        made.append(Archive(folder, **options))
        await made[0].up()
        return made[0]

    yield make
    for one in made:
        wait(one.down())
