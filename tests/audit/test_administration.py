"""What an administrator makes the gateway do is in the audit trail, as PS3.15 can say it."""

from __future__ import annotations

from datetime import UTC, datetime

from lxml import etree
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from drimbox.audit import messages
from drimbox.audit.atna import to_xml
from drimbox.errors import KosDepublished
from drimbox.ports import AuditEvent

NOW = datetime(2026, 1, 12, 10, 15, 2, tzinfo=UTC)


def asked(**changes: object) -> AuditEvent:
    values: dict[str, object] = {
        "name": "DRIMbox",
        "source_name": "db1.349.example.test",
        "user": "admin",
        "action": "Test de débit du PACS à la demande",
        "subject": "radiologie",
        **changes,
    }
    return messages.administration(**values)  # type: ignore[arg-type]


def test_an_administrative_action_is_an_informative_use_of_a_restricted_function() -> None:
    event = asked()
    assert (event.event_id, event.action, event.outcome, event.outcome_description) == (
        "110113",
        "E",
        0,
        "",
    )
    assert Code(event.event_type[0], event.event_type[1], "") == Code("110132", "DCM", "")
    assert codes.DCM.UseOfRestrictedFunction.value == event.event_type[0]
    assert codes.DCM.SecurityAlert.value == event.event_id
    us, person = event.participants
    assert (us.user_id, us.network_id, us.requestor) == ("DRIMbox", "db1.349.example.test", False)
    assert (person.user_id, person.requestor) == ("admin", True)
    assert event.objects[0].id == "radiologie"
    assert event.objects[0].details == (("Alert Description", "Test de débit du PACS à la demande"),)
    assert (event.patient_ins, event.study_uid) == ("", "")


def test_who_asked_is_never_left_out_and_a_refusal_says_why() -> None:
    event = asked(user="", error=KosDepublished("examen de référence absent du PACS"))
    assert event.participants[1].user_id == messages.UNKNOWN
    assert event.outcome == messages.SERIOUS
    assert event.outcome_description.startswith("E1002 - ")


def test_it_can_be_written_for_a_repository() -> None:
    message = etree.fromstring(to_xml(asked(), NOW, "drimbox-349"))  # our own bytes
    assert message.findtext("EventIdentification/EventOutcomeDescription") is None
    kind = message.find("EventIdentification/EventTypeCode")
    assert kind is not None
    assert kind.get("csd-code") == "110132"
    requestors = [each.get("UserIsRequestor") for each in message.findall("ActiveParticipant")]
    assert requestors == ["false", "true"]
