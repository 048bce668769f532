"""One long work on the archive at a time, stopped between two manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from drimbox.source.jobs import JobBusy, JobFailed, Jobs, Progress
from tests.source.fakes import Clock, run


def test_one_work_at_a_time_and_its_result_stays_to_be_read() -> None:
    jobs, gate = Jobs(Clock(), "l'archive"), Deferred[None]()

    async def work(progress: Progress) -> Mapping[str, Any]:
        progress.total = 2
        progress.step()
        await gate
        progress.step()
        return {"files": 1}

    job = jobs.start("export", work)
    assert (job.number, job.running, job.progress.done, job.result) == (1, True, 1, None)
    with pytest.raises(JobBusy, match="export"):
        jobs.start("import", work)
    gate.callback(None)
    assert (job.running, job.result, job.error) == (False, {"files": 1}, "")
    assert jobs.start("import", work).number == 2


def test_a_stop_ends_it_between_two_manifests() -> None:
    jobs, gate = Jobs(Clock(), "l'archive"), Deferred[None]()
    done = []

    async def work(progress: Progress) -> Mapping[str, Any]:
        for number in range(3):
            if number == 1:
                await gate
            done.append(number)
            progress.step()
        return {}

    job = jobs.start("import", work)
    stopping = Deferred.fromCoroutine(jobs.stop())
    assert not stopping.called
    gate.callback(None)
    assert stopping.called
    assert (done, job.running, job.result) == ([0, 1], False, None)
    assert "relancer" in job.error
    run(jobs.stop())


def test_what_fails_says_why_and_what_breaks_goes_to_the_log() -> None:
    jobs, events = Jobs(Clock(), "l'archive"), list[Any]()

    async def fails(_: Progress) -> Mapping[str, Any]:
        raise JobFailed("support plein")

    async def breaks(_: Progress) -> Mapping[str, Any]:
        raise RuntimeError("patient secret")

    assert jobs.start("export", fails).error == "support plein"
    globalLogPublisher.addObserver(events.append)
    try:
        assert jobs.start("export", breaks).error == "erreur interne, voir le journal"
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert any("log_failure" in event for event in events)
