"""The whole way with programs not ours: dcmqrscp and Orthanc give, curl and dicomweb-client take."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import requests
from pydicom import dcmread
from requests.adapters import HTTPAdapter
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import Dcmqrscp, Orthanc, PeerMissing
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_key_objects, add_report
from tests.integration.hospital import (
    ACCEPT,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_LS,
    PACS_SETTINGS,
    Hospital,
    Served,
    data_set,
    digests,
    read,
    received,
)
from tests.integration.waiting import wait

SETTINGS = {**PACS_SETTINGS, "first_image_timeout": "10", "gap_timeout": "10", "query_timeout": "10"}
POOL = ("DBA", "DBB", "DBC", "DBD")
#: Site, by peer.
DCMTK, ORTHANC = 0, 1


class RealHospital(Hospital):
    """dcmqrscp as first site, Orthanc as second."""

    def __init__(self, folder: Path) -> None:
        self.peers: list[Any] = []
        super().__init__(folder, pacses=self._pacses, wado={"instance_level": "true"})

    def _pacses(self, port: int) -> Sequence[PacsAddress]:
        pools = [[f"{title}{number}" for title in POOL] for number in (1, 2)]
        destinations = [dict.fromkeys(pool, (LOOPBACK, port)) for pool in pools]
        self.peers = [
            Dcmqrscp(self.folder / "dcmqrscp", move_destinations=destinations[0]),
            Orthanc(self.folder / "orthanc", modalities=destinations[1], clients=["DRIMBOX"]),
        ]
        for peer in self.peers:
            peer.start()
        return [
            PacsAddress(peer.ae_title, peer.port, pool, settings=SETTINGS)
            for peer, pool in zip(self.peers, pools, strict=True)
        ]

    async def stop(self) -> None:
        await super().stop()
        for peer in self.peers:
            peer.stop()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHospital]:
    try:
        hospital = RealHospital(tmp_path_factory.mktemp("real"))
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


async def hold(hospital: RealHospital, folder: Path, site: int, **how: Any) -> Served:
    """Make a study, load it into a real PACS, publish it."""
    study = make_study(folder, **{"facts": None, **how})
    if how.get("modality") == "MR":
        study = add_key_objects(add_report(study))
    await deferToThread(hospital.peers[site].load, list(study.files))
    return await hospital.publish(study, site)


both = pytest.mark.parametrize("site", [DCMTK, ORTHANC], ids=["dcmqrscp", "Orthanc"])
peers = pytest.mark.peer("dcmqrscp", "Orthanc")


@pytest.mark.alone
@peers
@both
@pytest.mark.requirement("DB.SO.32", "DB.SO.177", "DB.SO.173", "DB.SO.100", "DB.SO.113")
@pytest.mark.parametrize("syntax", [JPEG_LS, EXPLICIT_LE], ids=["JPEG-LS", "Explicit"])
@pytest_twisted.ensureDeferred
async def test_a_series_arrives_byte_for_byte(
    real: RealHospital, tmp_path: Path, site: int, syntax: str
) -> None:
    served = await hold(
        real,
        tmp_path,
        site,
        instances=20,
        rows=256,
        columns=256,
        transfer_syntax=syntax,
        study_uid=f"2.25.8{site}{len(syntax)}",
        seed=60,
    )
    result = await real.fetch(served)
    assert result.complete, (result.status, result.problem, result.error)
    assert {part.transfer_syntax for part in result.parts} == {syntax}
    assert received(result) == digests(served.study)
    assert result.t_first_part is not None
    assert result.t_first_part < 2
    assert result.t_total < 10


@peers
@both
@pytest.mark.requirement("DB.SO.195")
@pytest_twisted.ensureDeferred
async def test_one_instance_arrives_alone(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = await hold(real, tmp_path, site, instances=5, transfer_syntax=JPEG_LS, seed=65 + site)
    wanted = served.study.instances[3].sop_instance_uid
    result = await real.fetch(served, instance=wanted)
    assert result.complete, (result.status, result.problem, result.error)
    assert received(result) == {wanted: digests(served.study)[wanted]}


@peers
@both
@pytest.mark.requirement("DB.SO.41")
@pytest_twisted.ensureDeferred
async def test_implicit_leaves_as_explicit(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = await hold(real, tmp_path, site, instances=2, transfer_syntax=IMPLICIT_LE, seed=70 + site)
    result = await real.fetch(served)
    assert result.complete, (result.status, result.problem, result.error)
    held = {str(i.sop_instance_uid): i.path for i in served.study.instances}
    for part in result.parts:
        assert part.transfer_syntax == EXPLICIT_LE
        assert part.content is not None
        arrived = read(part.content)
        for element in dcmread(held[str(arrived.SOPInstanceUID)]):
            assert arrived[element.tag].value == element.value, element


@peers
@both
@pytest.mark.requirement("DB.CS.86")
@pytest_twisted.ensureDeferred
async def test_reports_and_key_objects_pass(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = await hold(real, tmp_path, site, instances=2, modality="MR", seed=80 + site)
    for number in range(3):
        result = await real.fetch(served, number)
        assert result.complete, (result.status, result.problem, result.error)
        assert received(result) == digests(served.study, number)


@peers
@both
@pytest.mark.requirement("DB.SO.35", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_series_at_once_never_mix(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = [
        await hold(
            real,
            tmp_path / str(number),
            site,
            instances=15,
            rows=256,
            columns=256,
            study_uid=f"2.25.{9000 + 10 * site + number}",
            seed=90 + number,
        )
        for number in range(3)
    ]
    results = await gatherResults([Deferred.fromCoroutine(real.fetch(one)) for one in served])
    for one, result in zip(served, results, strict=True):
        assert result.complete, (result.status, result.problem, result.error)
        assert received(result) == digests(one.study)


@peers
@both
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_frees_the_title(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = await hold(
        real, tmp_path, site, instances=60, rows=512, columns=512, transfer_syntax=JPEG_LS, seed=100 + site
    )
    gone = await real.fetch(served, disconnect_after=400_000)
    assert not gone.complete
    started = time.monotonic()
    await real.idle()
    assert time.monotonic() - started < 15
    result = await real.fetch(served, keep="sha256")
    assert result.complete
    assert len(result.parts) == 60


@peers
@both
@pytest_twisted.ensureDeferred
async def test_a_slow_client_outlasts_no_pacs(real: RealHospital, tmp_path: Path, site: int) -> None:
    """Stock Orthanc drops a move 10 s after an instance without an answer: ours come in time."""
    served = await hold(
        real, tmp_path, site, instances=125, rows=512, columns=512, transfer_syntax=JPEG_LS, seed=110 + site
    )
    result = await real.fetch(served, bytes_per_second=1.5e6, keep="size")
    assert result.complete, result.error
    assert result.t_total > 10
    assert len(result.parts) == 125


@peers
@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_pacs_that_hangs_with_its_sockets_open_is_504_then_serves_again(
    real: RealHospital, tmp_path: Path
) -> None:
    served = await hold(real, tmp_path, DCMTK, instances=2, seed=120)
    real.peers[DCMTK].pause()
    try:
        result = await real.fetch(served)
    finally:
        real.peers[DCMTK].resume()
    assert result.status in (502, 504)
    assert result.problem is not None
    assert result.problem["code"] in ("E1004", "E1005")
    await real.idle()
    assert (await real.fetch(served)).complete


@peers
@pytest.mark.requirement("DB.SO.85", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_what_the_pacs_can_only_give_compressed_is_406(real: RealHospital, tmp_path: Path) -> None:
    served = await hold(real, tmp_path, DCMTK, instances=2, transfer_syntax=JPEG_LS, seed=121)
    result = await real.fetch(served, accept=(ACCEPT.format("1.2.840.10008.1.2.4.50"),))
    assert result.status == 406
    assert result.problem is not None
    assert "JPEG-LS" in result.problem["detail"]


@pytest.mark.peer("dcmqrscp", "Orthanc", "curl")
@both
@pytest.mark.requirement("DB.SO.32", "DB.SO.90")
@pytest_twisted.ensureDeferred
async def test_curl_takes_a_series(real: RealHospital, tmp_path: Path, site: int) -> None:
    served = await hold(real, tmp_path, site, instances=5, transfer_syntax=JPEG_LS, seed=130 + site)
    code, status, body = await real.curl(served)
    assert (code, status) == (0, "200")
    boundary = body.split(b"\r\n")[0]
    parts = [part.partition(b"\r\n\r\n")[2] for part in body.split(b"\r\n" + boundary)[1:-1]]
    first = body.split(b"\r\n" + boundary)[0].partition(b"\r\n\r\n")[2]
    got = {hashlib.sha256(data_set(part)).hexdigest() for part in [first, *parts]}
    assert got == set(digests(served.study).values())
    assert body.endswith(boundary + b"--\r\n")


class _ToLoopback(HTTPAdapter):
    """Connects to loopback under the real name: SNI and certificate check stay those of the name."""

    def __init__(self, site: str) -> None:
        self._site = site
        super().__init__()

    def get_connection_with_tls_context(self, request: Any, verify: Any, **more: Any) -> Any:
        request.url = re.sub(re.escape(self._site), LOOPBACK, request.url, count=1)
        request.headers["Host"] = self._site
        return super().get_connection_with_tls_context(request, verify, **more)

    def build_connection_pool_key_attributes(self, *arguments: Any, **more: Any) -> Any:
        host, pool = super().build_connection_pool_key_attributes(*arguments, **more)
        pool.update(server_hostname=self._site, assert_hostname=self._site)
        return host, pool


@peers
@both
@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_dicomweb_client_takes_a_series_and_one_instance(
    real: RealHospital, tmp_path: Path, site: int
) -> None:
    dicomweb_client = pytest.importorskip("dicomweb_client")
    served = await hold(real, tmp_path, site, instances=4, transfer_syntax=JPEG_LS, seed=140 + site)
    media = (("application/dicom", JPEG_LS),)
    name, pair = real.stand.sites[site], real.stand.consumer()

    def take() -> list[Any]:
        session = requests.Session()
        session.mount("https://", _ToLoopback(name))
        session.cert = (str(pair.certificate), str(pair.key))
        session.trust_env = False
        session.verify = str(real.stand.pki.roots)
        session.headers["Authorization"] = f"Bearer {token}"
        session.headers["KOS-SOPInstanceUID"] = served.kos
        client = dicomweb_client.DICOMwebClient(
            f"https://{name}:{real.stand.wado_port}/dicom-web-rs", session=session
        )
        first = served.study.instances[0].sop_instance_uid
        alone = client.retrieve_instance(served.uid, served.series(), first, media_types=media)
        series = list(client.retrieve_series(served.uid, served.series(), media_types=media))
        assert alone in series
        return series

    token = real.stand.token()
    datasets = await deferToThread(take)
    held = {str(i.sop_instance_uid): dcmread(i.path) for i in served.study.instances}
    assert {str(one.SOPInstanceUID) for one in datasets} == set(held)
    for one in datasets:
        assert one == held[str(one.SOPInstanceUID)]
        assert one.file_meta.TransferSyntaxUID == JPEG_LS
