"""From the RIS to the national record: what is accepted, how long one takes, how many pass a second.

Figures (`python -m bench --only feed`), of small studies unless said otherwise:
- `feed.latency.*`, one report at a time, everything idle, medians in seconds: `ack` from its last byte to
  its acknowledgement; `dmp` to the last byte of TD2.1 at the DMP; `published` to the commit that says so
  in the archive; the steps between them: `read`, `match` (C-FIND, manifest, signature), `queue` (to the
  question TD0.2 at the DMP), `ask` (to TD2.1), `judge` (the DMP's own time, to the question TD3.1), `end`;
- `feed.latency.large.dmp`: the same of a study of some hundred instances;
- `feed.accept.N.rate`: reports acknowledged a second over N connections, in bursts, while the feed works
  behind them on those before; `feed.accept.N.wait`: median seconds a report waits for its acknowledgement;
- `feed.accept.large.rate`, `feed.accept.large.throughput`: the same of reports of 10 MB, one connection;
- `feed.publications`: publications a second, end to end, from the first byte of a burst to its last
  publication; `feed.publications.large`: of a study of some hundred instances;
- `feed.cpu.*`: processor seconds of each process for one publication, and `feed.cpu.dmp_share`, what part
  of all of them is the simulated DMP's, which checks every signature.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import attrs

from bench.feeding import FedGateway, Work
from bench.plan import Plan
from bench.results import Results
from bench.ris import LARGE, Sending

#: Seconds a publication may take at the most, on a machine with other work.
_EACH = 2.0
_AT_LEAST = 60.0


class NotInOrder(Exception):
    """The DMP was not asked what a first publication asks: the steps would mean something else."""


@attrs.frozen
class Burst:
    """Reports sent as fast as they are accepted, and published."""

    sending: Sending
    #: Publications a second.
    rate: float
    work: Work


def measure_latency(results: Results, plan: Plan, folder: Path) -> None:
    """Measure one report at a time."""
    with small_studies(plan, folder) as feed:
        rows = [_one(feed) for _ in range(plan.feed_repeat + 1)][1:]
        for name in rows[0]:
            results.add(f"feed.latency.{name}", statistics.median(row[name] for row in rows), "s")
    with large_studies(plan, folder) as feed:
        rows = [_one(feed) for _ in range(plan.feed_repeat + 1)][1:]
        results.add("feed.latency.large.dmp", statistics.median(row["dmp"] for row in rows), "s")


def measure_bursts(results: Results, plan: Plan, folder: Path) -> None:
    """Measure what is accepted and what is published, over one and several connections."""
    bursts: list[Burst] = []
    with small_studies(plan, folder) as feed:
        _burst(feed, plan.feed_burst // 5, 1)
        for connections in plan.feed_connections:
            some = [_burst(feed, plan.feed_burst, connections) for _ in range(plan.feed_bursts)]
            name = f"feed.accept.{connections}"
            results.add(f"{name}.rate", statistics.median(one.sending.rate for one in some), "reports/s")
            waits = [wait for one in some for wait in one.sending.waits]
            results.add(f"{name}.wait", statistics.median(waits), "s")
            bursts += some
    results.add("feed.publications", statistics.median(one.rate for one in bursts), "/s")
    _add_work(results, bursts, plan.feed_burst)
    with large_studies(plan, folder) as feed:
        _burst(feed, plan.feed_large_burst // 5 + 1, 1)
        one = _burst(feed, plan.feed_large_burst, plan.feed_connections[-1])
        results.add("feed.publications.large", one.rate, "/s")


def measure_large_reports(results: Results, plan: Plan, folder: Path) -> None:
    """Measure reports of 10 MB."""
    with small_studies(plan, folder) as feed:
        feed.send(1, pdf=LARGE)
        sending = feed.send(plan.feed_large_reports, pdf=LARGE)
        _settle(feed, plan.feed_large_reports)
    results.add("feed.accept.large.size", sending.size / 1e6, "MB")
    results.add("feed.accept.large.rate", sending.rate, "reports/s")
    results.add("feed.accept.large.throughput", sending.rate * sending.size / 1e6, "MB/s")


def small_studies(plan: Plan, folder: Path) -> FedGateway:
    """Return a gateway before studies of a few images."""
    return FedGateway(folder / "small", series=plan.feed_series, instances=plan.feed_instances)


def large_studies(plan: Plan, folder: Path) -> FedGateway:
    """Return a gateway before studies of some hundred images."""
    return FedGateway(folder / "large", series=plan.feed_series, instances=plan.feed_large_instances)


def _one(feed: FedGateway) -> dict[str, float]:
    """Send one report to an idle gateway and follow it."""
    number = feed.reports
    feed.gateway.arrivals()
    sending = feed.send(1)
    (sent,), (acked,) = sending.sent, sending.acked
    done = feed.wait_published(seconds=_AT_LEAST, soon=True)
    steps = feed.steps(number)
    arrivals = dict(feed.gateway.arrivals())
    if list(arrivals) != ["TD0.2", "TD2.1", "TD3.1"]:
        raise NotInOrder(f"the DMP saw {list(arrivals)}")
    asked, published, looked = arrivals.values()
    return {
        "ack": acked - sent,
        "dmp": published - sent,
        "published": done - sent,
        "read": steps.read - sent,
        "match": steps.matched - steps.read,
        "queue": asked - steps.matched,
        "ask": published - asked,
        "judge": looked - published,
        "end": done - looked,
    }


def _burst(feed: FedGateway, count: int, connections: int) -> Burst:
    before = feed.work()
    sending = feed.send(count, connections=connections)
    last = _settle(feed, count)
    return Burst(sending, count / (last - sending.started), feed.work() - before)


def _settle(feed: FedGateway, count: int) -> float:
    """Wait until everything is published; return when the last one was."""
    feed.wait_published(seconds=_AT_LEAST + _EACH * count)
    return feed.ended("outbox")[-1]


def _add_work(results: Results, bursts: Sequence[Burst], count: int) -> None:
    names = [each.name for each in attrs.fields(Work)]
    each = {name: statistics.median(getattr(one.work, name) / count for one in bursts) for name in names}
    for name, seconds in each.items():
        results.add(f"feed.cpu.{name}", seconds, "s")
    results.add("feed.cpu.dmp_share", each["dmp"] / sum(each.values()), "ratio")
