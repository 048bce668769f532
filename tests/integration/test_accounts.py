"""The admin listener with TLS and accounts: who may call what, over real sockets, and who did it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

import drimbox.web
from drimbox.accounts import read_accounts, write_accounts
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.web.access import MAX_FAILURES
from drimbox.web.routes import AUDITOR, OPEN, ROUTES
from tests.integration.account_stand import PASSWORDS, AccountStand, World
from tests.integration.feed_stand import POOL
from tests.integration.operator import drimbox as drimbox_command
from tests.integration.waiting import wait

pytestmark = pytest.mark.requirement("DB.CS.06", "DB.SO.21")


def routes() -> list[tuple[str, str]]:
    """Return every route that the sources register."""
    found = set()
    for source in Path(drimbox.web.__file__).parent.glob("*.py"):
        text = source.read_text("utf-8")
        found |= set(re.findall(r'(?m)^ +api\.register\("([A-Z]+)", "(/[^"]*)"', text))
        if "for action in" in text:
            actions = re.findall(r"for action in \(([^)]*)\)", text)
            for action in re.findall(r'"([a-z]+)"', actions[0] if actions else ""):
                found.add(("POST", f"/walks/{{number}}/{action}"))
    return sorted(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = AccountStand(
        tmp_path_factory.mktemp("accounts"), reactor, [PacsAddress("PACS", pacs.port, POOL)]
    )
    wait(stand.start())
    wait(stand.start_gateway())
    yield World(stand)
    wait(stand.stop())
    pacs.stop()


def test_the_table_names_routes_that_exist_and_an_auditor_changes_nothing() -> None:
    assert set(routes()) == {(each.method, each.path) for each in ROUTES}
    assert len(routes()) == len(ROUTES)
    assert {method for method, _ in AUDITOR} == {"GET"}


@pytest.mark.threat("whoever reaches the administration from the network")
@pytest_twisted.ensureDeferred
async def test_each_role_on_each_route(world: World) -> None:
    for method, template in routes():
        path = re.sub(r"\{[a-z_]+\}", "1", template)
        # Without JSON, what changes something gets no further than its authorisation.
        nobody, _ = await world.stand.call(method, path)
        auditor, _ = await world.stand.call(method, path, "aude")
        operator, _ = await world.stand.call(method, path, "anne")
        assert (nobody == 401) is (template not in OPEN), (method, template, nobody)
        assert (auditor == 403) is ((method, template) not in AUDITOR), (method, template, auditor)
        assert operator not in (401, 403, 429), (method, template, operator)
        assert method == "GET" or operator == 415, (method, template, operator)
    refused = [payload for payload in world.audited() if "Action d'administration refusée" in payload]
    assert refused
    assert all('"aude"' in payload and f"depuis {LOOPBACK}" in payload for payload in refused)


@pytest.mark.threat("whoever reaches the administration from the network")
@pytest_twisted.ensureDeferred
async def test_a_page_is_refused_whatever_it_knows(world: World) -> None:
    status, _ = await world.stand.call("GET", "/status", "anne", origin="https://ailleurs.exemple")
    assert status == 403
    status, _ = await world.stand.call("GET", "/status", "anne", sec_fetch_site="cross-site")
    assert status == 403


@pytest_twisted.ensureDeferred
async def test_the_command_speaks_to_it_and_the_trail_says_who(world: World) -> None:
    code, text = await world.drimbox("status", "--json")
    assert (code, json.loads(text)["ready"]) == (0, True), text
    # With the configuration alone, the certificate met must be the one it names.
    code, text = await world.drimbox("whitelist", "refresh", remote=False)
    assert "refusé" not in text, text
    code, text = await world.drimbox("whitelist", "refresh", account="aude")
    assert code == 1
    assert "le rôle auditor ne permet pas" in text
    payloads = [payload for payload in world.audited() if "liste blanche" in payload]
    assert payloads
    assert all('"anne"' in payload for payload in payloads)


@pytest.mark.requirement("DB.CS.10")
@pytest_twisted.ensureDeferred
async def test_an_auditor_searches_the_trail_and_stands_in_it(world: World) -> None:
    status, body = await world.stand.call("GET", "/audit?event=marche&limit=1", "aude")
    assert status == 200
    (event,) = json.loads(body)["events"]
    assert event["libelle"] == "Application Start"
    status, body = await world.stand.call("GET", "/audit?ins=284070100499094", "aude")
    assert (status, json.loads(body)["events"]) == (200, [])
    written = [payload for payload in world.audited() if "AUDIT-SEARCH" in payload]
    assert all('"aude"' in payload for payload in written[-2:])
    # Whom somebody looks for is the trail's to know, and nobody else's.
    assert "284070100499094" in written[-1]
    log = world.stand.log.read_text("utf-8")
    assert "284070100499094" not in log
    assert "GET /audit" not in log


@pytest_twisted.ensureDeferred
async def test_another_certificate_than_the_configured_one_is_not_spoken_to(world: World) -> None:
    stand = world.stand
    other = stand.pki.issue_ssl_serv("localhost", name="other-admin")
    changed = stand.folder / "changed.toml"
    text = stand.config.read_text("utf-8")
    text = text.replace(str(stand.administration.certificate), str(other.certificate))
    changed.write_text(text.replace(str(stand.administration.key), str(other.key)), "utf-8")
    credentials = stand.folder / "credentials-anne"
    credentials.write_text(f"anne:{PASSWORDS['anne']}\n")
    done = await drimbox_command(changed, "status", "--credentials", str(credentials))
    assert done.returncode == 1
    assert "ne présente pas le certificat" in done.stderr


@pytest_twisted.ensureDeferred
async def test_an_account_removed_or_changed_counts_at_once(world: World) -> None:
    path = world.stand.accounts
    before = read_accounts(path)
    try:
        assert (await world.stand.call("GET", "/status", "anne"))[0] == 200
        write_accounts(path, [before["aude"]])
        assert (await world.stand.call("GET", "/status", "anne"))[0] == 401
        path.write_text("n'importe quoi\n")
        assert (await world.stand.call("GET", "/status", "aude"))[0] == 503
        path.unlink()
        assert (await world.stand.call("GET", "/status", "aude"))[0] == 503
        assert (await world.stand.call("GET", "/live"))[0] == 200
    finally:
        write_accounts(path, before.values())


@pytest.mark.threat("whoever reaches the administration from the network")
@pytest_twisted.ensureDeferred
async def test_who_guesses_has_to_wait_and_is_in_the_trail(world: World) -> None:
    assert (await world.stand.call("GET", "/status", "anne"))[0] == 200
    statuses = [
        (await world.stand.call("GET", "/status", "anne", f"mauvais-mot-de-passe-{number}"))[0]
        for number in range(MAX_FAILURES)
    ]
    assert statuses == [401] * MAX_FAILURES
    # Even the right password now.
    assert (await world.stand.call("GET", "/status", "anne"))[0] == 429
    refused = [payload for payload in world.audited() if "Connexion d'administration" in payload]
    assert len(refused) >= MAX_FAILURES
    assert any(f"compte anne depuis {LOOPBACK}" in payload for payload in refused)
    assert not any("mauvais-mot-de-passe" in payload for payload in refused)
    assert "mauvais-mot-de-passe" not in world.stand.log.read_text("utf-8")
