"""The doors to the outside: admin, DICOM, WADO-RS and HL7. Opened last, closed first and in order."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort

from drimbox.assembly import Assembly
from drimbox.config import Config, Hl7Settings, WadoSettings
from drimbox.frontend import FrontEnds
from drimbox.guard import ADMIN, WADO, Guard
from drimbox.trust.transport import BulkTLSFactory
from drimbox.wado.channel import WadoFactory
from drimbox.wado.server import WadoResource
from drimbox.waiting import at_most
from drimbox.web.access import Access
from drimbox.web.admin import AdminApi, admin_factory
from drimbox.web.doors import Doors, is_viewer


class Listening:
    """The four doors of one gateway."""

    def __init__(self, config: Config, reactor: Any, assembly: Assembly, guard: Guard) -> None:
        self._config = config
        self._reactor = reactor
        self._assembly = assembly
        self._guard = guard
        names = [name for site in config.sites for name in (site.wado_fqdn, site.viewer_fqdn)]
        self._images = WadoResource(assembly.gate, config.wado, names)
        #: What is served by name at the WADO-RS door.
        self.doors = Doors(self._images)
        self._wado = WadoFactory(
            self.doors, config.wado, reactor, is_viewer, refused=partial(guard.turned_away, WADO)
        )
        self._ports: list[IListeningPort] = []

    def open(self, api: AdminApi, access: Access) -> None:
        """Listen everywhere. Raises `CannotListenError`; what was opened before it stays open."""
        config = self._config
        tls = BulkTLSFactory(self._guard.contexts, False, self._wado)
        for settings, factory in (
            (config.admin, self._administration(api, access)),
            (config.dicom, self._assembly.acceptor),
            (config.wado, self._behind(config.wado, WADO, tls)),
            (config.hl7, self._behind(config.hl7, "hl7", self._mllp())),
        ):
            self._ports.append(self._reactor.listenTCP(settings.port, factory, interface=settings.host))

    def connected(self) -> list[bool]:
        """Say of each door whether it listens."""
        return [bool(getattr(port, "connected", False)) for port in self._ports]

    async def close(self) -> None:
        """Refuse, drain, close."""
        timeout = self._config.drimbox.drain_timeout
        self._assembly.gate.open = False
        admin, dicom, wado, hl7 = self._ports
        # The DICOM door stays open until the deliveries are drained: their images come through it.
        await gatherResults([maybeDeferred(port.stopListening) for port in (wado, hl7)])
        closed = Deferred.fromCoroutine(self._wado.closed())
        await self._assembly.mllp.drain(timeout)
        # Not when the last byte was written, but when the client has it.
        await at_most(closed, timeout, self._reactor)
        self._wado.abort_all()
        # Every answer is noted in the audit trail, those just cut too.
        await at_most(Deferred.fromCoroutine(self._images.drained()), timeout, self._reactor)
        await gatherResults([maybeDeferred(port.stopListening) for port in (dicom, admin)])
        self._assembly.acceptor.abort_all()

    def _administration(self, api: AdminApi, access: Access) -> Any:
        """Return the factory of the admin door, behind TLS and accounts where they are configured."""
        told = partial(self._guard.turned_away, ADMIN)
        door = admin_factory(api, self._config.admin, self._reactor, access, told)
        return door if self._guard.admin is None else BulkTLSFactory(self._guard.admin, False, door)

    def _mllp(self) -> Any:
        """Return the factory of the HL7 door, behind TLS where that is configured."""
        door = self._assembly.mllp
        return door if self._guard.hl7 is None else BulkTLSFactory(self._guard.hl7, False, door)

    def _behind(self, settings: WadoSettings | Hl7Settings, door: str, factory: Any) -> Any:
        """Put what reads the PROXY headers of the front ends before a door, when there are any."""
        if not settings.front_ends:
            return factory
        return FrontEnds(
            factory,
            settings.front_ends,
            timeout=settings.front_end_timeout,
            most=settings.max_connections,
            clock=self._reactor,
            refused=partial(self._guard.turned_away, door),
        )
