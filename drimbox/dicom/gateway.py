"""Questions to a PACS as the use-cases ask them (an implementation of `ports.Pacses`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import attrs
from twisted.internet.interfaces import IReactorTime

from drimbox.config import Pacs
from drimbox.dicom.directory import find_study
from drimbox.dicom.moving import Abandoned
from drimbox.dicom.requestor import VERIFICATION, Links, PacsBusy, verify
from drimbox.dicom.retrieval import ClassLearner
from drimbox.errors import ImageError, PacsCommunicationError
from drimbox.model import Series, Study
from drimbox.ports import PacsMover

#: Seconds a look whether a PACS is there waits for one of our associations to end.
_SOON = 1.0


class PacsGateway:
    """Finds studies, and learns what a PACS does not tell.

    `learn_wait` is how long a question may wait for an AE title, in seconds: it is in no hurry, images
    come first.
    """

    def __init__(
        self,
        links: Links,
        mover: PacsMover,
        clock: IReactorTime,
        *,
        find: Callable[[Pacs, str], Awaitable[Study | None]] | None = None,
        learn_wait: float = 120.0,
    ) -> None:
        """`find` asks a PACS by C-FIND, as `directory.find_study` does when none is given."""
        self._find = partial(find_study, links) if find is None else find
        self._links = links
        self._mover = mover
        self._clock = clock
        self._learn_wait = learn_wait

    async def find_study(self, pacs: Pacs, study_uid: str) -> Study | None:
        """List a study with the SOP class of every instance, or return None when the PACS has none.

        Where C-FIND gives no SOP class (an optional key), it is learnt from the C-STORE commands of a
        C-MOVE whose data is dropped; never guessed from the modality (decisions.md). Raises
        `PacsCommunicationError` (E003).
        """
        study = await self._find(pacs, study_uid)
        if study is None:
            return None
        series = [await self._complete(pacs, study_uid, each) for each in study.series]
        return attrs.evolve(study, series=tuple(series))

    async def echo(self, pacs: Pacs) -> None:
        """Verify the link, on one of the associations that the PACS allows us (DB.SO.121).

        Raises `PacsCommunicationError` (E003).
        """
        await self._verify(pacs, None)

    async def is_there(self, pacs: Pacs) -> None:
        """Verify the link as `echo` does; a PACS busy with what we asked of it is there (DB.SO.183).

        Raises `PacsCommunicationError` (E003).
        """
        with suppress(PacsBusy):
            await self._verify(pacs, _SOON)

    async def _verify(self, pacs: Pacs, wait: float | None) -> None:
        requestor = await self._links.open(pacs, [VERIFICATION], wait=wait)
        try:
            await verify(requestor)
        finally:
            await self._links.done(requestor)

    async def holds(self, pacs: Pacs, study_uid: str) -> bool:
        """Say whether a C-FIND lists instances of the study; nothing is learnt by a C-MOVE.

        Raises `PacsCommunicationError` (E003).
        """
        study = await self._find(pacs, study_uid)
        return study is not None and bool(study.instance_count)

    async def _complete(self, pacs: Pacs, study_uid: str, series: Series) -> Series:
        classes = {each.sop_instance_uid: each.sop_class_uid for each in series.instances}
        missing = {uid for uid, sop_class in classes.items() if not sop_class}
        if not missing:
            return series
        avoid: set[str] = set()
        while missing:
            learner = ClassLearner(self._clock, missing, avoid)
            retrieval = self._mover.retrieval(pacs, learner)
            try:
                await retrieval.run(study_uid, series.series_uid, wait=self._learn_wait)
            except (ImageError, Abandoned) as error:
                raise PacsCommunicationError(
                    f"classes SOP inconnues, C-MOVE impossible : {error}"
                ) from error
            classes |= learner.classes
            missing -= learner.classes.keys()
            if not learner.chosen_among:
                break
            # DCMTK proposes what it cannot convert to: what failed in one syntax is tried in the next.
            avoid |= learner.chosen_among
        if missing:
            raise PacsCommunicationError(f"classe SOP inconnue de {len(missing)} instances ({pacs.name})")
        instances = tuple(
            attrs.evolve(instance, sop_class_uid=classes[instance.sop_instance_uid])
            for instance in series.instances
        )
        return attrs.evolve(series, instances=instances)
