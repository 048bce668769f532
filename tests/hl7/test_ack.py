"""Acknowledgements (DB.SO.141, interfaces.md 1.5), read back by the `hl7` library."""

from __future__ import annotations

from datetime import UTC, datetime

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.hl7.ack import acknowledge
from drimbox.hl7.refusal import Hl7Refused, contradiction
from drimbox.sim.ris import SimMessage, build_message

NOW = datetime(2026, 1, 12, 10, 15, 2, tzinfo=UTC)


def answer(raw: bytes, code: str = "AA", *refusals: Hl7Refused) -> str:
    data = acknowledge(
        raw, code, now=NOW, control_id="7f3c", application="DBX", facility="F", refusals=refusals
    )
    return data.decode("utf-8")


def ask(**message: object) -> bytes:
    return build_message(message=SimMessage(**message))  # type: ignore[arg-type]


@pytest.mark.requirement("DB.SO.141")
def test_a_positive_answer_is_the_one_of_the_specification() -> None:
    assert answer(ask()) == (
        "MSH|^~\\&|DRIMBOX|SITE-X|RIS-Y|SITE-X|20260112101502||ACK^R01^ACK|7f3c|P|2.5|||||FRA"
        "|UNICODE UTF-8\r"
        "MSA|AA|015\r"
    )


@pytest.mark.requirement("DB.SO.141")
def test_a_negative_answer_says_where_and_why() -> None:
    refusal = Hl7Refused("AE", "203", "version HL7 non prise en charge", "MSH^1^12")
    assert answer(ask(kind="MDM", version="2.9"), "AE", refusal) == (
        "MSH|^~\\&|DRIMBOX|SITE-X|RIS-Y|SITE-X|20260112101502||ACK^T02^ACK|7f3c|P|2.6|||||FRA"
        "|UNICODE UTF-8\r"
        "MSA|AE|015\r"
        "ERR||MSH^1^12|203^Unsupported version id^messageErrorCondition|E||||"
        "version HL7 non prise en charge\r"
    )


def test_an_application_error_carries_its_own_code() -> None:
    oracle = hl7.parse(answer(ask(), "AE", contradiction("deux actions", "OBX^1^11")))
    assert str(oracle.segment("ERR")[3]) == "207^Application error^messageErrorCondition"
    assert str(oracle.segment("ERR")[5]) == "906^Autre^applicationErrorCondition"


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ("ORU^R01^ORU_R01", "ACK^R01^ACK"),
        ("MDM^T10^MDM_T02", "ACK^T10^ACK"),
        ("ADT", "ACK"),
        ("A^b|c", "ACK"),
    ],
)
def test_the_event_is_repeated_when_it_is_one(event: str, shown: str) -> None:
    assert str(hl7.parse(answer(ask(message_type=event)))[0][9]) == shown


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize(
    ("accept", "application", "codes"),
    [
        ("", "", "AA AE AR"),
        ("AL", "", "CA CE CR"),
        ("AL", "AL", "CA CE CR"),
        ("ER", "NE", "CA CE CR"),
        ("SU", "NE", "CA CE CR"),
        ("NE", "AL", "AA AE AR"),
        ("NE", "NE", "AA AE AR"),
    ],
)
def test_enhanced_mode_when_it_is_asked_for(accept: str, application: str, codes: str) -> None:
    raw = ask(accept_ack=accept, application_ack=application)
    seen = [str(hl7.parse(answer(raw, code)).segment("MSA")[1]) for code in ("AA", "AE", "AR")]
    assert seen == codes.split()


@pytest.mark.requirement("DB.SO.141")
@pytest.mark.parametrize("raw", [b"", b"bonjour", b"\xff\x00", b"MSH", b"MSH|||||||"])
def test_an_unreadable_message_gets_an_empty_msa_2(raw: bytes) -> None:
    assert answer(raw, "AE", Hl7Refused("AE", "100", "pas du HL7")) == (
        "MSH|^~\\&|DBX|F|||20260112101502||ACK|7f3c|P|2.5|||||FRA|UNICODE UTF-8\r"
        "MSA|AE|\r"
        "ERR||" + "|100^Segment sequence error^messageErrorCondition|E||||pas du HL7\r"
    )


def test_we_name_ourselves_when_the_message_does_not() -> None:
    oracle = hl7.parse(answer(ask().replace(b"|DRIMBOX|SITE-X|", b"|||")))
    assert (str(oracle[0][3]), str(oracle[0][4])) == ("DBX", "F")


def test_a_structured_sender_comes_back_as_it_was() -> None:
    oracle = hl7.parse(answer(ask(application="RIS^1.2.3^ISO", control_id="A^B~C&D")))
    assert str(oracle[0][5]) == "RIS^1.2.3^ISO"
    assert str(oracle.segment("MSA")[2]) == "A^B~C&D"


def test_a_control_id_too_long_to_be_one_is_not_sent_back() -> None:
    assert "MSA|AE|\r" in answer(ask(control_id="9" * 300), "AE")
    assert f"MSA|AA|{'9' * 199}\r" in answer(ask(control_id="9" * 199))


@pytest.mark.threat("HL7 and MLLP")
def test_delimiters_of_a_strange_alphabet_cannot_inject_into_the_answer() -> None:
    raw = b"MSH#*!?%#RIS|X#SITE^Y~Z#D#S#2026##ORU*R01#ID|AA?F??E?#P#2.5\r"
    text = answer(raw)
    assert text.count("\r") == 2
    rows = [row.split("|") for row in text.split("\r")]
    assert rows[0][4] == "RIS\\F\\X"
    assert rows[0][5] == "SITE\\S\\Y\\R\\Z"
    assert rows[1] == ["MSA", "AA", "ID\\F\\AA#?"]


FIELD = st.text(max_size=30)


@pytest.mark.threat("HL7 and MLLP")
@given(FIELD, FIELD, FIELD, FIELD)
def test_nothing_a_peer_writes_becomes_a_field_or_a_segment(a: str, b: str, c: str, d: str) -> None:
    raw = f"MSH|^~\\&|{a}|{b}|D|S|2026||ORU^R01|{c}|{d}|2.5\r".encode("utf-8", "replace")
    rows = [row.split("|") for row in answer(raw).split("\r")]
    assert [row[0] for row in rows] == ["MSH", "MSA", ""]
    assert (len(rows[0]), len(rows[1])) == (18, 3)
    assert not any(ord(char) < 0x20 for row in rows for field in row for char in field)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_answer(raw: bytes) -> None:
    for data in (raw, b"MSH|^~\\&|" + raw):
        assert answer(data).startswith("MSH|^~\\&|")


@pytest.mark.parametrize(
    ("charset", "codec"), [("8859/15", "iso8859-15"), ("8859/1", "iso8859-1"), ("UNICODE UTF-8", "utf-8")]
)
def test_the_answer_is_written_in_the_set_of_the_message(charset: str, codec: str) -> None:
    raw = ask(charset=charset, encoding=codec, application="Hôpital")
    refusal = Hl7Refused("AE", "101", "égaré")
    data = acknowledge(raw, "AE", now=NOW, control_id="1", application="D", refusals=[refusal])
    assert f"|{charset}\r".encode() in data
    assert "|Hôpital|" in data.decode(codec)
    assert "égaré" in data.decode(codec)


def test_a_large_message_is_answered_from_its_head() -> None:
    raw = build_message(document=b"A" * 1_000_000)
    assert "MSA|AA|015\r" in answer(raw)
