"""Whose client certificates are taken: chains of openssl against our door, inside the handshake."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from cryptography import x509

from drimbox.config import Certificate
from drimbox.limits import Why
from drimbox.trust.contexts import ServerContexts
from drimbox.trust.peers import PeerRules
from tests.trust.authorities import CLIENT, OpensslAuthority
from tests.trust.test_contexts import ask, both_versions, serving

pytestmark = [
    pytest.mark.requirement("DB.SO.111"),
    pytest.mark.threat("TLS downgrade, weak or revoked certificates"),
    pytest.mark.peer("openssl"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command"),
]
SSL_SERV = "CN=ssl-serv, O=asip-santé, C=fr"
NAME = "db1.349.example"


class Chains:
    """Two authorities of one root, and what they have signed."""

    def __init__(self, folder: Path, world) -> None:
        self.folder = folder
        self.root = OpensslAuthority(folder, "root")
        self.allowed = OpensslAuthority(folder, "SSL-SERV", by=self.root)
        self.other = OpensslAuthority(folder, "ORG-SIGN", by=self.root)
        below = OpensslAuthority(folder, "below", by=self.allowed)
        # Another root that is trusted, and signs for an authority of the very same name.
        self.second = OpensslAuthority(folder, "second")
        twin = OpensslAuthority(folder, "twin", subject="/C=FR/O=ASIP-SANTÉ/CN=SSL-SERV", by=self.second)
        self.clients: dict[str, Certificate] = {
            "good": self.allowed.issue("good"),
            "other authority": self.other.issue("other-authority"),
            "authority below": below.issue("below-leaf"),
            "root itself": self.root.issue("root-leaf"),
            "twin": twin.issue("twin-leaf"),
            "no usage": self.allowed.issue("no-usage", "basicConstraints=CA:FALSE"),
            "any usage": self.allowed.issue("any-usage", "extendedKeyUsage=anyExtendedKeyUsage"),
            "server only": self.allowed.issue("server-only", "extendedKeyUsage=serverAuth"),
            "signature": self.allowed.issue("signature", "extendedKeyUsage=emailProtection,codeSigning"),
            "client only": self.allowed.issue("client-only", "extendedKeyUsage=critical,clientAuth"),
        }
        roots = folder / "roots.pem"
        roots.write_bytes(self.root.path.read_bytes() + self.second.path.read_bytes())
        self.sites = world.sites
        self.trust = attrs.evolve(world.trust, consumer_roots=roots)

    async def taken(self, version: ssl.TLSVersion, **rules: object) -> tuple[set[str], list[Why]]:
        """Return which clients get in, and why the others do not."""
        why: list[Why] = []
        contexts = ServerContexts(
            self.sites,
            attrs.evolve(self.trust, **rules),
            on_refused=lambda: None,
            told=lambda address, name, reason: why.append(reason),
        )
        found = set()
        with serving(contexts) as port:
            for which, pair in self.clients.items():
                if (await ask(port, NAME, pair, version)).data is not None:
                    found.add(which)
        return found, why


@pytest.fixture(scope="module")
def chains(world, tmp_path_factory) -> Chains:
    return Chains(tmp_path_factory.mktemp("chains"), world)


@both_versions
@pytest_twisted.ensureDeferred
async def test_without_a_list_every_authority_trusted_signs_for_clients(chains, version) -> None:
    found, why = await chains.taken(version)
    assert found == {
        "good", "other authority", "authority below", "root itself", "twin", "client only",
    }  # fmt: skip
    assert sorted(each.name for each in why) == ["HANDSHAKE"] * 3 + ["USAGE"]


@both_versions
@pytest_twisted.ensureDeferred
async def test_an_authority_that_is_not_named_signs_for_nobody(chains, version) -> None:
    """By name: order, case and blanks mean nothing; an authority below is another one."""
    found, why = await chains.taken(version, consumer_issuers=(SSL_SERV,))
    assert found == {"good", "twin", "client only"}
    assert why.count(Why.ISSUER) == 3
    found, _ = await chains.taken(version, consumer_issuers=(SSL_SERV, "C=FR,O=ASIP-SANTÉ,CN=ORG-SIGN"))
    assert found == {"good", "twin", "client only", "other authority"}


@both_versions
@pytest_twisted.ensureDeferred
async def test_by_certificate_the_same_name_is_not_enough(chains, version) -> None:
    path = chains.allowed.path
    found, _ = await chains.taken(version, consumer_issuer_certificates=path)
    assert found == {"good", "client only"}
    both, _ = await chains.taken(
        version, consumer_issuer_certificates=path, consumer_issuers=("CN=ORG-SIGN,O=ASIP-SANTÉ,C=FR",)
    )
    assert both == set()


@both_versions
@pytest_twisted.ensureDeferred
async def test_a_certificate_without_a_usage_is_taken_only_where_configured(chains, version) -> None:
    found, _ = await chains.taken(version, require_client_usage=False, consumer_issuers=(SSL_SERV,))
    # One for anything or for another thing never is: that is OpenSSL's own check.
    assert found == {"good", "twin", "client only", "no usage"}


@pytest_twisted.ensureDeferred
async def test_a_leaf_trusted_by_itself_has_no_authority(chains, world) -> None:
    alone = OpensslAuthority(chains.folder, "alone", subject="/C=FR/O=ASIP-SANTÉ/CN=SSL-SERV")
    (chains.folder / "alone.ext").write_text(CLIENT)
    pair = Certificate(alone.path, alone.key)
    roots = chains.folder / "with-alone.pem"
    roots.write_bytes(alone.path.read_bytes())
    trust = attrs.evolve(
        chains.trust, consumer_roots=roots, consumer_issuers=(SSL_SERV,), require_client_usage=False
    )
    contexts = ServerContexts(world.sites, trust, on_refused=lambda: None)
    with serving(contexts) as port:
        assert (await ask(port, NAME, pair)).data is None
        assert (await ask(port, "vi1.349.example")).data.startswith("site1 viewer")


@pytest_twisted.ensureDeferred
async def test_a_reload_takes_another_list_of_authorities(chains, world, tmp_path) -> None:
    path = tmp_path / "issuers.pem"
    path.write_bytes(chains.allowed.path.read_bytes())
    trust = attrs.evolve(chains.trust, consumer_issuer_certificates=path)
    contexts = ServerContexts(world.sites, trust, on_refused=lambda: None)
    with serving(contexts) as port:
        assert (await ask(port, NAME, chains.clients["good"])).data
        path.write_bytes(chains.other.path.read_bytes())
        contexts.reload()
        assert (await ask(port, NAME, chains.clients["good"])).data is None
        assert (await ask(port, NAME, chains.clients["other authority"])).data


def test_the_usage_is_judged_here_too(chains) -> None:
    """Whatever OpenSSL makes of a purpose: what says nothing of clients is not for clients."""
    rules = PeerRules()
    taken = {
        which
        for which, pair in chains.clients.items()
        if rules.takes_leaf(x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0])
    }
    assert taken == set(chains.clients) - {"no usage", "any usage", "server only", "signature"}
