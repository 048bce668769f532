"""The pool of codec workers, as the gateway sees it: `await pool.transcode(...)`.

    delivery ── await ──> queue (bounded) ──> worker process ──> answer

Workers are started when there is work, up to a number, and kept. Each does one instance at a time and
talks over a socket pair, the only descriptor it inherits beside its error output. A worker that dies, says
what it may not say, or does not answer in time is killed and replaced; that costs the instance it was at
and no other. An instance whose worker died is tried once more on another, in case it was the system that
killed it and not the instance; one that timed out is not.

The queue is first come, first served. It is bounded, because waiting instances are in memory: a delivery
keeps few of its own in it at a time, and lets those that need no transcoding flow meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from drimbox import metrics
from drimbox.config import TranscodingSettings
from drimbox.dicom.codecprocess import Job, WorkerProcess
from drimbox.dicom.elements import Buffer
from drimbox.dicom.targets import PRODUCED
from drimbox.dicom.transcoding import Transcoded, TranscodeFailed

#: Workers dead before they were ready, in a row, after which what waits is refused.
_MAX_START_FAILURES = 3
#: Tries of one instance whose worker died.
_MAX_TRIES = 2
#: Most workers when the configuration leaves the number to us.
_MOST_WORKERS = 4


def _arguments(settings: TranscodingSettings) -> list[str]:
    # The module is named, not imported: the gateway itself loads no codec.
    return ["-m", "drimbox.dicom.codecworker", json.dumps(attrs.asdict(settings))]


class CodecPool:
    """Transcodes instances in worker processes (DB.CS.83).

    `reactor` starts the processes; `command` replaces the worker's command line in tests.
    """

    def __init__(
        self, reactor: Any, settings: TranscodingSettings, *, command: Sequence[str] | None = None
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._command = tuple(command or (sys.executable, "-s", "-P", *_arguments(settings)))
        self._size = settings.workers or min(os.cpu_count() or 1, _MOST_WORKERS)
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        self._workers: set[WorkerProcess] = set()
        self._start_failures = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Instances that no worker has yet."""
        return len(self._waiting)

    @property
    def workers(self) -> int:
        """Processes alive."""
        return len(self._workers)

    async def transcode(self, dataset: Buffer, source: str, target: str) -> Buffer:
        """Turn a whole data set without file meta from `source` into `target`.

        `dataset` must not change until the answer. Raises `TranscodeFailed`. Cancelling gives the place
        in the queue up.
        """
        if self._closed:
            raise TranscodeFailed("closed", "the pool is closed")
        size = len(dataset)
        if target not in PRODUCED or size > self._settings.max_instance_bytes:
            raise TranscodeFailed("refused", f"{size} bytes to a syntax that is not produced, or too many")
        # A single large instance may always wait alone.
        full = self._waiting and self._waiting_bytes + size > self._settings.max_queue_bytes
        if full or len(self._waiting) >= self._settings.max_queue:
            metrics.TRANSCODED.labels(target, "busy").inc()
            raise TranscodeFailed("busy", f"{len(self._waiting)} instances wait already")
        job = Job(dataset, source, target, Deferred(lambda _: self._abandon(job)))
        self._enqueue(job)
        self._pump()
        return await job.done

    async def transcode_to_first(self, dataset: Buffer, source: str, targets: Sequence[str]) -> Transcoded:
        """Try `targets` in turn, the best first, as `targets.candidates` gives them.

        An instance that one codec cannot bear may be no trouble to another. A full queue is no fault of
        the target, and ends the attempt. Raises the `TranscodeFailed` of the last one.
        """
        failure = TranscodeFailed("refused", "no acceptable transfer syntax can be produced")
        for target in targets:
            try:
                return Transcoded(target, await self.transcode(dataset, source, target))
            except TranscodeFailed as error:
                failure = error
                if error.result in ("busy", "closed"):
                    break
        raise failure

    async def close(self) -> None:
        """Refuse what waits, kill the workers, and wait until they have gone."""
        self._closed = True
        self._fail_waiting("closed", "the pool is closed")
        workers = list(self._workers)
        for worker in workers:
            worker.kill("closed", "the pool is closed")
        for worker in workers:
            await worker.gone()

    # --- the queue ----------------------------------------------------------------------------------

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(job)
        self._waiting_bytes += len(job.dataset)
        metrics.TRANSCODING_WAITING.set(len(self._waiting))

    def _dequeue(self) -> Job:
        job = self._waiting.popleft()
        self._waiting_bytes -= len(job.dataset)
        metrics.TRANSCODING_WAITING.set(len(self._waiting))
        return job

    def _abandon(self, job: Job) -> None:
        """Somebody no longer wants his answer; a worker that is at it may end it for nobody."""
        job.abandoned = True
        if job in self._waiting:
            self._waiting.remove(job)
            self._waiting_bytes -= len(job.dataset)
            metrics.TRANSCODING_WAITING.set(len(self._waiting))

    def _fail_waiting(self, result: str, why: str) -> None:
        # Taken out first: who hears of it may at once ask for something else.
        jobs = [self._dequeue() for _ in range(len(self._waiting))]
        for job in jobs:
            self.settle(job, result, why)

    def _pump(self) -> None:
        """Give work to those who have none, and start workers for the rest."""
        if self._closed:
            return
        for worker in list(self._workers):
            if not self._waiting:
                return
            if worker.idle:
                worker.give(self._dequeue())
        starting = sum(worker.starting for worker in self._workers)
        while starting < len(self._waiting) and len(self._workers) < self._size:
            self._workers.add(WorkerProcess(self, self._reactor, self._settings, self._command))
            metrics.CODEC_WORKERS.set(len(self._workers))
            starting += 1

    # --- what workers tell ---------------------------------------------------------------------------

    def settle(self, job: Job, result: str, answer: Buffer | str) -> None:
        """End a job: `answer` is the new data set for `done`, the reason otherwise."""
        metrics.TRANSCODED.labels(job.target, result).inc()
        if job.abandoned:
            return
        if result == "done":
            job.done.callback(answer)  # type: ignore[arg-type]
        else:
            job.done.errback(Failure(TranscodeFailed(result, str(answer))))

    def ready(self) -> None:
        """A worker has nothing to do."""
        self._start_failures = 0
        self._pump()

    def lost(self, worker: WorkerProcess, job: Job | None, result: str, why: str, *, started: bool) -> None:
        """A worker is no more; `job` is what it was at."""
        self._workers.discard(worker)
        metrics.CODEC_WORKERS.set(len(self._workers))
        if job is not None:
            if result == "crashed" and job.tries < _MAX_TRIES and not job.abandoned and not self._closed:
                metrics.TRANSCODED.labels(job.target, "retried").inc()
                self._enqueue(job, first=True)
            else:
                self.settle(job, result, why)
        if not started and not self._closed:
            self._start_failures += 1
            if self._start_failures >= _MAX_START_FAILURES:
                self._start_failures = 0
                self._fail_waiting("crashed", "codec workers do not start")
        self._pump()
