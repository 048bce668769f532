"""A whole hospital and nation on loopback around one gateway: for the demonstration, tests and the bench.

`Stand` makes the PKI, the whitelist and the configuration, runs the simulated DMP and Pro Santé Connect in
this process, and starts the gateway as it is deployed: `twistd drimbox --config FILE`, in a process of
its own that can be killed. The PACS is whoever the caller brings.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, error, protocol, task
from twisted.web.client import Agent, readBody

from drimbox.sim import ris
from drimbox.sim.consumer import FetchResult, fetch_series
from drimbox.sim.dmp import DmpServer
from drimbox.sim.dmp_service import DmpService
from drimbox.sim.dmp_trust import Trust
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pair, make_pki
from drimbox.sim.psc import PscServer
from drimbox.sim.ris import RisTls
from drimbox.sim.whitelist import ListedDomain, make_whitelist

LOOPBACK = "127.0.0.1"
STRUCTURE = "1999999999"
#: FQDN of the Consumers that the whitelist has, and of one it has not.
CONSUMER = "db1.401.mesimagesmedicales.fr"
OTHER_CONSUMER = "db1.402.mesimagesmedicales.fr"
STRANGER = "db1.999.mesimagesmedicales.fr"


@attrs.frozen
class PacsAddress:
    """Where a PACS is, and the AE titles of ours that it knows."""

    ae_title: str
    port: int
    pool: Sequence[str]
    host: str = LOOPBACK
    #: Further keys of `[site.pacs]`, as TOML.
    settings: Mapping[str, str] = attrs.field(factory=dict)
    #: Further keys of its `[[site]]`, as TOML.
    site: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class NativeAddress:
    """A native archive in place of a PACS: the keys of its `[site.native]` and `[[site]]`, as TOML."""

    settings: Mapping[str, str]
    site: Mapping[str, str] = attrs.field(factory=dict)


class GatewayFailed(Exception):
    """The gateway did not start; its log tells why."""


class _Process(protocol.ProcessProtocol):
    def __init__(self, log: Path) -> None:
        self.ended: defer.Deferred[int] = defer.Deferred()
        self._log = log.open("ab")

    def outReceived(self, data: bytes) -> None:
        self._log.write(data)
        self._log.flush()

    errReceived = outReceived

    def processEnded(self, reason: Any) -> None:
        self._log.close()
        self.ended.callback(reason.value.exitCode if reason.value.exitCode is not None else -1)


class Stand:
    """Everything around one gateway. `start` it, use it, `stop` it."""

    def __init__(
        self,
        folder: Path,
        reactor: Any,
        pacses: Sequence[PacsAddress | NativeAddress],
        *,
        dicom_port: int | None = None,
        extra: Mapping[str, Mapping[str, str]] | None = None,
        options: Sequence[str] = (),
        ris: Mapping[str, str] | None = None,
        world: Stand | None = None,
    ) -> None:
        """`world` is a stand already started: then this is one more gateway in its world, another node.

        `extra` adds keys to sections of the configuration: {"wado": {"window": "1048576"}}.

        `ris` adds keys to the `[[ris]]`.

        `options` are given to `twistd` (`--profile=FILE`).
        """
        self.folder = folder
        self.log = folder / "gateway.log"
        self._reactor = reactor
        self._pacses = tuple(pacses)
        self._extra = {section: dict(keys) for section, keys in (extra or {}).items()}
        self._options = tuple(options)
        self._ris = {"name": _text("RIS"), "sending_application": _text("RIS-Y"), **(ris or {})}
        self._world = world
        self.dicom_port = dicom_port or free_port()
        self.wado_port, self.hl7_port, self.admin_port = free_port(), free_port(), free_port()
        numbers = range(1, len(self._pacses) + 1)
        self.sites = [f"db{number}.349.mesimagesmedicales.fr" for number in numbers]
        self._viewers = [f"vi{number}.349.mesimagesmedicales.fr" for number in numbers]
        #: How the RIS speaks to an HL7 door behind TLS, None in clear.
        self.ris_tls: RisTls | None = None
        self._process: _Process | None = None
        self._transport: Any = None

    # -- the world ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make keys, lists and configuration; start DMP and Pro Santé Connect, or join those there are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._world is not None:
            self._join(self._world)
            return
        self.pki = make_pki(
            self.folder / "pki",
            sites=[*self.sites, CONSUMER, OTHER_CONSUMER, STRANGER],
            viewers=self._viewers,
            structures={STRUCTURE: "CABINET Y"},
        )
        listed = [*self.sites, CONSUMER, OTHER_CONSUMER]
        #: Who is in the whitelist.
        self.domains = [
            ListedDomain.for_certificate(str(number), self.pki.sites[name])
            for number, name in enumerate(listed)
        ]
        (self.folder / "whitelist.xml").write_bytes(make_whitelist(self.domains, self.pki.whitelist_signer))
        trust = Trust.load(self.pki.roots, None)
        self.dmp = DmpServer(self._reactor, DmpService(trust), self.pki.dmp, self.pki.roots)
        self.dmp.start()
        self.psc = PscServer(self._reactor, self.pki.psc)
        self.psc.start()
        secret = self.folder / "psc-secret"
        client, password = next(iter(self.psc.service.clients.items()))
        secret.write_text(password + "\n")
        secret.chmod(0o600)
        self._client = client
        self.config = self.folder / "drimbox.toml"
        self.config.write_text(self._toml(), "utf-8")

    def _join(self, world: Stand) -> None:
        self.pki, self.dmp, self.psc, self._client = world.pki, world.dmp, world.psc, world._client
        for name in ("whitelist.xml", "psc-secret"):
            shutil.copy2(world.folder / name, self.folder / name)
        self.config = self.folder / "drimbox.toml"
        self.config.write_text(self._toml(), "utf-8")

    async def stop(self) -> None:
        """Stop the gateway, then the world if it is ours."""
        await self.stop_gateway()
        if self._world is not None:
            return
        await self.dmp.stop()
        await self.psc.stop()

    def consumer(self, name: str = CONSUMER) -> Pair:
        """Return the SSL_SERV pair of a Consumer."""
        return self.pki.sites[name]

    # -- the gateway -------------------------------------------------------------------------------

    async def start_gateway(self, *, seconds: float = 60.0) -> None:
        """Start `twistd drimbox` and wait until it is ready. Raises `GatewayFailed`."""
        self.spawn_gateway()
        await self.ready(seconds=seconds)

    async def ready(self, *, seconds: float = 60.0) -> None:
        """Wait until the gateway that was spawned is ready. Raises `GatewayFailed`."""
        assert self._process is not None
        limit = self._reactor.seconds() + seconds
        while not await self._is_ready():
            if self._process.ended.called or self._reactor.seconds() > limit:
                tail = self.log.read_text("utf-8", "replace")[-2000:]
                raise GatewayFailed(f"la passerelle n'a pas démarré :\n{tail}")
            await task.deferLater(self._reactor, 0.1)

    def spawn_gateway(self) -> None:
        """Start `twistd drimbox`, and wait for nothing."""
        self._process = _Process(self.log)
        arguments = self._arguments()
        self._transport = self._reactor.spawnProcess(
            self._process, arguments[0], arguments, env=self._environment(), path=str(self.folder)
        )

    def _arguments(self) -> list[str]:
        """Return the whole command line."""
        arguments = [*self._command(), "-n", "--pidfile=", *self._options]
        return [*arguments, "drimbox", "--config", str(self.config)]

    def _command(self) -> list[str]:
        """Return what is `twistd`: the beginning of the command line."""
        return [str(Path(sys.executable).parent / "twistd")]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    @property
    def running(self) -> bool:
        """Say whether the gateway process lives."""
        return self._process is not None and not self._process.ended.called

    async def _is_ready(self) -> bool:
        try:
            status, _ = await self.admin("/ready")
        except (error.ConnectError, error.ConnectionLost, Exception):
            return False
        return status == 200

    async def stop_gateway(self) -> int | None:
        """Ask it to stop and wait; return its exit status."""
        return await self._end(signal.SIGTERM)

    async def kill_gateway(self) -> None:
        """`kill -9`."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if not process.ended.called:
            self._transport.signalProcess(number.value)
        timer = self._reactor.callLater(60.0, self._transport.signalProcess, signal.SIGKILL.value)
        status = await process.ended
        if timer.active():
            timer.cancel()
        return status

    @property
    def pid(self) -> int:
        """Process number of the gateway."""
        return int(self._transport.pid)

    async def admin(self, path: str) -> tuple[int, bytes]:
        """GET a path of the admin listener."""
        agent = Agent(self._reactor, connectTimeout=5.0)
        url = f"http://{LOOPBACK}:{self.admin_port}{path}"
        response: Any = await agent.request(b"GET", url.encode("ascii"))
        return response.code, await readBody(response)

    # -- the main job ------------------------------------------------------------------------------

    async def send(self, message: bytes, *, seconds: float = 30.0) -> ris.SimAck:
        """Send an HL7 message as the RIS."""
        return await ris.send(
            LOOPBACK, self.hl7_port, message, seconds, reactor=self._reactor, tls=self.ris_tls
        )

    def published(self) -> list[str]:
        """UniqueIds of the KOS that the DMP holds as current."""
        return [
            str(document["uniqueId"])
            for document in self.dmp.state()["documents"]
            if document["status"] == "Approved" and document["mimeType"] == "application/dicom"
        ]

    async def wait_published(self, count: int, *, seconds: float = 30.0) -> list[str]:
        """Wait until the DMP holds `count` current KOS; return them, as many as there are at the end."""
        limit = self._reactor.seconds() + seconds
        while len(self.published()) < count and self._reactor.seconds() < limit:
            await task.deferLater(self._reactor, 0.05)
        return self.published()

    def token(self) -> str:
        """Mint an access token of a professional, valid for an hour."""
        return self.psc.mint(life=3600.0)

    async def fetch(self, study: str, series: str, kos: str | None, **options: Any) -> FetchResult:
        """Ask for a series as the listed Consumer; `options` are the fields of `consumer.Order`."""
        site = options.pop("site", self.sites[0])
        options.setdefault("certificate", self.consumer())
        options.setdefault("roots", self.pki.roots)
        options.setdefault("token", self.token())
        options.setdefault("sni", site)
        return await fetch_series(
            self._reactor,
            host=LOOPBACK,
            port=self.wado_port,
            study=study,
            series=series,
            kos_uid=kos,
            **options,
        )

    # -- configuration -----------------------------------------------------------------------------

    def _toml(self) -> str:
        pki = self.pki
        structure = pki.structures[STRUCTURE]
        sections: dict[str, dict[str, str]] = {
            "drimbox": {
                "state_dir": _text(self.folder / "state"),
                "system_id": _text("349"),
                "oid": _text("1.2.250.1.999.349"),
                "serial_number": _text("SIM-1"),
                "dmp_certification": _text("SIM-DMP-1"),
                "drain_timeout": "10",
            },
            "log": {"format": _text("json")},
            "admin": {"port": str(self.admin_port)},
            "hl7": {"port": str(self.hl7_port)},
            "dicom": {"port": str(self.dicom_port)},
            "wado": {
                "port": str(self.wado_port),
                "public_port": str(self.wado_port),
                # Everybody here calls from one address.
                "max_connections_per_address": "100000",
                "connection_rate": "100000",
                "connection_burst": "100000",
            },
            "trust": {
                "consumer_roots": _text(pki.roots),
                "whitelist": _text(self.folder / "whitelist.xml"),
                "whitelist_roots": _text(pki.roots),
            },
            "dmp": {
                "base_url": _text(f"https://localhost:{self.dmp.port}"),
                "roots": _text(pki.roots),
                "processing_code": _text("D"),
                "retry_first": "0.2",
                "retry_max": "2",
            },
            "psc": {
                "introspection_url": _text(self.psc.introspection_url),
                "client_id": _text(self._client),
                "client_secret_file": _text(self.folder / "psc-secret"),
                "roots": _text(pki.roots),
            },
            "feed": {"retry_first": "0.2", "retry_max": "2"},
        }
        for section, keys in self._extra.items():
            sections.setdefault(section, {}).update(keys)
        lines = [line for name, keys in sections.items() for line in _section(f"[{name}]", keys)]
        lines += _section("[[ris]]", self._ris)
        lines += _section(
            "[[structure]]",
            {
                "id": _text(STRUCTURE),
                "name": _text("CABINET Y"),
                "authentication": _pair(structure.authentication),
                "signature": _pair(structure.signature),
            },
        )
        for number, pacs in enumerate(self._pacses):
            if isinstance(pacs, NativeAddress):
                lines += self._native_site(number, pacs)
            else:
                lines += self._site(number, pacs)
        return "\n".join(lines) + "\n"

    def _site(self, number: int, pacs: PacsAddress) -> list[str]:
        settings = {
            "name": _text(f"PACS{number + 1}"),
            "ae_title": _text(pacs.ae_title),
            "host": _text(pacs.host),
            "port": str(pacs.port),
            "pool": "[" + ", ".join(_text(title) for title in pacs.pool) + "]",
            **pacs.settings,
        }
        return self._site_head(number, pacs.site) + _section("[site.pacs]", settings)

    def _native_site(self, number: int, archive: NativeAddress) -> list[str]:
        settings = {"name": _text(f"ARCHIVE{number + 1}"), **archive.settings}
        return self._site_head(number, archive.site) + _section("[site.native]", settings)

    def _site_head(self, number: int, more: Mapping[str, str]) -> list[str]:
        wado, viewer = self.sites[number], self._viewers[number]
        site = {
            "name": _text(f"site{number + 1}"),
            "wado_fqdn": _text(wado),
            "viewer_fqdn": _text(viewer),
            "wado_certificate": _pair(self.pki.sites[wado]),
            "viewer_certificate": _pair(self.pki.viewers[viewer]),
            "retrieve_location_uid": _text(f"1.2.250.1.999.349.{number + 1}"),
            **more,
        }
        return _section("[[site]]", site)


def _text(value: object) -> str:
    return f'"{value}"'


def _pair(pair: Pair) -> str:
    return f"{{ certificate = {_text(pair.certificate)}, key = {_text(pair.key)} }}"


def _section(head: str, keys: Mapping[str, str]) -> list[str]:
    return [head, *(f"{key} = {value}" for key, value in keys.items()), ""]
