"""multipart/related: what the writer makes, what the parser reads at any cut."""

from __future__ import annotations

import email
import email.policy
import re
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS
from drimbox.wado.multipart import (
    End,
    MultipartError,
    MultipartParser,
    MultipartTruncated,
    MultipartWriter,
    PartBegin,
    PartData,
    PartEnd,
    boundary_of,
)


def merged(events):
    """Join neighbouring PartData: how bytes are cut means nothing."""
    out = []
    for event in events:
        if isinstance(event, PartData) and out and isinstance(out[-1], PartData):
            out[-1] = PartData(out[-1].data + event.data)
        else:
            out.append(event)
    return out


def read(boundary, data, sizes=()):
    """Feed `data` in pieces of `sizes` (then the rest) and return (events, parser)."""
    parser, events, position = MultipartParser(boundary), [], 0
    for size in sizes:
        events += parser.feed(data[position : position + size])
        position += size
    events += parser.feed(data[position:])
    return merged(events), parser


def written(parts):
    writer = MultipartWriter()
    body = b""
    for index, (syntax, data) in enumerate(parts, 1):
        body += writer.part_header(syntax, index, "db1.349.example") + data
    return writer, body + writer.closing()


# --- writer ---------------------------------------------------------------------------------------


def test_the_standard_library_reads_what_the_writer_writes():
    parts = [(JPEG_LS_LOSSLESS, b"\x00\x01\r\n--x\r\n" * 7), (EXPLICIT_LE, b"\xff" * 100)]
    writer, body = written(parts)
    message = email.message_from_bytes(
        b"Content-Type: " + writer.content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    assert [part.get_payload(decode=True) for part in message.iter_parts()] == [data for _, data in parts]
    assert [part["Content-Type"].params["transfer-syntax"] for part in message.iter_parts()] == [
        JPEG_LS_LOSSLESS, EXPLICIT_LE,
    ]  # fmt: skip
    assert [part["Content-ID"] for part in message.iter_parts()] == [
        "<1@db1.349.example>",
        "<2@db1.349.example>",
    ]


@pytest.mark.requirement("DB.SO.85")
def test_each_part_says_its_own_syntax_in_the_form_of_the_specification():
    writer = MultipartWriter()
    assert (
        writer.part_header(JPEG_LS_LOSSLESS, 1, "h")
        == (
            f"--{writer.boundary}\r\nContent-Type: application/dicom;transfer-syntax={JPEG_LS_LOSSLESS}\r\n"
            f"Content-ID: <1@h>\r\n\r\n"
        ).encode()
    )
    assert writer.part_header(EXPLICIT_LE, 2, "h").startswith(b"\r\n--")
    assert "transfer-syntax" not in writer.content_type


@pytest.mark.threat("multipart injection")
def test_the_boundary_is_random_new_each_time_and_at_least_128_bits():
    boundaries = {MultipartWriter().boundary for _ in range(200)}
    assert len(boundaries) == 200
    assert all(re.fullmatch("[0-9a-f]{48}", boundary) for boundary in boundaries)


@pytest.mark.threat("multipart injection")
def test_image_bytes_that_look_like_a_part_stay_image_bytes():
    guess = MultipartWriter().boundary
    evil = (
        f"\r\n--{guess}\r\nContent-Type: application/dicom\r\n\r\nother patient\r\n--{guess}--\r\n".encode()
    )
    writer, body = written([(EXPLICIT_LE, evil)])
    events, _ = read(writer.boundary, body)
    assert [type(event) for event in events] == [PartBegin, PartData, PartEnd, End]
    assert events[1].data == evil


@pytest.mark.threat("response header injection")
@pytest.mark.parametrize(
    ("syntax", "host"),
    [
        ("1.2\r\nX: y", "h"),
        ("1.2\n", "h"),
        ("", "h"),
        ("1.2", "h\r\nX: y"),
        ("1.2", "h>"),
        ("1.2", ""),
        ("1.2", "é"),
        ("1.2\x00", "h"),
        ("1.2", "h\n"),
    ],
)
def test_nothing_that_could_break_a_header_is_written(syntax, host):
    with pytest.raises(ValueError, match="not a"):
        MultipartWriter().part_header(syntax, 1, host)


def test_a_closed_writer_writes_no_more():
    writer = MultipartWriter()
    assert writer.closing() == f"--{writer.boundary}--\r\n".encode()
    with pytest.raises(RuntimeError):
        writer.part_header(EXPLICIT_LE, 1, "h")
    with pytest.raises(RuntimeError):
        writer.closing()


# --- parser ---------------------------------------------------------------------------------------

NASTY = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"-", b"--", b"b", b"B0", b"\r\n--", b"\r\n--b", b"\r\n--bB0", b"x", b" ", b"\0"]
    ),
    max_size=20,
).map(b"".join)
CUTS = st.lists(st.integers(0, 40), max_size=60)


@given(st.lists(NASTY, min_size=1, max_size=4), CUTS, NASTY)
def test_any_cut_gives_the_same_events(bodies, cuts, epilogue):
    # Bodies hold prefixes of the boundary `bB0x` (and CRLF of it), never the boundary itself.
    data = b"preamble"
    for body in bodies:
        data += b"\r\n--bB0xy\r\nContent-Type: application/dicom\r\nA: b\r\n\r\n" + body
    data += b"\r\n--bB0xy--" + epilogue
    whole, parser = read("bB0xy", data)
    assert parser.complete
    assert [event.data for event in whole if isinstance(event, PartData)] == [
        body for body in bodies if body
    ]
    assert sum(isinstance(event, PartBegin) for event in whole) == len(bodies)
    assert whole[-1] == End()
    assert read("bB0xy", data, cuts)[0] == whole
    assert read("bB0xy", data, [1] * len(data))[0] == whole


@given(NASTY, CUTS)
def test_any_bytes_at_any_cut_end_alike(data, cuts):
    def outcome(sizes):
        try:
            events, parser = read("b", data, sizes)
        except MultipartError as error:
            return str(error)
        return events, parser.complete

    # An error ends both; what came before it may have been delivered earlier when cut.
    assert outcome(cuts) == outcome(())


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), CUTS)
def test_the_parser_reads_the_writer(bodies, cuts):
    writer, data = written([(EXPLICIT_LE, body) for body in bodies])
    events, parser = read(boundary_of(writer.content_type.encode()), data, cuts)
    parser.finish()
    assert [event.data for event in events if isinstance(event, PartData)] == [
        body for body in bodies if body
    ]
    assert {event.transfer_syntax for event in events if isinstance(event, PartBegin)} == {EXPLICIT_LE}


def test_every_truncation_is_visible():
    writer, data = written([(EXPLICIT_LE, b"abc"), (EXPLICIT_LE, b"def")])
    whole = data.index(b"--" + writer.boundary.encode() + b"--") + len(writer.boundary) + 4
    for size in range(whole):
        _, parser = read(writer.boundary, data[:size])
        assert not parser.complete
        with pytest.raises(MultipartTruncated):
            parser.finish()
    read(writer.boundary, data[:whole])[1].finish()


def test_what_follows_the_closing_delimiter_is_ignored():
    events, parser = read("b", b"--b--\r\n--b\r\n\r\nlate")
    assert events == [End()]
    assert parser.feed(b"\r\n--b\r\n\r\nmore") == []


def test_blanks_behind_a_delimiter_are_transport_padding():
    events, parser = read("b", b"--b \t \r\nA: 1\r\n\r\nx\r\n--b--")
    assert parser.complete
    assert events[0] == PartBegin((("a", "1"),))


def test_a_boundary_that_only_begins_a_longer_word_is_data():
    events, _ = read("b", b"--b\r\n\r\nx\r\n--bc\r\ny\r\n--b-\r\n--b--")
    assert events[1] == PartData(b"x\r\n--bc\r\ny\r\n--b-")


@pytest.mark.parametrize("size", [255, 256, 257, 300])
def test_padding_is_bounded_whatever_the_cut(size):
    data = b"--b\r\n\r\nx\r\n--b" + b" " * size + b"\r\nA: 1\r\n\r\ny\r\n--b--"
    whole, _ = read("b", data)
    assert read("b", data, [1] * len(data))[0] == whole
    assert sum(isinstance(event, PartBegin) for event in whole) == (2 if size <= 256 else 1)


@pytest.mark.parametrize(
    "data",
    [
        b"--b\r\nno colon\r\n\r\n",
        b"--b\r\n: empty\r\n\r\n",
        b"--b\r\nA : b\r\n\r\n",
        b"--b\r\nA: b\r\n folded\r\n\r\n",
        b"--b\r\nA: b\nC: d\r\n\r\n",
        b"--b\r\nA: \x00\r\n\r\n",
        b"--b\r\n" + b"A: b\r\n" * 65 + b"\r\n",
        b"--b\r\nA: " + b"x" * 20000,
        b"x" * 70000,
    ],
)
def test_headers_and_preamble_are_checked_and_bounded(data):
    for sizes in ((), [1] * len(data)):
        with pytest.raises(MultipartError):
            read("b", data, sizes)


def test_the_header_limit_does_not_depend_on_the_cut():
    line = b"A: " + b"x" * (16 * 1024 - 3)
    data = b"--b\r\n" + line + b"\r\n\r\ny\r\n--b--"
    assert read("b", data)[0] == read("b", data, [1] * len(data))[0]
    with pytest.raises(MultipartError):
        read("b", data.replace(b"A", b"AA"))


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        (b"multipart/related;start=\"<a@resteasy-multipart>\";transfer-syntax=1.2.840.10008.1.2.1;"
         b"type=\"application/dicom\"; boundary=8f2e-1", "8f2e-1"),
        (b'Multipart/Related; BOUNDARY="a b:c"; type=application/dicom', "a b:c"),
        (b"multipart/related; boundary=----=_Part_0_1.2", "----=_Part_0_1.2"),
    ],
)  # fmt: skip
def test_the_boundary_is_found_in_real_content_types(value, boundary):
    assert boundary_of(value) == boundary


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"application/dicom",
        b"multipart/related",
        b"multipart/related; boundary=",
        b'multipart/related; boundary="a ',
        b"multipart/related; boundary=**",
        b"multipart/related; boundary=" + b"a" * 71,
        b'multipart/related; boundary="a\tb"',
        b'multipart/related; boundary="a "',
        b"multipart/related; boundary=a; boundary=b",
    ],
)
def test_a_bad_boundary_is_refused(value):
    with pytest.raises(MultipartError):
        boundary_of(value)


def test_time_is_linear_and_memory_bounded():
    # 16 MiB of the worst: every byte could start a delimiter; fed in 16 KiB pieces.
    piece = b"\r\n--bbbbbbb" * 1489
    parser = MultipartParser("bbbbbbbbbbbb")
    parser.feed(b"--bbbbbbbbbbbb\r\n\r\n")
    tracemalloc.start()
    started = time.thread_time()
    total = sum(len(event.data) for _ in range(1024) for event in parser.feed(piece))
    elapsed = time.thread_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 <= 1024 * len(piece) - total < 20
    assert peak < 8 * len(piece)
    assert elapsed < 5
