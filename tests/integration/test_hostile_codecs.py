"""Images whose pixels lie, sent by a PACS in the middle of a delivery that has to open them.

Every forgery of `hostile.pixels`, for every codec, beside a delivery of another PACS, transcoded too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.studies import SimPatient, make_study
from tests.integration.hospital import ACCEPT, JPEG_LS, Hospital, Served, behave, read
from tests.integration.hostile.pixels import KINDS, accept, forged_study
from tests.integration.test_delivery_codecs import workers
from tests.integration.test_delivery_transcoding import JPEG_LOSSLESS, same_pixels
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.threat("forged dimensions, codec out of bounds")
MEGA = 1024 * 1024
#: What a worker may take beyond what it holds at rest, and what that is at most.
MEMORY, REST = 192, 250
#: What the gateway's own memory may differ by: what an allocator keeps.
SLACK = 48


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    limits = {
        "workers": "2",
        "timeout": "20",
        "memory": str(MEMORY * MEGA),
        "max_decoded_bytes": str(64 * MEGA),
    }
    made = Hospital(tmp_path_factory.mktemp("hostile-codecs"), more={"transcoding": limits})
    try:
        wait(made.start())
        for pacs in made.pacs:
            pacs.behaviour = behave(propose="stored")
        yield made
    finally:
        wait(made.stop())


def megabytes(process: int, what: str) -> int:
    """Return what the system says of the memory of a process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


class Beside:
    """A delivery that is transcoded, again and again; each is whole, to the last bit."""

    def __init__(self, hospital: Hospital, served: Served, folder: Path) -> None:
        self._hospital, self._served, self._folder = hospital, served, folder
        self.over = False
        self.whole = 0

    async def run(self) -> None:
        while not self.over or self.whole < 3:
            result = await self._hospital.fetch(self._served, accept=(ACCEPT.format(JPEG_LOSSLESS),))
            assert (result.status, result.complete) == (200, True), (result.status, result.problem)
            assert {part.transfer_syntax for part in result.parts} == {JPEG_LOSSLESS}
            if self.whole == 0:
                assert same_pixels(result, self._served, self._folder)
            self.whole += 1


@pytest.mark.peer("dcmdjpls", "dcmdjpeg")
@pytest.mark.requirement("DB.CS.83", "DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_forged_pixels_cost_their_own_answer_and_nobody_else_s(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(
        tmp_path / "good", instances=6, rows=128, columns=128, transfer_syntax=JPEG_LS, seed=951
    )
    served = await hospital.publish(study)
    theirs = forged_study(tmp_path / "forged", 952, patient=SimPatient(id="IPP0099", name="AUTRE^PATIENT"))
    forged = await hospital.publish(theirs, 1)
    beside = Beside(hospital, served, tmp_path)
    gateway = hospital.stand.pid
    assert gateway is not None
    # What is loaded at the first transcoding is there from now on.
    assert (await hospital.fetch(served, accept=(ACCEPT.format(JPEG_LOSSLESS),))).complete
    at_rest = megabytes(gateway, "VmRSS")
    outcomes: Counter[int] = Counter()
    peaks: list[int] = []

    async def attacked() -> None:
        try:
            for kind, (syntax, forgery) in enumerate(KINDS):
                what = f"{forgery.__name__} of {syntax}"
                result = await hospital.fetch(forged, kind, accept=accept(kind))
                good = str(theirs.series[kind].instances[0].sop_instance_uid)
                # Refused, or cut behind the image that is none of the forged ones.
                assert (result.status, result.complete) in ((500, True), (200, False)), (what, result)
                assert {
                    str(read(part.content).SOPInstanceUID) for part in result.parts if part.content
                } <= {good}, what
                if result.status == 500:
                    assert result.problem is not None
                    assert result.problem["code"] == "E1104", what
                outcomes[result.status] += 1
                peaks.extend(megabytes(each, "VmHWM") for each in workers(hospital))
        finally:
            beside.over = True

    await gatherResults(
        [Deferred.fromCoroutine(attacked()), Deferred.fromCoroutine(beside.run())], consumeErrors=True
    )
    assert sum(outcomes.values()) == len(KINDS)
    assert beside.whole >= 3
    # Bounded: each worker by what it may take, the gateway by what it takes for any delivery.
    assert max(peaks) <= MEMORY + REST, peaks
    assert len(workers(hospital)) <= 2
    assert megabytes(gateway, "VmHWM") - at_rest <= SLACK
    await hospital.idle()
    assert await hospital.metric("drimbox_window_bytes") == 0

    def audited() -> list[str]:
        rows = hospital.database(
            "select payload from audit where study_uid = ? and payload like '%RAD-107%'", forged.uid
        )
        return [str(payload) for (payload,) in rows]

    records = await until(lambda: len(found := audited()) >= len(KINDS) and found, what="the audit records")
    assert len(records) == len(KINDS)
    assert all("E1104" in each for each in records)
    # As they are held nothing of them is opened: whoever takes them so gets them, forged as they are.
    as_held = await hospital.fetch(forged, 0, accept=(ACCEPT.format("*"),))
    assert as_held.complete
    assert {part.transfer_syntax for part in as_held.parts} == {JPEG_LS, KINDS[0][0]}
