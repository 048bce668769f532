"""Revocation lists: which are taken, which never, what a handshake makes of them, what is told."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from twisted.internet.defer import Deferred

from drimbox.trust.contexts import ServerContexts
from drimbox.trust.download import FetchFailed
from drimbox.trust.revocation import CrlRefused, RevocationKeeper, verified_crl
from tests.trust.conftest import NOW, Issued
from tests.trust.test_contexts import ask, both_versions, serving
from tests.trust.test_listkeeper import done

pytestmark = pytest.mark.requirement("DB.SO.111")
URL, OTHER = "http://crl.example/a.crl", "http://crl.example/b.crl"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def made(
    issuer: Issued,
    *revoked: x509.Certificate,
    since: datetime = NOW - HOUR,
    until: datetime | None = None,
    key: Any = None,
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(since)
        .next_update(until or since + 7 * DAY)
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(since).build())
    return builder.sign(key or issuer.key, hashes.SHA256())


def der(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(serialization.Encoding.DER)


class Notices:
    def __init__(self) -> None:
        self.open: dict[str, str] = {}

    async def post(self, *, key: str, code: str, text: str) -> None:
        assert code == "REVOCATION"
        self.open[key] = text

    async def resolve(self, key: str) -> bool:
        return self.open.pop(key, None) is not None


class Scene:
    """A keeper of two addresses, a clock, and servers that say what the test wants."""

    def __init__(self, world: Any, folder: Path, *, hard: bool = True) -> None:
        self.world = world
        self.folder = folder
        self.now = NOW
        self.notices = Notices()
        self.answers: dict[str, bytes | Exception] = {
            URL: der(made(world.intermediate)),
            OTHER: der(made(world.root)),
        }
        self.asked: list[str] = []
        self.changes = 0
        self.hard = hard
        self.restart()

    def restart(self) -> None:
        self.keeper = RevocationKeeper(
            {url: self._fetch(url) for url in self.answers},
            lambda: [self.world.root.certificate, self.world.intermediate.certificate],
            self.notices,
            now=lambda: self.now,
            in_thread=_at_once,
            folder=self.folder / "crl",
            period=6 * 3600.0,
            hard=self.hard,
            changed=self._changed,
        )

    async def _changed(self) -> None:
        self.changes += 1

    def _fetch(self, url: str) -> Callable[[], Any]:
        async def fetch() -> bytes:
            self.asked.append(url)
            answer = self.answers[url]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return fetch

    def start(self) -> None:
        done(self.keeper.start())

    def look(self, after: timedelta = timedelta()) -> None:
        self.now += after
        done(self.keeper.refresh_if_due())


async def _at_once(work: Callable[[], object]) -> object:
    return work()


@pytest.fixture
def scene(world: Any, tmp_path: Path) -> Scene:
    scene = Scene(world, tmp_path)
    scene.start()
    return scene


def test_lists_are_fetched_before_the_doors_open_and_kept_as_they_came(scene: Scene) -> None:
    assert sorted(scene.asked) == [URL, OTHER]
    assert len(scene.keeper.crls) == 2
    kept = {path.read_bytes() for path in (scene.folder / "crl").iterdir()}
    assert kept == set(scene.answers.values())
    # What is on disk and current is not fetched again at the next start.
    scene.restart()
    scene.asked.clear()
    scene.start()
    assert scene.asked == []
    assert len(scene.keeper.crls) == 2


def test_each_list_is_fetched_in_good_time_before_it_runs_out(scene: Scene) -> None:
    scene.asked.clear()
    scene.look(5 * HOUR)
    assert scene.asked == []
    scene.look(HOUR)
    assert sorted(scene.asked) == [URL, OTHER]
    assert scene.changes == 1
    # One that lives for two hours is asked for at half of what is left.
    scene.answers[URL] = der(made(scene.world.intermediate, since=scene.now, until=scene.now + 2 * HOUR))
    scene.look(6 * HOUR)
    scene.asked.clear()
    scene.look(HOUR)
    assert scene.asked == [URL]


@pytest.mark.threat("forged lists and OCSP answers")
def test_what_is_no_list_of_ours_is_never_taken(scene: Scene, world: Any) -> None:
    before = scene.keeper.crls
    for bad in (
        b"",
        b"garbage",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        scene.answers[URL][:-20],  # type: ignore[index]
        der(made(world.market)),
        der(made(world.intermediate, key=world.market.key)),
        der(made(world.intermediate, since=NOW + DAY)),
    ):
        scene.answers[URL] = bad
        done(scene.keeper.refresh())
        assert scene.keeper.crls == before
    assert scene.changes == 1


@pytest.mark.threat("old lists played again")
def test_an_older_list_never_takes_the_place_of_a_newer_one(scene: Scene, world: Any) -> None:
    newer = made(world.intermediate, world.clients["good"].certificate, since=NOW - timedelta(minutes=30))
    scene.answers[URL] = der(newer)
    done(scene.keeper.refresh())
    scene.answers[URL] = der(made(world.intermediate))
    done(scene.keeper.refresh())
    assert scene.keeper.current(world.intermediate.certificate.subject) == newer
    assert "plus ancienne" in str(scene.keeper.facts()[0]["problem"])


@pytest.mark.parametrize("hard", [True, False])
def test_a_list_that_runs_out_is_told_with_what_follows(world: Any, tmp_path: Path, hard: bool) -> None:
    scene = Scene(world, tmp_path, hard=hard)
    scene.start()
    for url in scene.answers:
        scene.answers[url] = FetchFailed("serveur injoignable")
    scene.look(DAY)
    # There is time enough: nobody is disturbed.
    assert not scene.notices.open
    scene.look(7 * DAY)
    words = "sont refusés" if hard else "n'est pas vérifiée"
    assert len(scene.notices.open) == 2
    assert all(words in text and "injoignable" in text for text in scene.notices.open.values())
    assert scene.keeper.current(world.intermediate.certificate.subject) is None
    for url, issuer in ((URL, world.intermediate), (OTHER, world.root)):
        scene.answers[url] = der(made(issuer, since=scene.now))
    scene.look(HOUR)
    assert not scene.notices.open
    assert scene.keeper.current(world.intermediate.certificate.subject) is not None


def test_a_spoilt_file_is_fetched_anew(scene: Scene) -> None:
    for path in (scene.folder / "crl").iterdir():
        path.write_bytes(b"spoilt")
    scene.restart()
    scene.start()
    assert len(scene.keeper.crls) == 2


def test_a_list_without_end_is_no_list(world: Any) -> None:
    with pytest.raises(CrlRefused):
        verified_crl(b"\x30\x00", [world.root.certificate], NOW)


@both_versions
@pytest_twisted.ensureDeferred
async def test_hard_and_soft_without_a_current_list(world: Any, version: ssl.TLSVersion) -> None:
    good = world.client("good")
    old = made(world.intermediate, since=NOW - 9 * DAY, until=NOW - DAY)
    gone = made(world.intermediate, world.clients["good"].certificate)
    for policy, enters in (("hard", False), ("soft", True)):
        trust = attrs.evolve(world.trust, crl_urls=(URL,), crl_policy=policy)
        contexts = ServerContexts(world.sites, trust, on_refused=lambda: None)
        with serving(contexts) as port:
            for lists in ((), (old,)):
                contexts.reload(lists)
                answer = await ask(port, "db1.349.example", good, version)
                assert bool(answer.data) is enters, (policy, lists)
                # Whatever the policy, no other fault is excused.
                for which in ("wrong-ca", "expired"):
                    if which in world.clients:
                        answer = await ask(port, "db1.349.example", world.client(which), version)
                        assert answer.data is None
            contexts.reload([made(world.intermediate)])
            assert (await ask(port, "db1.349.example", good, version)).data
            contexts.reload([gone])
            assert (await ask(port, "db1.349.example", good, version)).data is None


@pytest_twisted.ensureDeferred
async def test_a_revoked_intermediate_takes_all_its_certificates_with_it(world: Any) -> None:
    trust = attrs.evolve(world.trust, crl_urls=(URL, OTHER))
    contexts = ServerContexts(
        world.sites, trust, crls=[made(world.intermediate), made(world.root)], on_refused=lambda: None
    )
    with serving(contexts) as port:
        assert (await ask(port, "db1.349.example", world.client("good"))).data
        contexts.reload([made(world.intermediate), made(world.root, world.intermediate.certificate)])
        assert (await ask(port, "db1.349.example", world.client("good"))).data is None


def test_two_refreshes_at_once_are_one(scene: Scene) -> None:
    waiting: Deferred[bytes] = Deferred()

    async def slow() -> bytes:
        return await waiting

    scene.keeper._fetches[URL] = slow
    first = Deferred.fromCoroutine(scene.keeper.refresh())
    scene.asked.clear()
    done(scene.keeper.refresh())
    assert scene.asked == []
    waiting.callback(der(made(scene.world.intermediate)))
    assert first.called
