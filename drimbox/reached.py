"""Whether each archive answered when it was last asked something: what is known without asking it now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from drimbox import metrics
from drimbox.redaction import redact


@attrs.define
class _Known:
    answered: datetime | None = None
    failed: datetime | None = None
    #: Since when it has answered, or has not.
    since: datetime | None = None
    up: bool | None = None
    detail: str = ""


class Reached:
    """What real exchanges said of the archive of each site, since the start of this process."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._sites: dict[str, _Known] = {}

    def answered(self, site: str) -> None:
        """Note that it has answered, whatever it said."""
        known = self._note(site, up=True)
        known.answered = self._now()
        known.detail = ""
        metrics.ARCHIVE_EXCHANGES.labels(site, "answered").inc()

    def failed(self, site: str, why: str) -> None:
        """Note that it has not; `why` is in French, without a patient."""
        known = self._note(site, up=False)
        known.failed = self._now()
        known.detail = redact(why)
        metrics.ARCHIVE_EXCHANGES.labels(site, "failed").inc()

    def facts(self, site: str) -> dict[str, Any]:
        """Return what is known: `state` is "answers", "silent", or "unknown" before it was asked."""
        known = self._sites.get(site, _Known())
        state = "unknown" if known.up is None else "answers" if known.up else "silent"
        return {
            "state": state,
            "since": known.since,
            "answered": known.answered,
            "failed": known.failed,
            "detail": known.detail,
        }

    def _note(self, site: str, *, up: bool) -> _Known:
        known = self._sites.setdefault(site, _Known())
        if known.up is not up:
            known.up, known.since = up, self._now()
        return known
