"""The XML of an audit event: valid against the public schema, whatever the values hold."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from drimbox.audit import messages, ontrail
from drimbox.audit.atna import to_xml
from drimbox.audit.messages import Alert, DmpExchange
from drimbox.errors import KosUnknown, Parked, PublicationError, ReportNotInterpretable
from drimbox.ports import AuditEvent, AuditObject, AuditParticipant, ParkedRow
from drimbox.xml import safe_parse
from tests.audit.test_messages import DNS_NAME, message, received, served
from tests.store.samples import report, submission

WHEN = datetime(2026, 1, 12, 10, 30, 1, 123999, tzinfo=timezone(timedelta(hours=1)))


def _schemas() -> Path:
    given_ = os.environ.get("DRIMBOX_SCHEMAS")
    root = Path(__file__).resolve().parents[2]
    return Path(given_) if given_ else root.parent / "shared" / "data" / "schemas"


@pytest.fixture(scope="module")
def schema() -> etree.XMLSchema:
    path = _schemas() / "audit" / "dicom2017c.xsd"
    if not path.exists():
        pytest.skip("the public audit schema is not here (DRIMBOX_SCHEMAS)")
    return etree.XMLSchema(etree.parse(path))


def every_event() -> list[AuditEvent]:
    common = {"study_uid": "2.25.1", "source_name": DNS_NAME}
    dmp = "https://lps2.dmp.test/si"
    return [
        received(),
        received(message=message("MDM^T02")),
        received(message=None, report=None, error=ReportNotInterpretable("champ absent")),
        messages.kos_published(submission=submission(), dmp=dmp, replaced=True, **common),
        messages.kos_removed(submission=submission(), dmp=dmp, **common),
        messages.kos_failed(report=report(), error=PublicationError("XDS : non"), **common),
        messages.kos_removed(submission=submission(), **common),
        messages.report_unreadable(message=message(), error=ReportNotInterpretable("vide"), **common),
        messages.report_unreadable(
            message=None, error=ReportNotInterpretable("vide"), source_name=DNS_NAME
        ),
        messages.feeding_broken(
            row=ParkedRow("outbox", 3, "non", study_uid="2.25.1", sop_instance_uid="2.25.5", removal=True),
            error=Parked("non"),
            source_name=DNS_NAME,
        ),
        messages.interrupted(served(), node="a", begun_at=WHEN, found_at=WHEN),
        messages.administration(
            name="n", source_name=DNS_NAME, user="u", action="a", subject="", error=PublicationError("non")
        ),
        ontrail.trail_read(
            user="u", machine="m", program="p", trail="t", criteria=(("ins", "1"), ("to", "2"))
        ),
        ontrail.trail_purged(name="n", source_name=DNS_NAME, last_id=3, link="a" * 64, count=2),
        ontrail.unreadable(name="n", source_name=DNS_NAME, number=3),
        *(
            messages.dmp_exchange(
                kind=kind,
                report=report(),
                structure_id="1",
                dmp=dmp,
                document_uid="2.25.5",
                query=("urn:uuid:1", '<q a="é">\n</q>') if kind is DmpExchange.SEARCH else None,
                **common,
            )
            for kind in DmpExchange
        ),
        served(),
        served(kos=None, introspection=None, error=KosUnknown()),
        served(patient=report().patient, viewer=True),
        messages.application_start(name="drimbox-349", source_name=DNS_NAME),
        messages.application_stop(name="drimbox-349", source_name=DNS_NAME),
        *(
            messages.security_alert(
                kind=kind, name="n", source_name=DNS_NAME, subject="s", description="d", peer_address="::1"
            )
            for kind in Alert
        ),
    ]


@pytest.mark.requirement("DB.SO.43", "DB.SO.46", "SC.DMP/CONF.14", "DB.CS.96")
@pytest.mark.parametrize("event", every_event(), ids=lambda event: event.event_type[0])
def test_every_event_is_valid_against_the_schema(event: AuditEvent, schema: etree.XMLSchema) -> None:
    root = safe_parse(to_xml(event, WHEN, "drimbox-349"))
    schema.assertValid(root)


@pytest.mark.requirement("DB.SO.43")
def test_the_fields_are_where_the_standard_wants_them() -> None:
    root = safe_parse(to_xml(received(), WHEN, "drimbox-349"))
    assert [child.tag for child in root] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
        "ParticipantObjectIdentification",
    ]
    event = root[0]
    assert dict(event.attrib) == {
        "EventActionCode": "C",
        "EventDateTime": "2026-01-12T09:30:01.123Z",
        "EventOutcomeIndicator": "0",
    }
    assert dict(event[0].attrib) == {
        "csd-code": "110107",
        "codeSystemName": "DCM",
        "originalText": "Import",
    }
    assert event[1].get("csd-code") == "RAD-128"
    assert event.find("EventOutcomeDescription") is None
    assert root[1].get("UserIsRequestor") == "false"
    assert root[1].get("NetworkAccessPointTypeCode") == "2"
    assert root[1][0].get("originalText") == "Source Role ID"
    assert root[3].get("AuditSourceID") == "drimbox-349"
    assert root[4].get("ParticipantObjectID") == "284070100499094"
    assert root[4][0].get("originalText") == "Patient Number"
    detail = root[5].find("ParticipantObjectDetail")
    assert detail.get("type") == "StudyInstanceUID"
    assert base64.b64decode(detail.get("value")) == b"2.25.1"


def test_a_failure_says_why() -> None:
    root = safe_parse(to_xml(served(error=KosUnknown("étude demandée")), WHEN, "d"))
    assert root[0].get("EventOutcomeIndicator") == "8"
    assert root[0].findtext("EventOutcomeDescription") == (
        "E1001 - KOS absent de la DRIMbox source : étude demandée"
    )


def test_an_object_without_a_name_says_so() -> None:
    """Its identifier is mandatory, and a repository refuses a message without it."""
    event = messages.administration(name="n", source_name=DNS_NAME, user="u", action="a", subject="")
    root = safe_parse(to_xml(event, WHEN, "d"))
    assert root.find("ParticipantObjectIdentification").get("ParticipantObjectID") == messages.UNKNOWN


def test_an_instant_needs_its_zone() -> None:
    with pytest.raises(ValueError, match="zone"):
        to_xml(served(), datetime(2026, 1, 12), "d")  # noqa: DTZ001


@pytest.mark.threat("log and audit injection, flooding")
def test_peer_values_cannot_break_out_of_their_field() -> None:
    nasty = '1"/><ActiveParticipant UserID="x\r\n<85>1 forged\x00\x1b[2J\ud800\u2028]]>'
    root = safe_parse(to_xml(served(situation=nasty, introspection=None), WHEN, "d"))
    assert len(root.findall("ActiveParticipant")) == 2
    value = root.find("ActiveParticipant").get("UserID")
    assert value.startswith('1"/><ActiveParticipant UserID="x <85>1 forged\ufffd\ufffd[2J\ufffd ]]>')
    data = to_xml(served(situation=nasty, introspection=None), WHEN, "d")
    assert b"\n" not in data
    assert b"\r" not in data
    assert b"\x00" not in data


_TEXT = st.text(st.characters(codec=None), max_size=40)


@settings(max_examples=60, deadline=None)
@given(_TEXT, _TEXT, _TEXT, st.datetimes(min_value=datetime(1990, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_any_text_gives_one_good_message(first: str, second: str, third: str, when: datetime) -> None:
    event = attrs.evolve(
        served(),
        outcome_description=first,
        participants=(AuditParticipant(first, "110153", "2", second, third),),
        objects=(AuditObject(third, "2", "3", second, "", ((second or "t", first),)),),
    )
    root = safe_parse(to_xml(event, when, third))
    assert [child.tag for child in root][1:] == [
        "ActiveParticipant",
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
    ]
    detail = root.find(".//ParticipantObjectDetail")
    assert base64.b64decode(detail.get("value")) == first.encode("utf-8", "replace")
