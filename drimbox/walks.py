"""What a walk over the archive is: its values, and where they are kept (DB.SO.28, DB.SO.31, DB.SO.88).

A walk judges every published KOS of one site, in the order of StudyInstanceUIDs, and has what differs
mended through the ordinary queue. A *resynchronisation* asks the site's PACS or native archive; a *change
of address* asks nobody: it compares the address written in each KOS with that of the configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

import attrs


class WalkKind(enum.Enum):
    """What is compared."""

    RESYNC = "resync"
    ADDRESS = "address"


class WalkState(enum.Enum):
    """Where a walk is; the first three are open, and a site has one open walk at most."""

    RUNNING = "running"
    #: Stopped by an administrator; may go on from where it was.
    STOPPED = "stopped"
    #: Would withdraw more than is believed without an administrator's word.
    SUSPENDED = "suspended"
    DONE = "done"
    ABANDONED = "abandoned"


OPEN_STATES = (WalkState.RUNNING, WalkState.STOPPED, WalkState.SUSPENDED)


class Verdict(enum.Enum):
    """What was found of one study."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    #: The site does not hold it any more.
    GONE = "gone"
    #: No report speaks for it any more.
    RETRACTED = "retracted"
    #: The site answers, but not about this study.
    SILENT = "silent"
    #: Nothing to judge it by: no report, no certificate, no site.
    UNDECIDABLE = "undecidable"


class Step(enum.Enum):
    """What is still to be done about one study."""

    #: Nothing.
    ENDED = "ended"
    #: Its job is to be reopened.
    DUE = "due"
    #: Its job is on its way.
    QUEUED = "queued"
    #: Its job has ended, the DMP has still to answer.
    SENT = "sent"
    #: Absent: its removal waits for the end of the walk.
    HELD = "held"
    #: Its removal may be queued.
    RELEASED = "released"


@attrs.frozen
class Walk:
    """One walk, as it is kept."""

    id: int
    kind: WalkKind
    site: str
    dry_run: bool
    state: WalkState
    position: str
    complete: bool
    confirmed: bool
    reason: str
    #: Studies that the site was last seen to hold.
    controls: tuple[str, ...]
    address: str
    started_at: datetime
    ended_at: datetime | None
    #: STR01: KOS archived before.
    kos_before: int
    #: STR05: KOS archived after; None until the end.
    kos_after: int | None
    #: Studies by verdict: STR02 is GONE, STR03 CHANGED, STR04 UNCHANGED.
    counts: dict[Verdict, int]

    @property
    def walked(self) -> int:
        """Studies judged."""
        return sum(self.counts.values())


@attrs.frozen
class Milestone:
    """A published KOS that is to be judged."""

    kos_id: int
    study_uid: str


@attrs.frozen
class Finding:
    """What was found of one study; `detail` is French, without patient data."""

    verdict: Verdict
    detail: str = ""
    #: Name of the site that holds it, empty when none was seen to.
    site: str = ""


@attrs.frozen
class JudgedStudy:
    """One study of a walk, as it is kept."""

    study_uid: str
    kos_id: int
    verdict: Verdict
    detail: str
    step: Step
    result: str
    judged_at: datetime


class WalkOpen(Exception):
    """The site already has an open walk: its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"walk {number} is open")
        self.number = number


class WalkStore(Protocol):
    """Where walks are kept; every method is one transaction."""

    async def begin(self, kind: WalkKind, site: str, *, dry_run: bool, address: str) -> Walk:
        """Begin a walk of a site (STR01 is counted now). Raises `WalkOpen`."""

    async def get(self, number: int) -> Walk:
        """Return one walk; `KeyError` when there is none."""

    async def open_walk(self, site: str) -> Walk | None:
        """Return the open walk of a site."""

    async def running(self) -> list[Walk]:
        """Return the walks in state RUNNING."""

    async def page(self, site: str, after: str, limit: int) -> list[Milestone]:
        """Return the next published, still wanted KOS of a site whose study follows `after`."""

    async def advance(
        self,
        walk: Walk,
        judged: Sequence[tuple[Milestone, Finding, Step]],
        controls: Sequence[str],
        *,
        complete: bool = False,
    ) -> Walk:
        """Keep what was found, and the position behind it, in one transaction."""

    async def studies(self, number: int, step: Step, limit: int, *, after: str = "") -> list[JudgedStudy]:
        """Return the studies at a step that follow `after`, in order."""

    async def move(self, number: int, studies: Collection[str], step: Step) -> None:
        """Take studies to another step."""

    async def release(self, number: int) -> int:
        """Take every HELD study to RELEASED; return how many."""

    async def settle(self, number: int) -> dict[Step, int]:
        """Follow what became of the jobs and submissions; return how many studies are at each step."""

    async def set_state(self, number: int, state: WalkState, reason: str = "") -> Walk:
        """Change the state; DONE also counts STR05. An ended walk stays as it is."""

    async def confirm(self, number: int) -> Walk:
        """Release what a SUSPENDED walk would withdraw: it is RUNNING again."""

    async def purge(self, site: str, keep: int, limit: int) -> int:
        """Drop the studies of all but the newest `keep` walks of a site, `limit` rows at most."""
