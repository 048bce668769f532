"""Reports over TLS to a running gateway: the main path, who is refused, a renewal, and clear beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from OpenSSL import SSL

from drimbox.sim.pki import Pair
from drimbox.sim.ris import NoAck, RisTls, build_message, send
from drimbox.sim.stand import LOOPBACK
from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, served_whole
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.03")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway that takes reports of a RIS with a certificate only."""
    hospital = Hospital(tmp_path_factory.mktemp("hl7-tls"), sites=1)
    stand = hospital.stand
    wait(stand.start())
    try:
        ours = stand.pki.psc
        text = stand.config.read_text("utf-8")
        tls = f'[hl7.tls]\ncertificate = {{ certificate = "{ours.certificate}", key = "{ours.key}" }}\n'
        tls += f'client_certificates = "required"\nclient_roots = "{stand.pki.roots}"\n\n'
        stand.config.write_text(text.replace("[dicom]\n", tls + "[dicom]\n", 1), "utf-8")
        stand.ris_tls = RisTls(stand.pki.roots, pair=ris_pair(hospital))
        wait(stand.start_gateway())
        yield hospital
    finally:
        wait(hospital.stop())


def ris_pair(hospital: Hospital) -> Pair:
    """A certificate for clients, of an authority that is trusted."""
    return next(iter(hospital.stand.pki.structures.values())).authentication


async def answered(hospital: Hospital, tls: RisTls | None) -> bool:
    try:
        await send(LOOPBACK, hospital.stand.hl7_port, build_message(), 10, tls=tls)
    except (NoAck, SSL.Error):
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_report_over_tls_ends_in_the_record(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", instances=2, rows=32, columns=32, seed=41)
    served = await hospital.publish(study)
    assert served_whole(await hospital.fetch(served))


@pytest.mark.threat("HL7/MLLP")
@pytest_twisted.ensureDeferred
async def test_who_shows_no_certificate_or_speaks_in_clear_is_not_heard(hospital: Hospital) -> None:
    def stored() -> int:
        return int(hospital.database("select count(*) from inbox")[0][0])

    before = stored()
    assert not await answered(hospital, None)
    assert not await answered(hospital, RisTls(hospital.stand.pki.roots))
    stranger = hospital.stand.pki.issue_ssl_serv("ris.hopital", name="stranger-ris", stranger=True)
    assert not await answered(hospital, RisTls(hospital.stand.pki.roots, pair=stranger))
    assert stored() == before

    async def counted() -> bool:
        _, body = await hospital.stand.admin("/metrics")
        return b'drimbox_connections_refused_total{door="hl7",reason="handshake"} 3.0' in body

    await until(counted, what="three refusals counted")
    assert await answered(hospital, hospital.stand.ris_tls)
