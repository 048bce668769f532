"""One life of the gateway process, from its start to `kill -9`, under a simulated clock.

Real: everything `assembly` builds, the SQLite store with its own schema. Taken out: sockets, threads and
the disk's patience. A transaction is made at once and answered a little later, in an order of chance, as
threads do; a life that ends leaves what it had committed and never hears of anything again.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from sqlalchemy import event
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from drimbox import stores as stores_module
from drimbox.assembly import Assembly, delivering, images, whole
from drimbox.config import Config
from drimbox.ports import Archives, Record
from drimbox.source import backoff
from drimbox.store import engine as engines
from drimbox.store.upgrade import upgrade
from drimbox.worker import Worker

T = TypeVar("T")
START = datetime(2026, 1, 12, 10, 0, tzinfo=UTC)


class Wall:
    """The wall clock beside the reactor's (a `ports.Clock`)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> datetime:
        """Return the present instant."""
        return START + timedelta(seconds=self._clock.seconds())


class Life:
    """The reactor of one process: dead, it calls nobody any more."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self.clock = clock
        self.chance = chance
        self.alive = True
        self.commits = 0
        #: Dies once it has committed so many transactions.
        self.dies_at: int | None = None

    def seconds(self) -> float:
        """Return the time."""
        return self.clock.seconds()

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call later, unless dead by then."""

        def guarded() -> None:
            if self.alive:
                call(*args, **more)

        return self.clock.callLater(delay, guarded)

    def answer(self, result: object, delay: float | None = None) -> Deferred[Any]:
        """Return what fires with `result` (a Failure too) after a moment."""
        answered: Deferred[Any] = Deferred()
        wait = self.chance.choice((0.0, 0.0, 0.001, 0.004)) if delay is None else delay
        self.callLater(wait, answered.callback, result)
        return answered

    def committed(self) -> None:
        """Count a transaction; it may have been the last."""
        self.commits += 1
        if self.commits == self.dies_at:
            self.alive = False

    def addSystemEventTrigger(self, *args: Any) -> object:
        """Nobody shuts down in order here."""
        return object()

    def removeSystemEventTrigger(self, trigger: object) -> None:
        """Nothing to remove."""


class Store:
    """`store.database.Database` without threads: made at once, answered later."""

    dialect = "sqlite"

    def __init__(self, url: str, *, reactor: Life, **more: Any) -> None:
        self._life = reactor
        self._engines = []
        for make in (engines.writer_engine, engines.reader_engine):
            engine = make(engines.parse_url(url), 1)
            event.listen(engine, "connect", _hurry)
            self._engines.append(engine)

    async def open(self) -> None:
        """The template has the schema."""

    def run(self, work: Callable[..., Any]) -> Deferred[Any]:
        """Run one transaction."""
        return self._do(0, work)

    def read(self, work: Callable[..., Any]) -> Deferred[Any]:
        """Read."""
        return self._do(1, work)

    def _do(self, index: int, work: Callable[..., Any]) -> Deferred[Any]:
        if not self._life.alive:
            return Deferred()
        try:
            with self._engines[index].begin() as connection:
                result = work(connection)
        except Exception:
            return self._life.answer(Failure())
        if index == 0:
            self._life.committed()
        return self._life.answer(result)

    def shut(self) -> None:
        """Let the file go."""
        for engine in self._engines:
            engine.dispose()


def _hurry(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def template(folder: Path) -> Path:
    """Make an empty store to copy."""
    path = folder / "template.db"
    upgrade(engines.parse_url(f"sqlite:///{path}"))
    return path


class Gateway:
    """A gateway that may be killed and started again."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        chance: random.Random,
        archives: Callable[[Life], Archives],
        record: Callable[[Life], Record],
        empty: Path,
    ) -> None:
        self._config = config
        self.clock = clock
        self._chance = chance
        self._archives = archives
        self._record = record
        config.drimbox.state_dir.mkdir(parents=True)
        self.path = config.drimbox.state_dir / "drimbox.db"
        shutil.copy(empty, self.path)
        self.life = Life(clock, chance)
        self.life.alive = False
        self.assembly: Assembly
        self._stores: stores_module.Stores | None = None
        self.lives = 0
        self._jitter = mock.patch.object(backoff, "_random", chance)
        self._jitter.start()

    def close(self) -> None:
        """The history is over."""
        self.kill(self.life)
        self.bury()
        self._jitter.stop()

    def start(self) -> None:
        """Start, unless it runs."""
        if self.life.alive:
            return
        self.bury()
        self.lives += 1
        life = self.life = Life(self.clock, self._chance)
        reactor: Any = life
        archives, record = self._archives(life), self._record(life)
        with (
            mock.patch.object(stores_module, "Database", Store),
            mock.patch.object(images.Images, "_make_archives", return_value=archives),
            mock.patch.object(whole, "DmpClient", return_value=record),
            mock.patch.object(delivering, "client_policy", return_value=None),
            mock.patch.object(delivering, "TokenIntrospector"),
            # Looks at empty queues are most of what a history costs.
            mock.patch.dict(Worker.__init__.__kwdefaults__, interval=4.0),
        ):
            wall: Any = Wall(self.clock)
            stores = self._stores = stores_module.Stores(self._config, reactor, wall)
            whitelist: Any = None
            self.finish(stores.open())
            self.assembly = Assembly(
                self._config, reactor, wall, stores, whitelist, self._defer, lambda *_: None
            )
        for worker in self.assembly.feed.workers:
            worker.startService()

    def kill(self, life: Life) -> None:
        """`kill -9`, if it is that life still."""
        life.alive = False

    def bury(self) -> None:
        """Let go of the files of a dead life."""
        if self._stores is not None:
            database: Any = self._stores.database
            database.shut()
            self._stores = None

    def _defer(self, work: Callable[[], T]) -> Deferred[T]:
        try:
            return self.life.answer(work())
        except Exception:
            return fail(Failure())

    # -- time --------------------------------------------------------------------------------------

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Let time pass until `work` has ended; raises `Died` when the gateway dies before."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        while not results:
            if not self.life.alive:
                raise Died
            self.step()
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        found: T = result
        return found

    def step(self) -> None:
        """Go on to the next thing due."""
        clock = self.clock
        # Exactly to its time: a difference, added, may fall short of it for ever.
        clock.rightNow = max(clock.rightNow, min(call.getTime() for call in clock.getDelayedCalls()))
        clock.advance(0)

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass."""
        clock = self.clock
        end = clock.seconds() + seconds
        while (calls := clock.getDelayedCalls()) and min(call.getTime() for call in calls) <= end:
            self.step()
        clock.rightNow = max(clock.rightNow, end)


class Died(Exception):
    """The gateway was killed meanwhile."""
