"""`drimbox doctor` at mail relays, servers of webhooks and audit repositories, good and bad."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import protocol, reactor
from twisted.internet.threads import deferToThread
from twisted.web import resource, server

from drimbox.clock import SystemClock
from drimbox.config import Appliance, AtnaSettings, Certificate, MailSettings, WebhookSettings
from drimbox.doctor.exits import Exits
from drimbox.doctor.findings import Finding, State
from drimbox.sim.listening import ServerContext
from drimbox.sim.peers import free_port
from drimbox.sim.pki import Pair, Pki, make_pki
from drimbox.sim.smtp import Relay, SmtpRelay
from drimbox.sim.syslog import Repository, SyslogServer
from tests.integration.test_audit_export import Rsyslog
from tests.integration.waiting import until

pytestmark = pytest.mark.requirement("DB.SO.21", "DB.CS.96")
LOOPBACK = "127.0.0.1"
PASSWORD = "très-secret"
#: Seconds for what must happen, and for what never does.
SOON, NEVER = 20.0, 3.0
loop: Any = reactor


class Hook(resource.Resource):
    """Keeps what is posted."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.status = 204
        self.posted: list[dict[str, Any]] = []

    def render_POST(self, request: Any) -> bytes:
        self.posted.append(json.loads(request.content.read()))
        request.setResponseCode(self.status)
        return b""


@attrs.define
class Desk:
    """What there is to try, and what is to be taken down again."""

    pki: Pki
    folder: Path
    ends: list[Any]

    def exits(self, *, send: bool = False) -> Exits:
        config: Any = SimpleNamespace(drimbox=Appliance(self.folder, "349"), proxy=None)
        return Exits(config, reactor, SystemClock(), deferToThread, send=send)

    def secret(self) -> Path:
        path = self.folder / "secret"
        path.write_text(PASSWORD + "\n", encoding="utf-8")
        return path

    def relay(self, behaviour: Relay = Relay.NORMAL, **options: Any) -> SmtpRelay:
        relay = SmtpRelay(reactor, options.pop("pair", self.pki.dmp), **options)
        relay.behaviour = behaviour
        relay.up()
        self.ends.append(relay.down)
        return relay

    async def mail(self, relay: SmtpRelay, *, send: bool = False, **changes: Any) -> list[Finding]:
        settings = MailSettings(LOOPBACK, "drimbox@exemple.fr", ("a@exemple.fr", "b@exemple.fr"))
        if relay.users:
            settings = attrs.evolve(settings, user="drimbox", password_file=self.secret())
        settings = attrs.evolve(settings, port=relay.port, roots=self.pki.roots, timeout=SOON)
        return await self.exits(send=send).mail(attrs.evolve(settings, **changes))

    def hook(self, pair: Pair | None = None) -> tuple[Hook, int]:
        hook = Hook()
        site: Any = server.Site(hook)  # type: ignore[no-untyped-call]
        port = loop.listenSSL(0, site, ServerContext(pair or self.pki.dmp), interface=LOOPBACK)
        self.ends.append(port.stopListening)
        return hook, port.getHost().port

    def peer(self, kind: type[protocol.Protocol]) -> int:
        port = loop.listenTCP(0, protocol.Factory.forProtocol(kind), interface=LOOPBACK)
        self.ends.append(port.stopListening)
        return int(port.getHost().port)

    async def webhook(self, port: int, *, send: bool = False, **changes: Any) -> list[Finding]:
        settings = WebhookSettings(f"https://{LOOPBACK}:{port}/jeton-{PASSWORD.encode().hex()}")
        settings = attrs.evolve(settings, roots=self.pki.roots, timeout=SOON)
        return await self.exits(send=send).webhook(attrs.evolve(settings, **changes))

    def repository(self, behaviour: Repository = Repository.NORMAL) -> SyslogServer:
        repository = SyslogServer(reactor, self.pki.dmp, self.pki.roots)
        repository.behaviour = behaviour
        repository.up()
        self.ends.append(repository.down)
        return repository

    async def atna(self, port: int, **changes: Any) -> list[Finding]:
        ours = next(iter(self.pki.structures.values())).authentication
        client = Certificate(ours.certificate, ours.key)
        settings = AtnaSettings("localhost", self.pki.roots, client, port=port, timeout=SOON)
        return await self.exits().atna(attrs.evolve(settings, **changes))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest_twisted.async_yield_fixture
async def desk(pki: Pki, tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(pki, tmp_path, [])
    yield desk
    for end in desk.ends:
        await end()


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    assert bool(found.mend) == (found.state is not State.OK)
    return found


# --- mail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
@pytest_twisted.ensureDeferred
async def test_a_good_relay_is_asked_for_everything_and_gets_no_mail(desk: Desk, security: str) -> None:
    users = {} if security == "none" else {"drimbox": PASSWORD}
    relay = desk.relay(users=users, tls=security == "tls")
    found = only(await desk.mail(relay, security=security))
    assert (found.check, found.state) == ("mail", State.OK), found
    assert ("mot de passe accepté" in found.text) == bool(users)
    await until(lambda: "QUIT" in relay.verbs, what="the end of the conversation")
    assert relay.verbs[-5:] == ["MAIL", "RCPT", "RCPT", "RSET", "QUIT"]
    assert relay.logins == [("drimbox", True)] * bool(users)
    assert relay.messages == []


@pytest_twisted.ensureDeferred
async def test_a_test_mail_leaves_when_it_is_wanted(desk: Desk) -> None:
    relay = desk.relay(users={"drimbox": PASSWORD})
    tried, sent = await desk.mail(relay, send=True)
    assert (tried.state, sent.state, sent.text) == (State.OK, State.OK, "message d'essai envoyé")
    (message,) = relay.messages
    assert "essai d'envoi des avis" in message


@pytest.mark.parametrize(
    ("behaviour", "words", "mend"),
    [
        (Relay.FLOOD, "connexion perdue", "host, port"),
        (Relay.NO_STARTTLS, "TLS", "security"),
        (Relay.INJECT, "STARTTLS refusé", "security"),
        (Relay.REFUSE_SENDER, "refusé (550)", "sender"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_relay_that_would_take_no_mail(desk: Desk, behaviour: Relay, words: str, mend: str) -> None:
    relay = desk.relay(behaviour, users={"drimbox": PASSWORD})
    found = only(await desk.mail(relay, send=True))
    assert found.state is State.ERROR
    assert words in found.text
    assert mend in found.mend
    assert relay.messages == []


@pytest_twisted.ensureDeferred
async def test_a_relay_that_says_nothing_and_one_that_is_not_there(desk: Desk) -> None:
    relay = desk.relay(Relay.SILENT)
    assert "pas de réponse dans le délai" in only(await desk.mail(relay, timeout=NEVER)).text
    await relay.down()
    found = only(await desk.mail(relay))
    assert (found.state, found.text) == (State.ERROR, f"{LOOPBACK} : connexion refusée")


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_and_never_shown(desk: Desk) -> None:
    relay = desk.relay(users={"drimbox": "another"})
    found = only(await desk.mail(relay))
    assert "refusé (535)" in found.text
    assert "password_file" in found.mend
    assert PASSWORD not in repr(found)
    found = only(await desk.mail(relay, password_file=desk.folder / "absent"))
    assert "lecture impossible" in found.text
    assert "lisible du service" in found.mend


@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_relay_with_another_certificate_gets_no_password(desk: Desk, tls: bool) -> None:
    for pair in (
        desk.pki.issue_ssl_serv("db9.349.example", stranger=True, name=f"stranger-{tls}"),
        next(iter(desk.pki.sites.values())),
    ):
        relay = desk.relay(pair=pair, users={"drimbox": PASSWORD}, tls=tls)
        found = only(await desk.mail(relay, security="tls" if tls else "starttls"))
        assert found.state is State.ERROR
        assert "certificat TLS du serveur refusé" in found.text
        assert (relay.logins, relay.messages) == ([], [])


@pytest_twisted.ensureDeferred
async def test_recipients_that_are_refused(desk: Desk) -> None:
    relay = desk.relay(Relay.REFUSE_ONE)
    found = only(await desk.mail(relay))
    assert found.state is State.WARNING
    assert "a@exemple.fr (550" in found.text
    found = only(await desk.mail(relay, recipients=("a@exemple.fr",), send=True))
    assert found.state is State.ERROR
    assert "tous les destinataires" in found.text
    assert relay.messages == []


# --- webhook ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_good_webhook_gets_nothing_but_a_handshake(desk: Desk) -> None:
    hook, port = desk.hook()
    found = only(await desk.webhook(port, token_file=desk.secret()))
    assert (found.check, found.state, found.subject) == ("webhook", State.OK, f"{LOOPBACK}:{port}")
    assert hook.posted == []


@pytest_twisted.ensureDeferred
async def test_a_test_message_is_posted_when_it_is_wanted(desk: Desk) -> None:
    hook, port = desk.hook()
    tried, sent = await desk.webhook(port, send=True)
    assert (tried.state, sent.state) == (State.OK, State.OK)
    assert [each["test"] for each in hook.posted] == [True]
    hook.status = 401
    tried, sent = await desk.webhook(port, send=True)
    assert (tried.state, sent.state) == (State.OK, State.ERROR)
    assert "401" in sent.text
    assert sent.mend


class Plain(protocol.Protocol):
    """Answers in clear."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


class Cut(protocol.Protocol):
    """Cuts when something comes."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_webhooks_that_are_none(desk: Desk) -> None:
    cases = (
        (free_port(), SOON, "connexion refusée"),
        (desk.peer(protocol.Protocol), NEVER, "pas de réponse dans le délai"),
        (desk.peer(Plain), SOON, "ne parle pas TLS"),
        (desk.peer(Cut), SOON, "connexion perdue"),
        (desk.hook(next(iter(desk.pki.sites.values())))[1], SOON, "certificat TLS du serveur refusé"),
    )
    for port, timeout, words in cases:
        found = only(await desk.webhook(port, timeout=timeout))
        assert (found.state, words in found.text) == (State.ERROR, True), found
        assert PASSWORD.encode().hex() not in repr(found)
    hook, port = desk.hook()
    found = only(await desk.webhook(port, roots=desk.pki.market_root, send=True))
    assert "certificat TLS du serveur refusé" in found.text
    found = only(await desk.webhook(port, token_file=desk.folder / "absent"))
    assert "lecture impossible" in found.text
    assert hook.posted == []


# --- audit repository -------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_good_repository_gets_a_session_and_no_event(desk: Desk) -> None:
    repository = desk.repository()
    found = only(await desk.atna(repository.port))
    assert (found.check, found.state) == ("atna", State.OK), found
    assert (repository.sessions, repository.messages, repository.wrong) == (1, [], [])


@pytest_twisted.ensureDeferred
async def test_repositories_that_would_take_nothing(desk: Desk) -> None:
    repository = desk.repository()
    found = only(await desk.atna(repository.port, roots=desk.pki.market_root))
    assert "certificat TLS du serveur refusé" in found.text
    stranger = desk.pki.issue_org("1470003641", "auth", name="stranger", stranger=True)
    found = only(await desk.atna(repository.port, client=Certificate(stranger.certificate, stranger.key)))
    # In TLS 1.3 we learn it when our handshake is over.
    assert (found.state, "refusés par le serveur" in found.text) == (State.ERROR, True), found
    found = only(await desk.atna(repository.port, client=Certificate(desk.folder / "absent", stranger.key)))
    assert "lecture impossible" in found.text
    mute = desk.repository(Repository.MUTE)
    assert "pas de réponse dans le délai" in only(await desk.atna(mute.port, timeout=NEVER)).text
    assert "ne parle pas TLS" in only(await desk.atna(desk.peer(Plain))).text
    assert "connexion refusée" in only(await desk.atna(free_port())).text
    assert repository.messages == []


@pytest.mark.peer("rsyslogd")
@pytest_twisted.ensureDeferred
async def test_rsyslog(desk: Desk, tmp_path: Path) -> None:
    port = free_port()
    stand: Any = SimpleNamespace(pki=desk.pki, atna_port=port)
    program = Rsyslog(tmp_path, stand)
    program.start()
    try:
        found: list[Finding] = []

        async def listens() -> bool:
            found[:] = await desk.atna(port)
            return "connexion refusée" not in found[0].text

        await until(listens, what="rsyslog to listen")
        assert only(found).state is State.OK, found
        assert program.lines() == []
    finally:
        program.end(signal.SIGKILL)
