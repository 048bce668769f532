"""Which instances of a study are rejection notes: the KOS does not list them (DB.SO.25, interfaces.md 3.2).

A note says what went; listed, it would be offered as if it were an image, and a study of which the PACS
keeps nothing but the note would never leave the record. A key object is known by its title: from its
reception (`changenotes`), else fetched once. Titles never change and are remembered, so that the same
study gives the same KOS every time, to the feed and to a resynchronisation, at hand or not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

import attrs
from twisted.internet.interfaces import IReactorTime

from drimbox.kos.changes import MAX_BYTES, REJECTIONS
from drimbox.kos.keyimages import MAX_SERIES
from drimbox.kos.titles import key_objects, title_of
from drimbox.model import Study, is_uid
from drimbox.ports import ImageArchive, InThread
from drimbox.source.keynotes import Collector

#: Bytes of key objects of one series in memory at once.
_ROOM: Final = 4 * MAX_BYTES


class Titles(Protocol):
    """Remembers the titles of key objects."""

    async def known(self, sop_instance_uids: Collection[str]) -> dict[str, str]:
        """Return the titles of those that are known."""

    async def learn(self, titles: Mapping[str, str]) -> None:
        """Remember titles; the first one of an object counts."""


@attrs.frozen
class Rejected:
    """What is known of the rejection notes in a study."""

    notes: frozenset[str] = frozenset()
    #: False when some key objects could not be fetched: there may be more.
    complete: bool = True


class RejectionNotes:
    """Tells the rejection notes of studies."""

    def __init__(self, clock: IReactorTime, in_thread: InThread, titles: Titles) -> None:
        self._clock = clock
        self._in_thread = in_thread
        self._titles = titles

    async def learn(self, sop_instance_uid: str, title: str) -> None:
        """Remember what a key object is that came to us."""
        if is_uid(sop_instance_uid):
            await self._titles.learn({sop_instance_uid: title})

    async def among(self, study: Study, archive: ImageArchive | None = None) -> Rejected:
        """Return the rejection notes that `study` lists, asking `archive` for key objects nobody knows.

        Only a key object is ever one, whatever somebody told of a UID. Without archive, what is known
        must do. Never raises for what the archive does.
        """
        by_series = key_objects(study)
        if not by_series:
            return Rejected()
        every = frozenset().union(*by_series.values())
        titles = await self._titles.known(every)
        complete = True
        unknown = [
            (series, uids - titles.keys()) for series, uids in by_series.items() if uids - titles.keys()
        ]
        if archive is not None:
            for series_uid, uids in unknown[:MAX_SERIES]:
                learned, whole = await self._ask(archive, study.study_uid, series_uid, uids)
                titles |= learned
                complete &= whole
        return Rejected(frozenset(uid for uid in every if titles.get(uid) in REJECTIONS), complete)

    async def _ask(
        self, archive: ImageArchive, study_uid: str, series_uid: str, uids: frozenset[str]
    ) -> tuple[dict[str, str], bool]:
        """Fetch key objects of one series; return their titles, and whether they all came."""
        collector = Collector(self._clock, uids, max_bytes=MAX_BYTES, room=_ROOM)
        whole = await collector.collect(archive, study_uid, series_uid)
        objects = collector.objects
        learned = await self._in_thread(lambda: {uid: title_of(data) for uid, data in objects.items()})
        await self._titles.learn(learned)
        return learned, whole
