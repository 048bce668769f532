"""More than one process: nodes on one PostgreSQL behind HAProxy (`python -m bench --only nodes`).

Figures, for N nodes, all of them and everything else (PostgreSQL, HAProxy, PACS, DMP, RIS, clients) on this
one machine, so that no more is gained than it has cores to give:
- `nodes.N.accepted`, `nodes.N.published`: reports a second acknowledged, and published in the DMP, of a
  burst over `_CONNECTIONS` connections; PostgreSQL waits for the disk at every commit;
- `nodes.N.publication_cpu`: processor seconds of all nodes for each publication;
- `nodes.N.delivered`: MB/s of `_AT_ONCE` deliveries of the reference study at once, from a real PACS;
- `nodes.N.busiest`: part of the processor time of all nodes that the busiest one took for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bench.consumers import fetch_together
from bench.finder import FinderPacs
from bench.gateway import JPEG_LS, accept, settings_for
from bench.plan import Plan
from bench.processes import cpu_seconds
from bench.program import Program
from bench.results import Results
from bench.ris import Ris
from bench.study import reference_study
from drimbox.sim.peers import LOOPBACK, Dcmqrscp, find_program, free_port
from drimbox.sim.postgres import Cluster

#: Connections of the RIS, and deliveries at once: as many for any number of nodes.
_CONNECTIONS, _AT_ONCE = 8, 4
#: Seconds everything may take to start, a burst to be published.
_START, _LONGEST = 240.0, 900.0


class NotPublished(Exception):
    """Not every report ended in a publication: the figure would be worth nothing."""


def measure_nodes(results: Results, plan: Plan, folder: Path) -> None:
    """Measure each number of nodes of the plan. Raises `PeerMissing`, and `Absent` without PostgreSQL."""
    find_program("haproxy")
    find_program("dcmqrscp")
    cluster = Cluster(durable=True)
    try:
        cluster.start()
        for count in plan.nodes:
            _feed(results, plan, folder / f"feed-{count}", cluster, count)
            _deliver(results, plan, folder / f"deliver-{count}", cluster, count)
    finally:
        cluster.remove()


def _feed(results: Results, plan: Plan, folder: Path, cluster: Cluster, count: int) -> None:
    folder.mkdir(parents=True)
    pacs = FinderPacs(plan.feed_series, plan.feed_instances, log=folder / "finder.log")
    nodes = [{"dicom_port": free_port(), "pool": [f"N{number}"]} for number in range(count)]
    database = cluster.create()
    store = f"host={cluster.folder} user=drimbox dbname={database}"
    with (
        pacs,
        Ris(log=folder / "ris.log") as sender,
        _world(folder, cluster, database, pacs, nodes, ({}, {})) as (_, facts),
        psycopg.connect(store, autocommit=True) as connection,
    ):
        # The first ones make every connection and cache.
        warm = 2 * _CONNECTIONS
        sender.send(facts["hl7"], 0, warm, connections=_CONNECTIONS)
        _wait(connection, warm)
        before = sum(cpu_seconds(pid) for pid in facts["pids"])
        sending = sender.send(facts["hl7"], warm, plan.nodes_burst, connections=_CONNECTIONS)
        ended = _wait(connection, warm + plan.nodes_burst)
        used = sum(cpu_seconds(pid) for pid in facts["pids"]) - before
    results.add(f"nodes.{count}.accepted", sending.rate, "/s")
    results.add(f"nodes.{count}.published", plan.nodes_burst / (ended - sending.started), "/s")
    results.add(f"nodes.{count}.publication_cpu", used / plan.nodes_burst, "s")


def _wait(connection: psycopg.Connection[Any], count: int) -> float:
    """Wait until so many publications have ended; return when that was seen."""
    limit = time.monotonic() + _LONGEST
    while True:
        (done,) = connection.execute("SELECT count(*) FROM outbox WHERE state = 'done'").fetchall()[0]
        if done >= count:
            return time.monotonic()
        if time.monotonic() > limit:
            raise NotPublished(f"{done} publications of {count} reports")
        time.sleep(0.05)


def _deliver(results: Results, plan: Plan, folder: Path, cluster: Cluster, count: int) -> None:
    study = reference_study(plan.instances)
    nodes: list[dict[str, Any]] = [
        {"dicom_port": free_port(), "pool": [f"N{node}T{title}" for title in range(_AT_ONCE)]}
        for node in range(count)
    ]
    destinations = {title: (LOOPBACK, node["dicom_port"]) for node in nodes for title in node["pool"]}
    pacs = Dcmqrscp(folder / "pacs", move_destinations=destinations)
    pacs.load([instance.path for instance in study.instances])
    with (
        pacs,
        _world(folder, cluster, cluster.create(), pacs, nodes, settings_for(_AT_ONCE)) as (world, facts),
    ):
        kos = world.ask(publish=study.study_uid, timeout=_START)["kos"]
        seconds, shares = [], []
        for _ in range(plan.repeat_slow + 1):
            before = [cpu_seconds(pid) for pid in facts["pids"]]
            orders = [_order(world, facts, study.study_uid, study.series[0].series_uid, kos)] * _AT_ONCE
            found = fetch_together(orders, folder, at_least=study.size)
            begin = min(each.started_at for each in found)
            seconds.append(max(each.ended_at for each in found) - begin)
            used = [cpu_seconds(pid) - old for pid, old in zip(facts["pids"], before, strict=True)]
            shares.append(max(used) / sum(used))
    # The first one warms the PACS's files.
    best = min(range(1, len(seconds)), key=seconds.__getitem__)
    results.add(f"nodes.{count}.delivered", _AT_ONCE * study.size / 1e6 / seconds[best], "MB/s")
    results.add(f"nodes.{count}.busiest", shares[best], "ratio")


def _order(world: Program, facts: dict[str, Any], study: str, series: str, kos: str) -> dict[str, Any]:
    headers = [
        f"Accept: {accept(JPEG_LS)}",
        f"Authorization: Bearer {world.ask(token=True)['token']}",
        f"KOS-SOPInstanceUID: {kos}",
    ]
    return {
        **{key: facts[key] for key in ("port", "name", "roots", "certificate", "key")},
        "path": f"/dicom-web-rs/studies/{study}/series/{series}",
        "headers": headers,
    }


@contextmanager
def _world(
    folder: Path,
    cluster: Cluster,
    database: str,
    pacs: Any,
    nodes: list[dict[str, Any]],
    settings: tuple[dict[str, str], dict[str, dict[str, str]]],
) -> Iterator[tuple[Program, dict[str, Any]]]:
    """Start nodes before a PACS; yield the program behind them, and what it says of them."""
    of_pacs, extra = settings
    program = Program("bench.nodeworld", log=folder / "world.log", timeout=60.0)
    program.start()
    try:
        program.tell(
            folder=str(folder / "world"),
            store=cluster.url(database),
            ae_title=pacs.ae_title,
            port=pacs.port,
            nodes=nodes,
            settings=of_pacs,
            extra=extra,
        )
        yield program, program.read(timeout=_START)
    finally:
        program.stop()
