"""The inbox: what was acknowledged is there, is handed out once, and ends with its jobs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from drimbox.store.database import Database
from drimbox.store.errors import NotInHand, StoreError
from drimbox.store.inbox import Inbox
from drimbox.store.schema import feed_job, inbox
from tests.store.conftest import Stores, stores_of
from tests.store.samples import TestClock, said


async def _add(stores: Stores, number: int = 1, ris: str = "ris-a") -> list[int]:
    return [
        await stores.inbox.add(ris=ris, peer="192.0.2.10:2575", control_id=f"M{n}", raw=b"MSH|%d" % n)
        for n in range(number)
    ]


@pytest_twisted.ensureDeferred
async def test_a_message_comes_back_as_it_was(stores: Stores) -> None:
    raw = bytes(range(256)) * 100
    number = await stores.inbox.add(ris="ris-a", peer="2001:db8::1", control_id="M\x001", raw=raw)
    (message,) = await stores.inbox.take(stores.clock.now(), 10)
    assert (message.id, message.ris, message.peer, message.raw) == (number, "ris-a", "2001:db8::1", raw)
    assert message.received_at == stores.clock.now()
    assert message.received_at.utcoffset() is not None
    assert message.attempts == 0
    again = await stores.inbox.message(number)
    assert again.raw == raw
    with pytest.raises(KeyError):
        await stores.inbox.message(number + 1)


@pytest_twisted.ensureDeferred
async def test_messages_are_taken_oldest_first_and_once(stores: Stores) -> None:
    numbers = await _add(stores, 5)
    first = await stores.inbox.take(stores.clock.now(), 2)
    second = await stores.inbox.take(stores.clock.now(), 10)
    assert [message.id for message in first + second] == numbers
    assert await stores.inbox.take(stores.clock.advance(10_000), 10) == []
    assert await stores.inbox.take(stores.clock.now(), 0) == []


@pytest_twisted.ensureDeferred
async def test_parallel_takers_never_get_the_same_row(database: Database, clock: TestClock) -> None:
    nodes = [stores_of(database, clock, node=f"node{n}") for n in range(4)]
    numbers = await _add(nodes[0], 40)
    answers = [ensureDeferred(node.inbox.take(clock.now(), 3)) for _ in range(5) for node in nodes]
    taken = [message.id for batch in await gatherResults(answers) for message in batch]
    assert sorted(taken) == numbers


@pytest.mark.requirement("DB.SO.12")
@pytest_twisted.ensureDeferred
async def test_a_read_message_makes_one_job_per_study_once(stores: Stores) -> None:
    (number,) = await _add(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    studies = ["2.25.1", "2.25.2", "2.25.1"]
    what = said(*studies)
    await stores.inbox.processed(number, result="new", said=what)
    await stores.inbox.processed(number, result="new", said=what)
    rows = await stores.database.read(
        lambda c: c.execute(select(feed_job.c.study_uid, feed_job.c.ris).order_by(feed_job.c.id)).all()
    )
    assert [tuple(row) for row in rows] == [("2.25.1", "ris-a"), ("2.25.2", "ris-a")]
    counts = await stores.inbox.counts()
    assert (counts.waiting, counts.in_hand, counts.done, counts.oldest) == (0, 0, 1, None)


@pytest_twisted.ensureDeferred
async def test_a_message_without_study_ends_without_job(stores: Stores) -> None:
    (number,) = await _add(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    await stores.inbox.processed(number, result="ignored")
    assert (await stores.jobs.counts()).waiting == 0


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_message_and_its_jobs_are_one_transaction(stores: Stores) -> None:
    (number,) = await _add(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    with pytest.raises(IntegrityError):
        await stores.inbox.processed(number, result="new", said=said("2.25.1", None))  # type: ignore[arg-type]
    assert (await stores.inbox.counts()).in_hand == 1
    assert (await stores.jobs.counts()).waiting == 0


@pytest.mark.requirement("DB.SO.21")
@pytest_twisted.ensureDeferred
async def test_a_message_that_cannot_be_used_is_kept_with_its_reason(stores: Stores) -> None:
    (number,) = await _add(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    await stores.inbox.failed(number, "E005", "champ absent : StudyInstanceUID")
    assert (await stores.inbox.counts()).failed == 1
    assert await stores.inbox.take(stores.clock.advance(10**6), 1) == []
    assert (await stores.inbox.message(number)).raw == b"MSH|0"
    reason = select(inbox.c.error_code, inbox.c.error_detail)
    row = await stores.database.read(lambda c: tuple(c.execute(reason).one()))
    assert row == ("E005", "champ absent : StudyInstanceUID")


@pytest_twisted.ensureDeferred
async def test_a_message_put_off_comes_back_when_due(stores: Stores) -> None:
    (number,) = await _add(stores)
    await stores.inbox.take(stores.clock.now(), 1)
    later = stores.clock.now().replace(minute=59)
    await stores.inbox.retry_later(number, later, "base occupée")
    assert await stores.inbox.take(stores.clock.now(), 1) == []
    (message,) = await stores.inbox.take(later, 1)
    assert message.attempts == 1


@pytest_twisted.ensureDeferred
async def test_a_result_is_only_accepted_from_who_holds_the_row(
    database: Database, clock: TestClock
) -> None:
    one, two = stores_of(database, clock, "one"), stores_of(database, clock, "two")
    (number,) = await _add(one)
    with pytest.raises(NotInHand, match="inbox"):
        await one.inbox.failed(number, "E005", "pas encore prise")
    await one.inbox.take(clock.now(), 1)
    # The first node sleeps past its lease; the second one takes over.
    assert await two.inbox.take(clock.advance(299), 1) == []
    assert len(await two.inbox.take(clock.advance(2), 1)) == 1
    with pytest.raises(NotInHand):
        await one.inbox.processed(number, result="new", said=said("2.25.1"))
    assert (await one.jobs.counts()).waiting == 0
    await two.inbox.processed(number, result="new", said=said("2.25.1"))
    with pytest.raises(NotInHand):
        await two.inbox.failed(number, "E005", "déjà finie autrement")


@pytest_twisted.ensureDeferred
async def test_a_lease_renewed_is_not_taken_over(database: Database, clock: TestClock) -> None:
    one, two = stores_of(database, clock, "one"), stores_of(database, clock, "two")
    numbers = await _add(one, 3)
    await one.inbox.take(clock.now(), 3)
    await one.inbox.failed(numbers[2], "E005", "illisible")
    clock.advance(200)
    assert await two.inbox.renew(numbers) == 0, "not in its hands"
    assert await one.inbox.renew([numbers[0], numbers[2]]) == 1, "one has ended"
    # Only what is named: a row that nobody works on any more comes back to the others.
    taken = await two.inbox.take(clock.advance(200), 2)
    assert [message.id for message in taken] == [numbers[1]]


@pytest_twisted.ensureDeferred
async def test_a_restart_gives_back_what_was_in_hand(database: Database, clock: TestClock) -> None:
    before, other = stores_of(database, clock, "box"), stores_of(database, clock, "other")
    numbers = await _add(before, 3)
    await before.inbox.take(clock.now(), 2)
    await other.inbox.take(clock.now(), 1)
    after = stores_of(database, clock, "box")
    assert await after.inbox.take(clock.now(), 3) == []
    assert await after.inbox.release_all() == 2
    taken = await after.inbox.take(clock.now(), 3)
    assert [message.id for message in taken] == numbers[:2], "the other node keeps its own"
    assert {message.attempts for message in taken} == {1}, "the killed try is counted"


@pytest_twisted.ensureDeferred
async def test_the_counts_tell_how_long_the_oldest_waits(stores: Stores) -> None:
    start = stores.clock.now()
    await _add(stores, 2)
    stores.clock.advance(60)
    await _add(stores, 1)
    await stores.inbox.take(stores.clock.now(), 1)
    counts = await stores.inbox.counts()
    assert (counts.waiting, counts.in_hand, counts.done, counts.failed) == (2, 1, 0, 0)
    assert counts.oldest == start


_WRITER = """
import hashlib, sys
from datetime import UTC, datetime
from twisted.internet import task
from drimbox.store.database import Database
from drimbox.store.inbox import Inbox

class Clock:
    def now(self):
        return datetime.now(UTC)

async def main(reactor):
    database = Database(sys.argv[1], reactor=reactor)
    await database.open()
    inbox = Inbox(database, clock=Clock())
    number = 0
    while True:
        number += 1
        raw = hashlib.sha256(str(number).encode()).digest() * (number % 700)
        key = await inbox.add(ris="r", peer="p", control_id=str(number), raw=raw)
        # The acknowledgement: written only once the store says it is safe.
        print(key, hashlib.sha256(raw).hexdigest(), flush=True)

from twisted.internet.defer import ensureDeferred
task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


@pytest.mark.requirement("DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_kill_9_in_the_middle_loses_no_acknowledged_message(url: str, tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url],
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdout is not None
        try:
            wanted = len(acknowledged) + 60 + 17 * round_
            while len(acknowledged) < wanted:
                line = child.stdout.readline()
                assert line, "the writer died by itself"
                _note(acknowledged, line)
        finally:
            child.send_signal(signal.SIGKILL)
            # Not `communicate`: with a time-out it reads past what `readline` has buffered.
            rest = child.stdout.read()
            child.wait(timeout=20)
        for line in rest.splitlines(keepends=True):
            if line.endswith(b"\n"):
                _note(acknowledged, line)
    database = Database(url, reactor=reactor)
    await database.open()
    store = Inbox(database, clock=TestClock())
    for number, digest in acknowledged.items():
        assert hashlib.sha256((await store.message(number)).raw).hexdigest() == digest
    total = await database.read(lambda c: c.execute(select(func.count()).select_from(inbox)).scalar_one())
    assert len(acknowledged) <= total <= len(acknowledged) + 3, "at most one in flight per kill"
    await database.close()


def _note(acknowledged: dict[int, str], line: bytes) -> None:
    number, digest = line.decode().split()
    assert int(number) not in acknowledged
    acknowledged[int(number)] = digest


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_an_error_and_not_an_acknowledgement(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'small.db'}", reactor=reactor)
    await database.open()
    store = Inbox(database, clock=TestClock())
    first = await store.add(ris="r", peer="p", control_id="1", raw=b"x")
    pages = await database.run(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    await database.run(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}").scalar_one())
    with pytest.raises(Exception, match="full"):
        await store.add(ris="r", peer="p", control_id="2", raw=b"y" * 100_000)
    await database.run(lambda c: c.exec_driver_sql("PRAGMA max_page_count=100000").scalar_one())
    assert await store.add(ris="r", peer="p", control_id="3", raw=b"z") == first + 1
    await database.close()


@pytest_twisted.ensureDeferred
async def test_a_closed_store_acknowledges_nothing(stores: Stores) -> None:
    await stores.database.close()
    with pytest.raises(StoreError):
        await _add(stores)
