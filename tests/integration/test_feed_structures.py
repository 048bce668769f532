"""Each structure speaks to the DMP with its own certificates, and for what it published (DB.SO.97)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from drimbox.model import MessageAction
from drimbox.sim.studies import GeneratedStudy
from tests.integration.feed_stand import (
    SECOND_STRUCTURE,
    OnePacs,
    SimOrder,
    kos_dataset,
    kos_instances,
    one_pacs,
)
from tests.integration.waiting import until

FIRST, SECOND = "1999999999", SECOND_STRUCTURE


class World(OnePacs):
    """The same, with a look at what the DMP was told by whom."""

    def said(self, since: int) -> list[tuple[str, str]]:
        """Return transaction and structure of every exchange with the DMP, in order."""
        return [(each.transaction, _structure(each.client)) for each in self._exchanges()[since:]]

    def count(self) -> int:
        return len(self._exchanges())

    def _exchanges(self) -> list[Any]:
        return list(self.stand.dmp.service.exchanges)


def _structure(client: str) -> str:
    return next(name for name in (FIRST, SECOND) if f"OU={name}" in client)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # With the forms of the DMP that the other stands do not have.
    forms = {"xades_version": '"1.3.2"', "digest": '"sha1"', "author": '"professional"', "times": '"local"'}
    with one_pacs(tmp_path_factory.mktemp("structures"), extra={"dmp": forms}) as found:
        yield World(found.stand, found.pacs, found.studies)


PUBLICATION = ("TD0.2", "TD2.1", "TD3.1")


@pytest.mark.requirement("DB.SO.21", "DB.CS.159")
@pytest.mark.parametrize(
    ("signatory", "sender", "speaks"),
    [
        pytest.param(FIRST, SECOND, FIRST, id="the signatory's wins over PRT-8"),
        pytest.param(SECOND, FIRST, SECOND, id="the signatory's wins over PRT-8, the other way round"),
        pytest.param("", SECOND, SECOND, id="PRT-8 where the report names none"),
        pytest.param(SECOND[1:], "", SECOND, id="a bare FINESS"),
        pytest.param("", SECOND[1:], SECOND, id="a bare FINESS in PRT-8"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_certificate_is_that_of_the_signatory_else_of_the_sender(
    world: World, signatory: str, sender: str, speaks: str
) -> None:
    study = world.studies.new(world.pacs)
    since = world.count()
    await world.stand.report(study, report={"structure_id": signatory}, prt_structure=sender)
    entry = await world.stand.published_one(study)
    # The simulated DMP holds TLS client, VIHF and signature against each other.
    assert entry.structure == speaks
    assert world.said(since) == [(each, speaks) for each in PUBLICATION]
    assert str(kos_dataset(entry).InstitutionName).endswith("^" + speaks)
    (signature,) = [
        each.document
        for each in world.stand.dmp.service.registry.entries.values()
        if each.mime_type == "text/xml" and each.submission_uid == entry.submission_uid
    ]
    assert b'"http://uri.etsi.org/01903/v1.3.2#"' in signature
    assert b"rsa-sha1" in signature


async def published_by(world: World, structure: str) -> tuple[GeneratedStudy, int, Any]:
    study = world.studies.new(world.pacs)
    number = await world.stand.report(study, report={"structure_id": structure})
    return study, number, await world.stand.published_one(study)


@pytest.mark.requirement("DB.SO.97", "DB.SO.13")
@pytest_twisted.ensureDeferred
async def test_an_update_is_searched_first_and_made_by_who_published(world: World) -> None:
    study, number, first = await published_by(world, SECOND)
    since = world.count()
    replacement = {
        "structure_id": FIRST,
        "replaces": f"2.999.7.{number}",
        "orders": (SimOrder("ACC-2ND", order="77"),),
    }
    await world.stand.report(study, report=replacement, action=MessageAction.REPLACE)
    await until(lambda: first.unique_id not in [each.unique_id for each in world.stand.kos(study)])
    second = await world.stand.published_one(study)
    assert second.structure == SECOND
    assert kos_instances(second) == kos_instances(first)
    # GetDocuments before, for the entryUUID; after, for that of the new one. No TD0.2: the record exists.
    assert world.said(since) == [("TD3.1", SECOND), ("TD2.1", SECOND), ("TD3.1", SECOND)]
    archived = world.stand.query(
        "SELECT structure_id, state FROM kos WHERE study_uid = ? ORDER BY id", study.study_uid
    )
    assert archived == [(SECOND, "replaced"), (SECOND, "published")]


@pytest.mark.requirement("DB.SO.97", "DB.SO.26")
@pytest_twisted.ensureDeferred
async def test_a_withdrawal_is_searched_first_and_made_by_who_published(world: World) -> None:
    study, number, entry = await published_by(world, SECOND)
    since = world.count()
    document = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}", "structure_id": FIRST}
    await world.stand.report(study, report=document, action=MessageAction.DELETE)
    await until(lambda: not world.stand.kos(study), what="no KOS in the DMP")
    await world.stand.idle()
    assert world.said(since) == [("TD3.1", SECOND), ("TD3.3c", SECOND)]
    held = world.stand.dmp.service.registry.entries[entry.entry_uuid]
    assert held.status.endswith(":Deleted")


@pytest.mark.requirement("DB.SO.97")
@pytest_twisted.ensureDeferred
async def test_what_is_published_anew_after_its_withdrawal_is_the_new_signatorys(world: World) -> None:
    study, number, _ = await published_by(world, SECOND)
    document = {"document_id": f"2.999.7.{number}", "set_id": f"2.999.7.{number}"}
    await world.stand.report(study, report=document, action=MessageAction.DELETE)
    await until(lambda: not world.stand.kos(study), what="no KOS in the DMP")
    await world.stand.idle()
    await world.stand.report(study, report={"structure_id": FIRST}, sent_at="20260113")
    assert (await world.stand.published_one(study)).structure == FIRST
