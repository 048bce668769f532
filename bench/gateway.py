"""The gateway under measurement, as deployed, with the nation around it, in a process of its own.

`Gateway` is the bench's handle. The process behind it (`python -m bench.gateway`) runs a
`drimbox.sim.stand.Stand`: the simulated DMP and Pro Santé Connect, and `twistd drimbox` as a child. It
publishes studies through their report, as in real life, mints tokens, and notes when each request reached
the DMP; clients are processes that the bench starts itself (`bench.consumers`, `bench.ris`). So any
measure can be made on a gateway that is up and warm, in any order, beside whatever it is compared with.

What is configured beyond the defaults of an installation is in `settings_for`: as many AE titles as
deliveries at once, and limits that let them run. Mutual TLS, whitelist and introspection are on.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import defer, stdio, task
from twisted.protocols.basic import LineReceiver

from bench.move import Archive
from bench.program import Program, say
from bench.ris import message
from drimbox.clock import SystemClock
from drimbox.config import WadoSettings
from drimbox.sim.peers import LOOPBACK
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.stand import PacsAddress, Stand
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.whitelist import ListedDomain, make_whitelist
from drimbox.store.database import Database
from drimbox.store.inbox import Inbox

JPEG_LS = "1.2.840.10008.1.2.4.80"
#: Seconds a study may take from its report to its KOS in the archive.
_PUBLICATION = 240.0
#: Seconds a gateway may take to start.
_START = 120.0
#: Reports of a backlog stored at once.
_TOGETHER = 50

Extra = Mapping[str, Mapping[str, str]]


def accept(syntax: str) -> str:
    """Return the Accept header that asks for one transfer syntax."""
    return f'multipart/related; type="application/dicom"; transfer-syntax={syntax}; q=0.9'


def settings_for(deliveries: int) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return what an operator sets for that many deliveries at once: of `[site.pacs]`, of the rest.

    Windows keep their size; the total grows with their number. One Consumer asks for all of them.
    """
    # A PACS that has more to do than it does at once lets the last ones wait (stock Orthanc has 4 threads).
    pacs = {"max_associations": str(deliveries + 8), "first_image_timeout": "600"}
    window = WadoSettings(port=1).window
    wado = {
        "max_deliveries": str(max(16, deliveries)),
        "max_per_consumer": str(max(16, deliveries)),
        "total_window": str(max(16, deliveries) * window),
    }
    return pacs, {"wado": wado, "dicom": {"max_associations": str(2 * deliveries + 16)}}


class Gateway:
    """A running gateway in front of one PACS; a context manager.

    `port` is where it listens for the AE titles of `pool`, `options` go to `twistd`; what is in `publish`
    has been published once it is entered, any other study is when it is first asked for. `backlog`
    reports (of `bench.ris`, from number 0) are in the inbox when it starts. `listed` more Consumers are in
    its whitelist, `revoked` certificates in the list of revoked ones.
    """

    def __init__(
        self,
        folder: Path,
        pacs: Archive,
        *,
        port: int,
        pool: Sequence[str],
        options: Sequence[str] = (),
        extra: Extra | None = None,
        publish: Sequence[GeneratedStudy] = (),
        backlog: int = 0,
        listed: int = 0,
        revoked: int = 0,
    ) -> None:
        pacs_settings, more = settings_for(len(pool))
        for section, keys in (extra or {}).items():
            more.setdefault(section, {}).update(keys)
        self.folder = folder
        self._order = {
            "folder": str(folder),
            "ae_title": pacs.ae_title,
            "port": pacs.port,
            "dicom_port": port,
            "pool": list(pool),
            "settings": pacs_settings,
            "extra": more,
            "options": list(options),
            "backlog": backlog,
            "listed": listed,
            "revoked": revoked,
        }
        self._studies = tuple(publish)
        self._program = Program("bench.gateway", log=folder / "stand.log", timeout=_PUBLICATION)
        #: What it said of itself when it was ready: ports, names, files.
        self.facts: dict[str, Any] = {}
        self._kos: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._program.start()
        try:
            self._program.tell(**self._order)
            self.facts = self._program.read()
            for study in self._studies:
                self.publish(study)
        except BaseException:
            self._program.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.stop()

    @property
    def pid(self) -> int:
        """Process number of the gateway itself."""
        return int(self.facts["pid"])

    @property
    def world_pid(self) -> int:
        """Process number of the simulated DMP (and of Pro Santé Connect, idle while reports come)."""
        return self._program.pid

    @property
    def hl7_port(self) -> int:
        """Port on which it listens for reports."""
        return int(self.facts["hl7"])

    @property
    def admin_port(self) -> int:
        """Port of its admin listener."""
        return int(self.facts["admin"])

    @property
    def wado_port(self) -> int:
        """Port of its HTTPS listener."""
        return int(self.facts["port"])

    @property
    def market_root(self) -> str:
        """PEM file of the authority of its viewer names."""
        return str(self.facts["market_root"])

    @property
    def database(self) -> Path:
        """Its store, to be read only."""
        return self.folder / "state" / "drimbox.db"

    def arrivals(self) -> list[tuple[str, float]]:
        """Return transaction and instant (monotonic clock) of each request to the DMP since last asked."""
        return [(transaction, at) for transaction, at in self._program.ask(arrivals=True)["arrivals"]]

    def publish(self, study: GeneratedStudy) -> None:
        """Feed a study through its report and wait until its KOS is published."""
        if study.study_uid not in self._kos:
            answer = self._program.ask(publish=study.study_uid)
            self._kos[study.study_uid] = answer["kos"]

    def order(self, study: GeneratedStudy, *, syntax: str = JPEG_LS, **more: object) -> dict[str, Any]:
        """Return the order for a client (`bench.client`) that asks for the study's only series."""
        self.publish(study)
        facts = self.facts
        series = study.series[0].series_uid
        headers = [
            f"Accept: {accept(syntax)}",
            f"Authorization: Bearer {self._program.ask(token=True)['token']}",
            f"KOS-SOPInstanceUID: {self._kos[study.study_uid]}",
        ]
        return {
            **{key: facts[key] for key in ("port", "name", "roots", "certificate", "key")},
            "path": f"/dicom-web-rs/studies/{study.study_uid}/series/{series}",
            "headers": headers,
            **more,
        }


class _Served(Exception):
    """The standard input has ended."""


class _Lines(LineReceiver):
    """Orders from the bench, one a line."""

    delimiter = b"\n"

    def __init__(self) -> None:
        self.lines: defer.DeferredQueue[bytes | None] = defer.DeferredQueue()

    def lineReceived(self, line: bytes) -> None:
        """Keep it for who asks."""
        self.lines.put(line)

    def connectionLost(self, reason: object = None) -> None:
        """Tell that there are no more."""
        self.lines.put(None)


class _Behind:
    """The process behind a `Gateway`."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._lines = _Lines()
        self._published = 0
        self._arrivals: list[tuple[str, float]] = []

    async def run(self) -> None:
        stdio.StandardIO(self._lines)
        order = await self._next()
        folder = Path(order["folder"])
        pacs = PacsAddress(order["ae_title"], order["port"], order["pool"], settings=order["settings"])
        stand = Stand(
            folder,
            self._reactor,
            [pacs],
            dicom_port=order["dicom_port"],
            extra=order["extra"],
            options=order["options"],
        )
        await stand.start()
        stand.dmp.arrived = lambda transaction: self._arrivals.append((transaction, time.monotonic()))
        try:
            lengthen(stand, listed=order["listed"], revoked=order["revoked"])
            if order["backlog"]:
                await fill_inbox(self._reactor, folder / "state", order["backlog"])
            await stand.start_gateway(seconds=_START)
            pair = stand.consumer()
            say(
                pid=stand.pid,
                port=stand.wado_port,
                hl7=stand.hl7_port,
                admin=stand.admin_port,
                name=stand.sites[0],
                roots=str(stand.pki.roots),
                market_root=str(stand.pki.market_root),
                certificate=str(pair.certificate),
                key=str(pair.key),
            )
            while True:
                await self._answer(stand, await self._next())
        except _Served:
            pass
        finally:
            await stand.stop()

    async def _next(self) -> dict[str, Any]:
        line = await self._lines.lines.get()
        if line is None:
            raise _Served
        order: dict[str, Any] = json.loads(line)
        return order

    async def _answer(self, stand: Stand, order: dict[str, Any]) -> None:
        try:
            if "publish" in order:
                say(kos=await self._publish(stand, order["publish"]))
            elif "arrivals" in order:
                arrivals, self._arrivals = self._arrivals, []
                say(arrivals=arrivals)
            else:
                say(token=stand.token())
        except Exception as error:  # the bench must hear of whatever goes wrong
            say(failed=f"{type(error).__name__}: {error}")

    async def _publish(self, stand: Stand, study: str) -> str:
        self._published += 1
        number = self._published
        before = set(stand.published())
        report = SimReport(
            acts=(SimAct(study_uid=study, modalities=("CT",)),), document_id=f"2.25.{number}"
        )
        ack = await stand.send(build_message(report, SimMessage(control_id=str(number))))
        fresh = set(await stand.wait_published(number, seconds=_PUBLICATION)) - before
        if ack.code != "AA" or len(fresh) != 1:
            raise RuntimeError(f"no KOS for {study}: {ack}")
        kos = fresh.pop()
        # The DMP has it a moment before the archive knows.
        while not _archived(stand, kos):
            await task.deferLater(self._reactor, 0.05)
        return kos


def lengthen(stand: Stand, *, listed: int, revoked: int) -> None:
    """Make whitelist and revocation list of a stand that is not used yet as long as those of a nation."""
    if listed:
        domains = [*stand.domains, *(_somebody(number) for number in range(listed))]
        signed = make_whitelist(domains, stand.pki.whitelist_signer)
        (stand.folder / "whitelist.xml").write_bytes(signed)
    if revoked:
        crl = stand.pki.org_authority.crl(range(1 << 64, (1 << 64) + revoked))
        stand.pki.crl_der.write_bytes(crl.public_bytes(Encoding.DER))


def _somebody(number: int) -> ListedDomain:
    name = f"db1.{1000 + number}.mesimagesmedicales.fr"
    holder = f"CN={name},OU={300000000000000 + number},O=CABINET {number},ST=Paris (75),C=FR"
    return ListedDomain(f"L{number}", name, name.replace("db", "vi", 1), f"CABINET {number}", holder)


async def fill_inbox(reactor: Any, state: Path, count: int) -> None:
    """Store `count` reports as a gateway that has had no time for them: received, not read."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(f"sqlite:///{state / 'drimbox.db'}", reactor=reactor)
    await database.open()
    try:
        inbox = Inbox(database, clock=SystemClock())
        for first in range(0, count, _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, count))
            adding = [
                inbox.add(ris="RIS", peer=LOOPBACK, control_id=str(number), raw=message(number))
                for number in numbers
            ]
            await defer.gatherResults([defer.Deferred.fromCoroutine(one) for one in adding])
    finally:
        await database.close()


def _archived(stand: Stand, kos: str) -> bool:
    path = stand.folder / "state" / "drimbox.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select state from kos where sop_instance_uid = ?", (kos,)).fetchall()
    return bool(rows) and str(rows[0][0]).lower() == "published"


def main() -> None:
    """Serve the bench until the standard input ends."""
    task.react(lambda reactor: defer.Deferred.fromCoroutine(_Behind(reactor).run()))


if __name__ == "__main__":
    main()
