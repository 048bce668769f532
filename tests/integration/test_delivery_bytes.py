"""With nothing to rewrite, the data set delivered is byte for byte the one the PACS sent, odd as it may be.

What a PACS sends need not be what was put into it: dcmqrscp and Orthanc read and write each instance anew.
So witnesses stand beside the gateway: DCMTK's `storescp`, told to write exactly what it reads, to which the
same PACS moves the same series.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import Dcmqrscp, Orthanc, PeerMissing, find_program, free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.integration.hospital import (
    ACCEPT,
    EXPLICIT_LE,
    JPEG_LS,
    Hospital,
    data_set,
    digests,
    read,
    received,
)
from tests.integration.odd_bytes import ODD, made_odd
from tests.integration.test_delivery_peers import DCMTK, ORTHANC, SETTINGS
from tests.integration.waiting import wait

#: Witnesses by the syntax they take, which is the one the gateway takes: title and options.
WITNESSES = {EXPLICIT_LE: ("WITNESSE", "+x="), JPEG_LS: ("WITNESSJ", "+xt")}
#: Instance by instance.
NATIVE = ("as they are", "empty", "absent")
ENCAPSULATED = ("as they are", "empty fragment", "as they are")


class WitnessedHospital(Hospital):
    """dcmqrscp and Orthanc, and witnesses to whom both may move."""

    def __init__(self, folder: Path) -> None:
        self.peers: list[Any] = []
        self.witnesses = {title: free_port() for title, _ in WITNESSES.values()}
        self._running: list[subprocess.Popen[bytes]] = []
        super().__init__(folder, pacses=self._pacses)

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        pools = (("DBA1", "DBB1"), ("DBA2", "DBB2"))
        beside = {title: (LOOPBACK, number) for title, number in self.witnesses.items()}
        destinations = [{**dict.fromkeys(pool, (LOOPBACK, port)), **beside} for pool in pools]
        self.peers = [
            Dcmqrscp(self.folder / "dcmqrscp", move_destinations=destinations[0]),
            Orthanc(self.folder / "orthanc", modalities=destinations[1], clients=["DRIMBOX", "ASKER"]),
        ]
        for peer in self.peers:
            peer.start()
        return [
            PacsAddress(peer.ae_title, peer.port, pool, settings=SETTINGS)
            for peer, pool in zip(self.peers, pools, strict=True)
        ]

    async def start(self) -> None:
        for title, option in WITNESSES.values():
            (self.folder / title).mkdir()
            command = [
                find_program("storescp"),
                "-aet",
                title,
                "+B",
                option,
                "-od",
                str(self.folder / title),
            ]
            self._running.append(
                subprocess.Popen(
                    [*command, str(self.witnesses[title])],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        for witness in self._running:
            witness.kill()
            witness.wait()
        for peer in self.peers:
            peer.stop()

    async def testimony(self, study: GeneratedStudy, site: int) -> dict[str, bytes]:
        """The data sets of the first series as the PACS sends them to the witness."""
        peer, title = self.peers[site], WITNESSES[study.transfer_syntax][0]
        command = [
            find_program("movescu"), "-S", "-aet", "ASKER", "-aec", peer.ae_title, "-aem", title,
            "-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={study.study_uid}",
            "-k", f"SeriesInstanceUID={study.series[0].series_uid}", LOOPBACK, str(peer.port),
        ]  # fmt: skip
        for old in (self.folder / title).iterdir():
            old.unlink()
        done = await deferToThread(subprocess.run, command, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        files = [path.read_bytes() for path in (self.folder / title).iterdir()]
        return {str(read(whole).SOPInstanceUID): data_set(whole) for whole in files}


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WitnessedHospital]:
    try:
        hospital = WitnessedHospital(tmp_path_factory.mktemp("witnessed"))
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


def odd_study(folder: Path, syntax: str, seed: int) -> GeneratedStudy:
    study = make_study(folder, instances=3, transfer_syntax=syntax, seed=seed)
    kinds = NATIVE if syntax == EXPLICIT_LE else ENCAPSULATED
    for instance, pixels in zip(study.series[0].instances, kinds, strict=True):
        made_odd(instance.path, pixels=pixels)
    return study


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp", "movescu")
@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("site", [DCMTK, ORTHANC], ids=["dcmqrscp", "Orthanc"])
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, JPEG_LS], ids=["Explicit", "JPEG-LS"])
@pytest_twisted.ensureDeferred
async def test_what_a_real_pacs_sends_is_what_arrives(
    witnessed: WitnessedHospital, tmp_path: Path, site: int, syntax: str
) -> None:
    study = odd_study(tmp_path, syntax, 700 + site + len(syntax))
    await deferToThread(witnessed.peers[site].load, list(study.files))
    served = await witnessed.publish(study, site)
    sent = await witnessed.testimony(study, site)
    assert len(sent) == 3
    # They make some of it ordinary, and leave the rest.
    for tag in (0x00091001, 0x60003000, 0x00104000):
        assert all(ODD[tag] in data for data in sent.values()), hex(tag)
    result = await witnessed.fetch(served, accept=(ACCEPT.format(syntax),))
    assert result.complete, (result.error, result.problem)
    assert {part.transfer_syntax for part in result.parts} == {syntax}
    assert received(result) == {uid: hashlib.sha256(data).hexdigest() for uid, data in sent.items()}


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, JPEG_LS], ids=["Explicit", "JPEG-LS"])
@pytest_twisted.ensureDeferred
async def test_what_the_simulated_pacs_holds_is_what_arrives(
    hospital: Hospital, tmp_path: Path, syntax: str
) -> None:
    study = odd_study(tmp_path, syntax, 710 + len(syntax))
    served = await hospital.publish(study)
    result = await hospital.fetch(served, accept=(ACCEPT.format(syntax),))
    assert result.complete, (result.error, result.problem)
    assert received(result) == digests(study)
    contents = [data_set(part.content) for part in result.parts if part.content is not None]
    assert all(raw in content for raw in ODD.values() for content in contents)
