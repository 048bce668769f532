"""The TLS doors, over real sockets, with Python's own ssl (another OpenSSL) and the openssl command."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import attrs
import pytest
import pytest_twisted
import treq
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from OpenSSL import SSL
from twisted.internet import endpoints, protocol, reactor, threads
from twisted.internet.defer import DeferredList
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.client import Agent, ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import Site as WebSite
from zope.interface import implementer

from drimbox.errors import PeerNotTrusted
from drimbox.trust.certificates import CertificateUnusable
from drimbox.trust.contexts import (
    Role,
    ServerContexts,
    peer_of,
    server_context_factory,
    site_of,
    verified_peer,
)
from drimbox.trust.outgoing import client_policy
from tests.trust.conftest import BOTH, NOW, crl, ec_key, issue, name

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["tls12", "tls13"])


class Tell(protocol.Protocol):
    """Answers any bytes with what the handshake established, then closes."""

    def dataReceived(self, data):
        try:
            peer = peer_of(self.transport)
            text = f"{peer.site.name} {peer.role.value} {peer.certificate is not None} {peer.fqdn}"
            assert site_of(self.transport) is peer.site
            if peer.role is Role.WADO:
                assert verified_peer(self.transport) == peer
        except PeerNotTrusted as error:
            text = f"refused {error.code}"
        self.transport.write(text.encode())
        self.transport.loseConnection()


@contextmanager
def serving(contexts, factory=None):
    """Listen with these contexts on a free port; yields the port."""
    factory = factory or protocol.Factory.forProtocol(Tell)
    port = reactor.listenTCP(0, TLSMemoryBIOFactory(contexts, False, factory), interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        port.stopListening()


def talk(port, sni, pair=None, version=None, session=None, ciphers=None, maximum=None):
    """Do one TLS exchange as a client that trusts any server; return what came of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if maximum is not None:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, maximum
    if ciphers:
        context.set_ciphers(ciphers)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    if session is not None:
        context = session.context
    with socket.create_connection(("127.0.0.1", port), 5) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=sni, session=session and session.value) as tls:
                tls.sendall(b"?")
                # With TLS 1.3 a client hears of the server's refusal only now.
                data = tls.recv(1000)
                while more := tls.recv(1000):
                    data += more
                return SimpleNamespace(
                    data=data.decode(),
                    reused=tls.session_reused,
                    server=tls.getpeercert(binary_form=True),
                    session=SimpleNamespace(value=tls.session, context=context),
                    version=tls.version(),
                    cipher=tls.cipher()[0],
                )
        except (ssl.SSLError, ConnectionError) as error:
            return SimpleNamespace(data=None, error=error)


def ask(*args, **options):
    return threads.deferToThread(talk, *args, **options)


@pytest.fixture
def contexts(world):
    return ServerContexts(world.sites, world.trust, on_refused=lambda: None)


# --- the doors ------------------------------------------------------------------------------------


@both_versions
@pytest.mark.requirement("DB.SO.90")
@pytest_twisted.ensureDeferred
async def test_each_name_has_its_site_its_role_and_its_certificate(world, contexts, version):
    with serving(contexts) as port:
        for index, site in enumerate(world.sites, 1):
            wado = await ask(port, site.wado_fqdn, world.client("good"), version)
            assert wado.data == f"site{index} wado True {site.wado_fqdn}"
            viewer = await ask(port, site.viewer_fqdn, None, version)
            assert viewer.data == f"site{index} viewer False {site.viewer_fqdn}"
            assert wado.server != viewer.server
        upper = await ask(port, "DB1.349.EXAMPLE", world.client("good"), version)
        assert upper.data.startswith("site1 wado True")


@both_versions
@pytest.mark.threat("client certificate bypassed by SNI")
@pytest_twisted.ensureDeferred
async def test_no_client_certificate_no_wado(world, contexts, version):
    with serving(contexts) as port:
        result = await ask(port, "db1.349.example", None, version)
        assert result.data is None
        # And a certificate is not even asked for on a viewer name.
        viewer = await ask(port, "vi1.349.example", world.client("wrong-ca"), version)
        assert viewer.data.startswith("site1 viewer False")


@both_versions
@pytest.mark.requirement("DB.SO.111")
@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest.mark.parametrize(
    "which", ["expired", "future", "wrong-ca", "market", "server-only", "mail-only", "self-signed"]
)
@pytest_twisted.ensureDeferred
async def test_a_client_certificate_that_is_not_right_is_refused(world, contexts, version, which):
    with serving(contexts) as port:
        assert (await ask(port, "db1.349.example", world.client(which), version)).data is None


@both_versions
@pytest.mark.threat("client certificate bypassed by SNI")
@pytest.mark.parametrize("sni", [None, "db3.349.example", "349.example", "xdb1.349.example", "localhost"])
@pytest_twisted.ensureDeferred
async def test_no_name_or_an_unknown_one_is_refused(world, contexts, version, sni):
    with serving(contexts) as port:
        for pair in (None, world.client("good")):
            assert (await ask(port, sni, pair, version)).data is None


@both_versions
@pytest_twisted.ensureDeferred
async def test_a_configured_default_site_takes_them_still_strict(world, version):
    contexts = ServerContexts(world.sites, world.trust, default_site="site2", on_refused=lambda: None)
    with serving(contexts) as port:
        for sni in (None, "unknown.example"):
            assert (await ask(port, sni, world.client("good"), version)).data.startswith("site2 wado True")
            assert (await ask(port, sni, None, version)).data is None


@both_versions
@pytest.mark.threat("client certificate bypassed by SNI")
@pytest_twisted.ensureDeferred
async def test_a_session_of_a_viewer_name_does_not_resume_on_a_wado_name(world, contexts, version):
    with serving(contexts) as port:
        first = await ask(port, "vi1.349.example", None, version)
        assert first.data.startswith("site1 viewer")
        # OpenSSL sends TLS 1.3 tickets even so; none of them can be redeemed.
        assert (first.session.value is not None) or version is VERSIONS[0]
        if first.session.value is not None:
            again = await ask(port, "db1.349.example", None, version, session=first.session)
            assert again.data is None
            same = await ask(port, "vi1.349.example", None, version, session=first.session)
            assert not same.reused
        # Nor does a WADO session resume at all, even on its own name.
        wado = await ask(port, "db1.349.example", world.client("good"), version)
        if wado.session.value is not None:
            assert not (
                await ask(port, "db1.349.example", world.client("good"), version, session=wado.session)
            ).reused


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_old_versions_and_weak_suites_are_refused(world, contexts):
    with serving(contexts) as port:
        good = world.client("good")
        old = await ask(
            port, "db1.349.example", good, maximum=ssl.TLSVersion.TLSv1_1, ciphers="ALL:@SECLEVEL=0"
        )
        assert old.data is None
        for suites in (
            "ECDHE-ECDSA-AES256-SHA384",
            "AES256-GCM-SHA384",
            "DHE-RSA-AES256-GCM-SHA384",
            "AES128-SHA",
        ):
            weak = await ask(port, "db1.349.example", good, VERSIONS[0], ciphers=suites + ":@SECLEVEL=0")
            assert weak.data is None, suites
        fine = await ask(port, "db1.349.example", good, VERSIONS[0])
        assert fine.cipher in world.trust.ciphers
        assert (await ask(port, "db1.349.example", good)).version == "TLSv1.3"


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_renegotiation_is_refused(world, contexts):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")

    def renegotiate(port):
        return subprocess.run(
            [
                "openssl",
                "s_client",
                "-connect",
                f"127.0.0.1:{port}",
                "-servername",
                "vi1.349.example",
                "-tls1_2",
            ],
            input=b"R\n",
            capture_output=True,
            timeout=10,
            check=False,
        )

    with serving(contexts) as port:
        result = await threads.deferToThread(renegotiate, port)
    assert b"RENEGOTIATING" in result.stdout + result.stderr
    assert b"no renegotiation" in result.stderr


@pytest.mark.peer("openssl")
@both_versions
@pytest_twisted.ensureDeferred
async def test_the_openssl_command_agrees(world, contexts, version):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    pair = world.client("good")
    flag = "-tls1_2" if version is VERSIONS[0] else "-tls1_3"

    def run(port, *more):
        verify = ("-CAfile", str(world.trust.consumer_roots), "-verify_return_error")
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *verify, "-ign_eof", flag, *more],
            input=b"?",
            capture_output=True,
            timeout=10,
            check=False,
        )

    with serving(contexts) as port:
        named = ("-servername", "db1.349.example")
        with_pair = (
            "-cert",
            str(pair.certificate),
            "-cert_chain",
            str(pair.certificate),
            "-key",
            str(pair.key),
        )
        good = await threads.deferToThread(run, port, *named, *with_pair)
        none = await threads.deferToThread(run, port, *named)
        unnamed = await threads.deferToThread(run, port, "-noservername", *with_pair)
    assert b"site1 wado True" in good.stdout
    # The authorities a client may choose its certificate by.
    assert b"ACR-EL TEST" in good.stdout.partition(b"Acceptable client certificate CA names")[2]
    assert b"site1" not in none.stdout
    assert b"site1" not in unnamed.stdout
    assert b"New, (NONE)" in unnamed.stdout


# --- revocation, counting, reload -----------------------------------------------------------------


@both_versions
@pytest.mark.requirement("DB.SO.111")
@pytest_twisted.ensureDeferred
async def test_a_revoked_client_certificate_is_refused(world, version):
    good = world.clients["good"]
    revoked = crl(world.intermediate, good.certificate)
    clean = crl(world.intermediate)
    contexts = ServerContexts(world.sites, world.trust, crls=[clean], on_refused=lambda: None)
    with serving(contexts) as port:
        assert (await ask(port, "db1.349.example", world.client("good"), version)).data
        contexts.reload([revoked])
        assert (await ask(port, "db1.349.example", world.client("good"), version)).data is None
        # A list that does not cover the issuer covers nobody.
        contexts.reload([crl(world.market)])
        assert (await ask(port, "db1.349.example", world.client("good"), version)).data is None


@both_versions
@pytest_twisted.ensureDeferred
async def test_each_refused_handshake_counts_once(world, version):
    count = []
    contexts = ServerContexts(world.sites, world.trust, on_refused=lambda: count.append(1))
    with serving(contexts) as port:
        await ask(port, "db1.349.example", world.client("good"), version)
        await ask(port, "vi1.349.example", None, version)
        assert count == []
        for number, (sni, pair) in enumerate(
            [
                ("db1.349.example", None),
                ("nobody.example", None),
                ("db1.349.example", world.client("wrong-ca")),
            ],
            1,
        ):
            await ask(port, sni, pair, version)
            assert len(count) == number


@pytest_twisted.ensureDeferred
async def test_garbage_is_survived(world, contexts):
    def send(port, data):
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(5)
            try:
                return raw.recv(1000)
            except ConnectionError:
                return b""

    with serving(contexts) as port:
        for data in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\xff\xff" + b"\0" * 100,
            b"\x16\x03\x01\x00\x05\x01",
        ):
            await threads.deferToThread(send, port, data)
        assert (await ask(port, "vi1.349.example")).data.startswith("site1 viewer")


@pytest_twisted.ensureDeferred
async def test_a_reload_that_fails_changes_nothing(world, tmp_path):
    site = world.sites[0]
    broken = attrs.evolve(site.wado_certificate, certificate=tmp_path / "own.pem")
    broken.certificate.write_bytes(site.wado_certificate.certificate.read_bytes())
    contexts = ServerContexts(
        [attrs.evolve(site, wado_certificate=broken)], world.trust, on_refused=lambda: None
    )
    for content in (b"", b"garbage", issue(name("x")).pem()):
        broken.certificate.write_bytes(content)
        with pytest.raises(CertificateUnusable, match=r"own\.pem"):
            contexts.reload()
    broken.certificate.unlink()
    with pytest.raises(CertificateUnusable, match="lecture impossible"):
        contexts.reload()
    with serving(contexts) as port:
        assert (await ask(port, "db1.349.example", world.client("good"))).data.startswith("site1 wado")


def test_two_doors_cannot_have_one_name(world):
    shadow = attrs.evolve(world.sites[0], viewer_fqdn="DB1.349.example")
    with pytest.raises(ValueError, match="two doors"):
        ServerContexts([shadow], world.trust)


def test_a_transport_that_is_not_ours_is_not_trusted(contexts):
    plain = SimpleNamespace(getHandle=lambda: None)
    foreign = SimpleNamespace(getHandle=lambda: SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
    unfinished = SimpleNamespace(getHandle=lambda: contexts.serverConnectionForTLS(None))
    for transport in (object(), plain, foreign, unfinished):
        with pytest.raises(PeerNotTrusted) as caught:
            peer_of(transport)
        assert (caught.value.code, caught.value.status) == ("E1101", 403)


@pytest.mark.threat("client certificate bypassed by SNI")
@pytest_twisted.ensureDeferred
async def test_a_viewer_connection_is_no_verified_peer(contexts):
    seen = []

    class Keep(protocol.Protocol):
        def dataReceived(self, data):
            try:
                verified_peer(self.transport)
            except PeerNotTrusted as error:
                seen.append(error.code)
            self.transport.loseConnection()

    with serving(contexts, protocol.Factory.forProtocol(Keep)) as port:
        await ask(port, "vi1.349.example")
    assert seen == ["E1101"]


# --- outgoing -------------------------------------------------------------------------------------


class Hello(Resource):
    isLeaf = True  # noqa: N815 (name of the interface)

    def render_GET(self, request):
        return b"hello"


@contextmanager
def https(tmp_path, issued, roots=None):
    """An HTTPS server of Python's ssl rules: any certificate, optional client certificates."""
    pair = issued.write(tmp_path, "server")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(pair.certificate))
    context.use_privatekey_file(str(pair.key))
    if roots is not None:
        context.load_verify_locations(str(roots))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *a: bool(a[-1]))

    @implementer(IOpenSSLServerConnectionCreator)
    class Creator:
        def serverConnectionForTLS(self, tls_protocol):
            return SSL.Connection(context, None)

    tls = TLSMemoryBIOFactory(Creator(), False, WebSite(Hello()))
    port = reactor.listenTCP(0, tls, interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        port.stopListening()


class Resolver:
    """An endpoint factory that sends every host to the loopback."""

    def __init__(self, policy):
        self.policy = policy

    def endpointForURI(self, uri):
        tcp = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", uri.port)
        return endpoints.wrapClientTLS(self.policy.creatorForNetloc(uri.host, uri.port), tcp)


async def get(policy, host, port):
    agent = Agent.usingEndpointFactory(reactor, Resolver(policy))
    try:
        response = await agent.request(b"GET", f"https://{host}:{port}/".encode())
    except ResponseNeverReceived as error:
        return error.reasons[0].value
    return await treq.content(response)


@pytest_twisted.ensureDeferred
async def test_the_client_takes_the_right_server(world, tmp_path):
    policy = client_policy(world.trust.consumer_roots, None)
    server = issue(
        name("h"),
        by=world.intermediate,
        eku=BOTH,
        dns=("dmp.example", "*.wild.example"),
        ips=("127.0.0.1",),
    )
    with https(tmp_path, server) as port:
        for host in ("dmp.example", "DMP.example", "a.wild.example", "127.0.0.1"):
            assert await get(policy, host, port) == b"hello"


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_the_client_refuses_every_wrong_server(world, tmp_path):
    policy = client_policy(world.trust.consumer_roots, None)
    day = timedelta(days=1)
    past = NOW - day
    by, dns = world.intermediate, ("dmp.example",)
    wrong = {
        "another name": issue(name("h"), by=by, eku=BOTH, dns=("other.example",)),
        "no subjectAltName": issue(name("dmp.example"), by=by, eku=BOTH),
        "name in the CN only": issue(name("dmp.example"), by=by, eku=BOTH, ips=("127.0.0.2",)),
        "wildcard too wide": issue(name("h"), by=by, eku=BOTH, dns=("*.example.",)),
        "expired": issue(name("h"), by=by, eku=BOTH, dns=dns, start=past - day, end=past),
        "wrong authority": issue(name("h"), by=world.market, eku=BOTH, dns=dns),
        "self signed": issue(name("h"), eku=BOTH, dns=dns),
        "client purpose": issue(name("h"), by=by, eku=(Eku.CLIENT_AUTH,), dns=dns),
    }
    for why, server in wrong.items():
        with https(tmp_path, server) as port:
            assert isinstance(await get(policy, "dmp.example", port), SSL.Error), why
    with https(tmp_path, issue(name("h"), by=by, eku=BOTH, dns=dns)) as port:
        assert isinstance(await get(policy, "127.0.0.1", port), SSL.Error)
        # The system's own roots do not know our test authority.
        assert isinstance(await get(client_policy(None, None), "dmp.example", port), SSL.Error)


@pytest_twisted.ensureDeferred
async def test_the_client_proves_itself_with_its_chain(world, tmp_path):
    server = issue(name("h"), by=world.intermediate, eku=BOTH, dns=("dmp.example",))
    with https(tmp_path, server, world.trust.consumer_roots) as port:
        proven = client_policy(world.trust.consumer_roots, world.client("good"))
        assert await get(proven, "dmp.example", port) == b"hello"
        anonymous = client_policy(world.trust.consumer_roots, None)
        assert isinstance(await get(anonymous, "dmp.example", port), SSL.Error)


@pytest_twisted.ensureDeferred
async def test_many_connections_at_once(world, contexts):
    with serving(contexts) as port:
        results = await DeferredList(
            [ask(port, f"{role}{1 + i % 2}.349.example", world.client("good") if role == "db" else None)
             for i in range(6) for role in ("db", "vi")]
        )  # fmt: skip
    assert [result.data[:8] for _, result in results] == [
        "site1 wa",
        "site1 vi",
        "site2 wa",
        "site2 vi",
    ] * 3


@pytest.mark.parametrize("broken", ["missing", "garbage", "empty"])
def test_unusable_roots_are_said_with_their_path(world, tmp_path, broken):
    path = tmp_path / "roots.pem"
    if broken != "missing":
        path.write_bytes(
            b"" if broken == "empty" else b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        )
    with pytest.raises(CertificateUnusable, match=r"roots\.pem"):
        client_policy(path, None)
    with pytest.raises(CertificateUnusable, match=r"roots\.pem"):
        ServerContexts(world.sites, attrs.evolve(world.trust, consumer_roots=path))


def test_a_key_of_another_certificate_is_refused(world, tmp_path):
    pair = attrs.evolve(world.client("good"), key=world.client("expired").key)
    with pytest.raises(CertificateUnusable, match="ne va pas"):
        client_policy(world.trust.consumer_roots, pair)


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(world, tmp_path):
    pair = attrs.evolve(world.client("good"), key=tmp_path / "locked.key")
    pair.key.write_bytes(
        ec_key("locked").private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(CertificateUnusable, match="chiffrée"):
        client_policy(world.trust.consumer_roots, pair)


def test_the_factory_reads_the_configuration(world):
    config = SimpleNamespace(sites=world.sites, trust=world.trust)
    assert isinstance(server_context_factory(config), ServerContexts)
