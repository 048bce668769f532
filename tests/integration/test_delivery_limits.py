"""Simultaneous requests: so many in all, so many of one Consumer, and a line before them (E1003)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.stand import OTHER_CONSUMER
from drimbox.sim.studies import make_study
from tests.integration.hospital import JPEG_LS, Hospital, Served, behave, digests, received
from tests.integration.waiting import until, wait

pytestmark = pytest.mark.requirement("DB.SO.35")
#: Long enough for all who ask at once to be in line before anybody is done.
SLOW = 1.0


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One site of four AE titles: four answers at once, three of them of one Consumer, four in line."""
    wado = {"max_deliveries": "4", "max_per_consumer": "3", "max_waiting": "4", "queue_timeout": "20"}
    hospital = Hospital(tmp_path_factory.mktemp("limited"), wado=wado, sites=1)
    try:
        wait(hospital.start())
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.fixture(scope="module")
def served(limited: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder: Path = tmp_path_factory.mktemp("study")
    study = make_study(folder, instances=3, transfer_syntax=JPEG_LS, seed=901)
    published: Served = wait(limited.publish(study))
    return published


@pytest.fixture
def hospital(limited: Hospital) -> Iterator[Hospital]:
    limited.pacs[0].behaviour = behave(pause=SLOW)
    wait(limited.idle())
    yield limited
    limited.pacs[0].behaviour = behave()


def ask(hospital: Hospital, served: Served, **options: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(hospital.fetch(served, **options))


async def figure(hospital: Hospital, name: str, value: float) -> None:
    async def reached() -> bool:
        return await hospital.metric(f"drimbox_deliveries_{name}") == value

    await until(reached, what=f"{value} {name}")


@pytest_twisted.ensureDeferred
async def test_one_consumer_waits_for_itself_and_not_the_other(hospital: Hospital, served: Served) -> None:
    asked = [ask(hospital, served) for _ in range(5)]
    await figure(hospital, "waiting", 2)
    await figure(hospital, "running", 3)
    other = ask(hospital, served, certificate=hospital.stand.consumer(OTHER_CONSUMER))
    await figure(hospital, "running", 4)
    results = [await each for each in [other, *asked]]
    assert all(result.complete for result in results), [result.problem for result in results]
    assert all(received(result) == digests(served.study) for result in results)
    await figure(hospital, "waiting", 0)


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_beyond_the_line_it_is_503_with_a_delay(hospital: Hospital, served: Served) -> None:
    asked = [ask(hospital, served) for _ in range(5)]
    await figure(hospital, "waiting", 2)
    audited = hospital.audited()
    result = await hospital.fetch(served)
    assert result.status == 503
    assert result.problem is not None
    assert result.problem["code"] == "E1003"
    assert int(result.header("retry-after") or 0) > 0
    assert (await hospital.audit_after(audited)).description.startswith("E1003")
    for each in asked:
        assert (await each).complete


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_the_line_costs_nobody_a_turn(
    hospital: Hospital, served: Served
) -> None:
    moves = len(hospital.pacs[0].seen("move"))
    asked = [ask(hospital, served) for _ in range(3)]
    await figure(hospital, "running", 3)
    connection: Any = await deferToThread(hospital.connect)
    await deferToThread(connection.sendall, hospital.request(served))
    await figure(hospital, "waiting", 1)
    await deferToThread(connection.close)
    await figure(hospital, "waiting", 0)
    for each in asked:
        assert (await each).complete
    assert len(hospital.pacs[0].seen("move")) == moves + 3


@pytest_twisted.ensureDeferred
async def test_waiting_ends_with_503(tmp_path: Path) -> None:
    wado = {"max_deliveries": "3", "max_per_consumer": "3", "queue_timeout": "0.5"}
    hospital = Hospital(tmp_path, wado=wado, sites=1)
    try:
        await hospital.start()
        study = make_study(tmp_path / "study", instances=2, transfer_syntax=JPEG_LS, seed=902)
        served = await hospital.publish(study)
        hospital.pacs[0].behaviour = behave(move_delay=2.0)
        running = [ask(hospital, served) for _ in range(3)]
        await figure(hospital, "running", 3)
        result = await hospital.fetch(served)
        assert result.status == 503
        assert result.problem is not None
        assert "place" in result.problem["detail"]
        assert result.header("retry-after") == "1"
        for each in running:
            assert (await each).complete
    finally:
        await hospital.stop()
