"""Whether a caller's address is in one of the networks that may call."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def within(address: str, networks: Iterable[Network]) -> bool:
    """Say whether `address`, as a socket names its peer, is in one of `networks`."""
    try:
        value = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(value, ipaddress.IPv6Address) and value.ipv4_mapped is not None:
        # A door open on `::` sees IPv4 callers so.
        value = value.ipv4_mapped
    return any(value in network for network in networks)
