"""The whole main path on PKCS#12 files: our server, DMP client and signature, the proxy; and a renewal."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from drimbox.sim.pki import Pair
from drimbox.sim.psc import PscServer
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, served_whole
from tests.integration.waiting import wait

pytestmark = [pytest.mark.requirement("DB.SO.90"), pytest.mark.peer("openssl")]
PASSWORD = "IGC santé 2026"


def convert(certificate: Path, key: Path, *options: str) -> Path:
    """Make a PKCS#12 file as IGC-Santé would, beside the PEM files."""
    made = certificate.with_suffix(".p12")
    command = ["openssl", "pkcs12", "-export", "-in", str(certificate), "-inkey", str(key), *options]
    command += ["-passout", f"pass:{PASSWORD}", "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    made.chmod(0o600)
    return made


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A gateway that has no PEM key at all, and a proxy that asks for a certificate."""
    hospital = Hospital(tmp_path, sites=1)
    stand = hospital.stand
    wait(stand.start())
    try:
        wait(stand.psc.stop())
        stand.psc = PscServer(reactor, stand.pki.psc, port=stand.psc.port, client_roots=stand.pki.roots)
        stand.psc.start()
        password = tmp_path / "password"
        password.write_text(PASSWORD + "\n", "utf-8")
        password.chmod(0o600)

        def form(found: re.Match[str]) -> str:
            # The old ciphers for one of them, today's for the others.
            options = ["-legacy"] if "sign" in found[1] else []
            made = convert(Path(found[1]), Path(found[2]), *options)
            return f'pkcs12 = "{made}", password_file = "{password}"'

        text = stand.config.read_text("utf-8")
        text, count = re.subn(r'certificate = "([^"]+)", key = "([^"]+)"', form, text)
        assert count >= 3
        auth = next(iter(stand.pki.structures.values())).authentication
        text = text.replace(
            "[psc]\n",
            f'[psc]\ncertificate = {{ pkcs12 = "{auth.certificate.with_suffix(".p12")}",'
            f' password_file = "{password}" }}\n',
        )
        stand.config.write_text(text, "utf-8")
        wait(stand.start_gateway())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest_twisted.ensureDeferred
async def test_everything_runs_on_pkcs12_and_a_renewed_file_counts_without_a_restart(
    hospital: Hospital, tmp_path: Path
) -> None:
    stand = hospital.stand
    served = await hospital.publish(
        make_study(tmp_path / "study", instances=2, rows=32, columns=32, seed=5)
    )
    assert served_whole(await hospital.fetch(served))
    shown = await command(hospital, "show")
    assert "illisible" not in shown
    assert all(label in shown for label in ("site1 WADO", "signature", "proxy e-Santé"))
    before = presented(hospital)
    renewed: Pair = stand.pki.issue_ssl_serv(stand.sites[0], name="renewed", unit="300000000000001")
    made = convert(renewed.certificate, renewed.key)
    made.replace(stand.pki.sites[stand.sites[0]].certificate.with_suffix(".p12"))
    assert "Certificats rechargés" in await command(hospital, "reload")
    assert presented(hospital) != before
    assert served_whole(await hospital.fetch(served))
    # A file that does not open leaves the one in force.
    stand.pki.sites[stand.sites[0]].certificate.with_suffix(".p12").write_bytes(b"0\x82broken")
    assert "Non rechargés" in await command(hospital, "reload", code=1)
    assert served_whole(await hospital.fetch(served))
    text = stand.log.read_text("utf-8")
    assert PASSWORD not in text


def presented(hospital: Hospital) -> bytes | None:
    with hospital.connect() as connection:
        return connection.getpeercert(binary_form=True)


async def command(hospital: Hospital, what: str, *, code: int = 0) -> str:
    arguments = [str(Path(sys.executable).parent / "drimbox"), "certificates", what]
    arguments += ["--admin", f"{LOOPBACK}:{hospital.stand.admin_port}"]
    done: Any = await deferToThread(
        lambda: subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    )
    assert done.returncode == code, done
    return str(done.stdout)
