"""Transactions in threads of their own, so that the reactor never waits for a disk.

Theory of operation. `run(work)` queues `work`, a plain function of a SQLAlchemy `Connection`, for a pool
thread; there it runs inside one transaction, committed when it returns and rolled back when it raises;
then its result or its error comes back to the reactor thread. When the Deferred fires with a result,
the change is on disk. `read(work)` is the same without the right to change anything.

On SQLite there is exactly one writer thread, which does the works one after the other in the order of
the calls; readers have threads of their own and see the last commit. A commit waits for the disk, a work
hardly ever does: so the works that wait share one transaction and one commit (`_together`), and no
Deferred fires before that commit. When one of them fails, nothing of the transaction stays and each is
done again in one of its own, so that nobody's error is another's: **a work may be run twice**, the first
time for nothing, and must change nothing but the database. On PostgreSQL, which groups commits itself,
readers and writers share one pool and each work has its transaction.

The queue is bounded: when `max_waiting` pieces of work wait, the next fails at once with `StoreBusy`,
and the caller slows its own peer down (no ACK, no 200) instead of filling the memory.

Cancelling the Deferred abandons the answer, not the work: the transaction still ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from drimbox.store import engine as engines
from drimbox.store.errors import StoreBusy, StoreClosed, StoreLocked
from drimbox.store.unfinished import refuse_unfinished
from drimbox.store.upgrade import upgrade

T = TypeVar("T")
#: A row of any query.
AnyRow = Row[*tuple[Any, ...]]

_log = Logger()

#: Pieces of work that may wait or run at once.
MAX_WAITING = 1000
#: Works that may share a transaction, and seconds after whose beginning it takes on no more of them.
MAX_TOGETHER = 64
LONGEST_TOGETHER = 0.02


class _Lane:
    """A thread pool with its engine and the count of what it has to do."""

    def __init__(self, engine: Engine, threads: int, name: str) -> None:
        self.engine = engine
        self.pool = ThreadPool(minthreads=1, maxthreads=threads, name=name)
        self.pending = 0


class _Job:
    """A work that waits for the SQLite writer, and what came of it."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.done: Deferred[Any] = Deferred()
        self.outcome: Any = None

    def alone(self, engine: Engine) -> None:
        """Do it in a transaction of its own, and keep its result or its error."""
        try:
            self.outcome = _transaction(engine, self.work)
        except BaseException:
            self.outcome = Failure()


class _Writer(_Lane):
    """The one writer of SQLite."""

    def __init__(self, engine: Engine, reactor: Any) -> None:
        super().__init__(engine, 1, "store-writer")
        self._reactor = reactor
        self._waiting: deque[_Job] = deque()
        self._lock = Lock()
        self._busy = False

    def submit(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Queue a work; the Deferred fires once it is committed, or with its error."""
        job = _Job(work)
        with self._lock:
            self._waiting.append(job)
            start, self._busy = not self._busy, True
        if start:
            self.pool.callInThread(self._write)
        return job.done

    def _write(self) -> None:
        """In the thread: do what waits, one transaction after the other."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
            self._reactor.callFromThread(_tell, _together(self.engine, self._waiting))


class Database:
    """The store: `open`, then `run` and `read`, then `close`.

    `url` is a SQLAlchemy URL, `sqlite:///<absolute file>` or `postgresql+psycopg://…`; a wrong one
    raises `ValueError` here, and `SecretUnusable` the file of its password, which is read again for every
    new connection. `threads` is the number of readers on SQLite, of all threads on a server.
    With `exclusive`, `open` also takes the ownership of the SQLite file and refuses to share it with
    another owner: the service does, because two would hand out each other's queue rows; tools do not.
    """

    def __init__(
        self,
        url: str,
        *,
        reactor: Any,
        threads: int = 4,
        max_waiting: int = MAX_WAITING,
        exclusive: bool = False,
        password_file: Path | None = None,
    ) -> None:
        self._url = engines.parse_url(url, password_file)
        self._password_file = password_file
        self._reactor = reactor
        self._threads = max(1, threads)
        self._max_waiting = max_waiting
        self._exclusive = exclusive
        self._lanes: list[_Lane] = []
        self._open = False
        self._closing = False
        #: Who waits for the last piece of work.
        self._idle: list[Deferred[None]] = []
        self._lock: int | None = None
        self._trigger: Any = None

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    @property
    def pending(self) -> int:
        """Pieces of work waiting or running."""
        return sum(lane.pending for lane in self._lanes)

    async def open(self) -> None:
        """Create or upgrade the schema and start the threads.

        Raises `StoreLocked` when another process owns the store, `StoreTooNew` when a later version
        wrote it, `StoreUnfinished` when a restore that was cut was to put it in place, and whatever the
        database says when it cannot be reached.
        """
        if self._lanes:
            raise RuntimeError("the store is already open")
        path = engines.sqlite_path(self._url)
        if path is None:
            engine = engines.writer_engine(self._url, self._threads, self._password_file)
            lanes = [_Lane(engine, self._threads, "store")]
        else:
            # Before any file is made: the restore that is to be begun again wants none.
            refuse_unfinished(path)
            if self._exclusive:
                self._lock = _own(path)
            writer = _Writer(engines.writer_engine(self._url, 1), self._reactor)
            readers = engines.reader_engine(self._url, self._threads)
            lanes = [writer, _Lane(readers, self._threads, "store-reader")]
        self._lanes = lanes
        for lane in lanes:
            lane.pool.start()
        # Threads outlive a reactor that nobody closed us under, and would keep the process.
        self._trigger = self._reactor.addSystemEventTrigger("during", "shutdown", self._stop)
        try:
            await self._in_thread(lanes[0], partial(upgrade, self._url))
        except BaseException:
            await self._shut()
            raise
        self._open = True

    def run(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Run `work` in one transaction; the Deferred fires once it is committed, or with its error.

        Fails with `StoreBusy` when too much waits, `StoreClosed` when the store is not open.
        """
        return self._submit(0, work)

    def read(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Run `work`, which only reads, beside the writer. Fails as `run` does."""
        return self._submit(-1, work)

    async def close(self) -> None:
        """Take no more work, wait for what runs and waits, and let the database go."""
        self._open = False
        if not self._lanes or self._closing:
            return
        self._closing = True
        try:
            if self.pending:
                idle: Deferred[None] = Deferred()
                self._idle.append(idle)
                await idle
            await self._shut()
        finally:
            self._closing = False

    # --- inside ---------------------------------------------------------------------------------

    def _submit(self, index: int, work: Callable[[Connection], T]) -> Deferred[T]:
        if not self._open:
            return fail(StoreClosed("La base de données n'est pas ouverte."))
        lane = self._lanes[index]
        if lane.pending >= self._max_waiting:
            return fail(StoreBusy(f"{lane.pending} opérations attendent déjà la base de données."))
        lane.pending += 1
        answer: Deferred[T] = Deferred()
        if isinstance(lane, _Writer):
            inner = lane.submit(work)
        else:
            inner = self._in_thread(lane, partial(_transaction, lane.engine, work))
        inner.addBoth(self._finished, lane, answer)
        return answer

    def _in_thread(self, lane: _Lane, call: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(self._reactor, lane.pool, call)

    def _finished(self, result: Any, lane: _Lane, answer: Deferred[Any]) -> None:
        lane.pending -= 1
        if not answer.called:
            answer.callback(result)  # a Failure makes it an errback
        elif isinstance(result, Failure):
            _log.failure("abandoned work failed", failure=result)
        if not self.pending:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    async def _shut(self) -> None:
        # Readers first: SQLite folds the WAL into the file when the last connection closes.
        for lane in reversed(self._lanes):
            await self._in_thread(lane, lane.engine.dispose)
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        self._stop()

    def _stop(self) -> None:
        lanes, self._lanes, self._open = self._lanes, [], False
        for lane in lanes:
            lane.pool.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _together(engine: Engine, waiting: deque[_Job]) -> list[_Job]:
    """Do as many of the works that wait as one transaction takes, and commit; return them, done.

    One waits at least; works that come meanwhile are taken on too.
    """
    jobs = [waiting.popleft()]
    limit = time.monotonic() + LONGEST_TOGETHER
    try:
        with engine.begin() as connection:
            jobs[0].outcome = jobs[0].work(connection)
            while waiting and len(jobs) < MAX_TOGETHER and time.monotonic() < limit:
                jobs.append(waiting.popleft())
                jobs[-1].outcome = jobs[-1].work(connection)
    except BaseException:
        # Whatever it is, it must not end the only writer.
        if len(jobs) == 1:
            jobs[0].outcome = Failure()
        else:
            for job in jobs:
                job.alone(engine)
    return jobs


def _tell(jobs: list[_Job]) -> None:
    for job in jobs:
        job.done.callback(job.outcome)  # a Failure makes it an errback


def _own(path: Path) -> int:
    """Take the ownership of a SQLite store; the descriptor returned holds it until closed.

    A file beside the database, because closing any descriptor of the database file itself would drop
    SQLite's own locks (POSIX).
    """
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreLocked(f"La base {path.name} est déjà utilisée par une autre instance.") from None
    return lock
