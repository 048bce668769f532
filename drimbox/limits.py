"""Who may come in at a listening door: how many at once, in all and of one address, and how fast.

A `Doorkeeper` counts; it has no socket and no clock of its own. What it remembers is bounded, whoever
knocks. An address is counted as one host would have it: IPv4 as it is (mapped into IPv6 or not), IPv6 by
its /64, because one host may use all of that.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable

#: Addresses whose pace is remembered; beyond, the one heard of longest ago is forgotten.
MAX_PACES = 4096
_HOST_PREFIX = 64


class Why(enum.Enum):
    """Why a connection was refused at a door; the value is told to operators."""

    HANDSHAKE = "négociation TLS refusée"
    ISSUER = "certificat client d'une autorité non admise"
    USAGE = "certificat client sans usage clientAuth"
    REVOKED = "certificat client révoqué"
    UNCHECKED = "révocation du certificat client non vérifiable"
    GARBAGE = "ce qui a été reçu n'est pas une négociation TLS"
    UNFINISHED = "négociation TLS inachevée dans le temps imparti"
    SLOW = "demande incomplète dans le temps imparti"
    CROWDED = "place cédée, faute de certificat, à une nouvelle connexion"
    TOTAL = "trop de connexions ouvertes en tout"
    ADDRESS = "trop de connexions ouvertes par cette adresse"
    GUESTS = "trop de connexions ouvertes vers les noms de visionneuse"
    RATE = "connexions trop rapprochées de cette adresse"
    STRANGER = "trop de connexions ouvertes par des adresses non déclarées"
    MEMORY = "trop de messages en mémoire à la fois"
    FRONT_END = "en-tête PROXY absent ou illisible d'un frontal déclaré"


#: Told of a connection refused: address, and why.
Refused = Callable[[str, Why], None]


def host_of(address: str) -> str:
    """Return what an address is counted by; what is no address stands for itself."""
    try:
        value = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return address
    if isinstance(value, ipaddress.IPv6Address):
        if value.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(value), _HOST_PREFIX), strict=False))
        value = value.ipv4_mapped
    return str(value)


class Pace:
    """How often each address may come: `burst` times at once, `rate` times a second in the long run."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float]) -> None:
        self._step = 1.0 / rate
        self._most = burst * self._step
        self._now = now
        #: Instant at which each address has its whole burst again; the one heard of last is the last.
        self._rested: OrderedDict[str, float] = OrderedDict()

    def allows(self, host: str) -> bool:
        """Say whether one more is within the pace."""
        now = self._now()
        return max(self._rested.get(host, now), now) + self._step - now <= self._most + 1e-9

    def note(self, host: str) -> None:
        """Count one more."""
        now = self._now()
        self._rested[host] = max(self._rested.pop(host, now), now) + self._step
        while len(self._rested) > MAX_PACES:
            self._rested.popitem(last=False)

    def __len__(self) -> int:
        return len(self._rested)


class Doorkeeper:
    """Counts the connections of one door.

    `strangers` is the most that callers for whom `admit` is told so may hold together, apart from the
    `total` of the others; `pace` bounds how often one address may come.
    """

    def __init__(
        self, total: int, per_address: int, *, strangers: int = 0, pace: Pace | None = None
    ) -> None:
        self._total = total
        self._per_address = per_address
        self._strangers = strangers
        self._pace = pace
        self._by_host: Counter[str] = Counter()
        self._inside = {False: 0, True: 0}

    def __len__(self) -> int:
        return sum(self._inside.values())

    def admit(self, address: str, *, stranger: bool = False) -> Why | None:
        """Let one connection in and count it; return why not, and then count nothing."""
        host = host_of(address)
        if self._by_host[host] >= self._per_address:
            return Why.ADDRESS
        if self._pace is not None and not self._pace.allows(host):
            return Why.RATE
        if self._inside[stranger] >= (self._strangers if stranger else self._total):
            return Why.STRANGER if stranger else Why.TOTAL
        if self._pace is not None:
            self._pace.note(host)
        self._inside[stranger] += 1
        self._by_host[host] += 1
        return None

    def leave(self, address: str, *, stranger: bool = False) -> None:
        """One connection that was let in is over."""
        host = host_of(address)
        self._inside[stranger] -= 1
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]
