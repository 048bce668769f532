"""`drimbox doctor`: what is well is said to be, and whatever is broken is found, with real broken peers."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import protocol, reactor
from twisted.web import resource, server

from drimbox import backupfiles
from drimbox.configfile import load
from drimbox.doctor.alone import examine_alone
from drimbox.doctor.findings import Finding, State
from drimbox.sim.behaviour import Behaviour, Kind
from drimbox.sim.listening import ServerContext
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour as PacsBehaviour
from drimbox.sim.smtp import SmtpRelay
from drimbox.sim.stand import LOOPBACK, STRUCTURE, PacsAddress, Stand, free_port
from drimbox.sim.studies import GeneratedStudy, make_study
from drimbox.sim.syslog import SyslogServer
from tests.integration.feed_stand import POOL
from tests.integration.operator import drimbox
from tests.integration.waiting import wait

pytestmark = pytest.mark.requirement("DB.SO.05", "DB.SO.21", "DB.SO.90")
web: Any = reactor


class Published(resource.Resource):
    """Where whitelist and revocation lists are published, and notices posted."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[bytes, bytes] = {}
        self.date: datetime | None = None
        self.posted: list[bytes] = []

    def render_POST(self, request: Any) -> bytes:
        self.posted.append(request.content.read())
        return b""

    def render_GET(self, request: Any) -> bytes:
        if self.date is not None:
            request.setHeader(b"date", self.date.strftime("%a, %d %b %Y %H:%M:%S GMT").encode())
        data = self.files.get(request.uri)
        if data is None:
            request.setResponseCode(404)
            return b"absent"
        return data


@attrs.define
class World:
    folder: Path
    stand: Stand
    pacs: SimulatedPacs
    study: GeneratedStudy
    published: Published
    plain: int
    tls: int
    relay: SmtpRelay
    _number: int = 0

    def change(self, *changes: tuple[str, str]) -> Path:
        """Write the configuration with lines replaced; return where."""
        text = self.stand.config.read_text("utf-8")
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        self._number += 1
        path = self.stand.folder / f"changed-{self._number}.toml"
        path.write_text(text, "utf-8")
        return path

    async def examine(self, *changes: tuple[str, str], study: str = "") -> list[Finding]:
        """Examine alone, with a configuration changed."""
        path = self.change(*changes)
        return await examine_alone(load(path, files=False), path, reactor, study)

    def key(self, name: str) -> str:
        """Return the line of the configuration that sets a key which stands there once."""
        lines = [
            line
            for line in self.stand.config.read_text("utf-8").splitlines()
            if line.startswith(f"{name} =")
        ]
        assert len(lines) == 1, (name, lines)
        return lines[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("doctor")
    plain, tls, dicom, mail, atna = (free_port() for _ in range(5))
    pacs = SimulatedPacs("PACS", destinations=dict.fromkeys(POOL, (LOOPBACK, dicom)))
    pacs.start()
    study = make_study(folder / "images", instances=3, rows=64, columns=64, seed=5)
    pacs.load(study)
    published = Published()
    pki = folder / "stand" / "pki"
    stand = Stand(
        folder / "stand",
        reactor,
        [
            PacsAddress(
                "PACS",
                pacs.port,
                POOL,
                settings={
                    "query_timeout": "5",
                    "first_image_timeout": "5",
                    "gap_timeout": "5",
                    "patience": "2",
                    "quarantine": "1",
                },
            )
        ],
        dicom_port=dicom,
        extra={
            "trust": {
                "crl_urls": f'["http://{LOOPBACK}:{plain}/crl"]',
                "whitelist_url": f'"https://localhost:{tls}/liste.xml"',
                "whitelist_url_roots": f'"{pki}/roots.pem"',
            },
            "wado": {"reference_study": f'"{study.study_uid}"', "total_spool": '"2GiB"'},
            "notifications.mail": {
                "host": f'"{LOOPBACK}"',
                "port": str(mail),
                "sender": '"drimbox@exemple.fr"',
                "recipients": '["admin@exemple.fr"]',
                "roots": f'"{pki}/roots.pem"',
            },
            "notifications.webhook": {
                "url": f'"https://localhost:{tls}/avis"',
                "roots": f'"{pki}/roots.pem"',
            },
            "audit.atna": {
                "host": '"localhost"',
                "port": str(atna),
                "roots": f'"{pki}/roots.pem"',
                "client": '{ certificate = "@CERTIFICATE@", key = "@KEY@" }',
            },
        },
    )
    wait(stand.start())
    # The names of the files are the simulator's.
    ours = stand.pki.structures[STRUCTURE].authentication
    text = stand.config.read_text("utf-8").replace(f"{pki}/roots.pem", str(stand.pki.roots))
    text = text.replace("@CERTIFICATE@", str(ours.certificate)).replace("@KEY@", str(ours.key))
    stand.config.write_text(text, "utf-8")
    relay = SmtpRelay(reactor, stand.pki.dmp, port=mail)
    repository = SyslogServer(reactor, stand.pki.dmp, stand.pki.roots, port=atna)
    relay.up()
    repository.up()
    (stand.folder / "state").mkdir(mode=0o700, exist_ok=True)
    published.files[b"/crl"] = stand.pki.crl_der.read_bytes()
    published.files[b"/liste.xml"] = (stand.folder / "whitelist.xml").read_bytes()
    site = server.Site(published)  # type: ignore[no-untyped-call]
    ports = [
        web.listenTCP(plain, site, interface=LOOPBACK),
        web.listenSSL(tls, site, ServerContext(stand.pki.dmp, None), interface=LOOPBACK),
    ]
    yield World(folder, stand, pacs, study, published, plain, tls, relay)
    wait(stand.stop())
    wait(relay.down())
    wait(repository.down())
    for port in ports:
        pytest_twisted.blockon(port.stopListening())
    pacs.stop()


@pytest.fixture(autouse=True)
def well(world: World) -> Iterator[None]:
    yield
    world.pacs.behaviour = PacsBehaviour()
    world.stand.psc.script.reset()
    world.published.date = None
    world.stand.dmp.start()
    world.stand.psc.start()


def states(findings: list[Finding], check: str) -> list[State]:
    return [each.state for each in findings if each.check == check]


def one(findings: list[Finding], check: str, subject: str = "") -> Finding:
    (found,) = [each for each in findings if each.check == check and subject in each.subject]
    return found


def broken(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.state is State.ERROR]


# --- through the running process, as an operator ----------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_through_the_process_then_without_it(world: World) -> None:
    await world.stand.start_gateway()
    try:
        done = await drimbox(world.stand.config, "doctor", "--json")
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["healthy"], answer["mode"]) == (0, True, "process"), answer
        by_check = {each["check"] for each in answer["findings"]}
        assert by_check == {
            "configuration", "certificate", "disk", "clock", "store", "listener", "pacs-echo", "pacs-find",
            "pacs-move", "dmp", "psc", "whitelist", "crl", "front-end", "ris", "mail", "webhook", "atna",
        }  # fmt: skip
        moved = {
            each["subject"]: each["state"] for each in answer["findings"] if each["check"] == "pacs-move"
        }
        assert moved == {f"PACS1 vers {title}": "ok" for title in POOL}

        # One of two titles unknown to the PACS; and who asked is in the trail.
        del world.pacs.destinations[POOL[1]]
        world.stand.config.write_text(
            world.stand.config.read_text("utf-8").replace("drain_timeout = 10", "drain_timeout = 11"),
            "utf-8",
        )
        done = await drimbox(world.stand.config, "doctor")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "destination inconnue du PACS" in done.stdout
        assert f"déclarer dans le PACS l'AE title « {POOL[1]} »" in done.stdout
        assert "modifiée depuis le démarrage" in done.stdout
        assert "1 erreur(s)" in done.stdout
    finally:
        world.pacs.destinations[POOL[1]] = (LOOPBACK, world.stand.dicom_port)
        await world.stand.stop_gateway()
    with closing(sqlite3.connect(world.stand.folder / "state" / "drimbox.db")) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM audit WHERE payload LIKE '%Examen des liaisons%'"
        ).fetchone()
    assert count == 2

    done = await drimbox(world.stand.config, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Le service ne tourne pas" in done.stdout
    assert f"PACS1 vers {POOL[0]} : 3 image(s) reçue(s)" in done.stdout


@pytest_twisted.ensureDeferred
async def test_a_test_message_leaves_when_it_is_wanted_and_never_else(world: World) -> None:
    """In the process and without it; nothing had left before, whatever was tried."""

    def left() -> tuple[int, int]:
        tests = [each for each in world.published.posted if json.loads(each)["test"]]
        return len([each for each in world.relay.messages if "essai d'envoi" in each]), len(tests)

    assert left() == (0, 0)
    for times, mode in ((1, "process"), (2, "alone")):
        if mode == "process":
            await world.stand.start_gateway()
        try:
            done = await drimbox(world.stand.config, "doctor", "--send", "--json")
        finally:
            await world.stand.stop_gateway()
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["mode"]) == (0, mode), answer
        sent = [each["check"] for each in answer["findings"] if each["text"] == "message d'essai envoyé"]
        assert sent == ["mail", "webhook"]
        assert left() == (times, times)


# --- each broken peer, without the process ----------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "check", "words"),
    [
        (PacsBehaviour(down=True), "pacs-echo", "injoignable"),
        (PacsBehaviour(connection="garbage"), "pacs-echo", "PACS1"),
        (PacsBehaviour(reject=(1, 1, 7)), "pacs-echo", "rejetée"),
        (PacsBehaviour(echo_status=0x0122), "pacs-echo", "0x0122"),
        (PacsBehaviour(find_status=0xA700), "pacs-find", "0xA700"),
        (PacsBehaviour(find="abort"), "pacs-find", "PACS1"),
        (PacsBehaviour(move_status=0xA801), "pacs-move", "destination inconnue"),
        (PacsBehaviour(fail=(0,)), "pacs-move", "1 image(s) non reçue(s)"),
        (PacsBehaviour(skip=(0, 1, 2)), "pacs-move", "3 image(s) non reçue(s)"),
        (PacsBehaviour(store_calling="INCONNU"), "pacs-move", "3 image(s) non reçue(s)"),
        (PacsBehaviour(move="close"), "pacs-move", "PACS1"),
        (PacsBehaviour(move="silent"), "pacs-move", "aucune image"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_broken_pacs(world: World, behaviour: PacsBehaviour, check: str, words: str) -> None:
    world.pacs.behaviour = behaviour
    found = broken(await world.examine())
    assert {each.check for each in found} == {check}
    assert all(words in each.text for each in found), found
    assert all(each.mend for each in found)


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_sends_where_nobody_listens(world: World) -> None:
    world.pacs.destinations[POOL[0]] = (LOOPBACK, free_port())
    try:
        found = await world.examine()
    finally:
        world.pacs.destinations[POOL[0]] = (LOOPBACK, world.stand.dicom_port)
    assert states(found, "pacs-move") == [State.ERROR, State.OK]
    assert str(world.stand.dicom_port) in one(found, "pacs-move", POOL[0]).mend


@pytest_twisted.ensureDeferred
async def test_a_control_study_that_is_gone_and_none_at_all(world: World) -> None:
    found = await world.examine(study="2.25.404")
    assert "2.25.404 absent" in one(broken(found), "pacs-find").text
    found = await world.examine((world.key("reference_study") + "\n", ""))
    assert not broken(found)
    assert one(found, "pacs-move").state is State.WARNING


@pytest_twisted.ensureDeferred
async def test_a_dmp_that_is_away(world: World) -> None:
    await world.stand.dmp.stop()
    assert "connexion refusée" in one(broken(await world.examine()), "dmp").text


@pytest_twisted.ensureDeferred
async def test_a_dmp_of_other_authorities_and_one_that_refuses_us(world: World) -> None:
    roots, market = str(world.stand.pki.roots), str(world.stand.pki.market_root)
    dmp = world.stand.config.read_text("utf-8").partition("[dmp]")[2].partition("[psc]")[0]
    found = await world.examine((dmp, dmp.replace(roots, market)))
    assert "certificat TLS du serveur refusé" in one(broken(found), "dmp").text

    ours = world.stand.pki.structures[STRUCTURE].authentication
    foreign = world.stand.pki.issue_org(STRUCTURE, "auth", name="foreign", stranger=True)
    found = await world.examine(
        (str(ours.certificate), str(foreign.certificate)), (str(ours.key), str(foreign.key))
    )
    assert "refusés par le serveur" in one(broken(found), "dmp").text


class Plain(protocol.Protocol):
    """Answers whatever comes in clear, as a web server does that knows no TLS."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


@pytest.mark.parametrize(
    ("peer", "words"),
    [(protocol.Protocol, "pas de réponse dans le délai"), (Plain, "ne parle pas TLS")],
)
@pytest_twisted.ensureDeferred
async def test_a_dmp_that_is_silent_and_one_without_tls(
    world: World, peer: type[protocol.Protocol], words: str
) -> None:
    port = web.listenTCP(0, protocol.Factory.forProtocol(peer), interface=LOOPBACK)
    try:
        found = await world.examine(
            (world.key("base_url"), f'base_url = "https://localhost:{port.getHost().port}"'),
            ("[dmp]\n", '[dmp]\ntimeout = "6s"\nconnect_timeout = "5s"\n'),
        )
    finally:
        await port.stopListening()
    assert words in one(broken(found), "dmp").text


@pytest_twisted.ensureDeferred
async def test_a_clock_that_is_not_the_dmps(world: World) -> None:
    world.published.date = datetime.now(UTC) - timedelta(minutes=5)
    found = await world.examine((world.key("base_url"), f'base_url = "https://localhost:{world.tls}"'))
    (clock,) = [each for each in broken(found) if each.check == "clock"]
    # The date stands still while the examination gets there.
    (seconds,) = re.findall(r"avance de (\d+) s", clock.text)
    assert 300 <= int(seconds) < 600


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_does_not_know_us(world: World) -> None:
    secret = world.stand.folder / "wrong-secret"
    secret.write_text("un-autre-secret\n")
    old = str(world.stand.folder / "psc-secret")
    assert "notre identité est refusée" in one(broken(await world.examine((old, str(secret)))), "psc").text


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(Kind.HTTP, status=500), "HTTP 500"),
        (Behaviour(Kind.GARBAGE), "réponse inattendue"),
        (Behaviour(Kind.CUT_BEFORE), "connexion perdue"),
        (Behaviour(Kind.CUT_ANSWER), "interrompue"),
        (Behaviour(Kind.SILENT), "pas de réponse"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_does_not_answer_as_it_should(
    world: World, behaviour: Behaviour, words: str
) -> None:
    world.stand.psc.script.default = behaviour
    assert words in one(broken(await world.examine()), "psc").text


@pytest_twisted.ensureDeferred
async def test_lists_that_do_not_come_or_are_none(world: World) -> None:
    listed, crl = dict(world.published.files), world.published.files
    try:
        crl.clear()
        found = broken(await world.examine())
        assert "404" in one(found, "whitelist").text
        assert "404" in one(found, "crl").text
        crl.update({b"/crl": b"<html>", b"/liste.xml": b"<html>portail</html>"})
        found = broken(await world.examine())
        assert "refusée" in one(found, "whitelist").text
        assert "illisible" in one(found, "crl").text
        world.stand.pki.revoke()
    finally:
        crl.update(listed)


@pytest_twisted.ensureDeferred
async def test_lists_that_have_us_and_none_of_our_authority(world: World) -> None:
    listed, pki = dict(world.published.files), world.stand.pki
    try:
        pki.revoke(pki.sites[world.stand.sites[0]])
        world.published.files[b"/crl"] = pki.crl_der.read_bytes()
        assert one(broken(await world.examine()), "crl").text == "notre certificat est révoqué"
        root = pki.root_authority.crl().public_bytes(Encoding.DER)
        world.published.files[b"/crl"] = root
        found = one(broken(await world.examine()), "crl")
        assert "aucune liste de cette autorité" in found.text
        assert "ORGANISATIONS" in found.subject
        soft = ("[trust]\n", '[trust]\ncrl_policy = "soft"\n')
        assert not broken(await world.examine(soft))
    finally:
        pki.revoke()
        world.published.files.update(listed)


@pytest_twisted.ensureDeferred
async def test_a_whitelist_without_us_and_none_at_all(world: World) -> None:
    other = world.stand.pki.issue_ssl_serv(world.stand.sites[0], name="other", unit="300000000000009")
    ours = world.stand.pki.sites[world.stand.sites[0]]
    pair = ((str(ours.certificate), str(other.certificate)), (str(ours.key), str(other.key)))
    found = broken(await world.examine(*pair))
    assert "n'est pas dans la liste" in one(found, "whitelist", "site1").text
    (world.stand.folder / "nothing.xml").write_bytes(b"<liste/>")
    found = broken(await world.examine(("whitelist.xml", "nothing.xml")))
    assert one(found, "whitelist").subject == "liste en vigueur"


@pytest_twisted.ensureDeferred
async def test_a_list_of_probes(world: World) -> None:
    url = f'[health]\naddresses_url = "https://localhost:{world.tls}/sondes"\n'
    url += f'addresses_url_roots = "{world.stand.pki.roots}"\n[log]\n'
    assert "404" in one(broken(await world.examine(("[log]\n", url))), "probes").text
    world.published.files[b"/sondes"] = b"<html>portail</html>"
    assert "aucune adresse IP" in one(broken(await world.examine(("[log]\n", url))), "probes").text
    world.published.files[b"/sondes"] = b"10.1.2.3\n10.1.2.4\n"
    assert one(await world.examine(("[log]\n", url)), "probes").text == "2 adresse(s) admise(s)"
    file = world.folder / "sondes.txt"
    settings = f'[health]\naddresses_file = "{file}"\n[log]\n'
    assert "lecture impossible" in one(await world.examine(("[log]\n", settings)), "probes").text
    file.write_text("10.1.2.3\n")
    assert one(await world.examine(("[log]\n", settings)), "probes").state is State.OK


@pytest_twisted.ensureDeferred
async def test_certificates_that_are_no_good(world: World) -> None:
    ours = world.stand.pki.sites[world.stand.sites[0]]
    expired = world.stand.pki.issue_ssl_serv(world.stand.sites[0], name="expired", expired=True)
    found = broken(await world.examine((str(ours.certificate), str(expired.certificate))))
    assert "n'est pas la clé" in one(found, "certificate").text
    found = broken(
        await world.examine(
            (str(ours.certificate), str(expired.certificate)), (str(ours.key), str(expired.key))
        )
    )
    assert "expiré le" in one(found, "certificate").text
    found = broken(await world.examine((str(ours.certificate), str(world.folder / "absent.pem"))))
    assert "absent.pem" in one(found, "certificate").text


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_full_and_a_folder_that_is_not_there(world: World) -> None:
    found = broken(await world.examine(("[log]\n", '[doctor]\nmin_free = "16000GiB"\n[log]\n')))
    assert "min_free" in one(found, "disk").text
    state = str(world.stand.folder / "state")
    found = broken(await world.examine((state, state + "-absent")))
    assert "écriture impossible" in one(found, "disk").text


@pytest.mark.requirement("DB.SO.24")
@pytest_twisted.ensureDeferred
async def test_the_last_backup_is_looked_for(world: World) -> None:
    folder = world.folder / "sauvegardes"
    change = ("[log]\n", f'[backup]\nfolder = "{folder}"\n[log]\n')
    assert all(each.check != "backup" for each in await world.examine())
    assert one(await world.examine(change), "backup").state is State.ERROR
    folder.mkdir()
    found = one(await world.examine(change), "backup")
    assert (found.state, found.text) == (State.WARNING, "aucune sauvegarde")
    system_id, now = load(world.stand.config, files=False).drimbox.system_id, datetime.now(UTC)
    (folder / backupfiles.name_of(system_id, now - timedelta(hours=40), sealed=True)).touch()
    (folder / backupfiles.name_of(system_id + "9", now, sealed=True)).touch()
    assert one(await world.examine(change), "backup").state is State.WARNING
    (folder / backupfiles.name_of(system_id, now - timedelta(hours=20), sealed=False)).touch()
    assert one(await world.examine(change), "backup").state is State.OK


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_none(world: World) -> None:
    state = world.stand.folder / "other-state"
    state.mkdir(mode=0o700)
    (state / "drimbox.db").write_bytes(b"ceci n'est pas une base" * 100)
    found = broken(await world.examine((str(world.stand.folder / "state"), str(state))))
    assert "ne peut pas être lue" in one(found, "store").text


@pytest_twisted.ensureDeferred
async def test_ports_that_others_hold(world: World) -> None:
    held = []
    try:
        for port in (world.stand.hl7_port, world.stand.dicom_port):
            taken = socket.create_server((LOOPBACK, port))
            held.append(taken)
        found = await world.examine()
    finally:
        for taken in held:
            taken.close()
    assert {each.subject for each in broken(found)} == {"hl7", "dicom"}
    assert one(found, "pacs-move").state is State.SKIPPED


@pytest_twisted.ensureDeferred
async def test_a_title_in_use_is_left_alone(world: World) -> None:
    """Somebody else's move goes on; what is not tried is said so, and costs nothing."""
    from drimbox.dicom.aetitles import Pools
    from drimbox.doctor.pacs import PacsDoors, try_site

    config = load(world.stand.config, files=False)
    pacs = config.sites[0].pacs
    assert pacs is not None
    pools = Pools([pacs], reactor)

    class Held:
        """Whoever has both titles."""

    for title in POOL:
        await pools.by_pacs[pacs.name].lease(Held(), 1.0, title)  # type: ignore[arg-type]

    from drimbox.dicom.archive import PacsArchive
    from drimbox.dicom.directory import find_study
    from drimbox.dicom.gateway import PacsGateway
    from drimbox.dicom.requestor import Links
    from drimbox.dicom.retrieval import Mover

    links = Links(config.dicom, reactor)
    mover = Mover(links, pools, web)
    archive = PacsArchive(pacs, PacsGateway(links, mover, web), mover)

    async def none(_: str) -> list[str]:
        return []

    async def find(pacs: Any, uid: str) -> Any:
        return await find_study(links, pacs, uid)

    doors = PacsDoors(lambda _: archive, find, mover, pools, none, web)
    found = await try_site(config, config.sites[0], doors)
    assert states(found, "pacs-move") == [State.SKIPPED, State.SKIPPED]
    pools.stop()
