"""The key-image option: one instance for the asking, judged by the same checks as its series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.kos.reading import read_manifest
from drimbox.sim.consumer import FetchResult
from drimbox.sim.stand import STRANGER
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_key_objects
from tests.integration.hospital import (
    ACCEPT,
    EXPLICIT_LE,
    JPEG_LS,
    Hospital,
    Served,
    behave,
    digests,
    received,
)
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.195")


@pytest.fixture(scope="module")
def option(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One site with the option, whose gateway keeps series."""
    cache = {"cache": {"enabled": "true", "min_free": '"0B"'}}
    folder = tmp_path_factory.mktemp("instances")
    hospital = Hospital(folder, wado={"instance_level": "true"}, more=cache, sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture
def hospital(option: Hospital) -> Iterator[Hospital]:
    """The same, its PACS well behaved."""
    option.pacs[0].behaviour = behave()
    wait(option.idle())
    yield option
    option.pacs[0].behaviour = behave()


async def publish(hospital: Hospital, folder: Path, seed: int) -> Served:
    study = make_study(folder, instances=6, series=2, transfer_syntax=JPEG_LS, seed=seed)
    return await hospital.publish(study)


def uids(served: Served, series: int = 0) -> list[str]:
    return [instance.sop_instance_uid for instance in served.study.series[series].instances]


async def one(hospital: Hospital, served: Served, number: int = 1, **options: Any) -> FetchResult:
    return await hospital.fetch(served, instance=uids(served)[number], **options)


@pytest_twisted.ensureDeferred
async def test_one_instance_is_moved_and_delivered_byte_for_byte(
    hospital: Hospital, tmp_path: Path
) -> None:
    served = await publish(hospital, tmp_path, 801)
    asked, stored = (len(hospital.pacs[0].seen(what)) for what in ("move", "stored"))
    audited = hospital.audited()
    result = await one(hospital, served)
    assert result.complete, result.problem
    wanted = uids(served)[1]
    assert received(result) == {wanted: digests(served.study)[wanted]}
    assert len(hospital.pacs[0].seen("move")) == asked + 1
    assert len(hospital.pacs[0].seen("stored")) == stored + 1
    record = await hospital.audit_after(audited)
    assert (record.outcome, record.study_uid) == (0, served.uid)


@pytest_twisted.ensureDeferred
async def test_every_check_of_a_series_is_made(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 802)
    assert (await one(hospital, served, token=None)).status == 401
    assert (await one(hospital, served, token="nonsense")).status == 403
    assert (await one(hospital, served, kos="2.25.404")).status == 404
    stranger = hospital.stand.consumer(STRANGER)
    assert (await one(hospital, served, certificate=stranger)).status == 401


@pytest_twisted.ensureDeferred
async def test_an_instance_the_kos_does_not_list_there_is_404(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 803)
    moved = len(hospital.pacs[0].seen("move"))
    unknown = await hospital.fetch(served, instance="2.25.404")
    assert unknown.status == 404
    assert unknown.problem is not None
    assert unknown.problem["code"] == "E1001"
    # It is in the study, but in another series.
    elsewhere = await hospital.fetch(served, instance=uids(served, 1)[0])
    assert elsewhere.status == 404
    assert len(hospital.pacs[0].seen("move")) == moved


@pytest_twisted.ensureDeferred
async def test_an_instance_that_left_the_pacs_is_410_and_the_kos_compared(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=4, transfer_syntax=JPEG_LS, seed=804)
    served = await hospital.publish(study)
    hospital.pacs[0].index.remove(uids(served)[0])
    result = await one(hospital, served, 0)
    assert result.status == 410
    assert result.problem is not None
    assert result.problem["code"] == "E1002"
    await until(lambda: served.kos not in hospital.stand.published(), what="the KOS replaced")
    newer = attrs.evolve(served, kos=hospital.stand.published()[-1])
    assert (await one(hospital, newer, 0)).status == 404
    assert (await one(hospital, newer, 1)).complete


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_sends_the_whole_series_does_not_widen_the_answer(
    hospital: Hospital, tmp_path: Path
) -> None:
    served = await publish(hospital, tmp_path, 805)
    hospital.pacs[0].behaviour = behave(ignore_level=True)
    result = await one(hospital, served, 2)
    assert result.complete, result.problem
    assert list(received(result)) == [uids(served)[2]]


@pytest_twisted.ensureDeferred
async def test_an_instance_that_does_not_come_whole_is_no_answer(
    hospital: Hospital, tmp_path: Path
) -> None:
    served = await publish(hospital, tmp_path, 806)
    hospital.pacs[0].behaviour = behave(stop_after=0, stop="inside")
    result = await one(hospital, served)
    assert not result.complete or result.status == 502


@pytest_twisted.ensureDeferred
async def test_an_instance_is_transcoded_as_its_series_is(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 807)
    hospital.pacs[0].behaviour = behave(propose="stored")
    result = await one(hospital, served, accept=(ACCEPT.format(EXPLICIT_LE),))
    assert result.complete, result.problem
    assert [part.transfer_syntax for part in result.parts] == [EXPLICIT_LE]


@pytest.mark.requirement("DB.SO.195", "DB.SO.40")
@pytest_twisted.ensureDeferred
async def test_an_instance_comes_from_a_kept_series_and_is_never_kept_as_one(
    hospital: Hospital, tmp_path: Path
) -> None:
    served = await publish(hospital, tmp_path, 808)
    kept = await hospital.metric("drimbox_cache_series")
    assert (await one(hospital, served)).complete
    # What one instance left behind would be no whole series.
    moves = len(hospital.pacs[0].seen("move"))
    assert (await hospital.fetch(served)).complete
    assert len(hospital.pacs[0].seen("move")) == moves + 1

    async def there() -> bool:
        return await hospital.metric("drimbox_cache_series") == kept + 1

    await until(there, what="the series in the cache")
    result = await one(hospital, served, 2)
    assert result.complete, result.problem
    wanted = uids(served)[2]
    assert received(result) == {wanted: digests(served.study)[wanted]}
    assert len(hospital.pacs[0].seen("move")) == moves + 1


@pytest.mark.requirement("DB.SO.194", "DB.SO.195", "DB.SO.192")
@pytest_twisted.ensureDeferred
async def test_the_kos_names_the_key_images_and_they_can_be_asked_for(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=4, transfer_syntax=JPEG_LS, seed=809)
    study = add_key_objects(study, targets=study.instances[2:3])
    served = await hospital.publish(study)
    entry = hospital.stand.dmp.service.registry.by_unique_id(served.kos)
    assert entry is not None
    marked = [
        (series.series_uid, each.sop_instance_uid, each.key_images)
        for series in read_manifest(entry.document).series
        for each in series.instances
        if each.key_images
    ]
    ((series_uid, instance_uid, (mark,)),) = marked
    assert instance_uid == study.instances[2].sop_instance_uid
    assert mark.sop_instance_uid == study.instances[-1].sop_instance_uid
    assert series_uid == served.series()
    result = await hospital.fetch(served, instance=instance_uid)
    assert list(received(result)) == [instance_uid]


@pytest.mark.requirement("DB.SO.103", "DB.SO.195")
@pytest_twisted.ensureDeferred
async def test_the_capabilities_say_whether_the_option_is_on(
    hospital: Hospital, running_hospital: Hospital
) -> None:
    for each, on in ((hospital, True), (running_hospital, False)):
        host = each.stand.sites[0]
        answer = await each.raw(f"OPTIONS / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert (b"{sopInstanceUID}" in answer) is on


@pytest_twisted.ensureDeferred
async def test_without_the_option_it_is_415_e1105(running_hospital: Hospital, scanner: Served) -> None:
    audited = running_hospital.audited()
    result = await one(running_hospital, scanner)
    assert result.status == 415
    assert result.problem is not None
    assert result.problem["code"] == "E1105"
    assert (await running_hospital.audit_after(audited)).description.startswith("E1105")
