"""Where a PACS may call from: addresses, networks and host names of the configuration (DB.SO.05).

A host name counts as it resolves. It is resolved when the door opens and again every few minutes, never
while somebody waits at the door; when it stops resolving, the last known addresses stay good, because a
name server that is down must not stop the images.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from zope.interface import implementer

from drimbox.config import Pacs
from drimbox.networks import Network, within

#: Seconds between two resolutions of the names.
REFRESH = 300.0


class Addresses:
    """The addresses a PACS may store from."""

    def __init__(self, pacs: Pacs) -> None:
        self._networks: list[Network] = []
        #: Host names among the entries, with the addresses they have.
        self.names: dict[str, tuple[Network, ...]] = {}
        for entry in pacs.addresses or (pacs.host,):
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                # A name that does not resolve matches nothing; `drimbox doctor` says so.
                self.names[entry] = ()

    def allow(self, address: str) -> bool:
        """Say whether `address` belongs to the PACS."""
        resolved = (network for found in self.names.values() for network in found)
        return within(address, (*self._networks, *resolved))

    def learn(self, name: str, addresses: Iterable[str]) -> None:
        """Note what a name resolves to; nothing at all changes nothing."""
        found = tuple(ipaddress.ip_network(address) for address in addresses)
        if found:
            self.names[name] = found


@implementer(IResolutionReceiver)
class _Collector:
    """Gathers the addresses of one name and hands them to every PACS that is configured by it."""

    log = Logger()

    def __init__(self, name: str, targets: Iterable[Addresses]) -> None:
        self._name = name
        self._targets = tuple(targets)
        self._found: list[str] = []

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """Nothing to do yet."""

    def addressResolved(self, address: IAddress) -> None:
        """One more address."""
        self._found.append(str(getattr(address, "host", "")))

    def resolutionComplete(self) -> None:
        """All are known."""
        if not self._found:
            self.log.warn("host name {name} of a PACS does not resolve", name=self._name)
        for target in self._targets:
            target.learn(self._name, self._found)


def resolve(reactor: Any, addresses: Mapping[str, Addresses]) -> None:
    """Start to resolve every host name among the addresses; what comes is noted as it comes."""
    names = {name for each in addresses.values() for name in each.names}
    for name in names:
        targets = [each for each in addresses.values() if name in each.names]
        reactor.nameResolver.resolveHostName(_Collector(name, targets), name)
