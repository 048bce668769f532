"""A real database for every test: a SQLite file, and PostgreSQL when a private server can be started."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from sqlalchemy import create_engine, text

from drimbox.store.archive import Archive
from drimbox.store.audit import AuditStore
from drimbox.store.database import Database
from drimbox.store.feed_jobs import FeedJobs
from drimbox.store.inbox import Inbox
from drimbox.store.notices import NoticeStore
from drimbox.store.outbox import Outbox
from tests.store.samples import TestClock

_NAMES = itertools.count(1)


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL (with `{name}` for the database) of a private server on a Unix socket; skips without one."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server program")
    folder = Path(tempfile.mkdtemp(prefix="drimbox-pg-"))
    data = folder / "data"
    prefix: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            shutil.rmtree(folder)
            pytest.skip("root without a postgres account to run the server")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        prefix = ["runuser", "-u", "postgres", "--"]

    def call(*command: str) -> None:
        subprocess.run(
            [*prefix, *command],
            check=True,
            timeout=60,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    try:
        call(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "drimbox", "-E", "UTF8", "-N")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        log = str(folder / "log")
        control = str(programs / "pg_ctl")
        call(control, "-D", str(data), "-w", "-l", log, "-o", options, "start")
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start: {error}")
    try:
        yield f"postgresql+psycopg://drimbox@/{{name}}?host={folder}"
    finally:
        call(control, "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'drimbox.db'}"
    pattern: str = request.getfixturevalue("postgresql")
    name = f"test{next(_NAMES)}"
    engine = create_engine(pattern.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return pattern.format(name=name)


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


def stores_of(database: Database, clock: TestClock, node: str = "main") -> Stores:
    return Stores(
        database,
        clock,
        Inbox(database, clock=clock, node=node),
        FeedJobs(database, clock=clock, node=node),
        Outbox(database, clock=clock, node=node),
        Archive(database, clock=clock),
        AuditStore(database, clock=clock),
        NoticeStore(database, clock=clock),
    )


@pytest.fixture
def stores(database: Database, clock: TestClock) -> Stores:
    return stores_of(database, clock)
