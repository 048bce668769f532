"""The admin listener: its routes, what it refuses, and how it bounds what it accepts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_twisted
import treq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from drimbox import errors
from drimbox.config import Listener
from drimbox.limits import Refused, Why
from drimbox.web import admin, connections
from drimbox.web.admin import (
    AdminApi,
    AdminCall,
    AdminProblem,
    Reply,
    admin_factory,
    core_api,
    host_accepted,
)
from tests.web.notice_desk import NoticeDesk


class Process:
    """What the rest of the gateway would give the listener."""

    def __init__(self) -> None:
        self.ready = True
        self.desk = NoticeDesk()

    @property
    def acknowledged(self) -> list[int]:
        return self.desk.acknowledged

    def api(self) -> AdminApi:
        async def status() -> dict[str, Any]:
            return {"name": "DRIMbox", "since": datetime(2026, 1, 2, tzinfo=UTC), "sites": {"radio": "é"}}

        async def ready() -> dict[str, bool]:
            return {"store": True, "whitelist": self.ready}

        async def exposition() -> bytes:
            return b"drimbox_deliveries_running 0.0\n"

        return self.desk.register(core_api(status=status, ready=ready, exposition=exposition))


class Wire:
    """One connection to the listener, in memory and on a clock of its own."""

    def __init__(
        self,
        api: AdminApi | None = None,
        listening: str = "127.0.0.1",
        *,
        request_timeout: float = 300.0,
        told: Refused = lambda address, why: None,
    ) -> None:
        self.clock = Clock()
        listener = Listener(listening, 9349, request_timeout=request_timeout)
        self.factory: Any = admin_factory(api or Process().api(), listener, self.clock, told=told)
        self.open()

    def open(self) -> Any:
        self.transport = StringTransport()
        self.protocol = self.factory.buildProtocol(None)
        if self.protocol is not None:
            self.protocol.makeConnection(self.transport)
        return self.protocol

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def ask(
        self, method: str, path: str, *headers: str, body: bytes = b"", host: str = "localhost:9349"
    ) -> tuple[int, dict[str, str], Any]:
        """Send one request; return status, headers and the body, read as JSON when it says so."""
        lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.transport.clear()
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], Any]:
        head, _, content = self.transport.value().partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        fields = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in rest}
        is_json = fields.get("content-type") == "application/json" and content
        return int(first.split()[1]), fields, json.loads(content) if is_json else content


POST = "Content-Type: application/json"


# --- routes -----------------------------------------------------------------------------------------


def test_metrics_are_the_exposition() -> None:
    status, headers, body = Wire().ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"drimbox_deliveries_running" in body


def test_live_status_and_notices_are_json() -> None:
    wire = Wire()
    assert wire.ask("GET", "/live")[::2] == (200, {"live": True})
    assert wire.ask("GET", "/status")[2] == {
        "name": "DRIMbox",
        "since": "2026-01-02T00:00:00+00:00",
        "sites": {"radio": "é"},
    }
    assert wire.ask("GET", "/notices")[2]["notices"][0]["id"] == 7


def test_not_ready_is_503_with_its_reasons() -> None:
    process = Process()
    wire = Wire(process.api())
    assert wire.ask("GET", "/ready")[::2] == (
        200,
        {"ready": True, "checks": {"store": True, "whitelist": True}},
    )
    process.ready = False
    assert wire.ask("GET", "/ready")[::2] == (
        503,
        {"ready": False, "checks": {"store": True, "whitelist": False}},
    )


def test_acknowledge() -> None:
    process = Process()
    wire = Wire(process.api())
    assert wire.ask("POST", "/notices/7/acknowledge", POST, body=b"{}")[0] == 200
    assert wire.ask("POST", "/notices/8/acknowledge", POST)[0] == 404
    assert wire.ask("POST", "/notices/x/acknowledge", POST)[0] == 400
    assert wire.ask("POST", "/notices/٣/acknowledge".encode().decode("latin-1"), POST)[0] == 400
    assert process.acknowledged == [7, 8]


def test_unknown_path_and_method() -> None:
    wire = Wire()
    assert wire.ask("GET", "/")[0] == 404
    assert wire.ask("GET", "/status/x")[0] == 404
    assert wire.ask("GET", "/notices//acknowledge")[0] == 404
    status, headers, body = wire.ask("POST", "/status", POST)
    assert (status, headers["allow"]) == (405, "GET")
    assert body["error"]["status"] == 405


def test_head_has_the_length_and_no_body() -> None:
    status, headers, body = Wire().ask("HEAD", "/live")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(b'{"live": true}')


def test_answers_are_neither_stored_nor_guessed_and_hide_the_versions() -> None:
    _, headers, _ = Wire().ask("GET", "/status")
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "twisted" not in headers["server"].lower()


def test_a_later_command_registers_its_own_route() -> None:
    api = Process().api()
    calls = []

    async def resync(call: AdminCall) -> object:
        calls.append(call)
        return Reply({"started": True}, status=202)

    api.register("POST", "/resync/{site}", resync)
    answer = Wire(api).ask("POST", "/resync/radio%2F1?depth=2", POST, body=b'{"dry": true}')
    assert answer[::2] == (202, {"started": True})
    assert calls == [AdminCall({"site": "radio/1"}, {"depth": "2"}, {"dry": True})]


def test_a_route_is_registered_once_and_well() -> None:
    api = Process().api()

    async def handler(_: AdminCall) -> object:
        return None

    with pytest.raises(ValueError, match="already"):
        api.register("POST", "/notices/{other}/acknowledge", handler)
    for method, path in (("PATCH", "/x"), ("GET", "x"), ("GET", "/a//b"), ("GET", "/A")):
        with pytest.raises(ValueError, match="bad route"):
            api.register(method, path, handler)


def test_a_plain_path_wins_over_a_parameter() -> None:
    api = AdminApi()

    async def any_site(call: AdminCall) -> object:
        return call.params

    async def all_sites(_: AdminCall) -> object:
        return "all"

    api.register("GET", "/sites/{name}", any_site)
    api.register("GET", "/sites/all", all_sites)
    wire = Wire(api)
    assert wire.ask("GET", "/sites/all")[2] == "all"
    assert wire.ask("GET", "/sites/x")[2] == {"name": "x"}


# --- failures ---------------------------------------------------------------------------------------


def failing(make: Callable[[], Awaitable[object]]) -> Wire:
    api = AdminApi()

    async def handler(_: AdminCall) -> object:
        return await make()

    api.register("GET", "/x", handler)
    return Wire(api)


def test_coded_errors_give_their_code_and_status() -> None:
    async def fail() -> object:
        raise errors.PacsUnavailable("PACS1")

    status, _, body = failing(fail).ask("GET", "/x")
    assert status == 502
    assert body["error"]["code"] == "E1004"


def test_problem_of_a_handler() -> None:
    async def fail() -> object:
        raise AdminProblem(409, "déjà en cours")

    assert failing(fail).ask("GET", "/x")[2] == {"error": {"status": 409, "detail": "déjà en cours"}}


def test_a_bug_is_logged_and_says_nothing() -> None:
    async def fail() -> object:
        raise RuntimeError("secret interne")

    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        status, _, body = failing(fail).ask("GET", "/x")
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert any("log_failure" in event for event in seen)


def test_a_handler_that_never_ends_is_cut_at_its_limit() -> None:
    stopped: list[Any] = []

    async def never() -> object:
        return await Deferred(stopped.append)

    wire = failing(never)
    wire.transport.clear()
    wire.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wire.clock.advance(admin.HANDLER_TIMEOUT - 1)
    assert wire.transport.value() == b""
    wire.clock.advance(1)
    assert wire.answer()[0] == 504
    assert stopped


def test_a_client_that_leaves_stops_the_handler() -> None:
    from twisted.internet.error import ConnectionLost
    from twisted.python.failure import Failure

    stopped: list[Any] = []

    async def never() -> object:
        return await Deferred(stopped.append)

    wire = failing(never)
    wire.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wire.protocol.connectionLost(Failure(ConnectionLost()))
    assert stopped
    wire.clock.advance(1000)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.threat("a foreign page on the loop")
@pytest.mark.parametrize(
    "host", ["drimbox.pirate.fr", "127.0.0.1.pirate.fr", "localhost.pirate.fr:9349", "", "10.0.0.1", "a b"]
)
def test_foreign_host_is_refused(host: str) -> None:
    assert Wire().ask("GET", "/status", host=host)[0] in (400, 403)


@pytest.mark.threat("a foreign page on the loop")
def test_two_hosts_are_refused() -> None:
    assert Wire().ask("GET", "/status", "Host: pirate.fr")[0] in (400, 403)
    assert Wire().ask("GET", "http://pirate.fr/status")[0] == 404


@pytest.mark.parametrize(
    ("header", "listening", "accepted"),
    [
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:9349", "127.0.0.1", True),
        ("127.0.0.1:1", "127.0.0.1", True),
        ("127.9.9.9", "127.0.0.1", True),
        ("[::1]:9349", "::1", True),
        ("10.0.0.7:9349", "10.0.0.7", True),
        ("10.0.0.8:9349", "10.0.0.7", False),
        ("10.0.0.8", "0.0.0.0", True),
        ("pirate.fr", "0.0.0.0", False),
        ("localhost:", "127.0.0.1", False),
        ("localhost:9349:1", "127.0.0.1", False),
        ("2130706433", "127.0.0.1", False),
        ("127.1", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_hosts(header: str, listening: str, accepted: bool) -> None:
    assert host_accepted(header.encode(), listening) is accepted


@pytest.mark.threat("a foreign page on the loop")
@pytest.mark.parametrize(
    "header",
    [
        "Origin: https://pirate.fr",
        "Origin: null",
        "Origin: http://localhost:9349",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)
def test_pages_are_refused(header: str) -> None:
    process = Process()
    wire = Wire(process.api())
    assert wire.ask("GET", "/status", header)[0] == 403
    assert wire.ask("POST", "/notices/7/acknowledge", POST, header)[0] == 403
    assert process.acknowledged == []


@pytest.mark.threat("a foreign page on the loop")
def test_a_form_cannot_change_anything() -> None:
    process = Process()
    wire = Wire(process.api())
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert wire.ask("POST", "/notices/7/acknowledge", f"Content-Type: {kind}", body=b"{}")[0] == 415
    assert wire.ask("POST", "/notices/7/acknowledge")[0] == 415
    assert process.acknowledged == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"\xff", b'"x"', b"[" * 30000])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    assert Wire().ask("POST", "/notices/7/acknowledge", POST, body=body)[0] == 400


@pytest.mark.threat("Content-Length and body bombs")
def test_a_large_body_is_refused_and_not_kept() -> None:
    wire = Wire()
    size = connections.MAX_BODY + 1
    assert wire.ask("POST", "/notices/7/acknowledge", POST, body=b" " * size)[0] == 413


@pytest.mark.threat("Content-Length and body bombs")
def test_a_chunked_body_without_end_is_cut() -> None:
    wire = Wire()
    aborted: list[bool] = []
    wire.transport.abortConnection = lambda: aborted.append(True)  # type: ignore[method-assign]
    wire.send(
        b"POST /notices/7/acknowledge HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for _ in range(20):
        wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        if aborted:
            break
    assert aborted


@pytest.mark.threat("slowloris, stalled reader")
def test_a_silent_connection_is_closed() -> None:
    wire = Wire()
    wire.send(b"GET /status HT")
    wire.clock.advance(connections.IDLE_TIMEOUT + 1)
    assert wire.transport.disconnecting


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("begun", [b"GET /status HT", b"POST /x HTTP/1.1\r\nContent-Length: 900\r\n\r\n"])
def test_a_request_that_drips_is_cut_in_its_time(begun: bytes) -> None:
    told: list[Any] = []
    wire = Wire(request_timeout=20.0, told=lambda address, why: told.append(why))
    cut: list[bool] = []
    wire.transport.abortConnection = lambda: cut.append(True)  # type: ignore[method-assign]
    wire.send(begun)
    for _ in range(19):
        wire.clock.advance(1)
        wire.send(b"x")
    assert cut == []
    wire.clock.advance(1)
    assert cut == [True]
    assert told == [Why.SLOW]


@pytest.mark.threat("slowloris, stalled reader")
def test_a_connection_that_is_kept_has_as_long_for_each_request() -> None:
    told: list[Any] = []
    wire = Wire(request_timeout=20.0, told=lambda address, why: told.append(why))
    cut: list[bool] = []
    wire.transport.abortConnection = lambda: cut.append(True)  # type: ignore[method-assign]
    assert wire.ask("GET", "/live")[0] == 200
    # Between two requests it may idle longer.
    wire.clock.advance(30)
    assert wire.ask("GET", "/live")[0] == 200
    assert (cut, wire.transport.disconnecting) == ([], False)
    wire.send(b"GET /l")
    wire.clock.advance(20)
    assert cut == [True]
    # One that never said anything is cut too, and is nobody's concern.
    wire.open()
    quiet: list[bool] = []
    wire.transport.abortConnection = lambda: quiet.append(True)  # type: ignore[method-assign]
    wire.clock.advance(20)
    assert quiet == [True]
    assert told == [Why.SLOW]


@pytest.mark.threat("slowloris, stalled reader")
def test_connections_are_counted() -> None:
    wire = Wire()
    for _ in range(connections.MAX_CONNECTIONS - 1):
        assert wire.open() is not None
    assert wire.open() is None


def test_too_many_parameters() -> None:
    query = "&".join(f"a{number}=1" for number in range(40))
    assert Wire().ask("GET", f"/status?{query}")[0] == 400


@given(st.binary(max_size=400))
def test_garbage_never_reaches_a_handler_nor_raises(data: bytes) -> None:
    process = Process()
    wire = Wire(process.api())
    wire.send(data + b"\r\n\r\n")
    assert process.acknowledged == []


# --- a real socket ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_over_a_socket() -> None:
    factory = admin_factory(Process().api(), Listener("127.0.0.1", 0), reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    try:
        url = f"http://127.0.0.1:{port.getHost().port}/status"
        response = await treq.get(url, persistent=False)
        assert response.code == 200
        assert (await treq.json_content(response))["name"] == "DRIMbox"
    finally:
        await port.stopListening()


@pytest.mark.peer("curl")
@pytest.mark.threat("a foreign page on the loop")
@pytest.mark.parametrize(
    ("status", "options"),
    [
        (200, ()),
        (200, ("-H", "Host: localhost")),
        # A name that a foreign DNS server resolves to the loop.
        (403, ("-H", "Host: pirate.fr:9349")),
        (403, ("-H", "Host: 127.0.0.1.pirate.fr")),
        (403, ("-H", "Host:")),
        # What a page has a browser send: a form, a fetch without leave, a link.
        (403, ("-H", "Origin: https://pirate.fr", "-H", POST, "-d", "{}")),
        (403, ("-H", "Origin: null", "-H", POST, "-d", "{}")),
        (415, ("-d", "by=pirate")),
        (415, ("-H", "Content-Type: text/plain", "-d", "{}")),
        (403, ("-H", "Sec-Fetch-Site: cross-site")),
        (403, ("-X", "OPTIONS", "-H", "Origin: https://pirate.fr")),
        (405, ("-X", "PUT", "-H", POST, "-d", "{}")),
        (413, ("-H", POST, "-d", "x" * (connections.MAX_BODY + 1))),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_browser_led_by_a_foreign_page_gets(status: int, options: tuple[str, ...]) -> None:
    process = Process()
    factory = admin_factory(process.api(), Listener("127.0.0.1", 0), reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    path = "/notices/7/acknowledge" if "-d" in options else "/status"
    command = ["curl", "-s", "--noproxy", "*", "-m", "60", "-o", "-", "-w", "\\n%{http_code}", *options]
    try:
        done: Any = await deferToThread(
            lambda: subprocess.run(
                [*command, f"http://127.0.0.1:{port.getHost().port}{path}"],
                capture_output=True,
                timeout=90,
                check=False,
            )
        )
        body, _, code = done.stdout.rpartition(b"\n")
        assert int(code) == status, body
        if status != 200:
            assert json.loads(body)["error"]["status"] == status
        assert process.acknowledged == []
    finally:
        await port.stopListening()
