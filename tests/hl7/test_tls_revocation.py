"""Certificates of RIS against the revocation lists of their own authorities, over real sockets."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.config import Certificate, Hl7Settings, Hl7TlsSettings
from drimbox.hl7.mllp import frame
from drimbox.hl7.server import MllpFactory
from drimbox.limits import Why
from drimbox.sim.authority import Pair
from drimbox.sim.ris import NoAck, RisTls, build_message, send
from drimbox.trust.listener import ListenerContext
from drimbox.trust.transport import BulkTLSFactory
from tests.hl7.test_server import Recorder, _now
from tests.hl7.test_tls import CIPHERS
from tests.integration.waiting import until
from tests.trust.conftest import BOTH, Issued, crl, issue, name

pytestmark = [
    pytest.mark.requirement("DB.SO.03", "DB.SO.111"),
    pytest.mark.threat("HL7 and MLLP"),
]
URLS = ("http://crl.hopital/ac.crl",)


@attrs.frozen
class Hospital:
    """An authority with one below it, our pair, and a RIS of the lower one."""

    root: Issued
    authority: Issued
    ris: Issued
    roots: Path
    ours: Certificate
    pair: Pair

    def tls(self) -> RisTls:
        return RisTls(self.roots, pair=self.pair)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    folder = tmp_path_factory.mktemp("hospital")
    root = issue(name("AC HOPITAL"), ca=True)
    authority = issue(name("AC RIS"), by=root, ca=True)
    ris = issue(name("ris", "1"), by=authority, eku=BOTH)
    (folder / "roots.pem").write_bytes(root.pem() + authority.pem())
    written = ris.write(folder, "ris")
    assert written.certificate is not None
    assert written.key is not None
    ours = issue(name("hl7"), by=root, eku=BOTH, dns=("localhost",), ips=("127.0.0.1",))
    pair = Pair(written.certificate, written.key)
    return Hospital(root, authority, ris, folder / "roots.pem", ours.write(folder, "hl7"), pair)


class Door:
    """A listener over TLS, the lists it holds, and what it told."""

    def __init__(self, hospital: Hospital, *, policy: str = "hard", asked: str = "required") -> None:
        settings = Hl7TlsSettings(
            hospital.ours, client_certificates=asked, client_roots=hospital.roots, crl_urls=URLS,
            crl_policy=policy,
        )  # fmt: skip
        self.told: list[Why] = []
        self.unchecked: list[str] = []
        self.lists: list[x509.CertificateRevocationList] = []
        self.context = ListenerContext(
            settings, CIPHERS, crls=lambda: tuple(self.lists), unchecked=self.unchecked.append
        )
        self.receiver = Recorder()
        self.factory = MllpFactory(
            Hl7Settings(tls=settings), self.receiver, reactor, _now,
            refused=lambda address, why: self.told.append(why),
        )  # fmt: skip
        tls = BulkTLSFactory(self.context, False, self.factory)
        self.listening = reactor.listenTCP(0, tls, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.port = self.listening.getHost().port

    def hold(self, *lists: x509.CertificateRevocationList) -> None:
        self.lists[:] = lists
        self.context.reload()

    async def takes(self, tls: RisTls) -> bool:
        try:
            answer = await send("127.0.0.1", self.port, build_message(), 10, tls=tls)
        except (NoAck, SSL.Error):
            return False
        return answer.code == "AA"

    async def close(self) -> None:
        await self.listening.stopListening()
        await self.factory.drain(5)
        assert not self.factory.connections


@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest.mark.parametrize("asked", ["required", "optional"])
@pytest_twisted.ensureDeferred
async def test_who_is_in_a_list_is_not_heard(hospital: Hospital, policy: str, asked: str) -> None:
    door = Door(hospital, policy=policy, asked=asked)
    clean, above = crl(hospital.authority), crl(hospital.root)
    try:
        # Without a list: as configured, and told either way.
        assert await door.takes(hospital.tls()) is (policy == "soft")
        # What is told of a refusal comes when the connection is gone, which the peer need not wait for.
        expected = [] if policy == "soft" else [Why.UNCHECKED]
        await until(lambda: door.told == expected, what="the refusal told")
        assert door.unchecked == (["127.0.0.1"] if policy == "soft" else [])
        door.told.clear()
        door.unchecked.clear()
        door.hold(clean, above)
        assert await door.takes(hospital.tls())
        # He, or the authority that signed for him.
        for lists in (
            (crl(hospital.authority, hospital.ris.certificate), above),
            (clean, crl(hospital.root, hospital.authority.certificate)),
        ):
            door.hold(*lists)
            assert not await door.takes(hospital.tls())
            await until(lambda: door.told == [Why.REVOKED], what="the refusal told")
            door.told.clear()
        # Whoever shows none is no matter of the lists.
        assert await door.takes(RisTls(hospital.roots)) is (asked == "optional")
        assert door.unchecked == []
    finally:
        await door.close()


@pytest_twisted.ensureDeferred
async def test_a_list_of_another_authority_is_none(hospital: Hospital) -> None:
    door = Door(hospital)
    other = issue(name("AC RIS"), ca=True)
    try:
        door.hold(crl(issue(name("AUTRE"), ca=True)), crl(hospital.root))
        assert not await door.takes(hospital.tls())
        # One of the same name with another key.
        door.hold(crl(attrs.evolve(other, key=issue(name("x"), ca=True).key)), crl(hospital.root))
        assert not await door.takes(hospital.tls())
        assert len(door.receiver.received) == 0
    finally:
        await door.close()


@pytest_twisted.ensureDeferred
async def test_a_connection_does_not_outlive_its_certificate(hospital: Hospital) -> None:
    """A RIS stays connected for days."""
    door = Door(hospital)
    door.hold(crl(hospital.authority), crl(hospital.root))
    context = ssl.create_default_context(cafile=str(hospital.roots))
    context.load_cert_chain(hospital.pair.certificate, hospital.pair.key)

    def connect() -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", door.port), 10)
        return context.wrap_socket(raw, server_hostname="localhost")

    def say(connection: ssl.SSLSocket) -> bytes:
        try:
            connection.sendall(frame(build_message()))
            return connection.recv(4096)
        except OSError:
            return b""

    staying: list[Any] = []
    try:
        staying = [await deferToThread(connect) for _ in range(2)]
        for each in staying:
            assert b"MSA|AA" in await deferToThread(say, each)
        assert door.context.drop(lambda certificate: True) == []
        assert b"MSA|AA" in await deferToThread(say, staying[0])
        dropped = door.context.drop(lambda certificate: certificate != hospital.ris.certificate)
        assert dropped == ["127.0.0.1"] * 2
        for each in staying:
            assert await deferToThread(say, each) == b""
        await until(lambda: not door.factory.connections, what="the connections gone")
        # Those that are gone are nobody's any more.
        assert door.context.drop(lambda certificate: False) == []
        assert len(door.receiver.received) == 3
    finally:
        for each in staying:
            each.close()
        await door.close()
