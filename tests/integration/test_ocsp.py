"""A running gateway asks `openssl ocsp` about each Consumer, after the handshake, before it answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509

from drimbox.sim.authority import pem
from drimbox.sim.consumer import FetchResult
from drimbox.sim.pki import Pair
from drimbox.sim.stand import CONSUMER, OTHER_CONSUMER, free_port
from tests.integration.hospital import Hospital
from tests.integration.waiting import wait
from tests.trust.responders import OpensslResponder

pytestmark = [pytest.mark.requirement("DB.SO.111", "DB.SO.47"), pytest.mark.peer("openssl")]


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A gateway that lets nobody in without a good answer."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    port = free_port()
    trust = {"ocsp": '"hard"', "ocsp_url": f'"http://127.0.0.1:{port}/"', "ocsp_timeout": "5"}
    hospital = Hospital(tmp_path, sites=1, more={"trust": trust})
    wait(hospital.stand.start())
    responder = made(hospital, tmp_path, port)
    try:
        responder.start()
        hospital.responder = responder  # type: ignore[attr-defined]
        wait(hospital.stand.start_gateway())
        yield hospital
    finally:
        responder.stop()
        wait(hospital.stop())


def made(hospital: Hospital, folder: Path, port: int) -> OpensslResponder:
    """The authority of our Consumers, which stands by one of them."""
    pki = hospital.stand.pki
    authority = pki.write(
        "answering", (pki.org_authority.certificate, pki.org_authority.key), pki.root_authority
    )
    responder = OpensslResponder(folder, pki.intermediate, (pki.intermediate, authority.key), "-nmin", "60")
    responder.port = port
    responder.knows(leaf(hospital.stand.consumer(CONSUMER)))
    responder.knows(leaf(hospital.stand.consumer(OTHER_CONSUMER)), revoked=True)
    return responder


def leaf(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0]


async def ask(hospital: Hospital, name: str) -> FetchResult:
    """Ask for a study that nobody knows: whoever is let in gets 404."""
    pair = hospital.stand.consumer(name)
    return await hospital.stand.fetch("2.25.1", "2.25.2", "2.25.3", certificate=pair)


async def restart(hospital: Hospital, policy: str) -> None:
    """Begin anew, with nothing kept, under another policy."""
    config = hospital.stand.config
    text = config.read_text("utf-8")
    for each in ("hard", "soft"):
        text = text.replace(f'ocsp = "{each}"', f'ocsp = "{policy}"')
    config.write_text(text, "utf-8")
    await hospital.stand.stop_gateway()
    await hospital.stand.start_gateway()


def said(hospital: Hospital, words: str) -> list[Any]:
    """Return the records of the audit trail that hold some words."""
    records = [json.loads(payload) for (payload,) in hospital.database("select payload from audit")]
    return [record for record in records if words in json.dumps(record, ensure_ascii=False)]


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_who_is_revoked_or_not_known_to_be_good_gets_no_answer(hospital: Hospital) -> None:
    responder: OpensslResponder = hospital.responder  # type: ignore[attr-defined]
    for _ in range(3):
        assert (await ask(hospital, CONSUMER)).status == 404
        refused = await ask(hospital, OTHER_CONSUMER)
        assert (refused.status, (refused.problem or {}).get("code")) == (403, "E1101")
    assert len(said(hospital, "révoqué (OCSP)")) == 3
    # The authority falls silent: what it said counts still, and nothing else does.
    responder.stop()
    assert (await ask(hospital, CONSUMER)).status == 404
    await restart(hospital, "hard")
    assert (await ask(hospital, CONSUMER)).status == 403
    assert said(hospital, "non vérifiable (OCSP)")
    assert any("OCSP" in each["text"] for each in await hospital.notices())
    # Whoever prefers images to certainty gets them, and a record of it.
    await restart(hospital, "soft")
    for _ in range(2):
        assert (await ask(hospital, CONSUMER)).status == 404
    assert len(said(hospital, "admis sans vérification OCSP")) == 1
    # And it speaks again.
    responder.start()
    await restart(hospital, "soft")
    assert (await ask(hospital, CONSUMER)).status == 404
    assert (await ask(hospital, OTHER_CONSUMER)).status == 403
    assert not any("OCSP" in each["text"] for each in await hospital.notices())


@pytest.mark.threat("TLS downgrade, weak or revoked certificates")
@pytest_twisted.ensureDeferred
async def test_an_authority_that_is_revoked_takes_its_consumers_with_it(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    ports = [free_port(), free_port()]
    urls = [f'"http://127.0.0.1:{port}/"' for port in ports]
    trust = {"ocsp": '"hard"', "ocsp_url": urls[0], "ocsp_authorities_url": urls[1], "ocsp_timeout": "5"}
    hospital = Hospital(tmp_path, sites=1, more={"trust": trust})
    responders: list[OpensslResponder] = []
    try:
        await hospital.stand.start()
        responders.append(made(hospital, tmp_path, ports[0]))
        pki = hospital.stand.pki
        root = pki.write("answering-root", (pki.root_authority.certificate, pki.root_authority.key))
        root.certificate.write_bytes(pem(pki.root_authority.certificate))
        folder = tmp_path / "root"
        folder.mkdir()
        of_root = OpensslResponder(folder, root.certificate, (root.certificate, root.key), "-nmin", "60")
        of_root.port = ports[1]
        of_root.knows(pki.org_authority.certificate)
        responders.append(of_root)
        for each in responders:
            each.start()
        await hospital.stand.start_gateway()
        assert (await ask(hospital, CONSUMER)).status == 404
        of_root.stop()
        of_root.index.write_text("", "utf-8")
        of_root.knows(pki.org_authority.certificate, revoked=True)
        of_root.start()
        await restart(hospital, "soft")
        refused = await ask(hospital, CONSUMER)
        assert (refused.status, (refused.problem or {}).get("code")) == (403, "E1101")
        assert len(said(hospital, "certificat d'une autorité du client révoqué (OCSP)")) == 1
    finally:
        for each in responders:
            each.stop()
        await hospital.stop()
