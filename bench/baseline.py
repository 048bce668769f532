"""What the same C-MOVE costs without the gateway: the floor, and what other receivers make of it.

The floor is a C-MOVE into the null receiver, asked for by the null receiver's own process with the
socket options of the pipeline (`bench.mover`): the PACS and the wire. It is measured in turn with
whatever is divided by it, so `Floor` is what those measures hold.

Figures, for a PACS named P, the reference study in seconds:
- `P.pynetdicom_receiver.study`: into pynetdicom;
- `P.dcmtk_receiver.study`: into `movescu +P --ignore`: one or two minutes whatever the PACS, so it is
  measured once, on the first; `P.storescp_receiver.study`: into DCMTK's `storescp --ignore`, as slow, on
  demand.
"""

from __future__ import annotations

import statistics
from types import TracebackType
from typing import Self

import attrs

from bench.gateway import JPEG_LS
from bench.move import bare_move
from bench.processes import cpu_seconds, session_cpu_seconds
from bench.receivers import Kind, Receiver
from bench.site import RECEIVERS, Site
from drimbox.sim.studies import GeneratedStudy


class Incomplete(Exception):
    """A receiver did not get every instance of the study: the figure would be worth nothing."""


@attrs.frozen
class Bare:
    """One C-MOVE, or several at once, into a receiver that keeps nothing."""

    seconds: float
    #: Seconds from the request to the end of the first data set.
    first: float
    #: Processor seconds of the PACS and of the receiver.
    pacs_cpu: float
    receiver_cpu: float


class Floor:
    """The null receiver, waiting; a context manager. `syntax` is that of what will be moved."""

    def __init__(self, site: Site, *, syntax: str = JPEG_LS) -> None:
        self._site = site
        self._receiver = _receiver(site, "null", preferred=syntax)

    def __enter__(self) -> Self:
        self._receiver.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiver.__exit__(kind, error, trace)

    def move(self, study: GeneratedStudy, *, at_once: int = 1) -> Bare:
        """Move a study so many times at once. Raises `Incomplete`, `MoveFailed`."""
        pacs = self._site.pacs
        assert pacs.pid is not None
        pacs_cpu, receiver_cpu = session_cpu_seconds(pacs.pid), cpu_seconds(self._receiver.pid)
        taken, reception = self._receiver.move(pacs, study, at_once)
        due = at_once * len(study.instances)
        if reception.instances != due:
            raise Incomplete(f"{reception.instances} instances of {due}")
        return Bare(
            taken.seconds,
            reception.first_at - taken.started_at,
            session_cpu_seconds(pacs.pid) - pacs_cpu,
            cpu_seconds(self._receiver.pid) - receiver_cpu,
        )

    def movescu(self, study: GeneratedStudy) -> float:
        """Move a study once, asked for by DCMTK's `movescu`; return its seconds. Raises `MoveFailed`."""
        taken = bare_move(self._site.pacs, study, RECEIVERS["null"])
        self._receiver.report()
        return taken.seconds


def measure_receivers(site: Site, *, everything: bool = False) -> None:
    """Measure the C-MOVE into other receivers; DCMTK's when the plan says so."""
    _add(site, "pynetdicom_receiver.study", _moved(site, "pynetdicom", site.plan.repeat_slow))
    if site.plan.dcmtk and site.results.get("dcmtk_receiver.study") is None:
        taken = bare_move(site.pacs, site.study, RECEIVERS["movescu"], receive_on=site.ports["movescu"])
        _add(site, "dcmtk_receiver.study", taken.seconds)
    if everything:
        _add(site, "storescp_receiver.study", _moved(site, "storescp", 1))


def _moved(site: Site, kind: Kind, repeat: int) -> float:
    """Return the median seconds of moves into a receiver, asked for by `movescu`."""
    due = len(site.study.instances)
    times = []
    with _receiver(site, kind) as receiver:
        for _ in range(repeat):
            times.append(bare_move(site.pacs, site.study, RECEIVERS[kind]).seconds)
            reception = receiver.report()
            if reception is not None and reception.instances != due:
                raise Incomplete(f"{kind}: {reception.instances} instances of {due}")
    return statistics.median(times)


def _receiver(site: Site, kind: Kind, preferred: str = JPEG_LS) -> Receiver:
    return Receiver(
        kind,
        site.ports[kind],
        ae_title=RECEIVERS[kind],
        log=site.folder / f"{kind}.log",
        preferred=preferred,
    )


def _add(site: Site, name: str, value: float) -> None:
    """Keep a figure under its PACS, and under its bare name for the first PACS measured."""
    site.add(name, value, "s")
    if site.results.get(name) is None:
        site.results.add(name, value, "s")
