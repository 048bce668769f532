"""A real database for every test: a SQLite file, and PostgreSQL when a private server can be started."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from sqlalchemy import make_url

from drimbox.sim.postgres import Cluster
from drimbox.store.archive import Archive
from drimbox.store.audit import AuditStore
from drimbox.store.database import Database
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.inbox import Inbox
from drimbox.store.notices import NoticeStore
from drimbox.store.outbox import Outbox
from drimbox.store.queue import LEASE
from drimbox.store.upgrade import upgrade
from tests.store.samples import TestClock

#: The databases of a test: with PostgreSQL as a real peer, which CI must have.
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.peer("postgres"))]
#: For a test of what only SQLite does: it has no other form.
sqlite_only = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def upgraded(postgresql: Cluster) -> str:
    """Name of a database with the tables in it, to be copied: an upgrade for each test takes long."""
    name = postgresql.create()
    upgrade(make_url(postgresql.url(name)))
    return name


def _url(request: pytest.FixtureRequest, folder: Path, template: str) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{folder / 'drimbox.db'}"
        return
    cluster: Cluster = request.getfixturevalue("postgresql")
    name = cluster.create(request.getfixturevalue(template) if template else "template1")
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database that holds nothing; on PostgreSQL it has its tables already."""
    yield from _url(request, tmp_path, "upgraded")


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without any table."""
    yield from _url(request, tmp_path, "")


@pytest_twisted.async_yield_fixture
async def database(url: str) -> AsyncIterator[Database]:
    from twisted.internet import reactor

    database = Database(url, reactor=reactor)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@attrs.frozen
class Stores:
    """Everything over one database."""

    database: Database
    clock: TestClock
    inbox: Inbox
    jobs: FeedJobs
    outbox: Outbox
    archive: Archive
    audit: AuditStore
    notices: NoticeStore


def stores_of(
    database: Database,
    clock: TestClock,
    node: str = "main",
    *,
    shared: bool = False,
    lease: float = LEASE,
    home: str = "",
) -> Stores:
    """Return the stores of a node; with `home` its rows are those of the process in that folder only."""
    queues = [
        each(database, clock=clock, node=node, shared=shared, lease=lease)
        for each in (Inbox, FeedJobs, Outbox)
    ]
    for queue in queues:
        if home:
            queue.seat(home)
    return Stores(
        database,
        clock,
        *queues,  # type: ignore[arg-type]
        Archive(database, clock=clock),
        AuditStore(database, clock=clock),
        NoticeStore(database, clock=clock),
    )


@pytest.fixture
def stores(database: Database, clock: TestClock) -> Stores:
    return stores_of(database, clock)
