"""The export of the trail: in order, nothing lost, one batch twice at most, the administrator told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed

from drimbox.audit import messages
from drimbox.config import AtnaSettings, Certificate
from drimbox.configfile import load
from drimbox.ports import AuditEvent, BatchNotDelivered, ExportBacklog, ExportedEvent
from drimbox.sim.syslog import read_message, read_schema
from drimbox.source.atnaexport import AtnaExport
from tests.operator_files import good_config

pytestmark = pytest.mark.requirement("DB.CS.96")
START = datetime(2026, 11, 22, 10, tzinfo=UTC)
SCHEMA = read_schema()


def event() -> AuditEvent:
    return messages.application_start(name="DRIMbox", source_name="db1.349.example.test")


@attrs.define
class Box:
    """Spool, link, notices and clock in one."""

    waiting: list[ExportedEvent] = attrs.field(factory=list)
    confirmed: list[int] = attrs.field(factory=list)
    batches: list[list[bytes]] = attrs.field(factory=list)
    #: What happens to the next batches: None delivers, an exception does not.
    fate: list[BatchNotDelivered | None] = attrs.field(factory=list)
    told: list[str] = attrs.field(factory=list)
    resolved: int = 0
    instant: datetime = START
    held: bool = False

    def add(self, count: int, *, readable: bool = True) -> None:
        for _ in range(count):
            number = len(self.waiting) + len(self.confirmed) + 1
            one = ExportedEvent(number, f"{number:064x}", self.instant, event() if readable else None)
            self.waiting.append(one)

    def now(self) -> datetime:
        return self.instant

    async def backlog(self) -> ExportBacklog:
        return ExportBacklog(len(self.waiting), self.waiting[0].instant if self.waiting else None)

    async def take(self, limit: int) -> list[ExportedEvent]:
        return [] if self.held else self.waiting[:limit]

    async def confirm(self, last_id: int) -> None:
        while self.waiting and self.waiting[0].id <= last_id:
            self.confirmed.append(self.waiting.pop(0).id)

    async def position(self) -> int:
        return self.confirmed[-1] if self.confirmed else 0

    async def deliver(self, frames: list[bytes]) -> None:
        self.batches.append(list(frames))
        fate = self.fate.pop(0) if self.fate else None
        if fate is not None:
            raise fate

    async def post(self, *, key: str, code: str, text: str) -> None:
        assert (key, code) == ("atna", "ATNA")
        self.told.append(text)

    async def resolve(self, key: str) -> bool:
        self.resolved += 1
        return True


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.fixture
def export(box: Box, tmp_path: Path) -> AtnaExport:
    settings = AtnaSettings(
        "audit.example.test",
        Path("r.pem"),
        Certificate(Path("c.pem"), Path("c.key")),
        batch=4,
        retry_first=10.0,
        retry_max=100.0,
    )

    def now(work: object) -> Deferred[object]:
        return succeed(work())  # type: ignore[operator]

    return AtnaExport(load(good_config(tmp_path)), settings, box, box, box, box, now)  # type: ignore[arg-type]


def sizes(box: Box) -> list[int]:
    return [len(batch) for batch in box.batches]


@pytest_twisted.ensureDeferred
async def test_everything_that_waits_leaves_in_batches(box: Box, export: AtnaExport) -> None:
    box.add(9)
    await export.look()
    assert (sizes(box), box.confirmed) == ([4, 4, 1], list(range(1, 10)))
    for number, one in enumerate(frame for batch in box.batches for frame in batch):
        length, _, message = one.partition(b" ")
        assert int(length) == len(message)
        assert read_message(message, SCHEMA).instant == START, number
    await export.look()
    assert len(box.batches) == 3, "nothing waits, nobody is called"


@pytest_twisted.ensureDeferred
async def test_an_uncertain_end_repeats_the_same_bytes_and_risks_no_more_than_one(
    box: Box, export: AtnaExport
) -> None:
    box.add(20)
    box.fate = [None, BatchNotDelivered("perdu", sent=True)]
    await export.look()
    assert (sizes(box), box.confirmed) == ([4, 4], [1, 2, 3, 4])
    await export.look()
    assert len(box.batches) == 2, "not before its time"
    box.fate = [BatchNotDelivered("perdu", sent=True)]
    box.instant += timedelta(seconds=11)
    await export.look()
    assert sizes(box) == [4, 4, 1]
    box.instant += timedelta(seconds=21)
    await export.look()
    assert sizes(box) == [4, 4, 1, 1, 2, 4, 4, 4, 1]
    assert box.batches[1][0] == box.batches[2][0] == box.batches[3][0]
    assert box.confirmed == list(range(1, 21))


@pytest_twisted.ensureDeferred
async def test_what_never_left_makes_no_batch_smaller(box: Box, export: AtnaExport) -> None:
    box.add(4)
    box.fate = [BatchNotDelivered("connexion refusée", sent=False)]
    await export.look()
    box.instant += timedelta(seconds=11)
    await export.look()
    assert sizes(box) == [4, 4]


@pytest_twisted.ensureDeferred
async def test_the_wait_grows_to_its_bound(box: Box, export: AtnaExport) -> None:
    box.add(1)
    waits = []
    for _ in range(7):
        box.fate = [BatchNotDelivered("connexion refusée", sent=False)]
        began, tries = box.instant, len(box.batches)
        while len(box.batches) == tries:
            box.instant += timedelta(seconds=1)
            await export.look()
        waits.append((box.instant - began).total_seconds())
    assert waits[1] <= 11
    assert 50 <= waits[-1] <= 101


@pytest_twisted.ensureDeferred
async def test_the_administrator_is_told_once_when_it_lasts_and_when_it_is_over(
    box: Box, export: AtnaExport
) -> None:
    await export.look()
    resolved = box.resolved
    box.add(3)
    box.fate = [BatchNotDelivered("audit.example.test : connexion refusée", sent=False)] * 500
    for _ in range(120):
        box.instant += timedelta(seconds=60)
        await export.look()
    assert len(box.told) == 1
    assert "3 événements attendent, le plus ancien depuis le 22/11/2026 à 10:00 UTC" in box.told[0]
    assert "connexion refusée" in box.told[0]
    box.fate = []
    box.instant += timedelta(seconds=200)
    await export.look()
    assert (len(box.told), box.resolved) == (1, resolved + 1)


@pytest_twisted.ensureDeferred
async def test_a_repository_that_only_just_answers_is_told_too(box: Box, export: AtnaExport) -> None:
    """Another node holds the export, and does not get on."""
    await export.look()
    box.add(3)
    box.held = True
    box.instant += timedelta(hours=2)
    await export.look()
    (text,) = box.told
    assert "envoi en cours" in text


@pytest_twisted.ensureDeferred
async def test_an_event_that_cannot_be_read_is_sent_as_such(box: Box, export: AtnaExport) -> None:
    box.add(1)
    box.add(1, readable=False)
    box.add(1)
    await export.look()
    assert box.confirmed == [1, 2, 3]
    got = read_message(box.batches[0][1].partition(b" ")[2], SCHEMA)
    assert got.message.find("ParticipantObjectIdentification").get("ParticipantObjectID") == "audit 2"


@pytest_twisted.ensureDeferred
async def test_a_stop_begins_no_further_session(box: Box, export: AtnaExport) -> None:
    box.add(9)
    export.stop()
    await export.look()
    assert box.batches == []
