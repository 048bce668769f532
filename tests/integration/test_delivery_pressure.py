"""Slow clients, stalled clients, slow handshakes and a gateway that stops: bounded, and never deceiving."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import JPEG_LS, Hospital, Served, behave, digests, received
from tests.integration.waiting import pause, until, wait

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway with a small window, an early stall and early time-outs."""
    hospital = Hospital(
        tmp_path_factory.mktemp("tight"),
        sites=1,
        wado={
            "window": str(6 * MEGABYTE),
            "stall_timeout": "3",
            "header_timeout": "2",
            "handshake_timeout": "2",
            "idle_timeout": "4",
            "max_connections": "6",
            "max_deliveries": "4",
        },
    )
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def large(tight: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """About 20 MB of JPEG-LS images."""
    study = make_study(
        tmp_path_factory.mktemp("large"),
        instances=125,
        rows=512,
        columns=512,
        transfer_syntax=JPEG_LS,
        seed=51,
    )
    served: Served = wait(tight.publish(study))
    return served


@pytest.fixture(autouse=True)
def well_behaved(tight: Hospital) -> None:
    tight.pacs[0].behaviour = Behaviour()
    wait(tight.idle())


def memory(hospital: Hospital, key: str) -> float:
    """Return a figure of the gateway process, in megabytes."""
    text = Path(f"/proc/{hospital.stand.pid}/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def reset_peak(hospital: Hospital) -> None:
    Path(f"/proc/{hospital.stand.pid}/clear_refs").write_text("5")


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_a_slow_client_gets_everything_in_bounded_memory(tight: Hospital, large: Served) -> None:
    await tight.fetch(large, keep="sha256")  # warm
    reset_peak(tight)
    idle = memory(tight, "VmRSS")
    spooled = 0.0
    asked = Deferred.fromCoroutine(tight.fetch(large, bytes_per_second=2e6))
    while not asked.called:
        spooled = max(spooled, await tight.metric("drimbox_spool_bytes"))
        await pause(0.2)
    result: Any = await asked
    assert result.complete, result.error
    assert result.t_total > 5
    assert received(result) == digests(large.study)
    assert spooled > MEGABYTE
    assert memory(tight, "VmHWM") - idle < 64
    await until_given_back(tight)


async def until_given_back(hospital: Hospital) -> None:
    """Wait until neither memory nor disk is used."""

    async def empty() -> bool:
        names = ("drimbox_spool_bytes", "drimbox_window_bytes", "drimbox_deliveries_running")
        return not any([await hospital.metric(name) for name in names])

    await until(empty, what="spool and window empty")


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_a_slow_client_does_not_hold_the_pacs(tight: Hospital, large: Served) -> None:
    started = time.monotonic()
    asked = Deferred.fromCoroutine(tight.fetch(large, bytes_per_second=2e6, keep="size"))
    over = len(tight.pacs[0].seen("final"))
    await until(lambda: len(tight.pacs[0].seen("final")) > over, what="the end of the C-MOVE")
    assert time.monotonic() - started < 5
    result: Any = await asked
    assert result.complete


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_a_client_that_stops_reading_is_cut(tight: Hospital, large: Served) -> None:
    before = tight.audited()
    result = await tight.fetch(large, bytes_per_second=1.0, timeout=30.0, keep="size")
    assert not result.complete
    record = await tight.audit_after(before)
    assert "sans lecture" in record.description
    await until_given_back(tight)


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_at_all_is_cut(tight: Hospital, large: Served) -> None:
    request = tight.request(large, "Connection: close")

    def talk() -> float:
        with tight.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request)
            started = time.monotonic()
            while time.monotonic() - started < 25:
                time.sleep(0.2)
                if not established(tight.stand.wado_port, connection.getsockname()[1]):
                    return time.monotonic() - started
        return -1.0

    gone = await deferToThread(talk)
    assert 0 < gone < 20
    await until_given_back(tight)


def established(server: int, client: int) -> bool:
    """Say whether the server's end of a connection is still open."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if int(local.split(":")[1], 16) == server and int(remote.split(":")[1], 16) == client:
            return state == "01"
    return False


def closed_after(hospital: Hospital, plain: bool, *pieces: bytes, every: float = 0.3) -> float:
    """Send `pieces`, then the last one again and again; return when the server closed, in seconds."""
    raw = socket.create_connection((LOOPBACK, hospital.stand.wado_port), timeout=10)
    connection: Any = raw if plain else hospital.connect()
    started = time.monotonic()
    with raw, connection:
        try:
            for piece in pieces[:-1]:
                connection.sendall(piece)
            while time.monotonic() - started < 12:
                connection.sendall(pieces[-1])
                connection.settimeout(every)
                try:
                    if not connection.recv(4096):
                        break
                except TimeoutError:
                    continue
        except OSError:
            pass
    return time.monotonic() - started


@pytest.mark.alone
@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize(
    ("plain", "pieces"),
    [
        (True, (b"",)),
        (True, (b"\x16\x03\x01\x02\x00", b"\x01")),
        (False, (b"",)),
        (False, (b"GET / HTTP/1.1\r\n", b"X")),
        (False, (b"GET / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n", b"x")),
        (False, (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")),
    ],
    ids=["silence", "dripped handshake", "no request", "dripped headers", "dripped body", "dripped chunks"],
)
@pytest_twisted.ensureDeferred
async def test_no_drip_winds_the_clock_back(
    tight: Hospital, plain: bool, pieces: tuple[bytes, ...]
) -> None:
    took = await deferToThread(closed_after, tight, plain, *pieces)
    assert 1.5 < took < 9


@pytest.mark.alone
@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_an_idle_connection_is_closed_later_than_a_slow_request(
    tight: Hospital, large: Served
) -> None:
    bad = tight.request(large, first="GET /nothing HTTP/1.1")
    took = await deferToThread(closed_after, tight, False, bad, b"")
    assert 3.5 < took < 11


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_more_connections_than_configured_are_closed_at_once(tight: Hospital, large: Served) -> None:
    def crowd() -> list[socket.socket]:
        # With their certificates: others would have to make room.
        return [tight.connect() for _ in range(6)]

    sockets = await deferToThread(crowd)
    result = await tight.fetch(large)
    assert result.status is None
    for one in sockets:
        one.close()
    await pause(0.2)
    assert (await tight.fetch(large, keep="size")).complete
    assert "Traceback" not in tight.stand.log.read_text()


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[Hospital]:
    """A gateway of its own, that a test may stop."""
    hospital = Hospital(tmp_path / "stopping", sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest_twisted.ensureDeferred
async def test_a_stop_lets_running_answers_end_and_takes_no_more(
    stopping: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study", instances=6, seed=52)
    served = await stopping.publish(study)
    stopping.pacs[0].behaviour = behave(pause=0.5)
    stored = len(stopping.pacs[0].seen("stored"))
    running = Deferred.fromCoroutine(stopping.fetch(served))
    await until(lambda: len(stopping.pacs[0].seen("stored")) > stored)
    stop = Deferred.fromCoroutine(stopping.stand.stop_gateway())
    await pause(0.5)
    late = await stopping.fetch(served)
    assert late.status in (None, 503)
    result: Any = await running
    assert result.complete, result.error
    assert received(result) == digests(study)
    await stop
    rows = stopping.database("select event_id, outcome from audit order by id")
    assert ("110106", 0) in rows
    # In order: the answer is noted before the end of the application.
    assert rows[-1][0] == "110100"


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_until_a_slow_client_has_its_last_byte(
    stopping: Hospital, tmp_path: Path
) -> None:
    study = make_study(
        tmp_path / "study", instances=60, rows=512, columns=512, transfer_syntax=JPEG_LS, seed=53
    )
    served = await stopping.publish(study)
    running = Deferred.fromCoroutine(stopping.fetch(served, bytes_per_second=2.5e6, keep="sha256"))
    await until(lambda: stopping.pacs[0].seen("final"))
    # Everything has left the PACS, little has reached the client.
    await stopping.stand.stop_gateway()
    result: Any = await running
    assert result.complete, result.error
    assert len(result.parts) == 60
