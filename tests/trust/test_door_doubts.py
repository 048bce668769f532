"""What somebody who looks for a way in would try at the TLS doors, beside what `test_contexts` has."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import threads

from drimbox.limits import Why
from drimbox.trust.contexts import ServerContexts
from drimbox.trust.outgoing import client_policy
from tests.trust.authorities import CLIENT, OpensslAuthority
from tests.trust.conftest import BOTH, World, crl, issue, name
from tests.trust.hello import ALERT, HANDSHAKE, twice
from tests.trust.test_contexts import ask, both_versions, get, https, serving

pytestmark = pytest.mark.requirement("DB.SO.90", "DB.SO.111")
DB, VI = "db1.349.example", "vi1.349.example"
BYPASS = pytest.mark.threat("client certificate bypassed by SNI")
WEAK = pytest.mark.threat("TLS downgrade, weak or revoked certificates")
openssl_needed = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")


@pytest.fixture
def contexts(world: World) -> ServerContexts:
    return ServerContexts(world.sites, world.trust, on_refused=lambda: None)


@BYPASS
@pytest_twisted.ensureDeferred
async def test_a_second_hello_names_the_same(contexts: ServerContexts) -> None:
    """OpenSSL calls back for both: one on a viewer name would loosen what the other finds strict."""
    with serving(contexts) as port:
        for name in (DB, VI):
            assert await threads.deferToThread(twice, port, name, name) == (True, HANDSHAKE)
            again = await threads.deferToThread(twice, port, name, name.upper())
            assert again == (True, HANDSHAKE)
        for first, second in ((VI, DB), (DB, VI), (DB, "db2.349.example"), (VI, "nobody.example")):
            assert await threads.deferToThread(twice, port, first, second) == (True, ALERT), (first, second)
        assert (await ask(port, VI)).data.startswith("site1 viewer")


@BYPASS
@both_versions
@pytest.mark.parametrize("name", ["db1.349.example.", "db1", "*.349.example", "349", "db1.349.example:443"])
@pytest_twisted.ensureDeferred
async def test_what_is_nearly_a_name_of_ours_is_none(
    world: World, contexts: ServerContexts, version: ssl.TLSVersion, name: str
) -> None:
    with serving(contexts) as port:
        assert (await ask(port, name, world.client("good"), version)).data is None


@BYPASS
@both_versions
@pytest_twisted.ensureDeferred
async def test_an_address_is_no_name(
    world: World, contexts: ServerContexts, version: ssl.TLSVersion
) -> None:
    # Python leaves the extension out for an address, as RFC 6066 has it.
    with serving(contexts) as port:
        assert (await ask(port, "127.0.0.1", world.client("good"), version)).data is None


@BYPASS
@openssl_needed
@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_nothing_comes_before_the_handshake_is_over(contexts: ServerContexts, tmp_path: Path) -> None:
    """Early data would be served to whoever plays it again (RFC 8446 8)."""
    session, early = tmp_path / "session", tmp_path / "early"
    early.write_bytes(b"?")

    def run(port: int, *more: str) -> bytes:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", VI, "-tls1_3"]
        done = subprocess.run([*command, *more], input=b"?", capture_output=True, timeout=20, check=False)
        return done.stdout + done.stderr

    with serving(contexts) as port:
        await threads.deferToThread(run, port, "-sess_out", str(session), "-ign_eof")
        if session.exists() and session.stat().st_size:
            shown = subprocess.run(
                ["openssl", "sess_id", "-in", str(session), "-text", "-noout"],
                capture_output=True, timeout=20, check=True,
            )  # fmt: skip
            assert b"Max Early Data: 0" in shown.stdout
            said = await threads.deferToThread(
                run, port, "-sess_in", str(session), "-early_data", str(early), "-ign_eof"
            )
            assert b"Early data was accepted" not in said
            assert b"Reused, TLSv1.3" not in said


@WEAK
@openssl_needed
@pytest.mark.peer("openssl")
@both_versions
@pytest_twisted.ensureDeferred
async def test_an_authority_signs_for_no_names_but_its_own(
    world: World, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    root = OpensslAuthority(tmp_path, "root")
    permitted = "nameConstraints=critical,permitted;DNS:hopital.example,permitted;dirName:names"
    names = "[names]\nC=FR\nO=CABINET"
    bounded = OpensslAuthority(tmp_path, "bounded", by=root, more=f"{permitted}\n{names}")
    inside = bounded.issue("inside", f"{CLIENT}\nsubjectAltName=DNS:db9.hopital.example")
    another_host = bounded.issue("host", f"{CLIENT}\nsubjectAltName=DNS:db9.350.example")
    another_name = bounded.issue("name", CLIENT, subject="/C=FR/O=AUTRE/OU=3500/CN=name")
    trust = attrs.evolve(world.trust, consumer_roots=root.path)
    with serving(ServerContexts(world.sites, trust, on_refused=lambda: None)) as port:
        assert (await ask(port, DB, inside, version)).data
        assert (await ask(port, DB, another_host, version)).data is None
        assert (await ask(port, DB, another_name, version)).data is None


@WEAK
@openssl_needed
@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_a_client_is_no_authority(world: World, tmp_path: Path) -> None:
    """Nor is one below an authority that may have none below it."""
    root = OpensslAuthority(tmp_path, "root")
    leaf = OpensslAuthority(tmp_path, "leaf", by=root, more="basicConstraints=critical,CA:FALSE")
    last = OpensslAuthority(tmp_path, "last", by=root, more="basicConstraints=critical,CA:TRUE,pathlen:0")
    below = OpensslAuthority(tmp_path, "below", by=last)
    trust = attrs.evolve(world.trust, consumer_roots=root.path)
    with serving(ServerContexts(world.sites, trust, on_refused=lambda: None)) as port:
        assert (await ask(port, DB, last.issue("good"))).data
        assert (await ask(port, DB, leaf.issue("of-a-leaf"))).data is None
        assert (await ask(port, DB, below.issue("of-one-below"))).data is None


@WEAK
@both_versions
@pytest_twisted.ensureDeferred
async def test_why_it_is_refused_is_told_and_who_is_let_in_unchecked(
    world: World, version: ssl.TLSVersion
) -> None:
    told: list[Why] = []
    unchecked: list[str] = []

    def made(policy: str, *lists: Any) -> ServerContexts:
        return ServerContexts(
            world.sites,
            attrs.evolve(world.trust, crl_urls=("http://crl.example/",), crl_policy=policy),
            crls=lists,
            on_refused=lambda: None,
            told=lambda address, name, why: told.append(why),
            unchecked=unchecked.append,
        )

    good = world.client("good")
    gone = crl(world.intermediate, world.clients["good"].certificate)
    for contexts, enters, why in (
        (made("hard"), False, [Why.UNCHECKED]),
        (made("hard", gone), False, [Why.REVOKED]),
        (made("soft", gone), False, [Why.REVOKED]),
        (made("soft"), True, []),
    ):
        told.clear()
        with serving(contexts) as port:
            assert bool((await ask(port, DB, good, version)).data) is enters
        assert told == why
    assert unchecked == ["127.0.0.1"]


@WEAK
@pytest_twisted.ensureDeferred
async def test_a_server_in_a_list_we_hold_is_not_called(world: World, tmp_path: Path) -> None:
    """It, or the authority that signed for it; without a list everybody is."""
    server = issue(name("h"), by=world.intermediate, eku=BOTH, dns=("dmp.example",))
    other = issue(name("i"), by=world.intermediate, eku=BOTH, dns=("dmp.example",))
    held: set[int] = set()
    policy = client_policy(
        world.trust.consumer_roots, None, revoked=lambda certificate: certificate.serial_number in held
    )
    for each, listed, called in (
        (server, None, True),
        (server, server, False),
        (other, server, True),
        (other, world.intermediate, False),
    ):
        held.clear()
        if listed is not None:
            held.add(listed.certificate.serial_number)
        with https(tmp_path, each) as port:
            answer = await get(policy, "dmp.example", port)
        assert (answer == b"hello") is called
