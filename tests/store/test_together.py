"""Works that wait for the SQLite writer share a commit: none is answered before, none pays for another."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import IntegrityError
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from drimbox.store.database import MAX_TOGETHER, Database

_ADD = text(
    "INSERT INTO notice (key, code, text, first_at, last_at)"
    " VALUES (:key, 'c', 't', '2026-01-12 09:30:01', '2026-01-12 09:30:01')"
)


def _add(key: str) -> Any:
    def work(connection: Connection) -> str:
        connection.execute(_ADD, {"key": key})
        return key

    return work


class Gate:
    """Work that stops in the writer's thread until told."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self.entered.set()
        assert self.go.wait(20)
        return "gate"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "drimbox.db"


@pytest_twisted.async_yield_fixture
async def store(file: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{file}", reactor=reactor)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def commits() -> Iterator[list[Connection]]:
    """Every commit of any engine."""
    seen: list[Connection] = []

    def committed(connection: Connection) -> None:
        seen.append(connection)

    event.listen(Engine, "commit", committed)
    yield seen
    event.remove(Engine, "commit", committed)


def _keys(file: Path) -> list[str]:
    """What is committed, seen by somebody else."""
    connection = sqlite3.connect(file)
    try:
        return [key for (key,) in connection.execute("SELECT key FROM notice ORDER BY id")]
    finally:
        connection.close()


async def _hold(store: Database) -> tuple[Gate, Deferred[str]]:
    """Keep the writer busy, so that what is asked for next waits together."""
    gate = Gate()
    held = store.run(gate)
    while not gate.entered.is_set():
        await deferLater(reactor, 0.001)
    # Longer than a transaction takes on others: what waits goes into the next one.
    await deferLater(reactor, 0.05)
    return gate, held


@pytest_twisted.ensureDeferred
async def test_what_waits_shares_one_commit(store: Database, file: Path, commits: list[Connection]) -> None:
    gate, held = await _hold(store)
    waiting = [store.run(_add(str(number))) for number in range(10)]
    commits.clear()
    gate.go.set()
    await held
    assert [await each for each in waiting] == [str(number) for number in range(10)]
    assert len(commits) == 2, "the work that was running, and the ten together"
    assert _keys(file) == [str(number) for number in range(10)]


@pytest_twisted.ensureDeferred
async def test_nobody_is_answered_before_the_commit(store: Database, file: Path) -> None:
    gate, held = await _hold(store)
    first = store.run(_add("first"))
    second = Gate()
    last = store.run(second)
    gate.go.set()
    await held
    while not second.entered.is_set():
        await deferLater(reactor, 0.001)
    await deferLater(reactor, 0.05)
    assert _keys(file) == []
    assert not first.called, "its work is done, but not yet committed"
    second.go.set()
    assert await first == "first"
    assert _keys(file) == ["first"]
    await last


@pytest_twisted.ensureDeferred
async def test_an_error_is_its_own_work_s_alone(store: Database, file: Path) -> None:
    def wrong(connection: Connection) -> None:
        connection.execute(_ADD, {"key": "wrong"})
        raise KeyError("wrong")

    gate, held = await _hold(store)
    works = [_add("a"), wrong, _add("b"), _add("a"), _add("c")]
    answers = [store.run(work) for work in works]
    gate.go.set()
    await held
    assert await answers[0] == "a"
    with pytest.raises(KeyError):
        await answers[1]
    with pytest.raises(IntegrityError):
        await answers[3]
    assert [await answers[2], await answers[4]] == ["b", "c"]
    assert _keys(file) == ["a", "b", "c"], "each once, in the order of the calls"


@pytest_twisted.ensureDeferred
async def test_a_commit_that_fails_fails_only_who_made_it_fail(store: Database, file: Path) -> None:
    def orphan(connection: Connection) -> None:
        # Judged at the commit, not before.
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        connection.execute(text("INSERT INTO kos_report (kos_id, report_id) VALUES (7, 'x')"))

    gate, held = await _hold(store)
    before, wrong, after = store.run(_add("before")), store.run(orphan), store.run(_add("after"))
    gate.go.set()
    await held
    with pytest.raises(IntegrityError):
        await wrong
    assert [await before, await after] == ["before", "after"]
    assert _keys(file) == ["before", "after"]


@pytest_twisted.ensureDeferred
async def test_a_transaction_takes_on_only_so_many(store: Database, commits: list[Connection]) -> None:
    gate, held = await _hold(store)
    waiting = [store.run(lambda connection: None) for _ in range(2 * MAX_TOGETHER)]
    commits.clear()
    gate.go.set()
    for each in [held, *waiting]:
        await each
    assert len(commits) >= 3


@pytest_twisted.ensureDeferred
async def test_a_slow_work_keeps_nobody_from_being_told(store: Database, file: Path) -> None:
    """What comes after a transaction has lasted long enough goes into the next one."""
    first, slow, late = Gate(), Gate(), Gate()
    held = store.run(first)
    while not first.entered.is_set():
        await deferLater(reactor, 0.001)
    await deferLater(reactor, 0.05)
    done, slowly, lately = store.run(_add("done")), store.run(slow), store.run(late)
    first.go.set()
    await held
    while not slow.entered.is_set():
        await deferLater(reactor, 0.001)
    await deferLater(reactor, 0.05)
    slow.go.set()
    assert await done == "done", "committed although the last work has not even begun"
    await slowly
    assert not lately.called
    late.go.set()
    await lately
