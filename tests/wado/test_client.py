"""The WADO-RS client against servers that lie, stall and cut, over real sockets and mutual TLS."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, protocol, reactor, task
from twisted.python.failure import Failure

from drimbox.config import Certificate
from drimbox.errors import PeerNotListed
from drimbox.sim.listening import ServerContext
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pair, Pki, make_pki
from drimbox.trust.outgoing import client_policy
from drimbox.wado.answer import AnswerReader, AnswerRefused, Body, End, Head
from drimbox.wado.client import Flow, Limits, Outcome, Trouble, fetch
from drimbox.wado.multipart import PartBegin
from drimbox.wado.query import LOSSLESS, LOSSY, Address, Query, QueryRefused, ranked, read_problem, read_url

SITE = "db1.349.example"
OTHER = "db2.349.example"
HEAD = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    b'Content-Type: multipart/related;start="<a@b>";type="application/dicom"; boundary=b0\r\n\r\n'
)
IMAGES = [b"DICM1" * 1000, b"DICM2" * 10]
clock: Any = reactor


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("client") / "pki", sites=(SITE, OTHER))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def related(parts: list[bytes], *, end: bool = True) -> bytes:
    header = b"--b0\r\nContent-Type: application/dicom;transfer-syntax=1.2.840.10008.1.2.1\r\n\r\n"
    return b"".join(header + part + b"\r\n" for part in parts) + (b"--b0--\r\n" if end else b"")


GOOD = HEAD + chunk(related(IMAGES)) + b"0\r\n\r\n"


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.syntaxes: list[str | None] = []
        self.whole = 0
        self.flow: Flow | None = None

    def begin(self, head: Head, flow: Flow) -> None:
        self.flow = flow

    def part_begin(self, part: PartBegin) -> None:
        self.parts.append(b"")
        self.syntaxes.append(part.transfer_syntax)

    def part_data(self, data: bytes) -> None:
        self.parts[-1] += data

    def part_end(self) -> None:
        self.whole += 1


class Server(protocol.ServerFactory):
    """Waits for the end of the request, then does what the test wants."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.lost: defer.Deferred[None] = defer.Deferred()

    def buildProtocol(self, addr: object) -> protocol.Protocol:
        return _Connection(self)


class _Connection(protocol.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._held = b""

    def dataReceived(self, data: bytes) -> None:
        self._held += data
        if self._held.endswith(b"\r\n\r\n"):
            self._server.requests.append(self._held)
            self._server.answer(self.transport)

    def connectionLost(self, reason: Any = None) -> None:
        if not self._server.lost.called:
            self._server.lost.callback(None)


def query(port: int, **changes: Any) -> Query:
    target = "/dicom-web-rs/studies/1.2/series/1.2.3"
    return attrs.evolve(Query(Address(SITE, port, target), token="abc.def", kos_uid="2.999.1"), **changes)


@attrs.define
class Run:
    outcome: Outcome
    sink: Any
    server: Server


async def against(
    pki: Pki,
    answer: Callable[[Any], None],
    *,
    sink: Any = None,
    server_pair: Pair | None = None,
    client: Pair | None = None,
    query_of: Callable[[int], Query] = query,
    **options: Any,
) -> Run:
    server = Server(answer)
    context = ServerContext(server_pair or pki.sites[SITE], pki.roots)
    port = clock.listenSSL(0, server, context, interface="127.0.0.1")
    number = port.getHost().port
    pair = client or pki.sites[OTHER]
    policy = client_policy(pki.roots, Certificate(pair.certificate, pair.key))
    sink = sink or Kept()
    try:
        outcome = await fetch(
            reactor, policy, query_of(number), sink, connect_to=("127.0.0.1", number), **options
        )
    finally:
        await port.stopListening()
    return Run(outcome, sink, server)


def sends(data: bytes, *, close: bool = True) -> Callable[[Any], None]:
    def answer(transport: Any) -> None:
        transport.write(data)
        if close:
            transport.loseConnection()

    return answer


# --- good -------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_series_comes_whole_and_the_request_is_the_one_of_the_specification(pki: Pki) -> None:
    raw: list[bytes] = []
    run = await against(
        pki,
        sends(GOOD, close=False),
        tap=raw.append,
        query_of=lambda port: query(port, situation="1999999999"),
    )
    assert run.outcome.complete
    assert (run.outcome.parts, run.sink.parts, run.sink.whole) == (2, IMAGES, 2)
    assert run.sink.syntaxes == ["1.2.840.10008.1.2.1"] * 2
    assert run.outcome.first_part is not None
    assert 0 < run.outcome.first_part <= run.outcome.total
    assert b"".join(raw) == GOOD
    lines = run.server.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /dicom-web-rs/studies/1.2/series/1.2.3 HTTP/1.1"
    assert lines[1].startswith(f"Host: {SITE}:")
    assert [line for line in lines if line.startswith("Accept: ")] == [
        f'Accept: multipart/related; type="application/dicom"; transfer-syntax={uid}; q={q}'
        for uid, q in LOSSLESS
    ]
    assert {"Authorization: Bearer abc.def", "KOS-SOPInstanceUID: 2.999.1", "Situation: 1999999999"} <= set(
        lines
    )


@pytest_twisted.ensureDeferred
async def test_an_answer_byte_by_byte(pki: Pki) -> None:
    def answer(transport: Any) -> None:
        def go(position: int) -> None:
            # One byte a turn of the reactor, then the rest.
            transport.write(GOOD[position : position + 1] if position < 300 else GOOD[300:])
            if position < 300:
                clock.callLater(0, go, position + 1)

        go(0)

    run = await against(pki, answer)
    assert run.outcome.complete
    assert run.sink.parts == IMAGES


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_whole_and_says_its_code(pki: Pki) -> None:
    body = b'{"code":"E1001","title":"KOS absent","detail":"a\\u001b[31mb"}'
    run = await against(pki, sends(b"HTTP/1.1 404 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    assert run.outcome.trouble is None
    assert not run.outcome.complete
    assert run.outcome.status == 404
    assert run.outcome.problem is not None
    assert (run.outcome.problem.code, run.outcome.problem.title) == ("E1001", "KOS absent")
    assert "\x1b" not in run.outcome.problem.detail


@pytest.mark.threat("SSRF")
@pytest_twisted.ensureDeferred
async def test_a_redirect_is_not_followed(pki: Pki) -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    run = await against(pki, sends(data))
    assert (run.outcome.status, run.outcome.trouble, len(run.server.requests)) == (302, None, 1)


@pytest_twisted.ensureDeferred
async def test_capabilities_come_as_a_small_body(pki: Pki) -> None:
    body = b"<application/>" * 10_000
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    run = await against(pki, sends(data), query_of=lambda port: query(port, method="OPTIONS", token=None))
    assert run.outcome.complete
    assert run.outcome.body == body[:65536]
    assert b"Accept" not in run.server.requests[0]
    assert b"Authorization" not in run.server.requests[0]


@pytest_twisted.ensureDeferred
async def test_an_answer_that_ends_with_its_connection_leaves_nothing_to_be_cut(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, unhandled: list[Failure]
) -> None:
    monkeypatch.setattr("drimbox.wado.client._FAREWELL", 0.1)
    head = HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")
    run = await against(pki, sends(head + related(IMAGES)))
    assert run.outcome.complete, run.outcome.detail
    await task.deferLater(clock, 0.3)
    assert unhandled == []


# --- truncation and lies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        HEAD + chunk(related(IMAGES)),  # everything, but no last chunk
        HEAD + chunk(related(IMAGES, end=False)) + b"0\r\n\r\n",  # no closing boundary
        HEAD + chunk(related(IMAGES))[:-200],
        HEAD + b"ffff\r\n" + related(IMAGES),
        HEAD[:-2],
        HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: 999999") + related(IMAGES),
        HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"") + related(IMAGES, end=False),
    ],
    ids=["no-last-chunk", "no-closing", "in-chunk", "chunk-cut", "in-head", "length", "until-close"],
)
@pytest_twisted.ensureDeferred
async def test_a_cut_answer_is_never_complete(pki: Pki, data: bytes) -> None:
    run = await against(pki, sends(data))
    assert run.outcome.trouble is Trouble.TRUNCATED
    assert not run.outcome.complete
    assert run.outcome.detail


@pytest_twisted.ensureDeferred
async def test_an_instance_cut_short_never_ends(pki: Pki) -> None:
    run = await against(pki, sends(HEAD + chunk(related(IMAGES)[: len(IMAGES[0]) + 50])))
    assert (run.outcome.parts, run.sink.whole, len(run.sink.parts)) == (0, 0, 1)


@pytest_twisted.ensureDeferred
async def test_a_reset_is_a_truncation(pki: Pki) -> None:
    def answer(transport: Any) -> None:
        transport.write(GOOD[:-30])
        clock.callLater(0.1, transport.abortConnection)

    run = await against(pki, answer)
    assert run.outcome.trouble is Trouble.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        GOOD.replace(b"multipart/related", b"text/html"),
        GOOD.replace(b"; boundary=b0", b""),
        GOOD.replace(b"chunked", b"gzip"),
        HEAD + chunk(b"x" * 100_000) + b"0\r\n\r\n",
        HEAD + b"zz\r\n",
        GOOD.replace(b"\r\nContent-Type: application", b"\r\nContent Type: application"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_such_answer_is_malformed(pki: Pki, data: bytes) -> None:
    run = await against(pki, sends(data, close=False), limits=Limits(idle=5, answer=5))
    assert run.outcome.trouble is Trouble.MALFORMED


@pytest.mark.parametrize("limits", [Limits(max_bytes=1000), Limits(max_parts=1)], ids=["bytes", "parts"])
@pytest_twisted.ensureDeferred
async def test_too_much_is_cut(pki: Pki, limits: Limits) -> None:
    run = await against(pki, sends(GOOD, close=False), limits=limits)
    assert run.outcome.trouble is Trouble.TOO_LARGE
    await run.server.lost


# --- peers that are absent, slow, or not who they must be ---------------------------------------------


@pytest_twisted.ensureDeferred
async def test_nobody_listens(pki: Pki) -> None:
    pair = pki.sites[OTHER]
    policy = client_policy(pki.roots, Certificate(pair.certificate, pair.key))
    outcome = await fetch(reactor, policy, query(443), Kept(), connect_to=("127.0.0.1", free_port()))
    assert outcome.trouble is Trouble.UNREACHABLE
    assert outcome.status is None


@pytest_twisted.ensureDeferred
async def test_a_server_of_another_name_gets_nothing(pki: Pki) -> None:
    run = await against(pki, sends(GOOD), server_pair=pki.sites[OTHER])
    assert run.outcome.trouble is Trouble.TLS
    assert run.server.requests == []


@pytest_twisted.ensureDeferred
async def test_a_server_that_refuses_our_certificate(pki: Pki, tmp_path: Any) -> None:
    stranger = make_pki(tmp_path / "stranger", sites=(OTHER,)).sites[OTHER]
    run = await against(pki, sends(GOOD), client=stranger)
    assert run.outcome.trouble is Trouble.TLS
    assert run.sink.parts == []


@pytest_twisted.ensureDeferred
async def test_a_server_without_tls(pki: Pki) -> None:
    class Plain(protocol.Protocol):
        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    port = clock.listenTCP(0, protocol.Factory.forProtocol(Plain), interface="127.0.0.1")
    pair = pki.sites[OTHER]
    policy = client_policy(pki.roots, Certificate(pair.certificate, pair.key))
    try:
        outcome = await fetch(
            reactor, policy, query(443), Kept(), connect_to=("127.0.0.1", port.getHost().port)
        )
    finally:
        await port.stopListening()
    assert outcome.trouble is Trouble.TLS


@pytest_twisted.ensureDeferred
async def test_the_token_waits_for_the_whitelist(pki: Pki) -> None:
    seen: list[x509.Certificate] = []

    def refuse(certificate: x509.Certificate) -> None:
        seen.append(certificate)
        raise PeerNotListed("source absente de la liste blanche")

    run = await against(pki, sends(GOOD), approve=refuse)
    assert run.outcome.trouble is Trouble.NOT_APPROVED
    assert "liste blanche" in run.outcome.detail
    assert run.server.requests == []
    assert SITE in str(seen[0].subject.rfc4514_string())
    run = await against(pki, sends(GOOD), approve=seen.append)
    assert run.outcome.complete


@pytest.mark.parametrize(
    ("data", "limits", "words"),
    [
        (b"", Limits(answer=0.3), "aucune réponse"),
        (GOOD[:-50], Limits(idle=0.3), "arrêtée en chemin"),
        (GOOD[:-50], Limits(total=0.4), "réponse entière"),
    ],
    ids=["silent", "stalled", "endless"],
)
@pytest_twisted.ensureDeferred
async def test_patience_ends(pki: Pki, data: bytes, limits: Limits, words: str) -> None:
    run = await against(pki, sends(data, close=False), limits=limits)
    assert run.outcome.trouble is Trouble.TIMEOUT
    assert words in run.outcome.detail
    await run.server.lost


@pytest_twisted.ensureDeferred
async def test_a_port_that_accepts_and_never_speaks(pki: Pki) -> None:
    port = clock.listenTCP(0, protocol.Factory.forProtocol(protocol.Protocol), interface="127.0.0.1")
    policy = client_policy(pki.roots, None)
    try:
        outcome = await fetch(
            reactor,
            policy,
            query(443),
            Kept(),
            connect_to=("127.0.0.1", port.getHost().port),
            limits=Limits(connect=0.3),
        )
    finally:
        await port.stopListening()
    assert outcome.trouble is Trouble.TIMEOUT


# --- our own side -------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_slow_sink_holds_the_server_back(pki: Pki) -> None:
    size = 64 * 1024 * 1024
    written = 0

    class Producer:
        """Writes as long as TCP takes it."""

        def __init__(self, transport: Any) -> None:
            self._transport = transport
            self._going = True

        def pauseProducing(self) -> None:
            self._going = False

        def resumeProducing(self) -> None:
            nonlocal written
            self._going = True
            while self._going and written < size:
                self._transport.write(chunk(b"x" * 65536))
                written += 65536
            if written >= size:
                self._transport.unregisterProducer()
                self._transport.write(chunk(b"\r\n--b0--\r\n") + b"0\r\n\r\n")

        def stopProducing(self) -> None:
            self._going = False

    def answer(transport: Any) -> None:
        transport.write(HEAD + chunk(related([b""], end=False)[:-2]))
        producer = Producer(transport)
        transport.registerProducer(producer, True)
        producer.resumeProducing()

    class Slow(Kept):
        stopped = False
        count = 0

        def part_data(self, data: bytes) -> None:
            self.count += len(data)
            if not self.stopped:
                self.stopped = True
                assert self.flow is not None
                self.flow.pause()
                clock.callLater(1.0, self.look)

        def look(self) -> None:
            self.seen = self.count
            assert self.flow is not None
            self.flow.resume()

    # The silence is ours: an idle limit shorter than it must not end the exchange.
    run = await against(pki, answer, sink=Slow(), limits=Limits(idle=0.5))
    assert run.outcome.complete, run.outcome.detail
    assert run.sink.count == size
    assert run.sink.seen < size / 4


@pytest_twisted.ensureDeferred
async def test_a_pause_of_our_own_process_is_not_the_servers_silence(pki: Pki) -> None:
    size = 4 * 1024 * 1024

    class Sleepy(Kept):
        slept = False

        def part_data(self, data: bytes) -> None:
            super().part_data(data)
            if not self.slept:
                self.slept = True
                # Before the timers of the next turn, which come before what there is to be read.
                clock.callFromThread(time.sleep, 0.6)

    run = await against(
        pki,
        sends(HEAD + chunk(related([bytes(size)])) + b"0\r\n\r\n"),
        sink=Sleepy(),
        limits=Limits(idle=0.3),
    )
    assert run.outcome.complete, run.outcome.detail
    assert len(run.sink.parts[0]) == size


@pytest_twisted.ensureDeferred
async def test_what_the_sink_raises_comes_out_and_the_connection_is_cut(pki: Pki) -> None:
    class Full(Kept):
        def part_data(self, data: bytes) -> None:
            raise OSError("disk full")

    server: list[Server] = []

    def answer(transport: Any) -> None:
        server.append(transport)
        transport.write(GOOD)

    with pytest.raises(OSError, match="disk full"):
        await against(pki, answer, sink=Full())


@pytest_twisted.ensureDeferred
async def test_cancelling_cuts_the_connection(pki: Pki) -> None:
    server = Server(sends(GOOD[:-50], close=False))
    port = clock.listenSSL(0, server, ServerContext(pki.sites[SITE], pki.roots), interface="127.0.0.1")
    pair = pki.sites[OTHER]
    policy = client_policy(pki.roots, Certificate(pair.certificate, pair.key))
    number = port.getHost().port
    work = defer.ensureDeferred(
        fetch(reactor, policy, query(number), Kept(), connect_to=("127.0.0.1", number))
    )
    try:
        while not server.requests:
            await task.deferLater(clock, 0.02)
        work.cancel()
        with pytest.raises(defer.CancelledError):
            await work
        await server.lost
    finally:
        await port.stopListening()


# --- what is asked, without sockets -------------------------------------------------------------------


@pytest.mark.threat("response header injection")
@pytest.mark.parametrize(
    "changes",
    [
        {"token": "a\r\nX: y"},
        {"token": ""},
        {"kos_uid": "1.2\r\nX: y"},
        {"situation": "1\r\n"},
        {"address": Address("h\r\nX: y", 443, "/")},
        {"address": Address("h/..", 443, "/")},
        {"address": Address(SITE, 443, "/a b")},
        {"address": Address(SITE, 443, "/a\r\n")},
        {"address": Address(SITE, 443, "")},
        {"address": Address(SITE, 0, "/")},
        {"accept": (("1.2\r\n", "1"),)},
        {"accept": (("1.2", "1\r\n"),)},
        {"agent": "a\nb"},
    ],
)
def test_nothing_ends_a_line_of_the_request(changes: dict[str, Any]) -> None:
    with pytest.raises(QueryRefused) as refused:
        query(443, **changes).encode()
    assert "X: y" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://db1.349.example/a",
        "https://",
        "https://user:secret@db1.349.example/a",
        "https://db1.349.example/a?token=1",
        "https://db1.349.example/a#b",
        "https://db1.349.example:99999/a",
        "https://[::1",
        "file:///etc/passwd",
    ],
)
@pytest.mark.threat("SSRF")
def test_addresses_that_are_not_asked(url: str) -> None:
    with pytest.raises(QueryRefused):
        Query(read_url(url), token="a").encode()


def test_addresses_of_manifests() -> None:
    address = read_url(" https://db1.349.example:8443/api/source/studies/1/series/2 ")
    assert address == Address(SITE, 8443, "/api/source/studies/1/series/2")
    assert address.authority == f"{SITE}:8443"
    assert read_url("https://[2001:db8::1]/x").authority == "[2001:db8::1]"
    assert read_url(f"https://{SITE}/x").authority == SITE


def test_the_token_is_not_in_a_traceback() -> None:
    assert "abc.def" not in repr(query(443))


def test_preferences() -> None:
    assert [q for _, q in LOSSLESS] == sorted((q for _, q in LOSSLESS), reverse=True)
    assert {uid for uid, _ in LOSSLESS} == {uid for uid, _ in LOSSY}
    assert len(LOSSLESS) == 10
    assert ranked(["1.2", "1.3"]) == (("1.2", "1.00"), ("1.3", "0.99"))
    assert all(float(q) > 0 for _, q in ranked(["1.2"] * 200))


@given(st.binary(max_size=200))
def test_any_body_is_a_problem_or_none(body: bytes) -> None:
    read_problem(body)


def test_problems_that_are_none() -> None:
    assert read_problem(b"[" * 30_000) is None
    assert read_problem(b'["E1001"]') is None
    assert read_problem(b"x" * 100_000) is None
    found = read_problem(b'{"code":5,"message":"m","detail":null}')
    assert found is not None
    assert (found.code, found.title, found.detail) == ("", "m", "")


# --- the reader, without sockets ----------------------------------------------------------------------


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return (data[a:b] for a, b in itertools.pairwise(edges) if a < b)


def read(pieces: Iterator[bytes]) -> tuple[list[Head], bytes, bool]:
    reader = AnswerReader()
    events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
    heads = [event for event in events if isinstance(event, Head)]
    body = b"".join(event.data for event in events if isinstance(event, Body))
    return heads, body, isinstance(events[-1], End)


ANSWERS = [
    GOOD,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 10_000), max_size=10))
@settings(max_examples=150, deadline=None)
def test_answers_are_the_same_at_any_cut(data: bytes, cuts: list[int]) -> None:
    assert read(cut(data, cuts)) == read(iter([data]))


@pytest.mark.parametrize("data", ANSWERS[:-1])
def test_no_prefix_of_an_answer_is_an_answer(data: bytes) -> None:
    heads, _, ended = read(iter([data]))
    assert (len(heads), ended) == (1, True)
    for length in range(len(data)):
        with pytest.raises(AnswerRefused):
            read(iter([data[:length]]))


@pytest.mark.threat("request smuggling, pipelining")
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200\r\nA b\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: v\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"e" * 5000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.1 204 X\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 100 + b"\r\n",
    ],
)
def test_answers_that_are_refused(data: bytes) -> None:
    with pytest.raises(AnswerRefused):
        read(iter([data]))


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes, strict: bool) -> None:
    reader = AnswerReader(strict=strict)
    try:
        reader.feed(data)
        reader.feed(data)
        reader.finish()
    except AnswerRefused:
        assert strict
