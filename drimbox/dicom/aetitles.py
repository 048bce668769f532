"""The pool of AE titles: which C-MOVE an incoming C-STORE belongs to (DB.SO.85, retrieval-engine.md).

A title is leased to one move at a time and named as its destination; the called AE title of the
association that the PACS then opens says whose images these are. A title that is not leased takes C-ECHO
and refuses storage. After a move it comes back only when nothing of that move can arrive any more: at
once when the final C-MOVE response came and no association is open on it, else after a quarantine. An
association that outlives the final response carries nothing we want: it is ended after a short while.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from drimbox import metrics
from drimbox.config import Pacs
from drimbox.dicom.moving import Channel, Receiver
from drimbox.errors import TooManyRequests

#: Seconds an association may stay open after the final response of its move before we end it.
_LEFTOVER = 10.0


class TitleState(enum.Enum):
    """Life of an AE title."""

    FREE = "free"
    LEASED = "leased"
    QUARANTINED = "quarantined"


class Title:
    """One AE title of the pool; while leased, `receiver` is the move it serves."""

    def __init__(self, ae_title: str, pacs: Pacs, pool: Pool) -> None:
        self.ae_title = ae_title
        self.pacs = pacs
        self.state = TitleState.FREE
        self.receiver: Receiver | None = None
        #: Message id of the C-MOVE request, to hold (0000,1031) against.
        self.message_id: int | None = None
        self.channels: set[Channel] = set()
        self._pool = pool
        self._final = False
        self._quarantine: IDelayedCall | None = None

    def release(self, *, final: bool) -> None:
        """End the lease. `final` tells that the final C-MOVE response was received."""
        if self.state is not TitleState.LEASED:
            return
        self.receiver = None
        self.message_id = None
        self._final = final
        if final and not self.channels:
            self._pool.freed(self)
            return
        self.state = TitleState.QUARANTINED
        self._watch()
        self._pool.count()

    def attached(self, channel: Channel) -> None:
        """An association of the move that holds the lease is open."""
        self.channels.add(channel)

    def disturbed(self) -> None:
        """Somebody wants to store to a title that is not leased: its quiet time starts again."""
        self._watch()

    def detached(self, channel: Channel) -> None:
        """An association to this title is over."""
        self.channels.discard(channel)
        if self.state is TitleState.QUARANTINED and self._final and not self.channels:
            self._pool.freed(self)
        else:
            self._watch()

    def stop(self) -> None:
        """Forget the timer, at shutdown or when freed."""
        if self._quarantine is not None and self._quarantine.active():
            self._quarantine.cancel()
        self._quarantine = None

    def _watch(self) -> None:
        """Start the quiet time again: something happened on a quarantined title."""
        if self.state is not TitleState.QUARANTINED:
            return
        self.stop()
        if self._pool.stopped:
            return
        quiet = min(_LEFTOVER, self.pacs.quarantine) if self._final else self.pacs.quarantine
        self._quarantine = self._pool.clock.callLater(quiet, self._quiet)

    def _quiet(self) -> None:
        self._quarantine = None
        # What is still open after the quiet time is a leftover: end it, its closing frees the title.
        self._final = True
        if not self.channels:
            self._pool.freed(self)
            return
        for channel in list(self.channels):
            channel.abort()


class Pool:
    """The AE titles of one PACS; requests wait in order of arrival."""

    def __init__(self, pacs: Pacs, clock: IReactorTime) -> None:
        self.pacs = pacs
        self.clock = clock
        self.titles = {title: Title(title, pacs, self) for title in pacs.pool}
        self._free = deque(self.titles.values())
        self._waiting: deque[Deferred[Title]] = deque()
        #: True once no title is leased any more.
        self.stopped = False
        metrics.POOL_SIZE.labels(pacs.name).set(len(self.titles))
        self.count()

    @property
    def free(self) -> int:
        """Titles that a move could lease at once."""
        return 0 if self.stopped else len(self._free)

    @property
    def waiting(self) -> int:
        """Moves that wait for a title."""
        return len(self._waiting)

    async def lease(self, receiver: Receiver, timeout: float, only: str = "") -> Title:
        """Lease a title for one move, waiting at most `timeout` seconds; `only` that one, at once or not.

        Raises `TooManyRequests` (E1003) when none came free in time (DB.SO.85).
        """
        asked = self.clock.seconds()
        try:
            if only:
                title = self._take(only)
            elif self._free and not self.stopped:
                title = self._free.popleft()
            else:
                title = await self._wait(timeout)
        finally:
            metrics.POOL_WAIT_SECONDS.labels(self.pacs.name).observe(self.clock.seconds() - asked)
        title.state = TitleState.LEASED
        title.receiver = receiver
        self.count()
        return title

    def _take(self, name: str) -> Title:
        title = self.titles[name]
        if self.stopped or title not in self._free:
            raise TooManyRequests(f"titre AE {name} occupé")
        self._free.remove(title)
        return title

    async def _wait(self, timeout: float) -> Title:
        waiting: Deferred[Title] = Deferred()
        if self.stopped or timeout <= 0:
            raise TooManyRequests("aucun titre AE libre", retry_after=max(1, int(timeout)))
        self._waiting.append(waiting)
        self.count()
        timer = self.clock.callLater(timeout, waiting.cancel)
        try:
            return await waiting
        except CancelledError:
            raise TooManyRequests(
                f"aucun titre AE libre après {timeout:.0f} s", retry_after=max(1, int(timeout))
            ) from None
        finally:
            if timer.active():
                timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            self.count()

    def freed(self, title: Title) -> None:
        """Give a title that nothing can arrive on any more to the next in line."""
        title.stop()
        title.state = TitleState.FREE
        if self._waiting and not self.stopped:
            self._waiting.popleft().callback(title)
        else:
            self._free.append(title)
        self.count()

    def stop(self) -> None:
        """Lease no more."""
        self.stopped = True
        for title in self.titles.values():
            title.stop()
        for waiting in list(self._waiting):
            waiting.cancel()

    def count(self) -> None:
        """Publish how the pool is used."""
        name = self.pacs.name
        for state in (TitleState.LEASED, TitleState.QUARANTINED):
            used = sum(title.state is state for title in self.titles.values())
            metrics.POOL_USED.labels(name, state.value).set(used)
        metrics.POOL_WAITING.labels(name).set(len(self._waiting))


class Pools:
    """All pools of the gateway, found by PACS or by called AE title."""

    def __init__(self, pacses: Iterable[Pacs], clock: IReactorTime) -> None:
        self.by_pacs = {pacs.name: Pool(pacs, clock) for pacs in pacses}
        self._titles = {
            name: title for pool in self.by_pacs.values() for name, title in pool.titles.items()
        }

    def find(self, ae_title: str) -> Title | None:
        """Return the title of that name, None when it is not one of ours."""
        return self._titles.get(ae_title)

    def stop(self) -> None:
        """Lease no more."""
        for pool in self.by_pacs.values():
            pool.stop()
