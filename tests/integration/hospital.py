"""Two simulated PACS behind one gateway process, clients of all kinds, and ways to look inside."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import pydicom
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.consumer import FetchResult, accept_headers
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pair
from drimbox.sim.ris import SimAct, SimMessage, SimReport, build_message
from drimbox.sim.stand import LOOPBACK, PacsAddress, Stand
from drimbox.sim.studies import GeneratedStudy
from tests.integration.waiting import until

POOLS = (("DB1A", "DB1B", "DB1C", "DB1D"), ("DB2A", "DB2B"))
#: Time-outs short enough to be waited for.
PACS_SETTINGS = {
    "first_image_timeout": "3",
    "gap_timeout": "3",
    "query_timeout": "3",
    "quarantine": "1",
    "patience": "1",
}
JPEG_LS, EXPLICIT_LE, IMPLICIT_LE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax={}'
ANY = ACCEPT.format("*")


@attrs.frozen
class Served:
    """A study whose KOS is in the DMP."""

    study: GeneratedStudy
    kos: str
    site: int

    @property
    def uid(self) -> str:
        return self.study.study_uid

    def series(self, number: int = 0) -> str:
        return self.study.series[number].series_uid

    def path(self, number: int = 0) -> str:
        return f"/dicom-web-rs/studies/{self.uid}/series/{self.series(number)}"


@attrs.frozen
class Audited:
    """An audit record of an image request."""

    outcome: int
    study_uid: str
    description: str
    payload: str


class Hospital:
    """The stand, its PACS (simulated unless others are given) and what is published."""

    def __init__(
        self,
        folder: Path,
        *,
        pacses: Callable[[int], Sequence[PacsAddress]] | None = None,
        wado: Mapping[str, str] | None = None,
        more: Mapping[str, Mapping[str, str]] | None = None,
        settings: Mapping[str, str] | None = None,
        site: Mapping[str, str] | None = None,
        ris: Mapping[str, str] | None = None,
        sites: int = 2,
    ) -> None:
        self.folder = folder
        port = free_port()
        self.pacs: list[SimulatedPacs] = []
        if pacses is None:
            for number, pool in enumerate(POOLS[:sites]):
                pacs = SimulatedPacs(
                    f"PACS{number + 1}", destinations=dict.fromkeys(pool, (LOOPBACK, port))
                )
                pacs.start()
                self.pacs.append(pacs)
            addresses: Sequence[PacsAddress] = [
                PacsAddress(
                    pacs.ae_title,
                    pacs.port,
                    pool,
                    settings={**PACS_SETTINGS, **(settings or {})},
                    site=site or {},
                )
                for pacs, pool in zip(self.pacs, POOLS, strict=False)
            ]
        else:
            addresses = pacses(port)
        extra = {
            "wado": {"queue_timeout": "1", **(wado or {})},
            "psc": {"timeout": "2"},
            # A connection to the DMP kept for a moment would be counted among what a delivery left open.
            "dmp": {"keep_alive": "0"},
            **(more or {}),
        }
        self.stand = self._make_stand(addresses, port, extra, ris)
        self._messages = 0

    def _make_stand(
        self,
        pacses: Sequence[PacsAddress],
        dicom_port: int,
        extra: Mapping[str, Mapping[str, str]],
        ris: Mapping[str, str] | None,
    ) -> Stand:
        return Stand(self.folder / "stand", reactor, pacses, dicom_port=dicom_port, extra=extra, ris=ris)

    async def start(self) -> None:
        await self.stand.start()
        await self.stand.start_gateway()

    async def stop(self) -> None:
        try:
            await self.stand.stop()
        finally:
            for pacs in self.pacs:
                pacs.stop()

    async def publish(self, study: GeneratedStudy, site: int = 0, *, load: bool = True) -> Served:
        """Load a study into a simulated PACS, feed it through its report, wait for its KOS."""
        if load and self.pacs:
            self.pacs[site].load(study)
        self._messages += 1
        before = set(self.stand.published())
        modality = study.series[0].modality
        act = SimAct(study_uid=study.study_uid, modalities=(modality,))
        report = SimReport(acts=(act,), document_id=f"2.25.{7000 + self._messages}")
        message = build_message(report, SimMessage(control_id=f"M{self._messages}"))
        assert (await self.stand.send(message)).code == "AA"
        await until(lambda: set(self.stand.published()) - before, what="a KOS in the DMP")
        kos = (set(self.stand.published()) - before).pop()
        # The DMP has it before the archive knows.
        await until(lambda: self._state(kos) == "published", what="the KOS published")
        return Served(study, kos, site)

    def _state(self, kos: str) -> str:
        rows = self.database("select state from kos where sop_instance_uid = ?", kos)
        return str(rows[0][0]).lower() if rows else ""

    def database(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read from the gateway's store."""
        path = self.folder / "stand" / "state" / "drimbox.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def audited(self) -> int:
        """Return the number of the last audit record."""
        return int(self.database("select coalesce(max(id), 0) from audit")[0][0])

    async def audit_after(self, number: int) -> Audited:
        """Wait for the audit record of the image request that followed `number`; return it."""
        # Only images served: the feed leaves its own records of exports to the DMP.
        query = "select outcome, study_uid, payload from audit where id > ? and payload like '%RAD-107%'"
        rows = await until(lambda: self.database(query, number), what="an audit record")
        assert len(rows) == 1, rows
        outcome, study, payload = rows[0]
        return Audited(outcome, study, json.loads(payload)["event"].get("outcome_description", ""), payload)

    async def notices(self) -> list[dict[str, Any]]:
        """Return the open notices."""
        _, body = await self.stand.admin("/notices")
        notices: list[dict[str, Any]] = json.loads(body)["notices"]
        return notices

    async def titles(self, site: int = 0) -> dict[str, str]:
        """Return the state of each AE title of a site's pool."""
        _, body = await self.stand.admin("/status")
        states: dict[str, str] = json.loads(body)["sites"][site]["ae_titles"]
        return states

    async def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        _, body = await self.stand.admin("/metrics")
        found = re.search(rf"^{name} (\S+)$", body.decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def idle(self) -> None:
        """Wait until nothing runs and every AE title is free."""

        async def free() -> bool:
            states = [
                state for n in range(len(self.stand.sites)) for state in (await self.titles(n)).values()
            ]
            return set(states) == {"free"} and await self.metric("drimbox_deliveries_running") == 0

        await until(free, what="idle")

    # -- clients -----------------------------------------------------------------------------------

    async def fetch(self, served: Served, series: int = 0, **options: Any) -> FetchResult:
        """Ask as the simulated Consumer."""
        options.setdefault("accept", accept_headers())
        options.setdefault("site", self.stand.sites[served.site])
        kos = options.pop("kos", served.kos)
        return await self.stand.fetch(served.uid, served.series(series), kos, **options)

    async def curl(
        self, served: Served, *arguments: str, accept: Sequence[str] = (ANY,), output: Path | None = None
    ) -> tuple[int, str, bytes]:
        """Ask with curl; return its exit code, the HTTP status and what it wrote."""
        site, pair, port = self.stand.sites[served.site], self.stand.consumer(), self.stand.wado_port
        target = output or self.folder / f"curl-{free_port()}"
        command = ["curl", "-sS", "--max-time", "60", "--resolve", f"{site}:{port}:{LOOPBACK}"]
        command += ["--cacert", str(self.stand.pki.roots), "--cert", str(pair.certificate)]
        command += ["--key", str(pair.key), "-w", "%{http_code}", "-o", str(target)]
        command += [part for value in accept for part in ("-H", f"Accept: {value}")]
        command += ["-H", f"Authorization: Bearer {self.stand.token()}"]
        command += ["-H", f"KOS-SOPInstanceUID: {served.kos}", *arguments]
        command.append(f"https://{site}:{port}{served.path()}")
        done: Any = await deferToThread(subprocess.run, command, capture_output=True, timeout=90)
        body = target.read_bytes() if target.exists() else b""
        return done.returncode, done.stdout.decode(), body

    def connect(self, *, pair: Pair | None = None, site: int = 0) -> ssl.SSLSocket:
        """Open a raw TLS connection; use it in a thread (`in_thread`)."""
        import socket

        context = ssl.create_default_context(cafile=str(self.stand.pki.roots))
        pair = pair or self.stand.consumer()
        context.load_cert_chain(pair.certificate, pair.key)
        plain = socket.create_connection((LOOPBACK, self.stand.wado_port), timeout=20)
        return context.wrap_socket(plain, server_hostname=self.stand.sites[site])

    async def raw(self, *pieces: bytes, site: int = 0) -> bytes:
        """Send bytes over TLS, read until the server closes or has been silent for two seconds."""

        def talk() -> bytes:
            received = b""
            with self.connect(site=site) as connection:
                for piece in pieces:
                    connection.sendall(piece)
                connection.settimeout(2)
                try:
                    while data := connection.recv(65536):
                        received += data
                except OSError:
                    pass
            return received

        answer: bytes = await deferToThread(talk)
        return answer

    def request(self, served: Served, *more: str, host: str | None = None, first: str = "") -> bytes:
        """Write a request for a raw connection."""
        lines = [
            first or f"GET {served.path()} HTTP/1.1",
            f"Host: {host or self.stand.sites[served.site]}",
            f"Accept: {ANY}",
            f"Authorization: Bearer {self.stand.token()}",
            f"KOS-SOPInstanceUID: {served.kos}",
            *more,
        ]
        return ("\r\n".join(line for line in lines if line) + "\r\n\r\n").encode()


def served_whole(result: FetchResult) -> bool:
    """Say whether images came, all of them: a refusal is complete too."""
    return result.status == 200 and result.complete


def data_set(part10: bytes) -> bytes:
    """Return what follows the file meta information."""
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def read(part10: bytes) -> pydicom.Dataset:
    """Read a Part 10 file from memory."""
    return pydicom.dcmread(BytesIO(part10))


def digests(study: GeneratedStudy, series: int = 0) -> dict[str, str]:
    """SHA-256 of each instance's data set as the PACS holds it."""
    return {
        instance.sop_instance_uid: hashlib.sha256(data_set(instance.path.read_bytes())).hexdigest()
        for instance in study.series[series].instances
    }


def received(result: FetchResult) -> dict[str, str]:
    """SHA-256 of each data set a Consumer received whole."""
    contents = [part.content for part in result.parts if part.content is not None]
    return {
        str(pydicom.dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID): hashlib.sha256(
            data_set(content)
        ).hexdigest()
        for content in contents
    }


def behave(**values: Any) -> Behaviour:
    """Make a behaviour of the simulated PACS."""
    return Behaviour(**values)
