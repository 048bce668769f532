"""The walks over the archive of all sites: begun by hand, taken up again after a restart (DB.SO.28, 31).

A walk is never begun by itself. One that was running when the process ended goes on when it starts again,
because an administrator began it and nobody stopped it. Of several nodes one works on walks, whichever of
them an administrator speaks to: it sees in the store what was begun or stopped. A walk that breaks for a
reason nobody foresaw (a full disk) is told, and tried again from where it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import Config, Site
from drimbox.kos.manifest import retrieve_base
from drimbox.source.backoff import backoff
from drimbox.source.pauses import Stopped, after
from drimbox.source.walking import Doors, Examines, Walking
from drimbox.walks import OPEN_STATES, Walk, WalkKind, WalkOpen, WalkState

#: Seconds before a walk that broke is tried again, at first and at most.
_BROKEN = (10.0, 600.0)


async def _always() -> bool:
    return True


class WalkRefused(Exception):
    """What was asked for cannot be; the text says why and what to do, in French."""


@attrs.define
class _Hand:
    """A walk at work."""

    walking: Walking
    #: Fires when it has come to rest.
    rest: Deferred[None]


class Resync:
    """All walks of this process. `examiner` makes what judges the studies of one.

    `leads` says whether this node is the one that works on walks, `holds` whether it was a moment ago.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        doors: Doors,
        examiner: Callable[[WalkKind, Site], Examines],
        *,
        leads: Callable[[], Awaitable[bool]] = _always,
        holds: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._doors = doors
        self._examiner = examiner
        self._sites = {site.name: site for site in config.sites}
        #: By the number of the walk.
        self._hands: dict[int, _Hand] = {}
        #: Walks of sites that are not configured, once said.
        self._strangers: set[int] = set()
        self._closed = False
        self._leads = leads
        self._holds = holds

    async def look(self) -> None:
        """Work on the walks that run, if this node is the one that does, and on no other."""
        if not await self._leads():
            for number in list(self._hands):
                self._tell_to_stop(number)
            return
        await self.resume()

    async def resume(self) -> None:
        """Go on with the walks that are running and that nobody has in hand; leave those that are not."""
        mine = set(self._hands)
        running = await self._doors.store.running()
        for number in mine - {walk.id for walk in running}:
            self._tell_to_stop(number)
        for walk in running:
            site = self._sites.get(walk.site)
            if site is not None and not self._to_same_address(walk, site):
                text = f"Site {site.name} : passage {walk.id} abandonné, l'adresse a changé : le relancer"
                await self._doors.notices.post(key=f"parcours-{site.name}", code="RESYNC", text=text)
                await self._doors.store.set_state(walk.id, WalkState.ABANDONED)
            else:
                self._work_on(walk)

    async def close(self) -> None:
        """Begin no more; stop what runs where it is, and wait for it. It goes on at the next start."""
        self._closed = True
        await self._rest(*self._hands)

    def waiting(self, walk: Walk) -> str:
        """Say in French what a walk waits for; empty when it works, or is not at work."""
        hand = self._hands.get(walk.id)
        if hand is not None:
            return hand.walking.waiting
        if walk.state is WalkState.RUNNING and walk.site not in self._sites:
            return "le site n'est plus dans la configuration"
        if walk.state is WalkState.RUNNING and not self._holds():
            return "un autre nœud s'en charge"
        return ""

    # -- what an administrator may do --------------------------------------------------------------

    async def start(self, kind: WalkKind, site: Site, *, dry_run: bool) -> tuple[Walk, bool]:
        """Begin a walk of a site, or go on with its stopped one of the same kind; say whether it went on.

        Raises `WalkRefused` while another is open.
        """
        store = self._doors.store
        found = await store.open_walk(site.name)
        if found is None:
            address = retrieve_base(site, self._config.wado)
            try:
                walk = await store.begin(kind, site.name, dry_run=dry_run, address=address)
            except WalkOpen as busy:
                raise WalkRefused(_open(await store.get(busy.number))) from None
            await self._doors.notices.resolve(f"parcours-{site.name}")
            self._work_on(walk)
            return walk, False
        same = (found.kind, found.dry_run) == (kind, dry_run) and self._to_same_address(found, site)
        if found.state is not WalkState.STOPPED or not same:
            raise WalkRefused(_open(found))
        # What it was asking when it was stopped may still be on its way.
        await self._rest(found.id)
        walk = await store.set_state(found.id, WalkState.RUNNING)
        self._work_on(walk)
        return walk, True

    async def stop(self, number: int) -> Walk:
        """Stop a walk where it is; `start` goes on with it. Raises `WalkRefused`."""
        walk = await self._get(number)
        if walk.state is not WalkState.RUNNING:
            raise WalkRefused(f"passage {number} : {_state(walk)}, rien à arrêter")
        # Not waited for: a site may take its time to answer what it was asked last.
        walk = await self._doors.store.set_state(number, WalkState.STOPPED)
        self._tell_to_stop(number)
        await self._doors.notices.resolve(f"parcours-{walk.site}")
        return walk

    async def abandon(self, number: int) -> Walk:
        """End a walk for good: nothing it held back is withdrawn. Raises `WalkRefused`."""
        walk = await self._get(number)
        if walk.state not in OPEN_STATES:
            raise WalkRefused(f"passage {number} : {_state(walk)}")
        walk = await self._doors.store.set_state(number, WalkState.ABANDONED)
        self._tell_to_stop(number)
        await self._doors.notices.resolve(f"parcours-{walk.site}")
        metrics.WALKS.labels(walk.site, walk.kind.value, walk.state.value).inc()
        return walk

    async def confirm(self, number: int) -> Walk:
        """Release the removals of a suspended walk. Raises `WalkRefused`."""
        walk = await self._get(number)
        if walk.state is not WalkState.SUSPENDED:
            raise WalkRefused(f"passage {number} : {_state(walk)}, rien à confirmer")
        self._known(walk)
        walk = await self._doors.store.confirm(number)
        await self._doors.notices.resolve(f"parcours-{walk.site}")
        self._work_on(walk)
        return walk

    # -- own ---------------------------------------------------------------------------------------

    def _to_same_address(self, walk: Walk, site: Site) -> bool:
        """Say whether what a walk judged so far still counts: it may have led to another address."""
        return walk.kind is WalkKind.RESYNC or walk.address == retrieve_base(site, self._config.wado)

    async def _get(self, number: int) -> Walk:
        try:
            return await self._doors.store.get(number)
        except KeyError:
            raise WalkRefused(f"aucun passage ne porte le numéro {number}") from None

    def _known(self, walk: Walk) -> None:
        if walk.site not in self._sites:
            raise WalkRefused(f"le site « {walk.site} » n'est plus dans la configuration")

    def _tell_to_stop(self, number: int) -> None:
        hand = self._hands.get(number)
        if hand is not None:
            hand.walking.stop()

    async def _rest(self, *numbers: int) -> None:
        """Stop walks and wait until they have come to rest."""
        waiting = [after(self._hands[number].rest) for number in numbers if number in self._hands]
        for number in numbers:
            self._tell_to_stop(number)
        await gatherResults(waiting)

    def _work_on(self, walk: Walk) -> None:
        if self._closed or walk.id in self._hands or not self._holds():
            return
        site = self._sites.get(walk.site)
        if site is None:
            if walk.id not in self._strangers:
                self._strangers.add(walk.id)
                self.log.error("walk {id}: site {site} is not configured", id=walk.id, site=walk.site)
            return
        examiner = self._examiner(walk.kind, site)
        walking = Walking(walk, site, examiner, self._doors, self._config.resync, self._config.feed)
        hand = self._hands[walk.id] = _Hand(walking, Deferred())
        metrics.WALKS_RUNNING.labels(walk.site, walk.kind.value).set(1)
        work = Deferred.fromCoroutine(self._see_through(walking))
        work.addErrback(lambda failure: self.log.failure("walk given up", failure))
        work.addCallback(lambda _: self._rested(walk, hand))

    def _rested(self, walk: Walk, hand: _Hand) -> None:
        del self._hands[walk.id]
        metrics.WALKS_RUNNING.labels(walk.site, walk.kind.value).set(0)
        hand.rest.callback(None)

    async def _see_through(self, walking: Walking) -> None:
        failures = 0
        while True:
            try:
                await walking.go()
            except Stopped:
                return
            except Exception:
                failures += 1
                self.log.failure("walk {id} broke, tried again", id=walking.walk.id)
                try:
                    await walking.broken(backoff(failures, *_BROKEN).total_seconds())
                except Stopped:
                    return
            else:
                walk = walking.walk
                metrics.WALKS.labels(walk.site, walk.kind.value, walk.state.value).inc()
                self.log.info(
                    "walk {id} of {site}: {end}", id=walk.id, site=walk.site, end=walk.state.value
                )
                return


def _state(walk: Walk) -> str:
    return {
        WalkState.RUNNING: "en cours",
        WalkState.STOPPED: "arrêté",
        WalkState.SUSPENDED: "suspendu",
        WalkState.DONE: "terminé",
        WalkState.ABANDONED: "abandonné",
    }[walk.state]


def _open(walk: Walk) -> str:
    kind = "resynchronisation" if walk.kind is WalkKind.RESYNC else "changement d'adresse"
    what = f"{kind}, à blanc" if walk.dry_run else kind
    head = f"site « {walk.site} » : le passage {walk.id} ({what}) est {_state(walk)}"
    if walk.state is WalkState.SUSPENDED:
        return (
            f"{head} ; d'abord « drimbox resync confirm {walk.id} » ou « drimbox resync abandon {walk.id} »"
        )
    return f"{head} ; d'abord « drimbox resync abandon {walk.id} »"
