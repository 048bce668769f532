"""`kill -9` at every point of the feed, one after the other: nothing is lost, nothing is done twice.

Each scenario is run once to learn the points it passes, then once for each of them: the gateway dies
there, is started again undisturbed, the sender repeats what was not acknowledged, everything drains, and
what the DMP, the archive and the audit trail hold is looked at (architecture.md rule 4). The process that
recovered from one point is the one that dies at the next.

Some of the points in CI, chosen anew by `DRIMBOX_SEED`; all of them with DRIMBOX_SOAK=1.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import attrs
import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Kind
from drimbox.sim.ris import build_change
from drimbox.sim.stand import GatewayFailed
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects
from tests.integration.crash_world import CrashStand, Point, rejection_note
from tests.integration.feed_stand import after
from tests.integration.waiting import until, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.requirement("DB.SO.11", "DB.SO.13", "DB.SO.22", "DB.SO.141", "SC.DMP/CONF.14"),
]
SOAK = bool(os.environ.get("DRIMBOX_SOAK"))
SEED = int(os.environ.get("DRIMBOX_SEED", "20260112"))
#: Points of each scenario in CI.
FEW = 3
PUBLISHED, REPLACED, REMOVED = "Approved", "Deprecated", "Deleted"


#: Both sides of what is passed on the way of a message, of a manifest into the DMP, and out of it.
_BOTH = ("before", "after")
_KEPT = {
    f"{side} commit of {step}" for side in _BOTH for step in ("Inbox.add", "Queue.claim", "Inbox.processed")
}
_ENTERS = {
    "PACS: find",
    "DMP: TD2.1 arrived",
    "DMP: TD2.1 carried out",
    *(f"{side} {step}" for side in _BOTH for step in ("C_FIND_RQ", "TD2.1", "TD3.1")),
    *(
        f"{side} commit of {step}"
        for side in _BOTH
        for step in ("FeedJobs.publish", "Outbox.begin", "Outbox.published", "AuditStore.record")
    ),
}
_LEAVES = {
    "DMP: TD3.3c arrived",
    "DMP: TD3.3c carried out",
    *(f"{side} {step}" for side in _BOTH for step in ("TD3.1", "TD3.3c")),
    *(
        f"{side} commit of {step}"
        for side in _BOTH
        for step in ("FeedJobs.queue_removal", "Outbox.removed")
    ),
}
_ACKNOWLEDGED = {"RIS: acknowledged", "after the making of an ACK"}


@attrs.define
class Round:
    """One run of a scenario."""

    #: Points that it must pass, or it is not the scenario it says.
    steps: ClassVar[set[str]] = set()
    stand: CrashStand
    #: What the DMP must hold of each study in the end, oldest version first.
    wanted: dict[str, tuple[GeneratedStudy, Sequence[str]]] = attrs.field(factory=dict)
    message: bytes = b""

    def want(self, study: GeneratedStudy, *versions: str) -> None:
        """Say what must come of a study."""
        self.wanted[study.study_uid] = study, versions

    def report(self, *studies: GeneratedStudy, of: int, **options: object) -> bytes:
        """Build a report whose document is number `of`."""
        return self.stand.message(*studies, number=of, **options)  # type: ignore[arg-type]

    async def prepare(self) -> None:
        """Do what comes before, undisturbed."""

    async def act(self) -> bool:
        """Send what the scenario is about; False when it was not acknowledged and must be sent again."""
        return await self.stand.told(self.message)

    def done(self) -> bool:
        """Say whether the DMP holds what it must."""
        return all(
            [entry.status.rpartition(":")[2] for entry in self.stand.kos(study, None)] == list(versions)
            for study, versions in self.wanted.values()
        )


_numbers = iter(range(500_000, 10**6))


class NewReport(Round):
    """A report about two studies, one with key images."""

    steps = (
        _ACKNOWLEDGED
        | _KEPT
        | _ENTERS
        | {"before TD0.2", "after TD0.2", "before C_MOVE_RQ", "PACS: stored"}
    )

    async def prepare(self) -> None:
        pacs = self.stand.pacs
        marked, plain = self.stand.studies.new(), self.stand.studies.new(pacs)
        pacs.load(add_key_objects(marked, targets=marked.instances[:1]))
        self.message = self.report(marked, plain, of=next(_numbers))
        self.want(marked, PUBLISHED)
        self.want(plain, PUBLISHED)


class Published(Round):
    """Two studies whose report was published."""

    instances = 2

    async def prepare(self) -> None:
        new, pacs = self.stand.studies.new, self.stand.pacs
        self.kept, self.other = new(pacs, instances=self.instances), new(pacs)
        self.number = next(_numbers)
        assert await self.stand.told(self.report(self.kept, self.other, of=self.number))
        await self.stand.published_one(self.kept)
        await self.stand.published_one(self.other)

    def more_images(self) -> None:
        """The PACS gets another image of the first study."""
        more = self.instances + 1
        self.stand.studies.new(self.stand.pacs, instances=more, study_uid=self.kept.study_uid)


class Replacement(Published):
    """The report is replaced by one that cites one study less, of which there are more images now."""

    steps = _ACKNOWLEDGED | _KEPT | _ENTERS | _LEAVES

    async def prepare(self) -> None:
        await super().prepare()
        self.more_images()
        replacing = {"replaces": f"2.999.7.{self.number}"}
        self.message = self.report(
            self.kept, of=next(_numbers), report=replacing, action=MessageAction.REPLACE
        )
        self.want(self.kept, REPLACED, PUBLISHED)
        self.want(self.other, REMOVED)


class Withdrawal(Published):
    """The report is withdrawn."""

    steps = _ACKNOWLEDGED | _KEPT | _LEAVES

    async def prepare(self) -> None:
        await super().prepare()
        self.message = self.report(self.kept, self.other, of=self.number, action=MessageAction.DELETE)
        self.want(self.kept, REMOVED)
        self.want(self.other, REMOVED)


class Change(Published):
    """The PACS tells that both studies changed; one did (OMI^O23)."""

    steps = _ACKNOWLEDGED | _KEPT | _ENTERS

    async def prepare(self) -> None:
        await super().prepare()
        self.more_images()
        self.message = build_change([self.kept.study_uid, self.other.study_uid])
        self.want(self.kept, REPLACED, PUBLISHED)
        self.want(self.other, PUBLISHED)


class Rejection(Published):
    """The PACS stores a note that rejects an image (IOCM)."""

    steps: ClassVar[set[str]] = {
        "PACS: note acknowledged",
        "after the making of a C-STORE response",
        *_KEPT,
        *_ENTERS,
    }
    instances = 3

    async def prepare(self) -> None:
        await super().prepare()
        self.stand.pacs.index.remove(self.kept.instances[0].sop_instance_uid)
        self.note = rejection_note(self.kept, 1)
        self.want(self.kept, REPLACED, PUBLISHED)
        self.want(self.other, PUBLISHED)

    async def act(self) -> bool:
        return await self.stand.noted(self.note)


class Recovery(Published):
    """A killed process left a publication and a removal without answer; the next dies as it goes on."""

    steps: ClassVar[set[str]] = {
        f"{side} commit of {step}"
        for side in _BOTH
        for step in ("Queue.release_all", "Outbox.published", "Outbox.removed")
    }

    async def prepare(self) -> None:
        await super().prepare()
        stand = self.stand
        self.more_images()
        replacing = {"replaces": f"2.999.7.{self.number}"}
        message = self.report(self.kept, of=next(_numbers), report=replacing, action=MessageAction.REPLACE)
        stand.dmp.script.push(after("TD2.1", Kind.SILENT))
        stand.dmp.script.push(after("TD3.3c", Kind.SILENT))
        self.want(self.kept, REPLACED, PUBLISHED)
        self.want(self.other, REMOVED)
        assert await stand.told(message)
        await until(self.done, what="both carried out, unanswered")
        await stand.kill_gateway()
        stand.dmp.script.reset()

    async def act(self) -> bool:
        try:
            await self.stand.start_gateway()
        except GatewayFailed:
            assert not self.stand.running
        return True


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashStand]:
    stand = CrashStand(tmp_path_factory.mktemp("points"))
    wait(stand.up())
    yield stand
    wait(stand.down())


async def play(
    scenario: type[Round], stand: CrashStand, point: Point | None
) -> tuple[bool, Sequence[Point]]:
    """Run a scenario, dying at `point`, and check everything.

    Return whether it came by there, and the points it passed until then.
    """
    round_ = scenario(stand)
    await round_.prepare()
    since, before = stand.audit_mark(), stand.exchanges_count()
    stand.watch(point)
    told = await round_.act()
    died = await stand.ended_or(round_.done) if told or not stand.running else True
    passed = stand.points()
    # A point that never came is not to come in the next round.
    stand.watch()
    if died:
        await stand.collect()
        await stand.start_gateway()
        if not told:
            assert await round_.act() or scenario is Recovery
    await until(round_.done, what=f"the end of {scenario.__name__} at {point}")
    await stand.idle()
    for study, versions in round_.wanted.values():
        stand.check_record(study, versions)
        stand.check_changes_audited(study, len(versions), versions.count(REMOVED))
    stand.check_no_double()
    stand.check_audit(since, stand.exchanges_count() - before, crashed=died)
    return died, passed


def sample(points: Sequence[Point]) -> list[Point]:
    """Return the points to die at this time."""
    if SOAK:
        return list(points)
    chance = random.Random(f"{SEED} {len(points)}")
    return chance.sample(points, min(FEW, len(points)))


SCENARIOS = [NewReport, Replacement, Withdrawal, Change, Recovery]


@pytest.mark.requirement("DB.SO.97", "DB.SO.12")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest_twisted.ensureDeferred
async def test_death_at_each_point(stand: CrashStand, scenario: type[Round]) -> None:
    await die_everywhere(stand, scenario)


@pytest.mark.peer("storescu")
@pytest.mark.requirement("DB.SO.25", "DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_death_at_each_point_of_a_rejection(stand: CrashStand) -> None:
    await die_everywhere(stand, Rejection)


async def die_everywhere(stand: CrashStand, scenario: type[Round]) -> None:
    if not stand.running:
        await stand.start_gateway()
    died, points = await play(scenario, stand, None)
    assert not died
    assert_whole(points, scenario)
    chosen = sample(points)
    # Two studies side by side do not always take rows in the same portions.
    missed = [point for point in chosen if not (await play(scenario, stand, point))[0]]
    assert len(missed) <= len(chosen) // 10 + 1, missed


def assert_whole(points: Sequence[Point], scenario: type[Round]) -> None:
    """The points are those of the whole way, on both sides of each step."""
    passed = Counter(point.passage for point in points)
    assert passed.keys() >= scenario.steps, scenario.steps - passed.keys()
    for passage, times in passed.items():
        first, _, rest = passage.partition(" ")
        if first == "before" and f"after {rest}" in passed:
            assert passed[f"after {rest}"] == times
