"""The cache behind a real gateway: the PACS is asked once, the checks are made every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from drimbox.sim.consumer import FetchResult
from drimbox.sim.stand import STRANGER
from drimbox.sim.studies import make_study
from tests.integration.hospital import (
    ACCEPT,
    ANY,
    EXPLICIT_LE,
    JPEG_LS,
    Hospital,
    Served,
    behave,
    digests,
    received,
)
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.40")
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One site whose gateway keeps series."""
    cache = {"cache": {"enabled": "true", "min_free": '"0B"'}}
    hospital = Hospital(tmp_path_factory.mktemp("caching"), more=cache, sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture
def hospital(caching: Hospital) -> Iterator[Hospital]:
    """The same, its PACS well behaved."""
    caching.pacs[0].behaviour = behave()
    caching.stand.psc.script.reset()
    wait(caching.idle())
    yield caching
    caching.pacs[0].behaviour = behave()


def moves(hospital: Hospital) -> int:
    return len(hospital.pacs[0].seen("move"))


def entries(hospital: Hospital) -> list[Path]:
    """The files of whole entries."""
    root = hospital.folder / "stand" / "state" / "cache" / "entries"
    return [path for path in root.rglob("*") if path.is_file()]


async def publish(hospital: Hospital, folder: Path, seed: int, instances: int = 3) -> Served:
    study = make_study(folder, instances=instances, transfer_syntax=JPEG_LS, seed=seed)
    return await hospital.publish(study)


async def kept(hospital: Hospital, served: Served, **options: Any) -> FetchResult:
    """Ask once, and wait until the cache has it."""
    before = await hospital.metric("drimbox_cache_series")
    result = await hospital.fetch(served, **options)
    assert result.complete, result.problem

    async def there() -> bool:
        return await hospital.metric("drimbox_cache_series") == before + 1

    await until(there, what="a series in the cache")
    return result


def contents(result: FetchResult) -> list[bytes | None]:
    return [part.content for part in result.parts]


@pytest_twisted.ensureDeferred
async def test_the_pacs_is_asked_once(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 701)
    first = await kept(hospital, served)
    asked, audited = moves(hospital), hospital.audited()
    second = await hospital.fetch(served)
    assert second.complete
    assert contents(second) == contents(first)
    assert received(second) == digests(served.study)
    assert moves(hospital) == asked
    record = await hospital.audit_after(audited)
    assert (record.outcome, record.study_uid) == (0, served.uid)


@pytest.mark.requirement("DB.SO.40", "DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_another_accept_is_served_from_the_same_entry(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 702)
    hospital.pacs[0].behaviour = behave(propose="stored")
    await kept(hospital, served, accept=(ACCEPT.format(JPEG_LS),))
    asked = moves(hospital)
    result = await hospital.fetch(served, accept=(ACCEPT.format(EXPLICIT_LE),))
    assert result.complete, result.problem
    assert {part.transfer_syntax for part in result.parts} == {EXPLICIT_LE}
    assert len(result.parts) == 3
    assert moves(hospital) == asked
    # What the entry cannot give, the PACS may have: only it can say no.
    refused = await hospital.fetch(served, accept=(ACCEPT.format(JPEG_BASELINE),))
    assert refused.status == 406
    assert moves(hospital) > asked


@pytest_twisted.ensureDeferred
async def test_without_its_pacs_a_kept_series_is_served_after_every_check(
    hospital: Hospital, tmp_path: Path
) -> None:
    served = await publish(hospital, tmp_path, 703)
    await kept(hospital, served)
    hospital.pacs[0].behaviour = behave(down=True)
    assert (await hospital.fetch(served)).complete
    assert (await hospital.fetch(served, token="nonsense")).status == 403
    assert (await hospital.fetch(served, kos="2.25.404")).status == 404
    # Another client of the network, whom the whitelist does not name, is not served either.
    stranger = await hospital.fetch(served, certificate=hospital.stand.consumer(STRANGER))
    assert stranger.status == 401


@pytest.mark.threat("images of another patient")
@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_served_from_the_pacs_instead(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 704)
    before = set(entries(hospital))
    await kept(hospital, served)
    data = max(set(entries(hospital)) - before, key=lambda path: path.stat().st_size)
    data.chmod(0o600)
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    asked = moves(hospital)
    result = await hospital.fetch(served)
    assert result.complete
    assert received(result) == digests(served.study)
    assert moves(hospital) == asked + 1


@pytest_twisted.ensureDeferred
async def test_an_incomplete_delivery_leaves_nothing(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 705)
    before = set(entries(hospital))
    hospital.pacs[0].behaviour = behave(stop_after=1, stop="close")
    assert not (await hospital.fetch(served)).complete
    await hospital.idle()
    assert set(entries(hospital)) == before
    hospital.pacs[0].behaviour = behave()
    asked = moves(hospital)
    assert (await hospital.fetch(served)).complete
    assert moves(hospital) == asked + 1


@pytest_twisted.ensureDeferred
async def test_a_study_that_changed_is_not_served_from_the_old_entry(
    hospital: Hospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=4, transfer_syntax=JPEG_LS, seed=706)
    series = study.series[0]
    some = attrs.evolve(series, instances=series.instances[:3])
    served = await hospital.publish(attrs.evolve(study, series=(some,)))
    await kept(hospital, served)
    again = await hospital.publish(study)
    asked = moves(hospital)
    result = await hospital.fetch(again)
    assert result.complete, result.problem
    assert received(result) == digests(study)
    assert moves(hospital) == asked + 1


@pytest_twisted.ensureDeferred
async def test_a_restart_keeps_the_entries(hospital: Hospital, tmp_path: Path) -> None:
    served = await publish(hospital, tmp_path, 707)
    await kept(hospital, served)
    await hospital.stand.stop_gateway()
    await hospital.stand.start_gateway()
    asked = moves(hospital)
    assert (await hospital.fetch(served, accept=(ANY,))).complete
    assert moves(hospital) == asked


@pytest_twisted.ensureDeferred
async def test_off_nothing_is_written_and_the_pacs_is_asked_each_time(
    running_hospital: Hospital, scanner: Served
) -> None:
    running_hospital.pacs[0].behaviour = behave()
    asked = moves(running_hospital)
    for _ in range(2):
        assert (await running_hospital.fetch(scanner)).complete
    assert moves(running_hospital) == asked + 2
    assert not (running_hospital.folder / "stand" / "state" / "cache").exists()
