"""Others at the same task, in turn with the gateway in the same run.

Figures, for a PACS named P, medians:
- `P.obvious.study`, `P.obvious.first_image`: the gateway made the obvious way (`bench.obvious`), plain
  HTTP, no check; `P.obvious_ratio`: its time over ours;
- `P.dicomweb.study`, `P.dicomweb.first_image`: Orthanc's DICOMweb plugin that serves the same study from
  its own disk over plain HTTP, to the same client; `P.dicomweb_ratio`: our time over its.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.consumers import Delivery, Order, fetch
from bench.gateway import Gateway
from bench.pipeline import deliver, middle
from bench.program import Program
from bench.site import OBVIOUS, Site
from drimbox.sim.peers import Orthanc, PeerMissing
from drimbox.sim.studies import GeneratedStudy

#: Where Debian's package puts the plugin.
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def measure_obvious(site: Site, gateway: Gateway) -> None:
    """Measure the gateway made the obvious way, in turn with ours."""
    program = Program(
        "bench.obvious",
        *(site.pacs.ae_title, str(site.pacs.port), OBVIOUS, str(site.obvious_port)),
        log=site.folder / "obvious.log",
    )
    with program:
        port = program.read()["port"]
        order = _order(port, "/studies/{}/series/{}", site.study)
        theirs, ours = _in_turn(site, gateway, order, site.plan.repeat_slow)
    whole = middle(theirs, lambda one: one.seconds)
    site.add("obvious.study", whole, "s")
    site.add("obvious.first_image", middle(theirs, lambda one: one.first), "s")
    site.add("obvious_ratio", whole / middle(ours, lambda one: one.seconds), "ratio")


def measure_dicomweb(site: Site, gateway: Gateway) -> None:
    """Measure Orthanc's DICOMweb from its own disk, in turn with ours."""
    with dicomweb(site.folder / "dicomweb") as (orthanc, version):
        orthanc.load(site.study.files)
        site.results.peers.setdefault("orthanc-dicomweb", version)
        order = _order(orthanc.http_port, "/dicom-web/studies/{}/series/{}", site.study)
        theirs, ours = _in_turn(site, gateway, order, site.plan.repeat)
    whole = middle(theirs, lambda one: one.seconds)
    site.add("dicomweb.study", whole, "s")
    site.add("dicomweb.first_image", middle(theirs, lambda one: one.first), "s")
    site.add("dicomweb_ratio", middle(ours, lambda one: one.seconds) / whole, "ratio")


@contextmanager
def dicomweb(folder: Path) -> Iterator[tuple[Orthanc, str]]:
    """Run an Orthanc with its DICOMweb plugin; give it with the plugin's version. Raises `PeerMissing`."""
    if not PLUGIN.exists():
        raise PeerMissing("orthanc-dicomweb")
    orthanc = Orthanc(folder, "DICOMWEB", settings={"Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True}})
    with orthanc:
        about: Any = orthanc.rest("GET", "/plugins/dicom-web")
        yield orthanc, str(about["Version"])


def _order(port: int, path: str, study: GeneratedStudy) -> Order:
    accept = 'Accept: multipart/related; type="application/dicom"; transfer-syntax=*'
    path = path.format(study.study_uid, study.series[0].series_uid)
    return {"port": port, "name": "localhost", "path": path, "headers": [accept]}


def _in_turn(
    site: Site, gateway: Gateway, order: Order, repeat: int
) -> tuple[list[Delivery], list[Delivery]]:
    theirs, ours = [], []
    fetch(order, site.folder, at_least=site.study.size)
    deliver(site, gateway, site.study)
    for _ in range(repeat):
        theirs.append(fetch(order, site.folder, at_least=site.study.size))
        ours.append(deliver(site, gateway, site.study))
    return theirs, ours
