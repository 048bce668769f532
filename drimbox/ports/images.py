"""Where the images of a site are: PACS or native archive, asked and moved from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

from drimbox.config import Pacs
from drimbox.model import Study

if TYPE_CHECKING:
    # It drags pydicom in, which the commands that only read the store do without.
    from drimbox.dicom.moving import MoveReceiver, MoveResult


class Pacses(Protocol):
    """Questions to a PACS."""

    async def find_study(self, pacs: Pacs, study_uid: str) -> Study | None:
        """List the study's instances, or None when this PACS does not hold it (DB.SO.14).

        Raises `PacsCommunicationError` (E003) when the PACS is silent, refuses or talks nonsense.
        """

    async def echo(self, pacs: Pacs) -> None:
        """Verify the link (C-ECHO). Raises `PacsCommunicationError`."""

    async def holds(self, pacs: Pacs, study_uid: str) -> bool:
        """Say whether a C-FIND lists instances of the study, whatever their classes.

        Raises `PacsCommunicationError`.
        """


class MoveRun(Protocol):
    """One C-MOVE, or one reading of a native archive, prepared."""

    async def run(
        self, study_uid: str, series_uid: str, *, wait: float, instance_uid: str | None = None
    ) -> MoveResult:
        """Move the series to ourselves; return once everything that can arrive has arrived.

        `wait` is the time to wait for an AE title, in seconds. Raises `TooManyRequests`,
        `PacsUnavailable`, `RetrieveTimeout`, `NotAcceptable` or `Abandoned`.
        """

    @property
    def sent_at(self) -> float | None:
        """Reactor time at which the C-MOVE request was sent, None before."""

    def abandon(self) -> None:
        """Stop: whoever asked is gone."""


class PacsMover(Protocol):
    """Starts C-MOVEs (DB.SO.177)."""

    def retrieval(self, pacs: Pacs, receiver: MoveReceiver) -> MoveRun:
        """Prepare one C-MOVE from `pacs`; nothing happens before its `run`."""


class ImageArchive(Protocol):
    """The images of one site: a PACS across the network, or an archive on this machine (DB.SO.165)."""

    @property
    def name(self) -> str:
        """Its name for operators."""

    @property
    def patience(self) -> float:
        """Longest pause it bears while it gives images, in seconds (architecture.md rule 5)."""

    async def find_study(self, study_uid: str) -> Study | None:
        """List the study's instances, or None when it holds none (DB.SO.14).

        Raises `PacsCommunicationError` (E003).
        """

    async def verify(self) -> None:
        """Verify that it answers at all. Raises `PacsCommunicationError`."""

    async def holds(self, study_uid: str) -> bool:
        """Say whether it lists instances of the study. Raises `PacsCommunicationError`."""

    def retrieval(self, receiver: MoveReceiver, needed: Collection[str] | None = None) -> MoveRun:
        """Prepare to bring a series to `receiver`; nothing happens before its `run`.

        Without any one of `needed` (None: of whatever there is) the answer is worth nothing: an archive
        that knows beforehand in which form it gives them raises `NotAcceptable` before it gives any.
        """


#: The archive of each site, by the site's name.
Archives = Mapping[str, ImageArchive]


@attrs.frozen
class KnownStudy:
    """A study of a native archive with a KOS in the DMP, or on its way there (DB.SO.27)."""

    study_uid: str
    #: Its state when it was last known to agree with its KOS, empty for gone; None when never looked at.
    mark: str | None
    #: True when it is to be compared.
    due: bool


class StudyMemory(Protocol):
    """What is durably known of the studies of native archives."""

    async def cursor(self, site: str) -> str | None:
        """Return where the last look ended, None before the first."""

    async def known(self, site: str, after: str, limit: int, *, only: str = "") -> list[KnownStudy]:
        """Return studies with a KOS whose UID follows `after`, in order.

        `only` limits them to those that are "due", or "new": never looked at.
        """

    async def note(self, site: str, changed: Collection[str], cursor: str | None) -> list[str]:
        """Make the known ones among `changed` due and keep the cursor, in one transaction.

        Returns those that are due now. Without a cursor the old one stays.
        """

    async def settle(self, site: str, marks: Mapping[str, str]) -> None:
        """Keep the marks of studies that agree with their KOS, or are on their way to."""
