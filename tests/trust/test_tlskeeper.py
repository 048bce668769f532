"""Certificates replaced on disk count without a restart, and an expiry is told before it happens."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from drimbox.config import Appliance, Certificate, Config, DmpSettings, PscSettings, Structure
from drimbox.trust.certificates import CertificateUnusable
from drimbox.trust.contexts import ServerContexts
from drimbox.trust.tlskeeper import MEMORY, TlsKeeper
from drimbox.trust.whitelist import WhitelistHolder
from tests.trust.conftest import NOW, issue, name
from tests.trust.test_contexts import ask, serving
from tests.trust.test_listkeeper import done
from tests.trust.test_whitelist import lists

__all__ = ["lists"]
pytestmark = pytest.mark.requirement("DB.SO.90")


class Notices:
    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        self.posts = 0

    async def post(self, *, key: str, code: str, text: str) -> None:
        assert code == "CERTIFICAT"
        self.posts += 1
        self.open[key] = text

    async def resolve(self, key: str) -> bool:
        return self.open.pop(key, None) is not None


class Scene:
    def __init__(self, world: Any, lists: Any, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.now = NOW
        self.notices = Notices()
        self.noted: list[tuple[str, str]] = []
        own = self.copy(world.sites[0].wado_certificate, "own")
        sign = self.copy(world.sites[0].wado_certificate, "sign")
        site = attrs.evolve(world.sites[0], wado_certificate=own)
        trust = attrs.evolve(world.trust, whitelist=folder / "list.xml", whitelist_roots=lists.roots)
        trust.whitelist.write_bytes(lists.good)
        self.config = Config(
            Appliance(folder, "349"),
            (site,),
            (),
            (Structure("1470003641", "CHU", sign, sign),),
            trust,
            DmpSettings("https://dmp.example", folder),
            PscSettings("https://psc.example", "id", folder),
        )
        self.own = own
        self.holder = WhitelistHolder(trust, self.config.sites, lambda: NOW)
        self.holder.start()
        self.contexts = ServerContexts(self.config.sites, trust, on_refused=lambda: None)
        self.restart()

    def copy(self, pair: Certificate, stem: str) -> Certificate:
        copy = Certificate(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        copy.certificate.write_bytes(pair.certificate.read_bytes())
        copy.key.write_bytes(pair.key.read_bytes())
        return copy

    def restart(self) -> None:
        self.keeper = TlsKeeper(
            self.config,
            self.contexts,
            self.holder,
            self.notices,
            crls=lambda: (),
            now=lambda: self.now,
            in_thread=_at_once,
            noted=self._note,
        )

    async def _note(self, action: str, subject: str) -> None:
        self.noted.append((action, subject))

    def renew(self, *, cn: str = "db1.349.example", ou: str = "3490", end: datetime | None = None) -> bytes:
        """Replace our pair on disk by a new one; return its certificate."""
        issued = issue(
            name(cn, ou),
            by=self.world.intermediate,
            dns=("db1.349.example",),
            end=end or NOW + timedelta(90),
        )
        self.own.certificate.write_bytes(issued.pem())
        self.own.key.write_bytes(issued.key_pem())
        os.utime(self.own.certificate, (1, len(self.noted) + 1))
        return issued.pem()


async def _at_once(work: Any) -> object:
    return work()


@pytest.fixture
def scene(world: Any, lists: Any, tmp_path: Path) -> Scene:
    return Scene(world, lists, tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_pair_replaced_on_disk_counts_for_the_connections_to_come(scene: Scene) -> None:
    with serving(scene.contexts) as port:
        before = await ask(port, "db1.349.example", scene.world.client("good"))
        await scene.keeper.look()
        assert scene.noted == []
        scene.renew()
        await scene.keeper.look()
        after = await ask(port, "db1.349.example", scene.world.client("good"))
    assert before.data == after.data
    assert before.server != after.server
    assert scene.noted == [("Rechargement des certificats TLS", "effectué")]
    assert not scene.notices.open


@pytest_twisted.ensureDeferred
async def test_a_pair_that_does_not_fit_changes_nothing_and_is_told(scene: Scene) -> None:
    with serving(scene.contexts) as port:
        before = await ask(port, "db1.349.example", scene.world.client("good"))
        scene.renew()
        scene.own.key.write_bytes(scene.world.clients["good"].key_pem())
        await scene.keeper.look()
        after = await ask(port, "db1.349.example", scene.world.client("good"))
        assert before.server == after.server
        assert "own" in scene.notices.open["certificates"]
        # What is shown still is the certificate that is listed: images go on, whatever list comes.
        assert scene.holder.serves(scene.config.sites[0])
        scene.own.certificate.write_bytes(b"half")
        scene.holder.install(scene.holder.current)
        assert scene.holder.serves(scene.config.sites[0])
        # Half a renewal is what a look may fall into: the next one finds the rest.
        scene.renew()
        await scene.keeper.look()
        assert not scene.notices.open
        assert (await ask(port, "db1.349.example", scene.world.client("good"))).server != before.server


@pytest_twisted.ensureDeferred
async def test_what_others_hold_is_read_again_when_their_files_change(scene: Scene) -> None:
    path, read = scene.folder / "psc.p12", []
    path.write_bytes(b"one")

    def reload() -> None:
        read.append(path.read_bytes())
        if read[-1] == b"bad":
            raise CertificateUnusable("psc.p12 : PKCS#12 illisible")

    scene.keeper.watch([path], reload)
    await scene.keeper.look()
    assert read == []
    path.write_bytes(b"other")
    await scene.keeper.look()
    assert read == [b"other"]
    # What cannot be used costs the others nothing, whatever their order.
    path.write_bytes(b"bad")
    renewed = scene.renew()
    with serving(scene.contexts) as port:
        await scene.keeper.look()
        after = await ask(port, "db1.349.example", scene.world.client("good"))
    assert after.server == x509.load_pem_x509_certificate(renewed).public_bytes(Encoding.DER)
    assert "psc.p12" in scene.notices.open["certificates"]
    path.write_bytes(b"good again")
    await scene.keeper.look()
    assert not scene.notices.open


def pkcs12_of(scene: Scene, *, end: datetime | None = None) -> None:
    """Write our WADO pair as openssl does."""
    scene.renew(end=end)
    command = ["openssl", "pkcs12", "-export", "-in", scene.own.certificate, "-inkey", scene.own.key]
    command += ["-passout", "pass:x", "-out", scene.folder / "own.p12"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (scene.folder / "own.password").write_text("x\n")


@pytest.mark.peer("openssl")
@pytest_twisted.ensureDeferred
async def test_a_pkcs12_pair_counts_like_pem_and_its_end_is_told(scene: Scene) -> None:
    pkcs12_of(scene, end=NOW + timedelta(days=5))
    pair = Certificate(pkcs12=scene.folder / "own.p12", password_file=scene.folder / "own.password")
    site = attrs.evolve(scene.config.sites[0], wado_certificate=pair)
    scene.config = attrs.evolve(scene.config, sites=(site,))
    scene.holder = WhitelistHolder(scene.config.trust, scene.config.sites, lambda: NOW)
    scene.holder.start()
    scene.contexts = ServerContexts(scene.config.sites, scene.config.trust, on_refused=lambda: None)
    scene.restart()
    assert scene.holder.serves(site)
    with serving(scene.contexts) as port:
        before = await ask(port, "db1.349.example", scene.world.client("good"))
        await scene.keeper.check_expiries()
        assert "expire le" in scene.notices.open["expiry-site1 WADO"]
        (scene.folder / "own.password").write_text("another\n")
        await scene.keeper.look()
        assert "mot de passe erroné" in scene.notices.open["certificates"]
        assert scene.holder.serves(site)
        pkcs12_of(scene, end=NOW + timedelta(days=400))
        await scene.keeper.look()
        await scene.keeper.check_expiries()
        after = await ask(port, "db1.349.example", scene.world.client("good"))
    assert before.data == after.data
    assert before.server != after.server
    assert not {"certificates", "expiry-site1 WADO"} & set(scene.notices.open)


@pytest.mark.requirement("DB.CS.164")
def test_another_name_in_our_certificate_is_held_against_the_list(scene: Scene) -> None:
    assert scene.holder.serves(scene.config.sites[0])
    scene.renew(ou="9999")
    done(scene.keeper.look())
    assert not scene.holder.serves(scene.config.sites[0])


def test_an_expiry_is_told_once_at_each_step(scene: Scene) -> None:
    scene.renew(end=NOW + timedelta(days=100))
    key = "expiry-site1 WADO"
    told = []
    for day in range(102):
        scene.now = NOW + timedelta(days=day, minutes=1)
        before = scene.notices.posts
        scene.notices.open.pop(key, None)
        done(scene.keeper.check_expiries())
        if key in scene.notices.open:
            told.append((100 - day, scene.notices.open[key]))
        if day % 10 == 0:
            scene.restart()
        assert scene.notices.posts - before <= 4
    assert [days for days, _ in told] == [60, 30, 7, 0]
    assert "dans 59 jours" in told[0][1]
    assert "expiré depuis" in told[-1][1]


def test_a_renewal_takes_the_warning_back(scene: Scene) -> None:
    scene.renew(end=NOW + timedelta(days=5))
    done(scene.keeper.check_expiries())
    assert "expiry-site1 WADO" in scene.notices.open
    scene.renew(end=NOW + timedelta(days=400))
    done(scene.keeper.check_expiries())
    assert "expiry-site1 WADO" not in scene.notices.open


def test_what_was_told_may_be_lost_or_spoilt(scene: Scene) -> None:
    scene.renew(end=NOW + timedelta(days=5))
    for spoilt in (b"", b"[]", b"{"):
        (scene.folder / MEMORY).write_bytes(spoilt)
        done(scene.keeper.check_expiries())
        assert "expiry-site1 WADO" in scene.notices.open


def test_a_certificate_that_cannot_be_read_is_shown_as_such(scene: Scene) -> None:
    scene.own.certificate.write_bytes(b"")
    found = {each.label: each.expires for each in scene.keeper.expiries()}
    assert found["site1 WADO"] is None
    assert found["1470003641 signature"] is not None
    done(scene.keeper.check_expiries())
