"""What the gateway really sends, held against the validators that integrators run: nothing to say.

Two implementations of the same tables, one that writes and one that judges, meet here on the wire: report
in by MLLP, images listed by C-FIND, the DMP's requests as they came out of TLS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.commands.signatures import xmlsec1_verifies
from drimbox.conformance.cross import validate_cross
from drimbox.conformance.kos_rules import validate_kos
from drimbox.conformance.report import Report
from drimbox.conformance.xds.validate import validate_xds
from drimbox.model import MessageAction
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.ris import SimMessage, build_message
from drimbox.sim.ris_report import SimAct, SimReport
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy, SimPatient, StudyFacts
from tests.conformance.xds_inputs import request as http_request
from tests.integration.feed_stand import POOL, FeedStand, SimOrder, Studies
from tests.integration.waiting import wait

#: Both sides give the same patient, and the same day.
DAY = "20260110"


@attrs.define
class World:
    stand: FeedStand
    pacs: SimulatedPacs
    studies: Studies

    def new(self, **options: Any) -> GeneratedStudy:
        """Load a study of the report's patient into the PACS."""
        report = SimReport()
        patient = SimPatient(
            id=report.ipp, name="EXEMPLE^CLAIRE", birth_date=report.birth_date, ins=report.ins
        )
        facts = StudyFacts(date=DAY, description="TDM thorax d'été")
        return self.studies.new(self.pacs, patient=patient, facts=facts, **options)

    def captured(self, transaction: str) -> list[bytes]:
        """Return the requests of one kind as a capture would hold them."""
        service = self.stand.dmp.service
        return [
            http_request(each.content_type, each.body)
            for each in self.stand.requests
            if service.identify(each) == transaction
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("conformance")
    pacs = SimulatedPacs("PACS-A")
    pacs.start()
    stand = FeedStand(folder, [PacsAddress("PACS-A", pacs.port, POOL)])
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


def told(report: Report) -> list[str]:
    """Return what a validator has to say, its words included."""
    return [f"{each.rule}: {each.text}" for each in report.findings]


@pytest.mark.peer("xmlsec1")
@pytest.mark.requirement("DB.CS.159", "DB.SO.18", "DB.SO.105", "DB.SO.12")
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest_twisted.ensureDeferred
async def test_a_publication_a_replacement_and_a_withdrawal(world: World, kind: str) -> None:
    stand = world.stand
    del stand.requests[:]
    study, other = world.new(instances=4, series=2), world.new()
    orders = (SimOrder("ACC-1", order="1"), SimOrder("ACC-2", order="2"))
    report = SimReport(
        acts=tuple(SimAct(each.study_uid, ("CT",), description="Scanner") for each in (study, other)),
        orders=orders,
    )
    content = {"acts": report.acts, "orders": orders}
    flags = {"MASQUE_PS": "Y"}
    number = await stand.report(study, other, report=content, kind=kind, flags=flags)
    entries = [await stand.published_one(each) for each in (study, other)]
    message = build_message(report, SimMessage(kind=kind, flags=flags))

    assert told(validate_cross(message, [each.document for each in entries[:1]], study.folder)) == []
    manifests = [each.document for each in entries]
    assert told(validate_cross(message, manifests)) == []
    for capture in world.captured("TD2.1"):
        assert told(validate_cross(message, manifests, metadata=capture)) == []
    for entry in entries:
        assert told(validate_kos(entry.document)) == []

    more = {**content, "orders": (*orders, SimOrder("ACC-3", order="3")), "replaces": f"2.999.7.{number}"}
    number = await stand.report(study, other, report=more, kind=kind, action=MessageAction.REPLACE)
    await stand.idle()
    await stand.report(
        study,
        other,
        report=content | {"document_id": f"2.999.7.{number}"},
        kind=kind,
        action=MessageAction.DELETE,
    )
    await stand.idle()

    publications = world.captured("TD2.1")
    assert len(publications) == 4
    assert sum(b"RPLC" in each for each in publications) == 2
    removals = world.captured("TD3.3c")
    assert len(removals) == 2
    for capture in publications + removals:
        assert told(validate_xds(capture, judge=xmlsec1_verifies)) == []


@pytest.mark.requirement("DB.SO.105")
@pytest_twisted.ensureDeferred
async def test_what_is_not_of_one_another_is_seen(world: World) -> None:
    del world.stand.requests[:]
    studies = [world.new(), world.new()]
    await world.stand.report(*studies)
    first, second = [(await world.stand.published_one(each)).document for each in studies]
    found = [
        {each.rule for each in validate_xds(capture, kos=first).findings}
        for capture in world.captured("TD2.1")
    ]
    assert sorted(found, key=len) == [set(), {"submission.given_kos"}]
    stranger = build_message(SimReport(ins="279035121518989"))
    rules = {each.rule for each in validate_cross(stranger, [first], studies[1].folder).findings}
    assert {"cross.study.other", "cross.patient.ins", "images.missing", "images.foreign"} <= rules
    assert second != first
