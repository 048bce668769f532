"""Notices by HTTPS POST: the right server, the right token, in time, and only a yes is a yes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.web import resource, server

from drimbox.config import WebhookSettings
from drimbox.notify.channel import NotDelivered
from drimbox.notify.webhook import WebhookChannel
from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.listening import ServerContext, TlsListener, respond
from drimbox.sim.pki import Pki, make_pki
from drimbox.trust.ways import Ways
from tests.notify.test_mail import NOW, digest, notice

pytestmark = pytest.mark.requirement("DB.SO.21")


class Hook(resource.Resource):
    """Keeps what is posted."""

    isLeaf = True  # noqa: N815 (name of the base class)

    def __init__(self) -> None:
        super().__init__()
        self.behaviour = Behaviour()
        self.status = 204
        self.headers: tuple[tuple[str, str], ...] = ()
        self.posted: list[tuple[dict[str, Any], str | None]] = []

    def render_POST(self, request: Any) -> int:
        assert request.getHeader("content-type") == "application/json"
        self.posted.append((json.loads(request.content.read()), request.getHeader("authorization")))
        respond(reactor, request, self.behaviour, self.status, "text/plain", b"x" * 100, self.headers)
        return server.NOT_DONE_YET


@attrs.frozen
class Desk:
    pki: Pki
    folder: Path
    hook: Hook
    listener: TlsListener

    def channel(self, **changes: Any) -> WebhookChannel:
        values: dict[str, Any] = {
            "url": f"https://127.0.0.1:{self.listener.port}/drimbox?a=1",
            "roots": self.pki.roots,
            "timeout": 3.0,
        }
        return WebhookChannel(WebhookSettings(**{**values, **changes}), Ways(reactor, None), deferToThread)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest_twisted.async_yield_fixture
async def desk(pki: Pki, tmp_path: Path) -> AsyncIterator[Desk]:
    hook = Hook()
    listener = TlsListener(reactor, hook, ServerContext(pki.dmp), "127.0.0.1", 0)
    listener.up()
    yield Desk(pki, tmp_path, hook, listener)
    await listener.down()


async def failure(channel: WebhookChannel) -> str:
    with pytest.raises(NotDelivered) as caught:
        await channel.send(digest())
    return str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_digest_is_posted_as_json_with_its_token(desk: Desk) -> None:
    token = desk.folder / "token"
    token.write_text("abc.DEF-1\n", encoding="utf-8")
    channel = desk.channel(token_file=token)
    assert await channel.send(digest(notice(text="INS 279035121518989"), more=2)) == ""
    ((posted, authorization),) = desk.hook.posted
    assert authorization == "Bearer abc.DEF-1"
    instant = NOW.isoformat()
    assert posted == {
        "id": "avis-1",
        "source": "DRIMbox",
        "system_id": "349",
        "sent_at": instant,
        "test": False,
        "notices": [
            {
                "id": 3,
                "severity": "attention",
                "code": "E004",
                "text": "INS <INS masqué>",
                "count": 1,
                "first_at": instant,
                "last_at": instant,
            }
        ],
        "more": 2,
    }
    # Renewed without a restart.
    token.write_text("new", encoding="utf-8")
    await channel.send(digest())
    assert desk.hook.posted[1][1] == "Bearer new"
    await desk.channel().send(digest())
    assert desk.hook.posted[2][1] is None


@pytest.mark.parametrize("status", [301, 307, 400, 401, 500, 503])
@pytest_twisted.ensureDeferred
async def test_only_2xx_is_a_yes(desk: Desk, status: int) -> None:
    desk.hook.status = status
    desk.hook.headers = (("Location", f"https://127.0.0.1:{desk.listener.port}/other"),)
    assert f"({status})" in await failure(desk.channel())
    assert len(desk.hook.posted) == 1, "a redirection is not followed"


@pytest.mark.parametrize("kind", [Kind.SILENT, Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest_twisted.ensureDeferred
async def test_a_server_that_misbehaves_is_a_failure_in_time(desk: Desk, kind: Kind) -> None:
    desk.hook.behaviour = Behaviour(kind)
    assert await failure(desk.channel(timeout=1.0))


@pytest_twisted.ensureDeferred
async def test_an_endless_answer_is_not_read(desk: Desk) -> None:
    desk.hook.behaviour = Behaviour(Kind.HUGE, size=50_000_000)
    assert await desk.channel().send(digest()) == ""


@pytest.mark.threat("a forged server that takes a password or a token")
@pytest_twisted.ensureDeferred
async def test_a_server_nobody_vouches_for_gets_nothing(desk: Desk) -> None:
    token = desk.folder / "token"
    token.write_text("abc", encoding="utf-8")
    assert "TLS" in await failure(desk.channel(token_file=token, roots=desk.pki.market_root))
    assert desk.hook.posted == []
    await desk.listener.down()
    assert "connexion refusée" in await failure(desk.channel())
    token.write_text("", encoding="utf-8")
    assert "une seule ligne" in await failure(desk.channel(token_file=token))
