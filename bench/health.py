"""What it costs the gateway to be polled by the weather service 100 times a second (DB.SO.182).

Figures (`python -m bench --only health`), in percent of one core: processor time of the whole process over
the time it is polled, nothing taken off.
- `health.kept.cpu`: polls over a few connections that stay open; `health.new.cpu`: a connection and a TLS
  handshake for each; `health.rest.cpu`: no polls at all, which is part of the other two;
- `health.tcp.cpu`, `health.tls.cpu`, `health.web.cpu`: servers that do nothing but answer (`bench.bare`),
  polled in the same way over connections that stay open: the floor of Python and Twisted on this machine;
  `health.kept.to_tls`, `health.kept.to_web`: the gateway's over theirs;
- `health.kept.rate`, `health.new.rate`: polls a second that were answered, all of them `200` with JSON;
- `health.flat.gateway`, `health.flat.tls`, `health.flat.tcp`: microseconds of a poll when they come without
  a pause. The rest of what a paced one costs is waking up, with cold caches.

All take turns several times: what disturbs the machine disturbs them alike. Medians of the turns.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import attrs

from bench.feeding import FedGateway
from bench.plan import Plan
from bench.processes import exact_cpu_seconds
from bench.program import Program
from bench.results import Results
from drimbox.sim.peers import LOOPBACK
from drimbox.sim.pki import make_pki

RATE = 100
#: Connections that take turns, and times that every kind has its turn.
_KEPT, _TURNS = 4, 5
_NAME = "vi1.349.mesimagesmedicales.fr"
_QUESTION = b"GET /healthcheck/drimbox HTTP/1.1\r\nHost: vi1\r\nAccept: */*\r\nUser-Agent: bench\r\n%b\r\n"


class WrongAnswer(Exception):
    """Not the answer that was to be measured."""


@attrs.frozen
class _Polled:
    """A process, and how it is polled; the number of the poll says over which connection."""

    pid: int
    poll: Callable[[int], None]

    def paced(self, seconds: float) -> tuple[float, float]:
        """Poll `RATE` times a second; return percent of a core, and polls a second."""
        count = max(1, round(seconds * RATE))
        before, started = exact_cpu_seconds(self.pid), time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, started + number / RATE - time.monotonic()))
            self.poll(number)
        time.sleep(max(0.0, started + count / RATE - time.monotonic()))
        elapsed = time.monotonic() - started
        return 100 * (exact_cpu_seconds(self.pid) - before) / elapsed, count / elapsed

    def flat_out(self, seconds: float) -> float:
        """Poll without a pause; return microseconds of the process for each poll."""
        count, before, end = 0, exact_cpu_seconds(self.pid), time.monotonic() + seconds
        while not count or time.monotonic() < end:
            self.poll(count)
            count += 1
        return 1e6 * (exact_cpu_seconds(self.pid) - before) / count


def measure_health(results: Results, plan: Plan, folder: Path) -> None:
    """Poll a gateway that has nothing else to do, and servers that could not do anything else."""
    extra = {"health": {"addresses": f'["{LOOPBACK}"]'}}
    with (
        FedGateway(folder / "health", series=1, instances=1, extra=extra) as feed,
        _bare(folder / "bare") as (bare, doors),
    ):
        ours = _Door(feed.gateway.wado_port, feed.gateway.market_root)
        pid = feed.gateway.pid
        polled = {
            "kept": _Polled(pid, ours.over_kept()),
            "new": _Polled(pid, lambda _: ours.ask(ours.connect(), last=True)),
            **{name: _Polled(bare, door.over_kept()) for name, door in doors.items()},
        }
        _paced(results, polled, pid, plan.health_seconds / _TURNS)
        for name, key in (("gateway", "kept"), ("tls", "tls"), ("tcp", "tcp")):
            results.add(f"health.flat.{name}", polled[key].flat_out(plan.health_seconds / _TURNS), "µs")


def _paced(results: Results, polled: dict[str, _Polled], pid: int, seconds: float) -> None:
    cpu: dict[str, list[float]] = {name: [] for name in ("rest", *polled)}
    rate: dict[str, list[float]] = {"kept": [], "new": []}
    for one in polled.values():
        one.flat_out(seconds / 10)  # the first polls warm what is slow once only
    for _ in range(_TURNS):
        cpu["rest"].append(_Polled(pid, lambda _: None).paced(seconds)[0])
        for name, one in polled.items():
            used, answered = one.paced(seconds)
            cpu[name].append(used)
            rate.setdefault(name, []).append(answered)
    for name, values in cpu.items():
        results.add(f"health.{name}.cpu", statistics.median(values), "%")
    for name in ("kept", "new"):
        results.add(f"health.{name}.rate", statistics.median(rate[name]), "/s")
    for name in ("tls", "web"):
        ratios = [ours / theirs for ours, theirs in zip(cpu["kept"], cpu[name], strict=True)]
        results.add(f"health.kept.to_{name}", statistics.median(ratios), "ratio")


@contextmanager
def _bare(folder: Path) -> Iterator[tuple[int, dict[str, _Door]]]:
    """Start the bare servers; yield their process and their doors by name."""
    pki = make_pki(folder, sites=(), viewers=(_NAME,), structures={})
    pair = pki.viewers[_NAME]
    with Program("bench.bare", str(pair.certificate), str(pair.key), log=folder / "bare.log") as program:
        ports = program.read()
        roots: dict[str, str | None] = {
            "tcp": None,
            "tls": str(pki.market_root),
            "web": str(pki.market_root),
        }
        yield program.pid, {name: _Door(ports[name], root) for name, root in roots.items()}


class _Door:
    """The viewer name of the gateway, or a bare server; without `roots` there is no TLS."""

    def __init__(self, port: int, roots: str | None) -> None:
        self._port = port
        self._context = None if roots is None else ssl.create_default_context(cafile=roots)

    def connect(self) -> socket.socket:
        plain = socket.create_connection((LOOPBACK, self._port), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self._context is None else self._context.wrap_socket(plain, server_hostname=_NAME)

    def over_kept(self) -> Callable[[int], None]:
        """Open connections; return what polls over them in turn."""
        kept = [self.connect() for _ in range(_KEPT)]
        return lambda number: self.ask(kept[number % _KEPT])

    def ask(self, connection: socket.socket, *, last: bool = False) -> None:
        """Poll once. Raises `WrongAnswer`."""
        connection.sendall(_QUESTION % (b"Connection: close\r\n" if last else b""))
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        if answer.status != 200 or not body.startswith(b'{"status":'):
            raise WrongAnswer(f"{answer.status} {body!r}")
        if last:
            connection.close()
