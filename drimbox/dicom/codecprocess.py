"""One codec worker as the gateway sees it: a process, our end of a socket pair, and a clock.

The pool gives it one instance at a time; it answers, or it is lost. A worker that dies, says what it may
not say, or does not answer in time is killed here; what becomes of its instance is the pool's affair.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IPullProducer
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from drimbox import metrics
from drimbox.config import TranscodingSettings
from drimbox.dicom.codecwire import FrameReader, WireRefused, frame_head
from drimbox.dicom.elements import Buffer

_log = Logger()

#: Seconds a worker may take to load its codecs, on a machine that is busy.
_START_TIMEOUT = 60.0
#: Bytes handed to the socket at once.
_STEP = 512 * 1024
#: Bytes of a worker's error output kept for the log.
_MAX_COMPLAINT = 4096
#: Extra room of an answer over its pixels: what else the data set holds is in `max_instance_bytes`.
_MARGIN = 16 * 1024 * 1024


@attrs.define(eq=False)
class Job:
    """One instance to transcode, and who waits for it."""

    dataset: Buffer
    source: str
    target: str
    done: Deferred[Buffer]
    tries: int = 0
    #: True once nobody waits for it any more.
    abandoned: bool = False


class Owner(Protocol):
    """What a worker tells its pool."""

    def settle(self, job: Job, result: str, answer: Buffer | str) -> None:
        """End a job: `answer` is the new data set for `done`, the reason otherwise."""

    def ready(self) -> None:
        """A worker has nothing to do."""

    def lost(self, worker: WorkerProcess, job: Job | None, result: str, why: str, *, started: bool) -> None:
        """A worker is no more; `job` is what it was at."""


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


class WorkerProcess(ProcessProtocol):
    """One worker process and its end of the socket pair."""

    def __init__(
        self, pool: Owner, reactor: Any, settings: TranscodingSettings, command: Sequence[str]
    ) -> None:
        self._pool = pool
        self._reactor = reactor
        self._timeout = settings.timeout
        self._reader = FrameReader(settings.max_decoded_bytes + settings.max_instance_bytes + _MARGIN)
        self._job: Job | None = None
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

    def give(self, job: Job) -> None:
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


class _Link(StreamProtocol):
    """Our end of the socket pair."""

    def __init__(self, worker: WorkerProcess) -> None:
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
