"""The way of a message to the record: read, matched with the archive, published; one worker a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from drimbox.assembly.ground import Ground
from drimbox.ports import Archives, FeedJob, InboxMessage
from drimbox.presence import Presence
from drimbox.source.feed import Doors as FeedDoors
from drimbox.source.feed import Feed
from drimbox.source.keynotes import KeyNotes
from drimbox.source.link import Link
from drimbox.source.precedence import Precedence
from drimbox.source.publication import Doors as PublicationDoors
from drimbox.source.publication import Publication
from drimbox.source.rejections import RejectionNotes
from drimbox.store.failures import blames_row, describe
from drimbox.store.outbox import OutboxItem
from drimbox.store.queue import Queue
from drimbox.worker import Worker
from drimbox.xds.client import DmpClient

Row = TypeVar("Row", InboxMessage, FeedJob, OutboxItem)


class FeedLine:
    """The three workers from the inbox to the DMP; each wakes the next.

    `forget` takes a study of a site out of the cache of every node; `removed` out of this node's own: the
    store itself tells the others of what was removed from the record (`store.outbox`).
    """

    def __init__(
        self,
        ground: Ground,
        presence: Presence,
        record: DmpClient,
        archives: Archives,
        link: Link,
        *,
        forget: Callable[[str, str], Awaitable[None]],
        removed: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._ground = ground
        self._presence = presence
        self._record = record
        self._forget = forget
        self._removed = removed
        self.precedence = Precedence(ground.reactor)
        self.doors = self._make_doors(archives, link)
        feed, publication = Feed(ground.config, self.doors), self._make_publication()
        stores, parallel = ground.stores, ground.config.feed.parallel
        self.publishing = self._worker(
            "publication",
            stores.outbox,
            stores.outbox.take,
            publication.publish,
            ground.config.dmp.parallel,
        )

        async def match(job: FeedJob) -> None:
            await feed.match(job)
            self.publishing.wake()

        self.matching = self._worker("matching", stores.jobs, stores.jobs.take, match, parallel)

        async def read(message: InboxMessage) -> None:
            await feed.read(message)
            self.matching.wake()

        self.reading = self._worker("reading", stores.inbox, stores.inbox.take, read, parallel)

    @property
    def workers(self) -> list[Worker[Any]]:
        """The workers, in the order of the way."""
        return [self.reading, self.matching, self.publishing]

    def wake(self, queue: str) -> None:
        """Somebody put rows of a queue ("inbox", "feed", "outbox") back to work."""
        workers: dict[str, Worker[Any]] = {
            "inbox": self.reading,
            "feed": self.matching,
            "outbox": self.publishing,
        }
        workers[queue].wake()

    async def compare(self, study_uid: str) -> bool:
        """KOS and archive differ: make the record match the archive (DB.SO.190, DB.SO.27).

        Returns False when that is on its way already, or the study has no job.
        """
        queued = await self._ground.stores.jobs.again(study_uid)
        if queued:
            self.matching.wake()
        return queued

    def _make_doors(self, archives: Archives, link: Link) -> FeedDoors:
        ground, stores = self._ground, self._ground.stores
        key_notes = KeyNotes(ground.reactor, ground.defer) if ground.config.wado.instance_level else None
        return FeedDoors(
            messages=stores.inbox,
            jobs=stores.jobs,
            reports=stores.reports,
            archive=stores.archive,
            archives=archives,
            record=self._record,
            audit=stores.audit,
            notices=stores.notices,
            clock=ground.clock,
            in_thread=ground.defer,
            key_notes=key_notes,
            rejections=RejectionNotes(ground.reactor, ground.defer, stores.key_titles),
            forget=self._forget_everywhere,
            doubt=link.doubt,
        )

    def _make_publication(self) -> Publication:
        stores = self._ground.stores
        return Publication(
            self._ground.config,
            PublicationDoors(
                outbox=stores.outbox,
                archive=stores.archive,
                record=self._record,
                audit=stores.audit,
                notices=stores.notices,
                clock=self._ground.clock,
            ),
            # What was removed from the record leaves the cache too (requirements.md 2.7).
            removed=self._removed,
        )

    async def _forget_everywhere(self, study_uid: str) -> None:
        for site in self._ground.config.sites:
            await self._forget(site.name, study_uid)

    def _worker(
        self,
        name: str,
        queue: Queue,
        take: Callable[[datetime, int], Awaitable[Sequence[Row]]],
        work: Callable[[Row], Awaitable[None]],
        parallel: int,
    ) -> Worker[Row]:
        """Make the worker of one queue."""
        ground = self._ground
        return Worker(
            name,
            take=lambda limit: take(ground.clock.now(), limit),
            work=work,
            broken=partial(_broke, queue),
            renew=partial(self._renew, queue),
            parallel=parallel,
            clock=ground.reactor,
            hold=self._hold,
            renew_every=ground.config.store.lease / 4,
        )

    def _hold(self) -> float:
        """Return for how many seconds no row is to be taken."""
        return max(self.precedence.wait(), self._presence.hold())

    async def _renew(self, queue: Queue, rows: Sequence[InboxMessage | FeedJob | OutboxItem]) -> None:
        """Keep rows of a queue in our hands while they are worked on."""
        await queue.renew([row.id for row in rows])


async def _broke(queue: Queue, row: InboxMessage | FeedJob | OutboxItem, error: Exception) -> bool:
    return await queue.broke(row.id, describe(error), blame=blames_row(error))
