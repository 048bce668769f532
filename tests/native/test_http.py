"""The HTTP client of a native archive: connections kept, bodies streamed, none that was cut is whole."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from drimbox.native.http import Client, Origin, basic, drop
from drimbox.native.store import StoreTimeout, StoreUnavailable
from drimbox.sim.peers import free_port
from tests.integration.waiting import until
from tests.native.scripted_http import Peer, talking


async def get(client: Client, path: str = "/x", limit: int = 1 << 20) -> tuple[int, bytes]:
    reply = await client.get(path)
    return reply.status, await reply.body(limit)


@pytest_twisted.ensureDeferred
async def test_one_connection_serves_many_questions() -> None:
    with talking(lambda peer, request: peer.answer(request.encode())) as (server, client):
        for number in range(5):
            status, body = await get(client, f"/{number}")
            assert status == 200
            assert body.startswith(f"GET /{number} HTTP/1.1\r\nHost: 127.0.0.1:".encode())
        assert len(server.peers) == 1


@pytest_twisted.ensureDeferred
async def test_questions_at_once_use_connections_of_their_own() -> None:
    waiting: list[Peer] = []
    with talking(lambda peer, request: waiting.append(peer)) as (server, client):
        asked = [Deferred.fromCoroutine(get(client)) for _ in range(3)]
        await until(lambda: len(waiting) == 3)
        for peer in waiting:
            peer.answer(b"ok")
        assert await gatherResults(asked) == [(200, b"ok")] * 3
        assert len(server.peers) == 3


@pytest_twisted.ensureDeferred
async def test_a_question_is_posted_with_its_credentials_behind_the_prefix() -> None:
    secret = basic("drimbox", "pâte à choux")
    with talking(lambda peer, _: peer.answer(b"[]"), path="/orthanc/", authorization=lambda: secret) as (
        server,
        client,
    ):
        reply = await client.post("/tools/find", b'{"a": 1}')
        assert await reply.body(10) == b"[]"
    (request,) = server.requests
    assert request.startswith("POST /orthanc/tools/find HTTP/1.1\r\n")
    assert "\r\nAuthorization: Basic ZHJpbWJveDpww6J0ZSDDoCBjaG91eA==\r\n" in request
    assert request.endswith('\r\n\r\n{"a": 1}')


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_was_closed_costs_one_more_question() -> None:
    def once(peer: Peer, request: str) -> None:
        if peer.requests == 1:
            peer.answer(b"ok")
        else:
            peer.close()

    with talking(once) as (server, client):
        assert await get(client) == (200, b"ok")
        # The server closes it without a word as soon as it is used again.
        assert await get(client) == (200, b"ok")
        assert len(server.peers) == 2


@pytest_twisted.ensureDeferred
async def test_a_connection_that_never_answers_is_not_asked_again() -> None:
    with talking(lambda peer, _: peer.close()) as (server, client):
        with pytest.raises(StoreUnavailable, match="sans réponse"):
            await get(client)
        assert len(server.requests) == 1


@pytest_twisted.ensureDeferred
async def test_a_server_that_closes_after_each_answer_is_obeyed() -> None:
    with talking(lambda peer, _: peer.answer(b"ok", "200 OK", "Connection: close")) as (server, client):
        assert await get(client) == (200, b"ok")
        assert await get(client) == (200, b"ok")
        assert len(server.peers) == 2
        await until(lambda: server.lost == 2)


@pytest_twisted.ensureDeferred
async def test_an_idle_connection_closed_by_the_server_is_forgotten() -> None:
    with talking(lambda peer, _: peer.answer(b"ok")) as (server, client):
        assert await get(client) == (200, b"ok")
        server.peers[0].close()
        await until(lambda: server.lost == 1)
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
        assert await get(client) == (200, b"ok")
        assert [peer.requests for peer in server.peers] == [1, 1]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "coupée"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", "coupée"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "coupée"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "illisible"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "illisible"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n", "illisible"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000, "illisible"),
    ],
    ids=["cut", "cut chunks", "cut head", "not http", "two lengths", "more than asked", "endless head"],
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_a_whole_answer_is_none(sent: bytes, words: str) -> None:
    def script(peer: Peer, request: str) -> None:
        peer.raw(sent)
        peer.close()

    with talking(script) as (server, client):
        with pytest.raises(StoreUnavailable, match=words):
            await get(client)
        await until(lambda: server.lost == 1)


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_unasked_is_cut() -> None:
    with talking(lambda peer, _: peer.answer(b"ok")) as (server, client):
        assert await get(client) == (200, b"ok")
        server.peers[0].raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await until(lambda: server.lost == 1)
        assert await get(client) == (200, b"ok")


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_body_is_the_same_however_it_comes(chunked: bool) -> None:
    body = bytes(range(200))
    if chunked:
        sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + body[:100]
        sent += b"\r\n64\r\n" + body[100:] + b"\r\n0\r\n\r\n"
    else:
        sent = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + body
    chance = random.Random(7)

    def script(peer: Peer, request: str) -> None:
        places = sorted({0, len(sent), *(chance.randrange(len(sent)) for _ in range(4))})
        clock: Any = reactor
        for delay, (start, end) in enumerate(pairwise(places)):
            clock.callLater(delay * 0.002, peer.raw, sent[start:end])

    with talking(script) as (server, client):
        for _ in range(30):
            assert await get(client) == (200, body)
        assert len(server.peers) == 1


@pytest_twisted.ensureDeferred
async def test_a_slow_taker_slows_the_archive() -> None:
    size = 64 * 1024 * 1024

    def script(peer: Peer, request: str) -> None:
        peer.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        peer.raw(bytes(size))

    with talking(script) as (server, client):
        reply = await client.get("/big")
        blocks: Any = reply
        taken = len(await anext(blocks))
        await deferLater(reactor, 0.3)  # type: ignore[arg-type]
        held = reply._held
        assert held <= 1024 * 1024, f"{held} bytes held for a client that takes nothing"
        async for block in blocks:
            taken += len(block)
        assert taken == size
        # Whole, so the connection is used again.
        server.script = lambda peer, request: peer.answer(b"ok")
        assert await get(client) == (200, b"ok")
        assert len(server.peers) == 1


@pytest_twisted.ensureDeferred
async def test_a_connection_paused_by_the_end_of_an_answer_is_read_again() -> None:
    with talking(lambda peer, _: peer.answer(bytes(600_000))) as (server, client):
        for _ in range(3):
            reply = await client.get("/x")
            # All of it is held by now, which is more than is read ahead.
            await deferLater(reactor, 0.2)  # type: ignore[arg-type]
            assert len(await reply.body(1 << 20)) == 600_000
        assert len(server.peers) == 1


@pytest_twisted.ensureDeferred
async def test_whoever_stops_half_way_cuts_the_connection() -> None:
    def script(peer: Peer, request: str) -> None:
        peer.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345")

    with talking(script) as (server, client):
        reply = await client.get("/x")
        reply.close()
        await until(lambda: server.lost == 1)
        with pytest.raises(StoreUnavailable):
            await reply.body(100)


@pytest.mark.parametrize("after_head", [False, True])
@pytest_twisted.ensureDeferred
async def test_cancelling_cuts_the_connection(after_head: bool) -> None:
    def script(peer: Peer, request: str) -> None:
        if after_head:
            peer.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345")

    with talking(script) as (server, client):
        asked = Deferred.fromCoroutine(get(client))
        await until(lambda: server.requests)
        await deferLater(reactor, 0.05)  # type: ignore[arg-type]
        asked.cancel()
        with pytest.raises(CancelledError):
            await asked
        await until(lambda: server.lost == 1)


@pytest_twisted.ensureDeferred
async def test_a_long_answer_is_not_kept() -> None:
    with talking(lambda peer, _: peer.answer(bytes(30_000_000))) as (server, client):
        with pytest.raises(StoreUnavailable, match="5000 octets"):
            await get(client, limit=5000)
        await until(lambda: server.lost == 1)


@pytest_twisted.ensureDeferred
async def test_the_words_of_a_refusal_leave_the_connection_usable() -> None:
    with talking(lambda peer, _: peer.answer(b"no" * 100, "500 Error")) as (server, client):
        for _ in range(2):
            reply = await client.get("/x")
            assert reply.status == 500
            await drop(reply)
        assert len(server.peers) == 1


@pytest_twisted.ensureDeferred
async def test_nobody_listens() -> None:
    client = Client(Origin.of(f"http://127.0.0.1:{free_port()}"), reactor, connect_timeout=5)
    with pytest.raises(StoreUnavailable, match="refusée"):
        await client.get("/x")
    client.close()
    with pytest.raises(StoreUnavailable, match="arrêt"):
        await client.get("/x")


@pytest.mark.parametrize(
    ("url", "origin", "netloc"),
    [
        ("http://127.0.0.1:8042", Origin(False, "127.0.0.1", 8042, ""), "127.0.0.1:8042"),
        ("https://pacs.chu.fr/a/b/", Origin(True, "pacs.chu.fr", 443, "/a/b"), "pacs.chu.fr"),
        ("http://[::1]", Origin(False, "::1", 80, ""), "[::1]"),
        ("http://localhost:80/", Origin(False, "localhost", 80, ""), "localhost"),
    ],
)
def test_an_address_is_taken_apart(url: str, origin: Origin, netloc: str) -> None:
    assert Origin.of(url) == origin
    assert origin.netloc == netloc


def test_a_timeout_is_a_kind_of_unavailability() -> None:
    assert issubclass(StoreTimeout, StoreUnavailable)
