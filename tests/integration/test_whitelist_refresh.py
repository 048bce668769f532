"""The whitelist of a running gateway, fetched over HTTPS from a server that behaves in every way."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.web import resource, server

from drimbox.sim.behaviour import Behaviour, Kind, Script
from drimbox.sim.listening import ServerContext, TlsListener, respond
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import CONSUMER, LOOPBACK, PacsAddress, Stand, free_port
from drimbox.sim.whitelist import ListedDomain, bad_whitelists, make_whitelist
from tests.integration.feed_stand import POOL
from tests.integration.waiting import wait

pytestmark = pytest.mark.requirement("DB.CS.147", "DB.CS.148", "DB.CS.151")


class Published(resource.Resource):
    """The public repository."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.script = Script()
        self.data = b""
        self.asked = 0

    def render_GET(self, request: Any) -> int:
        self.asked += 1
        behaviour = self.script.next("list")
        status = behaviour.status if behaviour.kind is Kind.HTTP else 200
        headers = (("Location", "https://localhost:1/elsewhere"),) if status == 302 else ()
        respond(reactor, request, behaviour, status, "application/xml", self.data, headers)
        return server.NOT_DONE_YET


@attrs.define
class World:
    stand: Stand
    published: Published
    listener: TlsListener

    def list(self, *names: str, **options: Any) -> bytes:
        """Make a signed list of these names."""
        domains = [ListedDomain.for_certificate("1", self.stand.pki.sites[name]) for name in names]
        return make_whitelist(domains, self.stand.pki.whitelist_signer, **options)

    async def drimbox(self, *arguments: str) -> tuple[int, str]:
        """Run the command against the process."""
        command = [str(Path(sys.executable).parent / "drimbox"), *arguments]
        command += ["--admin", f"{LOOPBACK}:{self.stand.admin_port}"]
        done: Any = await deferToThread(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        )
        return done.returncode, done.stdout + done.stderr

    async def refresh(self, *more: str) -> dict[str, Any]:
        _, text = await self.drimbox("whitelist", "refresh", "--json", *more)
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def asked_by(self, name: str) -> int | None:
        """Return the status a peer's request for images gets."""
        result = await self.stand.fetch("2.25.1", "2.25.2", "2.25.3", certificate=self.stand.consumer(name))
        return result.status


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("whitelist")
    port = free_port()
    pacs = SimulatedPacs("PACS")
    pacs.start()
    trust = {
        "whitelist_url": f'"https://localhost:{port}/liste-blanche.xml"',
        "whitelist_url_roots": f'"{folder / "pki" / "roots.pem"}"',
        "whitelist_timeout": "2",
    }
    stand = Stand(folder, reactor, [PacsAddress("PACS", pacs.port, POOL)], extra={"trust": trust})
    published = Published()
    wait(stand.start())
    text = stand.config.read_text("utf-8").replace(str(folder / "pki" / "roots.pem"), str(stand.pki.roots))
    stand.config.write_text(text, "utf-8")
    listener = TlsListener(reactor, published, ServerContext(stand.pki.psc), LOOPBACK, port)
    listener.up()
    wait(stand.start_gateway())
    yield World(stand, published, listener)
    wait(stand.stop())
    wait(listener.down())
    pacs.stop()


@pytest.fixture(autouse=True)
def calm(world: World) -> None:
    world.published.script.reset()


@pytest.mark.requirement("DB.SO.154")
@pytest_twisted.ensureDeferred
async def test_a_refresh_on_demand_lets_a_peer_in_and_puts_it_out(world: World) -> None:
    site = world.stand.sites[0]
    world.published.data = world.list(site)
    assert (await world.refresh())["outcome"] == "new"
    assert await world.asked_by(CONSUMER) == 401
    world.published.data = world.list(site, CONSUMER)
    answer = await world.refresh()
    assert answer["outcome"] == "new"
    assert answer["entries"] == 2
    # The next check behind the whitelist: nobody published that study.
    assert await world.asked_by(CONSUMER) == 404
    kept = world.stand.folder / "state" / "whitelist.xml"
    assert kept.read_bytes() == world.published.data
    # No restart, and none is needed after one.
    await world.stand.stop_gateway()
    await world.stand.start_gateway()
    assert await world.asked_by(CONSUMER) == 404
    assert any(b"liste blanche" in row for row in audit_of(world))


def audit_of(world: World) -> list[bytes]:
    with closing(sqlite3.connect(world.stand.folder / "state" / "drimbox.db")) as database:
        return [row[0].encode() for row in database.execute("SELECT payload FROM audit")]


@pytest.mark.threat("SSRF")
@pytest_twisted.ensureDeferred
async def test_what_the_server_does_wrong_never_costs_the_list_in_force(world: World) -> None:
    site = world.stand.sites[0]
    world.published.data = good = world.list(site, CONSUMER)
    assert (await world.refresh())["outcome"] in ("new", "same")
    for behaviour in (
        Behaviour(Kind.HTTP, status=404),
        Behaviour(Kind.HTTP, status=302),
        Behaviour(Kind.HTTP, status=500),
        Behaviour(Kind.CUT_BEFORE),
        Behaviour(Kind.CUT_ANSWER),
        Behaviour(Kind.SILENT),
        Behaviour(Kind.HUGE, size=9 * 1024 * 1024),
    ):
        world.published.script.push(behaviour)
        answer = await world.refresh()
        assert answer["outcome"] == "unreachable", behaviour
        assert answer["reasons"], behaviour
        assert answer["in_force"]
    world.published.script.push(Behaviour(Kind.GARBAGE))
    assert (await world.refresh())["outcome"] == "refused"
    assert await world.asked_by(CONSUMER) == 404
    assert (world.stand.folder / "state" / "whitelist.xml").read_bytes() == good


@pytest_twisted.ensureDeferred
async def test_a_server_with_a_certificate_of_somebody_else_is_not_asked(world: World) -> None:
    before = world.published.asked
    await world.listener.down()
    other = TlsListener(
        reactor, world.published, ServerContext(world.stand.consumer()), LOOPBACK, world.listener.port
    )
    other.up()
    try:
        assert (await world.refresh())["outcome"] == "unreachable"
        assert world.published.asked == before
    finally:
        await other.down()
        world.listener.up()
    assert (await world.refresh())["outcome"] in ("new", "same")


@pytest.mark.threat("forged lists and OCSP answers")
@pytest.mark.requirement("DB.CS.186", "DB.CS.164")
@pytest_twisted.ensureDeferred
async def test_every_bad_list_is_refused_and_told(world: World) -> None:
    site = world.stand.sites[0]
    world.published.data = world.list(site, CONSUMER)
    await world.refresh()
    domains = [ListedDomain.for_certificate("1", world.stand.pki.sites[site])]
    for fault, data in bad_whitelists(world.stand.pki, domains).items():
        world.published.data = data
        answer = await world.refresh()
        assert answer["outcome"] == "refused", fault
        assert answer["reasons"], fault
    _, notices = await world.drimbox("notices", "list")
    assert "Liste blanche inutilisable" in notices
    assert await world.asked_by(CONSUMER) == 404
    # Not in the list ourselves: image access is off, and comes back.
    world.published.data = world.list(CONSUMER)
    answer = await world.refresh()
    assert answer["sites"] == {"site1": False}
    assert await world.asked_by(CONSUMER) == 503
    _, notices = await world.drimbox("notices", "list")
    assert "absent de la liste blanche" in notices
    assert "inutilisable" not in notices
    world.published.data = world.list(site, CONSUMER)
    assert (await world.refresh())["sites"] == {"site1": True}
    assert await world.asked_by(CONSUMER) == 404


@pytest_twisted.ensureDeferred
async def test_the_command_shows_what_is_in_force_in_french(world: World) -> None:
    world.published.data = world.list(world.stand.sites[0], CONSUMER)
    code, text = await world.drimbox("whitelist", "refresh")
    assert code == 0
    assert "liste" in text.lower()
    code, text = await world.drimbox("whitelist", "show", "--domains")
    assert code == 0
    assert CONSUMER in text
    assert "entrées : 2" in text
    world.published.script.push(Behaviour(Kind.HTTP, status=500))
    code, text = await world.drimbox("whitelist", "refresh")
    assert code == 1
    assert "500" in text
