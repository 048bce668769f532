"""When an answer is complete, and when it must not look so: what the PACS says last, and what came."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from drimbox.sim.studies import make_study
from tests.integration.hospital import Hospital, Served, behave, digests, received

WARNING, UNABLE, CANCELLED, OUT_OF_RESOURCES = 0xB000, 0xC000, 0xFE00, 0xA702


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("lie", [{}, {"claim_completed": 1, "claim_failed": 2}, {"pending": False}])
@pytest_twisted.ensureDeferred
async def test_a_warning_with_everything_there_is_complete(
    hospital: Hospital, scanner: Served, lie: dict[str, Any]
) -> None:
    """Images have left by then; what the KOS lists decides, not the PACS's word nor its counts."""
    hospital.pacs[0].behaviour = behave(final_status=WARNING, **lie)
    result = await hospital.fetch(scanner)
    assert result.complete, (result.error, result.problem)
    assert received(result) == digests(scanner.study)


@pytest.mark.requirement("DB.SO.32")
@pytest.mark.parametrize("status", [UNABLE, CANCELLED, OUT_OF_RESOURCES])
@pytest_twisted.ensureDeferred
async def test_a_failure_is_never_closed_as_complete(
    hospital: Hospital, scanner: Served, status: int
) -> None:
    hospital.pacs[0].behaviour = behave(final_status=status)
    result = await hospital.fetch(scanner)
    assert result.status == 200
    assert not result.complete
    await hospital.idle()


@pytest.mark.requirement("DB.SO.32", "DB.SO.190")
@pytest.mark.parametrize("how", [{"skip": (1,)}, {"fail": (2,)}, {"skip": (1,), "claim_completed": 3}])
@pytest_twisted.ensureDeferred
async def test_a_success_that_lacks_an_image_is_never_closed_as_complete(
    hospital: Hospital, scanner: Served, how: dict[str, Any]
) -> None:
    hospital.pacs[0].behaviour = behave(final_status=0, **how)
    result = await hospital.fetch(scanner)
    assert not result.complete
    assert len(received(result)) <= 2
    await hospital.idle()


@pytest.mark.requirement("DB.SO.177")
@pytest.mark.threat("images of another patient")
@pytest.mark.parametrize(("kind", "status"), [("study", 0x0124), ("series", 0x0124)])
@pytest_twisted.ensureDeferred
async def test_the_pacs_is_told_that_an_intruder_is_not_authorised(
    hospital: Hospital, scanner: Served, kind: Any, status: int
) -> None:
    hospital.pacs[0].behaviour = behave(intruder=kind, intruder_at=1)
    before = len(hospital.pacs[0].seen("stored"))
    assert (await hospital.fetch(scanner)).complete
    told = [seen.details["status"] for seen in hospital.pacs[0].seen("stored")[before:]]
    assert sorted(told) == [0, 0, 0, status]


@pytest.mark.requirement("DB.SO.121")
@pytest_twisted.ensureDeferred
async def test_identical_requests_at_once_are_moves_of_their_own(
    hospital: Hospital, scanner: Served
) -> None:
    """Shared only within the memory budget: without a cache there is none, and nothing is mixed."""
    moves = len(hospital.pacs[0].seen("move"))
    hospital.pacs[0].behaviour = behave(pause=0.1)
    results = await gatherResults([Deferred.fromCoroutine(hospital.fetch(scanner)) for _ in range(3)])
    assert all(result.complete for result in results)
    assert all(received(result) == digests(scanner.study) for result in results)
    assert len(hospital.pacs[0].seen("move")) == moves + 3
    seen = hospital.pacs[0].seen("move")[-3:]
    assert len({one.details["destination"] for one in seen}) == 3


@pytest.mark.requirement("DB.SO.32")
@pytest_twisted.ensureDeferred
async def test_a_delivery_may_last_longer_than_every_time_out_that_counts_silence(
    hospital: Hospital, tmp_path: Path
) -> None:
    """First image, gap, query: three seconds each here. A large study takes minutes, image by image."""
    study = make_study(tmp_path, instances=7, seed=1301)
    served = await hospital.publish(study)
    hospital.pacs[0].behaviour = behave(pause=0.7)
    started = time.monotonic()
    result = await hospital.fetch(served)
    assert result.complete, (result.error, result.problem)
    assert time.monotonic() - started > 3.5
    assert received(result) == digests(study)
