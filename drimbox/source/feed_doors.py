"""What the feed needs from outside: its queues, the archive, the record, and who must be told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol

import attrs

from drimbox.config import Site
from drimbox.ports import (
    ArchivedKos,
    Archives,
    AuditTrail,
    Clock,
    Count,
    InboxMessage,
    Record,
    Removal,
    ReportSaid,
    Speaker,
    Submission,
    Voice,
)
from drimbox.source.keynotes import KeyNotes
from drimbox.source.outage import OutageNotices
from drimbox.source.rejections import RejectionNotes


class MessageQueue(Protocol):
    """The inbox as the feed works on it."""

    async def message(self, message_id: int) -> InboxMessage:
        """Read a message again."""

    async def processed(
        self,
        message_id: int,
        *,
        result: str,
        said: ReportSaid | None = None,
        studies: Collection[str] = (),
        count: Count | None = None,
    ) -> None:
        """End the message and create one job per study it is about, in one transaction."""

    async def failed(
        self, message_id: int, code: str, detail: str, *, counts: Sequence[Count] = ()
    ) -> None:
        """End the message; it is kept."""


class JobQueue(Protocol):
    """The jobs, one per study of a report."""

    async def finish(
        self, job_id: int, result: str, detail: str = "", *, count: Count | None = None
    ) -> None:
        """End the job without a publication."""

    async def retry(self, job_id: int, at: datetime, error: str) -> None:
        """Put the job off."""

    async def unchanged(
        self, job_id: int, kos_id: int, report_id: str, *, fingerprint: str | None = None
    ) -> None:
        """The archived KOS already says it all: add the report to it and end the job.

        `fingerprint` is its digest, when it had none of ours.
        """

    async def queue_publication(
        self,
        job_id: int,
        *,
        site: str,
        submission: Submission,
        metadata: bytes,
        fingerprint: str,
        series_uid: str = "",
        take_back: Callable[[Submission], Removal] | None = None,
    ) -> int:
        """Archive the KOS as pending, queue its submission and end the job, in one transaction.

        What another patient's record holds of the study is removed first, as `take_back` makes it.
        """

    async def queue_removal(
        self,
        job_id: int,
        make: Callable[[Submission], Removal],
        *,
        sites: Collection[str] | None = None,
    ) -> int:
        """Queue the removal of what the DMP holds or may hold of the study, and end the job."""


class SpokenReports(Protocol):
    """The record of reports as the feed reads it."""

    async def speaker(self, study_uid: str) -> Speaker | Voice:
        """Return which message says what the record must hold of a study."""

    async def standing(self, study_uid: str) -> dict[int, str]:
        """Return the messages that speak for a study, the last word among them: document by message."""


class LatestKos(Protocol):
    """The archive as the feed reads it."""

    async def latest(self, study_uid: str, *, with_data: bool = True) -> ArchivedKos | None:
        """Return the newest KOS of the study that the DMP holds or will hold."""

    async def get(self, kos_id: int) -> ArchivedKos:
        """Return one KOS with its bytes."""

    async def submission(self, kos_id: int) -> Submission | None:
        """Return what was submitted for a KOS, whole."""


async def no_doubt(site: Site) -> str:
    """Trust every link."""
    return ""


@attrs.frozen
class Doors:
    """What the feed needs from outside."""

    messages: MessageQueue
    jobs: JobQueue
    reports: SpokenReports
    archive: LatestKos
    archives: Archives
    record: Record
    audit: AuditTrail
    notices: OutageNotices
    clock: Clock
    #: Runs CPU work off the reactor thread.
    in_thread: Callable[[Callable[[], object]], Awaitable[object]]
    #: Finds the key images of a study; None leaves them out (DB.SO.194).
    key_notes: KeyNotes | None
    #: Finds the rejection notes of a study.
    rejections: RejectionNotes
    #: Lets nothing of a study be delivered from the cache any more.
    forget: Callable[[str], Awaitable[None]]
    #: Says in French why what a site does not hold must not be believed now; empty when it may.
    doubt: Callable[[Site], Awaitable[str]] = no_doubt
