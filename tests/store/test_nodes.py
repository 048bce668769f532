"""The nodes of a store: names, folders, AE titles, roles; and what a node does that is counted as dead."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import text
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from drimbox.presence import OwnNotices, Presence
from drimbox.store.database import Database
from drimbox.store.errors import NodeRefused
from drimbox.store.nodes import FORGOTTEN, Home, Nodes
from drimbox.store.queue import LEASE as QUEUE_LEASE
from drimbox.store.revision import newest
from tests.store.conftest import Stores, stores_of
from tests.store.samples import TestClock
from tests.store.test_outbox import queue, take

LEASE = 60.0
pytestmark = pytest.mark.requirement("DB.SO.35")


def make(
    database: Database, clock: TestClock, name: str, home: str = "", *titles: str, shared: bool = False
) -> Nodes:
    return Nodes(
        database,
        clock=clock,
        name=name,
        home=home or f"home-{name}",
        version="1",
        lease=LEASE,
        titles=titles,
        shared=shared,
    )


@pytest_twisted.ensureDeferred
async def test_two_living_nodes_do_not_share_a_name(database: Database, clock: TestClock) -> None:
    first, second = make(database, clock, "a"), make(database, clock, "a", "elsewhere")
    await first.join()
    with pytest.raises(NodeRefused, match="« a »"):
        await second.join()
    # Refused for as long as the first shows that it lives, and not for ever.
    clock.advance(LEASE - 1)
    await first.beat()
    clock.advance(LEASE - 1)
    with pytest.raises(NodeRefused):
        await second.join()
    clock.advance(2)
    await second.join()
    # The first one comes to itself, and is told.
    with pytest.raises(NodeRefused):
        await first.beat()
    await first.leave()
    assert [node.name for node in await second.seen()] == ["a"]


@pytest_twisted.ensureDeferred
async def test_a_killed_node_is_back_at_once_under_its_name(database: Database, clock: TestClock) -> None:
    first = make(database, clock, "a")
    await first.join()
    assert await first.leads("walks")
    again = make(database, clock, "a")
    await again.join()
    assert await again.leads("walks")
    # Under another name it is the same folder: its predecessor is dead, roles and all.
    renamed = make(database, clock, "b", "home-a")
    await renamed.join()
    assert [node.name for node in await renamed.seen()] == ["b"]
    assert await renamed.leads("walks")


@pytest_twisted.ensureDeferred
async def test_many_nodes_that_start_at_once_get_one_name_between_them(
    database: Database, clock: TestClock
) -> None:
    nodes = [make(database, clock, "a", f"home{number}") for number in range(4)]

    async def joined(node: Nodes) -> bool:
        try:
            await node.join()
        except NodeRefused:
            return False
        return True

    results: Any = await gatherResults([Deferred.fromCoroutine(joined(node)) for node in nodes])
    assert sorted(results) == [False, False, False, True]


@pytest_twisted.ensureDeferred
async def test_an_ae_title_belongs_to_one_node(database: Database, clock: TestClock) -> None:
    await make(database, clock, "a", "", "PACS/DBX1", "PACS/DBX2").join()
    with pytest.raises(NodeRefused, match="PACS/DBX2 est déjà celui du nœud « a »"):
        await make(database, clock, "b", "", "PACS/DBX2", "PACS/DBX3").join()
    # The same title towards another PACS is another destination.
    await make(database, clock, "b", "", "PACS/DBX3", "OTHER/DBX2").join()
    clock.advance(LEASE + 1)
    await make(database, clock, "c", "", "PACS/DBX1").join()


@pytest_twisted.ensureDeferred
async def test_a_role_is_one_nodes_until_it_dies_or_leaves(database: Database, clock: TestClock) -> None:
    first, second = make(database, clock, "a"), make(database, clock, "b")
    await first.join()
    await second.join()
    assert await first.leads("walks")
    assert not await second.leads("walks")
    assert await second.leads("purge")
    assert not await first.leads("purge")
    for _ in range(3):
        clock.advance(LEASE - 1)
        await first.beat()
        await second.beat()
    assert first.holds("walks")
    assert not await second.leads("walks")
    assert {node.name: node.roles for node in await first.seen()} == {"a": ("walks",), "b": ("purge",)}
    # The first one dies.
    clock.advance(5)
    assert not await second.leads("walks")
    clock.advance(LEASE - 6)
    await second.beat()
    clock.advance(2)
    assert not first.holds("walks")
    assert await second.leads("walks")
    assert not await first.leads("walks")
    assert [first.alive(node) for node in await first.seen()] == [False, True]
    # The second one leaves: nobody has to wait.
    await second.leave()
    assert await first.leads("walks")
    assert await first.leads("purge")


@pytest_twisted.ensureDeferred
async def test_nodes_that_reach_for_a_role_at_once_share_none(database: Database, clock: TestClock) -> None:
    nodes = [make(database, clock, f"n{number}") for number in range(4)]
    for node in nodes:
        await node.join()
    for round_ in range(5):
        reaching = [Deferred.fromCoroutine(node.leads(f"role{round_}")) for node in nodes]
        assert sorted(await gatherResults(reaching)) == [False, False, False, True]  # type: ignore[type-var]
        # And again when it is free again.
        clock.advance(LEASE + 1)
        reaching = [Deferred.fromCoroutine(node.leads(f"role{round_}")) for node in nodes]
        assert sorted(await gatherResults(reaching)) == [False, False, False, True]  # type: ignore[type-var]


@pytest_twisted.ensureDeferred
async def test_the_long_dead_are_forgotten(database: Database, clock: TestClock) -> None:
    await make(database, clock, "a").join()
    clock.advance(FORGOTTEN.total_seconds() + LEASE + 1)
    other = make(database, clock, "b")
    await other.join()
    assert [node.name for node in await other.seen()] == ["b"]


# -- the folder ------------------------------------------------------------------------------------

_OWNER = """
import sys
from pathlib import Path
from drimbox.store.nodes import Home
print(Home(Path(sys.argv[1])).id, flush=True)
sys.stdin.read()
"""


def test_a_state_folder_has_one_owner_and_one_identity(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        identity = process.stdout.readline().strip()
        assert len(identity) == 32
        with pytest.raises(NodeRefused, match="state_dir"):
            Home(tmp_path)
    finally:
        process.kill()
        process.communicate(timeout=20)
    home = Home(tmp_path)
    assert home.id == identity
    home.release()
    again = Home(tmp_path)
    assert again.id == identity
    again.release()


# -- presence --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_node_that_does_not_show_that_it_lives_rests(stores: Stores, clock: TestClock) -> None:
    reactor = Clock()
    nodes = make(stores.database, clock, "a")
    await nodes.join()
    presence = Presence(nodes, stores.notices, reactor, lease=LEASE)
    done: list[str] = []

    async def work() -> None:
        done.append("done")

    alone = presence.alone("purge", work)
    if stores.database.dialect == "postgresql":
        # The clock of these tests is far from the server's, which is what is told.
        await presence.beat()
        assert presence.hold()
        await alone()
        assert done == []
        (notice,) = await stores.notices.page()
        assert "Horloge du nœud « a »" in notice.text
        assert "NTP" in notice.text
        presence._most = timedelta.max
    await presence.beat()
    assert not await stores.notices.page()
    assert presence.hold() == 0.0
    await alone()
    assert done == ["done"]
    assert presence.holds("purge")
    reactor.advance(LEASE + 1)
    assert presence.hold() > 0.0
    assert not presence.holds("purge")
    await alone()
    assert done == ["done"]
    await presence.beat()
    assert presence.hold() == 0.0


@pytest_twisted.ensureDeferred
async def test_what_a_barred_node_did_for_all_goes_to_another(stores: Stores, clock: TestClock) -> None:
    first, second = make(stores.database, clock, "a"), make(stores.database, clock, "b")
    await first.join()
    await second.join()
    presence = Presence(first, stores.notices, Clock(), lease=LEASE)
    presence._most = timedelta.max
    await presence.beat()
    assert await presence.leads("walks")
    # Its clock goes astray.
    presence._most = timedelta(seconds=-1)
    await presence.beat()
    assert not await presence.leads("walks")
    assert await second.leads("walks")


@pytest_twisted.ensureDeferred
async def test_a_node_whose_name_was_taken_says_so_and_rests(stores: Stores, clock: TestClock) -> None:
    nodes = make(stores.database, clock, "a")
    await nodes.join()
    presence = Presence(nodes, stores.notices, Clock(), lease=LEASE)
    presence._most = timedelta.max
    await presence.beat()
    clock.advance(LEASE + 1)
    thief = make(stores.database, clock, "a", "elsewhere")
    await thief.join()
    await presence.beat()
    assert presence.hold()
    assert not await presence.leads("walks")
    (notice,) = await stores.notices.page()
    assert (notice.code, "« a »" in notice.text) == ("NOEUD", True)
    await thief.leave()
    await presence.beat()
    assert presence.hold() == 0.0
    assert not await stores.notices.page()


@pytest.mark.peer("postgres")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_wrong_clock_steals_neither_name_nor_title_nor_role(
    database: Database, clock: TestClock
) -> None:
    ahead = TestClock()
    ahead.advance(600)

    def node(name: str, home: str, clock: TestClock, *titles: str) -> Nodes:
        return make(database, clock, name, home, *titles, shared=True)

    first = node("a", "home-a", clock, "PACS/DBX1")
    await first.join()
    assert await first.leads("walks")
    with pytest.raises(NodeRefused, match="sous le nom"):
        await node("a", "elsewhere", ahead).join()
    with pytest.raises(NodeRefused, match="AE title"):
        await node("b", "home-b", ahead, "PACS/DBX1").join()
    third = node("c", "home-c", ahead)
    await third.join()
    assert not await third.leads("walks")
    # And one that is behind shows that it lives as the others understand it.
    clock.advance(-7200)
    await first.beat()
    assert not await third.leads("walks")


@pytest.mark.peer("postgres")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_node_beneath_which_the_schema_changed_takes_no_work(
    stores: Stores, clock: TestClock
) -> None:
    """Another node, of a later version, has upgraded the store while this one runs."""

    async def schema(revision: str) -> None:
        change = text("UPDATE alembic_version SET version_num = :revision")
        await stores.database.run(lambda connection: connection.execute(change, {"revision": revision}))

    nodes = make(stores.database, clock, "a")
    await nodes.join()
    presence = Presence(nodes, stores.notices, Clock(), lease=LEASE)
    presence._most = timedelta.max
    await presence.beat()
    assert await presence.leads("walks")
    await schema("9999")
    await presence.beat()
    assert presence.hold()
    assert not await presence.leads("walks")
    (notice,) = await stores.notices.page()
    assert (notice.code, "schéma 9999" in notice.text) == ("NOEUD", True)
    # It still answers to its AE titles: nobody else may.
    (seen,) = await nodes.seen()
    assert (nodes.alive(seen), seen.roles) == (True, ())
    await schema(newest())
    await presence.beat()
    assert presence.hold() == 0.0
    assert not await stores.notices.page()


@pytest_twisted.ensureDeferred
async def test_what_each_node_has_of_its_own_is_told_and_closed_by_itself(stores: Stores) -> None:
    first, second = OwnNotices(stores.notices, "a"), OwnNotices(stores.notices, "b")
    await first.post(key="whitelist", code="LISTEBLANCHE", text="illisible")
    await second.post(key="whitelist", code="LISTEBLANCHE", text="illisible")
    assert await second.resolve("whitelist")
    (left,) = await stores.notices.page()
    assert left.text == "Nœud a : illisible"


@pytest_twisted.ensureDeferred
async def test_an_attempt_begun_late_has_a_whole_lease(database: Database, clock: TestClock) -> None:
    """Of a node that cannot renew any more, nobody makes a second attempt beside the first (DB.SO.22)."""
    one, other = stores_of(database, clock, "one"), stores_of(database, clock, "other")
    await queue(one, "2.25.1")
    (item,) = await take(one)
    clock.advance(QUEUE_LEASE - 1)
    await one.outbox.begin(item.id)
    clock.advance(QUEUE_LEASE - 1)
    assert await take(other) == []
    clock.advance(2)
    (found,) = await take(other)
    assert (found.id, found.outcome_unknown) == (item.id, True)
