"""What the client does not take as the PACS holds it arrives in a syntax it takes, bit for bit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytest_twisted
from pydicom import dcmread

from drimbox.sim.consumer import FetchResult, accept_headers
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_report
from tests.integration.hospital import ACCEPT, EXPLICIT_LE, JPEG_LS, Hospital, Served, behave, read
from tests.integration.test_delivery_peers import DCMTK, RealHospital, hold, real

__all__ = ["real"]

JPEG_LOSSLESS, JPEG_BASELINE, JPEG2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (70, 50, 91))


def native_pixels(part10: bytes, folder: Path) -> bytes:
    """Decode with DCMTK, which shares no code with what encoded."""
    coded, plain = folder / "coded.dcm", folder / "plain.dcm"
    coded.write_bytes(part10)
    syntax = read(part10).file_meta.TransferSyntaxUID
    program = {JPEG_LS: "dcmdjpls"}.get(syntax, "dcmdjpeg" if syntax != EXPLICIT_LE else "dcmconv")
    subprocess.run([program, str(coded), str(plain)], check=True, capture_output=True, timeout=30)
    return bytes(dcmread(plain).PixelData)


def same_pixels(result: FetchResult, served: Served, folder: Path) -> bool:
    held = {i.sop_instance_uid: i.path.read_bytes() for i in served.study.series[0].instances}
    for part in result.parts:
        assert part.content is not None
        uid = str(read(part.content).SOPInstanceUID)
        if native_pixels(part.content, folder) != native_pixels(held.pop(uid), folder):
            return False
    return not held


def syntaxes(result: FetchResult) -> set[str | None]:
    return {part.transfer_syntax for part in result.parts}


async def transcoded(hospital: Hospital) -> list[bytes]:
    """The counters of transcoded instances, as they stand."""
    _, body = await hospital.stand.admin("/metrics")
    return [line for line in body.splitlines() if line.startswith(b"drimbox_transcodings_total{")]


@pytest.mark.peer("dcmdjpls", "dcmdjpeg", "dcmconv")
@pytest.mark.requirement("DB.CS.83", "DB.SO.85")
@pytest.mark.parametrize("wanted", [JPEG_LOSSLESS, EXPLICIT_LE])
@pytest_twisted.ensureDeferred
async def test_jpeg_ls_of_the_pacs_leaves_bit_exact_in_another_syntax(
    hospital: Hospital, tmp_path: Path, wanted: str
) -> None:
    study = make_study(tmp_path / "study", instances=6, transfer_syntax=JPEG_LS, seed=401 + len(wanted))
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served, accept=(ACCEPT.format(wanted),))
    assert (result.status, result.complete) == (200, True)
    assert syntaxes(result) == {wanted}
    assert same_pixels(result, served, tmp_path)


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_images_keep_their_order_of_arrival(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=12, rows=256, columns=256, transfer_syntax=JPEG_LS, seed=411)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served, accept=(ACCEPT.format(JPEG_LOSSLESS),))
    assert result.complete
    order = [str(read(part.content).SOPInstanceUID) for part in result.parts if part.content]
    sent = [seen.details["uid"] for seen in hospital.pacs[0].seen("stored")][-len(order) :]
    assert order == sent


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("wanted", [JPEG_BASELINE, JPEG2000])
@pytest_twisted.ensureDeferred
async def test_a_lossy_syntax_is_said_to_be_lossy(hospital: Hospital, tmp_path: Path, wanted: str) -> None:
    study = make_study(
        tmp_path, instances=2, modality="CR", transfer_syntax=EXPLICIT_LE, seed=420 + int(wanted[-2:])
    )
    if wanted == JPEG_BASELINE and read(study.files[0].read_bytes()).BitsAllocated != 8:
        for path in study.files:
            to_eight_bits(path)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served, accept=(ACCEPT.format(wanted),))
    assert result.complete, result.problem
    assert syntaxes(result) == {wanted}
    for part in result.parts:
        assert part.content is not None
        image = read(part.content)
        assert image.LossyImageCompression == "01"
        assert float(image.LossyImageCompressionRatio) > 1
        # The identity stays: it is the same image, for the same reader, and the PACS keeps the original.
        assert str(image.SOPInstanceUID) in {i.sop_instance_uid for i in study.instances}


def to_eight_bits(path: Path) -> None:
    image = dcmread(path)
    image.PixelData = bytes(image.PixelData[1::2])
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.save_as(path)


@pytest.mark.requirement("DB.CS.86", "DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_objects_without_pixels_leave_as_they_are_whatever_is_asked(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = add_report(make_study(tmp_path, instances=1, transfer_syntax=JPEG_LS, seed=431))
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await hospital.fetch(served, 1, accept=(ACCEPT.format(JPEG_LS),))
    assert result.complete, result.problem
    assert syntaxes(result) == {EXPLICIT_LE}


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_frees_the_workers(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=40, rows=512, columns=512, transfer_syntax=JPEG_LS, seed=441)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    gone = await hospital.fetch(served, accept=(ACCEPT.format(JPEG_LOSSLESS),), disconnect_after=1_000_000)
    assert not gone.complete
    await hospital.idle()
    result = await hospital.fetch(served, accept=(ACCEPT.format(JPEG_LOSSLESS),), keep="size")
    assert result.complete
    assert len(result.parts) == 40


@pytest.mark.peer("dcmqrscp", "Orthanc", "dcmdjpls", "dcmconv")
@pytest.mark.requirement("DB.CS.83", "DB.SO.85")
@pytest.mark.parametrize(("held", "wanted"), [(JPEG_LS, EXPLICIT_LE), (EXPLICIT_LE, JPEG_LS)])
@pytest_twisted.ensureDeferred
async def test_dcmtk_that_cannot_convert_is_asked_once_more(
    real: RealHospital,
    tmp_path: Path,
    held: str,
    wanted: str,
) -> None:
    """It proposes what it cannot convert to, and fails every sub-operation when we take it."""
    served = await hold(
        real, tmp_path / "study", DCMTK, instances=3, transfer_syntax=held, seed=450 + len(held)
    )
    result = await real.fetch(served, accept=(ACCEPT.format(wanted),))
    assert (result.status, result.complete) == (200, True), result.problem
    assert syntaxes(result) == {wanted}
    assert same_pixels(result, served, tmp_path)


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_a_higher_q_alone_never_makes_us_transcode(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=2, transfer_syntax=JPEG_LS, seed=461)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(propose="stored")
    before = await transcoded(hospital)
    wishes: Sequence[tuple[str, str]] = ((JPEG_LOSSLESS, "0.9"), (JPEG_LS, "0.8"), (EXPLICIT_LE, "0.4"))
    result = await hospital.fetch(served, accept=accept_headers(wishes))
    assert result.complete
    assert syntaxes(result) == {JPEG_LS}
    assert await transcoded(hospital) == before
