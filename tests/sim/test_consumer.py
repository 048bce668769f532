"""The Consumer client: its readers at any cut of the bytes, then against TLS servers that misbehave."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from multipart import MultipartParser  # type: ignore[import-untyped]
from twisted.internet import protocol, reactor
from twisted.web import resource, server

from drimbox.sim.consumer import FetchResult, Order, accept_headers, fetch, fetch_series
from drimbox.sim.consumer_http import PartHead, PartReader, ResponseError, ResponseReader
from drimbox.sim.listening import ServerContext, TlsListener
from drimbox.sim.pki import Pki

SITE = "db1.349.example"


# --- readers, without sockets ---------------------------------------------------------------------


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return (data[a:b] for a, b in itertools.pairwise(edges) if a < b)


class Parts:
    """Collects what a PartReader says."""

    def __init__(self, boundary: str) -> None:
        self.heads: list[dict[str, str]] = []
        self.contents: list[bytes] = []
        self.ended = 0
        self.reader = PartReader(boundary, self._head, self._data, self._end)

    def _head(self, head: PartHead) -> None:
        self.heads.append(head.headers)
        self.contents.append(b"")

    def _data(self, view: memoryview) -> None:
        self.contents[-1] += bytes(view)

    def _end(self) -> None:
        self.ended += 1


def related(parts: list[bytes], boundary: str = "b0", end: bool = True) -> bytes:
    body = b"".join(
        b"--" + boundary.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n"
        for part in parts
    )
    return body + (b"--" + boundary.encode() + b"--\r\n" if end else b"")


#: Bytes that look like boundaries are the ones that matter.
tricky = st.lists(
    st.sampled_from([b"\r\n", b"--", b"b0", b"b", b"\r", b"-", b"x", b"\r\n--b", b"\r\n--b0z", b" "]),
    max_size=12,
).map(b"".join)


@given(st.lists(tricky, min_size=1, max_size=4), st.lists(st.integers(0, 500), max_size=12))
def test_parts_are_the_same_whatever_the_cuts(parts: list[bytes], cuts: list[int]) -> None:
    if any(b"\r\n--b0" + end in b"\r\n" + part + b"\r\n" for part in parts for end in (b"--", b"\r", b" ")):
        return  # holds a real boundary: not a part
    seen = Parts("b0")
    for piece in cut(related(parts), cuts):
        seen.reader.feed(memoryview(piece))
    assert seen.reader.complete
    assert seen.contents == parts
    assert seen.ended == len(parts)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.data())
def test_a_truncated_body_is_never_complete(parts: list[bytes], data: st.DataObject) -> None:
    body = related(parts)
    # Without the CRLF after it the closing boundary is still whole.
    end = data.draw(st.integers(0, len(body) - 3))
    seen = Parts("b0")
    seen.reader.feed(memoryview(body[:end]))
    assert not seen.reader.complete or b"--b0--" in body[:end]


def test_parts_agree_with_another_parser() -> None:
    parts = [bytes(range(256)) * 40, b"a", b"\r\n--b" * 50]
    body = b"".join(
        b'--b0\r\nContent-Disposition: form-data; name="x"; filename="y"\r\n\r\n' + part + b"\r\n"
        for part in parts
    )
    body += b"--b0--\r\n"
    seen = Parts("b0")
    seen.reader.feed(memoryview(body))
    oracle = [part.raw for part in MultipartParser(io.BytesIO(body), "b0")]
    assert seen.contents == oracle == parts


@pytest.mark.parametrize(
    "head",
    [b"Content-Type application/dicom", b": x", b"A: b\r\n c", b"X" * 20000],
)
def test_malformed_part_heads(head: bytes) -> None:
    with pytest.raises(ResponseError):
        Parts("b0").reader.feed(memoryview(b"--b0\r\n" + head + b"\r\n\r\n"))


def read(data: bytes, cuts: list[int] | None = None) -> tuple[ResponseReader, list[int], bytes]:
    statuses: list[int] = []
    body = bytearray()

    def head(status: int, headers: list[tuple[str, str]]) -> None:
        statuses.append(status)

    reader = ResponseReader(head, body.extend)
    for piece in cut(data, cuts or []):
        reader.feed(piece)
    return reader, statuses, bytes(body)


def chunked(pieces: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(0, 900), max_size=12))
def test_chunks_are_the_same_whatever_the_cuts(pieces: list[bytes], cuts: list[int]) -> None:
    reader, statuses, body = read(chunked(pieces), cuts)
    assert reader.done
    assert (statuses, body) == ([200], b"".join(pieces))


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6), st.data())
def test_cut_chunks_are_never_done(pieces: list[bytes], data: st.DataObject) -> None:
    whole = chunked(pieces)
    reader, _, _ = read(whole[: data.draw(st.integers(0, len(whole) - 1))])
    reader.closed()
    assert not reader.done


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000,
    ],
)
def test_malformed_responses(bad: bytes) -> None:
    with pytest.raises(ResponseError):
        read(bad)


def test_interim_answer_is_skipped() -> None:
    reader, statuses, body = read(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert (reader.done, statuses, body) == (True, [404], b"{}")


# --- over TLS -------------------------------------------------------------------------------------


class _Raw(protocol.Protocol):
    """Waits for the end of the request head, then writes what the test wants."""

    def __init__(self, factory: RawServer) -> None:
        self._factory = factory
        self._held = b""

    def dataReceived(self, data: bytes) -> None:
        self._held += data
        if b"\r\n\r\n" in self._held:
            self._factory.requests.append(self._held)
            self._held = b""
            self._factory.answer(self.transport)


class RawServer(protocol.ServerFactory):
    def __init__(self, answer: Callable[[Any], None]) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    def buildProtocol(self, addr: object) -> _Raw:
        return _Raw(self)


def order(pki: Pki, port: int, **options: Any) -> Order:
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "sni": SITE,
        "path": "/dicom-web-rs/studies/1.2/series/1.2.3",
        "certificate": pki.sites[SITE],
        "roots": pki.roots,
        "timeout": 10.0,
    }
    return Order(**{**defaults, **options})


async def against(pki: Pki, answer: Callable[[Any], None], **options: Any) -> tuple[FetchResult, bytes]:
    context = ServerContext(pki.sites[SITE], pki.roots, pki.crls)
    factory = RawServer(answer)
    port = reactor.listenSSL(0, factory, context, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        result = await fetch(reactor, order(pki, port.getHost().port, **options))
    finally:
        await port.stopListening()
    return result, factory.requests[0] if factory.requests else b""


HEAD = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    b'Content-Type: multipart/related;start="<a@b>";transfer-syntax=1.2.840.10008.1.2.1;'
    b'type="application/dicom"; boundary=b0\r\n\r\n'
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest_twisted.ensureDeferred
async def test_a_good_answer(sim_pki: Pki) -> None:
    images = [b"DICM1" * 1000, b"DICM2" * 10]
    seen: list[int] = []

    def answer(transport: Any) -> None:
        transport.write(HEAD + chunk(related(images)) + b"0\r\n\r\n")

    context = ServerContext(sim_pki.sites[SITE], sim_pki.roots)
    factory = RawServer(answer)
    port = reactor.listenSSL(0, factory, context, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        result = await fetch_series(
            reactor,
            host="127.0.0.1",
            port=port.getHost().port,
            sni=SITE,
            study="1.2",
            series="1.2.3",
            certificate=sim_pki.sites[SITE],
            roots=sim_pki.roots,
            token="abc",
            kos_uid="2.999.20.1",
            situation="1",
            on_part=lambda number, part: seen.append(number),
        )
    finally:
        await port.stopListening()
    assert result.complete, result.error
    assert (result.status, [part.content for part in result.parts], seen) == (200, images, [0, 1])
    assert result.t_first_part is not None
    lines = factory.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /dicom-web-rs/studies/1.2/series/1.2.3 HTTP/1.1"
    assert lines[1] == f"Host: {SITE}"
    assert [line for line in lines if line.startswith("Accept: ")] == [
        f"Accept: {value}" for value in accept_headers()
    ]
    assert {"Authorization: Bearer abc", "KOS-SOPInstanceUID: 2.999.20.1", "Situation: 1"} <= set(lines)


@pytest.mark.requirement("DB.CO.185")
@pytest_twisted.ensureDeferred
async def test_truncation_is_seen_wherever_it_falls(sim_pki: Pki) -> None:
    whole = chunk(related([b"DICM" * 100]))
    cases = {
        "connection closed": HEAD + whole,  # all parts, no last chunk
        "closing boundary missing": HEAD + chunk(related([b"DICM" * 100], end=False)) + b"0\r\n\r\n",
        "connection": HEAD + whole[:200],
    }
    for reason, data in cases.items():

        def answer(transport: Any, data: bytes = data) -> None:
            transport.write(data)
            transport.loseConnection()

        result, _ = await against(sim_pki, answer)
        assert not result.complete
        assert reason in result.error
        assert result.status == 200


@pytest_twisted.ensureDeferred
async def test_a_problem_is_read(sim_pki: Pki) -> None:
    body = b'{"code":"E1001","detail":"KOS absent"}'

    def answer(transport: Any) -> None:
        transport.write(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    result, _ = await against(sim_pki, answer)
    assert (result.status, result.problem, result.parts) == (
        404,
        {"code": "E1001", "detail": "KOS absent"},
        (),
    )
    assert result.complete


@pytest_twisted.ensureDeferred
async def test_silence_garbage_and_refusal_end_in_a_result(sim_pki: Pki) -> None:
    silent, _ = await against(sim_pki, lambda transport: None, timeout=0.2)
    assert silent.error == "timed out"
    garbage, _ = await against(sim_pki, lambda transport: transport.write(b"\0\1\2\r\n\r\n"))
    assert garbage.error == "malformed status line"
    port = reactor.listenTCP(0, protocol.ServerFactory(), interface="127.0.0.1")  # type: ignore[attr-defined]
    number = port.getHost().port
    await port.stopListening()
    refused = await fetch(reactor, order(sim_pki, number))
    assert refused.error.startswith("no connection")
    assert {silent.status, garbage.status, refused.status} == {None}


@pytest_twisted.ensureDeferred
async def test_without_certificate_or_with_another_name_it_fails_in_tls(sim_pki: Pki) -> None:
    def answer(transport: Any) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    none, _ = await against(sim_pki, answer, certificate=None)
    other, request = await against(sim_pki, answer, sni="db1.999.example")
    stranger, _ = await against(sim_pki, answer, roots=sim_pki.market_root)
    unchecked, _ = await against(sim_pki, answer, sni="db1.999.example", roots=None)
    good, _ = await against(sim_pki, answer)
    assert none.status is None
    assert "connection lost" in none.error
    assert (other.status, other.error, request) == (None, "server certificate: VerificationError", b"")
    assert stranger.status is None
    assert (unchecked.status, good.status) == (200, 200)


@pytest_twisted.ensureDeferred
async def test_it_leaves_when_asked(sim_pki: Pki) -> None:
    def answer(transport: Any) -> None:
        transport.write(HEAD + chunk(related([b"x" * 100_000], end=False)))

    result, _ = await against(sim_pki, answer, disconnect_after=50_000)
    assert result.error == "disconnected on purpose"
    assert 50_000 <= result.received < 100_200
    before, request = await against(sim_pki, lambda transport: None, disconnect_after=0)
    assert before.error == "disconnected on purpose"
    assert request.startswith(b"GET ")


@pytest_twisted.ensureDeferred
async def test_it_reads_slowly_when_asked(sim_pki: Pki) -> None:
    def answer(transport: Any) -> None:
        transport.write(HEAD + chunk(related([b"x" * 800_000])) + b"0\r\n\r\n")

    result, _ = await against(sim_pki, answer, bytes_per_second=3_200_000)
    assert result.complete
    assert result.t_total > 0.15


class _Big(resource.Resource):
    """40 MB in parts, written by Twisted Web in chunks."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Any) -> Any:
        request.setHeader(b"Content-Type", b'multipart/related; type="application/dicom"; boundary=b0')
        image = bytes(160_000)
        for _ in range(250):
            request.write(b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + image + b"\r\n")
        request.write(b"--b0--\r\n")
        request.finish()
        return server.NOT_DONE_YET


@pytest_twisted.ensureDeferred
async def test_it_is_not_the_bottleneck(sim_pki: Pki) -> None:
    context = ServerContext(sim_pki.sites[SITE], sim_pki.roots)
    listener = TlsListener(reactor, _Big(), context, "127.0.0.1", 0)
    listener.up()
    try:
        result = await fetch(reactor, order(sim_pki, listener.port, keep="sha256", timeout=30.0))
    finally:
        await listener.down()
    assert result.complete, result.error
    assert {part.sha256 for part in result.parts} == {hashlib.sha256(bytes(160_000)).hexdigest()}
    assert len(result.parts) == 250
    # Server and client share one core here; the goal is 200 MB a second of client alone.
    assert result.t_total < 5


@settings(max_examples=5)
@given(st.integers(1, 4000))
def test_feeding_byte_runs_is_linear(step: int) -> None:
    body = related([bytes(200_000)])
    seen = Parts("b0")
    for position in range(0, len(body), step if step > 50 else 50):
        seen.reader.feed(memoryview(body[position : position + (step if step > 50 else 50)]))
    assert seen.reader.complete
    assert len(seen.contents[0]) == 200_000
