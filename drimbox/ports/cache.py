"""Series kept on disk as the PACS sent them (DB.SO.40)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Protocol

import attrs

from drimbox.dicom.elements import Buffer


@attrs.frozen
class CachedInstance:
    """One instance in the cache, as it came from the PACS: the data set in the syntax it was sent in."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    #: Bytes of the data set.
    size: int


class CacheDamaged(Exception):
    """What the disk gave back is not what was written to it. The entry is gone: the PACS has the images."""


class InstanceWriter(Protocol):
    """One instance on its way into the cache. Nothing here waits, fails, or slows the delivery."""

    def write(self, data: Buffer) -> None:
        """Take the next bytes of the data set, as they came from the PACS."""

    def end(self) -> None:
        """Say that the data set is whole."""

    def drop(self) -> None:
        """Forget the instance: refused, or cut short."""


class CacheWriter(Protocol):
    """One series on its way into the cache."""

    def add(self, sop_instance_uid: str, sop_class_uid: str, transfer_syntax_uid: str) -> InstanceWriter:
        """Begin an instance; several may be written at once."""

    async def commit(self, due: Collection[str]) -> bool:
        """Keep the series when it holds exactly `due`, each instance whole; say whether it is kept.

        Whatever the answer, the writer is over. Never raises for a disk that fails or is full.
        """

    async def discard(self) -> None:
        """Forget everything. Harmless after `commit` or another `discard`."""


class CachedSeries(Protocol):
    """A complete series of the cache, held open: it is read whole even if it is evicted meanwhile."""

    @property
    def instances(self) -> tuple[CachedInstance, ...]:
        """The instances, in the order in which the PACS began to send them."""

    def read(self, instance: CachedInstance) -> AsyncIterator[bytes]:
        """Yield the data set in blocks of at most 1 MiB, each checked before it is given out.

        Raises `CacheDamaged`, before the first block or after any.
        """

    async def close(self) -> None:
        """Let go of it. Harmless when repeated."""


class SeriesCache(Protocol):
    """Series kept on disk as the PACS sent them (DB.SO.40)."""

    async def find(
        self, site: str, study_uid: str, series_uid: str, due: Collection[str]
    ) -> CachedSeries | None:
        """Return the series when the cache holds exactly the instances `due`, else None.

        `due` is what the KOS of the request lists: an entry that lacks some is of no use, one that has
        more may hold what was since removed from the PACS. Both are dropped. Every check of the request
        is the caller's, before this. The caller must `close` what it gets.
        """

    def begin(self, site: str, study_uid: str, series_uid: str) -> CacheWriter | None:
        """Begin to keep a series; None when it is not worth trying (off, or being written already)."""

    async def purge(self, site: str, study_uid: str) -> None:
        """Remove every series of a study, those being written included.

        When this returns none of them is found any more; who reads one already reads it to its end.
        """


@attrs.frozen
class ForgottenStudy:
    """A study that every cache lets go; numbers grow."""

    number: int
    site: str
    study_uid: str


class ForgottenStudies(Protocol):
    """What the nodes of one store tell each other of their caches."""

    async def tell(self, site: str, study_uid: str) -> None:
        """Have every node forget a study of a site."""

    async def since(self, number: int, most: int) -> list[ForgottenStudy]:
        """Return what was told after a number, at most so many, in order."""
