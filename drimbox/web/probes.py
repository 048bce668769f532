"""Which addresses may ask for the state of the gateway: those of the probes of the weather service.

They are configured, or published as a list that changes: read from a file, or fetched from an address and
kept on disk for the next start. Nobody knows the format of the list beforehand: every address or network
on a line counts, whatever stands beside it, and where the line names a region, only the regions wanted
(requirements.md 3.13: European probes only). A list without any address is refused, and the last good one
stays: a page of a proxy in its place must lock nobody out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from twisted.logger import Logger

from drimbox.config import HealthSettings
from drimbox.networks import Network, within
from drimbox.ports import InThread, OutageNotices
from drimbox.systemerrors import system_reason
from drimbox.trust.download import Fetch, FetchFailed
from drimbox.trust.listkeeper import write_whole

#: Of a list: bytes, and addresses.
MAX_BYTES = 1024 * 1024
MAX_ADDRESSES = 10_000
#: Answers remembered, by address.
_REMEMBERED = 1000
#: The list fetched last, in the state folder.
KEPT = "health-probes.txt"
#: Time between two tries while none succeeds, and without a list until the administrator is told.
_RETRY, _SILENCE = timedelta(hours=1), timedelta(days=1)
_BETWEEN = re.compile(r"[\s,;|\"'<>\[\](){}=]+")


class ListRefused(ValueError):
    """What came is no list of addresses; the text (French) says why."""


def read_list(data: bytes, regions: Sequence[str] = ()) -> frozenset[Network]:
    """Return the addresses and networks of a list; with `regions`, of the lines that name one of them.

    Raises `ListRefused`.
    """
    if len(data) > MAX_BYTES:
        raise ListRefused(f"liste de plus de {MAX_BYTES // 1024} Kio")
    wanted = [region.casefold() for region in regions]
    found: set[Network] = set()
    for line in data.decode("utf-8", "replace").splitlines():
        text = line.partition("#")[0].casefold()
        if not wanted or any(region in text for region in wanted):
            found.update(network for word in _BETWEEN.split(text) for network in _network(word))
    if not found:
        raise ListRefused("aucune adresse IP dans la liste")
    if len(found) > MAX_ADDRESSES:
        raise ListRefused(f"plus de {MAX_ADDRESSES} adresses")
    return frozenset(found)


def _network(word: str) -> list[Network]:
    # A number alone is an address to `ipaddress`, and a version or a line number to its author.
    if "." not in word and ":" not in word:
        return []
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        return []
    # Nobody publishes half of the Internet.
    return [network] if network.prefixlen >= (8 if network.version == 4 else 16) else []


class Probes:
    """The addresses in force (a `health.Callers`). Fetched, or read from a file, as the configuration says.

    `fetch` is None when no address is configured.
    """

    log = Logger()

    def __init__(
        self,
        settings: HealthSettings,
        notices: OutageNotices,
        *,
        fetch: Fetch | None,
        now: Callable[[], datetime],
        in_thread: InThread,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._notices = notices
        self._fetch = fetch
        self._now = now
        self._in_thread = in_thread
        self._kept = folder / KEPT
        self._configured = frozenset(ipaddress.ip_network(address) for address in settings.addresses)
        self._networks: frozenset[Network] = self._configured
        self._known: dict[str, bool] = {}
        self._next: datetime | None = None
        self._failing_since: datetime | None = None

    def allows(self, address: str) -> bool:
        """Say whether a caller at `address` gets an answer; without any address configured, nobody does."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[address] = within(address, self._networks)
        return known

    async def start(self) -> None:
        """Put in force what is on disk: the list kept by an earlier run, or the file configured."""
        path = self._settings.addresses_file or (self._kept if self._fetch is not None else None)
        if path is None or (path is self._kept and not path.exists()):
            return
        try:
            self._install(await self._in_thread(lambda: read_list(read_file(path), self._settings.regions)))
        except (ListRefused, FetchFailed) as error:
            await self._not_renewed(str(error))

    async def refresh_if_due(self) -> None:
        """Read the file again; fetch the list when it is time to."""
        if self._settings.addresses_file is not None:
            await self._refresh(self._from_file)
        elif self._fetch is not None and (self._next is None or self._now() >= self._next):
            await self._refresh(self._fetch)

    async def _refresh(self, fetch: Fetch) -> None:
        try:
            data = await fetch()
            fresh = await self._in_thread(lambda: read_list(data, self._settings.regions))
            if fetch is self._fetch:
                await self._in_thread(lambda: write_whole(self._kept, data))
        except (ListRefused, FetchFailed) as error:
            self._next = self._now() + _RETRY
            await self._not_renewed(str(error))
            return
        except OSError as error:
            # In force until the next start all the same.
            self.log.warn("list of probes not kept: {why}", why=error.strerror)
        self._next = self._now() + timedelta(seconds=self._settings.addresses_period)
        self._failing_since = None
        self._install(fresh)
        await self._notices.resolve("health-probes")

    async def _from_file(self) -> bytes:
        path = self._settings.addresses_file
        assert path is not None
        return await self._in_thread(lambda: read_file(path))

    def _install(self, fresh: frozenset[Network]) -> None:
        if self._configured | fresh != self._networks:
            self._networks = self._configured | fresh
            self._known.clear()
            self.log.info("health: {count} addresses may ask", count=len(self._networks))

    async def _not_renewed(self, reason: str) -> None:
        """Tell the administrator at once when nobody can ask, else when it has lasted."""
        self.log.warn("health: list of probes not renewed: {why}", why=reason)
        now = self._now()
        self._failing_since = self._failing_since or now
        if self._networks and now - self._failing_since < _SILENCE:
            return
        left = "la dernière bonne reste en vigueur" if self._networks else "aucune sonde n'est admise"
        text = f"Liste des sondes de la météo des services non renouvelée : {reason} ; {left}"
        await self._notices.post(key="health-probes", code="SONDES", text=text)


def read_file(path: Path) -> bytes:
    """Return the bytes of a list in a file. Raises `FetchFailed`."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FetchFailed(f"{path} : lecture impossible ({system_reason(error)})") from error
