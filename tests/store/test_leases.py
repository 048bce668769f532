"""Work that takes longer than its lease, and the other node that waits to take it over.

Two nodes share one database; each has its worker, the real queue, the real publication. Node `one` sends to
a DMP that takes twenty minutes to answer.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from drimbox.audit import messages
from drimbox.ports import Accepted
from drimbox.source.publication import Doors, Publication
from drimbox.store import engine as engines
from drimbox.store.database import Database
from drimbox.store.errors import NotInHand
from drimbox.store.nodes import Nodes
from drimbox.store.outbox import OutboxItem
from drimbox.store.queue import LEASE
from drimbox.worker import Worker
from tests.integration.waiting import pause, until
from tests.source.fakes import Archive, Dmp, Notices, Trail, config, structure
from tests.store.conftest import Stores, stores_of
from tests.store.samples import TestClock, said, submission

pytestmark = pytest.mark.requirement("DB.SO.22", "SC.DMP/CONF.14")
LONG = 1200.0


class SlowDmp(Dmp):
    """A DMP that holds nothing until it is told to answer; every TD2.1 is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.answer: Deferred[None] = Deferred()

    async def publish(self, structure: Any, made: Any, replaces: Any) -> Any:
        self.sent.append(made.sop_instance_uid)
        await self.answer
        return Accepted()


class Node:
    """One process: its name, its queue, its worker on a clock of its own."""

    def __init__(
        self, database: Database, wall: TestClock, name: str, dmp: SlowDmp, *, renews: bool
    ) -> None:
        self.stores: Stores = stores_of(database, wall, name)
        self.clock, self.wall = Clock(), wall
        doors = Doors(self.stores.outbox, Archive(), dmp, Trail(), Notices(), wall)
        publication = Publication(config(structures=[structure("1240001451")]), doors)
        self.renewals = 0
        self.worker: Worker[OutboxItem] = Worker(
            "publication",
            take=lambda limit: self.stores.outbox.take(wall.now(), limit),
            work=publication.publish,
            broken=self._broken,
            parallel=2,
            clock=self.clock,
            renew=self._renew if renews else None,
        )

    async def _renew(self, rows: Sequence[OutboxItem]) -> None:
        await self.stores.outbox.renew([row.id for row in rows])
        self.renewals += 1

    async def _broken(self, row: OutboxItem, error: Exception) -> None:
        await self.stores.outbox.broke(row.id, str(error))

    async def look(self) -> None:
        """Let it look for rows, and wait until it has."""
        self.worker.wake()
        await until(lambda: not self.worker._looking, what="a look")


async def queued(stores: Stores) -> None:
    """Put one publication into the outbox."""
    number = await stores.inbox.add(ris="RIS", peer="192.0.2.7", control_id="1", raw=b"MSH|")
    await stores.inbox.take(stores.clock.now(), 1)
    await stores.inbox.processed(number, result="feed", said=said("2.25.1"))
    (job,) = await stores.jobs.take(stores.clock.now(), 1)
    await stores.jobs.queue_publication(
        job.id, site="site1", submission=submission(), metadata=b"<m/>", fingerprint="0" * 64
    )


async def pass_time(one: Node, other: Node) -> None:
    """Let the DMP take its time: both nodes look all along, and renew what they work on."""
    for _ in range(int(LONG / (LEASE / 4))):
        one.wall.advance(LEASE / 4)
        done = one.renewals
        one.clock.advance(LEASE / 4)
        if one.worker._renew is not None:
            await until(lambda done=done: one.renewals > done, what="a renewal")
        await other.look()
        await pause(0)


@pytest.mark.parametrize("renews", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_slow_dmp_gets_a_publication_from_one_node_only(
    database: Database, clock: TestClock, renews: bool
) -> None:
    dmp = SlowDmp()
    one, two = (Node(database, clock, name, dmp, renews=renews) for name in ("one", "two"))
    await queued(one.stores)
    for node in (one, two):
        node.worker.startService()
        await node.look()
        # The second is there only once the first has begun.
        await until(lambda: dmp.sent, what="TD2.1")
    await pass_time(one, two)
    # Without renewal the other node takes it, sees nothing in the DMP yet, and sends it a second time.
    assert set(dmp.sent) == {"2.25.500"}
    assert (len(dmp.sent) == 1) is renews
    dmp.answer.callback(None)
    stopping = [node.worker.stopService() for node in (one, two)]
    await until(lambda: all(each is None or each.called for each in stopping), what="both at rest")
    if renews:
        counts = await one.stores.outbox.counts()
        assert (counts.done, counts.waiting, counts.in_hand) == (1, 0, 0)


@pytest_twisted.ensureDeferred
async def test_what_a_dead_node_held_is_taken_over_when_its_lease_ends(
    database: Database, clock: TestClock
) -> None:
    dmp = SlowDmp()
    one, two = (Node(database, clock, name, dmp, renews=True) for name in ("one", "two"))
    await queued(one.stores)
    one.worker.startService()
    await until(lambda: dmp.sent, what="TD2.1")
    # It works on for a while, then it is dead: its clock stands still for ever.
    await pass_time(one, two)
    two.worker.startService()
    clock.advance(LEASE - 1)
    await two.look()
    assert len(dmp.sent) == 1
    clock.advance(2)
    taken = await two.stores.outbox.take(clock.now(), 1)
    # An attempt may have reached the DMP: who takes it over asks before anything is sent.
    assert [item.outcome_unknown for item in taken] == [True]


@pytest.mark.peer("postgres")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.requirement("DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_a_wrong_clock_takes_nothing_from_a_living_node(database: Database, clock: TestClock) -> None:
    """The database says when a lease has ended: a node ten minutes ahead sees what the others see."""
    ahead = TestClock()
    ahead.advance(600)
    right = stores_of(database, clock, "right", shared=True)
    wrong = stores_of(database, ahead, "wrong", shared=True)
    for number in range(4):
        await right.inbox.add(ris="RIS", peer="192.0.2.7", control_id=str(number), raw=b"MSH|")
    mine = await right.inbox.take(clock.now(), 2)
    theirs = await wrong.inbox.take(ahead.now(), 9)
    assert [len(mine), len(theirs)] == [2, 2]
    assert await right.inbox.renew([row.id for row in mine]) == 2
    assert await wrong.inbox.take(ahead.advance(2 * LEASE), 9) == []
    assert await right.inbox.take(clock.now(), 9) == []
    # What a dead node held ends by that clock too.
    dead = stores_of(database, clock, "dead", shared=True, lease=-1.0)
    (left,) = [await right.inbox.add(ris="RIS", peer="192.0.2.7", control_id="5", raw=b"MSH|")]
    assert [row.id for row in await dead.inbox.take(clock.now(), 9)] == [left]
    assert [row.id for row in await right.inbox.take(clock.now(), 9)] == [left]


@pytest.mark.requirement("DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_a_process_whose_name_is_anothers_by_now_ends_nothing(
    database: Database, clock: TestClock
) -> None:
    """Frozen, replaced by a new machine of the same name, and awake again: the rows are not its own."""
    frozen, fresh = (stores_of(database, clock, "a", home=home) for home in ("old", "new"))

    async def join(home: str) -> None:
        await Nodes(database, clock=clock, name="a", home=home, version="1", lease=60.0).join()

    await join("old")
    for number in range(3):
        await frozen.inbox.add(ris="RIS", peer="192.0.2.7", control_id=str(number), raw=b"MSH|")
    first, second = await frozen.inbox.take(clock.now(), 2)
    clock.advance(LEASE + 1)
    await join("new")
    await fresh.inbox.release_all()
    taken = await fresh.inbox.take(clock.now(), 2)
    assert [row.id for row in taken] == [first.id, second.id]
    with pytest.raises(NotInHand):
        await frozen.inbox.processed(first.id, result="other")
    with pytest.raises(NotInHand):
        await frozen.inbox.retry_later(second.id, clock.now(), "")
    assert await frozen.inbox.renew([first.id, second.id]) == 0
    assert await frozen.inbox.take(clock.now(), 9) == []
    await fresh.inbox.processed(first.id, result="other")
    assert await fresh.inbox.renew([second.id]) == 1
    assert len(await fresh.inbox.take(clock.now(), 9)) == 1


_FROZEN = """
import os, signal, sys
from sqlalchemy import make_url, text
from drimbox.store import engine
engine._SERVER["options"] = engine._SERVER["options"].replace("timeout=15s", "timeout=2s", 1)
with engine.writer_engine(make_url(sys.argv[1]), 1).begin() as connection:
    connection.execute(text("SELECT * FROM audit_head FOR UPDATE"))
    print("holds it", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.peer("postgres")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.requirement("DB.SO.35", "DB.CS.06")
@pytest_twisted.ensureDeferred
async def test_a_node_frozen_inside_a_transaction_only_makes_the_others_wait(
    stores: Stores, url: str
) -> None:
    """Of the audit trail, which nothing is delivered without: they wait longer than the server for it."""
    found = {
        name: int(seconds)
        for name, seconds in re.findall(r"(\w+)_timeout=(\d+)s", engines._SERVER["options"])
    }
    assert found["idle_in_transaction_session"] <= found["lock"] / 2
    frozen = subprocess.Popen(
        [sys.executable, "-c", _FROZEN, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == b"holds it\n"
        event = messages.application_start(name="DRIMbox", source_name="db1.example")
        # More than there are connections.
        await gatherResults([Deferred.fromCoroutine(stores.audit.record(event)) for _ in range(12)])
    finally:
        frozen.kill()
        frozen.communicate(timeout=20)
    check = await stores.audit.verify()
    assert (check.fault, check.checked) == (None, 12)
