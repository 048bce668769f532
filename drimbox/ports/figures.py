"""What is counted and measured (requirements.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import attrs


@attrs.frozen
class Count:
    """One event that the statistics count (requirements.md 3.3). Nothing of a patient or a study."""

    #: A key of `statistics.DEFINITIONS`.
    stat: str
    #: Struct_IdNat, empty when unknown.
    structure: str = ""
    #: Name of the site, empty when it is about none.
    site: str = ""
    #: Transfer syntax UID (STF09) or modality (STF10).
    part: str = ""
    #: How many, or how many bytes.
    amount: int = 1


class Statistics(Protocol):
    """Where the events are kept."""

    async def add(self, counts: Sequence[Count]) -> None:
        """Keep what happened at this instant."""


@attrs.frozen
class SpeedMeasure:
    """One run of the PACS test (DB.SO.102): what it measured, or why it did not."""

    site: str
    started_at: datetime
    #: STF21: seconds from the C-MOVE to the confirmation of the first image; None when it failed.
    latency: float | None
    #: STF20: seconds from the confirmation of the first image to that of the last; None when it failed.
    duration: float | None
    #: What arrived, also of a run that failed on the way.
    images: int = 0
    bytes: int = 0
    #: `E1004 - ...`; empty on success.
    error: str = ""


class SpeedMeasures(Protocol):
    """Where the measures of the PACS test are kept."""

    async def add(self, measure: SpeedMeasure) -> None:
        """Keep one run."""

    async def last(self, site: str) -> datetime | None:
        """Return when the last run of a site began, None when none is kept."""
