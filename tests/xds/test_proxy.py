"""Through the hospital's proxy: TLS ends at the server, and what the proxy spoils was not sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred

from drimbox.config import ProxySettings, Structure
from drimbox.ports import Accepted, DmpUnavailable
from drimbox.proxyconnect import (
    MAX_HEAD,
    ConnectAnswer,
    ProxyFailed,
    basic,
    bypasses,
    connect_request,
)
from drimbox.trust.outgoing import client_policy
from drimbox.trust.ways import Ways
from drimbox.xds.client import DmpClient
from tests.strict_proxy import StrictProxy
from tests.xds.builders import KOS_UID, REPORT, SUBMISSION, make_config
from tests.xds.conftest import Pki
from tests.xds.scripted import ScriptedDmp, http, registry, soap_body

pytestmark = pytest.mark.requirement("DB.SO.90")
SUCCESS = http(soap_body(registry("Success")))


class FixedClock:
    def now(self) -> datetime:
        return datetime(2026, 1, 12, 9, 50, tzinfo=UTC)


@pytest.fixture
def proxy() -> Iterator[StrictProxy]:
    proxy = StrictProxy()
    proxy.up()
    yield proxy
    pytest_twisted.blockon(Deferred.fromCoroutine(proxy.down()))


@pytest.fixture
def dmp(pki: Pki) -> Iterator[tuple[ScriptedDmp, str]]:
    server = ScriptedDmp(lambda request: SUCCESS, persistent=True)
    url = server.listen(pki.server, pki.roots)
    yield server, url
    pytest_twisted.blockon(maybeDeferred(server.close))


def client(
    pki: Pki, structure: Structure, url: str, proxy: StrictProxy, tmp: Path, **settings: Any
) -> DmpClient:
    config = make_config(url, pki.roots, structure, timeout=20.0, connect_timeout=6.0)
    if settings.pop("account", False):
        (tmp / "password").write_text("mot de passe\n")
        settings |= {"user": "drimbox", "password_file": tmp / "password"}
    ways = Ways(reactor, ProxySettings(proxy.url, **settings))

    def way(host: str, port: int, timeout: float) -> Any:
        return ways.to("dmp", host, port, timeout)

    return DmpClient(config, reactor, clock=FixedClock(), tls_policy=client_policy, way=way)


@pytest_twisted.ensureDeferred
async def test_a_publication_and_questions_pass(
    pki: Pki, structure: Structure, dmp: tuple[ScriptedDmp, str], proxy: StrictProxy, tmp_path: Path
) -> None:
    server, url = dmp
    proxy.authorization = basic("drimbox", "mot de passe")
    ours = client(pki, structure, url, proxy, tmp_path, account=True)
    assert await ours.find_entry(structure, REPORT, KOS_UID) is None
    assert isinstance(await ours.publish(structure, SUBMISSION, None), Accepted)
    assert len(server.requests) == 2
    assert proxy.targets == [url.removeprefix("https://")] * 2
    assert not proxy.faults
    assert "org-auth" in str(server.peers[0]), "our certificate, to the server itself"
    assert not any(b"Proxy-Authorization" in each for each in server.requests)
    await ours.close()


@pytest.mark.threat("a proxy that leads elsewhere, or spoils an exchange")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("silent", "ne répond pas dans le délai"),
        ("cut", "a coupé la connexion"),
        ("garbage", "réponse illisible"),
        ("endless", "réponse illisible"),
        ("early", "parle à la place du serveur"),
        ("status 407", "authentification (407)"),
        ("status 403", "refuse cette destination (403)"),
        ("status 302", "refuse cette destination (302)"),
        ("status 502", "n'atteint pas le serveur (502)"),
        ("cut after 10", "négociation TLS"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_fails_before_the_handshake_was_not_sent(
    pki: Pki,
    structure: Structure,
    dmp: tuple[ScriptedDmp, str],
    proxy: StrictProxy,
    tmp_path: Path,
    fault: str,
    words: str,
) -> None:
    server, url = dmp
    proxy.fault = fault
    ours = client(pki, structure, url, proxy, tmp_path)
    with pytest.raises(DmpUnavailable) as caught:
        await ours.publish(structure, SUBMISSION, None)
    assert words in str(caught.value)
    assert caught.value.sent is False
    assert not server.requests
    # And it works again as soon as the proxy does.
    proxy.fault = ""
    assert isinstance(await ours.publish(structure, SUBMISSION, None), Accepted)
    assert len(server.requests) == 1
    await ours.close()


@pytest_twisted.ensureDeferred
async def test_a_tunnel_cut_inside_the_request_may_have_sent_it(
    pki: Pki, structure: Structure, dmp: tuple[ScriptedDmp, str], proxy: StrictProxy, tmp_path: Path
) -> None:
    proxy.fault = "cut after 6000"
    ours = client(pki, structure, dmp[1], proxy, tmp_path)
    with pytest.raises(DmpUnavailable) as caught:
        await ours.publish(structure, SUBMISSION, None)
    assert caught.value.sent is True, "the DMP is asked before it is sent again"
    await ours.close()


@pytest_twisted.ensureDeferred
async def test_no_proxy_at_all_where_one_should_be(
    pki: Pki, structure: Structure, dmp: tuple[ScriptedDmp, str], tmp_path: Path
) -> None:
    proxy = StrictProxy()
    proxy.up()
    await proxy.down()
    ours = client(pki, structure, dmp[1], proxy, tmp_path)
    with pytest.raises(DmpUnavailable, match="proxy injoignable : connexion refusée") as caught:
        await ours.publish(structure, SUBMISSION, None)
    assert caught.value.sent is False
    await ours.close()


@pytest.mark.threat("a proxy that leads elsewhere, or spoils an exchange")
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_leads_elsewhere_finds_no_trust(
    pki: Pki, structure: Structure, dmp: tuple[ScriptedDmp, str], proxy: StrictProxy, tmp_path: Path
) -> None:
    stranger = ScriptedDmp(lambda request: SUCCESS)
    there = stranger.listen(pki.stranger, pki.roots)
    proxy.elsewhere = int(there.rpartition(":")[2])
    ours = client(pki, structure, dmp[1], proxy, tmp_path)
    with pytest.raises(DmpUnavailable, match="négociation TLS") as caught:
        await ours.publish(structure, SUBMISSION, None)
    assert caught.value.sent is False
    assert not stranger.requests
    await maybeDeferred(stranger.close)
    await ours.close()


@pytest.mark.parametrize("settings", [{"no_proxy": ("127.0.0.0/8", "localhost")}, {"uses": ("psc",)}])
@pytest_twisted.ensureDeferred
async def test_what_does_not_use_the_proxy_goes_straight(
    pki: Pki,
    structure: Structure,
    dmp: tuple[ScriptedDmp, str],
    proxy: StrictProxy,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    ours = client(pki, structure, dmp[1], proxy, tmp_path, **settings)
    assert isinstance(await ours.publish(structure, SUBMISSION, None), Accepted)
    assert not proxy.targets
    await ours.close()


# --- the core ---------------------------------------------------------------------------------------


def test_the_answer_may_come_in_any_pieces() -> None:
    head = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n"
    answer = ConnectAnswer()
    assert [answer.receive(head[at : at + 1]) for at in range(len(head))] == [False] * (len(head) - 1) + [
        True
    ]


@pytest.mark.parametrize("head", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nA: b\r\n"])
def test_an_answer_begun_is_waited_for(head: bytes) -> None:
    assert ConnectAnswer().receive(head) is False


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK" + b"a" * MAX_HEAD,
    ],
)
def test_what_is_no_answer_is_refused(head: bytes) -> None:
    with pytest.raises(ProxyFailed):
        ConnectAnswer().receive(head)


def test_addresses_of_version_6_are_written_in_brackets() -> None:
    assert connect_request("2001:db8::1", 443, None).startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("host", "entries", "straight"),
    [
        ("psc.chu.fr", ("chu.fr",), True),
        ("psc.chu.fr", (".chu.fr",), True),
        ("PSC.CHU.FR.", ("chu.fr",), True),
        ("chu.fr", ("chu.fr",), True),
        ("fauxchu.fr", ("chu.fr",), False),
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("11.1.2.3", ("10.0.0.0/8", "chu.fr"), False),
        ("[2001:db8::1]", ("2001:db8::/32",), True),
        ("lps2.dmp.gouv.fr", (), False),
    ],
)
def test_who_is_reached_without_it(host: str, entries: tuple[str, ...], straight: bool) -> None:
    assert bypasses(host, entries) is straight
