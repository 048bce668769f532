"""Revocation lists and certificates of a running gateway: what changes outside counts without a restart."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.web import resource, server

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.stand import CONSUMER, LOOPBACK, OTHER_CONSUMER, STRUCTURE, PacsAddress, Stand, free_port
from tests.integration.feed_stand import POOL
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.111", "DB.SO.90", "DB.SO.47")


class Authority(resource.Resource):
    """Where the authorities publish their lists, over plain HTTP."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand = stand
        self.down = False

    def render_GET(self, request: Any) -> bytes:
        if self.down:
            request.setResponseCode(503)
            return b""
        return self.stand.pki.crl_der.read_bytes()


@attrs.define
class World:
    stand: Stand
    authority: Authority

    async def drimbox(self, *arguments: str) -> tuple[int, str]:
        command = [str(Path(sys.executable).parent / "drimbox"), *arguments]
        command += ["--admin", f"{LOOPBACK}:{self.stand.admin_port}"]
        done: Any = await deferToThread(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        )
        return done.returncode, done.stdout + done.stderr

    def events(self) -> list[dict[str, Any]]:
        """Return the audit trail."""
        with closing(sqlite3.connect(self.stand.folder / "state" / "drimbox.db")) as database:
            rows = database.execute("SELECT payload FROM audit ORDER BY id")
            return [json.loads(row[0])["event"] for row in rows]

    async def enters(self, name: str) -> bool:
        """Say whether the handshake of a Consumer succeeds: the study itself is unknown."""
        result = await self.stand.fetch("2.25.1", "2.25.2", "2.25.3", certificate=self.stand.consumer(name))
        return result.status == 404


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("certificates")
    port = free_port()
    pacs = SimulatedPacs("PACS")
    pacs.start()
    trust = {"crl_urls": f'["http://{LOOPBACK}:{port}/ACI-EL-ORG.crl"]', "crl_timeout": "5"}
    stand = Stand(folder, reactor, [PacsAddress("PACS", pacs.port, POOL)], extra={"trust": trust})
    wait(stand.start())
    authority = Authority(stand)
    web: Any = reactor
    listening = web.listenTCP(port, server.Site(authority), interface=LOOPBACK)  # type: ignore[no-untyped-call]
    wait(stand.start_gateway())
    yield World(stand, authority)
    wait(stand.stop())
    pytest_twisted.blockon(listening.stopListening())
    pacs.stop()


@pytest_twisted.ensureDeferred
async def test_a_consumer_revoked_today_is_refused_in_the_handshake(world: World) -> None:
    stand = world.stand
    assert await world.enters(CONSUMER)
    stand.pki.revoke(stand.consumer(CONSUMER))
    code, text = await world.drimbox("certificates", "reload")
    assert code == 0, text
    assert "1 certificats révoqués" in text
    assert not await world.enters(CONSUMER)
    assert await world.enters(OTHER_CONSUMER)
    (refusal,) = [event for event in world.events() if "E1101" in event.get("outcome_description", "")]
    assert refusal["outcome"] != 0
    assert refusal["participants"][0]["network_id"] == LOOPBACK
    # Kept on disk: refused after a restart too, with the authority away.
    world.authority.down = True
    await stand.stop_gateway()
    await stand.start_gateway()
    assert not await world.enters(CONSUMER)
    assert await world.enters(OTHER_CONSUMER)
    world.authority.down = False
    stand.pki.revoke()
    await world.drimbox("certificates", "reload")
    assert await world.enters(CONSUMER)


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_a_connection_does_not_outlive_its_certificate(world: World) -> None:
    """Whoever keeps asking on one connection would otherwise never meet the list."""
    stand = world.stand
    pair = stand.consumer(CONSUMER)
    context = ssl.create_default_context(cafile=str(stand.pki.roots))
    context.load_cert_chain(pair.certificate, pair.key)
    # The name is for SNI and for the server's certificate; there is no such host.
    connection = http.client.HTTPSConnection(stand.sites[0], stand.wado_port, timeout=20, context=context)
    connection._create_connection = lambda _, *more, **options: socket.create_connection(  # type: ignore[attr-defined]
        (LOOPBACK, stand.wado_port), *more, **options
    )
    headers = {"Authorization": f"Bearer {stand.token()}", "KOS-SOPInstanceUID": "2.25.3"}
    headers["Accept"] = 'multipart/related; type="application/dicom"; transfer-syntax=*'

    def ask() -> tuple[int, int, str]:
        connection.request("GET", "/dicom-web-rs/studies/2.25.1/series/2.25.2", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, connection.sock.getsockname()[1], text

    first = await deferToThread(ask)
    assert first[0] == 404
    before = len(world.events())
    stand.pki.revoke(pair)
    try:
        assert (await world.drimbox("certificates", "reload"))[0] == 0
        status, port, text = await deferToThread(ask)
        assert (status, port) == (403, first[1])
        assert "E1101" in text
        said = [event.get("outcome_description", "") for event in world.events()[before:]]
        assert any("révoqué depuis l'ouverture de la connexion" in each for each in said), said
    finally:
        connection.close()

    async def taken_back() -> bool:
        # Two lists of one second are one.
        stand.pki.revoke()
        await world.drimbox("certificates", "reload")
        return await world.enters(CONSUMER)

    await until(taken_back, what="the revocation taken back")


@pytest_twisted.ensureDeferred
async def test_without_any_list_nobody_enters_until_one_comes(world: World) -> None:
    stand = world.stand
    await stand.stop_gateway()
    for path in (stand.folder / "state" / "crl").iterdir():
        path.unlink()
    world.authority.down = True
    try:
        await stand.start_gateway()
        assert not await world.enters(OTHER_CONSUMER)
        _, notices = await world.drimbox("notices", "list")
        assert "Liste de révocation" in notices
        assert "sont refusés" in notices
    finally:
        world.authority.down = False
    await world.drimbox("certificates", "reload")
    assert await world.enters(OTHER_CONSUMER)
    _, notices = await world.drimbox("notices", "list")
    assert "Liste de révocation" not in notices


@pytest_twisted.ensureDeferred
async def test_a_renewed_certificate_counts_without_a_restart(world: World) -> None:
    stand = world.stand
    _, text = await world.drimbox("certificates", "show", "--json")
    before = json.loads(text)["certificates"]
    pid = stand.pid
    name = stand.sites[0]
    renewed = stand.pki.issue_ssl_serv(name, name="renewed")
    pair = stand.pki.sites[name]
    pair.certificate.write_bytes(renewed.certificate.read_bytes())
    pair.key.write_bytes(renewed.key.read_bytes())
    assert (await world.drimbox("certificates", "reload"))[0] == 0

    shown: Any = await deferToThread(
        lambda: subprocess.run(
            ["openssl", "s_client", "-connect", f"{LOOPBACK}:{stand.wado_port}", "-servername", name],
            input=b"",
            capture_output=True,
            timeout=20,
            check=False,
        )
    )
    assert renewed.load().public_bytes(Encoding.PEM).strip() in shown.stdout
    assert stand.pid == pid
    _, text = await world.drimbox("certificates", "show", "--json")
    assert [each["label"] for each in json.loads(text)["certificates"]] == [
        each["label"] for each in before
    ]
    assert await world.enters(OTHER_CONSUMER)


@pytest.mark.parametrize("kept", ["absent", "another's"])
@pytest_twisted.ensureDeferred
async def test_a_pair_that_cannot_serve_is_told_at_the_reload_though_it_opens_no_door(
    world: World, kept: str
) -> None:
    pair = world.stand.pki.structures[STRUCTURE].signature
    key = pair.key.read_bytes()
    try:
        pair.key.unlink()
        if kept == "another's":
            pair.key.write_bytes(world.stand.pki.structures[STRUCTURE].authentication.key.read_bytes())
        code, text = await world.drimbox("certificates", "reload")
        assert code == 1
        assert f"{STRUCTURE} signature : " in text
        assert ("lecture impossible" if kept == "absent" else "n'est pas celle du certificat") in text
        _, notices = await world.drimbox("notices", "list")
        assert f"{STRUCTURE} signature" in notices
    finally:
        pair.key.write_bytes(key)
    assert (await world.drimbox("certificates", "reload"))[0] == 0
    _, notices = await world.drimbox("notices", "list")
    assert f"{STRUCTURE} signature" not in notices
