"""A gateway behind HAProxy as packaging/haproxy.cfg sets it up: limits, audit and RIS see the client."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import free_port
from drimbox.sim.ris import SimMessage, build_message
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import JPEG_LS, Hospital, Served
from tests.integration.test_door_limits import closed, refused, told
from tests.integration.waiting import until, wait

pytestmark = [pytest.mark.peer("haproxy"), pytest.mark.requirement("DB.SO.35")]

EXAMPLE = Path(__file__).resolve().parents[2] / "packaging" / "haproxy.cfg"
#: Where the front end calls from, and addresses of clients.
FRONT, CONSUMER, GREEDY, RIS, STRANGER = (f"127.0.0.{n}" for n in (60, 61, 62, 63, 64))


class FrontEnd:
    """HAProxy with the configuration of the packaging, on the loop."""

    def __init__(self, folder: Path, hospital: Hospital, *, version: int) -> None:
        self.images, self.reports = free_port(), free_port()
        text = EXAMPLE.read_text("utf-8")
        for ours, port in (("443", self.images), ("2575", self.reports)):
            text = text.replace(f"bind :{ours}\n", f"bind {LOOPBACK}:{port}\n")
        stand = hospital.stand
        for ours, port in (("8443", stand.wado_port), ("2575", stand.hl7_port)):
            text = text.replace(f"10.20.0.11:{ours} ", f"{LOOPBACK}:{port} source {FRONT} ")
        text = re.sub(r"(?m)^ +server drimbox2 .*\n", "", text)
        if version == 1:
            text = text.replace("send-proxy-v2", "send-proxy")
        path = folder / f"haproxy-{version}.cfg"
        path.write_text(text, "utf-8")
        self._log = (folder / f"haproxy-{version}.log").open("wb")
        self._process = subprocess.Popen(
            ["/usr/sbin/haproxy", "-db", "-f", str(path)], stdout=self._log, stderr=self._log
        )

    async def ready(self) -> None:
        """Wait until it listens and believes the gateway to be there."""

        def listens() -> bool:
            try:
                socket.create_connection((LOOPBACK, self.images), timeout=5).close()
            except OSError:
                return False
            return True

        await until(lambda: deferToThread(listens), what="HAProxy")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    wado = {"max_connections_per_address": "8", "front_ends": f'["{FRONT}"]'}
    hl7 = {"front_ends": f'["{FRONT}"]'}
    hospital = Hospital(
        tmp_path_factory.mktemp("behind"),
        sites=1,
        wado=wado,
        more={"hl7": hl7},
        # It is known by its address too.
        ris={"addresses": f'["{RIS}", "{LOOPBACK}"]'},
    )
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module", params=[1, 2])
def front(
    request: pytest.FixtureRequest, hospital: Hospital, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FrontEnd]:
    front = FrontEnd(tmp_path_factory.mktemp("haproxy"), hospital, version=request.param)
    try:
        wait(front.ready())
        yield front
    finally:
        front.stop()


@pytest.fixture(scope="module")
def scan(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    study = make_study(tmp_path_factory.mktemp("scan"), instances=3, transfer_syntax=JPEG_LS, seed=72)
    served: Served = wait(hospital.publish(study))
    return served


def dial(port: int, source: str) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), timeout=20, source_address=(source, 0))


def ask(hospital: Hospital, scan: Served, port: int, source: str, first: bytes = b"") -> bytes:
    """Ask for a series from an address, after some bytes in clear; return the whole answer."""
    stand, received = hospital.stand, b""
    context = ssl.create_default_context(cafile=str(stand.pki.roots))
    pair = stand.consumer()
    context.load_cert_chain(pair.certificate, pair.key)
    with dial(port, source) as plain:
        plain.sendall(first)
        with context.wrap_socket(plain, server_hostname=stand.sites[0]) as connection:
            connection.sendall(hospital.request(scan, "Connection: close"))
            while more := connection.recv(65536):
                received += more
    return received


def callers(hospital: Hospital, after: int) -> set[str]:
    """Addresses that the audit trail says images were given to."""
    rows = hospital.database("select payload from audit where id > ? and payload like '%RAD-107%'", after)
    events = [json.loads(row[0])["event"] for row in rows]
    return {
        each["network_id"]
        for event in events
        for each in event["participants"]
        if each.get("network_id", "").startswith("127.")
    }


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_the_audit_trail_names_the_client(hospital: Hospital, front: FrontEnd, scan: Served) -> None:
    before = hospital.audited()
    answer = await deferToThread(ask, hospital, scan, front.images, CONSUMER)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"Content-Type: application/dicom") == 3
    await hospital.idle()
    found = await until(lambda: callers(hospital, before), what="the audit record")
    assert CONSUMER in found
    assert FRONT not in found


@pytest.mark.threat("a client that hides behind a front end, or pretends to")
@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_limits_are_the_client_s_not_the_front_end_s(
    hospital: Hospital, front: FrontEnd, scan: Served
) -> None:
    def crowd() -> list[socket.socket]:
        return [dial(front.images, GREEDY) for _ in range(14)]

    before = await refused(hospital, "address")
    sockets = await deferToThread(crowd)
    try:
        # HAProxy takes them all; the gateway keeps eight of them.
        kept = await deferToThread(lambda: sum(not closed(each, 1.0) for each in sockets))
        assert kept == 8
        assert await refused(hospital, "address") == before + 6
        answer = await deferToThread(ask, hospital, scan, front.images, CONSUMER)
        assert answer.startswith(b"HTTP/1.1 200")
    finally:
        for each in sockets:
            each.close()
    assert await until(lambda: told(hospital, GREEDY), what="the audit record")


@pytest.mark.threat("a client that hides behind a front end, or pretends to")
@pytest.mark.threat("log and audit injection, flooding")
@pytest_twisted.ensureDeferred
async def test_nobody_but_the_front_end_says_who_the_client_is(hospital: Hospital, scan: Served) -> None:
    port = hospital.stand.wado_port
    claim = f"PROXY TCP4 {RIS} {LOOPBACK} 5000 443\r\n".encode()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await deferToThread(ask, hospital, scan, port, STRANGER, claim)
    assert any("E1101" in each for each in await until(lambda: told(hospital, STRANGER), what="a record"))
    assert not told(hospital, RIS)
    # Without a claim, whoever calls directly is served.
    assert (await deferToThread(ask, hospital, scan, port, STRANGER)).startswith(b"HTTP/1.1 200")


@pytest_twisted.ensureDeferred
async def test_a_front_end_that_announces_nobody_is_refused(hospital: Hospital, scan: Served) -> None:
    before = await refused(hospital, "front_end")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await deferToThread(ask, hospital, scan, hospital.stand.wado_port, FRONT)
    assert await refused(hospital, "front_end") == before + 1


@pytest.mark.requirement("DB.SO.04")
@pytest_twisted.ensureDeferred
async def test_a_ris_is_known_by_its_own_address(hospital: Hospital, front: FrontEnd) -> None:
    def send(source: str, number: int) -> bytes:
        received = b""
        with dial(front.reports, source) as connection:
            message: Any = build_message(message=SimMessage(control_id=f"F{front.reports}-{number}"))
            connection.sendall(b"\x0b" + message + b"\x1c\r")
            while b"\x1c\r" not in received:
                more = connection.recv(65536)
                assert more, "closed without an answer"
                received += more
        return received

    assert b"|AA|" in await deferToThread(send, RIS, 1)
    assert b"|AE|" in await deferToThread(send, STRANGER, 2)
