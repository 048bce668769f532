"""What the archive itself says of a study: a witness that needs no PACS (DB.SO.31).

When only the address of a site changes, what each study holds is what was published last: the list of its
series and instances kept with its submission, and the key images its manifest marks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from drimbox.config import Site
from drimbox.errors import FeedError
from drimbox.kos.reading import KeyImage, ManifestRefused, read_manifest
from drimbox.model import Study
from drimbox.source.feed_doors import LatestKos
from drimbox.source.judging import Reading
from drimbox.source.keynotes import Marks
from drimbox.source.rejections import RejectionNotes


class ArchiveWitness:
    """Answers as the site did when its newest KOS was made (a `judging.Witness`)."""

    def __init__(
        self,
        archive: LatestKos,
        rejections: RejectionNotes,
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
    ) -> None:
        self._archive = archive
        self._rejections = rejections
        self._in_thread = in_thread

    async def study(self, reading: Reading, site: Site) -> Study | None:
        """Return the study of the newest KOS when that is of `site`. Raises `FeedError` (E008)."""
        latest = await self._archive.latest(reading.job.study_uid, with_data=False)
        if latest is None or latest.site != site.name:
            return None
        submission = await self._archive.submission(latest.id)
        if submission is None:
            raise FeedError("l'archive ne dit pas ce que contient l'examen")
        return submission.study

    async def marks(self, reading: Reading, site: Site, study: Study) -> Marks:
        """Return the key images that the newest KOS marks. Raises `FeedError` when it cannot be read."""
        latest = await self._archive.latest(reading.job.study_uid)
        if latest is None:
            return Marks()
        data = latest.data

        def read() -> dict[str, tuple[KeyImage, ...]]:
            return {
                instance.sop_instance_uid: instance.key_images
                for series in read_manifest(data).series
                for instance in series.instances
                if instance.key_images
            }

        try:
            images = await self._in_thread(read)
        except ManifestRefused as refusal:
            raise FeedError(f"KOS archivé illisible : {refusal}") from None
        assert isinstance(images, dict)
        return Marks(images)

    async def rejections(self, reading: Reading, site: Site, study: Study) -> frozenset[str]:
        """Return the rejection notes that are known: the archive may list some of before they were."""
        return (await self._rejections.among(study)).notes
