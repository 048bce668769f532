"""The native profile: the gateway that reads an Orthanc on the same machine (DB.SO.165).

Figures, medians of repetitions in which all take turns:
- `native.study` (T3-T1), `native.first_image`, `native.rate`: a delivery of the reference study over
  mutual TLS, whitelist and introspection on, from an Orthanc of which the gateway reads the files;
- `native.bare_read`: the same files read from that Orthanc one after the other over one connection and
  dropped: what reading costs; `native.read_ratio`, `native.study` over it;
- `native.dicomweb_ratio`: `native.study` over the time of that very Orthanc's own DICOMweb plugin, which
  serves the study over plain HTTP to the same client, unchecked;
- `native.cpu.gateway`, `native.cpu.orthanc`: processor seconds of one delivery.

This module is also the process behind the gateway (`bench.gateway`): the same, with a native site.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet import defer, stdio, task

from bench.consumers import fetch
from bench.gateway import Gateway, _Behind, _Served, settings_for
from bench.pipeline import Cost, middle
from bench.processes import cpu_seconds, session_cpu_seconds
from bench.program import Program, say
from bench.rivals import _order, dicomweb
from bench.site import Site
from drimbox.sim.peers import Orthanc
from drimbox.sim.stand import NativeAddress, Stand
from drimbox.sim.studies import GeneratedStudy


class NativeGateway(Gateway):
    """A running gateway whose only site is a native archive."""

    def __init__(self, folder: Path, orthanc: Orthanc, *, publish: Sequence[GeneratedStudy] = ()) -> None:
        super().__init__(folder, orthanc, port=0, pool=(), publish=publish)
        _, extra = settings_for(16)
        self._order = {"folder": str(folder), "http_port": orthanc.http_port, "extra": extra}
        self._program = Program("bench.native", log=folder / "stand.log", timeout=240.0)


def measure_native(site: Site) -> None:
    """Measure the native profile beside what it is made of. Raises `PeerMissing`."""
    study, folder = site.study, site.folder / "native"
    with dicomweb(folder / "orthanc") as (orthanc, version):
        orthanc.load(study.files)
        site.results.peers.setdefault("orthanc-dicomweb", version)
        plugin = _order(orthanc.http_port, "/dicom-web/studies/{}/series/{}", study)
        with NativeGateway(folder / "gateway", orthanc, publish=[study]) as gateway:
            fetch(gateway.order(study), folder, at_least=study.size)  # the first of each warms caches
            fetch(plugin, folder, at_least=study.size)
            ours, theirs, bare = [], [], []
            for _ in range(site.plan.repeat):
                bare.append(read_all(orthanc, study))
                ours.append(_weighed(gateway, orthanc, study, folder))
                theirs.append(fetch(plugin, folder, at_least=study.size))
    whole, read = middle(ours, lambda one: one.delivery.seconds), statistics.median(bare)
    add = site.results.add
    add("native.study", whole, "s")
    add("native.first_image", middle(ours, lambda one: one.delivery.first), "s")
    add("native.rate", study.size / whole / 1e6, "MB/s")
    add("native.bare_read", read, "s")
    add("native.read_ratio", whole / read, "ratio")
    add("native.dicomweb_ratio", whole / middle(theirs, lambda one: one.seconds), "ratio")
    add("native.cpu.gateway", middle(ours, lambda one: one.gateway_cpu), "s")
    add("native.cpu.orthanc", middle(ours, lambda one: one.pacs_cpu), "s")


def read_all(orthanc: Orthanc, study: GeneratedStudy) -> float:
    """Read every file of the study's only series over one connection; return the seconds it took."""
    found: Any = orthanc.rest(
        "POST", "/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": study.study_uid}}
    )
    size = 0
    with closing(http.client.HTTPConnection("127.0.0.1", orthanc.http_port, timeout=60)) as connection:
        connection.connect()
        begin = time.monotonic()
        for one in found:
            connection.request("GET", f"/instances/{one}/file")
            size += len(connection.getresponse().read())
        taken = time.monotonic() - begin
    if size < study.size:
        raise RuntimeError(f"{size} bytes read of {study.size}")
    return taken


def _weighed(gateway: Gateway, orthanc: Orthanc, study: GeneratedStudy, folder: Path) -> Cost:
    assert orthanc.pid is not None
    order = gateway.order(study)
    before = cpu_seconds(gateway.pid), session_cpu_seconds(orthanc.pid)
    delivery = fetch(order, folder, at_least=study.size)
    return Cost(
        delivery, cpu_seconds(gateway.pid) - before[0], session_cpu_seconds(orthanc.pid) - before[1]
    )


class _BehindNative(_Behind):
    """The process behind a `NativeGateway`."""

    async def run(self) -> None:
        stdio.StandardIO(self._lines)
        order = await self._next()
        settings = {"kind": '"orthanc"', "url": f'"http://127.0.0.1:{order["http_port"]}"'}
        stand = Stand(Path(order["folder"]), self._reactor, [NativeAddress(settings)], extra=order["extra"])
        await stand.start()
        try:
            await stand.start_gateway()
            pair = stand.consumer()
            say(
                pid=stand.pid,
                port=stand.wado_port,
                name=stand.sites[0],
                roots=str(stand.pki.roots),
                certificate=str(pair.certificate),
                key=str(pair.key),
            )
            while True:
                await self._answer(stand, await self._next())
        except _Served:
            pass
        finally:
            await stand.stop()


def main() -> None:
    """Serve the bench until the standard input ends."""
    task.react(lambda reactor: defer.Deferred.fromCoroutine(_BehindNative(reactor).run()))


if __name__ == "__main__":
    main()
