"""What is asked of PACS and native archives counts by what becomes of it, and nothing waits for that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from drimbox import metrics
from drimbox.config import (
    Appliance,
    Certificate,
    Config,
    DmpSettings,
    Native,
    Pacs,
    PscSettings,
    Site,
    Structure,
    TrustSettings,
)
from drimbox.counted import CountedArchive, CountedFind, CountedMover, Counter
from drimbox.dicom.moving import Abandoned, MoveResult
from drimbox.dicom.requestor import PacsBusy
from drimbox.errors import PacsCommunicationError, PacsUnavailable, TooManyRequests
from drimbox.ports import Count
from drimbox.reached import Reached

PATH = Path("/nowhere")
PAIR = Certificate(PATH, PATH)
PACS = Pacs("PACS1", "PACS", "127.0.0.1", 104, ("DB1",))
SITES = (
    Site("proxy", "db1.349.example", "vi1.349.example", PACS, PAIR, structures=("1470003641",)),
    Site("native", "db2.349.example", "vi2.349.example", None, PAIR, native=Native("A", "orthanc")),
)
STRUCTURES = tuple(Structure(each, each, PAIR, PAIR) for each in ("1470003641", "1470003642"))
pytestmark = pytest.mark.requirement("DB.SO.87")


class Kept:
    """The statistics, which may be out of order."""

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self.broken = False

    async def add(self, counts: Sequence[Count]) -> None:
        if self.broken:
            raise OSError("disk full")
        self.counts += counts


class Peer:
    """A PACS, or an archive, that answers as the test says."""

    name, patience = "A", 5.0

    def __init__(self) -> None:
        self.answer: Any = None
        self.sent_at: float | None = 1.0
        self.images = 0
        self.receiver: Any = None

    async def __call__(self, *_: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    find_study = holds = __call__

    def retrieval(self, *arguments: Any) -> Any:
        self.receiver = next(
            each for each in arguments if isinstance(getattr(each, "satisfied", None), bool)
        )
        return self

    async def run(self, *_: Any, **__: Any) -> MoveResult:
        for _ in range(self.images):
            self.receiver.store(None, None, "1.2")
            self.receiver.data(None, b"x", True)
        result: MoveResult = await self()
        return result


class Receiver:
    satisfied = False

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.pieces = 0

    def store(self, channel: Any, command: Any, transfer_syntax: str) -> None:
        self.stored.append(transfer_syntax)

    def data(self, channel: Any, piece: bytes, last: bool) -> None:
        self.pieces += 1


INSTANT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class World:
    def __init__(self) -> None:
        self.kept, self.peer, self.receiver = Kept(), Peer(), Receiver()
        config = Config(
            Appliance(PATH, "349"),
            SITES,
            (),
            STRUCTURES,
            TrustSettings(PATH, PATH, PATH),
            DmpSettings("https://dmp.example", PATH),
            PscSettings("https://psc.example", "id", PATH),
        )
        self.reached = Reached(lambda: INSTANT)
        self.counter = Counter(config, self.kept, self.reached)

    def find(self) -> Any:
        peer: Any = self.peer
        return CountedFind(peer, self.counter)(PACS, "2.25.1")

    def archive(self) -> CountedArchive:
        peer: Any = self.peer
        return CountedArchive(peer, self.counter, "native")

    def move(self) -> Any:
        peer, receiver = self.peer, self.receiver
        run = CountedMover(peer, self.counter).retrieval(PACS, receiver)  # type: ignore[arg-type]
        return run.run("2.25.1", "2.25.2", wait=1.0)

    def read(self) -> Any:
        return self.archive().retrieval(self.receiver).run("2.25.1", "2.25.2", wait=1.0)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


def outcome(work: Any) -> Any:
    """Return what came of a coroutine, or the exception it raised."""
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    return getattr(found[0], "value", found[0])


@pytest.mark.parametrize(
    ("answer", "stats"),
    [
        (None, ["STF12"]),
        (PacsCommunicationError("muet"), ["STF13"]),
        (PacsBusy("8 associations"), []),
    ],
)
def test_a_question_counts_by_its_answer(world: World, answer: Any, stats: list[str]) -> None:
    world.peer.answer = answer
    assert outcome(world.find()) is answer
    assert [(each.stat, each.site, each.structure) for each in world.kept.counts] == [
        (stat, "proxy", "1470003641") for stat in stats
    ]
    world.kept.counts.clear()
    for asking in (world.archive().find_study("2.25.1"), world.archive().holds("2.25.1")):
        assert outcome(asking) is answer
    # Two structures work at the native site: nobody knows which of them asked.
    assert world.kept.counts == [Count(stat, "", "native") for stat in stats * 2]


@pytest.mark.parametrize(
    ("answer", "result"),
    [(None, "answered"), (PacsCommunicationError("muet"), "failed"), (PacsBusy("8 associations"), "")],
)
def test_the_metrics_tell_the_archive_of_one_site_from_that_of_another(
    world: World, answer: Any, result: str
) -> None:
    """The alert of a silent PACS is about one of several."""

    def counted() -> dict[tuple[str, str], float]:
        name = "drimbox_archive_exchanges_total"
        kinds = [(site, kind) for site in ("proxy", "native") for kind in ("answered", "failed")]
        return {
            (site, kind): metrics.REGISTRY.get_sample_value(name, {"site": site, "result": kind}) or 0
            for site, kind in kinds
        }

    before = counted()
    world.peer.answer = answer
    outcome(world.find())
    after = counted()
    assert {key for key in after if after[key] != before[key]} == ({("proxy", result)} if result else set())


@pytest.mark.parametrize(
    ("answer", "sent", "images", "stats"),
    [
        (MoveResult(0, 3, 0, 0), True, 3, {"STF14": 1, "STF16": 3}),
        (MoveResult(0xA702, 1, 2, 0), True, 1, {"STF15": 1, "STF16": 1}),
        (PacsUnavailable("muet"), True, 0, {"STF15": 1}),
        (Abandoned(), True, 2, {"STF14": 1, "STF16": 2}),
        (TooManyRequests("plein"), False, 0, {}),
    ],
)
@pytest.mark.parametrize("kind", ["move", "read"])
def test_a_retrieval_counts_by_its_end_and_its_images(
    world: World, kind: str, answer: Any, sent: bool, images: int, stats: dict[str, int]
) -> None:
    world.peer.answer, world.peer.images = answer, images
    world.peer.sent_at = 1.0 if sent else None
    assert outcome(getattr(world, kind)()) is answer
    # Rows of nothing are dropped by the store.
    assert {each.stat: each.amount for each in world.kept.counts if each.amount} == stats
    assert {each.site for each in world.kept.counts} <= {"proxy" if kind == "move" else "native"}
    # The receiver is told everything all the same.
    assert (len(world.receiver.stored), world.receiver.pieces) == (images, images)


def test_statistics_that_cannot_be_kept_fail_nothing(world: World) -> None:
    world.kept.broken = True
    world.peer.answer = MoveResult(0, 0, 0, 0)
    assert outcome(world.move()) is world.peer.answer
    world.peer.answer = None
    assert outcome(world.find()) is None
