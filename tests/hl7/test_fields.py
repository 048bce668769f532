"""The lazy reader, against the `hl7` library where both agree on what HL7 says."""

from __future__ import annotations

import time

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.hl7.fields import (
    MAX_FIELDS,
    MAX_REPETITIONS,
    MAX_SEGMENTS,
    Delimiters,
    Message,
    codec_of,
    escape,
    unescape,
)
from drimbox.hl7.refusal import Hl7Refused
from drimbox.sim.ris import SimMessage, build_message

MSH = "MSH|^~\\&|RIS|SITE|DRIMBOX|X|2026||ORU^R01|1|P|2.5|||||FRA|{charset}\r"
PLAIN = st.text(
    st.characters(codec="utf-8", exclude_characters="|^~\\&\r\n\x0b\x1c", exclude_categories=["Cc"])
)


def head(charset: str = "UNICODE UTF-8") -> str:
    return MSH.format(charset=charset)


def test_a_whole_message_reads_as_the_hl7_library_reads_it() -> None:
    raw = build_message()
    ours, oracle = Message(raw), hl7.parse(raw.decode("utf-8"))
    assert [segment.name for segment in ours.segments] == [str(segment[0]) for segment in oracle]
    for segment, judge in zip(ours.segments, oracle, strict=True):
        for number in range(1, len(judge)):
            assert ours.text(segment.raw_field(number)) == ours.text(str(judge[number]).encode())


@given(st.lists(st.lists(st.lists(PLAIN, min_size=1, max_size=3), min_size=1, max_size=3), max_size=6))
def test_components_and_repetitions_read_as_the_hl7_library_reads_them(
    fields: list[list[list[str]]],
) -> None:
    line = "|".join(["ZZZ", *("~".join("^".join(rep) for rep in field) for field in fields)])
    raw = (head() + line).encode()
    ours, oracle = Message(raw), hl7.parse(raw.decode())
    segment = ours.first("ZZZ") if fields else None
    for number, field in enumerate(fields, 1):
        for rank, repetition in enumerate(ours.repetitions(segment, number)):
            for component in range(1, len(field[rank]) + 1):
                expected = oracle.extract_field("ZZZ", 1, number, rank + 1, component)
                assert repetition.get(component) == expected.strip()


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r", "\n\n"])
def test_every_terminator_is_accepted(end: str) -> None:
    raw = (end + (head() + "PID|1||X\rPV1|1|I|").replace("\r", end) + end + end).encode()
    message = Message(raw)
    assert [segment.name for segment in message.segments] == ["MSH", "PID", "PV1"]
    assert message.get(message.first("PV1"), 2) == "I"
    assert message.get(message.msh, 18) == "UNICODE UTF-8"


def test_a_line_that_does_not_begin_a_segment_continues_the_one_before() -> None:
    message = Message((head() + "OBX|4|CE|REP^du patient \n||N|\nOBX|5|CE|B||Y").encode())
    first, second = message.named("OBX")
    assert message.get(first, 3, 2) == "du patient"
    assert (message.get(first, 5), message.get(second, 5)) == ("N", "Y")


def test_msh_fields_are_numbered_as_in_the_standard() -> None:
    message = Message(head().encode())
    assert message.msh.raw_field(1) == b"|"
    assert message.msh.raw_field(2) == b"^~\\&"
    assert (message.get(message.msh, 3), message.get(message.msh, 9, 2)) == ("RIS", "R01")
    assert message.get(message.msh, 40) == ""


def test_delimiters_are_those_the_message_announces() -> None:
    message = Message(b"MSH#*!?%#RIS*1%2#SITE\rPID#1##A*B!C\r")
    assert message.delimiters == Delimiters(b"#", b"*", b"!", b"?", b"%")
    assert message.get(message.msh, 3, 2, 2) == "2"
    assert [rep.get(1) for rep in message.repetitions(message.first("PID"), 3)] == ["A", "C"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"MSH",
        b"MSH|^~\\",
        b"PID|1",
        b"<ClinicalDocument/>",
        b"MSHA^~\\&AB",
        b"MSH|^^\\&|A",
        b"MSH|^~\\&#!|A",
        b"MSH|\x00~\\&|A",
        b"MSH\r^~\\&\rA",
        b"\xff" * 100,
        b"MSH|^~\\&|A|\rMSH|^~\\&|B|\r",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_not_hl7_is_refused_as_ae_100(raw: bytes) -> None:
    with pytest.raises(Hl7Refused) as caught:
        Message(raw)
    assert (caught.value.ack_code, caught.value.err_code) == ("AE", "100")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for raw in (data, b"MSH|^~\\&|" + data):
        try:
            message = Message(raw)
            for segment in message.segments:
                message.get(segment, 3)
                message.repetitions(segment, 3)
        except Hl7Refused:
            pass


@pytest.mark.parametrize(
    ("charset", "encoding", "read"),
    [
        ("UNICODE UTF-8", "utf-8", "Émilie €"),
        ("8859/15", "iso8859-15", "Émilie €"),
        ("8859/1", "iso8859-1", "Émilie"),
        # One published sample: 8859/1 announced, UTF-8 sent.
        ("8859/1", "utf-8", "Émilie €"),
        ("8859/15", "utf-8", "Émilie €"),
        # UTF-8 announced, a single-byte set sent.
        ("UNICODE UTF-8", "iso8859-15", "Émilie €"),
        ("", "utf-8", "Émilie €"),
        ("", "iso8859-15", "Émilie €"),
        ("ASCII", "iso8859-15", "Émilie €"),
        ("NO SUCH SET", "utf-8", "Émilie €"),
    ],
)
def test_character_sets_and_their_fallbacks(charset: str, encoding: str, read: str) -> None:
    message = Message((head(charset) + f"PID|1||||{read}").encode(encoding))
    assert message.get(message.first("PID"), 5) == read


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("8859/15", "iso8859-15"),
        ("8859/17", None),
        ("unicode utf-8", "utf-8"),
        ("", None),
        ("8859/0", None),
    ],
)
def test_codecs_by_their_hl7_name(charset: str, codec: str | None) -> None:
    assert codec_of(charset) == codec


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"A\F\B\S\C\T\D\R\E\E\F", "A|B^C&D~E\\F"),
        (r"\X0D0A\x", "\r\nx"),
        (r"\XC3A9\t\XC3A9\ ", "été"),
        (r"un\.br\deux", "un\ndeux"),
        (r"\H\gras\N\ ", r"\H\gras\N\ ".strip()),
        (r"C:\dossier", r"C:\dossier"),
        (r"fin\ ", "fin\\"),
        (r"\XZZ\ ", r"\XZZ\ ".strip()),
        (r"\\F\ ", "\\|"),
    ],
)
def test_escape_sequences(written: str, read: str) -> None:
    assert unescape(written.strip(), Delimiters()) == read


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_escape_is_undone_by_unescape_and_by_the_hl7_library(text: str) -> None:
    safe = escape(text)
    assert not set("|^~&\r\n") & set(safe)
    assert unescape(safe, Delimiters()) == text
    # The library strips the message, hence the marks at both ends.
    oracle = hl7.parse(head() + f"ZZZ|<{safe}>")
    assert oracle.unescape(str(oracle.segment("ZZZ")[1])) == f"<{text}>"


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("NTE|1\r" * (MAX_SEGMENTS + 5), "198"),
        ("PID|" + "|" * MAX_FIELDS, "198"),
        ("PID|1||" + "~" * MAX_REPETITIONS, "198"),
        ("PID|1||" + "A" * 70_000, "102"),
    ],
    ids=["segments", "fields", "repetitions", "field size"],
)
def test_counts_from_outside_are_bounded(body: str, code: str) -> None:
    def read() -> None:
        message = Message((head() + body).encode())
        message.repetitions(message.first("PID"), 3)

    with pytest.raises(Hl7Refused) as caught:
        read()
    assert caught.value.err_code == code


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.parametrize(
    "filler", ["~", "^", "&", "|", "\\", "\r", "\n", "\r\n", "A\r", "AAA|\r", "\\X41\\"]
)
def test_no_repeated_delimiter_costs_more_than_linear_time(filler: str) -> None:
    raw = (head() + "PID|1||" + filler * (2_000_000 // len(filler))).encode()
    started = time.thread_time()
    try:
        message = Message(raw)
        message.repetitions(message.first("PID"), 3)
        message.get(message.first("PID"), 3)
    except Hl7Refused:
        pass
    assert time.thread_time() - started < 2


def test_wrong_charset_of_the_simulated_ris_is_read() -> None:
    raw = build_message(message=SimMessage(charset="8859/1", encoding="utf-8", terminator="\n"))
    message = Message(raw)
    assert message.get(next(message.named("OBX")), 3, 2) == "CR d'imagerie médicale"
