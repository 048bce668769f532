"""OCSP over real sockets: `openssl ocsp` judges our questions, and servers that misbehave get no one in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.x509.ocsp import OCSPCertStatus
from twisted.internet import protocol, reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.web.client import Agent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from drimbox.config import TrustSettings
from drimbox.errors import PeerNotTrusted
from drimbox.trust import responder
from drimbox.trust.ocsp import Question
from drimbox.trust.responder import Responders
from tests.trust.authorities import CLIENT, OpensslAuthority
from tests.trust.conftest import NOW
from tests.trust.responders import OpensslResponder
from tests.trust.test_ocsp import CA, LEAF, Made

pytestmark = [pytest.mark.requirement("DB.SO.111"), pytest.mark.threat("SSRF")]
CHAIN = [LEAF.certificate, CA.certificate]
PATH = Path("/nowhere")


class Asked:
    """Responders with their surroundings: a clock, notices, an audit trail."""

    def __init__(self, *, start: datetime = NOW, **settings: Any) -> None:
        self.start = start
        self.settings = attrs.evolve(TrustSettings(PATH, PATH, PATH, ocsp="hard"), **settings)
        self.clock = Clock()
        self.open: dict[str, str] = {}
        self.noted: list[tuple[str, str]] = []
        # The agent runs on the real reactor; what is kept and waited for, on a clock of ours.
        self.responders = Responders(
            self.settings,
            Agent(reactor, connectTimeout=5),
            self.clock,
            self.now,
            self,  # type: ignore[arg-type]
            revoked=lambda certificate: False,
            noted=self.note,
        )

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.clock.seconds())

    async def post(self, *, key: str, code: str, text: str) -> None:
        self.open[key] = text

    async def resolve(self, key: str) -> bool:
        return self.open.pop(key, None) is not None

    async def note(self, action: str, subject: str) -> None:
        self.noted.append((action, subject))

    async def says(self, chain: list[x509.Certificate] = CHAIN) -> str:
        """Return why a peer is refused, with code and status, empty when it is not."""
        try:
            await self.responders.check(chain)
        except PeerNotTrusted as error:
            return f"{error.status} {error}"
        return ""


# --- a real responder -----------------------------------------------------------------------------


class Openssl:
    """An authority with a responder it empowered, and clients in every standing."""

    def __init__(self, folder: Path) -> None:
        self.root = OpensslAuthority(folder, "root")
        self.ca = OpensslAuthority(folder, "issuer", by=self.root)
        delegate = self.ca.issue("ocsp", "extendedKeyUsage=OCSPSigning\nnoCheck=ignored")
        assert delegate.certificate is not None
        assert delegate.key is not None
        signer = (folder / "ocsp.pem", delegate.key)
        self.delegated = OpensslResponder(folder, self.ca.path, signer, "-nmin", "60")
        own = folder / "own"
        own.mkdir()
        signer = (self.ca.path, self.ca.key)
        self.itself = OpensslResponder(own, self.ca.path, signer, "-nmin", "60", "-resp_key_id")
        aia = f"{CLIENT}\nauthorityInfoAccess=OCSP;URI:{self.delegated.url}"
        self.chains = {each: self.chain(each, aia) for each in ("good", "revoked", "forgotten")}
        for which in (self.delegated, self.itself):
            which.knows(self.chains["good"][0])
            which.knows(self.chains["revoked"][0], revoked=True)

    def chain(self, name: str, extensions: str) -> list[x509.Certificate]:
        pair = self.ca.issue(name, extensions)
        assert pair.certificate is not None
        root = x509.load_pem_x509_certificates(self.root.path.read_bytes())
        return [*x509.load_pem_x509_certificates(pair.certificate.read_bytes()), *root]


@pytest.fixture(scope="module")
def openssl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Openssl]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    made = Openssl(tmp_path_factory.mktemp("ocsp"))
    made.delegated.start()
    made.itself.start()
    yield made
    made.delegated.stop()
    made.itself.stop()


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest.mark.parametrize("who", ["delegated", "itself", "named by the certificate"])
@pytest_twisted.ensureDeferred
async def test_openssl_answers_what_stands(openssl: Openssl, who: str, policy: str) -> None:
    if who == "named by the certificate":
        where: dict[str, Any] = {"ocsp_hosts": (f"127.0.0.1:{openssl.delegated.port}",)}
    else:
        where = {"ocsp_url": getattr(openssl, who).url}
    asked = Asked(ocsp=policy, start=datetime.now(UTC), ocsp_require_nonce=True, **where)
    assert await asked.says(openssl.chains["good"]) == ""
    refused = await asked.says(openssl.chains["revoked"])
    assert refused.startswith("403 E1101")
    assert "révoqué" in refused
    assert "inconnu" in await asked.says(openssl.chains["forgotten"])
    assert not asked.open
    assert not asked.noted


@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_a_certificate_names_no_responder_we_have_not_agreed_to(openssl: Openssl) -> None:
    asked = Asked(ocsp_hosts=("ocsp.example",))
    assert "aucune adresse" in await asked.says(openssl.chains["good"])
    # Nor one at all: that is the same.
    bare = openssl.chain("bare", CLIENT)
    assert "aucune adresse" in await asked.says(bare)
    assert "aucune adresse" in asked.open["ocsp"]


# --- answers kept ---------------------------------------------------------------------------------


class Server(Resource):
    """A responder that says what the test wants."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.made: Made | bytes | object = Made(nonce=None)
        self.status, self.headers = 200, {b"Content-Type": b"application/ocsp-response"}
        self.asked: list[tuple[bytes, bytes]] = []
        self.held: list[Any] = []

    def render_POST(self, request: Any) -> Any:
        self.asked.append((request.getHeader(b"content-type"), request.content.read()))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        if self.made is NOT_DONE_YET:
            self.held.append(request)
            return NOT_DONE_YET
        return self.made.encode() if isinstance(self.made, Made) else self.made


@contextmanager
def listening(factory: Any) -> Iterator[str]:
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port.getHost().port}/"
    finally:
        port.stopListening()


@pytest_twisted.ensureDeferred
async def test_an_answer_is_kept_till_its_end_and_no_longer_than_configured() -> None:
    server = Server()
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url, ocsp_cache_time=1000.0)
        for at, count in ((0, 1), (999, 1), (1001, 2), (1999, 2), (2001, 3), (3000, 3)):
            asked.clock.advance(at - asked.clock.seconds())
            assert await asked.says() == ""
            assert len(server.asked) == count, at
        # It ends before the thousand seconds are over: in an hour from NOW.
        asked.clock.advance(3601 - asked.clock.seconds())
        assert "périmée" in await asked.says()
    assert server.asked[0][0] == b"application/ocsp-request"
    assert len({body for _, body in server.asked}) == len(server.asked)


@pytest_twisted.ensureDeferred
async def test_a_revocation_is_kept_too_and_many_ask_once() -> None:
    server = Server()
    server.made = NOT_DONE_YET
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url)
        waiting = [Deferred.fromCoroutine(asked.says()) for _ in range(20)]
        while not server.held:
            await _turn()
        (held,) = server.held
        held.write(Made(nonce=None, status=OCSPCertStatus.REVOKED).encode())
        held.finish()
        assert all("révoqué" in each for each in await gatherResults(waiting))
        assert "révoqué" in await asked.says()
    assert len(server.asked) == 1
    assert not asked.responders._waiting


@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest_twisted.ensureDeferred
async def test_silence_takes_no_revocation_back(policy: str) -> None:
    server = Server()
    server.made = Made(nonce=None, status=OCSPCertStatus.REVOKED)
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url, ocsp=policy, ocsp_cache_time=100.0)
        assert "révoqué" in await asked.says()
        server.made = b"noise"
        for _ in range(3):
            asked.clock.advance(101)
            assert "révoqué" in await asked.says()
        assert "OCSP" in asked.open["ocsp"]
        assert not asked.noted
        server.made = Made(nonce=None)
        asked.clock.advance(101)
        assert await asked.says() == ""
    assert len(server.asked) == 5


@pytest_twisted.ensureDeferred
async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "MAX_KEPT", 1)
    server = Server()
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url)
        await asked.says()
        await asked.says([CA.certificate])
        await asked.says()
    assert len(server.asked) == 2
    assert len(asked.responders._kept) == 1


async def _turn() -> None:
    await deferLater(reactor, 0.01)


# --- no answer ------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[int, Any, dict[bytes, bytes]]] = {
    "500": (500, b"", {}),
    "a good answer with 500": (500, Made(nonce=None), {}),
    "redirect": (302, b"", {b"Location": b"http://127.0.0.1:1/"}),
    "noise": (200, b"\x30\x03\x0a\x01", {}),
    "nothing": (200, b"", {}),
    "a page": (200, b"<html>", {}),
    "huge": (200, b"x" * 100_000, {}),
    "another certificate": (200, Made(about=CA.certificate, nonce=None), {}),
    "of yesterday": (200, Made(this=timedelta(-2), following=timedelta(-1), nonce=None), {}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest_twisted.ensureDeferred
async def test_no_answer_of_worth_refuses_or_lets_in_as_configured(fault: str) -> None:
    server = Server()
    server.status, server.made, more = FAULTS[fault]
    server.headers |= more
    with listening(Site(server)) as url:
        hard, soft = Asked(ocsp_url=url), Asked(ocsp_url=url, ocsp="soft")
        assert "non vérifiable" in await hard.says()
        assert "refusés" in hard.open["ocsp"]
        assert not hard.noted
        assert await soft.says() == ""
        assert "sans vérification" in soft.open["ocsp"]
        ((action, subject),) = soft.noted
        assert "sans vérification OCSP" in action
        assert "CN=leaf" in subject
        # Nobody is asked again for a moment, and the trail says it once.
        for asked in (hard, soft):
            before = len(server.asked)
            asked.clock.advance(responder.SILENCE - 1)
            await asked.says()
            assert len(server.asked) == before
        assert len(soft.noted) == 1
        # And then all is well again.
        server.status, server.made = 200, Made(nonce=None)
        for asked in (hard, soft):
            asked.clock.advance(2)
            assert await asked.says() == ""
            assert not asked.open


@pytest_twisted.ensureDeferred
async def test_a_responder_that_is_not_there_or_cuts_gives_no_answer() -> None:
    class Cut(protocol.Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n0")  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

    with listening(protocol.Factory.forProtocol(Cut)) as url:
        assert "interrompue" in await Asked(ocsp_url=url).says()
    assert "injoignable" in await Asked(ocsp_url=url).says()


@pytest_twisted.ensureDeferred
async def test_a_slow_responder_is_not_waited_for_longer_than_agreed() -> None:
    server = Server()
    server.made = NOT_DONE_YET
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url, ocsp_timeout=5.0)
        waiting = Deferred.fromCoroutine(asked.says())
        while not server.held:
            await _turn()
        asked.clock.advance(4.9)
        assert not waiting.called
        asked.clock.advance(0.2)
        assert "rien reçu en 5 s" in await waiting
    assert asked.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_replayed_answer_to_another_question_is_none() -> None:
    server = Server()
    server.made = Made(nonce=b"yesterday-s-one!")
    with listening(Site(server)) as url:
        assert "autre question" in await Asked(ocsp_url=url).says()


def test_no_two_questions_have_the_same_nonce() -> None:
    assert Question(*CHAIN, b"a" * 16).encode() != Question(*CHAIN, b"b" * 16).encode()
