"""Mail to a relay on loopback: encrypted, authenticated, within its time, and every way it goes wrong."""

from __future__ import annotations

import email
import email.policy
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from drimbox.config import MailSettings
from drimbox.notify.channel import NotDelivered
from drimbox.notify.mail import MailChannel, build_message
from drimbox.ports import Digest, Notice, Severity
from drimbox.sim.pki import Pki, make_pki
from drimbox.sim.smtp import Relay, SmtpRelay
from tests.integration.waiting import pause, until

pytestmark = pytest.mark.requirement("DB.SO.21")
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
PASSWORD = "très-secret"


def notice(number: int = 3, text: str = "Examen 1.2.3 : E004", **changes: Any) -> Notice:
    return attrs.evolve(
        Notice(number, f"k{number}", "E004", Severity.ATTENTION, text, 1, NOW, NOW), **changes
    )


def digest(*notices: Notice, **changes: Any) -> Digest:
    return attrs.evolve(Digest("avis-1", "DRIMbox", "349", NOW, notices or (notice(),)), **changes)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@attrs.frozen
class Office:
    pki: Pki
    folder: Path
    relays: list[SmtpRelay]

    def relay(self, **options: Any) -> SmtpRelay:
        options.setdefault("pair", self.pki.dmp)
        relay = SmtpRelay(reactor, **options)
        relay.up()
        self.relays.append(relay)
        return relay

    def channel(self, relay: SmtpRelay, **changes: Any) -> MailChannel:
        secret = self.folder / "secret"
        secret.write_text(PASSWORD + "\n", encoding="utf-8")
        values: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": relay.port,
            "sender": "drimbox@exemple.fr",
            "recipients": ("a@exemple.fr", "b@exemple.fr"),
            "roots": self.pki.roots,
            "timeout": 5.0,
        }
        if relay.users:
            values |= {"user": "drimbox", "password_file": secret}
        return MailChannel(MailSettings(**{**values, **changes}), reactor, deferToThread)


@pytest_twisted.async_yield_fixture
async def office(pki: Pki, tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(pki, tmp_path, [])
    yield office
    for relay in office.relays:
        await relay.down()


async def failure(channel: MailChannel) -> str:
    with pytest.raises(NotDelivered) as caught:
        await channel.send(digest())
    return str(caught.value)


# --- the message ----------------------------------------------------------------------------------


def test_a_mail_says_what_and_no_patient() -> None:
    settings = MailSettings("relay", "drimbox@exemple.fr", ("a@exemple.fr",))
    grave = notice(9, "INS 279035121518989\x1b[2J", severity=Severity.GRAVE, code="E008", count=4)
    raw = build_message(settings, digest(notice(), grave, more=2))
    assert b"\r" not in raw
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message["Subject"] == "[DRIMbox] 4 avis, gravité : grave"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == "<avis-1.349@exemple.fr>"
    body = message.get_content()
    assert body.index("GRAVE  E008  avis 9") < body.index("ATTENTION  E004  avis 3")
    assert "4 fois" in body
    assert "et 2 autre(s)." in body
    assert "279035121518989" not in body
    assert "\x1b" not in body


# --- good relays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
@pytest_twisted.ensureDeferred
async def test_a_mail_is_delivered(office: Office, security: str) -> None:
    users = {} if security == "none" else {"drimbox": PASSWORD}
    relay = office.relay(users=users, tls=security == "tls")
    channel = office.channel(relay, security=security)
    assert await channel.send(digest(notice(text="Été : dix €, «\xa0oui\xa0»\n.point"))) == ""
    (raw,) = relay.messages
    body = email.message_from_string(raw, policy=email.policy.default).get_content()
    assert "Été : dix €" in body
    assert relay.logins == ([] if security == "none" else [("drimbox", True)])


@pytest.mark.parametrize("behaviour", [Relay.NORMAL, Relay.CLINGING])
@pytest_twisted.ensureDeferred
async def test_a_relay_that_took_a_mail_parts_or_is_cut(
    office: Office, behaviour: Relay, monkeypatch: pytest.MonkeyPatch, unhandled: list[Failure]
) -> None:
    monkeypatch.setattr("drimbox.notify.mail._PARTING", 0.3)
    relay = office.relay(tls=True)
    relay.behaviour = behaviour
    assert await office.channel(relay, security="tls").send(digest()) == ""
    await until(lambda: not relay.connections, what="the end of the conversation")
    await pause(0.5)
    assert (relay.connections, unhandled) == (set(), [])


@pytest_twisted.ensureDeferred
async def test_a_recipient_that_is_refused_is_remarked_and_the_others_get_it(office: Office) -> None:
    relay = office.relay()
    relay.behaviour = Relay.REFUSE_ONE
    assert await office.channel(relay).send(digest()) == "1 destinataire(s) refusé(s) par 127.0.0.1"
    assert len(relay.messages) == 1
    assert "refusé (5" in await failure(office.channel(relay, recipients=("a@exemple.fr",)))


# --- bad ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Relay.SILENT, "pas de réponse dans le délai"),
        (Relay.REFUSE, "refusé (550)"),
        (Relay.CUT, "connexion perdue"),
        (Relay.CUT_ANSWER, "connexion perdue"),
        (Relay.FLOOD, "connexion perdue"),
        (Relay.NO_STARTTLS, "TLS"),
        (Relay.INJECT, "STARTTLS refusé"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_relay_that_misbehaves_is_a_failure_in_time(
    office: Office, behaviour: Relay, words: str
) -> None:
    relay = office.relay(users={"drimbox": PASSWORD})
    relay.behaviour = behaviour
    said = await failure(office.channel(relay, timeout=2.0))
    assert words in said
    assert PASSWORD not in said
    assert relay.logins == [] or behaviour in (Relay.REFUSE, Relay.CUT, Relay.CUT_ANSWER)
    assert len(relay.messages) == (1 if behaviour is Relay.CUT_ANSWER else 0)


@pytest_twisted.ensureDeferred
async def test_nobody_listens(office: Office) -> None:
    relay = office.relay()
    await relay.down()
    assert "127.0.0.1 : " in await failure(office.channel(relay))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.threat("a forged server that takes a password or a token")
@pytest_twisted.ensureDeferred
async def test_a_relay_nobody_vouches_for_gets_neither_password_nor_mail(office: Office, tls: bool) -> None:
    stranger = office.pki.issue_ssl_serv("db9.349.example", stranger=True, name=f"stranger-{tls}")
    relay = office.relay(pair=stranger, users={"drimbox": PASSWORD}, tls=tls)
    said = await failure(office.channel(relay, security="tls" if tls else "starttls"))
    assert "TLS" in said
    named = office.relay(pair=office.pki.sites["db1.349.example"], users={"drimbox": PASSWORD}, tls=tls)
    said = await failure(office.channel(named, security="tls" if tls else "starttls"))
    assert "TLS" in said
    for each in (relay, named):
        assert (each.logins, each.messages) == ([], [])


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_or_none_at_all(office: Office) -> None:
    relay = office.relay(users={"drimbox": "another"})
    said = await failure(office.channel(relay))
    assert "refusé (535)" in said
    assert PASSWORD not in said
    assert "lecture impossible" in await failure(
        office.channel(relay, password_file=office.folder / "absent")
    )
    assert "lecture impossible" not in await failure(office.channel(office.relay(), user="drimbox"))
