"""The gateway itself: whole study, ratio to the bare C-MOVE, processor time (DB.SO.113, DB.SO.100).

Figures, for a PACS named P, all medians of repetitions in which the bare C-MOVE and the delivery take
turns, so that what disturbs the machine disturbs both:
- `P.bare_move`, `P.bare_first_image`, `P.bare_rate`: C-MOVE of the reference study into the null
  receiver: the floor;
- `P.study` (T3-T1), `P.rate`, and `P.pipeline_ratio`, `P.study` over `P.bare_move`;
- `P.movescu_move`, `P.movescu_ratio`: the same when DCMTK's `movescu` asks for the bare C-MOVE, as an
  integrator would measure it: some 100 ms of its own are in it (`bench.mover`);
- `P.cpu.*`: processor seconds of one delivery, by process, and of one bare C-MOVE: on few cores their
  sum is what bounds the time.

The gateway runs as deployed (`twistd drimbox`), the client in a process of its own, over mutual TLS with
whitelist and introspection on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from bench.baseline import Bare, Floor
from bench.consumers import Delivery, fetch
from bench.gateway import Gateway
from bench.processes import cpu_seconds, session_cpu_seconds
from bench.site import Site
from drimbox.sim.studies import GeneratedStudy

One = TypeVar("One")


@attrs.frozen
class Cost:
    """One delivery, and the processor seconds of the two at its other end."""

    delivery: Delivery
    gateway_cpu: float
    pacs_cpu: float


def deliver(site: Site, gateway: Gateway, study: GeneratedStudy, **more: Any) -> Delivery:
    """Have one client fetch the only series of a study, whole."""
    return fetch(gateway.order(study, **more), site.folder, at_least=study.size)


def deliver_and_weigh(site: Site, gateway: Gateway, study: GeneratedStudy) -> Cost:
    """Have one client fetch the only series of a study; say what it cost."""
    order = gateway.order(study)
    assert site.pacs.pid is not None
    before = cpu_seconds(gateway.pid), session_cpu_seconds(site.pacs.pid)
    delivery = fetch(order, site.folder, at_least=study.size)
    return Cost(
        delivery,
        cpu_seconds(gateway.pid) - before[0],
        session_cpu_seconds(site.pacs.pid) - before[1],
    )


def measure_pipeline(site: Site, gateway: Gateway) -> None:
    """Measure floor and gateway in turn and add their figures."""
    study = site.study
    bare: list[Bare] = []
    ours: list[Cost] = []
    asked: list[float] = []
    with Floor(site) as floor:
        floor.move(study)
        deliver(site, gateway, study)  # the first of each warms caches of all sides
        for _ in range(site.plan.repeat):
            bare.append(floor.move(study))
            ours.append(deliver_and_weigh(site, gateway, study))
            asked.append(floor.movescu(study))
    move, whole = middle(bare, lambda one: one.seconds), middle(ours, lambda one: one.delivery.seconds)
    site.add("bare_move", move, "s")
    site.add("bare_first_image", middle(bare, lambda one: one.first), "s")
    site.add("bare_rate", study.size / move / 1e6, "MB/s")
    site.add("study", whole, "s")
    site.add("rate", study.size / whole / 1e6, "MB/s")
    site.add("pipeline_ratio", whole / move, "ratio")
    site.add("movescu_move", statistics.median(asked), "s")
    site.add("movescu_ratio", whole / statistics.median(asked), "ratio")
    site.add("cpu.gateway", middle(ours, lambda one: one.gateway_cpu), "s")
    site.add("cpu.pacs", middle(ours, lambda one: one.pacs_cpu), "s")
    site.add("cpu.client", middle(ours, lambda one: one.delivery.cpu), "s")
    site.add("cpu.bare_pacs", middle(bare, lambda one: one.pacs_cpu), "s")
    site.add("cpu.bare_receiver", middle(bare, lambda one: one.receiver_cpu), "s")


def middle(many: Sequence[One], value: Callable[[One], float]) -> float:
    """Return the median of a value of each."""
    return statistics.median(value(one) for one in many)
