"""One walk over the archive of one site, from where it was to its end (DB.SO.28, DB.SO.31).

Theory of operation. Pages of published KOS are judged in the order of their studies, a few at once, no
faster than configured, inside the configured hours, and only while nobody waits for an image of that site.
What was found of a page and the position behind it are kept in one transaction; then what differs has its
job reopened, and the ordinary queue does the rest. A stop or a crash anywhere leaves a walk that goes on.

A site that does not answer puts the walk on hold until it does: it is asked again and again, ever less
often, and nobody is counted as gone meanwhile. An answer "gone" is itself only believed while the link is
beyond doubt (`link`). A study the site alone will not speak of is noted as silent, and stays as it is.

Nothing absent is withdrawn before the end of the walk. Then, unless the share of the absent is more than
an administrator may be expected to know of (or no control study was ever seen), each is asked about once
more by its own job, which verifies the link again, and withdrawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from drimbox import metrics
from drimbox.config import FeedSettings, ResyncSettings, Site
from drimbox.ports import Clock, Purpose
from drimbox.source.backoff import backoff
from drimbox.source.examining import KnownJobs
from drimbox.source.hours import until_open
from drimbox.source.judging import NotAnswered
from drimbox.source.link import Link
from drimbox.source.outage import OutageNotices
from drimbox.source.pauses import Pauses, Stopped
from drimbox.walks import Finding, Milestone, Step, Verdict, Walk, WalkKind, WalkState, WalkStore

#: Studies of one page.
PAGE = 20
#: Times a site is asked about a study that it alone will not speak of.
TRIES = 3
#: Studies on their way through the queues at once: reports that come meanwhile wait behind these only.
BACKLOG = 20
#: Removals queued at once, each time the link was verified.
_REMOVALS = 10
#: Studies kept as controls.
CONTROLS = 3
#: Walks of a site whose studies are kept, and rows dropped at once.
KEPT, _PURGED = 3, 2000
#: Seconds between two looks: at what is on its way, at whether images are waited for, at the hours.
_SETTLE, _YIELD, _HOURS = 0.5, 0.5, 60.0
_UNDER_WAY = "{} examens en cours de traitement ou d'envoi au DMP"


class Examines(Protocol):
    """Judges one study; raises `NotAnswered`."""

    async def examine(self, at: Milestone) -> Finding:
        """Judge it."""


@attrs.frozen
class Doors:
    """What a walk needs from outside."""

    store: WalkStore
    jobs: KnownJobs
    link: Link
    notices: OutageNotices
    #: Time in seconds, and the time of day in the hospital's zone.
    clock: IReactorTime
    wall: Clock
    #: True while somebody waits for an image of the site.
    busy: Callable[[Site], bool]
    #: There are jobs to work on.
    wake: Callable[[], None]


class Walking:
    """Works on one walk. `waiting` says in French what it waits for; empty while it works."""

    log = Logger()

    def __init__(
        self,
        walk: Walk,
        site: Site,
        examiner: Examines,
        doors: Doors,
        settings: ResyncSettings,
        retries: FeedSettings,
    ) -> None:
        self.walk = walk
        self.waiting = ""
        self._site = site
        self._examiner = examiner
        self._doors = doors
        self._settings = settings
        self._retries = retries
        self._pauses = Pauses(doors.clock)
        self._controls = deque(walk.controls, CONTROLS)
        #: One at a time verifies the link.
        self._verifying = DeferredLock()
        self._next = 0.0
        #: Where the next page of studies to queue begins.
        self._cursor = ""
        self._asks = walk.kind is WalkKind.RESYNC
        self._purpose = Purpose.UPDATE if self._asks else Purpose.READDRESS

    def stop(self) -> None:
        """Stop as soon as what is being asked has been answered."""
        self._pauses.stop()

    async def go(self) -> None:
        """Work to the end, or to a suspension. Raises `Stopped`, and whatever breaks on the way."""
        while await self._doors.store.purge(self._site.name, KEPT, _PURGED):
            self._pauses.check()
        if not self.walk.complete:
            if self._asks:
                await self._turn()
                await self._beyond_doubt()
            await self._judge_all()
        await self._settle(Step.DUE, Step.QUEUED)
        if not await self._release():
            return
        await self._withdraw()
        await self._settle(Step.DUE, Step.QUEUED, Step.SENT)
        self.walk = await self._doors.store.set_state(self.walk.id, WalkState.DONE)
        await self._doors.notices.resolve(self._key)

    async def broken(self, seconds: float) -> None:
        """Tell that something nobody foresaw broke the walk, and wait. Raises `Stopped`."""
        problem = "erreur interne, voir le journal"
        text = f"Site {self._site.name} : passage {self.walk.id} interrompu, {problem}"
        try:
            await self._doors.notices.post(key=self._key, code="RESYNC", text=text)
        except Exception:
            # The disk may be what is full.
            self.log.failure("walk {id}: notice not kept", id=self.walk.id)
        await self._wait(problem, seconds)

    @property
    def _key(self) -> str:
        return f"parcours-{self._site.name}"

    # -- judging -----------------------------------------------------------------------------------

    async def _judge_all(self) -> None:
        store = self._doors.store
        while True:
            page = await store.page(self._site.name, self.walk.position, PAGE)
            if not page:
                self.walk = await store.advance(self.walk, [], tuple(self._controls), complete=True)
                return
            await self._judge_page(page)
            await self._act()

    async def _judge_page(self, page: list[Milestone]) -> None:
        """Judge a page and keep it; of a page cut short, what was judged without a gap."""
        findings: dict[int, Finding] = {}
        todo = iter(enumerate(page))
        hands = [Deferred.fromCoroutine(self._hand(todo, findings)) for _ in range(self._settings.parallel)]
        results: Any = await DeferredList(hands, consumeErrors=True)
        judged = []
        for number, at in enumerate(page):
            if number not in findings:
                break
            judged.append((at, findings[number], self._step(findings[number])))
        if judged:
            self.walk = await self._doors.store.advance(self.walk, judged, tuple(self._controls))
            for _, finding, _ in judged:
                metrics.WALK_STUDIES.labels(
                    self._site.name, self.walk.kind.value, finding.verdict.value
                ).inc()
        for good, result in results:
            if not good:
                result.raiseException()

    async def _hand(self, todo: Iterator[tuple[int, Milestone]], findings: dict[int, Finding]) -> None:
        for number, at in todo:
            findings[number] = await self._judge_one(at)

    async def _judge_one(self, at: Milestone) -> Finding:
        reason = "liaison douteuse"
        for _ in range(TRIES):
            await self._turn()
            try:
                finding = await self._examiner.examine(at)
            except NotAnswered as silence:
                reason = str(silence)
                await self._beyond_doubt()
                continue
            if finding.verdict is Verdict.GONE and await self._beyond_doubt():
                # Asked while nobody could be believed.
                continue
            if finding.site == self._site.name and at.study_uid not in self._controls:
                self._controls.append(at.study_uid)
            return finding
        return Finding(Verdict.SILENT, reason)

    def _step(self, finding: Finding) -> Step:
        if self.walk.dry_run:
            return Step.ENDED
        if finding.verdict in (Verdict.CHANGED, Verdict.RETRACTED):
            return Step.DUE
        return Step.HELD if finding.verdict is Verdict.GONE else Step.ENDED

    # -- patience ----------------------------------------------------------------------------------

    async def _turn(self, studies: int = 1) -> None:
        """Wait for the hours, for images that somebody waits for, and for the pace of so many studies."""
        while True:
            self._pauses.check()
            shut = until_open(self._settings.hours, self._doors.wall.now())
            if shut:
                await self._wait("hors des heures de [resync] hours", min(shut, _HOURS))
            elif self._asks and self._doors.busy(self._site):
                await self._wait("des images demandées passent d'abord", _YIELD)
            else:
                break
        self.waiting = ""
        now = self._doors.clock.seconds()
        at = max(self._next, now)
        self._next = at + studies / self._settings.rate
        await self._pauses.sleep(at - now)

    async def _wait(self, reason: str, seconds: float) -> None:
        self.waiting = reason
        await self._pauses.sleep(seconds)

    async def _beyond_doubt(self) -> bool:
        """Return once the link is beyond doubt; say whether it had to be waited for.

        The administrator is told; the notice closes by itself.
        """
        failures = 0
        await self._verifying.acquire()
        try:
            while doubt := await self._doors.link.doubt(self._site, tuple(self._controls)):
                # Whoever stopped it meanwhile has closed the notice.
                self._pauses.check()
                failures += 1
                text = f"Site {self._site.name} : passage {self.walk.id} en attente, {doubt}"
                self.log.warn("walk {id} on hold: {doubt}", id=self.walk.id, doubt=doubt)
                await self._doors.notices.post(key=self._key, code="E003", text=text)
                pause = backoff(failures, self._retries.retry_first, self._retries.retry_max)
                await self._wait(doubt, pause.total_seconds())
        finally:
            self._verifying.release()
        if failures:
            self.waiting = ""
            await self._doors.notices.resolve(self._key)
        return bool(failures)

    # -- acting ------------------------------------------------------------------------------------

    async def _act(self) -> None:
        """Have what differs mended before more is looked at, never more at once than the backlog."""
        while True:
            counts, queued = await self._queue(Step.DUE, self._purpose, BACKLOG)
            under_way = counts[Step.QUEUED] + counts[Step.SENT]
            # What is due and could not be queued has a job of another's on its way: not to wait for here.
            if under_way < BACKLOG and not (queued and counts[Step.DUE]):
                return
            await self._wait(_UNDER_WAY.format(under_way), _SETTLE)

    async def _settle(self, *steps: Step) -> None:
        """Wait until no study is at any of these steps."""
        while True:
            counts, _ = await self._queue(Step.DUE, self._purpose, BACKLOG)
            left = sum(counts[step] for step in steps)
            if not left:
                self.waiting = ""
                return
            await self._wait(_UNDER_WAY.format(left), _SETTLE)

    async def _queue(self, step: Step, purpose: Purpose, most: int) -> tuple[dict[Step, int], int]:
        """Reopen the jobs of at most `most` studies at `step`; return where all are, and how many.

        A job that is on its way already is not ours: it is waited for, and opened again then.
        """
        store, number = self._doors.store, self.walk.id
        if (await store.get(number)).state is not WalkState.RUNNING:
            # Somebody stopped it through another node.
            raise Stopped
        counts = await store.settle(number)
        room = min(most, BACKLOG - counts[Step.QUEUED] - counts[Step.SENT])
        if room <= 0 or not counts[step]:
            return counts, 0
        page = await store.studies(number, step, PAGE, after=self._cursor)
        # One page a time, in turns: jobs that wait for long must not hide those behind them.
        self._cursor = page[-1].study_uid if len(page) == PAGE else ""
        queued: list[str] = []
        for study in page:
            if len(queued) < room and await self._doors.jobs.again(study.study_uid, purpose):
                queued.append(study.study_uid)
        if queued:
            await store.move(number, queued, Step.QUEUED)
            self._doors.wake()
        counts[step] -= len(queued)
        counts[Step.QUEUED] += len(queued)
        return counts, len(queued)

    # -- removals ----------------------------------------------------------------------------------

    async def _release(self) -> bool:
        """Release the removals that were held; suspend the walk and return False when they are too many."""
        store, walk = self._doors.store, self.walk
        held = (await store.settle(walk.id))[Step.HELD]
        if not held:
            return True
        reason = "" if walk.confirmed else self._too_many(held)
        if reason:
            self.walk = await store.set_state(walk.id, WalkState.SUSPENDED, reason)
            text = (
                f"Site {self._site.name} : passage {walk.id} suspendu, {reason}. Rien n'a été retiré "
                f"du DMP par ce passage. Vérifier le PACS, puis « drimbox resync confirm {walk.id} » ou "
                f"« drimbox resync abandon {walk.id} »"
            )
            await self._doors.notices.post(key=self._key, code="RESYNC", text=text)
            return False
        await store.release(walk.id)
        return True

    def _too_many(self, held: int) -> str:
        if not self._controls and not self._site.resync.control_study:
            return f"{held} examens absents et aucun examen témoin trouvé"
        share, most = held / max(1, self.walk.walked), self._settings.max_removed_share
        if held > self._settings.max_removed and share > most:
            return f"{held} examens absents sur {self.walk.walked}, plus que {most:.1%} (max_removed_share)"
        return ""

    async def _withdraw(self) -> None:
        """Have each released study asked about once more by its job, which verifies the link again."""
        while (await self._doors.store.settle(self.walk.id))[Step.RELEASED]:
            await self._turn(_REMOVALS)
            await self._beyond_doubt()
            counts, _ = await self._queue(Step.RELEASED, Purpose.WITHDRAW, _REMOVALS)
            await self._wait(f"{counts[Step.RELEASED]} retraits à faire", _SETTLE)
        await self._settle(Step.QUEUED)
