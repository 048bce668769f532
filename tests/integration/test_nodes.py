"""Several nodes on one PostgreSQL: work shared, taken over, never done twice (DB.SO.22, DB.SO.35)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.postgres import Cluster
from drimbox.sim.stand import GatewayFailed
from drimbox.store.revision import newest
from tests.integration.feed_stand import after
from tests.integration.nodes_stand import LEASE, Node, Nodes, Ris
from tests.integration.operator import drimbox
from tests.integration.waiting import pause, until, wait

pytestmark = [pytest.mark.peer("postgres"), pytest.mark.requirement("DB.SO.22", "DB.SO.35")]

#: Long enough for a lease to end and for the work to be done on a slow machine.
TAKEOVER = LEASE + 60.0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgresql: Cluster) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("nodes"), postgresql)
    try:
        wait(made.up())
        yield made
    finally:
        wait(made.down())


def submissions(world: Node) -> int:
    """Count the TD2.1 that have reached the DMP."""
    return sum(world.dmp.service.identify(request) == "TD2.1" for request in world.requests)


async def holder(nodes: Nodes, sent: str) -> Node:
    """Return the node that is sending the publication of a study."""

    def begun() -> str:
        rows = nodes.nodes[0].query(
            "SELECT holder FROM outbox WHERE study_uid = %s AND outcome_unknown AND state = 'waiting'", sent
        )
        return str(rows[0][0]) if rows and rows[0][0] else ""

    name = await until(begun, what="an attempt begun")
    return next(node for node in nodes.nodes if node.name == name)


@pytest_twisted.ensureDeferred
async def test_reports_to_both_are_published_once_and_in_order(nodes: Nodes) -> None:
    first, second = nodes.nodes
    studies = [nodes.studies.new(nodes.pacs) for _ in range(8)]
    older = [first.message(study, number=100 + n) for n, study in enumerate(studies)]
    await gatherResults(
        [
            Deferred.fromCoroutine(Ris(nodes.nodes, older[:4]).run()),
            Deferred.fromCoroutine(Ris(nodes.nodes, older[4:], first=1).run()),
        ]
    )
    # What comes next about the same studies goes to the other node, at once.
    for number, study in enumerate(studies):
        nodes.studies.new(nodes.pacs, study_uid=study.study_uid, seed=900 + number)
    newer = [first.message(study, number=200 + n) for n, study in enumerate(studies)]
    ris = Ris([second, first], newer)
    await ris.run()
    assert ris.acknowledged == 8
    await first.idle(seconds=90.0)
    nodes.check(studies)
    for study in studies:
        # Each publication replaced the one before: none was overtaken.
        entries = first.kos(study, None)
        assert [entry.status.rpartition(":")[2] for entry in entries][-1] == "Approved"
        rows = first.query(
            "SELECT sop_instance_uid FROM kos WHERE study_uid = %s ORDER BY id", study.study_uid
        )
        assert [entry.unique_id for entry in entries] == [row[0] for row in rows]
    # Both nodes did some of it.
    logs = [node.log.read_text("utf-8", "replace") for node in nodes.nodes]
    assert all(log.count("published") for log in logs)


@pytest_twisted.ensureDeferred
async def test_any_node_delivers_what_another_published(nodes: Nodes) -> None:
    study = nodes.studies.new(nodes.pacs, instances=3)
    await nodes.nodes[0].report(study)
    entry = await nodes.nodes[0].published_one(study, seconds=60.0)
    for node in nodes.nodes:
        result = await node.fetch(study.study_uid, study.series[0].series_uid, entry.unique_id)
        assert (result.status, len(result.parts)) == (200, 3), result


@pytest_twisted.ensureDeferred
async def test_each_node_tells_of_all(nodes: Nodes) -> None:
    """Through a node that runs; what the doctor says of each link is tried in tests/doctor."""
    done = await drimbox(nodes.nodes[1].config, "doctor", "--json")
    answer = json.loads(done.stdout)
    assert answer["mode"] == "process", done.stderr
    said = {each["subject"]: each for each in answer["findings"] if each["check"] == "node"}
    assert {name: each["state"] for name, each in said.items()} == {
        f"nœud {node.name}": "ok" for node in nodes.nodes
    }
    assert all(f"schéma {newest()}" in each["text"] for each in said.values())
    # The server of the tests forgets what it confirmed, to be quick.
    (unsafe,) = [each for each in answer["findings"] if "fsync = off" in each["text"]]
    assert (unsafe["check"], unsafe["state"]) == ("store", "error")


@pytest.mark.parametrize("lost", [False, True], ids=["the DMP has it", "the DMP never had it"])
@pytest_twisted.ensureDeferred
async def test_killed_in_the_middle_of_a_publication_the_other_ends_it(nodes: Nodes, lost: bool) -> None:
    world = nodes.nodes[0]
    study = nodes.studies.new(nodes.pacs)
    # What was received is carried out and never answered, or thrown away.
    behaviour = after("TD2.1", Kind.CUT_BEFORE, seconds=3.0) if lost else after("TD2.1", Kind.SILENT)
    before = submissions(world)
    with world.dmp_misbehaves(behaviour, None):
        await world.report(study)
        victim = await holder(nodes, study.study_uid)
        await until(lambda: submissions(world) > before, what="TD2.1 at the DMP")
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: not victim.running, what="its death")
        assert submissions(world) == before + 1
        assert bool(world.kos(study)) is not lost
    await victim.kill_gateway()
    survivor = next(node for node in nodes.nodes if node is not victim)
    await survivor.idle(seconds=TAKEOVER)
    nodes.check([study])
    # The survivor asked first, and sent only what the DMP did not have.
    assert submissions(world) == before + (2 if lost else 1)
    assert victim.name not in await survivor.roles()
    await victim.start_gateway()


def image_requests(node: Node, study: str) -> list[tuple[int, str]]:
    """Outcome and description of the audit records of the requests for a study."""
    rows = node.query(
        "SELECT payload FROM audit WHERE study_uid = %s AND payload LIKE '%%RAD-107%%' ORDER BY id", study
    )
    events = [json.loads(row[0])["event"] for row in rows]
    return [(each["outcome"], each["outcome_description"]) for each in events]


@pytest.mark.requirement("DB.SO.46", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_killed_in_the_middle_of_a_delivery_the_other_records_it_once(nodes: Nodes) -> None:
    victim, survivor = nodes.nodes
    study = nodes.studies.new(nodes.pacs, instances=8)
    await victim.report(study)
    entry = await victim.published_one(study, seconds=60.0)
    # So slow that the survivor looks for what the dead have left while the victim lives.
    nodes.pacs.behaviour = PacsBehaviour(pause=2.0, final="never")
    try:
        parts: list[object] = []
        asked = Deferred.fromCoroutine(
            victim.fetch(
                study.study_uid,
                study.series[0].series_uid,
                entry.unique_id,
                timeout=120.0,
                on_part=lambda number, part: parts.append(part),
            )
        )
        await until(lambda: len(parts) >= 4, what="images at the client")
        assert victim.query("SELECT node FROM open_record") == [(victim.name,)]
        assert image_requests(survivor, study.study_uid) == []
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: not victim.running, what="its death")
    finally:
        nodes.pacs.behaviour = PacsBehaviour()
    await victim.kill_gateway()
    result: Any = await asked
    assert (result.status, result.complete) == (200, False)
    await until(
        lambda: image_requests(survivor, study.study_uid), seconds=TAKEOVER, what="the record of its end"
    )
    assert victim.name not in await survivor.roles()
    # The victim finds it done; nobody does it twice.
    await victim.start_gateway()
    ((outcome, text),) = image_requests(survivor, study.study_uid)
    assert outcome == 8
    assert "étendue inconnue : commencée 20" in text
    assert f"par le nœud {victim.name}, constatée 20" in text
    assert survivor.query("SELECT count(*) FROM open_record") == [(0,)]
    verified = await drimbox(survivor.config, "audit", "verify")
    assert verified.returncode == 0, verified.stderr


@pytest_twisted.ensureDeferred
async def test_killed_in_a_burst_the_other_goes_on(nodes: Nodes) -> None:
    first, second = nodes.nodes
    studies = [nodes.studies.new(nodes.pacs, instances=1) for _ in range(16)]
    messages = [first.message(study, number=300 + n) for n, study in enumerate(studies)]
    with first.dmp_misbehaves(Behaviour(Kind.NORMAL, seconds=0.3), None):
        senders = [Ris(nodes.nodes, messages[:8]), Ris(nodes.nodes, messages[8:], first=1)]
        sending = [Deferred.fromCoroutine(ris.run()) for ris in senders]
        await until(lambda: first.kos(studies[0]) or first.kos(studies[8]), what="the first publication")
        os.kill(second.pid, signal.SIGKILL)
        await gatherResults(sending)
        assert [ris.acknowledged for ris in senders] == [8, 8]
        await first.idle(seconds=TAKEOVER)
    nodes.check(studies)
    await second.kill_gateway()
    await second.start_gateway()


@pytest_twisted.ensureDeferred
async def test_what_one_does_for_all_goes_to_the_other(nodes: Nodes) -> None:
    async def leader() -> Node | None:
        roles = await nodes.nodes[0].roles()
        leading = [node for node in nodes.nodes if "walks" in roles.get(node.name, ())]
        return leading[0] if leading else None

    first: Node = await until(leader, seconds=TAKEOVER, what="a node that walks")
    other = next(node for node in nodes.nodes if node is not first)
    # A walk that is begun through the other node is worked on all the same.
    begun = await drimbox(other.config, "resync", "start", "--site", "site1", "--dry-run")
    assert begun.returncode == 0, begun.stderr

    def done() -> bool:
        return first.query("SELECT count(*) FROM walk WHERE state = 'done'") == [(1,)]

    await until(done, seconds=60.0, what="the end of the walk")
    # Stopped in order, the node leaves its roles at once.
    await first.stop_gateway()

    async def taken() -> bool:
        return "walks" in (await other.roles()).get(other.name, set())

    await until(taken, seconds=60.0, what="the other node to take over")
    assert first.name not in await other.roles()
    await first.start_gateway()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drimbox": {"node": '"noeud1"'}}, "« noeud1 »"),
        ({}, "PACS-A/DBX1A est déjà celui du nœud « noeud1 »"),
    ],
    ids=["name", "AE title"],
)
@pytest_twisted.ensureDeferred
async def test_a_node_that_would_meddle_does_not_start(
    nodes: Nodes, changes: dict[str, dict[str, str]], words: str
) -> None:
    number = 7 if changes else 8
    intruder = nodes.another(number, **changes)
    await intruder.start()
    if not changes:
        text = intruder.config.read_text("utf-8").replace("DBX8A", "DBX1A")
        intruder.config.write_text(text, "utf-8")
    with pytest.raises(GatewayFailed):
        await intruder.start_gateway()
    log = intruder.log.read_text("utf-8")
    assert words in log or words.encode("ascii", "backslashreplace").decode() in log, log[-2000:]
    await nodes.nodes[0].status()


@pytest_twisted.ensureDeferred
async def test_a_database_that_restarts_loses_nothing(tmp_path: Path) -> None:
    cluster = Cluster(durable=True)
    cluster.start()
    nodes = Nodes(tmp_path, cluster)
    try:
        await nodes.up()
        pids = [node.pid for node in nodes.nodes]
        first = nodes.nodes[0]
        studies = [nodes.studies.new(nodes.pacs, instances=1) for _ in range(16)]
        messages = [first.message(study, number=400 + n) for n, study in enumerate(studies)]
        with first.dmp_misbehaves(Behaviour(Kind.NORMAL, seconds=0.2), None):
            senders = [Ris(nodes.nodes, messages[:8]), Ris(nodes.nodes, messages[8:], first=1)]
            sending = [Deferred.fromCoroutine(ris.run()) for ris in senders]
            await until(lambda: len(first.published()) >= 2, seconds=60.0, what="publications")
            for mode in ("immediate", "fast"):
                cluster.stop(mode)
                await pause(1.0)
                cluster.start()
                await pause(1.0)
            await gatherResults(sending)
            assert [ris.acknowledged for ris in senders] == [8, 8]
        # Rows that could not be put off while the database was away wait a little longer each time.
        await until(lambda: _idle(first), seconds=180.0, what="empty queues")
        nodes.check(studies)
        # By themselves: neither was started again.
        assert [node.pid for node in nodes.nodes] == pids
        assert all(node.running for node in nodes.nodes)
    finally:
        await nodes.down()
        cluster.remove()


async def _idle(node: Node) -> bool:
    try:
        return await node.waiting() == 0
    except (KeyError, ValueError):
        # The database is away: there is no answer to be read.
        return False
