"""Keeps the whitelist fresh: fetched daily and on demand, kept as it came (DB.CS.147, 148, 151, 186).

    fetch --bytes--> verify (in a thread) --good, not older--> file, unaltered --> in force
      |                 |                       |
    unreachable      refused                  older: refused, unless an administrator takes it

Whatever goes wrong, the last good list stays in force (decisions.md) and somebody is told: at once when a
list came that cannot be used, after `whitelist_silence` (two days) when none came. A list older than the
one in force is one that somebody plays again: whoever was taken out since would be back in. The bytes of a
refused list are kept beside, for whoever must find out why.

What is remembered across restarts, when a list last came and since when none does, is a small file. Without
an address only the configured file is read again, and the same is told of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import TrustSettings
from drimbox.durable import sync
from drimbox.ports import OutageNotices
from drimbox.systemerrors import system_reason
from drimbox.trust.download import Fetch, FetchFailed
from drimbox.trust.whitelist import Whitelist, WhitelistHolder, WhitelistRefused

#: Where, in the state folder: the list that was fetched last, the last one refused, what is remembered.
KEPT, REFUSED, MEMORY = "whitelist.xml", "whitelist-refused.xml", "whitelist.json"
#: Seconds between two tries while none succeeds.
RETRY = 3600.0
_CODE = "LISTEBLANCHE"


@attrs.frozen
class Refreshed:
    """How one refresh ended: "new", "same", "older", "refused", "unreachable" or "busy"."""

    outcome: str
    #: Why no list was taken, in French.
    reasons: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """True when the list that came is in force."""
        return self.outcome in ("new", "same")


@attrs.define
class _Memory:
    """What survives a restart."""

    fetched_at: datetime | None = None
    failing_since: datetime | None = None


class ListKeeper:
    """Refreshes the list of a `WhitelistHolder`, and tells the administrator what is wrong with it.

    `fetch` is None when no address is configured. `in_thread` runs work off the reactor thread; `folder` is
    the state folder; `random` gives numbers from 0 to 1, for the jitter of the daily fetch.
    """

    log = Logger()

    def __init__(
        self,
        settings: TrustSettings,
        holder: WhitelistHolder,
        notices: OutageNotices,
        *,
        fetch: Fetch | None,
        now: Callable[[], datetime],
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
        folder: Path,
        random: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._holder = holder
        self._notices = notices
        self._fetch = fetch
        self._now = now
        self._in_thread = in_thread
        self._folder = folder
        self._random = random
        self._memory = _read_memory(folder / MEMORY)
        self._busy = False
        self._next_try: datetime | None = None

    # -- what is known -----------------------------------------------------------------------------

    @property
    def fetched_at(self) -> datetime | None:
        """When a good list last came from its address, None when never."""
        return self._memory.fetched_at

    @property
    def failing_since(self) -> datetime | None:
        """Since when none comes, None while the last fetch brought one."""
        return self._memory.failing_since

    # -- starting ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Put the best list on disk in force. Raises `WhitelistRefused` as `WhitelistHolder.start`."""
        try:
            self._holder.start()
        finally:
            await self._tell_refused(self._holder.reasons)
        await self._tell_own()
        self._measure()

    # -- refreshing --------------------------------------------------------------------------------

    async def refresh_if_due(self) -> None:
        """Refresh when it is a day since a list came, or an hour since none did."""
        if self._next_try is None:
            self._next_try = self._after_success(self._memory.fetched_at)
        if self._now() >= self._next_try:
            await self.refresh()

    async def refresh(self, *, take_older: bool = False) -> Refreshed:
        """Get the list now and put it in force if it is good. Never raises for a bad or absent one."""
        if self._busy:
            return Refreshed("busy", ("une récupération est déjà en cours",))
        self._busy = True
        try:
            result = await self._refresh(take_older)
        finally:
            self._busy = False
        self.log.info("whitelist refreshed: {outcome}", outcome=result.outcome)
        metrics.WHITELIST_REFRESHES.labels(result.outcome).inc()
        self._measure()
        return result

    async def _refresh(self, take_older: bool) -> Refreshed:
        try:
            data = await (self._fetch() if self._fetch is not None else self._from_file())
        except FetchFailed as error:
            return await self._unreachable(str(error))
        try:
            fresh = await self._in_thread(lambda: self._holder.verify(data))
            assert isinstance(fresh, Whitelist)
        except WhitelistRefused as error:
            return await self._refused("refused", error.reasons, data)
        if not take_older and self._holder.is_older(fresh):
            reason = "liste plus ancienne que celle en vigueur (DateDeGeneration)"
            return await self._refused("older", (reason,), data)
        try:
            return await self._take(fresh, data)
        except OSError as error:
            # In force until the next start all the same: what was verified is good.
            self._holder.install(fresh)
            reason = f"liste en vigueur mais non enregistrée ({system_reason(error)})"
            return await self._refused("refused", (reason,), None)

    async def _from_file(self) -> bytes:
        data = await self._in_thread(self._read_file)
        assert isinstance(data, bytes)
        return data

    def _read_file(self) -> bytes:
        try:
            return self._holder.read_configured()
        except WhitelistRefused as error:
            raise FetchFailed(str(error)) from error

    async def _take(self, fresh: Whitelist, data: bytes) -> Refreshed:
        same = self._holder.has(fresh)
        if self._fetch is not None:
            await self._in_thread(lambda: write_whole(self._folder / KEPT, data))
        self._holder.install(fresh)
        now = self._now()
        self._next_try = self._after_success(now)
        await self._remember(attrs.evolve(self._memory, fetched_at=now, failing_since=None))
        await self._notices.resolve("whitelist")
        await self._notices.resolve("whitelist-silence")
        await self._tell_own()
        return Refreshed("same" if same else "new")

    async def _unreachable(self, reason: str) -> Refreshed:
        now = self._now()
        since = self._memory.failing_since or now
        self._next_try = now + timedelta(seconds=RETRY)
        if self._memory.failing_since is None:
            await self._remember(attrs.evolve(self._memory, failing_since=since))
        if now - since >= timedelta(seconds=self._settings.whitelist_silence):
            text = (
                f"Liste blanche non récupérée depuis le {since:%d/%m/%Y à %H:%M} ({reason}) ; "
                "la dernière bonne reste en vigueur"
            )
            await self._notices.post(key="whitelist-silence", code=_CODE, text=text)
        return Refreshed("unreachable", (reason,))

    async def _refused(self, outcome: str, reasons: tuple[str, ...], data: bytes | None) -> Refreshed:
        self._next_try = self._now() + timedelta(seconds=RETRY)
        await self._tell_refused(reasons)
        if data is not None and self._fetch is not None:
            try:
                await self._in_thread(lambda: write_whole(self._folder / REFUSED, data))
            except OSError as error:
                self.log.warn("refused whitelist not kept: {why}", why=error.strerror)
        return Refreshed(outcome, reasons)

    def _after_success(self, at: datetime | None) -> datetime:
        """Return when to fetch again: a day later, give or take, so that not all boxes come at once."""
        if at is None:
            return self._now()
        return at + timedelta(seconds=self._settings.whitelist_period * (0.95 + 0.1 * self._random()))

    # -- what is told ------------------------------------------------------------------------------

    async def _tell_refused(self, reasons: tuple[str, ...]) -> None:
        if reasons:
            text = "Liste blanche inutilisable : " + " ; ".join(reasons)
            if self._holder.current is not None:
                text += " ; la dernière bonne reste en vigueur"
            await self._notices.post(key="whitelist", code=_CODE, text=text)

    async def _tell_own(self) -> None:
        """Tell which of our own sites the list has not (DB.CS.164)."""
        unlisted = {site.name for site in self._holder.unlisted}
        for site in self._holder.sites:
            if site.name in unlisted:
                text = (
                    f"Site {site.name} : certificat absent de la liste blanche, accès aux images désactivé"
                )
                await self._notices.post(key=f"unlisted-{site.name}", code=_CODE, text=text)
            else:
                await self._notices.resolve(f"unlisted-{site.name}")

    def _measure(self) -> None:
        current = self._holder.current
        metrics.WHITELIST_DOMAINS.set(len(current.domains) if current is not None else 0)
        if self._memory.fetched_at is not None:
            metrics.WHITELIST_FETCHED.set(self._memory.fetched_at.timestamp())

    # -- memory ------------------------------------------------------------------------------------

    async def _remember(self, memory: _Memory) -> None:
        self._memory = memory
        text = json.dumps(attrs.asdict(memory), default=datetime.isoformat)
        try:
            await self._in_thread(lambda: write_whole(self._folder / MEMORY, text.encode("ascii")))
        except OSError as error:
            # Forgotten at the next start: the list is then fetched at once.
            self.log.warn("whitelist memory not kept: {why}", why=error.strerror)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after any stop it holds the old bytes or the new ones. Raises `OSError`."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync(path.parent)


def _read_memory(path: Path) -> _Memory:
    """Read what was remembered; nothing, when it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
        return _Memory(_instant(found["fetched_at"]), _instant(found["failing_since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Memory()


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
