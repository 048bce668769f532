"""Accept, request targets, HTTP answers and multiparts under fire: coded errors, bounded work per byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from drimbox.errors import BadRequest, DrimboxError, ImageError, NotAcceptable
from drimbox.wado.accept import parse
from drimbox.wado.answer import AnswerReader, AnswerRefused, Body
from drimbox.wado.fields import FieldError, parse_elements, parse_media_type
from drimbox.wado.multipart import MultipartError, MultipartParser, MultipartWriter, PartBegin, PartData
from drimbox.wado.query import MAX_SMALL_BODY, QueryRefused, read_problem, read_url
from drimbox.wado.request import read_request
from tests.dicom.fuzzing import assert_keeps_nothing, assert_linear, cut, damages
from tests.wado.test_accept import QUOTED, SPECIFICATION
from tests.wado.test_server import Face, request

#: Some seconds each in CI, forty times as many mutations in `make soak`.
pytestmark = pytest.mark.slow

LINE = b",".join(SPECIFICATION)


def answer() -> tuple[str, bytes]:
    """A whole answer of two parts."""
    writer = MultipartWriter()
    body = b"".join(
        writer.part_header("1.2.840.10008.1.2.4.80", number, "db1.349.example") + b"DICM\r\n--\r" * 40
        for number in (1, 2)
    )
    body += writer.closing()
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[n : n + 200]), body[n : n + 200]) for n in range(0, len(body), 200)
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {writer.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return writer.boundary, head.encode() + chunks + b"0\r\n\r\n"


BOUNDARY, ANSWER = answer()
REFUSAL = b"HTTP/1.1 404 Not Found\r\nContent-Length: 17\r\n\r\n" + b'{"code": "E1001"}'


# -- no crash ------------------------------------------------------------------------------------------


def test_a_damaged_accept_is_read_or_refused() -> None:
    for name, data in damages([LINE, QUOTED, *SPECIFICATION, b"*/*;q=0.1"], 2500, 21):
        try:
            acceptable = parse(data.split(b"\n"))
        except (BadRequest, NotAcceptable):
            continue
        assert acceptable.ranked or acceptable.any, name
        assert all(0 < q <= 1 for _, q in acceptable.ranked), name


def test_a_damaged_content_type_is_read_or_refused() -> None:
    samples = [b'multipart/related; type="application/dicom"; boundary=abc', LINE]
    for _, data in damages(samples, 1500, 22):
        with contextlib.suppress(FieldError):
            parse_media_type(data)


def test_a_damaged_request_is_read_or_refused() -> None:
    face = Face()
    target = b"/dicom-web-rs/studies/2.25.1/series/2.25.2"
    head = request().split(b"\r\n")[1:-2]
    for name, data in damages([target + b"\n" + b"\n".join(head)], 2500, 23):
        first, *lines = data.split(b"\n")
        headers = [tuple(line.partition(b":")[::2]) for line in lines]
        try:
            wanted = read_request(first, headers, face.settings)  # type: ignore[arg-type]
        except ImageError:
            continue
        assert set(wanted.study_uid) <= set("0123456789."), name


@pytest.mark.threat("request smuggling, pipelining")
def test_damaged_http_reaches_the_deliveries_well_formed_or_not_at_all() -> None:
    """Through Twisted's parser and ours: never an exception, never two deliveries at once."""
    sample = request("Connection: close") + request("Content-Length: 3") + b"abc" + request()
    chunked = request("Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    # Its connections never end by themselves.
    face = Face(max_connections=100_000, max_connections_per_address=100_000, connection_burst=100_000)
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    for number, (name, data) in enumerate(damages([request(), sample, chunked], 800, 24)):
        face.gate.served.clear()
        channel, wire = face.connect()
        for piece in cut(data, number):
            if not wire.disconnecting:
                channel.dataReceived(piece)
        for wanted, _, _ in face.gate.served:
            assert set(wanted.study_uid + wanted.series_uid) <= set("0123456789."), name
        # At most one delivery runs on a connection: the next request waits for its end.
        assert len(face.gate.served) <= 1, name
        assert wire.value().count(b"HTTP/1.1 5") == 0, name
        channel.connectionLost(_gone())
        assert not face.factory._open, name
        assert not face.clock.getDelayedCalls(), name
        assert not [event for event in logged if event.get("log_failure")], name
    globalLogPublisher.removeObserver(logged.append)


def _gone() -> Any:
    from twisted.internet.error import ConnectionLost
    from twisted.python.failure import Failure

    return Failure(ConnectionLost())


@pytest.mark.parametrize("strict", [True, False])
def test_a_damaged_answer_is_read_or_refused_and_never_longer_than_it_came(strict: bool) -> None:
    for number, (name, data) in enumerate(damages([ANSWER, REFUSAL], 1200, 25)):
        reader = AnswerReader(strict=strict)
        parser = MultipartParser(BOUNDARY)
        received = 0
        with contextlib.suppress(AnswerRefused, MultipartError):
            for piece in cut(data, number):
                for event in reader.feed(piece):
                    if isinstance(event, Body):
                        received += len(event.data)
                        parts = parser.feed(event.data)
                        assert all(part.data for part in parts if isinstance(part, PartData)), name
            reader.finish()
        assert received <= len(data), name
        assert len(parser._buffer) <= 17 * 1024, name


def test_a_damaged_refusal_or_address_is_read_or_refused() -> None:
    body = b'{"type": "urn:x-drimbox:E1001", "title": "KOS", "status": 404, "code": "E1001", "detail": "x"}'
    for name, data in damages([body], 1500, 26):
        found = read_problem(data)
        assert found is None or len(found.code + found.title + found.detail) < 20_000, name
    for _, data in damages([b"https://db1.349.example:8443/dicom-web-rs/studies/1.2/series/1.3"], 800, 27):
        with contextlib.suppress(QueryRefused):
            read_url(data.decode("latin-1"))
    assert read_problem(b"[" * MAX_SMALL_BODY) is None


@pytest.mark.threat("memory leaks by repeated requests")
def test_damage_leaves_nothing_behind() -> None:
    def work() -> None:
        for _, data in damages([LINE, QUOTED], 200, 28):
            with contextlib.suppress(DrimboxError):
                parse([data])
        for number, (_, data) in enumerate(damages([ANSWER], 200, 29)):
            with contextlib.suppress(AnswerRefused, MultipartError):
                reader, parser = AnswerReader(), MultipartParser(BOUNDARY)
                for piece in cut(data, number):
                    for event in reader.feed(piece):
                        if isinstance(event, Body):
                            parser.feed(event.data)

    assert_keeps_nothing(work)


# -- work as the input is long -------------------------------------------------------------------------


def dripped(reader: Any, data: bytes) -> None:
    for position in range(len(data)):
        reader.feed(data[position : position + 1])


def parts(size: int) -> bytes:
    """`size` parts without a byte."""
    return b"--b" + b"\r\nA: b\r\n\r\n\r\n--b" * size


NEARLY: dict[str, Callable[[int], bytes]] = {
    "empty parts": parts,
    "delimiters that are none": lambda size: b"--b\r\n\r\n" + b"\r\n--bx" * size,
    "the first byte of a delimiter": lambda size: b"--b\r\n\r\n" + b"\r" * size,
    "almost a delimiter": lambda size: b"--b\r\n\r\n" + b"\r\n--" * size,
    "padding behind a delimiter": lambda size: (
        b"--b\r\n\r\n" + (b"\r\n--b" + b" " * 200 + b"x") * (size // 50)
    ),
}


@pytest.mark.parametrize("drip", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", NEARLY)
def test_a_multipart_costs_its_length(name: str, drip: bool) -> None:
    def make(size: int) -> Callable[[], object]:
        data = NEARLY[name](size)
        return lambda: dripped(MultipartParser("b"), data) if drip else MultipartParser("b").feed(data)

    assert_linear(make, 500 if drip else 2_000)
    assert type(MultipartParser("b").feed(parts(1))[0]) is PartBegin


def test_an_answer_in_single_byte_chunks_costs_its_length() -> None:
    def make(size: int) -> Callable[[], object]:
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * size
        return lambda: dripped(AnswerReader(), data)

    assert_linear(make, 1_000)


@pytest.mark.parametrize(
    "build",
    [
        lambda size: b"," * size,
        lambda size: b"a/b" + b";" * size,
        lambda size: b" " * size,
        lambda size: b'a/b;c="' + b"\\\\" * (size // 2) + b'"',
        lambda size: b'a/b;c="' + b"\\" * size,
        lambda size: b"a" * size,
        lambda size: b"a/b;c=" + b"x" * size,
        lambda size: b"a/b" + b" ;" * (size // 2),
    ],
)
def test_an_accept_costs_its_length(build: Callable[[int], bytes]) -> None:
    def make(size: int) -> Callable[[], object]:
        data = build(size)

        def work() -> None:
            with contextlib.suppress(FieldError):
                parse_elements(data)

        return work

    assert_linear(make, 4_000)


def test_a_request_head_dripped_byte_by_byte_costs_its_length() -> None:
    """Twisted's line receiver and ours together."""

    def make(size: int) -> Callable[[], object]:
        data = b"GET / HTTP/1.1\r\n" + b"X-Header: xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n" * (size // 40)

        def work() -> None:
            channel, wire = Face().connect()
            assert isinstance(wire, StringTransport)
            for position in range(len(data)):
                channel.dataReceived(data[position : position + 1])

        return work

    assert_linear(make, 4_000)
