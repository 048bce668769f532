"""Replacement and removal against a DMP whose answer is lost, cut, late or not true.

Whatever it says or does not say, what it holds decides: one document of each version, once, and success
only when what it holds under our identifier is ours (interfaces.md 4.9). First publications whose answer is
lost are in `test_feed_dmp`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator

import attrs
import pytest
import pytest_twisted
from lxml import etree

from drimbox.model import MessageAction
from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.dmp_registry import Entry
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.peers import free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy
from drimbox.xml import safe_parse
from tests.integration.cutting_relay import CuttingRelay
from tests.integration.feed_stand import POOL, FeedStand, Studies, after
from tests.integration.waiting import until, wait

PUBLISH, REMOVE = "TD2.1", "TD3.3c"
DUPLICATE = "XDSDuplicateUniqueIdInRegistry"
#: What may happen to the request that changes the record, by name: kind and options.
MISHAPS = {
    "cut before it is carried out": Behaviour(Kind.CUT_BEFORE),
    "cut after": Behaviour(Kind.CUT_AFTER),
    "cut in the answer": Behaviour(Kind.CUT_ANSWER),
    "answer that never comes": Behaviour(Kind.SILENT),
    "answer later than our patience": Behaviour(Kind.NORMAL, seconds=4.5),
    "noise for an answer": Behaviour(Kind.GARBAGE),
    "endless answer": Behaviour(Kind.HUGE),
    "carried out, told to come back": Behaviour(Kind.ERROR_AFTER, code="XDSRepositoryBusy"),
}
pytestmark = pytest.mark.requirement("DB.SO.13", "DB.SO.22", "DB.SO.21", "DB.SO.26")


@attrs.define
class World:
    stand: FeedStand
    relay: CuttingRelay
    pacs: SimulatedPacs
    studies: Studies

    def versions(self, study: GeneratedStudy) -> list[str]:
        """Return the states of the study's KOS in the DMP, oldest first."""
        return [entry.status.rpartition(":")[2] for entry in self.stand.kos(study, None)]

    def archive(self, study: GeneratedStudy) -> list[str]:
        """Return the states of the study's KOS in the archive, oldest first."""
        rows = self.stand.query("SELECT state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid)
        return [str(row[0]) for row in rows]

    async def published(self) -> tuple[GeneratedStudy, int, Entry]:
        """Publish a new study; return it with the number of its report and its entry."""
        study = self.studies.new(self.pacs)
        number = await self.stand.report(study)
        return study, number, await self.stand.published_one(study)

    def more_images(self, study: GeneratedStudy) -> None:
        self.studies.new(self.pacs, instances=3, study_uid=study.study_uid)

    async def withdraw(self, study: GeneratedStudy, number: int) -> None:
        document = {"document_id": f"2.999.7.{number}"}
        await self.stand.report(study, report=document, action=MessageAction.DELETE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("outcomes")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    relay = CuttingRelay(free_port())
    dmp = {
        "base_url": f'"https://localhost:{relay.port}"',
        # Each request on a connection of its own: the relay counts them.
        "keep_alive": "0",
        "timeout": "3",
        "connect_timeout": "2",
        "retry_first": "0.1",
        "retry_max": "0.2",
    }
    stand = FeedStand(folder, [PacsAddress("PACS", pacs.port, POOL)], extra={"dmp": dmp})
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.start())
    relay.target = stand.dmp.port
    wait(stand.start_gateway())
    yield World(stand, relay, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pytest_twisted.blockon(relay.stop())
    pacs.stop()


@pytest.fixture(autouse=True)
def well_behaved(world: World) -> Iterator[None]:
    yield
    world.stand.dmp.script.reset()
    world.relay.cuts.clear()


# -- silences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mishap", MISHAPS.values(), ids=MISHAPS)
@pytest_twisted.ensureDeferred
async def test_a_replacement(world: World, mishap: Behaviour) -> None:
    study, _, _ = await world.published()
    world.more_images(study)
    with world.stand.dmp_misbehaves(attrs.evolve(mishap, transaction=PUBLISH)):
        await world.stand.report(study)
        await until(lambda: len(world.versions(study)) == 2, what="a second version")
        await world.stand.idle()
    assert world.versions(study) == ["Deprecated", "Approved"]
    assert world.archive(study) == ["replaced", "published"]


@pytest.mark.parametrize("mishap", MISHAPS.values(), ids=MISHAPS)
@pytest_twisted.ensureDeferred
async def test_a_removal(world: World, mishap: Behaviour) -> None:
    study, number, _ = await world.published()
    with world.stand.dmp_misbehaves(attrs.evolve(mishap, transaction=REMOVE)):
        await world.withdraw(study, number)
        await until(lambda: world.versions(study) == ["Deleted"], what="no KOS in the DMP")
        await world.stand.idle()
    assert world.archive(study) == ["depublished"]


@pytest.mark.parametrize("operation", ["publication", "replacement", "removal"])
@pytest.mark.parametrize("limit", [200, 6000, 9000], ids=["in the handshake", "at its head", "within"])
@pytest_twisted.ensureDeferred
async def test_a_connection_cut_in_the_request(world: World, operation: str, limit: int) -> None:
    stand, relay = world.stand, world.relay
    if operation == "publication":
        study, number = world.studies.new(world.pacs), 0
    else:
        study, number, _ = await world.published()
    before = relay.cut
    # After the question that comes before.
    relay.cuts = [None, limit]
    if operation == "removal":
        await world.withdraw(study, number)
        await until(lambda: world.versions(study) == ["Deleted"], what="no KOS in the DMP")
        expected = ["depublished"]
    elif operation == "replacement":
        world.more_images(study)
        await stand.report(study)
        await until(lambda: len(world.versions(study)) == 2, what="a second version")
        expected = ["replaced", "published"]
    else:
        await stand.report(study)
        await stand.published_one(study)
        expected = ["published"]
    await stand.idle()
    assert world.archive(study) == expected
    assert world.versions(study) == [_SAYS[state] for state in expected]
    assert relay.cut == before + 1


_SAYS = {"published": "Approved", "replaced": "Deprecated", "depublished": "Deleted"}


# -- answers that say "already" ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [DUPLICATE, "XDSReplaceFailed", "XDSRegistryDeprecatedDocumentError"])
@pytest.mark.parametrize("first", [True, False], ids=["publication", "replacement"])
@pytest_twisted.ensureDeferred
async def test_already_there_is_a_success_when_it_is_ours(world: World, code: str, first: bool) -> None:
    stand = world.stand
    study = world.studies.new(world.pacs)
    if not first:
        study, _, _ = await world.published()
        world.more_images(study)
    with stand.dmp_misbehaves(after(PUBLISH, Kind.ERROR_AFTER, code=code)):
        await stand.report(study)
        await until(lambda: len(world.versions(study)) == (1 if first else 2), what="the new version")
        await stand.idle()
    assert world.versions(study) == (["Approved"] if first else ["Deprecated", "Approved"])
    assert world.archive(study) == (["published"] if first else ["replaced", "published"])
    assert not [text for text in (await stand.notices()).values() if study.study_uid in text]


@pytest.mark.parametrize("code", ["XDSMetadataUpdateError", "UnresolvedReferenceException"])
@pytest_twisted.ensureDeferred
async def test_already_removed_is_a_success_when_it_is_gone(world: World, code: str) -> None:
    study, number, _ = await world.published()
    with world.stand.dmp_misbehaves(after(REMOVE, Kind.ERROR_AFTER, code=code)):
        await world.withdraw(study, number)
        await until(lambda: world.archive(study) == ["depublished"], what="the KOS depublished")
    assert world.versions(study) == ["Deleted"]
    assert not [text for text in (await world.stand.notices()).values() if study.study_uid in text]


@pytest.mark.parametrize("code", ["XDSReplaceFailed", "XDSRegistryDeprecatedDocumentError"])
@pytest_twisted.ensureDeferred
async def test_already_replaced_by_nothing_of_ours_is_e007(world: World, code: str) -> None:
    stand = world.stand
    study, _, first = await world.published()
    world.more_images(study)
    with stand.dmp_misbehaves(after(PUBLISH, Kind.ERROR, code=code)):
        await stand.report(study)
        assert code in await stand.notice_about(study.study_uid, "E007")
        await stand.idle()
    assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id]
    assert world.archive(study) == ["published", "refused"]


@pytest.mark.parametrize("sent", [True, False], ids=["an attempt unanswered", "never sent"])
@pytest.mark.parametrize("field", ["hash", "size"])
@pytest_twisted.ensureDeferred
async def test_something_else_under_our_identifier_is_e007(world: World, field: str, sent: bool) -> None:
    """Somebody else's document has taken our uniqueId before ours arrived."""
    stand = world.stand
    model, _, entry = await world.published()
    study = world.studies.new(world.pacs)
    kind = Kind.CUT_BEFORE if sent else Kind.HTTP
    transaction = PUBLISH if sent else "TD0.2"
    with stand.dmp_misbehaves(after(transaction, kind, status=503), None):
        await stand.report(study)
        put_off = "SELECT 1 FROM outbox WHERE study_uid = ? AND last_error IS NOT NULL"
        await until(lambda: stand.query(put_off, study.study_uid), what="a publication put off")
        ((uid,),) = stand.query("SELECT sop_instance_uid FROM kos WHERE study_uid = ?", study.study_uid)
        plant(stand, entry, uid, field)
    text = await stand.notice_about(study.study_uid, "E007")
    assert "autre document" in text
    await stand.idle()
    assert world.archive(study) == ["refused"]
    assert stand.kos(study, None) == []
    # What it is about elsewhere is as it was.
    assert world.versions(model)[:1] == ["Approved"]


@pytest.mark.parametrize("field", ["hash", "size"])
@pytest_twisted.ensureDeferred
async def test_something_else_under_our_identifier_is_not_removed(world: World, field: str) -> None:
    stand = world.stand
    study, number, entry = await world.published()
    alter(entry, field)
    removals = len(stand.exchanges(REMOVE))
    await world.withdraw(study, number)
    assert "autre document" in await stand.notice_about(study.study_uid, "E007")
    await stand.idle()
    assert world.versions(study) == ["Approved"]
    assert len(stand.exchanges(REMOVE)) == removals


def plant(stand: FeedStand, like: Entry, unique_id: str, field: str) -> None:
    """Put a document of this identifier into the DMP: that which it is about to get, but for one field."""
    ((data,),) = stand.query("SELECT data FROM kos WHERE sop_instance_uid = ?", unique_id)
    right = {"hash": hashlib.sha1(data, usedforsecurity=False).hexdigest(), "size": str(len(data))}
    text = etree.tostring(like.metadata.element, encoding="unicode", with_tail=False)
    text = text.replace(like.unique_id, unique_id)
    text = text.replace(f">{like.hash}<", f">{right['hash']}<").replace(
        f">{like.size}<", f">{right['size']}<"
    )
    entry = attrs.evolve(
        like,
        entry_uuid=f"urn:uuid:{uuid.uuid4()}",
        unique_id=unique_id,
        metadata=attrs.evolve(like.metadata, element=safe_parse(text.encode())),
    )
    registry = stand.dmp.service.registry
    registry.entries[entry.entry_uuid] = entry
    registry._by_unique[unique_id] = entry.entry_uuid
    alter(entry, field)


def alter(entry: Entry, field: str) -> None:
    """Let the DMP hold another document than it was given, to go by its hash or its size."""
    (value,) = entry.metadata.element.xpath(f"*[@name='{field}']/*/*")
    value.text = "0" * 40 if field == "hash" else "1"
