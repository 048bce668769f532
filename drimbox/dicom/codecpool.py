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

import contextlib
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IPullProducer
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox import metrics
from drimbox.config import TranscodingSettings
from drimbox.dicom.codecwire import FrameReader, WireRefused, frame_head
from drimbox.dicom.elements import Buffer
from drimbox.dicom.targets import PRODUCED
from drimbox.dicom.transcoding import Transcoded, TranscodeFailed

_log = Logger()

#: Seconds a worker may take to load its codecs, on a machine that is busy.
_START_TIMEOUT = 60.0
#: Workers dead before they were ready, in a row, after which what waits is refused.
_MAX_START_FAILURES = 3
#: Tries of one instance whose worker died.
_MAX_TRIES = 2
#: Bytes handed to the socket at once.
_STEP = 512 * 1024
#: Bytes of a worker's error output kept for the log.
_MAX_COMPLAINT = 4096
#: Most workers when the configuration leaves the number to us.
_MOST_WORKERS = 4
#: Extra room of an answer over its pixels: what else the data set holds is in `max_instance_bytes`.
_MARGIN = 16 * 1024 * 1024


def _arguments(settings: TranscodingSettings) -> list[str]:
    # The module is named, not imported: the gateway itself loads no codec.
    return ["-m", "drimbox.dicom.codecworker", json.dumps(attrs.asdict(settings))]


@attrs.define(eq=False)
class _Job:
    dataset: Buffer
    source: str
    target: str
    done: Deferred[Buffer]
    tries: int = 0
    #: True once nobody waits for it any more.
    abandoned: bool = False


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
        self._waiting: deque[_Job] = deque()
        self._waiting_bytes = 0
        self._workers: set[_Worker] = set()
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
        job = _Job(dataset, source, target, Deferred(lambda _: self._abandon(job)))
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

    def _enqueue(self, job: _Job, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(job)
        self._waiting_bytes += len(job.dataset)
        metrics.TRANSCODING_WAITING.set(len(self._waiting))

    def _dequeue(self) -> _Job:
        job = self._waiting.popleft()
        self._waiting_bytes -= len(job.dataset)
        metrics.TRANSCODING_WAITING.set(len(self._waiting))
        return job

    def _abandon(self, job: _Job) -> None:
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
            self._workers.add(_Worker(self, self._reactor, self._settings, self._command))
            metrics.CODEC_WORKERS.set(len(self._workers))
            starting += 1

    # --- what workers tell ---------------------------------------------------------------------------

    def settle(self, job: _Job, result: str, answer: Buffer | str) -> None:
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

    def lost(self, worker: _Worker, job: _Job | None, result: str, why: str, *, started: bool) -> None:
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


@implementer(IPullProducer)
class _Request:
    """Gives one request to the socket in steps, as fast as the worker reads it."""

    def __init__(self, transport: Any, head: bytes, dataset: Buffer) -> None:
        self._transport = transport
        self._rest = memoryview(dataset).cast("B")
        transport.write(head)
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Write the next step; the socket calls again once it has gone."""
        self._transport.write(bytes(self._rest[:_STEP]))
        self._rest = self._rest[_STEP:]
        if not self._rest:
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The worker has gone."""
        self._rest = memoryview(b"")


class _Worker(ProcessProtocol):
    """One worker process and its end of the socket pair."""

    def __init__(
        self, pool: CodecPool, reactor: Any, settings: TranscodingSettings, command: Sequence[str]
    ) -> None:
        self._pool = pool
        self._reactor = reactor
        self._timeout = settings.timeout
        self._reader = FrameReader(settings.max_decoded_bytes + settings.max_instance_bytes + _MARGIN)
        self._job: _Job | None = None
        self._given_at = 0.0
        self._ready = False
        self._lost = False
        self._complaint = b""
        self._verdict = ("crashed", "")
        self._gone: Deferred[None] = Deferred()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)
            self._process = reactor.spawnProcess(
                self,
                command[0],
                command,
                # The import path only: no secret of the gateway's environment goes to a codec.
                env={
                    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                    "LC_ALL": "C.UTF-8",
                },
                childFDs={0: theirs.fileno(), 1: theirs.fileno(), 2: "r"},
            )
            self._link = _Link(self)
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _OneLink(self._link))
        finally:
            ours.close()
            theirs.close()
        self._timer: IDelayedCall = reactor.callLater(
            _START_TIMEOUT, self.kill, "crashed", "a codec worker does not start"
        )

    @property
    def idle(self) -> bool:
        """True when it waits for an instance."""
        return self._ready and self._job is None and not self._lost

    @property
    def starting(self) -> bool:
        """True until it has loaded its codecs."""
        return not self._ready

    def give(self, job: _Job) -> None:
        """Hand over an instance; from now on it has `timeout` seconds."""
        self._job = job
        job.tries += 1
        self._given_at = self._reactor.seconds()
        self._timer = self._reactor.callLater(
            self._timeout, self.kill, "timeout", f"no answer within {self._timeout:g} s"
        )
        head = frame_head({"source": job.source, "target": job.target}, len(job.dataset))
        _Request(self._link.transport, head, job.dataset)

    def kill(self, result: str, why: str) -> None:
        """End the process for that reason."""
        self._verdict = (result, why)
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess("KILL")
        self._vanish()

    def gone(self) -> Deferred[None]:
        """Fire once the process has been reaped."""
        return self._gone

    # --- from the socket -----------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Take what the worker says; anything but one answer to one question is its end."""
        try:
            for header, payload in self._reader.feed(data):
                self._answered(header, payload)
        except WireRefused as error:
            self.kill("crashed", str(error))

    def _answered(self, header: dict[str, Any], payload: bytearray) -> None:
        if not self._ready:
            if header.get("ready") is not True:
                raise WireRefused("an answer before any question")
            self._ready = True
            self._stop_timer()
            self._pool.ready()
            return
        job, result = self._job, header.get("result")
        if job is None or result not in ("done", "refused", "memory", "bug"):
            raise WireRefused("an answer that nobody asked for")
        self._job = None
        self._stop_timer()
        if result == "done":
            taken = self._reactor.seconds() - self._given_at
            metrics.TRANSCODING_SECONDS.labels(job.target).observe(taken)
            self._pool.settle(job, "done", payload)
        else:
            self._pool.settle(job, result, str(header.get("why", ""))[:500])
        self._pool.ready()

    def disconnected(self) -> None:
        """The worker has closed its end: it has died, or is about to."""
        if not self._lost:
            self.kill("crashed", "a codec worker died")

    # --- from the process ----------------------------------------------------------------------------

    def errReceived(self, data: bytes) -> None:
        """Keep the end of what it complains about, for the log."""
        self._complaint = (self._complaint + data)[-_MAX_COMPLAINT:]

    def processEnded(self, reason: Failure) -> None:
        """The process has been reaped."""
        if not self._lost:
            self._verdict = ("crashed", "a codec worker died")
        self._vanish()
        if not self._gone.called:
            if self._verdict[0] == "crashed":
                _log.warn(
                    "Codec worker ended: {why} ({reason}) {complaint}",
                    why=self._verdict[1],
                    reason=reason.getErrorMessage(),
                    complaint=self._complaint.decode("utf-8", "replace"),
                )
            self._gone.callback(None)

    def _vanish(self) -> None:
        """Leave the pool, once."""
        if self._lost:
            return
        self._lost = True
        self._stop_timer()
        self._link.cut()
        job, self._job = self._job, None
        self._pool.lost(self, job, *self._verdict, started=self._ready)

    def _stop_timer(self) -> None:
        with contextlib.suppress(AlreadyCalled, AlreadyCancelled):
            self._timer.cancel()


class _Link(Protocol):
    """Our end of the socket pair."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    def cut(self) -> None:
        """Close it, whatever still waits to be written."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._worker.received(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._worker.disconnected()


class _OneLink(Factory):
    """Gives the one protocol of an adopted connection."""

    noisy = False

    def __init__(self, link: _Link) -> None:
        self._link = link

    def buildProtocol(self, address: Any) -> _Link:
        return self._link
