"""Every audit event of a gateway process reaches the repository, whatever happens to either (DB.CS.96)."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import free_port
from drimbox.sim.stand import LOOPBACK, STRUCTURE, PacsAddress, _pair, _section, _text
from drimbox.sim.syslog import Repository, SyslogServer, read_message, read_schema
from tests.integration.feed_stand import POOL, FeedStand, Studies
from tests.integration.waiting import pause, until, wait

pytestmark = pytest.mark.requirement("DB.CS.96")
BATCH = 20


class AuditedStand(FeedStand):
    """A gateway that sends its audit events to a repository of ours."""

    def __init__(self, folder: Path, *pacses: PacsAddress, **options: Any) -> None:
        super().__init__(folder, pacses, **options)
        self.server: SyslogServer
        self.atna_port = free_port()

    def _toml(self) -> str:
        self.server = SyslogServer(reactor, self.pki.dmp, self.pki.roots, self.atna_port)
        atna = {
            "host": _text("localhost"),
            "port": str(self.atna_port),
            "roots": _text(self.pki.roots),
            "client": _pair(self.pki.structures[STRUCTURE].authentication),
            "batch": str(BATCH),
            "period": "1",
            "timeout": "5",
            "retry_first": "0.2",
            "retry_max": "1",
            "enterprise_number": "64999",
        }
        return super()._toml() + "\n".join(_section("[audit.atna]", atna)) + "\n"

    async def stop(self) -> None:
        await super().stop()
        await self.server.down()

    def trail(self) -> list[str]:
        """Return the hashes of the events of the trail, oldest first."""
        return [row[0] for row in self.query("SELECT hash FROM audit ORDER BY id")]

    async def all_arrived(self, count: int = 0, seconds: float = 60) -> None:
        """Wait until the repository has the whole trail, as long as it is now at least."""
        goal = max(count, len(self.trail()))

        def arrived() -> bool:
            assert self.server.wrong == []
            return len(self.server.distinct()) >= goal

        await until(arrived, seconds=seconds, what="the whole trail")
        assert hashes(self.server.distinct())[:goal] == self.trail()[:goal]
        assert self.server.wrong == []


def hashes(frames: list[bytes]) -> list[str]:
    """Return the hashes that messages name their events with."""
    return [re.findall(rb'hash="([0-9a-f]{64})"', frame)[0].decode() for frame in frames]


@attrs.define
class World:
    stand: AuditedStand
    pacs: SimulatedPacs
    studies: Studies

    async def events(self, count: int = 1) -> None:
        """Make audit events: reports about studies nobody holds."""
        for _ in range(count):
            study = self.studies.new()
            await self.stand.report(study)
            await self.stand.notice_about(study.study_uid, "E004")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = AuditedStand(tmp_path / "stand", PacsAddress("PACS", pacs.port, POOL))
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(tmp_path / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest_twisted.ensureDeferred
async def test_a_repository_that_was_away_gets_everything_once_and_in_order(world: World) -> None:
    stand = world.stand
    await world.events(8)
    await stand.kill_gateway()
    await stand.start_gateway()
    await world.events(4)
    assert stand.server.sessions == 0

    async def waiting() -> float:
        metrics = (await stand.admin("/metrics"))[1].decode()
        return float(re.findall(r"^drimbox_audit_waiting (\S+)$", metrics, re.M)[0])

    async def much() -> bool:
        return await waiting() >= 24

    await until(much, what="the gauge of what waits")
    stand.server.up()
    await stand.all_arrived()
    study = world.studies.new(world.pacs)
    await stand.report(study)
    await until(lambda: stand.kos(study), what="a publication")
    await stand.all_arrived()
    assert len(stand.server.messages) == len(stand.server.distinct()), "nothing came twice"

    async def none() -> bool:
        return await waiting() == 0

    await until(none, what="the gauge of nothing that waits")
    kinds = {one.message.find(".//EventTypeCode").get("csd-code") for one in stand.server.messages}
    assert {"110120", "RAD-128", "ITI-41", "TD0.2"} <= kinds
    assert stand.query("SELECT last_id FROM audit_export")[0][0] >= len(stand.server.messages)


@pytest_twisted.ensureDeferred
async def test_kill_in_the_middle_doubles_at_most_a_batch_and_loses_nothing(world: World) -> None:
    """The repository reads and keeps, slowly; the gateway is killed meanwhile, again and again."""
    stand = world.stand
    stand.server.behaviour = Repository.SLOW
    stand.server.up()
    for _ in range(3):
        await world.events(6)
        seen = len(stand.server.messages)
        await until(lambda seen=seen: len(stand.server.messages) > seen, what="some messages")
        await stand.kill_gateway()
        await stand.start_gateway()
    stand.server.behaviour = Repository.NORMAL
    # What a killed process left half-way is no message.
    await stand.all_arrived()
    doubled = len(stand.server.messages) - len(stand.server.distinct())
    assert doubled <= 3 * BATCH


@pytest_twisted.ensureDeferred
async def test_a_repository_that_cuts_in_the_middle_of_a_message_gets_all_in_the_end(world: World) -> None:
    stand = world.stand
    stand.server.behaviour = Repository.CUT
    stand.server.cut_at = 2500
    stand.server.up()
    await world.events(5)
    await until(lambda: stand.server.sessions >= 4, seconds=60, what="sessions")
    stand.server.behaviour = Repository.NORMAL
    await stand.all_arrived()
    assert len(stand.server.messages) - len(stand.server.distinct()) <= stand.server.sessions + BATCH


@pytest_twisted.ensureDeferred
async def test_a_repository_that_is_not_ours_gets_nothing_and_the_right_one_everything(
    world: World,
) -> None:
    stand = world.stand
    pki, right = stand.pki, stand.server.pair
    stand.server.pair = pki.viewers[next(iter(pki.viewers))]
    stand.server.up()
    await world.events(2)
    await until(lambda: "certificat TLS du serveur refusé" in stand.log.read_text("utf-8"))
    await pause(2)
    assert stand.server.messages == []
    await stand.server.down()
    stand.server.pair = right
    stand.server.up()
    await stand.all_arrived()


# --- rsyslog ----------------------------------------------------------------------------------------


class Rsyslog:
    """A real repository: rsyslog's TLS input, one message a line of a file."""

    def __init__(self, folder: Path, stand: AuditedStand) -> None:
        self._folder = folder
        pki = stand.pki
        self.file = folder / "messages"
        self._config = folder / "rsyslog.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._config.write_text(
            f"""
global(workDirectory="{folder}" maxMessageSize="64k"
       defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{pki.roots}"
       defaultNetstreamDriverCertFile="{pki.dmp.certificate}" defaultNetstreamDriverKeyFile="{pki.dmp.key}")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="raw" type="string" string="%rawmsg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{self.file}" template="raw" sync="on") }}
input(type="imtcp" port="{stand.atna_port}" address="127.0.0.1" ruleset="audit")
"""
        )

    def start(self) -> None:
        log = self._folder / "rsyslog.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                ["rsyslogd", "-n", "-f", str(self._config), "-i", str(self._folder / "pid")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(30)

    def lines(self) -> list[bytes]:
        data = self.file.read_bytes() if self.file.exists() else b""
        return data.split(b"\n")[:-1]


@pytest.fixture
def rsyslog(world: World, tmp_path: Path) -> Iterator[Rsyslog]:
    if shutil.which("rsyslogd") is None:
        pytest.skip("rsyslogd is not installed (Debian packages rsyslog, rsyslog-openssl)")
    folder = tmp_path / "rsyslog"
    folder.mkdir()
    program = Rsyslog(folder, world.stand)
    program.start()
    yield program
    program.end(signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_rsyslog_takes_every_message_whole_also_when_it_is_restarted(
    world: World, rsyslog: Rsyslog
) -> None:
    stand, schema = world.stand, read_schema()

    async def arrived() -> None:
        goal = stand.trail()
        await until(lambda: len(set(rsyslog.lines())) >= len(goal), seconds=60, what="messages in rsyslog")
        distinct = list(dict.fromkeys(rsyslog.lines()))
        assert hashes(distinct)[: len(goal)] == goal

    await world.events(4)
    await arrived()
    assert len(rsyslog.lines()) == len(set(rsyslog.lines())), "its way to close is a receipt"
    for line in rsyslog.lines():
        read_message(line, schema)
    await deferToThread(rsyslog.end, signal.SIGKILL)
    await world.events(4)
    rsyslog.start()
    await arrived()
