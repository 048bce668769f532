"""OCSP about the authorities between a Consumer and the root, with `openssl ocsp` as the judge of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.x509 import ocsp
from cryptography.x509.ocsp import OCSPCertStatus
from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET, Site

from drimbox.sim.stand import free_port
from drimbox.trust.responder import MAX_ASKED
from tests.trust.authorities import CLIENT, OpensslAuthority
from tests.trust.conftest import Issued, issue, name
from tests.trust.responders import OpensslResponder
from tests.trust.test_ocsp import Made
from tests.trust.test_responder import Asked, Server, _turn, listening

pytestmark = [
    pytest.mark.requirement("DB.SO.111"),
    pytest.mark.threat("TLS downgrade, weak or revoked certificates"),
]


# --- a real responder -----------------------------------------------------------------------------


class Chain:
    """A root with a responder, an authority of it that names that responder, and a client."""

    def __init__(self, folder: Path) -> None:
        self.root = OpensslAuthority(folder, "root")
        own, leaves = folder / "of-root", folder / "of-issuer"
        own.mkdir()
        leaves.mkdir()
        self.of_root = OpensslResponder(own, self.root.path, (self.root.path, self.root.key), "-nmin", "60")
        named = f"authorityInfoAccess=OCSP;URI:{self.of_root.url}"
        self.certificates: dict[str, list[x509.Certificate]] = {}
        for which in ("good", "revoked", "forgotten"):
            authority = OpensslAuthority(folder, f"issuer-{which}", by=self.root, more=named)
            pair = authority.issue(f"client-{which}", CLIENT)
            assert pair.certificate is not None
            chain = [
                *x509.load_pem_x509_certificates(pair.certificate.read_bytes()),
                *x509.load_pem_x509_certificates(self.root.path.read_bytes()),
            ]
            assert len(chain) == 3
            self.certificates[which] = chain
            if which != "forgotten":
                self.of_root.knows(chain[1], revoked=which == "revoked")
        self.leaves: dict[str, OpensslResponder] = {}
        for which, chain in self.certificates.items():
            place = leaves / which
            place.mkdir()
            path, key = folder / f"issuer-{which}.pem", folder / f"issuer-{which}.key"
            self.leaves[which] = OpensslResponder(place, path, (path, key), "-nmin", "60")
            self.leaves[which].knows(chain[0])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    made = Chain(tmp_path_factory.mktemp("chain"))
    everybody = [made.of_root, *made.leaves.values()]
    try:
        for each in everybody:
            each.start()
        yield made
    finally:
        for each in everybody:
            each.stop()


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest.mark.parametrize("where", ["configured", "named by its certificate"])
@pytest_twisted.ensureDeferred
async def test_openssl_says_which_authority_stands(chain: Chain, where: str, policy: str) -> None:
    for which, words in (("good", ""), ("revoked", "révoqué"), ("forgotten", "inconnu")):
        root, leaves = chain.of_root, chain.leaves[which]
        options: dict[str, Any] = (
            {"ocsp_authorities_url": root.url}
            if where == "configured"
            else {"ocsp_hosts": (f"127.0.0.1:{root.port}",)}
        )
        asked = Asked(ocsp=policy, start=datetime.now(UTC), ocsp_url=leaves.url, **options)
        said = await asked.says(chain.certificates[which])
        if words:
            assert said.startswith("403 E1101")
            assert f"certificat d'une autorité du client {words}" in said
        else:
            assert said == ""
        assert not asked.open
        assert not asked.noted


@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_an_authority_nobody_answers_for_is_left_to_the_lists(chain: Chain) -> None:
    """Its certificate names a responder that was not agreed to."""
    asked = Asked(start=datetime.now(UTC), ocsp_url=chain.leaves["revoked"].url)
    assert await asked.says(chain.certificates["revoked"]) == ""


@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_a_responder_of_authorities_that_is_not_there(chain: Chain) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/"
    options: Any = {"ocsp_url": chain.leaves["good"].url, "ocsp_authorities_url": nobody}
    hard, soft = (Asked(start=datetime.now(UTC), ocsp=each, **options) for each in ("hard", "soft"))
    said = await hard.says(chain.certificates["good"])
    assert "non vérifiable (OCSP) du certificat d'une autorité du client" in said
    # The answer about the client resolves no notice about its authority.
    assert list(hard.open) == ["ocsp-authority"]
    assert await soft.says(chain.certificates["good"]) == ""
    assert list(soft.open) == ["ocsp-authority"]
    ((action, subject),) = soft.noted
    assert "sans vérification OCSP" in action
    assert "issuer-good" in subject


# --- how many, how long ---------------------------------------------------------------------------


def authorities(count: int) -> list[x509.Certificate]:
    """Return a chain with so many authorities below its root, leaf first."""
    last = issue(name("chain root"), ca=True)
    found = [last.certificate]
    for number in range(count):
        last = issue(name(f"chain {count} {number}"), by=last, ca=True)
        found.insert(0, last.certificate)
    return [issue(name(f"chain leaf {count}"), by=last).certificate, *found]


@pytest_twisted.ensureDeferred
async def test_all_are_asked_at_the_same_time() -> None:
    server = Server()
    server.made = NOT_DONE_YET
    with listening(Site(server)) as url:
        asked = Asked(ocsp_url=url, ocsp_authorities_url=url, ocsp_timeout=5.0)
        waiting = Deferred.fromCoroutine(asked.says(authorities(2)))
        while len(server.held) < 3:
            await _turn()
        assert not waiting.called
        # And so all of them together take no longer than one may.
        asked.clock.advance(5.1)
        assert "rien reçu en 5 s" in await waiting
    assert asked.clock.getDelayedCalls() == []


@pytest.mark.parametrize("policy", ["hard", "soft"])
@pytest_twisted.ensureDeferred
async def test_a_chain_without_end_costs_a_few_questions(policy: str) -> None:
    server = Server()
    server.made = b"noise"
    with listening(Site(server)) as url:
        asked = Asked(ocsp=policy, ocsp_url=url, ocsp_authorities_url=url)
        refused = await asked.says(authorities(6))
    assert bool(refused) is (policy == "hard")
    assert len(server.asked) == MAX_ASKED


class Half(Server):
    """Says of authorities that they are revoked, and of clients nothing that is worth anything."""

    def __init__(self, above: Issued, authority: Issued) -> None:
        super().__init__()
        self.above, self.authority = above, authority

    def render_POST(self, request: Any) -> Any:
        number = ocsp.load_der_ocsp_request(request.content.read()).serial_number
        self.asked.append((b"", str(number).encode()))
        if number != self.authority.certificate.serial_number:
            return b"noise"
        return Made(
            about=self.authority.certificate, issuer=self.above.certificate, signer=self.above,
            status=OCSPCertStatus.REVOKED, nonce=None,
        ).encode()  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_a_revocation_counts_beside_a_silence_and_one_answer_serves_all() -> None:
    root = issue(name("half root"), ca=True)
    authority = issue(name("half authority"), by=root, ca=True)
    server = Half(root, authority)
    with listening(Site(server)) as url:
        asked = Asked(ocsp="soft", ocsp_url=url, ocsp_authorities_url=url)
        for number in range(3):
            leaf = issue(name(f"half {number}"), by=authority).certificate
            said = await asked.says([leaf, authority.certificate, root.certificate])
            assert "autorité du client révoqué" in said
    assert len(server.asked) == 4
