"""The health check on the viewer names of a running gateway, asked by curl as the weather service does."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.sim.stand import CONSUMER, LOOPBACK
from drimbox.sim.studies import make_study
from drimbox.sim.whitelist import ListedDomain, make_whitelist
from tests.integration.hospital import Hospital, behave
from tests.integration.operator import drimbox
from tests.integration.waiting import until, wait

#: Seconds an answer is kept; and the address of somebody who may not ask.
KEEP, STRANGER = 1, "127.0.0.2"
VIEWERS = ("vi1.349.mesimagesmedicales.fr", "vi2.349.mesimagesmedicales.fr")
WADO_UP = (
    b'{"status":"DOWN","checks":[{"name":"VISIONNEUSE","status":"DOWN"},'
    b'{"name":"WADO-RS","status":"UP"},{"name":"LISTEBLANCHE","status":"UP"}]}'
)
PACS_UP = b'{"status":"UP","checks":[{"name":"PACS1","status":"UP"},{"name":"PACS2","status":"UP"}]}'

pytestmark = pytest.mark.requirement("DB.SO.182", "DB.SO.183")


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(
        tmp_path_factory.mktemp("health"),
        wado={"max_viewer_connections": "6"},
        more={"health": {"addresses": f'["{LOOPBACK}"]', "keep": str(KEEP), "pacs_timeout": "2"}},
    )
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


async def curl(
    hospital: Hospital, path: str, *arguments: str, name: str = VIEWERS[0]
) -> tuple[int, dict[str, str], bytes]:
    """Ask a viewer name; return status (0: no answer), headers and body."""
    port = hospital.stand.wado_port
    command = ["curl", "-sS", "-i", "--max-time", "60", "--resolve", f"{name}:{port}:{LOOPBACK}"]
    command += ["--cacert", str(hospital.stand.pki.market_root), *arguments, f"https://{name}:{port}{path}"]
    done: Any = await deferToThread(subprocess.run, command, capture_output=True, timeout=90)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    first, *rest = head.decode().split("\r\n")
    headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in rest}
    return int(first.split()[1]), headers, body


async def states(hospital: Hospital, path: str, name: str = VIEWERS[0]) -> dict[str, str]:
    """Return the state of each part."""
    _, _, body = await curl(hospital, path, name=name)
    return {check["name"]: check["status"] for check in json.loads(body)["checks"]}


@pytest_twisted.ensureDeferred
async def test_both_answers_are_the_agency_s_json_on_every_viewer_name(weather: Hospital) -> None:
    for name in VIEWERS:
        status, headers, body = await curl(weather, "/healthcheck/drimbox", name=name)
        # No viewer is served yet, and nobody says that one is.
        assert (status, body) == (200, WADO_UP)
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        assert headers["server"] == "DRIMbox"
        status, _, body = await curl(weather, "/healthcheck/pacs", name=name)
        assert (status, body) == (200, PACS_UP)


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_is_gone_hangs_or_refuses_is_down_and_comes_back(weather: Hospital) -> None:
    pacs = weather.pacs[1]
    path = "/healthcheck/pacs"

    async def second(state: str) -> bool:
        found = await states(weather, path)
        assert found["PACS1"] == "UP"
        return found["PACS2"] == state

    async def turns(state: str) -> None:
        await until(lambda: second(state), what=f"PACS2 {state}")

    for bad in (
        behave(echo_status=0x0110),
        behave(down=True),
        behave(connection="garbage"),
        behave(connection="silent"),
    ):
        pacs.behaviour = bad
        await turns("DOWN")
        pacs.behaviour = behave()
        await turns("UP")


@pytest_twisted.ensureDeferred
async def test_polling_asks_the_pacs_no_more_often_than_an_answer_is_good(weather: Hospital) -> None:
    before = len(weather.pacs[0].seen("echo"))
    polls = [Deferred.fromCoroutine(curl(weather, "/healthcheck/pacs")) for _ in range(40)]
    await gatherResults(polls)
    assert len(weather.pacs[0].seen("echo")) - before < len(polls) / 2


@pytest_twisted.ensureDeferred
async def test_a_change_shows_to_whoever_polls_over_one_connection(weather: Hospital) -> None:
    connection = await deferToThread(_connect, weather)
    bad, pacs = behave(echo_status=0x0110), weather.pacs[1]

    async def turns(state: str) -> None:
        async def told() -> bool:
            found = await deferToThread(_poll, connection)
            return bool(found["checks"][1] == {"name": "PACS2", "status": state})

        await until(told, what=f"PACS2 {state} over a connection that stays open")

    try:
        for behaviour, state in ((behave(), "UP"), (bad, "DOWN"), (behave(), "UP")):
            pacs.behaviour = behaviour
            await turns(state)
    finally:
        pacs.behaviour = behave()
        connection.close()


def _connect(hospital: Hospital) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(hospital.stand.pki.market_root))
    plain = socket.create_connection((LOOPBACK, hospital.stand.wado_port), timeout=20)
    connection = context.wrap_socket(plain, server_hostname=VIEWERS[0])
    connection.settimeout(20)
    return connection


def _poll(connection: ssl.SSLSocket) -> Any:
    """Send the same bytes every time; return the JSON of the answer."""
    connection.sendall(b"GET /healthcheck/pacs HTTP/1.1\r\nHost: vi1\r\n\r\n")
    answer = HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200
    return json.loads(answer.read())


@pytest_twisted.ensureDeferred
async def test_a_site_out_of_the_whitelist_is_down_and_only_that_one(weather: Hospital) -> None:
    stand = weather.stand

    async def publish(*names: str) -> None:
        domains = [
            ListedDomain.for_certificate(str(number), stand.pki.sites[name])
            for number, name in enumerate(names)
        ]
        (stand.folder / "whitelist.xml").write_bytes(make_whitelist(domains, stand.pki.whitelist_signer))
        done = await drimbox(stand.config, "whitelist", "refresh")
        assert done.returncode == 0, done.stdout + done.stderr

    path = "/healthcheck/drimbox"
    await publish(stand.sites[1], CONSUMER)
    try:
        down = {"VISIONNEUSE": "DOWN", "WADO-RS": "DOWN", "LISTEBLANCHE": "DOWN"}

        async def first_is_down() -> bool:
            return await states(weather, path) == down

        await until(first_is_down, what="the first site down")
        found = await states(weather, path, VIEWERS[1])
        assert (found["WADO-RS"], found["LISTEBLANCHE"]) == ("UP", "UP")
    finally:
        await publish(*stand.sites, CONSUMER)

    async def first_is_up() -> bool:
        return (await curl(weather, path))[2] == WADO_UP

    await until(first_is_up, what="the first site up")


@pytest_twisted.ensureDeferred
async def test_strangers_get_nothing_whatever_they_ask_for(weather: Hospital) -> None:
    for path in ("/healthcheck/drimbox", "/healthcheck/pacs", "/healthcheck/nothing"):
        status, headers, body = await curl(weather, path, "--interface", STRANGER)
        assert (status, body) == (403, b"")
        assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "arguments", "status"),
    [
        ("/healthcheck", (), 404),
        ("/healthcheck/", (), 404),
        ("/healthcheck/version", (), 404),
        ("/healthcheck/pacs/../pacs", ("--path-as-is",), 404),
        ("/healthcheck/pacs", ("-X", "POST", "-d", "x"), 405),
        ("/healthcheck/drimbox?since=1", (), 200),
        ("/healthcheck/drimbox/", (), 200),
        ("/healthcheck/drimbox", ("--head",), 200),
        ("/other", (), 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nothing_else_is_answered_there(
    weather: Hospital, path: str, arguments: tuple[str, ...], status: int
) -> None:
    found, headers, body = await curl(weather, path, *arguments)
    assert found == status
    if "--head" in arguments:
        assert (headers["content-length"], body) == (str(len(WADO_UP)), b"")


@pytest_twisted.ensureDeferred
async def test_the_wado_names_have_no_health_check(weather: Hospital) -> None:
    pair = weather.stand.consumer()
    identity = ("--cacert", str(weather.stand.pki.roots), "--cert", str(pair.certificate))
    status, _, _ = await curl(
        weather,
        "/healthcheck/drimbox",
        *identity,
        "--key",
        str(pair.key),
        name=weather.stand.sites[0],
    )
    assert status not in (0, 200)


@pytest.mark.threat("the health check, open to the Internet")
@pytest_twisted.ensureDeferred
async def test_connections_to_the_viewer_names_take_none_from_the_images(
    weather: Hospital, tmp_path: Any
) -> None:
    study = make_study(tmp_path, instances=1, seed=71)
    served = await weather.publish(study)

    held = await deferToThread(lambda: [_connect(weather) for _ in range(6)])
    try:
        # The seventh is cut.
        assert (await curl(weather, "/healthcheck/drimbox"))[0] == 0
        assert (await weather.fetch(served)).complete
    finally:
        for connection in held:
            connection.close()

    async def answered() -> bool:
        return (await curl(weather, "/healthcheck/drimbox"))[0] == 200

    await until(answered, what="an answer to the weather service")


@pytest_twisted.ensureDeferred
async def test_an_orchestrator_learns_that_it_lives_and_is_ready(weather: Hospital) -> None:
    assert await weather.stand.admin("/live") == (200, b'{"live": true}')
    status, body = await weather.stand.admin("/ready")
    assert (status, json.loads(body)) == (
        200,
        {"ready": True, "checks": {"started": True, "whitelist": True, "store": True}},
    )
