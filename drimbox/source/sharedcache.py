"""The cache of series of one node among several: what leaves the cache of one leaves that of all.

Each node keeps its own series on its own disk. That a study is withdrawn, or has changed in its PACS, one
node learns; it tells the store, and the others let the study go when they next look: every few seconds,
and before anything of theirs is given out. A store that does not answer costs the use of the cache, nothing
else: whoever cannot know whether a series still stands asks the PACS.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from twisted.logger import Logger

from drimbox.ports import CachedSeries, CacheWriter, ForgottenStudies, SeriesCache

#: Studies read at once.
_PAGE = 500


class OwnCache(SeriesCache, Protocol):
    """What is asked of the node's own cache besides."""

    def holds(self, site: str, study_uid: str, series_uid: str) -> bool:
        """Say whether a series is kept, whatever it is worth."""

    def studies(self) -> Collection[tuple[str, str]]:
        """Return site and StudyInstanceUID of all that is kept or being written."""


class SharedCache:
    """A `SeriesCache` that knows what the other nodes have forgotten."""

    log = Logger()

    def __init__(self, own: OwnCache, told: ForgottenStudies) -> None:
        self._own = own
        self._told = told
        #: The last number this cache has followed. It begins anew with the process: its disk is older.
        self._last = 0

    async def find(
        self, site: str, study_uid: str, series_uid: str, due: Collection[str]
    ) -> CachedSeries | None:
        """Return the series as `SeriesCache.find` does, unless some node has forgotten its study."""
        if self._own.holds(site, study_uid, series_uid):
            try:
                await self.look()
            except Exception as error:
                self.log.warn("series cache not used, the store does not answer: {why!r}", why=error)
                return None
        return await self._own.find(site, study_uid, series_uid, due)

    def begin(self, site: str, study_uid: str, series_uid: str) -> CacheWriter | None:
        """Begin to keep a series."""
        return self._own.begin(site, study_uid, series_uid)

    async def purge(self, site: str, study_uid: str) -> None:
        """Remove every series of a study here, then have the other nodes do so.

        Raises what the store raises when it is not there.
        """
        await self._own.purge(site, study_uid)
        await self._told.tell(site, study_uid)

    async def look(self) -> None:
        """Forget what was told since the last look. Raises what the store raises when it is not there."""
        while True:
            fresh = await self._told.since(self._last, _PAGE)
            for study in {(each.site, each.study_uid) for each in fresh}.intersection(self._own.studies()):
                await self._own.purge(*study)
            # Only now: who looks meanwhile must not find what is still there.
            self._last = max([self._last, *(each.number for each in fresh)])
            if len(fresh) < _PAGE:
                return
