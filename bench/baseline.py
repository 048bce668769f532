"""What the same C-MOVE costs without the gateway: the floor, and what others make of it.

Figures, for a PACS named P:
- `P.bare_move`: C-MOVE into the null receiver, median of the repetitions: the floor. The pipeline
  ratio divides by it. `P.bare_first_image` is the time to the end of the first data set.
- `P.pynetdicom_receiver.study`, `P.dcmtk_receiver.study`: into pynetdicom, and into `movescu +P
  --ignore`; `P.storescp_receiver.study`: into DCMTK's `storescp --ignore`, when all are asked for.
  DCMTK's take one or two minutes for the whole study, so they are measured once.
"""

from __future__ import annotations

import statistics

from bench.move import bare_move
from bench.receivers import Kind, Receiver
from bench.site import RECEIVERS, Site


class Incomplete(Exception):
    """A receiver did not get every instance of the study: the figure would be worth nothing."""


def measure_floor(site: Site) -> None:
    """Measure the C-MOVE into the null receiver."""
    whole, first = _into_receiver(site, "null", site.repeat)
    site.results.add(f"{site.name}.bare_move", whole, "s")
    site.results.add(f"{site.name}.bare_first_image", first, "s")
    site.results.add(f"{site.name}.bare_rate", site.study.size / whole / 1e6, "MB/s")


def measure_others(site: Site, *, dcmtk: bool, everything: bool) -> None:
    """Measure the same into pynetdicom and, when wanted, DCMTK's receivers."""
    whole, _ = _into_receiver(site, "pynetdicom", site.repeat)
    _add(site, "pynetdicom_receiver.study", whole)
    if dcmtk:
        taken = bare_move(site.pacs, site.study, RECEIVERS["movescu"], receive_on=site.ports["movescu"])
        _add(site, "dcmtk_receiver.study", taken.seconds)
    if everything:
        whole, _ = _into_receiver(site, "storescp", 1)
        site.results.add(f"{site.name}.storescp_receiver.study", whole, "s")


def _add(site: Site, name: str, value: float) -> None:
    """Keep a figure under its PACS, and under its bare name for the first PACS measured."""
    site.results.add(f"{site.name}.{name}", value, "s")
    if site.results.get(name) is None:
        site.results.add(name, value, "s")


def _into_receiver(site: Site, kind: Kind, repeat: int) -> tuple[float, float]:
    """Return the median seconds of the move and of its first image (0 from one that does not count)."""
    due = len(site.study.instances)
    whole, first = [], []
    with Receiver(kind, site.ports[kind], ae_title=RECEIVERS[kind]) as receiver:
        for _ in range(repeat):
            taken = bare_move(site.pacs, site.study, RECEIVERS[kind])
            reception = receiver.report()
            whole.append(taken.seconds)
            if reception is None:
                continue
            if reception.instances != due:
                raise Incomplete(f"{kind}: {reception.instances} instances of {due}")
            first.append(reception.first_at - taken.started_at)
    return statistics.median(whole), statistics.median(first) if first else 0.0
