"""Ten thousand reports in the inbox when the gateway starts: does it slow down as its tables grow?

Figures (`python -m bench --only drain`):
- `drain.reports`: how many waited; `drain.publications`: publications a second over all of them;
- `drain.start`, `drain.middle`, `drain.end`: publications a second in the first, a middle and the last
  tenth of them; `drain.kept`: the slowest of middle and end over the start. Reading and matching, ahead of
  the publications, share the processor with the first ones;
- `drain.memory.start`, `.middle`, `.end`, `.peak`: resident memory of the gateway, MB;
- `drain.bytes`: bytes of the store for one report that was received, published and archived;
- `export.rate`, `export.memory`: then the archive is exported, one month of it all (DB.SO.29): manifests a
  second, and the peak of the gateway above what it held before, MB.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench.feeding import FedGateway
from bench.plan import Plan
from bench.processes import peak_mb, reset_peak, resident_mb
from bench.results import Results
from drimbox.commands.process import AdminClient
from drimbox.sim.peers import LOOPBACK

#: Seconds for one report at the most, on a machine with other work, and for the whole at the least.
_EACH, _AT_LEAST = 1.0, 120.0
#: Seconds between two looks.
_LOOK = 1.0


class Stuck(Exception):
    """The reports were not published in the time they were given."""


def measure_drain(results: Results, plan: Plan, folder: Path) -> None:
    """Start a gateway with a full inbox and watch it."""
    count = plan.feed_backlog
    with FedGateway(
        folder / "drain", series=plan.feed_series, instances=plan.feed_instances, backlog=count
    ) as feed:
        memory = watch(feed, count)
        peak = peak_mb(feed.gateway.pid)
        times = feed.ended("outbox")
        size = feed.store_size()
        measure_export(results, feed, folder / "export")
    tenth = max(2, count // 10)
    middle = (count - tenth) // 2
    parts = {
        "start": times[:tenth],
        "middle": times[middle : middle + tenth],
        "end": times[-tenth:],
    }
    rates = {name: rate(part) for name, part in parts.items()}
    results.add("drain.reports", count, "reports")
    results.add("drain.publications", rate(times), "/s")
    for name, value in rates.items():
        results.add(f"drain.{name}", value, "/s")
    results.add("drain.kept", min(rates["middle"], rates["end"]) / rates["start"], "ratio")
    for name, place in (("start", 0), ("middle", len(memory) // 2), ("end", -1)):
        results.add(f"drain.memory.{name}", memory[place], "MB")
    results.add("drain.memory.peak", peak, "MB")
    results.add("drain.bytes", size / count / 1000, "KB")


def measure_export(results: Results, feed: FedGateway, folder: Path) -> None:
    """Have the gateway export everything it has published. Raises `Stuck`."""
    folder.mkdir()
    admin = AdminClient(LOOPBACK, feed.gateway.admin_port)
    before = resident_mb(feed.gateway.pid)
    reset_peak(feed.gateway.pid)
    started = time.monotonic()
    admin.ask("POST", "/archive/export", {"folder": str(folder)})
    while (job := admin.ask("GET", "/archive")["job"])["running"]:
        if time.monotonic() - started > _AT_LEAST + _EACH * feed.reports:
            raise Stuck(f"{job['done']} of {job['total']} manifests exported")
        time.sleep(_LOOK / 4)
    seconds = time.monotonic() - started
    if job["error"] or sum(file["sets"] for file in job["result"]["files"]) != feed.reports:
        raise Stuck(f"not everything was exported: {job['error'] or job['result']}")
    results.add("export.rate", feed.reports / seconds, "KOS/s")
    results.add("export.memory", peak_mb(feed.gateway.pid) - before, "MB")


def watch(feed: FedGateway, count: int) -> list[float]:
    """Wait until all is published; return the resident memory of the gateway meanwhile. Raises `Stuck`."""
    limit = time.monotonic() + _AT_LEAST + _EACH * count
    memory = [resident_mb(feed.gateway.pid)]
    while (done := feed.published()) < count:
        if time.monotonic() > limit:
            raise Stuck(f"{done} of {count} reports published")
        time.sleep(_LOOK)
        memory.append(resident_mb(feed.gateway.pid))
    return memory


def rate(times: Sequence[float]) -> float:
    """Return how many a second there are of what ended at these instants."""
    return (len(times) - 1) / (times[-1] - times[0])
