"""The whole way from a native archive, a real Orthanc: report, KOS, images byte for byte, changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from drimbox.sim.peers import PeerMissing
from drimbox.sim.studies import SimPatient, make_study
from tests.integration.hospital import ACCEPT, EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, digests, read, received
from tests.integration.native_hospital import NativeHospital
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.peer("Orthanc")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeHospital]:
    try:
        hospital = NativeHospital(tmp_path_factory.mktemp("native"))
    except PeerMissing as missing:
        pytest.skip(str(missing))
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.mark.alone
@pytest.mark.requirement("DB.SO.165", "DB.SO.32", "DB.SO.188")
@pytest.mark.parametrize("syntax", [JPEG_LS, EXPLICIT_LE], ids=["JPEG-LS", "Explicit"])
@pytest_twisted.ensureDeferred
async def test_a_series_arrives_byte_for_byte(native: NativeHospital, tmp_path: Path, syntax: str) -> None:
    served = await native.hold(
        tmp_path,
        instances=20,
        rows=256,
        columns=256,
        transfer_syntax=syntax,
        study_uid=f"2.25.91{len(syntax)}",
        series=2,
    )
    for series in range(2):
        audited = native.audited()
        result = await native.fetch(served, series)
        assert result.complete, (result.status, result.problem, result.error)
        assert {part.transfer_syntax for part in result.parts} == {syntax}
        assert received(result) == digests(served.study, series)
        assert result.t_first_part is not None
        assert result.t_first_part < 2
        assert (await native.audit_after(audited)).outcome == 0
    await native.idle()


@pytest.mark.requirement("DB.SO.165", "DB.SO.40")
@pytest_twisted.ensureDeferred
async def test_the_second_time_may_come_from_the_cache(native: NativeHospital, tmp_path: Path) -> None:
    served = await native.hold(tmp_path, instances=3, transfer_syntax=JPEG_LS, study_uid="2.25.921")
    first = await native.fetch(served)
    kept = native.folder / "stand" / "state" / "cache"
    await until(lambda: list(kept.rglob("*")), what="a kept series")
    second = await native.fetch(served)
    assert first.complete
    assert second.complete
    assert received(first) == received(second) == digests(served.study)


@pytest.mark.requirement("DB.SO.195")
@pytest_twisted.ensureDeferred
async def test_one_instance_arrives_alone(native: NativeHospital, tmp_path: Path) -> None:
    served = await native.hold(tmp_path, instances=5, transfer_syntax=JPEG_LS, study_uid="2.25.922")
    wanted = served.study.instances[3].sop_instance_uid
    result = await native.fetch(served, instance=wanted)
    assert result.complete, (result.status, result.problem, result.error)
    assert received(result) == {wanted: digests(served.study)[wanted]}


@pytest.mark.requirement("DB.SO.41", "DB.CS.83")
@pytest.mark.parametrize("held", [IMPLICIT_LE, JPEG_LS], ids=["Implicit", "JPEG-LS"])
@pytest_twisted.ensureDeferred
async def test_what_the_client_does_not_take_is_converted(
    native: NativeHospital, tmp_path: Path, held: str
) -> None:
    served = await native.hold(
        tmp_path, instances=2, transfer_syntax=held, study_uid=f"2.25.93{len(held)}", facts=None
    )
    result = await native.fetch(served, accept=(ACCEPT.format(EXPLICIT_LE),))
    assert result.complete, (result.status, result.problem, result.error)
    files = {each.sop_instance_uid: each.path for each in served.study.instances}
    assert len(result.parts) == 2
    for part in result.parts:
        assert part.transfer_syntax == EXPLICIT_LE
        assert part.content is not None
        arrived = read(part.content)
        original = read(files[str(arrived.SOPInstanceUID)].read_bytes())
        assert (arrived.pixel_array == original.pixel_array).all()


@pytest.mark.requirement("DB.CS.83")
@pytest_twisted.ensureDeferred
async def test_what_nobody_can_make_of_it_is_406(native: NativeHospital, tmp_path: Path) -> None:
    served = await native.hold(tmp_path, instances=2, transfer_syntax=JPEG_LS, study_uid="2.25.941")
    audited = native.audited()
    result = await native.fetch(served, accept=(ACCEPT.format("1.2.840.10008.1.2.4.102"),))
    assert result.status == 406
    assert result.problem is not None
    assert result.problem["code"] == "E1104"
    assert (await native.audit_after(audited)).outcome != 0


@pytest.mark.requirement("DB.SO.16", "DB.SO.22")
@pytest_twisted.ensureDeferred
async def test_the_ins_of_the_archive_is_kept(native: NativeHospital, tmp_path: Path) -> None:
    served = await native.hold(
        tmp_path, instances=1, study_uid="2.25.951", patient=SimPatient(ins="279035121518989")
    )
    rows = native.database("select pacs_ins from kos where sop_instance_uid = ?", served.kos)
    assert rows == [("279035121518989",)]


# --- changes ----------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_the_kos_follows_what_is_added_and_removed(native: NativeHospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=4, transfer_syntax=JPEG_LS, study_uid="2.25.961")
    await native.store(study, 0, 1)
    served = await native.publish(study)
    first = await native.fetch(served)
    assert first.complete
    assert len(first.parts) == 2

    await native.store(study, 2, 3)
    second_kos = await native.replaced(served.kos)
    stale = await native.fetch(served)
    assert stale.status == 404
    result = await native.fetch(served, kos=second_kos)
    assert result.complete, (result.status, result.problem, result.error)
    assert received(result) == digests(study)

    gone = study.instances[1].sop_instance_uid
    await native.remove(gone)
    third_kos = await native.replaced(second_kos)
    result = await native.fetch(served, kos=third_kos)
    assert result.complete, (result.status, result.problem, result.error)
    assert set(received(result)) == set(digests(study)) - {gone}


@pytest.mark.requirement("DB.SO.27", "DB.SO.40")
@pytest_twisted.ensureDeferred
async def test_a_study_that_is_gone_is_delivered_no_more(native: NativeHospital, tmp_path: Path) -> None:
    served = await native.hold(tmp_path, instances=2, transfer_syntax=JPEG_LS, study_uid="2.25.962")
    assert (await native.fetch(served)).complete
    await native.remove(served.uid)
    await until(lambda: served.kos not in native.stand.published(), what="the KOS out of the DMP")
    result = await native.fetch(served)
    assert result.status == 410
    assert result.problem is not None
    assert result.problem["code"] == "E1002"


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_what_changes_while_the_gateway_is_down_is_seen_when_it_is_back(
    native: NativeHospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "one", instances=3, study_uid="2.25.963")
    await native.store(study, 0)
    added = await native.publish(study)
    removed = await native.hold(tmp_path / "two", instances=3, study_uid="2.25.964")
    marked = "select count(*) from native_study where not due and study_uid in ('2.25.963', '2.25.964')"
    await until(lambda: native.database(marked)[0][0] == 2, what="both studies looked at")
    await native.stand.kill_gateway()
    await native.store(study, 1, 2)
    await native.remove(removed.study.instances[0].sop_instance_uid)
    await native.stand.start_gateway()
    for served, count in ((added, 3), (removed, 2)):
        kos = await native.replaced(served.kos)
        result = await native.fetch(served, kos=kos)
        assert result.complete, (result.status, result.problem, result.error)
        assert len(result.parts) == count
