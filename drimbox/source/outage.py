"""When a PACS or the DMP is silent: who asks again, when, and what the administrator is told.

Theory of operation. An `Outage` stands for one system outside. After a failure its gate is shut for a
while (doubled at each failure in a row, bounded): rows of the queue that come meanwhile are put off
without asking. When the gate opens, whoever comes first is the probe. The moment the system answers, the
gate is open for all; every row put off is due by then, so the whole queue leaves in its order
(DB.SO.14, requirements.md 2.5) and a dead system is not asked by a thousand rows.

A failure may also be a row's own affair (one study on which the PACS chokes). Each row therefore counts
its own failures, waits longer after each, and once others got an answer between two of them it is told
apart: its own notice, since that of the outage closes as soon as the system answers anybody.

The memory of failures dies with the process; the queue does not. A start asks at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import attrs

from drimbox.ports import Clock
from drimbox.ports import OutageNotices as OutageNotices
from drimbox.source.backoff import backoff

#: Failures of one row, while others succeed, before it gets a notice of its own.
STUCK_AFTER = 4
#: Rows whose failures are remembered.
MAX_ROWS = 10_000


@attrs.frozen
class PutOff:
    """What to do with a row that failed."""

    due: datetime
    #: Failures of this row in a row, from 1.
    failures: int
    #: The system answers others, and this row keeps failing.
    stuck: bool

    @property
    def recorded(self) -> bool:
        """Say whether it is one for the audit trail, which an outage of days must not fill.

        The first failure is, the second, the fourth ...
        """
        return self.failures & (self.failures - 1) == 0


class Outage:
    """The gate in front of one system. `first` and `longest` are seconds; `key`, `code` its notice's."""

    def __init__(
        self, key: str, code: str, notices: OutageNotices, clock: Clock, first: float, longest: float
    ) -> None:
        self._key, self._code = key, code
        self._notices, self._clock = notices, clock
        self._first, self._longest = first, longest
        self._failures = 0
        self._until: datetime | None = None
        #: None until the system has answered once: the process before may have left a notice.
        self._told: bool | None = None
        self._rows: dict[int, int] = {}

    def shut(self) -> datetime | None:
        """Return the instant the gate opens, None when it is open.

        It never shuts for longer than `longest`: more than that to go means that the clock was set back.
        """
        now = self._clock.now()
        if self._until is not None and now < self._until <= now + timedelta(seconds=self._longest):
            return self._until
        return None

    async def failed(self, row: int, text: str) -> PutOff:
        """Note that the system did not answer `row`; tell the administrator `text` (French)."""
        now = self._clock.now()
        if self.shut() is None:
            # Failures of rows that were already asking when it shut are the same failure.
            self._failures += 1
            self._until = now + backoff(self._failures, self._first, self._longest)
        assert self._until is not None
        mine = self._rows.pop(row, 0) + 1
        while len(self._rows) >= MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        self._rows[row] = mine
        self._told = True
        verdict = PutOff(
            due=max(self._until, now + backoff(mine, self._first, self._longest)),
            failures=mine,
            stuck=mine >= STUCK_AFTER and self._failures == 1,
        )
        await self._notices.post(key=self._key, code=self._code, text=text)
        return verdict

    async def answered(self) -> None:
        """Note that the system answered somebody: the gate opens, the notice closes."""
        self._failures = 0
        self._until = None
        if self._told is not False:
            self._told = False
            await self._notices.resolve(self._key)

    def forget(self, row: int) -> int:
        """The row has ended: return how often it had failed."""
        return self._rows.pop(row, 0)
