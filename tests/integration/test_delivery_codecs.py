"""Codecs that hang, die, or want too much, over real sockets: each costs one answer at most, and no other.

The workers of the gateway's own pool are stopped and killed from outside, as a codec does it to them
from within; images are damaged where only a decoder can see it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import dcmread
from twisted.internet.defer import Deferred

from drimbox.sim.studies import make_study
from tests.integration.hospital import ACCEPT, EXPLICIT_LE, JPEG_LS, Hospital, Served, behave, read
from tests.integration.test_delivery_transcoding import JPEG_LOSSLESS, same_pixels
from tests.integration.waiting import pause, until, wait

CODECS = pytest.mark.threat("forged dimensions, codec out of bounds")
#: Seconds a worker has for an image here.
PATIENCE = 2.0
BOTH = (ACCEPT.format(JPEG_LOSSLESS) + "; q=0.9", ACCEPT.format(EXPLICIT_LE) + "; q=0.4")
ONE = (ACCEPT.format(JPEG_LOSSLESS),)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A gateway whose workers have little time and little memory."""
    settings = {"workers": "2", "timeout": str(int(PATIENCE)), "memory": str(64 * 1024 * 1024)}
    hospital = Hospital(tmp_path_factory.mktemp("impatient"), sites=1, more={"transcoding": settings})
    try:
        wait(hospital.start())
        hospital.pacs[0].behaviour = behave(propose="stored")
        yield hospital
    finally:
        wait(hospital.stop())


def workers(hospital: Hospital) -> list[int]:
    """Process ids of the gateway's codec workers."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or b"codecworker" not in (entry / "cmdline").read_bytes():
                continue
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == hospital.stand.pid:
            found.append(int(entry.name))
    return found


async def published(hospital: Hospital, folder: Path, seed: int, instances: int = 4) -> Served:
    return await hospital.publish(
        make_study(folder, instances=instances, transfer_syntax=JPEG_LS, seed=seed, rows=128, columns=128)
    )


async def stopped(hospital: Hospital, served: Served) -> list[int]:
    """Have the workers started by a first request, then stop them as they stand."""
    before = hospital.audited()
    assert (await hospital.fetch(served, accept=ONE)).complete
    await hospital.audit_after(before)
    await hospital.idle()
    found = workers(hospital)
    assert found
    for process in found:
        os.kill(process, signal.SIGSTOP)
    return found


async def healthy(hospital: Hospital, served: Served) -> None:
    """Nothing stays behind, and the next request is served as it should be."""
    for process in workers(hospital):
        # One that had been given no work is none the worse for it.
        os.kill(process, signal.SIGCONT)
    await hospital.idle()
    result = await hospital.fetch(served, accept=ONE)
    assert result.complete, (result.status, result.problem)
    assert {part.transfer_syntax for part in result.parts} == {JPEG_LOSSLESS}
    assert await hospital.metric("drimbox_window_bytes") == 0


@CODECS
@pytest.mark.peer("dcmdjpls", "dcmdjpeg")
@pytest.mark.requirement("DB.CS.83", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_what_hangs_leaves_in_another_syntax_and_in_its_place(
    impatient: Hospital, tmp_path: Path
) -> None:
    served = await published(impatient, tmp_path / "study", 901)
    frozen = await stopped(impatient, served)
    sent = len(impatient.pacs[0].seen("stored"))
    asked: Any = Deferred.fromCoroutine(impatient.fetch(served, accept=BOTH))
    # Others, who need no codec, do not even notice.
    other = await impatient.fetch(served, accept=(ACCEPT.format(JPEG_LS),))
    assert other.complete
    assert other.t_total < PATIENCE
    result = await asked
    assert (result.status, result.complete) == (200, True), result.error
    syntaxes = [part.transfer_syntax for part in result.parts]
    assert 1 <= syntaxes.count(EXPLICIT_LE) <= len(frozen)
    assert set(syntaxes) == {EXPLICIT_LE, JPEG_LOSSLESS}
    order = []
    for part in result.parts:
        assert part.content is not None
        image = read(part.content)
        # Each part's Content-Type says what is in it.
        assert image.file_meta.TransferSyntaxUID == part.transfer_syntax
        order.append(str(image.SOPInstanceUID))
    came = [seen.details["uid"] for seen in impatient.pacs[0].seen("stored")][sent:]
    assert order == [uid for number, uid in enumerate(came) if uid not in came[:number]]
    assert same_pixels(result, served, tmp_path)
    assert set(frozen) - set(workers(impatient))
    await healthy(impatient, served)


@CODECS
@pytest.mark.requirement("DB.CS.83", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_what_hangs_and_has_no_other_syntax_costs_its_answer(
    impatient: Hospital, tmp_path: Path
) -> None:
    served = await published(impatient, tmp_path, 902)
    await stopped(impatient, served)
    before = impatient.audited()
    result = await impatient.fetch(served, accept=ONE)
    assert result.status == 500, result
    assert result.problem is not None
    assert (result.problem["code"], result.problem["detail"]) == ("E1104", "transcodage impossible")
    assert (await impatient.audit_after(before)).description.startswith("E1104")
    await healthy(impatient, served)


@CODECS
@pytest.mark.peer("dcmdjpls", "dcmdjpeg")
@pytest.mark.requirement("DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_what_dies_once_is_done_by_another(impatient: Hospital, tmp_path: Path) -> None:
    served = await published(impatient, tmp_path / "study", 903)
    frozen = await stopped(impatient, served)
    asked: Any = Deferred.fromCoroutine(impatient.fetch(served, accept=ONE))

    async def at_work() -> bool:
        return await impatient.metric("drimbox_transcoding_waiting") > 0

    await until(at_work, what="instances handed to the stopped workers")
    for process in frozen:
        os.kill(process, signal.SIGKILL)
    result = await asked
    assert result.complete, (result.status, result.problem)
    assert {part.transfer_syntax for part in result.parts} == {JPEG_LOSSLESS}
    assert same_pixels(result, served, tmp_path)
    await healthy(impatient, served)


@CODECS
@pytest.mark.requirement("DB.CS.83", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_one_image_that_no_codec_reads_cuts_the_answer_behind_those_before_it(
    impatient: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=6, transfer_syntax=JPEG_LS, seed=904, rows=128, columns=128)
    damage(study.files[3])
    served = await impatient.publish(study)
    good = await published(impatient, tmp_path / "good", 905)
    before = impatient.audited()
    # One at a time, so that what comes before the bad one has left.
    impatient.pacs[0].behaviour = behave(propose="stored", pause=0.3)
    result = await impatient.fetch(served, accept=ONE)
    impatient.pacs[0].behaviour = behave(propose="stored")
    assert result.status == 200
    assert not result.complete
    assert 1 <= len(result.parts) <= 3
    for part in result.parts:
        assert part.content is not None
        assert read(part.content).SOPInstanceUID in [i.sop_instance_uid for i in study.instances[:3]]
    record = await impatient.audit_after(before)
    assert record.description.startswith("E1104")
    assert "interrompue" in record.description
    await healthy(impatient, good)


def damage(path: Path) -> None:
    """Break the entropy-coded data, heads and end markers untouched: only a decoder can tell."""
    image = dcmread(path)
    stream = bytearray(image.PixelData)
    middle = len(stream) // 2
    stream[middle : middle + 40] = b"\xff\x80" * 20
    image.PixelData = bytes(stream)
    image["PixelData"].is_undefined_length = True
    image.save_as(path)


@CODECS
@pytest.mark.requirement("DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_what_wants_more_memory_than_it_may_have_costs_its_answer(
    impatient: Hospital, tmp_path: Path
) -> None:
    study = make_study(
        tmp_path, instances=1, transfer_syntax=EXPLICIT_LE, seed=906, rows=4600, columns=4600
    )
    served = await impatient.publish(study)
    good = await published(impatient, tmp_path / "good", 907)
    result = await impatient.fetch(served, accept=ONE)
    assert result.status == 500, result
    assert result.problem is not None
    assert result.problem["detail"] == "transcodage impossible"
    # As it is held it passes: nothing of it is opened.
    assert (await impatient.fetch(served, accept=(ACCEPT.format(EXPLICIT_LE),), keep="size")).complete
    await healthy(impatient, good)
    await pause(0)
