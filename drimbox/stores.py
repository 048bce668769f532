"""Everything durable, on one database: made here, opened and closed in one place."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError

from drimbox import __version__
from drimbox.clock import SystemClock
from drimbox.config import Config
from drimbox.source.backoff import backoff
from drimbox.store.archive import Archive
from drimbox.store.audit import AuditStore
from drimbox.store.auditexport import AuditExport
from drimbox.store.database import Database
from drimbox.store.deliveries import NoticeDeliveries
from drimbox.store.errors import StoreError
from drimbox.store.exports import ArchiveListing
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.forgotten import Forgotten
from drimbox.store.homologation import LoadedKos
from drimbox.store.imports import Imports
from drimbox.store.inbox import Inbox
from drimbox.store.keytitles import KeyTitles
from drimbox.store.mending import Mending
from drimbox.store.native import NativeMemory
from drimbox.store.nodes import Home, Nodes
from drimbox.store.notices import NoticeStore
from drimbox.store.openrecords import OpenRecords
from drimbox.store.outbox import Outbox
from drimbox.store.parking import ParkedRows
from drimbox.store.queue import Patience, Queue
from drimbox.store.queuelist import QueueList
from drimbox.store.reports import Reports
from drimbox.store.speedtests import SpeedTestStore
from drimbox.store.statistics import StatisticsStore
from drimbox.store.walks import Walks

_MINUTE = 60.0


class Stores:
    """Everything durable, on one database."""

    def __init__(self, config: Config, reactor: Any, clock: SystemClock) -> None:
        self.database = Database(
            config.store_url,
            reactor=reactor,
            threads=config.store.threads,
            exclusive=True,
            password_file=config.store.password_file,
        )
        self._config = config
        self._clock = clock
        self._home: Home | None = None
        #: This node among those of the store, once open.
        self.nodes: Nodes
        #: Records of its deliveries under way, once open.
        self.open_records: OpenRecords
        self.archive = Archive(self.database, clock=clock)
        self.reports = Reports(self.database)
        self.audit = AuditStore(self.database, clock=clock)
        atna = config.audit.atna
        lease = 2 * atna.timeout + _MINUTE if atna is not None else _MINUTE
        self.audit_export = AuditExport(self.database, clock=clock, lease=lease, node=config.drimbox.node)
        self.notices = NoticeStore(self.database, clock=clock)
        self.notice_deliveries = NoticeDeliveries(self.database, clock=clock)
        self.parked = ParkedRows(self.database, clock=clock)
        self.rows = QueueList(self.database, clock=clock)
        self.mending = Mending(self.database, clock=clock)
        feed = config.feed
        patience = Patience(
            max_failures=feed.max_failures,
            wait=partial(backoff, first=feed.retry_first, longest=feed.retry_max),
            longest=timedelta(seconds=max(feed.retry_max, config.dmp.retry_max)),
        )
        held: Any = {
            "clock": clock,
            "node": config.drimbox.node,
            "lease": config.store.lease,
            "patience": patience,
            "shared": True,
        }
        self.inbox = Inbox(self.database, **held)
        self.jobs = FeedJobs(self.database, **held)
        self.outbox = Outbox(self.database, **held)
        self.measures = SpeedTestStore(self.database, clock=clock)
        self.statistics = StatisticsStore(self.database, clock=clock)
        self.natives = NativeMemory(self.database)
        self.listing = ArchiveListing(self.database)
        self.imports = Imports(self.database, clock=clock)
        self.loaded = LoadedKos(self.database, clock=clock)
        self.walks = Walks(self.database, clock=clock)
        self.key_titles = KeyTitles(self.database, clock=clock)
        self.forgotten = Forgotten(self.database, clock=clock)

    @property
    def queues(self) -> dict[str, Queue]:
        """The queues by name, in the order of the way through them."""
        return {"inbox": self.inbox, "feed": self.jobs, "outbox": self.outbox}

    async def waiting(self) -> int:
        """Count what is on its way through the queues."""
        return sum([(await queue.backlog()).waiting for queue in self.queues.values()])

    async def answers(self) -> bool:
        """Say whether the database answers and takes work."""
        try:
            await self.database.run(lambda connection: connection.execute(select(1)))
        except Exception:
            # Whatever it says: closed, busy, gone.
            return False
        return True

    async def open(self) -> None:
        """Open the database and join the nodes that work on it; take back what a killed process held.

        Raises what `Database.open` raises, and `NodeRefused`.
        """
        await self.database.open()
        try:
            await self._join()
            for queue in self.queues.values():
                await queue.release_all()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave the other nodes, and close the database."""
        if hasattr(self, "nodes"):
            # A database that is away learns it from the end of the lease.
            with suppress(DatabaseError, StoreError):
                await self.nodes.leave()
        await self.database.close()
        if self._home is not None:
            self._home.release()

    async def _join(self) -> None:
        config = self._config
        # The file of SQLite has one owner, who needs no other proof that the last one is dead.
        home = "sqlite"
        if self.database.dialect != "sqlite":
            self._home = Home(config.drimbox.state_dir)
            home = self._home.id
        self.nodes = Nodes(
            self.database,
            clock=self._clock,
            name=config.drimbox.node,
            home=home,
            version=__version__,
            lease=config.store.lease,
            titles=[f"{s.pacs.ae_title}/{title}" for s in config.sites if s.pacs for title in s.pacs.pool],
            dicom=f"{config.dicom.host}:{config.dicom.port}",
            shared=True,
        )
        await self.nodes.join()
        if self._home is not None:
            for queue in self.queues.values():
                queue.seat(home)
        self.open_records = OpenRecords(
            self.database, clock=self._clock, node_name=config.drimbox.node, home=home
        )
