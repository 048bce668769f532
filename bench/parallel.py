"""Many at once: what the deliveries of a moment bring together.

Figures, for a PACS named P and N deliveries of the reference study at once:
- `P.parallel.N.rate`, `P.parallel.N.bare_rate`: MB/s of all together, delivered, and moved into the null
  receiver; from the instant all ask to the end of the last;
- `P.parallel.N.to_single`, `P.parallel.N.to_bare`: that rate over the rate of one delivery alone, and
  over that of as many bare C-MOVEs at once; `P.parallel.N.kept`: the better of the two;
- `P.parallel.N.slowest`: seconds of the slowest delivery over those of the fastest;
- `P.parallel.N.memory`: most resident memory of the gateway meanwhile, above what it held before them.

All ask for the same study, each with its own C-MOVE (the gateway shares none), so that the PACS reads
the same files for one and for many.
"""

from __future__ import annotations

import statistics

from bench.baseline import Floor
from bench.consumers import fetch_together
from bench.gateway import Gateway
from bench.processes import peak_mb, reset_peak, resident_mb
from bench.site import Site

#: Deliveries at once from which one repetition is enough.
_MANY = 10


def measure_parallel(site: Site, gateway: Gateway) -> None:
    """Measure each number of deliveries of the plan."""
    study = site.study
    idle = resident_mb(gateway.pid)
    rates: dict[int, float] = {}
    with Floor(site) as floor:
        for number in site.plan.parallel:
            times, bare, slowest = [], [], []
            reset_peak(gateway.pid)
            for _ in range(_repeat(site, number)):
                bare.append(floor.move(study, at_once=number).seconds)
                orders = [gateway.order(study) for _ in range(number)]
                deliveries = fetch_together(orders, site.folder, at_least=study.size)
                begin = min(one.started_at for one in deliveries)
                times.append(max(one.ended_at for one in deliveries) - begin)
                slowest.append(
                    max(one.seconds for one in deliveries) / min(one.seconds for one in deliveries)
                )
            volume = number * study.size / 1e6
            rates[number] = rate = volume / statistics.median(times)
            bare_rate = volume / statistics.median(bare)
            name = f"parallel.{number}"
            site.add(f"{name}.rate", rate, "MB/s")
            site.add(f"{name}.bare_rate", bare_rate, "MB/s")
            if number > 1:
                to_single, to_bare = rate / rates[1], rate / bare_rate
                site.add(f"{name}.to_single", to_single, "ratio")
                site.add(f"{name}.to_bare", to_bare, "ratio")
                site.add(f"{name}.kept", max(to_single, to_bare), "ratio")
                site.add(f"{name}.slowest", statistics.median(slowest), "ratio")
            site.add(f"{name}.memory", peak_mb(gateway.pid) - idle, "MB")


def _repeat(site: Site, number: int) -> int:
    """Repeat most the single one, which all are divided by; the many are an average by themselves."""
    if number == 1:
        return site.plan.repeat
    return site.plan.repeat_slow if number < _MANY else 1
