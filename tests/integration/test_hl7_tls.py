"""Reports over TLS to a running gateway: the main path, who is refused, and who is revoked."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.web import server

from drimbox.hl7.mllp import frame
from drimbox.sim.pki import Pair
from drimbox.sim.ris import NoAck, RisTls, build_message, send
from drimbox.sim.stand import LOOPBACK, free_port
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, served_whole
from tests.integration.test_certificates import Authority, World
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.03")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway that takes reports of a RIS with a certificate only, one that stands in no list."""
    hospital = Hospital(tmp_path_factory.mktemp("hl7-tls"), sites=1)
    stand = hospital.stand
    wait(stand.start())
    port, web = free_port(), reactor
    hospital.authority = Authority(stand)  # type: ignore[attr-defined]
    site: Any = server.Site(hospital.authority)  # type: ignore[attr-defined,no-untyped-call]
    lists = web.listenTCP(port, site, interface=LOOPBACK)  # type: ignore[attr-defined]
    try:
        ours = stand.pki.psc
        text = stand.config.read_text("utf-8")
        tls = f'[hl7.tls]\ncertificate = {{ certificate = "{ours.certificate}", key = "{ours.key}" }}\n'
        tls += f'client_certificates = "required"\nclient_roots = "{stand.pki.roots}"\n'
        tls += f'crl_urls = ["http://{LOOPBACK}:{port}/etablissement.crl"]\ncrl_policy = "hard"\n\n'
        stand.config.write_text(text.replace("[dicom]\n", tls + "[dicom]\n", 1), "utf-8")
        stand.ris_tls = RisTls(stand.pki.roots, pair=ris_pair(hospital))
        wait(stand.start_gateway())
        yield hospital
    finally:
        wait(hospital.stop())
        pytest_twisted.blockon(lists.stopListening())


def ris_pair(hospital: Hospital) -> Pair:
    """A certificate for clients, of an authority that is trusted."""
    return next(iter(hospital.stand.pki.structures.values())).authentication


async def answered(hospital: Hospital, tls: RisTls | None) -> bool:
    try:
        await send(LOOPBACK, hospital.stand.hl7_port, build_message(), 10, tls=tls)
    except (NoAck, SSL.Error):
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_report_over_tls_ends_in_the_record(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", instances=2, rows=32, columns=32, seed=41)
    served = await hospital.publish(study)
    assert served_whole(await hospital.fetch(served))


@pytest.mark.threat("HL7 and MLLP")
@pytest_twisted.ensureDeferred
async def test_who_shows_no_certificate_or_speaks_in_clear_is_not_heard(hospital: Hospital) -> None:
    def stored() -> int:
        return int(hospital.database("select count(*) from inbox")[0][0])

    before = stored()
    assert not await answered(hospital, None)
    assert not await answered(hospital, RisTls(hospital.stand.pki.roots))
    stranger = hospital.stand.pki.issue_ssl_serv("ris.hopital", name="stranger-ris", stranger=True)
    assert not await answered(hospital, RisTls(hospital.stand.pki.roots, pair=stranger))
    assert stored() == before

    async def counted() -> bool:
        _, body = await hospital.stand.admin("/metrics")
        return b'drimbox_connections_refused_total{door="hl7",reason="handshake"} 3.0' in body

    await until(counted, what="three refusals counted")
    assert await answered(hospital, hospital.stand.ris_tls)


class Staying:
    """A RIS that keeps its connection."""

    def __init__(self, hospital: Hospital, pair: Pair) -> None:
        context = ssl.create_default_context(cafile=str(hospital.stand.pki.roots))
        context.load_cert_chain(pair.certificate, pair.key)
        raw = socket.create_connection((LOOPBACK, hospital.stand.hl7_port), 20)
        self.connection = context.wrap_socket(raw, server_hostname="localhost")

    def says(self) -> bytes:
        """Send a message; return what comes, nothing when the connection is cut."""
        try:
            self.connection.sendall(frame(build_message()))
            return self.connection.recv(4096)
        except OSError:
            return b""


def alerts(hospital: Hospital) -> list[str]:
    """Return the security alerts about nodes in the audit trail."""
    rows = hospital.database("select payload from audit where payload like '%110126%' order by id")
    return [json.dumps(json.loads(payload), ensure_ascii=False) for (payload,) in rows]


async def reloaded(hospital: Hospital) -> str:
    code, text = await World(hospital.stand, hospital.authority).drimbox("certificates", "reload")  # type: ignore[attr-defined]
    assert code == 0, text
    return text


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.requirement("DB.SO.47", "DB.SO.111")
@pytest_twisted.ensureDeferred
async def test_a_ris_revoked_today_is_heard_no_more(hospital: Hospital) -> None:
    pki = hospital.stand.pki
    pair = pki.issue_ssl_serv("ris2.hopital", name="second-ris")
    tls = RisTls(pki.roots, pair=pair)
    assert await answered(hospital, tls)
    staying = await deferToThread(Staying, hospital, pair)
    try:
        assert b"MSA|" in await deferToThread(staying.says)
        before = len(alerts(hospital))
        pki.revoke(pair)
        assert "1 certificats révoqués" in await reloaded(hospital)
        # Neither anew, nor on the connection it has had since before.
        assert not await answered(hospital, tls)
        assert await deferToThread(staying.says) == b""
    finally:
        staying.connection.close()
    assert await answered(hospital, hospital.stand.ris_tls)
    found = await until(lambda: alerts(hospital)[before:], what="a security alert")
    assert "certificat client révoqué" in found[0]
    assert LOOPBACK in found[0]

    async def counted() -> bool:
        _, body = await hospital.stand.admin("/metrics")
        return b'drimbox_connections_refused_total{door="hl7",reason="revoked"} 2.0' in body

    await until(counted, what="two refusals counted")
    pki.revoke()


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.requirement("DB.SO.47", "DB.SO.111")
@pytest_twisted.ensureDeferred
async def test_without_a_list_nobody_is_heard_unless_so_configured(hospital: Hospital) -> None:
    stand, authority = hospital.stand, hospital.authority  # type: ignore[attr-defined]
    authority.down = True
    await stand.stop_gateway()
    shutil.rmtree(stand.folder / "state" / "crl-hl7")
    await stand.start_gateway()
    try:
        before = len(alerts(hospital))
        assert not await answered(hospital, stand.ris_tls)
        assert any("Liste de révocation" in each["text"] for each in await hospital.notices())
        found = await until(lambda: alerts(hospital)[before:], what="a security alert")
        assert "non vérifiable" in found[0]
        await stand.stop_gateway()
        text = stand.config.read_text("utf-8")
        stand.config.write_text(text.replace('crl_policy = "hard"', 'crl_policy = "soft"'), "utf-8")
        await stand.start_gateway()
        assert await answered(hospital, stand.ris_tls)
        rows = await until(
            lambda: hospital.database(
                "select payload from audit where payload like '%Certificat admis sans liste%'"
            ),
            what="the audit record",
        )
        assert len(rows) == 1
    finally:
        authority.down = False


@pytest.mark.threat("HL7 and MLLP")
@pytest.mark.requirement("DB.SO.04")
@pytest_twisted.ensureDeferred
async def test_a_ris_speaks_only_with_its_own_certificate(hospital: Hospital) -> None:
    """Another one of the same authority opens the door, and is told that it is nobody here."""
    stand = hospital.stand
    own = RisTls(stand.pki.roots, pair=stand.pki.issue_ssl_serv("Ris3.hopital", name="third-ris"))
    other = RisTls(stand.pki.roots, pair=stand.pki.issue_ssl_serv("ris4.hopital", name="fourth-ris"))
    await stand.stop_gateway()
    text = stand.config.read_text("utf-8")
    held = text.replace("[[ris]]\n", '[[ris]]\ncertificate_names = ["ris3.hopital"]\n', 1)
    stand.config.write_text(held, "utf-8")
    await stand.start_gateway()

    def stored() -> int:
        return int(hospital.database("select count(*) from inbox")[0][0])

    async def code(tls: RisTls) -> str:
        return (await send(LOOPBACK, stand.hl7_port, build_message(), 10, tls=tls)).code

    before = stored()
    assert await code(other) == "AE"
    assert stored() == before
    texts = [each["text"] for each in await hospital.notices()]
    assert any("certificat « ris4.hopital »" in text for text in texts), texts
    assert await code(own) == "AA"
    assert stored() == before + 1
