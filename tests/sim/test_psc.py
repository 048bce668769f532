"""Pro Santé Connect simulated: the rules without sockets, then curl over TLS."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import pytest_twisted
from twisted.internet import reactor

from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.consumer import FetchResult, Order, fetch
from drimbox.sim.pki import Pki
from drimbox.sim.psc import PscServer
from drimbox.sim.psc_service import (
    AUTHORIZE,
    INTROSPECT,
    TOKEN,
    USERINFO,
    Activity,
    Professional,
    PscAnswer,
    PscRequest,
    PscService,
)
from tests.sim.processes import curl, simulator

FORM = "application/x-www-form-urlencoded"
BASIC = "Basic " + base64.b64encode(b"drimbox:secret").decode()
NOW = 1_800_000_000.0


def post(
    service: PscService,
    path: str,
    fields: dict[str, str] | str,
    *,
    authorization: str = BASIC,
    content_type: str = FORM,
    now: float = NOW,
) -> PscAnswer:
    body = fields if isinstance(fields, str) else urlencode(fields)
    return service.handle(PscRequest("POST", path, "", authorization, content_type, body.encode()), now)


def content(answer: PscAnswer) -> dict[str, Any]:
    return dict(json.loads(answer.body))


def test_introspection_of_a_good_an_old_and_an_unknown_token() -> None:
    service = PscService()
    token = service.mint(NOW)
    good = content(post(service, INTROSPECT, {"token": token}))
    assert good["active"] is True
    assert good["preferred_username"] == "899700000001"
    assert good["sub"].endswith(":899700000001")
    assert good["exp"] == NOW + 120
    assert content(post(service, INTROSPECT, {"token": token}, now=NOW + 120)) == {"active": False}
    assert content(post(service, INTROSPECT, {"token": "x"})) == {"active": False}
    service.revoke(token)
    assert content(post(service, INTROSPECT, {"token": token})) == {"active": False}
    assert "secret" not in repr(service)
    assert token not in repr(service)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"drimbox:wrong").decode()}, 401),
        ({"authorization": "Basic !!"}, 401),
        ({"authorization": "Bearer abc"}, 401),
        ({"content_type": "application/json"}, 400),
        ({"fields": {}}, 400),
        ({"fields": "token=a&token=b"}, 400),
    ],
)
def test_introspection_is_strict(change: dict[str, Any], status: int) -> None:
    service = PscService()
    fields = change.pop("fields", {"token": service.mint(NOW)})
    assert post(service, INTROSPECT, fields, **change).status == status


def _login(service: PscService, **more: str) -> PscAnswer:
    query = {
        "response_type": "code",
        "client_id": "drimbox",
        "redirect_uri": "https://drim.example/cb",
        "scope": "openid scope_all",
        "acr_values": "eidas1",
        "state": "s1",
        "nonce": "n1",
        **more,
    }
    return service.handle(PscRequest("GET", AUTHORIZE, urlencode(query), "", "", b""), NOW)


def test_code_flow_with_pkce_and_refresh() -> None:
    service = PscService()
    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    answer = _login(service, code_challenge=challenge, code_challenge_method="S256")
    assert answer.status == 302
    back = parse_qs(urlsplit(dict(answer.headers)["Location"]).query)
    assert back["state"] == ["s1"]
    fields = {
        "grant_type": "authorization_code",
        "code": back["code"][0],
        "redirect_uri": "https://drim.example/cb",
        "client_id": "drimbox",
        "client_secret": "secret",
    }
    assert post(service, TOKEN, fields, authorization="").status == 400  # no verifier
    tokens = content(post(service, TOKEN, {**fields, "code_verifier": verifier}, authorization=""))
    assert tokens["token_type"] == "Bearer"
    assert post(service, TOKEN, {**fields, "code_verifier": verifier}).status == 400  # used
    assert content(post(service, INTROSPECT, {"token": tokens["access_token"]}))["active"] is True
    assert content(post(service, INTROSPECT, {"token": tokens["refresh_token"]}))["active"] is False
    refresh = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    renewed = content(post(service, TOKEN, refresh))
    assert renewed["access_token"] != tokens["access_token"]
    assert content(post(service, TOKEN, refresh)) == {"error": "invalid_grant", "error_description": ""}


@pytest.mark.parametrize(
    "more", [{"response_type": "token"}, {"client_id": "x"}, {"redirect_uri": "http://x"}, {"state": ""}]
)
def test_authorization_is_strict(more: dict[str, str]) -> None:
    assert _login(PscService(), **more).status == 400


def test_userinfo_has_one_option_for_each_activity() -> None:
    who = Professional(activities=(Activity("499700000001006"), Activity("310000000", "CH", "SA01")))
    service = PscService(professionals={who.id: who})
    token = service.mint(NOW)

    def ask(authorization: str) -> PscAnswer:
        return service.handle(PscRequest("GET", USERINFO, "", authorization, "", b""), NOW)

    info = content(ask(f"Bearer {token}"))
    activities = info["SubjectRefPro"]["exercices"][0]["activities"]
    assert [a["ancienIdentifiantDeLaStructure"] for a in activities] == ["499700000001006", "310000000"]
    assert info["SubjectNameID"] == who.id
    assert ask("Bearer nope").status == 401
    assert ask(f"Basic {token}").status == 401


@pytest.mark.peer("curl")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_introspects(sim_pki: Pki, tmp_path: Path) -> None:
    pair = sim_pki.psc
    with simulator("drimbox.sim.psc", "--certificate", pair.certificate, "--key", pair.key) as (_, ready):
        url = f"https://localhost:{ready['port']}{INTROSPECT}"
        good = curl(
            url,
            roots=sim_pki.roots,
            folder=tmp_path,
            options=["-u", "drimbox:secret", "--data-urlencode", f"token={ready['token']}"],
        )
        assert (good.code, good.status) == (0, 200)
        assert json.loads(good.body)["active"] is True
        assert "application/json" in good.head
        bad = curl(url, roots=sim_pki.roots, folder=tmp_path, options=["-u", "drimbox:x", "-d", "token=a"])
        assert bad.status == 401
        assert curl(url, roots=sim_pki.market_root, folder=tmp_path).code == 60


async def _ask(psc: PscServer, pki: Pki, timeout: float = 5.0) -> FetchResult:
    """One userinfo request: GET is what the Consumer client can do."""
    order = Order(
        host="127.0.0.1",
        port=psc.port,
        sni="psc.example",
        path=USERINFO,
        certificate=None,
        roots=pki.roots,
        accept=(),
        token=psc.mint(),
        timeout=timeout,
    )
    return await fetch(reactor, order)


@pytest_twisted.ensureDeferred
async def test_misbehaviours(sim_pki: Pki) -> None:
    psc = PscServer(reactor, sim_pki.psc)
    psc.start()
    try:
        assert (await _ask(psc, sim_pki)).status == 200
        for kind, check in (
            (Kind.HTTP, lambda r: r.status == 500),
            (Kind.GARBAGE, lambda r: r.complete and r.problem is None),
            (Kind.INACTIVE, lambda r: r.problem == {"active": False}),
            (Kind.CUT_BEFORE, lambda r: r.status is None and not r.complete),
            (Kind.CUT_ANSWER, lambda r: r.status == 200 and not r.complete),
        ):
            psc.script.push(Behaviour(kind, transaction="userinfo"))
            result = await _ask(psc, sim_pki)
            assert check(result), (kind, result)
        psc.script.push(Behaviour(Kind.HUGE, size=1_000_000))
        assert (await _ask(psc, sim_pki)).received > 1_000_000
        psc.script.push(Behaviour(Kind.SILENT))
        assert (await _ask(psc, sim_pki, 0.2)).error == "timed out"
        psc.script.push(Behaviour(seconds=0.2))
        assert (await _ask(psc, sim_pki)).t_total > 0.2
        await psc.down()
        assert (await _ask(psc, sim_pki)).error.startswith("no connection")
        psc.up()
        assert (await _ask(psc, sim_pki)).status == 200
    finally:
        await psc.stop()
