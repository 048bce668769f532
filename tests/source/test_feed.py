"""Reading a stored message: its jobs, its audit, its notices (DB.SO.11, 12, 43, 45)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock as ReactorClock

from drimbox.dicom.part10 import file_preamble
from drimbox.dicom.syntaxes import EXPLICIT_LE
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.model import MessageAction
from drimbox.ports import AuditEvent
from drimbox.sim.ris import SimAct, SimReport
from drimbox.source.feed import Doors, Feed
from drimbox.source.rejections import RejectionNotes
from tests.histories.messages import encoded, key_object
from tests.source.fakes import (
    Archive,
    Clock,
    Dmp,
    Jobs,
    Messages,
    Notices,
    Reports,
    Titles,
    Trail,
    at_once,
    config,
    hl7,
    omi,
    run,
    site,
    stored,
    structure,
)


class Stage:
    def __init__(self, settings: Any = None) -> None:
        self.messages, self.jobs = Messages(), Jobs()
        self.trail, self.notices = Trail(), Notices()
        self.forgotten: list[str] = []
        self.titles = Titles()
        doors = Doors(
            messages=self.messages,
            jobs=self.jobs,
            reports=Reports(),
            archive=Archive(),
            archives={},
            record=Dmp(),
            audit=self.trail,
            notices=self.notices,
            clock=Clock(),
            in_thread=at_once,
            key_notes=None,
            rejections=RejectionNotes(ReactorClock(), at_once, self.titles),
            forget=self.forget,
        )
        self.feed = Feed(settings or config(), doors)

    async def forget(self, study_uid: str) -> None:
        self.forgotten.append(study_uid)

    def read(self, raw: bytes | None = None, **message: Any) -> tuple[Any, ...]:
        run(self.feed.read(stored(raw, **message)))
        (ended,) = self.messages.ended
        return ended


@pytest.mark.requirement("DB.SO.25")
def test_what_a_key_object_is_is_remembered_before_its_study_is_compared() -> None:
    stage = Stage()
    note = key_object("2.25.1", "113037", "2.25.9", "2.25.8", {"2.25.1.1.1": "2.25.1.1"})
    data = file_preamble(KOS_SOP_CLASS, "2.25.9", EXPLICIT_LE) + encoded(note)
    assert stage.read(data) == (1, "changement", "2.25.1")
    assert stage.titles.titles == {"2.25.9": "113037"}


@pytest.mark.requirement("DB.SO.12", "DB.SO.43")
def test_one_job_per_study_each_once() -> None:
    stage = Stage()
    acts = tuple(SimAct(study_uid=uid) for uid in ("2.25.3", "2.25.1", "2.25.3", "2.25.2"))
    assert stage.read(hl7(SimReport(acts=acts))) == (1, "feed", "2.25.3", "2.25.1", "2.25.2")
    assert stage.notices.posted == []
    (event,) = stage.trail.events
    assert (event.event_id, event.outcome, event.patient_ins) == ("110107", 0, "284070100499094")
    ris, us = event.participants
    assert (ris.user_id, ris.network_id) == ("ACC-7788^2.999.5.3", "192.0.2.7")
    assert (us.user_id, us.network_id) == ("1999999999/interne", "db1.349.mesimagesmedicales.fr")
    assert us.alternative_user_id == "899700000001"


@pytest.mark.requirement("DB.SO.43")
@pytest.mark.parametrize(("kind", "code"), [("ORU", "RAD-128"), ("MDM", "CARD-7")])
def test_the_reception_says_how_the_report_came(kind: str, code: str) -> None:
    stage = Stage()
    stage.read(kind=kind)
    assert stage.trail.shown() == [(code, "")]


@pytest.mark.requirement("DB.SO.11", "DB.SO.43")
@pytest.mark.parametrize("message", [{"flags": {"DESTDMP": "N"}}, {"reliability": "PROV"}])
def test_what_does_not_feed_is_audited_and_nobody_is_bothered(message: dict[str, Any]) -> None:
    stage = Stage()
    ended = stage.read(hl7(SimReport(orders=()), **message))
    assert ended[0] == 1
    assert len(ended) == 2
    assert stage.trail.shown() == [("RAD-128", "")]
    assert stage.notices.posted == []


@pytest.mark.requirement("DB.SO.43", "DB.SO.45", "DB.SO.21")
def test_an_incomplete_report_is_audited_as_received_and_as_not_interpretable() -> None:
    stage = Stage()
    acts = (SimAct(study_uid="2.25.1", regions=()), SimAct(study_uid="2.25.2"))
    number, code, detail = stage.read(hl7(SimReport(acts=acts)))
    assert (number, code) == (1, "E005")
    assert "région anatomique (examen n° 1)" in detail
    assert stage.trail.shown() == [("RAD-128", ""), ("ITI-41", "E005"), ("ITI-41", "E005")]
    assert [event.study_uid for event in stage.trail.events[1:]] == ["2.25.1", "2.25.2"]
    # One report that is of no use, two KOS that cannot be made.
    counted = [(each.stat, each.amount) for each in stage.messages.counts if each]
    assert counted == [("STF23", 1), ("STF04", 2)]
    assert stage.notices.open["message-1"][0] == "E005"


@pytest.mark.requirement("DB.SO.45")
def test_a_report_without_study_is_audited_all_the_same() -> None:
    stage = Stage()
    stage.read(hl7(SimReport(acts=(SimAct(study_uid="not a uid"),))))
    assert stage.trail.shown() == [("RAD-128", ""), ("ITI-41", "E005")]
    assert stage.trail.events[1].study_uid == "INCONNU"


@pytest.mark.requirement("DB.SO.43", "DB.SO.45")
def test_the_audit_of_an_unreadable_report_keeps_the_sender_it_knows() -> None:
    stage = Stage()
    assert stage.read(document_field="^TEXT^XML^Base64^PGE+")[1] == "E005"
    event, failed = stage.trail.events
    assert event.outcome == 8
    assert event.outcome_description.startswith("E005")
    assert event.participants[0].alternative_user_id == "RIS-Y"
    # What the message itself says of the patient is kept, so that a search finds both.
    assert {each.patient_ins for each in stage.trail.events} == {"284070100499094"}
    assert stage.trail.shown()[1] == ("ITI-41", "E005")
    assert [one.id for one in failed.objects] == ["284070100499094", "INCONNU"]
    assert len(failed.participants) == 1


@pytest.mark.requirement("DB.SO.45", "DB.SO.21")
def test_a_report_of_another_patient_ends_with_e001_instead_of_coming_back_for_ever() -> None:
    stage = Stage()
    assert stage.read(hl7().replace(b"|284070100499094^^^", b"|184070100499094^^^"))[1] == "E001"
    assert stage.notices.open["message-1"][0] == "E001"
    assert stage.trail.shown()[-1] == ("ITI-41", "E001")


@pytest.mark.threat("patient data in logs and notices")
def test_notices_carry_nothing_of_the_patient() -> None:
    stage = Stage()
    stage.read(hl7(SimReport(orders=(), structure_id=""), prt_structure=""))
    (_, text) = stage.notices.open["message-1"]
    for secret in ("284070100499094", "P000123", "EXEMPLE", "CLAIRE"):
        assert secret not in text


def test_the_name_of_the_gateway_is_that_of_the_site_of_the_structure() -> None:
    settings = config(
        site(1, structures=("1888888888",)),
        site(2, structures=("1999999999",)),
        structures=[structure("1888888888"), structure()],
    )
    stage = Stage(settings)
    stage.read()
    assert _us(stage.trail.events[0]) == "db2.349.mesimagesmedicales.fr"
    # A bare FINESS is the same structure.
    bare = Stage(settings)
    bare.read(hl7(SimReport(structure_id="999999999"), prt_structure=""))
    assert _us(bare.trail.events[0]) == "db2.349.mesimagesmedicales.fr"
    unknown = Stage(settings)
    unknown.read(hl7(SimReport(structure_id="5"), prt_structure=""))
    assert _us(unknown.trail.events[0]) == "db1.349.mesimagesmedicales.fr"


def _us(event: AuditEvent) -> str:
    return event.participants[1].network_id


@pytest.mark.requirement("DB.SO.43")
def test_a_message_is_not_ended_before_its_audit_is_kept() -> None:
    stage = Stage()

    class Full(Exception):
        pass

    async def record(event: AuditEvent) -> None:
        raise Full

    stage.feed = Feed(config(), attrs.evolve(stage.feed._doors, audit=_Trail(record)))
    with pytest.raises(Full):
        run(stage.feed.read(stored()))
    assert stage.messages.ended == []


@attrs.frozen
class _Trail:
    record: Any


@pytest.mark.requirement("DB.SO.97", "DB.SO.43")
def test_a_withdrawal_says_which_report_and_when() -> None:
    stage = Stage()
    report = SimReport(acts=(SimAct(study_uid="2.25.3"),), document_id="2.999.7.9", replaces="2.999.7.8")
    raw = hl7(report, action=MessageAction.DELETE, sent_at="20260112093000+0100")
    assert stage.read(raw) == (1, "depublication", "2.25.3")
    said = stage.messages.said
    assert said is not None
    assert (said.document_id, said.replaces, said.action) == ("2.999.7.9", None, MessageAction.DELETE)
    assert said.sent_at == datetime(2026, 1, 12, 8, 30, tzinfo=UTC)
    assert [event.event_id for event in stage.trail.events] == ["110107"]


@pytest.mark.requirement("DB.SO.97")
def test_a_replacement_names_what_it_replaces() -> None:
    stage = Stage()
    report = SimReport(acts=(SimAct(study_uid="2.25.3"),), document_id="2.999.7.9", replaces="2.999.7.8")
    stage.read(hl7(report, action=MessageAction.REPLACE))
    said = stage.messages.said
    assert said is not None
    assert (said.document_id, said.replaces, said.action) == (
        "2.999.7.9",
        "2.999.7.8",
        MessageAction.REPLACE,
    )


@pytest.mark.requirement("DB.SO.133")
def test_a_change_makes_one_job_a_study_and_empties_the_cache_first() -> None:
    stage = Stage()
    assert stage.read(omi("2.25.3", "2.25.1", "2.25.3")) == (1, "changement", "2.25.3", "2.25.1")
    assert stage.forgotten == ["2.25.3", "2.25.1"]
    assert stage.messages.said is None
    assert stage.trail.events == []
