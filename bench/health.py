"""What it costs the gateway to be polled by the weather service 100 times a second (DB.SO.182).

Figures (`python -m bench --only health`), in percent of one core, above what the gateway takes at rest:
- `health.kept.cpu`: polls over a few connections that stay open; `health.new.cpu`: a connection and a TLS
  handshake for each;
- `health.kept.rate`, `health.new.rate`: polls a second that were answered, all of them `200` with JSON.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

from bench.feeding import FedGateway
from bench.plan import Plan
from bench.processes import cpu_seconds
from bench.results import Results
from drimbox.sim.peers import LOOPBACK

RATE = 100
#: Connections that take turns.
_KEPT = 4
_QUESTION = b"GET /healthcheck/drimbox HTTP/1.1\r\nHost: vi1\r\nAccept: */*\r\nUser-Agent: bench\r\n%b\r\n"


class WrongAnswer(Exception):
    """Not the answer that was to be measured."""


def measure_health(results: Results, plan: Plan, folder: Path) -> None:
    """Poll a gateway that has nothing else to do."""
    extra = {"health": {"addresses": f'["{LOOPBACK}"]'}}
    with FedGateway(folder / "health", series=1, instances=1, extra=extra) as feed:
        door = _Door(feed.gateway.wado_port, feed.gateway.market_root)
        seconds = plan.health_seconds
        door.ask(door.connect())
        at_rest = _cpu(feed.gateway.pid, lambda: time.sleep(seconds))
        kept = [door.connect() for _ in range(_KEPT)]
        for name, poll in (
            ("kept", lambda number: door.ask(kept[number % _KEPT])),
            ("new", lambda _: door.ask(door.connect(), last=True)),
        ):
            started = time.monotonic()
            used = _cpu(feed.gateway.pid, lambda poll=poll: _paced(poll, round(seconds * RATE)))
            results.add(f"health.{name}.rate", round(seconds * RATE) / (time.monotonic() - started), "/s")
            results.add(f"health.{name}.cpu", 100 * (used - at_rest), "%")


def _cpu(pid: int, work: Callable[[], None]) -> float:
    """Return the part of a core that a process takes while `work` runs."""
    before, started = cpu_seconds(pid), time.monotonic()
    work()
    return (cpu_seconds(pid) - before) / (time.monotonic() - started)


def _paced(poll: Callable[[int], None], count: int) -> None:
    """Poll `count` times, `RATE` times a second."""
    started = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, started + number / RATE - time.monotonic()))
        poll(number)


class _Door:
    """The viewer name of the gateway."""

    def __init__(self, port: int, roots: str) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=roots)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((LOOPBACK, self._port), timeout=30)
        return self._context.wrap_socket(plain, server_hostname="vi1.349.mesimagesmedicales.fr")

    def ask(self, connection: ssl.SSLSocket, *, last: bool = False) -> None:
        """Poll once. Raises `WrongAnswer`."""
        connection.sendall(_QUESTION % (b"Connection: close\r\n" if last else b""))
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        if answer.status != 200 or not body.startswith(b'{"status":'):
            raise WrongAnswer(f"{answer.status} {body!r}")
        if last:
            connection.close()
