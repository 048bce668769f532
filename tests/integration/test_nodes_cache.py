"""Two nodes, each with its cache: what leaves the record leaves the disk of both (DB.SO.35, DB.SO.40)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.postgres import Cluster
from drimbox.sim.studies import GeneratedStudy
from tests.integration.nodes_stand import Node, Nodes
from tests.integration.waiting import until, wait

pytestmark = [pytest.mark.peer("postgres"), pytest.mark.requirement("DB.SO.35", "DB.SO.40")]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgresql: Cluster) -> Iterator[Nodes]:
    cache = {"cache": {"enabled": "true", "min_free": '"0B"'}}
    made = Nodes(tmp_path_factory.mktemp("caches"), postgresql, extra=cache)
    try:
        wait(made.up())
        yield made
    finally:
        wait(made.down())


def kept(node: Node) -> int:
    """Count the series on the disk of a node."""
    root = node.folder / "state" / "cache" / "entries"
    return sum(path.is_file() for path in root.rglob("*"))


async def published(nodes: Nodes) -> tuple[GeneratedStudy, int, str]:
    """Publish a study; return it with the number of its report and its KOS."""
    study = nodes.studies.new(nodes.pacs, instances=2)
    number = await nodes.nodes[0].report(study)
    entry = await nodes.nodes[0].published_one(study, seconds=60.0)
    return study, number, entry.unique_id


async def into_cache(node: Node, study: GeneratedStudy, kos: str) -> None:
    """Ask a node for a study, until its cache has it."""
    before = kept(node)
    result = await node.fetch(study.study_uid, study.series[0].series_uid, kos)
    assert (result.status, len(result.parts)) == (200, 2), result
    await until(lambda: kept(node) > before, seconds=60.0, what=f"a series in the cache of {node.name}")


async def withdraw(nodes: Nodes, study: GeneratedStudy, number: int) -> None:
    document = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}
    await nodes.nodes[0].report(study, report=document, action=MessageAction.DELETE)
    await until(lambda: not nodes.nodes[0].kos(study), seconds=60.0, what="no KOS in the DMP")


async def empty(node: Node) -> None:
    await until(lambda: not kept(node), seconds=60.0, what=f"an empty cache of {node.name}")


@pytest_twisted.ensureDeferred
async def test_a_study_withdrawn_leaves_the_disk_of_every_node(nodes: Nodes) -> None:
    study, number, kos = await published(nodes)
    for node in nodes.nodes:
        await into_cache(node, study, kos)
    moves = len(nodes.pacs.seen("move"))
    for node in nodes.nodes:
        result = await node.fetch(study.study_uid, study.series[0].series_uid, kos)
        assert (result.status, len(result.parts)) == (200, 2), result
    assert len(nodes.pacs.seen("move")) == moves
    await withdraw(nodes, study, number)
    for node in nodes.nodes:
        await empty(node)


@pytest_twisted.ensureDeferred
async def test_a_node_that_was_stopped_empties_its_disk_when_it_is_back(nodes: Nodes) -> None:
    second = nodes.nodes[1]
    study, number, kos = await published(nodes)
    await into_cache(second, study, kos)
    await second.stop_gateway()
    await withdraw(nodes, study, number)
    assert kept(second)
    await second.start_gateway()
    await empty(second)
