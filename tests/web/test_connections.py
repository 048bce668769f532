"""The connections of the admin listener on real sockets: however one ends, nothing of it is left."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, globalLogPublisher

from drimbox.config import Listener
from drimbox.web.admin import admin_factory
from tests.integration.waiting import until
from tests.web.test_admin import Process

LOOPBACK = "127.0.0.1"
GET = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What is logged as a mistake of ours."""
    seen: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def leave(port: int, sent: bytes, reset: bool) -> None:
    """Open a connection, say something, hear the answer if there is one, go."""
    with socket.create_connection((LOOPBACK, port), timeout=20) as connection:
        connection.sendall(sent)
        if sent == GET:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "sent", [b"", b"GET /li", b"\x16\x03\x01", GET], ids=["none", "half", "TLS", "whole"]
)
@pytest_twisted.ensureDeferred
async def test_a_connection_in_clear_leaves_nothing(sent: bytes, reset: bool, told: list[Any]) -> None:
    factory: Any = admin_factory(Process().api(), Listener(LOOPBACK, 0), reactor)
    clock: Any = reactor
    port = clock.listenTCP(0, factory, interface=LOOPBACK)
    try:
        await deferToThread(leave, port.getHost().port, sent, reset)
        await until(lambda: not factory.protocols, what="the end of the connection")
    finally:
        await port.stopListening()
    assert told == []
