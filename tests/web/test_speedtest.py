"""The routes of the PACS test and the command that asks them, over a real listener and a real store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.threads import deferToThread

from drimbox.cli import cli
from drimbox.config import Listener, Native
from drimbox.errors import ServiceDisabled
from drimbox.ports import SpeedMeasure
from drimbox.source.speedtest import SpeedTests
from drimbox.store import speedtests as stores
from drimbox.store.database import Database
from drimbox.store.speedtests import SpeedTestStore
from drimbox.web import speedtest
from drimbox.web.admin import AdminApi, admin_factory
from tests.source.speedworld import World
from tests.store.samples import TestClock
from tests.web.test_admin import POST, Wire

GOOD = SpeedMeasure("radio", TestClock().instant, 0.25, 2.0, 1300, 209_000_000)
BAD = attrs.evolve(GOOD, latency=None, duration=None, images=7, bytes=99, error="E1004 - muet\x1b[2J")


class Gateway:
    """A store, fake tests of two sites (one without reference study), and the routes over them."""

    def __init__(self, database: Database) -> None:
        self.clock = TestClock()
        self.store = SpeedTestStore(database, clock=self.clock)
        self.world = World(1)
        self.tests: SpeedTests = self.world.tests
        self.asked: list[str] = []
        self.api = AdminApi()
        native = attrs.evolve(
            World.make_site("native", enabled=False),
            pacs=None,
            native=Native("A", "orthanc", "http://localhost"),
        )
        sites = [self.world.site, World.make_site("cardio", study=None, enabled=False), native]
        speedtest.register(self.api, sites, self.tests, self.store, self._note)
        self.note_failure: Exception | None = None

    async def _note(self, _action: str, site: str) -> None:
        if self.note_failure is not None:
            raise self.note_failure
        self.asked.append(site)

    async def serve(self, use: Callable[[str], None]) -> None:
        """Listen and let `use` talk to it from a thread, as another process would; time passes fast."""
        from twisted.internet.task import LoopingCall

        factory = admin_factory(self.api, Listener("127.0.0.1", 0), reactor)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        passing = LoopingCall(self.world.clock.advance, 0.125)
        passing.start(0.01)
        try:
            await deferToThread(use, f"127.0.0.1:{port.getHost().port}")
        finally:
            passing.stop()
            await port.stopListening()


@pytest_twisted.async_yield_fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    database = Database(f"sqlite:///{tmp_path / 'drimbox.db'}", reactor=reactor)
    await database.open()
    yield Gateway(database)
    await database.close()


def drimbox(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["speedtest", *arguments], prog_name="drimbox")


# --- routes -----------------------------------------------------------------------------------------


def test_the_state_names_the_sites_and_no_study(gateway: Gateway) -> None:
    status, _, body = Wire(gateway.api).ask("GET", "/speedtest")
    assert status == 200
    radio, cardio, native = body["sites"]
    assert (radio["site"], radio["reference_study"], radio["enabled"], radio["running"]) == (
        "radio",
        True,
        True,
        False,
    )
    assert (cardio["reference_study"], cardio["last"], cardio["ended"]) == (False, None, 0)
    assert native["reference_study"] is False
    assert "2.25.900" not in json.dumps(body)


@pytest.mark.requirement("DB.SO.156")
def test_a_run_is_begun_audited_and_answered_at_once(gateway: Gateway) -> None:
    wire = Wire(gateway.api)
    assert wire.ask("POST", "/speedtest/radio", POST)[::2] == (
        202,
        {"site": "radio", "run": 1, "joined": False},
    )
    assert wire.ask("POST", "/speedtest/radio", POST)[2] == {"site": "radio", "run": 1, "joined": True}
    assert gateway.asked == ["radio", "radio"]
    assert wire.ask("GET", "/speedtest")[2]["sites"][0]["running"] is True
    gateway.world.pass_time(3)
    state = wire.ask("GET", "/speedtest")[2]["sites"][0]
    assert (state["running"], state["ended"]) == (False, 1)
    assert (state["last"]["latency"], state["last"]["error"]) == (0.25, "")


@pytest.mark.parametrize(
    ("site", "status", "words"),
    [
        ("absent", 404, "inconnu"),
        ("cardio", 409, "sans examen de référence"),
        ("native", 409, "archive est native"),
    ],
)
def test_what_cannot_run_is_said(gateway: Gateway, site: str, status: int, words: str) -> None:
    answer = Wire(gateway.api).ask("POST", f"/speedtest/{site}", POST)
    assert answer[0] == status
    assert words in answer[2]["error"]["detail"]
    assert gateway.asked == []


def test_nothing_runs_that_the_audit_trail_did_not_take(gateway: Gateway) -> None:
    gateway.note_failure = OSError("disque plein")
    assert Wire(gateway.api).ask("POST", "/speedtest/radio", POST)[0] == 500
    assert not gateway.tests.progress(gateway.world.site).running


def test_a_gateway_that_stops_begins_no_test(gateway: Gateway) -> None:
    assert Deferred.fromCoroutine(gateway.tests.stop()).called
    status, _, body = Wire(gateway.api).ask("POST", "/speedtest/radio", POST)
    assert (status, body["error"]["code"]) == (503, ServiceDisabled.code)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/speedtest/measures?before=x", 400),
        ("/speedtest/measures?before=-1", 400),
        ("/speedtest/measures?before=9999999999999999999", 400),
        ("/speedtest/measures?site=absent", 404),
        ("/speedtest/results?site=absent", 404),
    ],
)
def test_wrong_questions_are_refused(gateway: Gateway, path: str, status: int) -> None:
    assert Wire(gateway.api).ask("GET", path)[0] == status


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.156", "DB.SO.102")
@pytest_twisted.ensureDeferred
async def test_the_command_runs_the_test_and_prints_its_measure(gateway: Gateway) -> None:
    def use(admin: str) -> None:
        done = drimbox("--site", "radio", "--admin", admin)
        assert (done.exit_code, done.output) == (
            0,
            "radio : latence 0.250 s, transfert 0.000 s, 1 images, 0.0 Mo\n",
        )
        (measure,) = json.loads(drimbox("--json", "--admin", admin).output)
        assert (measure["site"], measure["images"], measure["error"]) == ("radio", 1, "")

    await gateway.serve(use)
    assert gateway.asked == ["radio", "radio"]


@pytest.mark.requirement("DB.SO.156")
@pytest_twisted.ensureDeferred
async def test_a_failure_is_printed_and_is_the_exit_code(gateway: Gateway) -> None:
    gateway.world.study = None

    def use(admin: str) -> None:
        done = drimbox("--admin", admin)
        assert done.exit_code == 1
        assert "radio : échec, E1002 - " in done.output
        assert "(0 images reçues)" in done.output
        assert drimbox("--json", "--admin", admin).exit_code == 1

    await gateway.serve(use)


@pytest_twisted.ensureDeferred
async def test_a_run_on_its_way_is_joined(gateway: Gateway) -> None:
    gateway.world.find_pause = Deferred()
    gateway.tests.start(gateway.world.site)

    def go_on() -> None:
        assert gateway.world.find_pause is not None
        gateway.world.find_pause.callback(None)

    def use(admin: str) -> None:
        clock: Any = reactor
        clock.callFromThread(clock.callLater, 0.3, go_on)
        done = drimbox("--site", "radio", "--admin", admin)
        assert "un test est déjà en cours" in done.output
        assert done.exit_code == 0

    await gateway.serve(use)
    assert len(gateway.world.kept) == 1


@pytest_twisted.ensureDeferred
async def test_a_run_that_a_stop_interrupts_is_said(gateway: Gateway) -> None:
    gateway.world.plan.silent = True

    def use(admin: str) -> None:
        clock: Any = reactor
        clock.callFromThread(clock.callLater, 0.3, lambda: Deferred.fromCoroutine(gateway.tests.stop()))
        done = drimbox("--site", "radio", "--admin", admin)
        assert done.exit_code == 1
        assert "test interrompu" in done.output

    await gateway.serve(use)


@pytest_twisted.ensureDeferred
async def test_an_unknown_site_and_no_site_at_all(gateway: Gateway) -> None:
    def use(admin: str) -> None:
        assert "sites : radio, cardio" in drimbox("--site", "a/b", "--admin", admin).output

    await gateway.serve(use)
    gateway.api = AdminApi()
    speedtest.register(
        gateway.api, [World.make_site("cardio", study=None)], gateway.tests, gateway.store, gateway._note
    )

    def none(admin: str) -> None:
        done = drimbox("--admin", admin)
        assert done.exit_code == 1
        assert "aucun site n'a d'examen de référence" in done.output

    await gateway.serve(none)


@pytest.mark.requirement("DB.SO.87", "DB.SO.155")
@pytest_twisted.ensureDeferred
async def test_results_by_day_and_raw(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_MEASURES", 2)
    for hour, latency in enumerate((0.25, 0.75)):
        await gateway.store.add(
            attrs.evolve(GOOD, latency=latency, started_at=GOOD.started_at + timedelta(minutes=hour))
        )
    await gateway.store.add(BAD)

    def use(admin: str) -> None:
        head, line = drimbox("results", "--admin", admin).output.splitlines()
        assert head.split()[:4] == ["jour", "site", "tests", "échecs"]
        assert line.split()[:4] == ["2026-01-12", "radio", "3", "1"]
        assert line.split()[4:] == ["0.500", "0.250", "0.750", "2.000", "2.000", "2.000"]
        (day,) = json.loads(drimbox("results", "--json", "--site", "radio", "--admin", admin).output)
        assert day["latency"] == {"mean": 0.5, "min": 0.25, "max": 0.75}
        assert "Aucune mesure" in drimbox("results", "--site", "cardio", "--admin", admin).output
        written = drimbox("results", "--csv", "--admin", admin).output
        rows = list(csv.reader(io.StringIO(written), delimiter=";"))
        assert rows[0] == [
            "site", "debut", "STF21_latence_s", "STF20_transfert_s", "images", "octets", "erreur",
        ]  # fmt: skip
        assert rows[1][2:] == ["", "", "7", "99", "E1004 - muet\\u001b[2J"]
        assert [row[2] for row in rows[2:]] == ["0.75", "0.25"]
        assert rows[2][1].startswith("2026-01-12T09:31:01")
        only = drimbox("results", "--csv", "--site", "cardio", "--admin", admin).output
        assert only.splitlines() == [";".join(rows[0])]
        # Options written before the sub-command count too.
        assert drimbox("--admin", admin, "results").output.splitlines()[0] == head
        assert drimbox("results", "--csv", "--json", "--admin", admin).exit_code == 2

    await gateway.serve(use)


def test_a_process_that_does_not_run_is_said_clearly() -> None:
    done = drimbox("--admin", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "DRIMbox ne tourne pas" in done.output


def test_the_command_has_a_french_help() -> None:
    assert "Mesurer le débit" in drimbox("--help").output
    assert "chaque jour" in drimbox("results", "--help").output
