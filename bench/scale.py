"""A whole archive at work: loaded, held against the PACS, exported, in memory that does not grow with it.

Figures (`python -m bench --only scale`), of a gateway as deployed before a PACS that holds every study
(`bench.finder`); memory is the peak of the gateway above what it held before, MB, time is its own processor
time, seconds a KOS:
- `scale.import.kos`, `.rate`, `.cpu`, `.memory`: the archive of another DRIMbox is loaded (DB.SO.30), KOS
  a second, each in a durable transaction of its own;
- `scale.resync.kos`, `.rate`, `.cpu`, `.memory`: then all of it is held against the PACS (DB.SO.28), which
  nothing changed in, KOS a second; the first time, in which each also gets its digest;
- `scale.export.kos`, `.rate`, `.cpu`, `.memory`, `.each`: with more loaded, all of it is exported as one
  month (DB.SO.29), KOS a second and seconds a KOS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.feeding import FedGateway
from bench.months import write_month
from bench.plan import Plan
from bench.processes import cpu_seconds, peak_mb, reset_peak, resident_mb
from bench.results import Results
from drimbox.commands.process import AdminClient
from drimbox.configfile import load
from drimbox.sim.peers import LOOPBACK

#: What an operator sets who wants the walk over before the morning.
_SETTINGS: Mapping[str, Mapping[str, str]] = {"resync": {"rate": "1000", "parallel": "4"}}
#: Seconds for one KOS at the most, on a machine with other work, and for the whole at the least.
_EACH, _AT_LEAST = 0.5, 120.0
#: Seconds between two looks.
_LOOK = 0.25
_SITE = "site1"


class NotDone(Exception):
    """Something was not done to all of it, or not in time: the figure would be worth nothing."""


def measure_scale(results: Results, plan: Plan, folder: Path) -> None:
    """Load, hold against the PACS, export."""
    sizes = {"series": plan.feed_series, "instances": plan.feed_instances}
    with FedGateway(folder / "gateway", **sizes, extra=_SETTINGS) as feed:
        admin = AdminClient(LOOPBACK, feed.gateway.admin_port)
        config = load(feed.gateway.folder / "drimbox.toml")
        walked = range(plan.scale_walk)
        more = range(plan.scale_walk, plan.scale_month)
        month = write_month(folder / "first", config, walked, **sizes)
        Measured(results, feed, "import", len(walked)).of(lambda: load_archive(admin, month, len(walked)))
        Measured(results, feed, "resync", len(walked)).of(lambda: resynchronise(admin, len(walked)))
        if more:
            rest = write_month(folder / "second", config, more, **sizes)
            load_archive(admin, rest, len(more))
        target = folder / "medium"
        target.mkdir()
        seconds = Measured(results, feed, "export", plan.scale_month).of(
            lambda: export(admin, target, plan.scale_month)
        )
        results.add("scale.export.each", seconds / plan.scale_month, "s")


class Measured:
    """What something costs the gateway that is done to so many KOS."""

    def __init__(self, results: Results, feed: FedGateway, name: str, count: int) -> None:
        self._results = results
        self._pid = feed.gateway.pid
        self._name = f"scale.{name}"
        self._count = count

    def of(self, work: Callable[[], None]) -> float:
        """Do it, add the figures, and return its seconds."""
        memory, worked, started = resident_mb(self._pid), cpu_seconds(self._pid), time.monotonic()
        reset_peak(self._pid)
        work()
        seconds = time.monotonic() - started
        self._results.add(f"{self._name}.kos", self._count, "KOS")
        self._results.add(f"{self._name}.rate", self._count / seconds, "KOS/s")
        self._results.add(f"{self._name}.cpu", (cpu_seconds(self._pid) - worked) / self._count, "s")
        self._results.add(f"{self._name}.memory", peak_mb(self._pid) - memory, "MB")
        return seconds


def load_archive(admin: AdminClient, month: Path, count: int) -> None:
    """Have the gateway load an archive. Raises `NotDone` unless all of it is."""
    result = finished(admin, "import", {"site": _SITE, "paths": [str(month)], "dry_run": False}, count)
    if result["counts"]["charge"] != count:
        raise NotDone(f"loaded: {result['counts']}")


def export(admin: AdminClient, folder: Path, count: int) -> None:
    """Have the gateway export everything. Raises `NotDone` unless it is one month of all."""
    result = finished(admin, "export", {"folder": str(folder), "large": True}, count)
    if [file["sets"] for file in result["files"]] != [count] or result["failed"]:
        raise NotDone(f"exported: {result}")


def finished(admin: AdminClient, work: str, order: Mapping[str, Any], count: int) -> Any:
    """Have a work on the archive done and return its result. Raises `NotDone`."""
    admin.ask("POST", f"/archive/{work}", dict(order))
    job = waited(lambda: admin.ask("GET", "/archive")["job"], lambda job: not job["running"], count)
    if job["error"]:
        raise NotDone(f"{work}: {job['error']}")
    return job["result"]


def resynchronise(admin: AdminClient, count: int) -> None:
    """Hold the archive against the PACS. Raises `NotDone` unless everything agrees."""
    number = admin.ask("POST", "/walks", {"kind": "resync", "site": _SITE, "dry_run": False})["walk"]
    walk = waited(
        lambda: admin.ask("GET", f"/walks/{number}"), lambda walk: walk["state"] != "running", count
    )
    told = [walk[name] for name in ("STR01", "STR02", "STR03", "STR04", "STR05")]
    if walk["state"] != "done" or told != [count, 0, 0, count, count]:
        raise NotDone(f"resynchronised: {walk['state']}, {told}")


def waited(look: Callable[[], Any], over: Callable[[Any], bool], count: int) -> Any:
    """Look until it is over; return what was seen then. Raises `NotDone`."""
    limit = time.monotonic() + _AT_LEAST + _EACH * count
    while not over(seen := look()):
        if time.monotonic() > limit:
            raise NotDone(f"too slow: {seen}")
        time.sleep(_LOOK)
    return seen
