"""HTTP as an attacker writes it, on real TLS connections."""

from __future__ import annotations

import re

import pytest
import pytest_twisted

from tests.integration.hospital import Hospital, Served, behave

SMUGGLING = pytest.mark.threat("request smuggling, pipelining")


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer on a connection."""
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)]


@SMUGGLING
@pytest_twisted.ensureDeferred
async def test_two_host_headers_are_400(hospital: Hospital, scanner: Served) -> None:
    host = f"Host: {hospital.stand.sites[0]}"
    answer = await hospital.raw(hospital.request(scanner, host, "Connection: close"))
    assert statuses(answer) == [400]


@SMUGGLING
@pytest.mark.parametrize("name", ["Authorization", "KOS-SOPInstanceUID", "Situation"])
@pytest_twisted.ensureDeferred
async def test_a_header_given_twice_is_400(hospital: Hospital, scanner: Served, name: str) -> None:
    answer = await hospital.raw(
        hospital.request(scanner, f"{name}: 1.2.3", f"{name}: 1.2.3", "Connection: close")
    )
    assert statuses(answer) == [400]


@SMUGGLING
@pytest_twisted.ensureDeferred
async def test_pipelined_requests_are_answered_one_at_a_time_in_order(
    hospital: Hospital, scanner: Served
) -> None:
    hospital.pacs[0].behaviour = behave(pause=0.2)
    moves = len(hospital.pacs[0].seen("move"))
    refused = hospital.request(scanner, first="GET /nothing HTTP/1.1")
    answer = await hospital.raw(
        hospital.request(scanner) + refused + hospital.request(scanner, "Connection: close")
    )
    assert statuses(answer) == [200, 404, 200]
    # The refusal, which costs nothing, does not overtake the images before it.
    assert answer.index(b"HTTP/1.1 404") > answer.index(b"--\r\n\r\n0\r\n\r\n")
    assert len(hospital.pacs[0].seen("move")) == moves + 2


@SMUGGLING
@pytest.mark.requirement("DB.SO.173")
@pytest_twisted.ensureDeferred
async def test_an_absolute_target_is_served(hospital: Hospital, scanner: Served) -> None:
    site = hospital.stand.sites[0]
    first = f"GET https://{site}{scanner.path()} HTTP/1.1"
    answer = await hospital.raw(
        hospital.request(scanner, "Connection: close", first=first, host="192.0.2.72:8082")
    )
    assert statuses(answer) == [200]
    assert answer.endswith(b"--\r\n\r\n0\r\n\r\n")


@SMUGGLING
@pytest_twisted.ensureDeferred
async def test_an_absolute_target_of_another_site_is_421_whatever_the_host(
    hospital: Hospital, scanner: Served
) -> None:
    first = f"GET https://{hospital.stand.sites[1]}{scanner.path()} HTTP/1.1"
    answer = await hospital.raw(hospital.request(scanner, "Connection: close", first=first))
    assert statuses(answer) == [421]


@SMUGGLING
@pytest.mark.parametrize(
    "line",
    [
        "X-Blank : yes",
        " X-Folded: yes",
        "X-Null: a\0b",
        "no colon at all",
        ": no name",
        "X-Bad Name: yes",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_head_is_400_and_the_connection_ends(
    hospital: Hospital, scanner: Served, line: str
) -> None:
    moves = len(hospital.pacs[0].seen("move"))
    request = hospital.request(scanner, line)
    answer = await hospital.raw(request, hospital.request(scanner))
    if line.startswith(" "):
        # A folded line is part of the value before it: here the KOS identifier, which is then none.
        assert statuses(answer)[0] == 400
        return
    assert statuses(answer) == [400]
    assert len(hospital.pacs[0].seen("move")) == moves


@SMUGGLING
@pytest.mark.parametrize(
    "first", ["GET", "GET /x", "GET  /x HTTP/1.1", "GET /x HTTP/2.0", "\x16\x03\x01", "GET /\xe9 HTTP/1.1"]
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_first_line_is_refused(hospital: Hospital, scanner: Served, first: str) -> None:
    answer = await hospital.raw(hospital.request(scanner, "Connection: close", first=first))
    assert statuses(answer)[:1] in ([400], [404])
    assert b"--\r\n" not in answer


@pytest.mark.threat("Content-Length and body bombs")
@pytest_twisted.ensureDeferred
async def test_a_short_body_is_dropped_and_the_request_served(hospital: Hospital, scanner: Served) -> None:
    answer = await hospital.raw(
        hospital.request(scanner, "Content-Length: 5", "Connection: close") + b"hello"
    )
    assert statuses(answer) == [200]


@pytest.mark.threat("Content-Length and body bombs")
@pytest_twisted.ensureDeferred
async def test_a_chunked_body_is_no_second_request(hospital: Hospital, scanner: Served) -> None:
    inner = hospital.request(scanner, "Connection: close")
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    request = hospital.request(scanner, "Transfer-Encoding: chunked", first="GET /nothing HTTP/1.1")
    answer = await hospital.raw(request + chunk)
    assert statuses(answer) == [404]


@pytest.mark.threat("Content-Length and body bombs")
@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 1000000000", b""),
        ("Content-Length: 100000", b"x" * 100000),
        ("Transfer-Encoding: chunked", b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n0\r\n\r\n"),
        ("Content-Length: 1000000000\r\nExpect: 100-continue", b""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_long_body_is_413_and_never_kept(
    hospital: Hospital, scanner: Served, header: str, body: bytes
) -> None:
    moves = len(hospital.pacs[0].seen("move"))
    answer = await hospital.raw(hospital.request(scanner, header) + body)
    # A connection reset under what the client still writes may swallow the status.
    assert statuses(answer) in ([413], [])
    assert len(hospital.pacs[0].seen("move")) == moves


@pytest.mark.threat("request smuggling, pipelining")
@pytest.mark.parametrize(
    "lines",
    [
        ["X-Long: " + "x" * 20000],
        [f"X-{number}: x" for number in range(600)],
        ["Accept: " + "multipart/related;" * 900],
    ],
    ids=["long", "many", "accept"],
)
@pytest_twisted.ensureDeferred
async def test_oversized_headers_are_400(hospital: Hospital, scanner: Served, lines: list[str]) -> None:
    answer = await hospital.raw(hospital.request(scanner, *lines, "Connection: close"))
    assert statuses(answer) in ([400], [])


@pytest.mark.threat("response header injection")
@pytest_twisted.ensureDeferred
async def test_nothing_of_the_request_comes_back_in_the_headers(
    hospital: Hospital, scanner: Served
) -> None:
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*; boundary=evil'
    request = hospital.request(scanner, "Connection: close").replace(
        b'Accept: multipart/related; type="application/dicom"; transfer-syntax=*',
        f"Accept: {accept}".encode(),
    )
    answer = await hospital.raw(request)
    assert statuses(answer) == [200]
    assert b"evil" not in answer


@pytest.mark.threat("multipart injection")
@pytest_twisted.ensureDeferred
async def test_every_answer_has_a_boundary_of_its_own(hospital: Hospital, scanner: Served) -> None:
    types = [(await hospital.fetch(scanner)).header("content-type") for _ in range(2)]
    assert types[0] != types[1]
    assert types[0] is not None
    assert len(types[0].partition("boundary=")[2]) == 48


@pytest.mark.threat("HTTP/2 reset floods")
@pytest_twisted.ensureDeferred
async def test_http_2_is_not_spoken(hospital: Hospital) -> None:
    answer = await hospital.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0")
    assert statuses(answer) in ([400], [])


@pytest_twisted.ensureDeferred
async def test_the_star_target_reaches_the_checks(hospital: Hospital, scanner: Served) -> None:
    answer = await hospital.raw(hospital.request(scanner, "Connection: close", first="OPTIONS * HTTP/1.1"))
    assert statuses(answer) in ([400], [405])
    assert b"problem+json" in answer
