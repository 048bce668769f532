"""What stands around a speed test: a PACS, a pool, a store, notices and a clock, all played by hand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from drimbox.config import Certificate, Pacs, Site, SpeedTestSettings
from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.moving import Abandoned, MoveReceiver, MoveResult
from drimbox.errors import TooManyRequests
from drimbox.model import Instance, Series, Study
from drimbox.ports import SpeedMeasure
from drimbox.source.speedtest import Doors, SpeedTests

STUDY, CT, EXPLICIT = "2.25.900", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
START = datetime(2026, 1, 12, 9, 30, tzinfo=UTC)
STEP = 1 / 64
NOWHERE = Certificate(Path("/nowhere.pem"), Path("/nowhere.key"))


def study(*counts: int) -> Study:
    """Make a study whose series hold so many images."""
    return Study(
        STUDY,
        tuple(
            Series(
                f"{STUDY}.{number}",
                "CT",
                tuple(Instance(f"{STUDY}.{number}.{image}", "") for image in range(count)),
            )
            for number, count in enumerate(counts)
        ),
    )


@attrs.define
class Plan:
    """How a PACS moves one series; seconds."""

    latency: float = 0.25
    gap: float = 0.125
    tail: float = 0.5
    status: int = Status.SUCCESS
    skip: int = 0
    #: Extra instances that nobody asked for.
    foreign: int = 0
    repeat: bool = False
    failure: Exception | None = None
    #: The clock of the machine is set back by so much before the first image.
    jump: float = 0.0
    #: Never sends anything nor ends.
    silent: bool = False


class Channel:
    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []

    def respond(self, command: Command, status: int) -> None:
        self.answers.append((command.affected_instance or "", int(status)))

    def pause(self) -> None:
        raise AssertionError("a speed test holds nobody back")

    resume = abort = pause


class Move:
    """One C-MOVE (a `ports.MoveRun`)."""

    def __init__(self, world: World, pacs: Pacs, receiver: MoveReceiver) -> None:
        self.sent_at: float | None = None
        self.world, self.pacs, self.receiver = world, pacs, receiver
        self.sleeping: Deferred[None] | None = None
        self.abandoned = False
        self.channel = Channel()

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        world = self.world
        assert study_uid == STUDY
        assert instance_uid is None
        if world.free == 0:
            raise TooManyRequests("aucun titre AE libre")
        world.free -= 1
        world.running += 1
        world.most_running = max(world.most_running, world.running)
        try:
            return await self._play(series_uid, world.plan)
        finally:
            world.free += 1
            world.running -= 1

    async def _play(self, series_uid: str, plan: Plan) -> MoveResult:
        if plan.failure is not None:
            raise plan.failure
        self.sent_at = self.world.clock.seconds()
        self.world.moved.append(series_uid)
        if plan.silent:
            await self._sleep(1e9)
        assert self.world.study is not None
        (series,) = (each for each in self.world.study.series if each.series_uid == series_uid)
        uids = [each.sop_instance_uid for each in series.instances][plan.skip :]
        pause = plan.latency
        for uid in [*(f"2.25.6.{number}" for number in range(plan.foreign)), *uids]:
            await self._sleep(pause)
            if pause == plan.latency:
                self.world.clock.rightNow -= plan.jump
            pause = plan.gap
            for _ in range(2 if plan.repeat else 1):
                self._store(uid)
        await self._sleep(plan.tail)
        return MoveResult(plan.status, len(uids), plan.skip, 0)

    def _store(self, uid: str) -> None:
        receiver = self.receiver
        command = Command(CommandField.C_STORE_RQ, 7, affected_class=CT, affected_instance=uid)
        receiver.store(self.channel, command, EXPLICIT)
        assert receiver.busy
        answered = list(self.channel.answers)
        receiver.data(self.channel, memoryview(b"x" * 60), False)
        assert self.channel.answers == answered
        receiver.data(self.channel, b"x" * 40, True)
        assert self.channel.answers == [*answered, (uid, Status.SUCCESS)]

    async def _sleep(self, seconds: float) -> None:
        if self.abandoned:
            raise Abandoned
        self.sleeping = Deferred()
        timer = self.world.clock.callLater(seconds, self.sleeping.callback, None)
        try:
            await self.sleeping
        except CancelledError:
            raise Abandoned from None
        finally:
            self.sleeping = None
            if timer.active():
                timer.cancel()

    def abandon(self) -> None:
        self.abandoned = True
        self.world.abandoned += 1
        if self.sleeping is not None:
            self.sleeping.cancel()


class World:
    """Everything around, and the tests themselves."""

    def __init__(self, *counts: int, pool: int = 3, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.study: Study | None = study(*(counts or (3, 2)))
        self.find_failure: Exception | None = None
        self.find_pause: Deferred[None] | None = None
        self.plan = Plan()
        self.free, self.waiting = pool, 0
        self.running = self.most_running = self.abandoned = 0
        self.moved: list[str] = []
        self.kept: list[SpeedMeasure] = []
        self.add_failure: Exception | None = None
        self.notices: dict[str, tuple[str, str]] = {}
        self.site = self.make_site("radio", pool, **settings)
        self.tests = SpeedTests(
            Doors(
                find=self._find,
                mover=self,
                pool=lambda pacs: self,
                measures=self,
                notices=self,
                clock=self.clock,
                wall=self,
            )
        )

    @staticmethod
    def make_site(name: str, pool: int = 3, **settings: Any) -> Site:
        titles = tuple(f"BOX{number}" for number in range(pool))
        keys = {"study": STUDY, "enabled": True, **settings}
        return Site(
            name,
            f"db1.{name}.example.test",
            f"vi1.{name}.example.test",
            Pacs(f"PACS-{name}", "PACS", "127.0.0.1", 104, titles, move_ceiling=600.0),
            NOWHERE,
            speedtest=SpeedTestSettings(**keys),
        )

    # -- doors -------------------------------------------------------------------------------------

    async def _find(self, pacs: Pacs, study_uid: str) -> Study | None:
        assert study_uid == STUDY
        if self.find_pause is not None:
            await self.find_pause
        if self.find_failure is not None:
            raise self.find_failure
        return self.study

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver) -> Move:
        return Move(self, pacs, receiver)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock.seconds())

    async def add(self, measure: SpeedMeasure) -> None:
        if self.add_failure is not None:
            raise self.add_failure
        self.kept.append(measure)

    async def last(self, site: str) -> datetime | None:
        return max((each.started_at for each in self.kept if each.site == site), default=None)

    async def post(self, *, key: str, code: str, text: str) -> None:
        self.notices[key] = (code, text)

    async def resolve(self, key: str) -> bool:
        return self.notices.pop(key, None) is not None

    # -- time --------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([STEP] * round(seconds / STEP))

    def pass_until(self, condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        for _ in range(round(seconds / STEP)):
            if condition():
                return
            self.clock.advance(STEP)
        raise AssertionError("waited in vain")

    def once(self, site: Site | None = None) -> SpeedMeasure:
        """Run one test on demand to its end; return what was kept."""
        site = site or self.site
        number = self.tests.start(site)
        self.pass_until(lambda: self.tests.progress(site).ended >= number)
        return self.kept[-1]

    def scheduled(self, site: Site | None = None) -> Deferred[None]:
        work: Coroutine[Any, Any, None] = self.tests.run_if_due(site or self.site)
        return Deferred.fromCoroutine(work)
