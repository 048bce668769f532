"""Examinations inside the running process: one at a time, begun by an administrator, read as it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from drimbox.doctor.examination import Examination, healthy, ordered


class Doctor:
    """Runs examinations; `make` returns a new one for a study to ask for, "" for those configured, and
    whether test messages leave."""

    log = Logger()

    def __init__(self, make: Callable[[str, bool], Examination]) -> None:
        self._make = make
        self._number = 0
        self._last: Examination | None = None
        self._running: Deferred[None] | None = None

    def start(self, study: str, send: bool = False) -> tuple[int, bool]:
        """Begin one, unless one is on its way; return its number, and whether it was on its way."""
        if self._running is not None:
            return self._number, True
        self._number += 1
        examination = self._last = self._make(study, send)
        self._running = Deferred.fromCoroutine(examination.run())
        self._running.addErrback(self._failed).addCallback(self._over)
        return self._number, False

    def state(self) -> dict[str, Any]:
        """Return how far the last one is, and what it has found."""
        if self._last is None:
            return {"number": 0, "running": False, "healthy": None, "findings": []}
        findings = ordered(self._last.findings)
        running = self._running is not None
        return {
            "number": self._number,
            "running": running,
            "healthy": None if running else healthy(findings),
            "findings": [attrs.asdict(each) | {"state": each.state.value} for each in findings],
        }

    async def stop(self) -> None:
        """End what runs."""
        if self._running is not None:
            self._running.cancel()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self.log.failure("doctor: examination failed", failure=failure)

    def _over(self, _: object) -> None:
        self._running = None
