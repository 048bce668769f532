"""The limits of the WADO-RS door on a running gateway: whoever knocks too much, the others are served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import JPEG_LS, Hospital, Served
from tests.integration.waiting import pause, until, wait

pytestmark = pytest.mark.threat("slowloris, stalled reader", "log and audit injection, flooding")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    limits = {
        "max_deliveries": "4",
        "max_per_consumer": "4",
        "max_connections": "12",
        "max_connections_per_address": "5",
        "connection_rate": "5",
        "connection_burst": "20",
        "handshake_timeout": "30",
    }
    hospital = Hospital(tmp_path_factory.mktemp("guarded"), sites=1, wado=limits)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def scan(guarded: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    study = make_study(tmp_path_factory.mktemp("scan"), instances=3, transfer_syntax=JPEG_LS, seed=71)
    served: Served = wait(guarded.publish(study))
    return served


def knock(hospital: Hospital, address: str) -> socket.socket:
    """Connect from an address of the loop, and say nothing."""
    door = (LOOPBACK, hospital.stand.wado_port)
    return socket.create_connection(door, timeout=10, source_address=(address, 0))


def closed(knocking: socket.socket, seconds: float = 0.5) -> bool:
    """Say whether the gateway has closed a connection."""
    knocking.settimeout(seconds)
    try:
        return knocking.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def stay(hospital: Hospital, address: str, count: int, stack: ExitStack) -> int:
    """Connect so often; return how many of these connections were left open."""
    knocking = [stack.enter_context(knock(hospital, address)) for _ in range(count)]
    return sum(not closed(one) for one in knocking)


async def refused(hospital: Hospital, reason: str) -> float:
    """Connections refused at the WADO-RS door for a reason."""
    _, body = await hospital.stand.admin("/metrics")
    name = f'drimbox_connections_refused_total{{door="wado",reason="{reason}"}}'
    found = [line for line in body.decode().splitlines() if line.startswith(name)]
    return float(found[0].split()[-1]) if found else 0.0


def told(hospital: Hospital, address: str) -> list[str]:
    """What the audit trail says of the connections of an address."""
    rows = hospital.database("select payload from audit order by id")
    events = [json.loads(row[0])["event"] for row in rows]
    return [
        event["outcome_description"]
        for event in events
        if any(each.get("network_id") == address for each in event.get("participants", ()))
        and event.get("outcome_description")
    ]


@pytest.mark.threat("floods of connections, half-open connections")
@pytest.mark.requirement("DB.SO.35", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_one_address_that_opens_too_many_keeps_nobody_out(guarded: Hospital, scan: Served) -> None:
    before = await refused(guarded, "address")
    with ExitStack() as stack:
        assert await deferToThread(stay, guarded, "127.0.0.2", 15, stack) == 5
        assert (await guarded.fetch(scan)).complete
        assert await refused(guarded, "address") == before + 10
        # One record at once, the nine others at the end of the minute.
        (record,) = await until(lambda: told(guarded, "127.0.0.2"), what="the audit record")
        assert record.startswith("E1003")
    _, body = await guarded.stand.admin("/metrics")
    assert b"127.0.0.2" not in body


@pytest.mark.threat("floods of connections, half-open connections")
@pytest.mark.requirement("DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_half_open_connections_of_many_addresses_make_room(guarded: Hospital, scan: Served) -> None:
    with ExitStack() as stack:
        for number in range(3, 6):
            await deferToThread(stay, guarded, f"127.0.0.{number}", 5, stack)
        await pause(1.2)
        before = await refused(guarded, "crowded")
        for _ in range(3):
            assert (await guarded.fetch(scan)).complete
        assert await refused(guarded, "crowded") >= before + 1


@pytest.mark.threat("floods of connections, half-open connections")
@pytest.mark.requirement("DB.SO.35", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_one_address_that_comes_too_fast_keeps_nobody_out(guarded: Hospital, scan: Served) -> None:
    def hammer() -> int:
        kept = 0
        for _ in range(60):
            with knock(guarded, "127.0.0.8") as knocking:
                knocking.sendall(b"GET / HTTP/1.1\r\n\r\n")
                kept += not closed(knocking, 0.01)
        return kept

    before = await refused(guarded, "rate")
    hammering = deferToThread(hammer)
    results = [await guarded.fetch(scan) for _ in range(3)]
    await hammering
    assert all(result.complete for result in results)
    assert await refused(guarded, "rate") - before >= 10
    records = await until(lambda: told(guarded, "127.0.0.8"), what="the audit records")
    assert any("E1003" in record and "rapprochées" in record for record in records)
    # Garbage in place of a handshake is a handshake refused.
    assert any(record.startswith("E1101") for record in records)
