"""Syslog messages and their frames: strict by RFC 5424 and 5425, the same bytes whenever they are made."""

from __future__ import annotations

import attrs
import pytest

from drimbox.audit import messages
from drimbox.audit.ontrail import trail_purged, trail_read, unreadable
from drimbox.audit.syslog import SyslogFormat, frame
from drimbox.sim.syslog import SyslogRefused, read_message, read_schema
from tests.audit.test_atna import WHEN, every_event
from tests.audit.test_messages import DNS_NAME, served

pytestmark = pytest.mark.requirement("DB.CS.96")
FORMAT = SyslogFormat(host=DNS_NAME, application="DRIMbox", source_id="drimbox-349")
SCHEMA = read_schema()
LINK = "a" * 64
OWN = [
    trail_read(user="marie", machine="box", program="p", trail="urn:t", criteria=(("ins", "1"),)),
    trail_purged(name="DRIMbox", source_name=DNS_NAME, last_id=7, link=LINK, count=7),
    unreadable(name="DRIMbox", source_name=DNS_NAME, number=3),
    messages.administration(name="n", source_name=DNS_NAME, user="u", action="a", subject="s"),
]


@pytest.mark.parametrize("event", [*every_event(), *OWN], ids=lambda event: event.event_type[0])
def test_every_event_is_a_message_a_strict_repository_takes(event: messages.AuditEvent) -> None:
    got = read_message(FORMAT.message(12, LINK, WHEN, event), SCHEMA)
    assert (got.priority, got.host, got.application, got.process, got.data) == (
        85,
        DNS_NAME,
        "DRIMbox",
        "-",
        "-",
    )
    assert got.instant == WHEN
    kind = "DICOM+RFC3881" if event.event_type[1] == "DCM" else "IHE+RFC-3881"
    assert got.kind == kind
    assert got.message.find(".//EventTypeCode").get("csd-code") == event.event_type[0]


def test_a_message_is_the_same_whenever_it_is_made_and_names_its_event_with_a_number_of_ours() -> None:
    named = attrs.evolve(FORMAT, enterprise_number=64999)
    message = named.message(12, LINK, WHEN, served())
    assert message == named.message(12, LINK, WHEN, served())
    assert read_message(message, SCHEMA).data == f'[event@64999 number="12" hash="{LINK}"]'


def test_a_frame_counts_octets() -> None:
    assert frame("é".encode()) == b"2 \xc3\xa9"


def test_names_of_the_configuration_cannot_break_the_header() -> None:
    odd = attrs.evolve(FORMAT, host="", application="DRIM box\r\n<1> é" + "x" * 60)
    got = read_message(odd.message(1, LINK, WHEN, served()), SCHEMA)
    assert got.host == "-"
    assert got.application.startswith("DRIM_box_<1>_")
    assert len(got.application) == 48


def test_the_reader_of_the_tests_refuses_what_is_wrong() -> None:
    good = FORMAT.message(1, LINK, WHEN, served())
    for bad in (
        good.replace(b"<85>", b"<850>"),
        good.replace(b">1 ", b">2 "),
        good.replace(b"2026-01-12T09:30:01.123999Z", b"12/01/2026"),
        good.replace(b"\xef\xbb\xbf", b""),
        good.replace(b'csd-code="110106"', b""),
        good.replace(b"</AuditMessage>", b""),
        good.replace(b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
    ):
        assert bad != good
        with pytest.raises((SyslogRefused, ValueError)):
            read_message(bad, SCHEMA)
