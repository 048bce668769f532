"""One gateway that is fed: a RIS before it, a PACS that holds every study, a simulated DMP behind it.

Five processes: the RIS (`bench.ris`), the gateway as deployed, the stand-in PACS (`bench.finder`), the
simulated DMP (`bench.gateway`, which checks every signature and is no part of the gateway), and the bench,
which looks at the gateway's store from outside, by reading only.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from bench.finder import FinderPacs
from bench.gateway import Extra, Gateway
from bench.processes import cpu_seconds
from bench.ris import SMALL, Ris, Sending
from drimbox.sim.peers import free_port

#: AE title of the gateway: a feed takes none, a gateway has one.
_POOL = ("DRIMBOX1",)
#: Seconds between two looks at the store, while something short and while something long is measured.
_SOON, _SELDOM = 0.002, 0.25
#: Waits after a failure as an installation has them: a stand for tests has shorter ones.
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "dmp": {"retry_first": "10", "retry_max": "900"},
    "feed": {"retry_first": "10", "retry_max": "900"},
}


class NotPublished(Exception):
    """Not every report ended in a publication: the figure would be worth nothing."""


@attrs.frozen
class Steps:
    """The instants of one report on its way, of the monotonic clock (architecture, "Feed")."""

    #: Message read, its jobs made.
    read: float
    #: Study found, manifest made and queued.
    matched: float
    #: The DMP holds it, and the archive knows.
    published: float


@attrs.frozen
class Work:
    """Processor seconds of every process since some moment."""

    gateway: float
    dmp: float
    pacs: float
    ris: float

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.gateway - other.gateway, self.dmp - other.dmp, self.pacs - other.pacs, self.ris - other.ris
        )


class FedGateway:
    """The five of them; a context manager. `backlog` reports wait in the inbox when it starts."""

    def __init__(
        self, folder: Path, *, series: int, instances: int, backlog: int = 0, extra: Extra | None = None
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pacs = FinderPacs(series, instances, log=folder / "finder.log")
        self._ris = Ris(log=folder / "ris.log")
        self.gateway = Gateway(
            folder / "gateway",
            self._pacs,
            port=free_port(),
            pool=_POOL,
            extra=_DEFAULTS if extra is None else extra,
            backlog=backlog,
        )
        self._stack = ExitStack()
        #: Reports sent or waiting so far, which are the numbers of the next.
        self.reports = backlog

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self._pacs, self._ris, self.gateway):
                stack.enter_context(part)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def send(self, count: int, *, connections: int = 1, pdf: int = SMALL) -> Sending:
        """Send the next reports and wait for their acknowledgements."""
        first, self.reports = self.reports, self.reports + count
        return self._ris.send(self.gateway.hl7_port, first, count, connections=connections, pdf=pdf)

    def work(self) -> Work:
        """Return what every process has worked so far."""
        return Work(
            cpu_seconds(self.gateway.pid),
            cpu_seconds(self.gateway.world_pid),
            cpu_seconds(self._pacs.pid),
            cpu_seconds(self._ris.pid),
        )

    def wait_published(self, *, seconds: float, soon: bool = False) -> float:
        """Wait until every report is published; return when that was seen. Raises `NotPublished`."""
        limit = time.monotonic() + seconds
        with closing(self._open()) as store:
            while (count := published(store)) < self.reports:
                if time.monotonic() > limit or _lost(store):
                    raise NotPublished(f"{count} publications of {self.reports} reports")
                time.sleep(_SOON if soon else _SELDOM)
        return time.monotonic()

    def published(self) -> int:
        """Count the publications so far."""
        with closing(self._open()) as store:
            return published(store)

    def steps(self, number: int) -> Steps:
        """Return when report `number` had passed each step, as its rows tell."""
        query = (
            "select inbox.finished_at, feed_job.finished_at, outbox.finished_at from inbox"
            " join feed_job on feed_job.message_id = inbox.id"
            " join kos on kos.study_uid = feed_job.study_uid join outbox on outbox.kos_id = kos.id"
            " where inbox.id = ?"
        )
        with closing(self._open()) as store:
            (row,) = store.execute(query, (number + 1,)).fetchall()
        return Steps(*(_instant(text) for text in row))

    def ended(self, table: str) -> list[float]:
        """Return when each row of a queue ended, in that order, of the monotonic clock."""
        query = f"select finished_at from {table} where state = 'done' order by finished_at"
        with closing(self._open()) as store:
            return [_instant(text) for (text,) in store.execute(query)]

    def store_size(self) -> int:
        """Return the bytes of the store on disk."""
        files = self.gateway.database.parent.glob("drimbox.db*")
        return sum(path.stat().st_size for path in files)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.gateway.database}?mode=ro", uri=True)


def published(store: sqlite3.Connection) -> int:
    """Count the publications that have ended well."""
    return int(store.execute("select count(*) from outbox where state = 'done'").fetchone()[0])


def _lost(store: sqlite3.Connection) -> int:
    """Count what has ended otherwise, and will never be published."""
    gone = "select (select count(*) from outbox where state = 'failed')"
    gone += " + (select count(*) from inbox where state = 'failed')"
    return int(store.execute(gone).fetchone()[0])


def _instant(text: Any) -> float:
    """Turn an instant of the store into one of the monotonic clock."""
    wall = datetime.fromisoformat(str(text)).replace(tzinfo=UTC).timestamp()
    return wall - time.time() + time.monotonic()
