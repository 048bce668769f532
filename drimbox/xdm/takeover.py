"""What loading an archive does with each manifest of it: the record to keep, and what became of it."""

from __future__ import annotations

import calendar
import enum
from datetime import datetime

import attrs

from drimbox.model import is_uid
from drimbox.ports import Submission
from drimbox.xdm import names, rebuilding
from drimbox.xdm.checking import TakenKos, pack


class Fate(enum.Enum):
    """What became of a manifest."""

    #: It is the current one of its study now.
    LOADED = "charge"
    #: Kept for old addresses only: a newer one of the same study was there.
    OLDER = "plus-ancien"
    #: It was there already, whatever its state.
    KNOWN = "deja-present"
    #: It was there already, at another site.
    ELSEWHERE = "autre-site"
    #: It does not hold together.
    REFUSED = "refuse"


@attrs.frozen
class Takeover:
    """One manifest of another DRIMbox with everything that makes it one of ours (DB.SO.30)."""

    site: str
    submission: Submission
    metadata: bytes
    series_uid: str
    #: In the month its archive is named after.
    published_at: datetime
    #: Document id and stored message of each report; one with an empty id when none is known.
    messages: tuple[tuple[str, bytes], ...]


def takeover(taken: TakenKos, *, site: str, structure_id: str, month: names.Month | None) -> Takeover:
    """Make the record of a manifest; `structure_id` is what we call the structure that published it."""
    lines = taken.reports or (None,)
    submission = rebuilding.submission_of(taken, lines[-1], structure_id)
    return Takeover(
        site=site,
        submission=submission,
        metadata=taken.metadata,
        series_uid=taken.manifest.series_uid if is_uid(taken.manifest.series_uid) else "",
        published_at=within(submission.submission_time, month),
        messages=tuple((line.document_id if line is not None else "", pack(taken, line)) for line in lines),
    )


def bounds(month: names.Month) -> tuple[datetime, datetime]:
    """Return the first instant of a month on this machine, and of the next one."""
    following = month.next
    return (
        datetime(month.year, month.month, 1).astimezone(),
        datetime(following.year, following.month, 1).astimezone(),
    )


def month_of(instant: datetime) -> names.Month:
    """Return the month of an instant on the clock of this machine."""
    local = instant.astimezone()
    return names.Month(local.year, local.month)


def within(instant: datetime, month: names.Month | None) -> datetime:
    """Return the instant, or the nearest second of `month` when it is outside.

    A manifest submitted on the last evening of a month may have been published, and filed, in the next.
    """
    if month is None or month_of(instant) == month:
        return instant
    if month_of(instant) < month:
        return bounds(month)[0]
    last = calendar.monthrange(month.year, month.month)[1]
    return datetime(month.year, month.month, last, 23, 59, 59).astimezone()
