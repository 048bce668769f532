"""One walk, step by step: its pace, its patience, what it keeps, what it has mended (DB.SO.28)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from drimbox.config import FeedSettings, ResyncSettings
from drimbox.ports import Purpose
from drimbox.source.judging import NotAnswered
from drimbox.source.resync import Resync, WalkRefused
from drimbox.source.walking import BACKLOG, PAGE, TRIES, Doors
from drimbox.walks import (
    OPEN_STATES,
    Finding,
    JudgedStudy,
    Milestone,
    Step,
    Verdict,
    Walk,
    WalkKind,
    WalkOpen,
    WalkState,
)
from tests.source.fakes import START, Notices, config, site

pytestmark = pytest.mark.requirement("DB.SO.28")
SAME, CHANGED, GONE = (
    Finding(verdict, site=name)
    for verdict, name in ((Verdict.UNCHANGED, "site1"), (Verdict.CHANGED, "site1"), (Verdict.GONE, ""))
)


class Store:
    """A `walks.WalkStore` in memory; `follow` says what became of a queued study."""

    def __init__(self, *studies: str) -> None:
        self.kos = list(studies)
        self.walk: Walk | None = None
        self.rows: dict[str, JudgedStudy] = {}
        self.pages: list[list[str]] = []
        self.follow: Callable[[str], Step] = lambda study: Step.ENDED
        self.broken = 0

    async def begin(self, kind: WalkKind, site: str, *, dry_run: bool, address: str) -> Walk:
        if self.walk is not None and self.walk.state in OPEN_STATES:
            raise WalkOpen(self.walk.id)
        self.rows.clear()
        number = self.walk.id + 1 if self.walk is not None else 1
        self.walk = Walk(
            number, kind, site, dry_run, WalkState.RUNNING, "", False, False, "", (), address, START, None,
            len(self.kos), None, dict.fromkeys(Verdict, 0),
        )  # fmt: skip
        return self.walk

    @property
    def now(self) -> Walk:
        assert self.walk is not None
        return self.walk

    async def get(self, number: int) -> Walk:
        if self.walk is None or number != self.walk.id:
            raise KeyError(number)
        return self.walk

    async def open_walk(self, site: str) -> Walk | None:
        return self.walk if self.walk is not None and self.walk.state in OPEN_STATES else None

    async def running(self) -> list[Walk]:
        return [self.walk] if self.walk is not None and self.walk.state is WalkState.RUNNING else []

    async def page(self, site: str, after: str, limit: int) -> list[Milestone]:
        if self.broken:
            self.broken -= 1
            raise OSError("disk full")
        return [Milestone(1, study) for study in self.kos if study > after][:limit]

    async def advance(
        self,
        walk: Walk,
        judged: Sequence[tuple[Milestone, Finding, Step]],
        controls: Sequence[str],
        *,
        complete: bool = False,
    ) -> Walk:
        counts = dict(self.now.counts)
        for at, finding, step in judged:
            assert at.study_uid not in self.rows, "judged and counted twice"
            self.rows[at.study_uid] = JudgedStudy(
                at.study_uid, 1, finding.verdict, finding.detail, step, "", START
            )
            counts[finding.verdict] += 1
        position = judged[-1][0].study_uid if judged else walk.position
        self.pages.append([at.study_uid for at, _, _ in judged])
        self.walk = attrs.evolve(
            self.now, position=position, controls=tuple(controls), complete=complete, counts=counts
        )
        return self.walk

    async def studies(self, number: int, step: Step, limit: int, *, after: str = "") -> list[JudgedStudy]:
        found = [row for uid, row in sorted(self.rows.items()) if row.step is step and uid > after]
        return found[:limit]

    async def move(self, number: int, studies: Collection[str], step: Step) -> None:
        for study in studies:
            self.rows[study] = attrs.evolve(self.rows[study], step=step)

    async def release(self, number: int) -> int:
        held = [uid for uid, row in self.rows.items() if row.step is Step.HELD]
        await self.move(number, held, Step.RELEASED)
        return len(held)

    async def settle(self, number: int) -> dict[Step, int]:
        for uid, row in self.rows.items():
            if row.step is Step.QUEUED:
                self.rows[uid] = attrs.evolve(row, step=self.follow(uid))
        return {step: sum(row.step is step for row in self.rows.values()) for step in Step}

    async def set_state(self, number: int, state: WalkState, reason: str = "") -> Walk:
        if self.now.state in OPEN_STATES:
            self.walk = attrs.evolve(self.now, state=state, reason=reason)
        return self.now

    async def confirm(self, number: int) -> Walk:
        self.walk = attrs.evolve(self.now, state=WalkState.RUNNING, confirmed=True)
        return self.walk

    async def purge(self, site: str, keep: int, limit: int) -> int:
        return 0


class Jobs:
    def __init__(self) -> None:
        self.opened: list[tuple[str, Purpose]] = []
        self.busy: set[str] = set()

    async def last(self, study_uid: str) -> None:
        return None

    async def again(self, study_uid: str, purpose: Purpose = Purpose.MATCH) -> bool:
        if study_uid in self.busy:
            return False
        self.opened.append((study_uid, purpose))
        return True


class World:
    """A walk under a clock of ours, over studies named 00, 01 ..."""

    def __init__(self, count: int = 5, **settings: Any) -> None:
        self.clock, self.store, self.jobs, self.notices = Clock(), Store(*_names(count)), Jobs(), Notices()
        self.findings: dict[str, Finding | Exception] = {}
        self.asked: list[tuple[str, float]] = []
        self.doubts: list[str] = []
        self.doubted: list[tuple[str, ...]] = []
        self.busy = False
        self.slow: dict[str, Deferred[None]] = {}
        link: Any = self
        doors = Doors(
            store=self.store,
            jobs=self.jobs,
            link=link,
            notices=self.notices,
            clock=self.clock,
            wall=self,
            busy=lambda _: self.busy,
            wake=lambda: None,
        )
        resync = ResyncSettings(**{"rate": 1000.0, "parallel": 1, **settings})
        self.config = attrs.evolve(
            config(site()), resync=resync, feed=FeedSettings(retry_first=10, retry_max=40)
        )
        #: Of several nodes, this is the one that works on walks.
        self.leading = True
        self.resync = Resync(
            self.config,
            doors,
            lambda kind, site: self,
            leads=self.leads,
            holds=lambda: self.leading,
        )

    async def leads(self) -> bool:
        return self.leading

    def now(self) -> Any:
        return START + timedelta(seconds=self.clock.seconds())

    async def doubt(self, site: Any, seen: tuple[str, ...]) -> str:
        self.doubted.append(seen)
        return self.doubts.pop(0) if self.doubts else ""

    async def examine(self, at: Milestone) -> Finding:
        self.asked.append((at.study_uid, self.clock.seconds()))
        if at.study_uid in self.slow:
            await self.slow[at.study_uid]
        found = self.findings.get(at.study_uid, SAME)
        if isinstance(found, Exception):
            raise found
        return found

    def start(self, *, dry_run: bool = False, kind: WalkKind = WalkKind.RESYNC) -> tuple[Walk, bool]:
        return done(self.resync.start(kind, self.config.sites[0], dry_run=dry_run))

    def pump(self, seconds: float, step: float = 0.25) -> None:
        for _ in range(int(seconds / step)):
            self.clock.advance(step)

    @property
    def state(self) -> WalkState:
        return self.store.now.state


def _names(count: int) -> list[str]:
    return [f"{number:02}" for number in range(count)]


def done(work: Any) -> Any:
    """Return what a coroutine gives at once."""
    results: list[Any] = []
    failures: list[Any] = []
    Deferred.fromCoroutine(work).addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "it waits"
    return results[0]


def test_it_asks_no_faster_than_the_rate_whatever_is_done_at_once() -> None:
    world = World(10, rate=2.0, parallel=3)
    world.start()
    world.pump(10)
    instants = [at for _, at in world.asked]
    assert [study for study, _ in world.asked] == _names(10)
    assert all(later - earlier == 0.5 for earlier, later in itertools.pairwise(instants))
    assert world.state is WalkState.DONE


def test_a_walk_begun_through_another_node_is_worked_on_by_the_one_that_does() -> None:
    world = World(3)
    world.leading = False
    walk, _ = world.start()
    done(world.resync.look())
    world.pump(5)
    assert world.asked == []
    assert "autre nœud" in world.resync.waiting(walk)
    world.leading = True
    done(world.resync.look())
    world.pump(5)
    assert world.state is WalkState.DONE


def test_a_node_that_leads_no_more_leaves_its_walk_where_it_is() -> None:
    world = World(30, rate=2.0)
    world.start()
    world.pump(3)
    world.leading = False
    done(world.resync.look())
    asked = len(world.asked)
    assert 0 < asked < 30
    world.pump(20)
    assert len(world.asked) == asked
    # What it had judged of its page was kept: whoever goes on asks about nothing twice.
    world.leading = True
    done(world.resync.look())
    world.pump(30)
    assert world.state is WalkState.DONE


@pytest.mark.parametrize("state", [WalkState.STOPPED, WalkState.ABANDONED])
def test_a_walk_that_was_stopped_through_another_node_mends_nothing_more(state: WalkState) -> None:
    world = World(PAGE, rate=10.0)
    world.findings = {"01": CHANGED}
    world.start()
    world.pump(1)
    # Nobody tells this node: it is in the store.
    world.store.walk = attrs.evolve(world.store.now, state=state)
    world.pump(10)
    assert len(world.store.rows) == PAGE
    assert world.jobs.opened == []
    assert world.state is state


def test_a_walk_that_was_stopped_through_another_node_rests_at_the_next_look() -> None:
    world = World(PAGE, rate=2.0)
    world.start()
    world.pump(2)
    world.store.walk = attrs.evolve(world.store.now, state=WalkState.STOPPED)
    done(world.resync.look())
    asked = len(world.asked)
    world.pump(20)
    assert len(world.asked) == asked < PAGE


def test_images_that_somebody_waits_for_go_first() -> None:
    world = World(3)
    world.busy = True
    walk, _ = world.start()
    world.pump(30)
    assert world.asked == []
    assert "images" in world.resync.waiting(walk)
    world.busy = False
    world.pump(2)
    assert world.state is WalkState.DONE


def test_a_change_of_address_asks_no_site_and_so_yields_to_nobody() -> None:
    world = World(3)
    world.busy, world.doubts = True, ["injoignable"] * 9
    world.findings = {"01": CHANGED}
    world.start(kind=WalkKind.ADDRESS)
    world.pump(5)
    assert world.state is WalkState.DONE
    assert world.jobs.opened == [("01", Purpose.READDRESS)]
    assert world.doubted == []


def test_nothing_is_asked_before_the_link_is_beyond_doubt() -> None:
    world = World(3)
    world.doubts = ["PACS1 injoignable"] * 3
    walk, _ = world.start()
    world.pump(5)
    assert world.asked == []
    assert world.resync.waiting(walk) == "PACS1 injoignable"
    assert world.notices.open["parcours-site1"][0] == "E003"
    # Asked again after 10, 20, 40 s, give or take the jitter.
    world.pump(80)
    assert world.state is WalkState.DONE
    assert world.notices.open == {}


def test_a_study_the_site_alone_will_not_speak_of_is_silent_and_stays() -> None:
    world = World(3)
    world.findings = {"01": NotAnswered(START, "C-FIND : état 0xA700")}
    world.start()
    world.pump(5)
    assert [study for study, _ in world.asked] == ["00", *["01"] * TRIES, "02"]
    row = world.store.rows["01"]
    assert (row.verdict, row.step, row.detail) == (Verdict.SILENT, Step.ENDED, "C-FIND : état 0xA700")
    assert world.jobs.opened == []


def test_a_study_is_gone_only_when_asked_while_the_link_was_beyond_doubt() -> None:
    world = World(3)
    world.findings = {"01": GONE}
    doubts = iter(["", "sans l'examen témoin", ""])

    async def doubt(site: Any, seen: tuple[str, ...]) -> str:
        verdict = next(doubts, "")
        if verdict:
            # It comes back by itself while the link is mended.
            world.findings["01"] = SAME
        return verdict

    world.doubt = doubt  # type: ignore[method-assign]
    world.start()
    world.pump(60)
    assert world.store.rows["01"].verdict is Verdict.UNCHANGED
    assert world.state is WalkState.DONE


def test_what_is_gone_waits_for_the_end_and_is_released_with_the_link_verified() -> None:
    world = World(40)
    world.findings = {"03": GONE, "10": CHANGED}
    world.store.follow = lambda study: Step.ENDED
    world.start()
    while len(world.asked) < 39:
        world.clock.advance(0.001)
    assert world.jobs.opened == [("10", Purpose.UPDATE)]
    assert world.store.rows["03"].step is Step.HELD
    before = len(world.doubted)
    world.pump(5)
    assert world.jobs.opened == [("10", Purpose.UPDATE), ("03", Purpose.WITHDRAW)]
    assert len(world.doubted) > before
    assert world.doubted[-1] == ("37", "38", "39")
    assert world.state is WalkState.DONE


@pytest.mark.parametrize(
    ("gone", "settings", "end"),
    [
        (5, {}, WalkState.DONE),
        (6, {}, WalkState.SUSPENDED),
        (6, {"max_removed_share": 0.16}, WalkState.DONE),
        (1, {"max_removed": 0, "max_removed_share": 0.0}, WalkState.SUSPENDED),
        (2, {"max_removed": 0, "max_removed_share": 0.05}, WalkState.DONE),
        (3, {"max_removed": 0, "max_removed_share": 0.05}, WalkState.SUSPENDED),
    ],
)
def test_more_than_the_share_is_withdrawn_only_once_confirmed(
    gone: int, settings: dict[str, Any], end: WalkState
) -> None:
    world = World(40, **settings)
    world.findings = dict.fromkeys(_names(gone), GONE)
    walk, _ = world.start()
    world.pump(20)
    assert world.state is end
    if end is WalkState.SUSPENDED:
        assert world.jobs.opened == []
        assert f"{gone} examens absents sur 40" in world.notices.open["parcours-site1"][1]
        done(world.resync.confirm(walk.id))
        world.pump(20)
    assert world.jobs.opened == [(study, Purpose.WITHDRAW) for study in _names(gone)]
    assert world.state is WalkState.DONE
    assert world.notices.open == {}


def test_without_any_control_study_nothing_is_withdrawn_however_few() -> None:
    world = World(2)
    world.findings = {"00": GONE, "01": GONE}
    world.start()
    world.pump(10)
    assert world.state is WalkState.SUSPENDED
    assert "aucun examen témoin" in world.store.now.reason
    assert world.jobs.opened == []


def test_no_more_than_the_backlog_is_on_its_way_at_once() -> None:
    world = World(60)
    world.findings = dict.fromkeys(_names(60)[5:], CHANGED)
    world.store.follow = lambda study: Step.SENT
    walk, _ = world.start()
    world.pump(60)
    assert len(world.jobs.opened) == BACKLOG
    assert len(world.asked) == 2 * PAGE
    assert "envoi au DMP" in world.resync.waiting(walk)
    for _ in range(8):
        for uid, row in world.store.rows.items():
            if row.step is Step.SENT:
                world.store.rows[uid] = attrs.evolve(row, step=Step.ENDED)
        world.pump(2)
    assert len(world.jobs.opened) == 55
    assert world.state is WalkState.DONE


def test_a_study_whose_job_is_on_its_way_holds_the_end_and_no_other_study() -> None:
    world = World(45)
    world.findings = dict.fromkeys(_names(45), CHANGED)
    world.jobs.busy = set(_names(30))
    world.start()
    world.pump(30)
    assert {study for study, _ in world.jobs.opened} == set(_names(45)) - world.jobs.busy
    assert world.state is WalkState.RUNNING
    world.jobs.busy = set()
    world.pump(30)
    assert sorted(study for study, _ in world.jobs.opened) == _names(45)
    assert world.state is WalkState.DONE


def test_a_dry_run_opens_no_job_and_is_never_suspended() -> None:
    world = World(10, max_removed=0, max_removed_share=0.0)
    world.findings = {"01": GONE, "02": CHANGED, "03": Finding(Verdict.RETRACTED)}
    world.start(dry_run=True)
    world.pump(10)
    assert world.state is WalkState.DONE
    assert world.jobs.opened == []
    assert {row.step for row in world.store.rows.values()} == {Step.ENDED}


def test_stopped_in_the_middle_of_a_page_it_keeps_what_has_no_gap_and_goes_on_there() -> None:
    world = World(30, parallel=3)
    world.slow = {"04": Deferred()}
    walk, _ = world.start()
    while len(world.asked) < 8:
        world.clock.advance(0.001)
    done(world.resync.stop(walk.id))
    assert world.state is WalkState.STOPPED
    world.slow.pop("04").callback(None)
    world.pump(1)
    kept = sum(map(len, world.store.pages))
    assert world.store.pages == [_names(kept)]
    assert 4 <= kept < PAGE
    asked = len(world.asked)
    world.pump(10)
    assert len(world.asked) == asked
    again, resumed = world.start()
    assert (again.id, resumed) == (walk.id, True)
    world.pump(10)
    assert [study for study, _ in world.asked[asked:]] == _names(30)[kept:]
    assert world.state is WalkState.DONE


def test_a_stop_waits_for_nobody_and_a_start_for_what_is_still_being_asked() -> None:
    world = World(3)
    world.slow = {"00": Deferred()}
    walk, _ = world.start()
    world.pump(1)
    done(world.resync.stop(walk.id))
    going_on: list[Any] = []
    work = Deferred.fromCoroutine(world.resync.start(WalkKind.RESYNC, world.config.sites[0], dry_run=False))
    work.addCallback(going_on.append)
    assert going_on == []
    world.slow.pop("00").callback(None)
    assert going_on
    world.pump(5)
    assert world.state is WalkState.DONE


def test_a_walk_that_breaks_is_told_and_tried_again() -> None:
    world = World(3)
    world.store.broken = 2
    world.start()
    world.pump(2)
    assert "erreur interne" in world.notices.open["parcours-site1"][1]
    world.pump(60)
    assert world.state is WalkState.DONE
    assert world.notices.open == {}


def test_a_study_whose_judging_breaks_is_not_passed_over() -> None:
    world = World(8, parallel=3)
    world.findings = {"04": OSError("disk full")}
    world.start()
    world.pump(2)
    assert world.store.pages == [_names(4)]
    world.findings = {}
    world.pump(60)
    assert sorted(world.store.rows) == _names(8)
    assert world.state is WalkState.DONE


def test_a_restart_goes_on_with_what_was_running_and_with_nothing_else() -> None:
    for state, asked in ((WalkState.RUNNING, 3), (WalkState.STOPPED, 0), (WalkState.SUSPENDED, 0)):
        world = World(3)
        world.start()
        world.resync._hands.clear()
        world.store.walk = attrs.evolve(world.store.now, state=state)
        other = World(3)
        other.store.walk, other.clock = world.store.walk, other.clock
        done(other.resync.resume())
        other.pump(5)
        assert len(other.asked) == asked, state


def test_closing_leaves_the_walk_running_for_the_next_start() -> None:
    world = World(3, rate=1.0)
    world.start()
    world.pump(1)
    done(world.resync.close())
    assert world.state is WalkState.RUNNING
    asked = len(world.asked)
    world.pump(10)
    assert len(world.asked) == asked
    assert world.clock.getDelayedCalls() == []


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    world = World(3, rate=0.01)
    walk, _ = world.start()
    with pytest.raises(WalkRefused, match=r"est en cours ; d'abord « drimbox resync abandon 1 »"):
        world.start()
    with pytest.raises(WalkRefused, match="rien à confirmer"):
        done(world.resync.confirm(walk.id))
    with pytest.raises(WalkRefused, match="aucun passage"):
        done(world.resync.stop(77))
    done(world.resync.stop(walk.id))
    with pytest.raises(WalkRefused, match="rien à arrêter"):
        done(world.resync.stop(walk.id))
    with pytest.raises(WalkRefused, match="arrêté"):
        world.start(dry_run=True)
    assert done(world.resync.abandon(walk.id)).state is WalkState.ABANDONED
    with pytest.raises(WalkRefused, match="abandonné"):
        done(world.resync.abandon(walk.id))
    assert world.start(dry_run=True)[0].id == 2


@pytest.mark.requirement("DB.SO.31")
def test_a_walk_to_another_address_than_today_s_is_not_gone_on_with() -> None:
    world = World(3, rate=0.01)
    walk, _ = world.start(kind=WalkKind.ADDRESS)
    done(world.resync.stop(walk.id))
    world.store.walk = attrs.evolve(world.store.now, address="https://ancien.test/dicom-web-rs")
    with pytest.raises(WalkRefused, match="changement d'adresse"):
        world.start(kind=WalkKind.ADDRESS)
    world.store.walk = attrs.evolve(world.store.now, state=WalkState.RUNNING)
    other = World(3)
    other.store.walk = world.store.walk
    done(other.resync.resume())
    assert other.state is WalkState.ABANDONED
    assert "l'adresse a changé" in other.notices.open["parcours-site1"][1]
