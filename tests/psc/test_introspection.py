"""Token introspection against a proxy that answers, lies, drips, closes or is not there."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import protocol, reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.web.client import Agent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from drimbox.config import PscSettings
from drimbox.errors import (
    DrimboxError,
    IntrospectionTimeout,
    IntrospectionUnavailable,
    TokenInvalid,
)
from drimbox.ports import Introspection
from drimbox.psc.introspection import TokenIntrospector
from drimbox.psc.tokens import TokenRules, check_token, read_introspection
from drimbox.secretfile import SecretUnusable

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl-_~+/=="
NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
ACTIVE = {
    "active": True,
    "sub": "f:550d:899700000001",
    "preferred_username": "899700000001",
    "exp": int(NOW.timestamp()) + 60,
    "scope": "openid scope_all",
    "typ": "Bearer",
}


class Proxy(Resource):
    """The e-Santé proxy: answers as told, remembers what it was asked."""

    isLeaf = True  # noqa: N815 (name of the interface)

    def __init__(self, status=200, body=None, headers=None):
        super().__init__()
        self.status = status
        self.headers = {b"Content-Type": b"application/json;charset=UTF-8"} | (headers or {})
        self.body = json.dumps(ACTIVE).encode() if body is None else body
        self.asked = []

    def render_POST(self, request):
        self.asked.append((request.getAllHeaders(), request.content.read(), request.uri))
        if self.body is NOT_DONE_YET:
            return NOT_DONE_YET
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return self.body


class Raw(protocol.Protocol):
    """A server that writes fixed bytes at the first request, then closes if told so."""

    def __init__(self, data, close):
        self.data, self.close = data, close

    def dataReceived(self, _):
        self.transport.write(self.data)
        if self.close:
            self.transport.loseConnection()


@contextmanager
def listening(factory):
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield f"http://127.0.0.1:{port.getHost().port}/introspect"
    finally:
        port.stopListening()


def raw(data, close=True):
    factory = protocol.Factory()
    factory.buildProtocol = lambda _: Raw(data, close)
    return factory


@pytest.fixture
def make(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s€cret:with colon\n", encoding="utf-8")

    def introspector(url, clock=reactor, **options):
        settings = PscSettings(url, "client", secret, **options)
        return TokenIntrospector(settings, Agent(reactor), clock, lambda: NOW)

    return introspector


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_an_active_token_gives_its_professional(make):
    proxy = Proxy()
    with listening(Site(proxy)) as url:
        answer = await make(url).introspect(TOKEN)
    assert answer == Introspection("899700000001", None, ACTIVE["exp"])
    ((headers, body, uri),) = proxy.asked
    assert headers[b"authorization"] == b"Basic " + base64.b64encode("client:s€cret:with colon".encode())
    assert headers[b"content-type"] == b"application/x-www-form-urlencoded"
    assert body == b"token=" + TOKEN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D").encode()
    assert b"eyJ" not in uri


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"active": False}),
        (200, ACTIVE | {"active": False}),
        (200, ACTIVE | {"exp": int(NOW.timestamp()) - 10}),
        (200, ACTIVE | {"exp": 0}),
        (400, {"error": "invalid_request"}),
        (401, {}),
        (403, ACTIVE),
        (404, ACTIVE),
        (500, ACTIVE),
        (503, ACTIVE),
        (204, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_token_that_is_not_good_or_not_verifiable_is_403(make, status, body):
    proxy = Site(Proxy(status, b"" if body is None else json.dumps(body).encode()))
    with listening(proxy) as url, pytest.raises(TokenInvalid) as caught:
        await make(url).introspect(TOKEN)
    assert (caught.value.status, caught.value.code) == (403, "E1104")


@pytest.mark.threat("SSRF")
@pytest_twisted.ensureDeferred
async def test_redirections_are_not_followed(make):
    target = Proxy()
    with listening(Site(target)) as elsewhere:
        for status in (301, 302, 307, 308):
            proxy = Site(Proxy(status, b"", {b"Location": elsewhere.encode()}))
            with listening(proxy) as url, pytest.raises(TokenInvalid):
                await make(url).introspect(TOKEN)
    assert target.asked == []


@pytest.mark.threat("tokens: oversize, odd, logged, of others")
@pytest.mark.parametrize(
    "token", ["", "a" * 8193, "a b", "a\r\nX: y", "é", "a&active=true", "a=b", "\x00", "{}"]
)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_a_token_is_never_sent(make, token):
    proxy = Proxy()
    with listening(Site(proxy)) as url, pytest.raises(TokenInvalid) as caught:
        await make(url).introspect(token)
    assert proxy.asked == []
    assert len(token) < 3 or token not in str(caught.value)


GARBAGE = [
    b"", b"active", b"[]", b"null", b"true", b"{}",
    b'{"active":"true"}', b'{"active":1}', b'{"active":true',
    b'{"active":false,"active":true}', b'{"active":true,"exp":"x"}', b'{"active":true,"exp":NaN}',
    b'{"active":true,"exp":1e999}', b'{"active":true,"exp":true}', b'{"active":true,"nbf":"x"}',
    b"\xff\xfe", b"[" * 60000,
    b'{"active":true,"exp":' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_cannot_be_understood_is_502(make, body):
    with listening(Site(Proxy(200, body))) as url, pytest.raises(IntrospectionUnavailable) as caught:
        await make(url).introspect(TOKEN)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "factory",
    [
        raw(b""),
        raw(b"\x15\x03\x01garbage"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"active\":true}"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"active\":true}\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b" " * 70000, close=False),
        raw(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 70000),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"active\":tr"),
    ],
    ids=["closes", "garbage", "short", "no last chunk", "too long", "too long, no length", "cut"],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_a_transport_that_fails_is_502(make, factory):
    with listening(factory) as url, pytest.raises(IntrospectionUnavailable):
        await make(url).introspect(TOKEN)


@pytest.mark.parametrize(
    "headers",
    [{b"Content-Type": b"text/html"}, {b"Content-Type": b"application/jwt"}, {b"Content-Type": b""}],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_of_another_media_type_is_502(make, headers):
    with listening(Site(Proxy(headers=headers))) as url, pytest.raises(IntrospectionUnavailable):
        await make(url).introspect(TOKEN)


class Failing(Proxy):
    """A proxy that fails the first times."""

    def __init__(self, times, fail):
        super().__init__()
        self.times, self.fail = times, fail

    def render_POST(self, request):
        answer = super().render_POST(request)
        if len(self.asked) > self.times:
            return answer
        return self.fail(request)


def unavailable(request):
    request.setResponseCode(503)
    return b""


def cut(request):
    request.transport.abortConnection()
    return NOT_DONE_YET


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("fail", [unavailable, cut])
@pytest_twisted.ensureDeferred
async def test_a_question_without_an_answer_is_asked_again_as_often_as_configured(make, fail):
    proxy = Failing(2, fail)
    with listening(Site(proxy)) as url:
        assert (await make(url, retries=2).introspect(TOKEN)).professional == "899700000001"
        assert len(proxy.asked) == 3
        proxy.asked.clear()
        with pytest.raises(TokenInvalid if fail is unavailable else IntrospectionUnavailable):
            await make(url, retries=1).introspect(TOKEN)
        assert len(proxy.asked) == 2
        proxy.asked.clear()
        with pytest.raises(DrimboxError):
            await make(url, retries=0).introspect(TOKEN)
        assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    "proxy",
    [
        Proxy(403), Proxy(302), Proxy(429), Proxy(200, b"x"), Proxy(200, b" " * 70000),
        Proxy(200, b'{"active":false}'),
    ],
    ids=["403", "302", "429", "noise", "too long", "inactive"],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_an_answer_is_an_answer_and_is_not_asked_for_again(make, proxy):
    with listening(Site(proxy)) as url, pytest.raises(DrimboxError):
        await make(url, retries=5).introspect(TOKEN)
    assert len(proxy.asked) == 1


@pytest_twisted.ensureDeferred
async def test_a_question_given_up_is_not_asked_again(make):
    proxy = Proxy(200, NOT_DONE_YET)
    clock = Clock()
    with listening(Site(proxy)) as url:
        for give_up in ("cancel", "timeout"):
            proxy.asked.clear()
            waiting = Deferred.fromCoroutine(make(url, clock, retries=5).introspect(TOKEN))
            while not proxy.asked:
                await deferLater(reactor, 0.01, lambda: None)
            if give_up == "cancel":
                waiting.cancel()
            else:
                clock.advance(5)
            with pytest.raises((CancelledError, IntrospectionTimeout, IntrospectionUnavailable)):
                await waiting
            await deferLater(reactor, 0.05, lambda: None)
            clock.advance(60)
            await deferLater(reactor, 0.05, lambda: None)
            assert len(proxy.asked) == 1
            assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_502(make):
    with listening(raw(b"")) as url:
        pass
    with pytest.raises(IntrospectionUnavailable):
        await make(url).introspect(TOKEN)


@pytest.mark.parametrize("start", [None, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
@pytest_twisted.ensureDeferred
async def test_a_slow_proxy_is_504_however_far_it_got(make, start):
    clock = Clock()
    lost = Deferred()

    class Silent(Raw):
        def connectionLost(self, reason):
            lost.callback(None)

        def dataReceived(self, data):
            super().dataReceived(data)
            reactor.callLater(0.05, clock.advance, 5)

    factory = protocol.Factory()
    factory.buildProtocol = lambda _: Silent(start or b"", False)
    with listening(factory) as url:
        waiting = Deferred.fromCoroutine(make(url, clock, timeout=5.0).introspect(TOKEN))
        clock.advance(4.9)
        assert not waiting.called
        with pytest.raises(IntrospectionTimeout) as caught:
            await waiting
        assert caught.value.status == 504
        # And the connection is not left behind.
        await lost
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_ends_the_question(make):
    with listening(Site(Proxy(200, NOT_DONE_YET))) as url:
        clock = Clock()
        waiting = Deferred.fromCoroutine(make(url, clock).introspect(TOKEN))
        await deferLater(reactor, 0.05, lambda: None)
        waiting.cancel()
        with pytest.raises((CancelledError, IntrospectionUnavailable)):
            await waiting
    assert clock.getDelayedCalls() == []


@pytest.mark.threat("log and audit injection, flooding")
@pytest_twisted.ensureDeferred
async def test_neither_token_nor_secret_is_ever_logged_or_told(make):
    events, told = [], []
    globalLogPublisher.addObserver(events.append)
    try:
        for factory in (
            Site(Proxy(500)),
            Site(Proxy(200, b"x")),
            raw(b""),
            raw(b"HTTP/1.1 200 OK\r\n\r\n"),
        ):
            with listening(factory) as url, pytest.raises(DrimboxError) as caught:
                await make(url).introspect(TOKEN)
            told.append(f"{caught.value} {caught.value.__cause__}")
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert events
    for text in (repr(events), repr(told)):
        assert TOKEN not in text
        assert "cret" not in text


@pytest.mark.parametrize("content", [None, b"", b"\n", b"a\nb\n", b"\xff", b"x" * 5000])
def test_an_unusable_secret_is_known_at_once(tmp_path, content):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SecretUnusable, match="secret"):
        TokenIntrospector(PscSettings("https://p", "c", path), Agent(reactor), reactor, lambda: NOW)


# --- reading the answer ---------------------------------------------------------------------------


#: Says who is behind a token when it is known, and lets others pass.
ANYBODY = TokenRules(require_professional=False)


def read(rules=ANYBODY, **claims):
    return read_introspection(json.dumps({"active": True} | claims).encode(), NOW.timestamp(), rules)


@pytest.mark.parametrize(
    ("claims", "professional"),
    [
        ({"SubjectNameID": "899700000001", "preferred_username": "x"}, "899700000001"),
        ({"preferred_username": "899700000001"}, "899700000001"),
        ({"sub": "f:550d-11:899700000001"}, "899700000001"),
        ({"SubjectNameID": "", "preferred_username": "3100000001/0042"}, "3100000001/0042"),
        ({"SubjectNameID": 8, "preferred_username": ["x"], "sub": {"a": 1}}, None),
        ({"sub": "550d-11"}, None),
        ({"SubjectNameID": "a\r\nb"}, None),
        ({"SubjectNameID": "<b>"}, None),
        ({"SubjectNameID": "8" * 65}, None),
        ({}, None),
    ],
)
def test_the_professional_is_the_first_identifier_there_is(claims, professional):
    assert read(**claims).professional == professional


def test_the_structure_is_taken_when_the_answer_has_one():
    assert read(SubjectOrganizationID="499700000001006").structure == "499700000001006"
    assert read(SubjectOrganizationID="a b").structure is None


def test_expiry_may_be_missing_or_a_fraction():
    assert read().expires_at is None
    assert read(exp=NOW.timestamp() + 1.5).expires_at == int(NOW.timestamp()) + 1


STRICT = TokenRules(audience=("drimbox", "https://drimbox"), clock_skew=10.0)
OURS = {"aud": "drimbox", "preferred_username": "899700000001"}


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "account"}, {"aud": None}, {"aud": []}, {"aud": ["account", 1]}, {"aud": {"drimbox": 1}},
        {"aud": "drimbox2"}, {"aud": "DRIMBOX"}, {"aud": [["drimbox"]]},
        {"exp": int(NOW.timestamp()) - 10}, {"exp": 0}, {"exp": -1e300},
        {"nbf": int(NOW.timestamp()) + 11},
        {"typ": "Refresh"}, {"typ": "ID"}, {"typ": "Offline"}, {"typ": ["Bearer"]}, {"token_type": "DPoP"},
        {"preferred_username": None}, {"preferred_username": "service-account-x"},
        {"preferred_username": ""}, {"preferred_username": 899700000001}, {"preferred_username": "8\n9"},
    ],
)  # fmt: skip
def test_an_active_token_that_is_not_for_us_or_of_nobody_opens_nothing(claims):
    with pytest.raises(TokenInvalid):
        read(STRICT, **(OURS | claims))


@pytest.mark.parametrize(
    "claims",
    [
        {}, {"aud": ["account", "https://drimbox"]}, {"typ": "bearer", "token_type": "Bearer"},
        {"exp": int(NOW.timestamp()) - 9, "nbf": int(NOW.timestamp()) + 10},
    ],
)  # fmt: skip
def test_an_active_token_for_us_within_the_tolerance_of_clocks_is_good(claims):
    assert read(STRICT, **(OURS | claims)).professional == "899700000001"


KEYS = st.sampled_from(["active", "exp", "sub", "SubjectNameID"])
LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=9)


@given(
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    )
)
def test_any_json_is_an_answer_or_a_coded_error(value):
    try:
        answer = read_introspection(json.dumps(value).encode(), 0, ANYBODY)
    except (TokenInvalid, IntrospectionUnavailable):
        return
    assert value["active"] is True
    assert answer.professional is None or answer.professional.isascii()


def test_the_longest_token_passes():
    check_token("a" * 8192)
