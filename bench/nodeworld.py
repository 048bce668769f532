"""Several gateways on one PostgreSQL behind HAProxy, with the nation around them.

The bench says in one line what is wanted; this process (`python -m bench.nodeworld`) starts HAProxy as
`packaging/haproxy.cfg` sets it up, the simulated DMP and Pro Santé Connect, and every node as it is
deployed, then publishes studies and mints tokens. Everything ends with its standard input.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.internet.threads import deferToThread

from bench.program import ROOT, say
from drimbox.sim import ris
from drimbox.sim.peers import LOOPBACK, find_program, free_port
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.stand import PacsAddress, Stand

#: Seconds a node may take to start, and a publication.
_START, _PUBLICATION = 120.0, 240.0
#: And HAProxy.
_FRONT = 20.0


def front_end(folder: Path, nodes: list[Stand], images: int, reports: int) -> subprocess.Popen[bytes]:
    """Start HAProxy before the nodes, on these ports."""
    text = (ROOT / "packaging" / "haproxy.cfg").read_text("utf-8")
    for ours, port in (("443", images), ("2575", reports)):
        text = text.replace(f"bind :{ours}\n", f"bind {LOOPBACK}:{port}\n")
    text = re.sub(r"(?m)^ +server drimbox2 .*\n", "", text)
    for ours in ("8443", "2575"):
        line = re.search(rf"(?m)^ +server drimbox1 10\.20\.0\.11:{ours} .*\n", text)
        assert line is not None
        servers = ""
        for number, node in enumerate(nodes, 1):
            port = node.wado_port if ours == "8443" else node.hl7_port
            named = line[0].replace("drimbox1", f"drimbox{number}")
            servers += named.replace(f"10.20.0.11:{ours}", f"{LOOPBACK}:{port}")
        text = text.replace(line[0], servers)
    path = folder / "haproxy.cfg"
    path.write_text(text, "utf-8")
    with (folder / "haproxy.log").open("wb") as log:
        return subprocess.Popen([find_program("haproxy"), "-db", "-f", str(path)], stdout=log, stderr=log)


def _listens(port: int) -> None:
    """Return once a port takes connections. Raises `OSError` when it does not in time."""
    limit = time.monotonic() + _FRONT
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)


class World:
    """What one line asked for."""

    def __init__(self, reactor: Any, order: dict[str, Any]) -> None:
        self._reactor = reactor
        self._folder = Path(order["folder"])
        self._images, self._reports = free_port(), free_port()
        self._published = 0
        self._nodes: list[Stand] = []
        for number, node in enumerate(order["nodes"]):
            extra = {
                **order["extra"],
                "drimbox": {"node": f'"n{number}"'},
                "store": {"url": json.dumps(order["store"])},
                "hl7": {"front_ends": f'["{LOOPBACK}"]', "max_connections_per_address": "64"},
            }
            wado = {"front_ends": f'["{LOOPBACK}"]', "public_port": str(self._images)}
            extra["wado"] = {**order["extra"].get("wado", {}), **wado}
            self._nodes.append(
                Stand(
                    self._folder / f"node{number}",
                    reactor,
                    [
                        PacsAddress(
                            order["ae_title"], order["port"], node["pool"], settings=order["settings"]
                        )
                    ],
                    dicom_port=node["dicom_port"],
                    extra=extra,
                    world=self._nodes[0] if self._nodes else None,
                )
            )

    async def run(self) -> None:
        """Start everything, serve the bench, end everything."""
        front: subprocess.Popen[bytes] | None = None
        try:
            for node in self._nodes:
                await node.start()
                await node.start_gateway(seconds=_START)
            front = front_end(self._folder, self._nodes, self._images, self._reports)
            await deferToThread(_listens, self._images)
            await deferToThread(_listens, self._reports)
            first = self._nodes[0]
            pair = first.consumer()
            say(
                pids=[node.pid for node in self._nodes],
                front=front.pid,
                port=self._images,
                hl7=self._reports,
                name=first.sites[0],
                roots=str(first.pki.roots),
                certificate=str(pair.certificate),
                key=str(pair.key),
            )
            while line := await deferToThread(sys.stdin.readline):
                await self._answer(json.loads(line))
        finally:
            if front is not None:
                front.terminate()
                front.wait(20)
            for node in reversed(self._nodes):
                await node.stop()

    async def _answer(self, order: dict[str, Any]) -> None:
        try:
            if "publish" in order:
                say(kos=await self._publish(order["publish"]))
            else:
                say(token=self._nodes[0].token())
        except Exception as error:  # the bench must hear of whatever goes wrong
            say(failed=f"{type(error).__name__}: {error}")

    async def _publish(self, study: str) -> str:
        self._published += 1
        act = SimAct(study_uid=study, modalities=("CT",))
        report = SimReport(acts=(act,), document_id=f"2.25.{self._published}")
        message = build_message(report, SimMessage(control_id=str(self._published)))
        ack = await ris.send(LOOPBACK, self._reports, message, 30.0, reactor=self._reactor)
        found = await self._nodes[0].wait_published(self._published, seconds=_PUBLICATION)
        if ack.code != "AA" or len(found) != self._published:
            raise RuntimeError(f"no KOS for {study}: {ack}")
        return found[-1]


def main() -> None:
    """Serve the bench until the standard input ends."""
    order = json.loads(sys.stdin.readline())
    task.react(lambda reactor: defer.Deferred.fromCoroutine(World(reactor, order).run()))


if __name__ == "__main__":
    main()
