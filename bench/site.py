"""One PACS under measurement: running, loaded with the studies, knowing every destination of the bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from bench.move import CALLING
from bench.plan import Plan
from bench.results import Results
from bench.study import Studies
from drimbox.sim.peers import LOOPBACK, Dcmqrscp, Orthanc, Peer, free_port
from drimbox.sim.studies import GeneratedStudy

#: AE titles of the gateway behind the tap, all on one port.
TAPPED_POOL = ("TAPPED1", "TAPPED2", "TAPPED3", "TAPPED4")
#: AE title of each bare receiver.
RECEIVERS = {"null": "NULL", "pynetdicom": "PYNETDICOM", "storescp": "STORESCP", "movescu": "MOVESCU"}
#: AE title of the gateway made the obvious way.
OBVIOUS = "OBVIOUS"
PACS_NAMES = ("dcmqrscp", "orthanc")
#: Most bytes `dcmqrscp` keeps of one study, whatever its configuration says (DB_UpperMaxBytesPerStudy).
DCMQRSCP_STUDY = 1 << 30


@attrs.frozen
class Site:
    """What a measure is given."""

    #: `dcmqrscp` or `orthanc`: the first part of the names of its figures.
    name: str
    pacs: Peer
    studies: Studies
    plan: Plan
    results: Results
    #: Port of each bare receiver, by kind.
    ports: dict[str, int]
    #: AE titles of the gateway and the port on which the PACS expects them.
    pool: tuple[str, ...]
    gateway_port: int
    #: Port of the titles of `TAPPED_POOL`.
    tap_port: int
    #: Port of the title `OBVIOUS`.
    obvious_port: int
    #: Where a measure may write.
    folder: Path

    @property
    def study(self) -> GeneratedStudy:
        """The reference study."""
        return self.studies.reference

    def holds(self, study: GeneratedStudy) -> bool:
        """Say whether this PACS can hold all of a study."""
        return self.name != "dcmqrscp" or study.size < DCMQRSCP_STUDY

    def add(self, name: str, value: float, unit: str) -> None:
        """Add a figure under the name of this PACS."""
        self.results.add(f"{self.name}.{name}", value, unit)


@contextmanager
def open_site(name: str, folder: Path, studies: Studies, plan: Plan, results: Results) -> Iterator[Site]:
    """Start a PACS in `folder`, load the studies, and stop it at the end. Raises `PeerMissing`."""
    ports = {kind: free_port() for kind in RECEIVERS}
    gateway_port, tap_port, obvious_port = free_port(), free_port(), free_port()
    pool = tuple(f"DRIMBOX{number}" for number in range(1, max(4, *plan.parallel) + 1))
    destinations = {title: (LOOPBACK, ports[kind]) for kind, title in RECEIVERS.items()}
    destinations |= dict.fromkeys(pool, (LOOPBACK, gateway_port))
    destinations |= dict.fromkeys(TAPPED_POOL, (LOOPBACK, tap_port))
    destinations[OBVIOUS] = (LOOPBACK, obvious_port)
    pacs: Peer
    if name == "dcmqrscp":
        pacs = Dcmqrscp(folder / name, move_destinations=destinations)
    else:
        pacs = Orthanc(folder / name, modalities=destinations, clients=[CALLING])
    with pacs:
        results.peers[name] = pacs.version
        site = Site(
            name,
            pacs,
            studies,
            plan,
            results,
            ports,
            pool,
            gateway_port,
            tap_port,
            obvious_port,
            folder,
        )
        for study in attrs.asdict(studies, recurse=False).values():
            if site.holds(study):
                pacs.load(study.files)
        yield site
