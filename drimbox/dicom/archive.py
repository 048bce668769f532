"""A PACS as the images of one site (a `ports.ImageArchive`): the proxy profile."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from drimbox.config import Pacs
from drimbox.dicom.moving import MoveReceiver
from drimbox.model import Study
from drimbox.ports import MoveRun, Pacses, PacsMover


@attrs.frozen
class PacsArchive:
    """One PACS, asked by C-FIND, whose images come by C-MOVE."""

    pacs: Pacs
    questions: Pacses
    mover: PacsMover

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.pacs.name

    @property
    def patience(self) -> float:
        """Longest pause put on its associations, seconds."""
        return self.pacs.patience

    async def find_study(self, study_uid: str) -> Study | None:
        """List the study's instances, or None when this PACS does not hold it (DB.SO.14).

        Raises `PacsCommunicationError` (E003).
        """
        return await self.questions.find_study(self.pacs, study_uid)

    async def verify(self) -> None:
        """Verify the link by C-ECHO. Raises `PacsCommunicationError`."""
        await self.questions.echo(self.pacs)

    async def holds(self, study_uid: str) -> bool:
        """Say whether the PACS lists instances of the study. Raises `PacsCommunicationError`."""
        return await self.questions.holds(self.pacs, study_uid)

    def retrieval(self, receiver: MoveReceiver, needed: Collection[str] | None = None) -> MoveRun:
        """Prepare one C-MOVE; in which form a PACS sends is only known once it proposes it."""
        return self.mover.retrieval(self.pacs, receiver)
