"""One PACS under measurement: running, loaded with the study, knowing every destination of the bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from bench.move import CALLING
from bench.results import Results
from drimbox.sim.peers import LOOPBACK, Dcmqrscp, Orthanc, Peer, free_port
from drimbox.sim.studies import GeneratedStudy

#: AE titles of the gateway, all on one port: what a site's PACS would know.
GATEWAY_POOL = ("DRIMBOX1", "DRIMBOX2", "DRIMBOX3", "DRIMBOX4")
#: AE title of each bare receiver.
RECEIVERS = {"null": "NULL", "pynetdicom": "PYNETDICOM", "storescp": "STORESCP", "movescu": "MOVESCU"}
PACS_NAMES = ("dcmqrscp", "orthanc")


@attrs.frozen
class Site:
    """What a measure is given."""

    #: `dcmqrscp` or `orthanc`: the first part of the names of its figures.
    name: str
    pacs: Peer
    study: GeneratedStudy
    results: Results
    #: Port of each bare receiver, by kind.
    ports: dict[str, int]
    #: Port on which the PACS expects every title of `GATEWAY_POOL`.
    gateway_port: int
    #: Where a measure may write.
    folder: Path
    repeat: int = 3


@contextmanager
def open_site(
    name: str, folder: Path, study: GeneratedStudy, results: Results, repeat: int
) -> Iterator[Site]:
    """Start a PACS in `folder`, load the study, and stop it at the end. Raises `PeerMissing`."""
    ports = {kind: free_port() for kind in RECEIVERS}
    gateway_port = free_port()
    destinations = {title: (LOOPBACK, ports[kind]) for kind, title in RECEIVERS.items()}
    destinations |= dict.fromkeys(GATEWAY_POOL, (LOOPBACK, gateway_port))
    pacs: Peer
    if name == "dcmqrscp":
        pacs = Dcmqrscp(folder / name, move_destinations=destinations)
    else:
        pacs = Orthanc(folder / name, modalities=destinations, clients=[CALLING])
    with pacs:
        pacs.load(study.files)
        results.peers[name] = pacs.version
        yield Site(name, pacs, study, results, ports, gateway_port, folder, repeat)
