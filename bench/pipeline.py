"""The gateway itself: first image, whole study, ratio to the bare C-MOVE, memory (DB.SO.113, DB.SO.100).

Figures, for a PACS named P: `P.first_image` (T2-T1) and `P.study` (T3-T1) over mutual TLS with whitelist
and introspection active, median of the repetitions; `P.pipeline_ratio`, `P.study` over `P.bare_move` of
the same run; `P.rate`. On the first PACS also `memory.fast_client` and `memory.slow_client`: peak
resident memory of the gateway process above what it held idle, the slow client reading 1 MB/s of a 20 MB
study.

The gateway runs as deployed (`twistd drimbox`), the client in a process of its own. This module is run
as a process per PACS, because a reactor runs once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, protocol, task

from bench.site import GATEWAY_POOL, Site
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.stand import CONSUMER, PacsAddress, Stand
from drimbox.sim.studies import GeneratedStudy, make_study

_JPEG_LS = "1.2.840.10008.1.2.4.80"
#: About 20 MB of the same slices as the reference study.
SLOW_INSTANCES = 125
SLOW_RATE = 1_000_000.0


class PipelineFailed(Exception):
    """The gateway did not deliver: there is no figure to report."""


def measure_pipeline(site: Site, *, memory: bool) -> None:
    """Measure the gateway on one PACS and add its figures."""
    order: dict[str, Any] = {
        "folder": str(site.folder / "pipeline"),
        "ae_title": site.pacs.ae_title,
        "port": site.pacs.port,
        "gateway_port": site.gateway_port,
        "study": site.study.study_uid,
        "series": site.study.series[0].series_uid,
        "repeat": site.repeat,
        "slow": None,
    }
    if memory:
        small = slow_study(site.folder / "slow")
        site.pacs.load(small.files)
        order["slow"] = {"study": small.study_uid, "series": small.series[0].series_uid}
    done = subprocess.run(
        [sys.executable, "-m", "bench.pipeline"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise PipelineFailed(done.stderr[-2000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    bare = site.results.get(f"{site.name}.bare_move")
    site.results.add(f"{site.name}.first_image", figures["first"], "s")
    site.results.add(f"{site.name}.study", figures["total"], "s")
    site.results.add(f"{site.name}.rate", site.study.size / figures["total"] / 1e6, "MB/s")
    if bare:
        site.results.add(f"{site.name}.pipeline_ratio", figures["total"] / bare, "ratio")
    if memory:
        site.results.add("memory.idle", figures["idle"], "MB")
        site.results.add("memory.fast_client", figures["fast_memory"], "MB")
        site.results.add("memory.slow_client", figures["slow_memory"], "MB")
        site.results.add("slow_client.study", figures["slow_total"], "s")


def slow_study(folder: Path) -> GeneratedStudy:
    """Make the 20 MB study of the slow client."""
    return make_study(
        folder, instances=SLOW_INSTANCES, rows=512, columns=512, transfer_syntax=_JPEG_LS, seed=7
    )


class _Client(protocol.ProcessProtocol):
    def __init__(self, order: dict[str, Any]) -> None:
        self.done: defer.Deferred[dict[str, Any]] = defer.Deferred()
        self._order = order
        self._out, self._error = b"", b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(json.dumps(self._order).encode())
        transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._out += data

    def errReceived(self, data: bytes) -> None:
        self._error += data

    def processEnded(self, reason: Any) -> None:
        if reason.value.exitCode:
            self.done.errback(PipelineFailed(self._error.decode("utf-8", "replace")))
        else:
            self.done.callback(json.loads(self._out))


class _Run:
    def __init__(self, reactor: Any, order: dict[str, Any]) -> None:
        self._reactor = reactor
        self._order = order
        self._stand = Stand(
            Path(order["folder"]),
            reactor,
            [PacsAddress(order["ae_title"], order["port"], GATEWAY_POOL)],
            dicom_port=order["gateway_port"],
        )

    async def measure(self) -> dict[str, float]:
        await self._stand.start()
        try:
            await self._stand.start_gateway()
            return await self._figures()
        finally:
            await self._stand.stop()

    async def _figures(self) -> dict[str, float]:
        order = self._order
        kos = await self._publish(order["study"], 1)
        slow = order["slow"]
        slow_kos = await self._publish(slow["study"], 2) if slow else ""
        await self._fetch(order["study"], order["series"], kos)  # warms caches of both sides
        self._reset_peak()
        idle = self._memory("VmRSS")
        runs = [await self._fetch(order["study"], order["series"], kos) for _ in range(order["repeat"])]
        figures = {
            "first": statistics.median(run["first"] for run in runs),
            "total": statistics.median(run["total"] for run in runs),
            "idle": idle,
            "fast_memory": self._memory("VmHWM") - idle,
        }
        if slow:
            self._reset_peak()
            idle = self._memory("VmRSS")
            run = await self._fetch(slow["study"], slow["series"], slow_kos, bytes_per_second=SLOW_RATE)
            figures["slow_total"] = run["total"]
            figures["slow_memory"] = self._memory("VmHWM") - idle
        return figures

    async def _publish(self, study: str, count: int) -> str:
        """Feed the study through its report, as in real life; return the identifier of its KOS."""
        before = set(self._stand.published())
        act = SimAct(study_uid=study, modalities=("CT",))
        report = SimReport(acts=(act,), document_id=f"2.25.{count}")
        ack = await self._stand.send(build_message(report, SimMessage(control_id=str(count))))
        after = await self._stand.wait_published(count, seconds=120)
        fresh = set(after) - before
        if ack.code != "AA" or len(fresh) != 1:
            raise PipelineFailed(f"no KOS for {study}: {ack}")
        return fresh.pop()

    async def _fetch(self, study: str, series: str, kos: str, **more: Any) -> dict[str, Any]:
        stand = self._stand
        pair = stand.consumer(CONSUMER)
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={_JPEG_LS}; q=0.9'
        order = {
            "port": stand.wado_port,
            "sni": stand.sites[0],
            "roots": str(stand.pki.roots),
            "certificate": str(pair.certificate),
            "key": str(pair.key),
            "path": f"/dicom-web-rs/studies/{study}/series/{series}",
            "headers": [
                f"Accept: {accept}",
                f"Authorization: Bearer {stand.token()}",
                f"KOS-SOPInstanceUID: {kos}",
            ],
            **more,
        }
        client = _Client(order)
        arguments = [sys.executable, "-m", "bench.client"]
        self._reactor.spawnProcess(client, arguments[0], arguments, env=None)
        result = await client.done
        if not result.get("complete"):
            raise PipelineFailed(f"delivery not complete: {result}")
        return result

    def _memory(self, key: str) -> float:
        text = Path(f"/proc/{self._stand.pid}/status").read_text()
        return int(text.split(f"{key}:")[1].split()[0]) / 1024

    def _reset_peak(self) -> None:
        Path(f"/proc/{self._stand.pid}/clear_refs").write_text("5")


def main() -> None:
    """Measure as ordered on standard input; print the figures as one JSON line."""
    order = json.load(sys.stdin)

    def run(reactor: Any) -> defer.Deferred[None]:
        work = defer.Deferred.fromCoroutine(_Run(reactor, order).measure())
        return work.addCallback(lambda figures: print(json.dumps(figures)))

    task.react(run)


if __name__ == "__main__":
    main()
