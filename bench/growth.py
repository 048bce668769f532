"""What grows with the study: time, which may, in proportion; memory, which may not.

Figures, for a PACS named P and a study of N instances:
- `P.growth.N.study`, `P.growth.N.bare_move`, `P.growth.N.ratio`: delivery, bare C-MOVE, the one over the
  other; `P.growth.N.rate`: instances a second;
- `P.growth.N.memory`: most resident memory of the gateway during the first delivery, above idle; in it
  is what reading the KOS takes, once, in proportion to its length;
- `P.growth.N.memory_again`: the same during a later delivery, above what the process held before it;
- `P.growth.linearity`: time per instance of the largest study over that of the reference study;
  `P.growth.bare_linearity`: the same of the bare C-MOVE; `P.growth.memory_spread`: by how much
  `memory_again` of the largest exceeds that of the reference study;
- `P.tiny.study`, `P.tiny.rate`, `P.tiny.bare_rate`, `P.tiny.ratio`: many instances of 20 KB;
- on the first PACS `memory.idle`, `memory.fast_client`, `memory.slow_client`: resident memory of the
  gateway, and its peak above that for the reference study and for a client that reads 1 MB/s of 20 MB.

Idle is a gateway that has just been started and has published its studies, and has delivered none; memory
that the process keeps from one delivery to the next counts. So these measures start their own.

`dcmqrscp` keeps at most 1 GB of one study (6,600 instances of these): with it the largest is left out.
"""

from __future__ import annotations

import statistics

import attrs

from bench.baseline import Floor
from bench.gateway import Gateway
from bench.pipeline import deliver
from bench.processes import peak_mb, reset_peak, resident_mb
from bench.site import Site
from drimbox.sim.studies import GeneratedStudy

#: Instances above which one repetition is enough.
_LARGE = 5_000


@attrs.frozen
class Measured:
    """One study delivered and moved."""

    count: int
    seconds: float
    bare: float
    #: Most resident memory of the first delivery, and of a later one above what was held before it, MB.
    first_peak: float
    again: float

    @property
    def each(self) -> float:
        """Seconds for one instance."""
        return self.seconds / self.count

    @property
    def bare_each(self) -> float:
        """The same of the bare C-MOVE."""
        return self.bare / self.count


def measure_growth(site: Site) -> None:
    """Measure a small, the reference and a large study."""
    studies = site.studies
    wanted = [studies.small, studies.reference]
    if site.holds(studies.large):
        wanted.append(studies.large)
    else:
        why = f"{site.name} ne garde pas un examen de {studies.large.size / 1e9:.1f} Go"
        site.results.leave_out(f"{site.name}.growth.{len(studies.large.instances)}", why)
    sizes: list[Measured] = []
    with Floor(site) as floor, _fresh(site, "growth", wanted) as gateway:
        idle = resident_mb(gateway.pid)
        for study in wanted:
            one = _measure(site, gateway, floor, study)
            sizes.append(one)
            name = f"growth.{one.count}"
            site.add(f"{name}.study", one.seconds, "s")
            site.add(f"{name}.bare_move", one.bare, "s")
            site.add(f"{name}.ratio", one.seconds / one.bare, "ratio")
            site.add(f"{name}.rate", one.count / one.seconds, "images/s")
            site.add(f"{name}.memory", one.first_peak - idle, "MB")
            site.add(f"{name}.memory_again", one.again, "MB")
    if len(sizes) > 2:
        _, reference, largest = sizes
        site.add("growth.linearity", largest.each / reference.each, "ratio")
        site.add("growth.bare_linearity", largest.bare_each / reference.bare_each, "ratio")
        site.add("growth.memory_spread", largest.again - reference.again, "MB")


def measure_memory(site: Site) -> None:
    """Measure what a fast and a slow client make the gateway hold."""
    slow, results = site.studies.slow, site.results
    with _fresh(site, "memory", [site.study, slow]) as gateway:
        idle = resident_mb(gateway.pid)
        reset_peak(gateway.pid)
        for _ in range(site.plan.repeat_slow):
            deliver(site, gateway, site.study)
        results.add("memory.idle", idle, "MB")
        results.add("memory.fast_client", peak_mb(gateway.pid) - idle, "MB")
        reset_peak(gateway.pid)
        taken = deliver(site, gateway, slow, bytes_per_second=site.plan.slow_rate)
        results.add("memory.slow_client", peak_mb(gateway.pid) - idle, "MB")
        results.add("slow_client.study", taken.seconds, "s")


def measure_tiny(site: Site, gateway: Gateway) -> None:
    """Measure many small instances."""
    study = site.studies.tiny
    with Floor(site, syntax=study.transfer_syntax) as floor:
        one = _measure(site, gateway, floor, study)
    site.add("tiny.study", one.seconds, "s")
    site.add("tiny.rate", one.count / one.seconds, "images/s")
    site.add("tiny.bare_rate", one.count / one.bare, "images/s")
    site.add("tiny.ratio", one.seconds / one.bare, "ratio")


def _fresh(site: Site, name: str, studies: list[GeneratedStudy]) -> Gateway:
    return Gateway(site.folder / name, site.pacs, port=site.gateway_port, pool=site.pool, publish=studies)


def _measure(site: Site, gateway: Gateway, floor: Floor, study: GeneratedStudy) -> Measured:
    """Move and deliver a study in turn, after once each to warm caches."""
    count = len(study.instances)
    times, bare, again = [], [], []
    floor.move(study)
    reset_peak(gateway.pid)
    deliver(site, gateway, study, syntax=study.transfer_syntax)
    first_peak = peak_mb(gateway.pid)
    for _ in range(1 if count > _LARGE else site.plan.repeat_slow):
        bare.append(floor.move(study).seconds)
        reset_peak(gateway.pid)
        held = resident_mb(gateway.pid)
        times.append(deliver(site, gateway, study, syntax=study.transfer_syntax).seconds)
        again.append(peak_mb(gateway.pid) - held)
    return Measured(count, statistics.median(times), statistics.median(bare), first_peak, max(again))
