"""Damaged requests and associations on the gateway's real ports: it answers, and is what it was before."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.sim.stand import LOOPBACK
from tests.dicom.box import message, store_request, storing
from tests.dicom.datasets import EXPLICIT, ct, encode
from tests.dicom.fuzzing import EFFORT, damages
from tests.integration.hospital import Hospital, Served, digests, received
from tests.integration.probe import Probe

#: Some seconds each in CI, forty times as many mutations in `make soak`.
pytestmark = pytest.mark.slow

ROUNDS = 120
STATUSES = {200, 400, 401, 403, 404, 405, 406, 413, 415, 421}


def resident(hospital: Hospital) -> int:
    """Bytes of memory the gateway holds."""
    status = Path(f"/proc/{hospital.stand.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def descriptors(hospital: Hospital) -> int:
    return Probe(hospital).descriptors().total()


def answered(hospital: Hospital, data: bytes) -> bytes:
    """Send bytes over TLS; return what comes, until the end or half a second of silence."""
    received = b""
    try:
        with hospital.connect() as connection:
            connection.settimeout(0.5)
            connection.sendall(data)
            while more := connection.recv(65536):
                received += more
    except (TimeoutError, ssl.SSLError, ConnectionError):
        pass
    return received


def told(port: int, data: bytes) -> bytes:
    """The same without TLS."""
    received = b""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
            connection.settimeout(0.3)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                received += more
    except (TimeoutError, ConnectionError):
        pass
    return received


async def unharmed(hospital: Hospital, served: Served, logged: int) -> None:
    """No bug was met on the way, nothing is held, and the next one is served whole."""
    await hospital.idle()
    result = await hospital.fetch(served)
    assert result.complete, (result.status, result.error)
    assert received(result) == digests(served.study)
    written = hospital.stand.log.read_bytes()[logged:]
    assert b"Traceback" not in written
    assert b"request failed" not in written
    assert b"handler failed" not in written


@pytest.mark.threat("request smuggling, pipelining", "memory leaks by repeated requests")
@pytest_twisted.ensureDeferred
async def test_damaged_requests_on_the_wado_port(hospital: Hospital, scanner: Served) -> None:
    logged = hospital.stand.log.stat().st_size
    moves = len(hospital.pacs[0].seen("move"))
    good = hospital.request(scanner, "Connection: close")
    two = hospital.request(scanner, first="GET /nothing HTTP/1.1") + good
    # The token is damaged like everything else; the path leads nowhere more often than not.
    cases = list(damages([good, two], ROUNDS, 31))

    def fire(part: int) -> list[tuple[str, bytes]]:
        return [(name, answered(hospital, data)) for name, data in cases[part::6]]

    warm = await deferToThread(fire, 5)
    memory, files = resident(hospital), descriptors(hospital)
    for part in range(5):
        warm += await deferToThread(fire, part)
    seen: set[int] = set()
    for name, answer in warm:
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)]
        assert set(statuses) <= STATUSES, (name, answer[:300])
        # A whole answer is one of this series: nothing else can have come out.
        assert answer.count(b"HTTP/1.1 200") <= 2, name
        seen.update(statuses)
    assert {400, 404} <= seen
    assert len(hospital.pacs[0].seen("move")) - moves <= len(cases)
    await unharmed(hospital, scanner, logged)
    assert resident(hospital) - memory < 24 * 1024 * 1024
    assert descriptors(hospital) <= files + 8


@pytest.mark.threat("PDU length bomb", "memory leaks by repeated requests")
@pytest_twisted.ensureDeferred
async def test_damaged_associations_on_the_dicom_port(hospital: Hospital, scanner: Served) -> None:
    logged = hospital.stand.log.stat().st_size
    title = next(iter(await hospital.titles()))
    session = storing(called=title, calling="PACS1") + message(1, store_request(), encode(ct(), EXPLICIT))

    def fire(rounds: int, seed: int) -> int:
        return sum(
            bool(told(hospital.stand.dicom_port, data)) for _, data in damages([session], rounds, seed)
        )

    assert await deferToThread(fire, 30, 32)
    memory, files = resident(hospital), descriptors(hospital)
    assert await deferToThread(fire, 4 * ROUNDS, 33) > ROUNDS * EFFORT
    await unharmed(hospital, scanner, logged)
    assert resident(hospital) - memory < 24 * 1024 * 1024
    assert descriptors(hospital) <= files + 8
