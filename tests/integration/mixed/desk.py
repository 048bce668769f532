"""The administrator, monitoring, a RIS that errs, and a DMP that has its moments."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.threads import deferToThread

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.ris import SimMessage, SimReport, build_message
from tests.integration.mixed.day import Day
from tests.integration.mixed.stand import Mixed
from tests.integration.operator import drimbox
from tests.integration.test_health import PACS_UP, VIEWERS, WADO_UP, curl
from tests.integration.waiting import pause, until

INS = "284070100499094"


@attrs.frozen
class Command:
    """One command of the operator, and how its answer is known to be good."""

    arguments: tuple[str, ...]
    good: Callable[[str], Any]
    #: The record it leaves in the audit trail, by its name in `trail`.
    leaves: str = ""

    @property
    def name(self) -> str:
        return " ".join(each for each in self.arguments[:2] if not each.startswith(("-", "/")))


_LOOKS = (
    Command(("status", "--json"), lambda said: json.loads(said)["sites"]),
    Command(("queue", "list", "--json"), lambda said: json.loads(said) is not None),
    Command(("queue", "list", "outbox", "--state", "done"), lambda said: "publication" in said),
    Command(("notices", "list", "--json"), lambda said: json.loads(said) is not None),
    Command(("statistics", "show", "--json"), lambda said: json.loads(said)["values"]),
    Command(("statistics", "export", "--raw"), lambda said: ";" in said, "110132"),
    Command(("whitelist", "show", "--domains"), lambda said: "mesimagesmedicales.fr" in said),
    Command(("certificates", "show"), lambda said: "mesimagesmedicales.fr" in said),
    Command(("resync", "status"), lambda said: "site1" in said or "Aucun" in said),
)
_SEARCHES = (
    Command(("audit", "search", "--ins", INS, "--limit", "20"), bool, "AUDIT-SEARCH"),
    Command(("audit", "search", "--event", "images", "--format", "csv"), bool, "AUDIT-SEARCH"),
    Command(("audit", "verify"), lambda said: "intacte" in said),
)
_REFRESH = Command(("whitelist", "refresh"), lambda said: "en vigueur : oui" in said, "110132")
#: Never while the files of a pair are replaced, one after the other.
_CHECK = Command(("check-config",), lambda said: "correcte" in said)
_MEASURE = Command(
    ("speedtest", "--site", "site1", "--json"),
    lambda said: [(each["error"], each["images"]) for each in json.loads(said)] == [("", 4)],
    "110132",
)


class Operators:
    """The `drimbox` command, every part of it that an ordinary day needs, again and again."""

    def __init__(self, hospital: Mixed, day: Day) -> None:
        self._hospital, self._day = hospital, day
        self._backups = hospital.folder / "backups"
        self._backups.mkdir()

    async def look(self) -> None:
        """What shows something."""
        await self._cycle(_LOOKS)

    async def search(self) -> None:
        """What reads the audit trail, beside the process that writes it."""
        await self._cycle(_SEARCHES)

    async def act(self) -> None:
        """What does something."""
        works = (
            partial(self._run, _REFRESH),
            self._resync,
            partial(self._run, _MEASURE),
            self._renew,
            partial(self._run, _CHECK),
            self._backup,
        )
        for number in self._day.rounds():
            for work in works:
                if self._day.wants(enough=number > 0):
                    await work()

    async def _cycle(self, commands: Sequence[Command]) -> None:
        for number in self._day.rounds():
            for command in commands:
                if self._day.wants(enough=number > 0):
                    await self._run(command)

    async def _run(self, command: Command) -> str:
        if command.leaves:
            self._day.asked[command.leaves] += 1
        done = await drimbox(self._hospital.stand.config, *command.arguments)
        good = done.returncode == 0 and command.good(done.stdout)
        assert good, (command.arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        self._day.done[f"drimbox {command.name}"] += 1
        await pause(0.1)
        return done.stdout

    async def _resync(self) -> None:
        """Compare the whole archive of a site with its PACS, changing nothing."""
        start = ("resync", "start", "--site", "site1", "--dry-run", "--json")
        (walk,) = json.loads(await self._run(Command(start, json.loads, "110132")))

        async def over() -> bool:
            _, body = await self._hospital.stand.admin(f"/walks/{walk['walk']}")
            return str(json.loads(body)["state"]) == "done"

        await until(over, seconds=300.0, what="the end of a dry run")

    async def _renew(self) -> None:
        """A certificate is renewed, and read with the lists of revocation."""
        stand = self._hospital.stand
        name = stand.sites[1]
        renewed = await deferToThread(stand.pki.issue_ssl_serv, name, name="renewed")
        pair = stand.pki.sites[name]
        # Both at once for whoever looks at the files between two turns.
        renewed.certificate.replace(pair.certificate)
        renewed.key.replace(pair.key)
        await self._run(
            Command(("certificates", "reload"), lambda said: "Certificats rechargés" in said, "110132")
        )

    async def _backup(self) -> None:
        """Back up what is at work, and verify it."""
        arguments = ("backup", str(self._backups), "--keep", "1", "--json")
        made = json.loads(await self._run(Command(arguments, json.loads, "110132")))
        await self._run(
            Command(("restore", "--check", made["file"]), lambda said: "sauvegarde entière" in said)
        )


class Monitoring:
    """Whoever asks how the gateway is."""

    def __init__(self, hospital: Mixed, day: Day) -> None:
        self._hospital, self._day = hospital, day

    async def weather(self) -> None:
        """The national health check, on the viewer names (DB.SO.182, DB.SO.183)."""
        for _ in self._day.rounds():
            for path, good in (("/healthcheck/drimbox", WADO_UP), ("/healthcheck/pacs", PACS_UP)):
                for name in VIEWERS:
                    status, _, body = await curl(self._hospital, path, name=name)
                    assert (status, body) == (200, good), (path, name)
            self._day.done["health checks"] += 1
            await pause(0.5)

    async def scrape(self) -> None:
        """Prometheus and an orchestrator."""
        for _ in self._day.rounds():
            for path in ("/metrics", "/live", "/ready", "/status", "/notices"):
                status, body = await self._hospital.stand.admin(path)
                assert status == 200, (path, body)
            self._day.done["scrapes"] += 1
            await pause(0.5)


class ErringRis:
    """Messages that are refused, each with its answer, and nothing comes of them but their records."""

    def __init__(self, hospital: Mixed, day: Day) -> None:
        self._hospital, self._day = hospital, day
        report = SimReport(document_id="2.999.8.1", set_id="2.999.8.1", pdf_size=600)
        # What must be answered, and with which HL7 error.
        self._messages: dict[str, tuple[bytes, str]] = {
            "an unknown sender": (build_message(report, SimMessage(application="INCONNU")), ""),
            "no report": (build_message(report, SimMessage(with_document=False)), "101"),
            "no base64": (
                build_message(report, SimMessage(document_field="^TEXT^XML^Base64^%%%")),
                "102",
            ),
            "an unknown version": (build_message(report, SimMessage(version="2.9")), "203"),
            "a flag of no table": (build_message(report, SimMessage(flags={"MASQUE_PS": "OUI"})), "103"),
            "no HL7": (b"Bonjour", "100"),
        }

    async def work(self) -> None:
        for _ in self._day.rounds():
            for name, (raw, code) in self._messages.items():
                ack = await self._hospital.stand.send(raw, seconds=60.0)
                assert ack.code == "AE", (name, ack)
                assert code in ("", ack.errors[0].code), (name, ack)
                self._day.done[f"refused {name}"] += 1
                # A report of a RIS of ours is audited; what is nobody's, or no HL7, is none.
                self._day.asked["report"] += code not in ("", "100")
                await pause(0.1)


class Moments:
    """Now and then the DMP is slow, turns a request away, or loses an answer."""

    #: What the gateway cannot know the outcome of, or is told to come back for.
    _BAD = (Kind.HTTP, Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.CUT_ANSWER, Kind.GARBAGE)
    _TRANSACTIONS = ("TD2.1", "TD2.1", "TD3.3c", "TD3.1", "TD0.2")

    def __init__(self, hospital: Mixed, day: Day, every: float) -> None:
        self._hospital, self._day, self._every = hospital, day, every
        self._chance = random.Random(6)
        self._given: Counter[str] = Counter()

    async def work(self) -> None:
        script = self._hospital.stand.dmp.script
        while self._day.wants():
            transaction = self._chance.choice(self._TRANSACTIONS)
            slow, kind = self._chance.random() < 0.3, self._chance.choice(self._BAD)
            # What is asked seldom shall not meet all of the day's moments in a row.
            if sum(each.transaction == transaction for each in script.queue) < 2:
                if slow:
                    script.push(Behaviour(seconds=2.0, transaction=transaction))
                else:
                    script.push(Behaviour(kind, status=503, transaction=transaction))
                    self._given[transaction] += 1
            await pause(self._every)

    def had(self) -> Counter[str]:
        """Return how many requests of each transaction were treated badly; none will be any more."""
        queue = self._hospital.stand.dmp.script.queue
        left = Counter(each.transaction for each in queue if each.kind is not Kind.NORMAL)
        queue.clear()
        self._given -= left
        return Counter(self._given)
