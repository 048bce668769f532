"""The admin listener with client certificates: curl and openssl with good and bad ones, and who did it."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.authority import Authority, authority_name, organisation_name, pem
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pki import Pair
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.web.access import MAX_FAILURES
from tests.integration.account_stand import AccountStand, World
from tests.integration.feed_stand import POOL
from tests.integration.waiting import until, wait

pytestmark = [pytest.mark.requirement("DB.CS.06", "DB.SO.21"), pytest.mark.peer("curl", "openssl")]

_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_JSON = ("-H", "Content-Type: application/json", "-d", "{}")


@attrs.frozen
class Answer:
    """What curl said: its exit status, the HTTP status, and the body."""

    exit: int
    status: int
    body: bytes

    @property
    def detail(self) -> str:
        return str(json.loads(self.body)["error"]["detail"])


class CertificateStand(AccountStand):
    """`AccountStand` that takes client certificates of the hospital's authority too."""

    async def start(self) -> None:
        await super().start()
        self.authority = Authority.create(authority_name("AC ADMINISTRATION", "CHU"))
        self.roots, self.crl = self.folder / "administration.pem", self.folder / "administration.crl"
        self.roots.write_bytes(pem(self.authority.certificate))
        self.revoke()
        self.denise = self.person("Denise Durand")
        self.paul = self.person("Paul Petit", unit="Audit")
        mark = self.paul.load().fingerprint(hashes.SHA256()).hex(":").upper()
        keys = f'client_roots = "{self.roots}"\nclient_crls = "{self.crl}"\nrequest_timeout = "10s"\n'
        clients = f"""
[[admin.client]]
account = "denise"
role = "operator"
cn = "denise durand"
ou = "DSI"

[[admin.client]]
account = "paul"
role = "auditor"
fingerprint = "{mark}"
"""
        text = self.config.read_text("utf-8").replace("[admin]\n", f"[admin]\n{keys}", 1)
        self.config.write_text(text + clients, "utf-8")

    def person(
        self,
        name: str,
        *,
        unit: str = "DSI",
        authority: Authority | None = None,
        expired: bool = False,
        usages: Sequence[Any] = _CLIENT,
    ) -> Pair:
        """Issue a certificate to somebody."""
        signer = authority or self.authority
        end = datetime.now(UTC) - timedelta(days=1) if expired else None
        begin = end - timedelta(days=30) if end is not None else None
        issued = signer.issue(
            organisation_name(name, unit=unit),
            usages=usages,
            curve=True,
            not_before=begin,
            not_after=end,
        )
        file = f"{name} {unit} {len(list(self.pki.folder.iterdir()))}".replace(" ", "-").lower()
        return self.pki.write(file, issued, signer)

    def revoke(self, *pairs: Pair, expired: bool = False) -> None:
        """Publish the list of the hospital's authority."""
        crl = self.authority.crl([pair.load().serial_number for pair in pairs], expired=expired)
        self.crl.write_bytes(crl.public_bytes(Encoding.PEM))

    async def curl(self, path: str, pair: Pair | None = None, *options: str) -> Answer:
        """Ask the listener with curl."""
        out = self.folder / "curl-answer"
        out.unlink(missing_ok=True)
        command = ["curl", "-sS", "--noproxy", "*", "--cacert", str(self.pki.roots), "-m", "60"]
        command += ["-o", str(out), "-w", "%{http_code}", *options]
        if pair is not None:
            command += ["--cert", str(pair.certificate), "--key", str(pair.key)]
        done = await run([*command, f"https://localhost:{self.admin_port}{path}"])
        body = out.read_bytes() if out.exists() else b""
        return Answer(done.returncode, int(done.stdout[-3:] or b"0"), body)


class Kept:
    """A connection that is kept open; it blocks."""

    def __init__(self, stand: CertificateStand, pair: Pair) -> None:
        context = ssl.create_default_context(cafile=str(stand.pki.roots))
        context.load_cert_chain(pair.certificate, pair.key)
        self._connection = http.client.HTTPSConnection(
            "localhost", stand.admin_port, timeout=60, context=context
        )
        self._connection.connect()
        # It is never opened anew: that would be another handshake.
        self._connection.auto_open = 0

    def ask(self) -> int:
        self._connection.request("GET", "/account")
        answer = self._connection.getresponse()
        answer.read()
        return answer.status


async def run(command: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done: subprocess.CompletedProcess[bytes] = await deferToThread(
        lambda: subprocess.run(command, input=given, capture_output=True, timeout=90, check=False)
    )
    return done


@attrs.define
class CertifiedWorld(World):
    stand: CertificateStand

    async def refusals(self) -> dict[str, float]:
        """Return the connections refused at the admin door, by reason."""
        body = (await self.stand.curl("/metrics", self.stand.paul)).body.decode()
        head = 'drimbox_connections_refused_total{door="admin",reason="'
        lines = [line.removeprefix(head) for line in body.splitlines() if line.startswith(head)]
        return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertifiedWorld]:
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = CertificateStand(
        tmp_path_factory.mktemp("certificates"), reactor, [PacsAddress("PACS", pacs.port, POOL)]
    )
    wait(stand.start())
    wait(stand.start_gateway())
    yield CertifiedWorld(stand)
    wait(stand.stop())
    pacs.stop()


@pytest_twisted.ensureDeferred
async def test_a_certificate_is_an_account_with_its_role(world: CertifiedWorld) -> None:
    stand = world.stand
    status = await stand.curl("/status", stand.denise)
    assert (status.exit, status.status) == (0, 200)
    assert json.loads(status.body)["ready"] is True
    assert (await stand.curl("/whitelist/refresh", stand.denise, *_JSON)).status == 200
    assert (await stand.curl("/status", stand.paul)).status == 200
    refused = await stand.curl("/whitelist/refresh", stand.paul, *_JSON)
    assert (refused.status, "le rôle auditor" in refused.detail) == (403, True)
    done = [payload for payload in world.audited() if "liste blanche" in payload]
    assert done
    assert all('"denise"' in payload for payload in done)


@pytest_twisted.ensureDeferred
async def test_without_certificate_or_password_only_life_is_told(world: CertifiedWorld) -> None:
    stand = world.stand
    assert (await stand.curl("/live")).status == 200
    answer = await stand.curl("/status")
    assert answer.status == 401
    assert "--credentials" in answer.detail
    assert "--certificate" in answer.detail
    # Accounts go on beside certificates.
    assert (await stand.call("GET", "/status", "anne"))[0] == 200


@pytest.mark.threat("a client certificate at the administration that is not an administrator's")
@pytest_twisted.ensureDeferred
async def test_bad_certificates_end_in_the_handshake_counted_and_audited(world: CertifiedWorld) -> None:
    stand = world.stand
    stranger = Authority.create(authority_name("AC ADMINISTRATION", "CHU"))
    # The authority of images is not that of administrators, whoever's name it writes.
    consumer = stand.pki.write(
        "consumer-denise",
        stand.pki.org_authority.issue(organisation_name("Denise Durand", unit="DSI"), usages=_CLIENT),
    )
    gone = stand.person("Denise Durand")
    stand.revoke(gone)
    assert (await stand.curl("/certificates/reload", stand.denise, *_JSON)).status == 200
    pairs = [
        gone,
        stand.person("Denise Durand", expired=True),
        stand.consumer(),
        consumer,
        stand.person("Denise Durand", usages=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        # Another authority of the same name signs nothing of ours.
        stand.person("Denise Durand", authority=stranger),
    ]
    before = await world.refusals()
    for pair in pairs:
        answer = await stand.curl("/status", pair)
        assert (answer.exit != 0, answer.status) == (True, 0), pair
    after = await world.refusals()
    grown = {why: after[why] - before.get(why, 0) for why in after}
    assert (grown["revoked"], grown["handshake"]) == (1, 5)

    def audited() -> bool:
        texts = [payload for payload in world.audited() if "Connexion d'administration refusée" in payload]
        return all(
            any(reason in text and LOOPBACK in text for text in texts)
            for reason in ("négociation TLS refusée", "certificat client révoqué")
        )

    await until(audited, what="refusals in the audit trail")
    assert (await stand.curl("/status", stand.denise)).status == 200


@pytest_twisted.ensureDeferred
async def test_the_command_shows_its_certificate(world: CertifiedWorld, tmp_path: Path) -> None:
    stand = world.stand

    async def status(*options: str) -> tuple[int, str]:
        return await world.plain("status", "--json", *options)

    code, text = await status("--certificate", str(stand.paul.certificate), "--key", str(stand.paul.key))
    assert (code, json.loads(text)["ready"]) == (0, True), text
    both = tmp_path / "paul.pem"
    both.write_bytes(stand.paul.certificate.read_bytes() + stand.paul.key.read_bytes())
    assert (await status("--certificate", str(both)))[0] == 0
    code, text = await status("--certificate", str(stand.paul.certificate), "--key", str(stand.denise.key))
    assert code == 1
    assert "certificat et clé illisibles" in text
    code, text = await status()
    assert code == 1
    assert "(401)" in text


@pytest_twisted.ensureDeferred
async def test_what_openssl_sees(world: CertifiedWorld) -> None:
    stand = world.stand

    async def client(*options: str, given: bytes = b"") -> str:
        where = f"{LOOPBACK}:{stand.admin_port}"
        command = ["openssl", "s_client", "-connect", where, "-CAfile", str(stand.pki.roots), *options]
        done = await run(command, given)
        return (done.stdout + done.stderr).decode("utf-8", "replace")

    text = await client()
    names = text.partition("Acceptable client certificate CA names")[2].partition("Requested")[0]
    assert "AC ADMINISTRATION" in names
    assert "IGC-SANTE" not in names
    request = b"GET /account HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    shown = ("-cert", str(stand.denise.certificate), "-key", str(stand.denise.key), "-ign_eof", "-quiet")
    for version in ("-tls1_2", "-tls1_3"):
        answer = await client(version, *shown, given=request)
        assert "HTTP/1.1 200 OK" in answer, answer
        assert '"denise"' in answer
    assert "HTTP/1.1" not in await client(
        "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", *shown[:4], "-ign_eof", given=request
    )


@pytest.mark.threat("slowloris, stalled reader")
@pytest_twisted.ensureDeferred
async def test_what_is_no_tls_or_never_ends_is_cut_and_counted(world: CertifiedWorld) -> None:
    import socket

    stand = world.stand
    before = await world.refusals()

    def ends(first: bytes) -> bool:
        with socket.create_connection((LOOPBACK, stand.admin_port), timeout=60) as connection:
            connection.sendall(first)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
        return True

    assert await deferToThread(ends, b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    # The beginning of a ClientHello, and nothing more.
    assert await deferToThread(ends, b"\x16\x03\x01\x02\x00\x01")
    after = await world.refusals()
    assert after["garbage"] - before.get("garbage", 0) == 1
    assert after["unfinished"] - before.get("unfinished", 0) == 1


@pytest_twisted.ensureDeferred
async def test_revocation_counts_without_a_restart_and_a_list_run_out_is_told(
    world: CertifiedWorld,
) -> None:
    stand = world.stand
    kept = await deferToThread(Kept, stand, stand.denise)
    assert await deferToThread(kept.ask) == 200
    try:
        stand.revoke(stand.denise)
        assert (await stand.curl("/status", stand.denise)).status == 200
        assert (await stand.call("POST", "/certificates/reload", "anne", content_type="application/json"))[
            0
        ] == 200
        assert (await stand.curl("/status", stand.denise)).exit != 0
        # A connection that was open before serves the revoked no longer.
        assert await deferToThread(kept.ask) == 401
        assert (await stand.curl("/status", stand.paul)).status == 200
        # With a list out of date nobody knows who is revoked; a start looks at once.
        stand.revoke(expired=True)
        await stand.stop_gateway()
        await stand.start_gateway()
        assert (await stand.curl("/status", stand.paul)).exit != 0

        async def told() -> bool:
            _, body = await stand.call("GET", "/notices?code=REVOCATION", "aude")
            return "d'administration de cette autorité sont refusés" in body.decode()

        await until(told, what="the notice of the list that ran out")
        assert b'reason="unchecked"' in (await stand.call("GET", "/metrics", "aude"))[1]
    finally:
        stand.revoke()
        await stand.call("POST", "/certificates/reload", "anne", content_type="application/json")
    assert (await stand.curl("/status", stand.denise)).status == 200


@pytest.mark.threat("a client certificate at the administration that is not an administrator's")
@pytest_twisted.ensureDeferred
async def test_a_certificate_without_account_is_refused_audited_and_slowed_down(
    world: CertifiedWorld,
) -> None:
    """The last one: the address of all of them has to wait after it."""
    stand = world.stand
    elsewhere = stand.person("Denise Durand", unit="Cuisine")
    answers = [await stand.curl("/status", elsewhere) for _ in range(MAX_FAILURES + 1)]
    assert [each.status for each in answers] == [401] * MAX_FAILURES + [429]
    assert "[[admin.client]]" in answers[0].detail
    refused = [payload for payload in world.audited() if "OU=Cuisine" in payload]
    assert len(refused) == MAX_FAILURES
    assert "denise" not in refused[0]
    # Whoever needs no guess is not slowed down by it.
    assert (await stand.curl("/status", stand.denise)).status == 200
