"""`drimbox doctor` asks `openssl ocsp` about certificates of ours, and judges what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import protocol, reactor
from twisted.internet.threads import deferToThread

from drimbox.clock import SystemClock
from drimbox.config import Certificate, Structure, TrustSettings
from drimbox.doctor.findings import Finding, State
from drimbox.doctor.revocation import Answers
from drimbox.sim.pki import Pair, Pki, make_pki
from tests.trust.responders import OpensslResponder

pytestmark = [pytest.mark.requirement("DB.SO.111"), pytest.mark.peer("openssl")]
STRUCTURE = "1470003641"
LABEL = f"{STRUCTURE} authentification"
loop: Any = reactor


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"), structures={STRUCTURE: "CABINET Y"})


def leaf(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0]


def pair_of(pair: Pair) -> Certificate:
    return Certificate(pair.certificate, pair.key)


@pytest.fixture
def responder(pki: Pki, tmp_path: Path) -> Iterator[OpensslResponder]:
    """The authority of our certificates, with nothing in its index; not started."""
    authority = pki.write(
        "answering", (pki.org_authority.certificate, pki.org_authority.key), pki.root_authority
    )
    responder = OpensslResponder(
        tmp_path, pki.intermediate, (pki.intermediate, authority.key), "-nmin", "60"
    )
    yield responder
    responder.stop()


async def ask(pki: Pki, url: str | None, **changes: Any) -> list[Finding]:
    """Examine with the pair of one structure and that of one site."""
    pairs = pki.structures[STRUCTURE]
    structure = Structure(
        STRUCTURE, "CABINET Y", pair_of(pairs.authentication), pair_of(pairs.authentication)
    )
    trust = TrustSettings(pki.roots, Path(), Path(), ocsp="hard", ocsp_url=url, ocsp_timeout=20.0)
    config: Any = SimpleNamespace(
        trust=attrs.evolve(trust, **changes),
        proxy=None,
        sites=(),
        structures=(structure,),
        hl7=SimpleNamespace(tls=None),
        admin=SimpleNamespace(certificate=None),
        psc=SimpleNamespace(certificate=pair_of(next(iter(pki.sites.values())))),
        audit=SimpleNamespace(atna=None),
    )
    return await Answers(config, reactor, SystemClock(), deferToThread).ocsp()


def of(findings: list[Finding], label: str = LABEL) -> Finding:
    (found,) = [each for each in findings if each.subject == label]
    assert found.check == "ocsp"
    assert bool(found.mend) == (found.state is not State.OK)
    return found


@pytest_twisted.ensureDeferred
async def test_what_the_authority_says_of_each_of_our_certificates(
    pki: Pki, responder: OpensslResponder
) -> None:
    responder.knows(leaf(pki.structures[STRUCTURE].authentication))
    responder.knows(leaf(next(iter(pki.sites.values()))), revoked=True)
    responder.start()
    found = await ask(pki, responder.url)
    # Authentication and signature are one certificate here, asked about once.
    assert len(found) == 2
    assert (of(found).state, "valable, réponse vérifiée" in of(found).text) == (State.OK, True)
    revoked = of(found, "proxy e-Santé")
    assert (revoked.state, "notre certificat est révoqué" in revoked.text) == (State.ERROR, True)


@pytest_twisted.ensureDeferred
async def test_a_responder_that_does_not_know_us(pki: Pki, responder: OpensslResponder) -> None:
    responder.start()
    found = of(await ask(pki, responder.url))
    assert (found.state, "ne connaît pas ce certificat" in found.text) == (State.WARNING, True)


@pytest_twisted.ensureDeferred
async def test_a_responder_of_another_authority(
    pki: Pki, responder: OpensslResponder, tmp_path: Path
) -> None:
    stranger = pki.write(
        "other-answering",
        (pki.market_authority.certificate, pki.market_authority.key),
        pki.market_authority,
    )
    responder.signer = (pki.market_root, stranger.key)
    responder.knows(leaf(pki.structures[STRUCTURE].authentication))
    responder.start()
    found = of(await ask(pki, responder.url))
    assert (found.state, "répondeur" in found.text) == (State.ERROR, True), found
    assert "refusés" in found.mend


@pytest_twisted.ensureDeferred
async def test_responders_that_do_not_answer(pki: Pki, responder: OpensslResponder) -> None:
    found = of(await ask(pki, responder.url))
    assert (found.state, "connexion refusée" in found.text) == (State.ERROR, True)
    silent = loop.listenTCP(0, protocol.Factory.forProtocol(protocol.Protocol), interface="127.0.0.1")
    try:
        url = f"http://127.0.0.1:{silent.getHost().port}/"
        found = of(await ask(pki, url, ocsp_timeout=3.0, ocsp="soft"))
    finally:
        await silent.stopListening()
    assert (found.state, "rien reçu en 3 s" in found.text) == (State.ERROR, True)
    assert "admis sans vérification" in found.mend


@pytest_twisted.ensureDeferred
async def test_nobody_to_ask(pki: Pki) -> None:
    """Our certificates name no responder, and none is configured."""
    (found,) = await ask(pki, None)
    assert found.state is State.SKIPPED


@pytest_twisted.ensureDeferred
async def test_what_others_issued_is_not_asked_about(pki: Pki, responder: OpensslResponder) -> None:
    """A viewer's certificate of a market authority is not theirs to answer for."""
    (found,) = await ask(pki, responder.url, consumer_roots=pki.market_root)
    assert found.state is State.SKIPPED
