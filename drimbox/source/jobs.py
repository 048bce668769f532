"""Long works that an administrator begins, one at a time of a kind: export, loading, backup.

Whoever begins one follows it by its number, and reads what it came to. It looks up between two steps, so
that a stop of the gateway does not wait for a year of archives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.ports import Clock


class JobBusy(Exception):
    """Another work is on its way; the text, in French, says which."""


class JobFailed(Exception):
    """The work cannot go on; the text, in French, says why without patient data."""


class JobStopped(Exception):
    """The gateway stops: the work ends where it is."""


@attrs.define
class Progress:
    """How far a work is, and whether it should go on."""

    done: int = 0
    #: As known so far.
    total: int = 0
    #: What is being done, French, where works have parts.
    stage: str = ""
    stopping: bool = False

    def step(self, count: int = 1) -> None:
        """Note `count` more steps (manifests) done; raises `JobStopped` when it is time to end."""
        self.done += count
        if self.stopping:
            raise JobStopped


@attrs.define
class Job:
    """One work, on its way or ended."""

    number: int
    kind: str
    started_at: datetime
    progress: Progress = attrs.field(factory=Progress)
    running: bool = True
    ended_at: datetime | None = None
    #: What it came to, None while it runs and when it failed.
    result: Mapping[str, Any] | None = None
    #: Why it failed, French, empty otherwise.
    error: str = ""


#: A work: told its progress, returns what it came to.
Work = Callable[[Progress], Awaitable[Mapping[str, Any]]]


class Jobs:
    """Runs works, the last one can be looked at."""

    log = Logger()

    def __init__(self, clock: Clock, about: str) -> None:
        """`about` names what they work on, in French."""
        self._clock = clock
        self._about = about
        self._running: Deferred[None] | None = None
        self.last: Job | None = None

    def require_idle(self) -> None:
        """Raise `JobBusy` while one runs."""
        if self.last is not None and self.last.running:
            raise JobBusy(f"un travail est déjà en cours sur {self._about} ({self.last.kind})")

    def start(self, kind: str, work: Work) -> Job:
        """Begin a work. Raises `JobBusy`."""
        self.require_idle()
        number = self.last.number + 1 if self.last is not None else 1
        job = self.last = Job(number, kind, self._clock.now())
        self._running = Deferred.fromCoroutine(self._run(job, work))
        return job

    async def stop(self) -> None:
        """End what runs, between two steps."""
        if self.last is not None and self.last.running and self._running is not None:
            self.last.progress.stopping = True
            await self._running

    async def _run(self, job: Job, work: Work) -> None:
        try:
            job.result = await work(job.progress)
        except JobStopped:
            job.error = "interrompu par l'arrêt de DRIMbox ; relancer la même commande"
        except JobFailed as failure:
            job.error = str(failure)
        except Exception:
            self.log.failure("administrative work broke", failure=Failure())
            job.error = "erreur interne, voir le journal"
        job.running = False
        job.ended_at = self._clock.now()
        self.log.info("{kind} ended: {done} steps", kind=job.kind, done=job.progress.done)
