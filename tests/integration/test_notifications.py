"""Notices leave a gateway process by mail and webhook: once each, late rather than never."""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor

from drimbox.sim.listening import ServerContext, TlsListener
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.smtp import Relay, SmtpRelay
from drimbox.sim.stand import LOOPBACK, PacsAddress, _section, _text
from tests.integration.feed_stand import POOL, FeedStand, Studies
from tests.integration.operator import drimbox
from tests.integration.waiting import pause, until, wait
from tests.notify.test_webhook import Hook

pytestmark = pytest.mark.requirement("DB.SO.21")
PASSWORD, TOKEN = "relais-secret", "jeton-secret"
#: Seconds between two digests.
INTERVAL = 3.0


class NotifyingStand(FeedStand):
    """A gateway that sends its notices to a relay and to a webhook of ours."""

    def __init__(self, folder: Path, pacs: PacsAddress) -> None:
        quick = {"retry_first": "0.1", "retry_max": "0.2"}
        super().__init__(folder, [pacs], extra={"feed": {"max_failures": "2", **quick}})
        self.hook = Hook()
        self.relay: SmtpRelay
        self.listener: TlsListener

    def _toml(self) -> str:
        self.relay = SmtpRelay(reactor, self.pki.dmp, users={"drimbox": PASSWORD})
        self.relay.up()
        self.listener = TlsListener(reactor, self.hook, ServerContext(self.pki.dmp), LOOPBACK, 0)
        self.listener.up()
        for name, secret in (("smtp", PASSWORD), ("token", TOKEN)):
            path = self.folder / name
            path.write_text(secret + "\n")
            path.chmod(0o600)
        roots = _text(self.pki.roots)
        general = {"interval": str(INTERVAL), "retry_first": "0.2", "retry_max": "1"}
        mail = {
            "host": _text(LOOPBACK),
            "port": str(self.relay.port),
            "user": _text("drimbox"),
            "password_file": _text(self.folder / "smtp"),
            "roots": roots,
            "sender": _text("drimbox@exemple.fr"),
            "recipients": '["exploitation@exemple.fr"]',
            "timeout": "2",
        }
        webhook = {
            "url": _text(f"https://{LOOPBACK}:{self.listener.port}/"),
            "roots": roots,
            "token_file": _text(self.folder / "token"),
            "severity": _text("grave"),
            "timeout": "2",
        }
        lines = _section("[notifications]", general)
        lines += _section("[notifications.mail]", mail) + _section("[notifications.webhook]", webhook)
        return super()._toml() + "\n".join(lines) + "\n"

    async def stop(self) -> None:
        await super().stop()
        await self.relay.down()
        await self.listener.down()

    def mails(self) -> list[str]:
        """Return the texts of the mails that came, oldest first."""
        read = email.policy.default
        return [email.message_from_string(raw, policy=read).get_content() for raw in self.relay.messages]

    def told(self) -> list[int]:
        """Return the numbers of the notices that came by mail, in order."""
        return [int(number) for text in self.mails() for number in re.findall(r"  avis (\d+)\n", text)]

    async def listed(self, *arguments: str) -> list[dict[str, Any]]:
        done = await drimbox(self.config, "notices", "list", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@attrs.define
class World:
    stand: NotifyingStand
    pacs: SimulatedPacs
    studies: Studies

    async def absent(self) -> int:
        """Send a report about a study nobody holds; return the number of its notice (E004)."""
        study = self.studies.new()
        await self.stand.report(study)
        await self.stand.notice_about(study.study_uid, "E004")
        (found,) = [one for one in await self.stand.listed() if study.study_uid in one["text"]]
        return int(found["id"])

    async def told(self, *numbers: int) -> None:
        """Wait until notices came by mail."""
        await until(lambda: set(numbers) <= set(self.stand.told()), seconds=60, what="mail")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("notify")
    pacs = SimulatedPacs("PACS")
    pacs.start()
    stand = NotifyingStand(folder, PacsAddress("PACS", pacs.port, POOL))
    pacs.destinations.update(dict.fromkeys(POOL, (LOOPBACK, stand.dicom_port)))
    wait(stand.up())
    yield World(stand, pacs, Studies(folder / "studies"))
    wait(stand.stop())
    pacs.stop()


@pytest_twisted.ensureDeferred
async def test_a_notice_comes_once_by_mail_and_what_follows_comes_together(world: World) -> None:
    stand = world.stand
    first = await world.absent()
    await world.told(first)
    others = [await world.absent() for _ in range(3)]
    await world.told(*others)
    await pause(2 * INTERVAL)
    told = stand.told()
    assert sorted(told) == sorted([first, *others]), "each once"
    assert len(stand.mails()) <= 3, "three notices of one moment are no three mails"
    assert stand.hook.posted == [], "the webhook is for what is grave"
    assert {encrypted for _, encrypted in stand.relay.logins} == {True}
    text = "\n".join(stand.relay.messages)
    for secret in ("PAT-TROIS", "279035121518989", "284070100499094", PASSWORD):
        assert secret not in text
    assert PASSWORD not in stand.log.read_text("utf-8")


@pytest_twisted.ensureDeferred
async def test_a_parked_message_is_grave_and_comes_by_both(world: World) -> None:
    stand = world.stand
    number = stand.insert_message("MSH")
    await stand.notice_about(f"file inbox, ligne {number} ", "E008")
    (found,) = await stand.listed("--severity", "grave")
    await world.told(found["id"])
    ((posted, authorization),) = await until(lambda: stand.hook.posted, seconds=60, what="a POST")
    assert [one["id"] for one in posted["notices"]] == [found["id"]]
    assert posted["notices"][0]["severity"] == "grave"
    assert authorization == f"Bearer {TOKEN}"
    assert TOKEN not in stand.log.read_text("utf-8")


@pytest_twisted.ensureDeferred
async def test_a_relay_that_is_away_gets_it_later_even_after_kill(world: World) -> None:
    stand = world.stand
    await stand.relay.down()
    try:
        number = await world.absent()
        await stand.notice_about("Envoi des avis (mail)", "NOTIFICATION")
        await stand.kill_gateway()
        await stand.start_gateway()
    finally:
        stand.relay.up()
    await world.told(number)

    async def over() -> bool:
        return not [text for text in (await stand.notices()).values() if "Envoi des avis" in text]

    await until(over, what="the notice about the channel closed")
    assert stand.told().count(number) == 1


@pytest.mark.parametrize("behaviour", [Relay.SILENT, Relay.REFUSE, Relay.CUT])
@pytest_twisted.ensureDeferred
async def test_a_relay_that_misbehaves_slows_no_report_and_gets_it_in_the_end(
    world: World, behaviour: Relay
) -> None:
    stand = world.stand
    stand.relay.behaviour = behaviour
    try:
        number = await world.absent()
        await stand.notice_about("Envoi des avis (mail)", "NOTIFICATION")
        study = world.studies.new(world.pacs)
        await stand.report(study)
        await until(lambda: stand.kos(study), seconds=20, what="a publication meanwhile")
    finally:
        stand.relay.behaviour = Relay.NORMAL
    await world.told(number)
    assert stand.told().count(number) == 1


@pytest_twisted.ensureDeferred
async def test_the_operator_tries_the_channels_and_reads_the_history(world: World) -> None:
    stand = world.stand
    before = len(stand.mails())
    done = await drimbox(stand.config, "notices", "test")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["mail : envoyé", "webhook : envoyé"])
    await until(lambda: any("Ceci est un essai" in text for text in stand.mails()[before:]))
    assert stand.hook.posted[-1][0]["test"] is True
    stand.relay.behaviour = Relay.REFUSE
    try:
        done = await drimbox(stand.config, "notices", "test")
    finally:
        stand.relay.behaviour = Relay.NORMAL
    assert done.returncode == 1
    assert "mail : échec, 127.0.0.1 : refusé (550)" in done.stdout
    assert "webhook : envoyé" in done.stdout
    number = await world.absent()
    done = await drimbox(stand.config, "notices", "ack", str(number), "--by", "marie")
    assert done.returncode == 0, done.stderr
    assert number not in [one["id"] for one in await stand.listed()]
    (closed,) = [one for one in await stand.listed("--all") if one["id"] == number]
    assert (closed["by"], closed["severity"], closed["code"]) == ("admin (marie)", "attention", "E004")
    assert closed["acknowledged"] is not None
    actions = stand.query("SELECT payload FROM audit WHERE event_id = '110113' ORDER BY id DESC LIMIT 1")
    assert "Acquittement d'un avis par admin (marie)" in actions[0][0]
