"""Transactions in threads: committed or not at all, bounded, and never lost by a closing."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError, ProgrammingError
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from drimbox.store.database import Database
from drimbox.store.errors import StoreBusy, StoreClosed, StoreLocked
from drimbox.store.failures import blames_row

_ADD = text(
    "INSERT INTO notice (key, code, text, first_at, last_at)"
    " VALUES (:key, 'c', 't', '2026-01-12 09:30:01', '2026-01-12 09:30:01')"
)


def _add(connection: Connection, key: str) -> None:
    connection.execute(_ADD, {"key": key})


def _count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM notice")).scalar_one())


class Gate:
    """Work that stops in its thread until told."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self.entered.set()
        assert self.go.wait(20)
        _add(connection, "gate")
        return "done"


@pytest_twisted.ensureDeferred
async def test_the_result_comes_back_on_the_reactor_thread(database: Database) -> None:
    threads: list[int] = []

    def work(connection: Connection) -> int:
        threads.append(threading.get_ident())
        _add(connection, "a")
        return _count(connection)

    assert await database.run(work) == 1
    assert threads != [threading.get_ident()]
    assert await database.read(_count) == 1


@pytest_twisted.ensureDeferred
async def test_an_error_propagates_and_nothing_of_the_work_stays(database: Database) -> None:
    class Unlucky(Exception):
        pass

    def work(connection: Connection) -> None:
        _add(connection, "lost")
        raise Unlucky

    with pytest.raises(Unlucky):
        await database.run(work)
    assert await database.read(_count) == 0


@pytest_twisted.ensureDeferred
async def test_the_connection_is_usable_after_a_failed_statement(database: Database) -> None:
    def twice(connection: Connection) -> None:
        _add(connection, "same")
        _add(connection, "same")

    for _ in range(8):  # more often than there are connections in the pool
        with pytest.raises(IntegrityError):
            await database.run(twice)
    await database.run(lambda connection: _add(connection, "same"))
    assert await database.read(_count) == 1
    assert database.pending == 0


@pytest_twisted.ensureDeferred
async def test_a_refused_value_does_not_appear_in_the_error_text(database: Database) -> None:
    def wrong(connection: Connection) -> None:
        connection.execute(text("INSERT INTO notice (nothing) VALUES (:v)"), {"v": "PAT-TROIS"})

    with pytest.raises((OperationalError, ProgrammingError)) as caught:
        await database.run(wrong)
    assert "PAT-TROIS" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_too_much_waiting_work_is_refused_at_once(url: str) -> None:
    database = Database(url, reactor=reactor, threads=1, max_waiting=3)
    await database.open()
    gate = Gate()
    first = database.run(gate)
    others = [database.run(lambda c, n=n: _add(c, f"w{n}")) for n in range(2)]
    with pytest.raises(StoreBusy):
        await database.run(_count)
    gate.go.set()
    assert await first == "done"
    for other in others:
        await other
    assert await database.run(_count) == 3, "work is taken again once the queue is shorter"
    await database.close()


@pytest_twisted.ensureDeferred
async def test_closing_waits_for_what_runs_and_what_waits(url: str) -> None:
    database = Database(url, reactor=reactor, threads=1)
    await database.open()
    gate = Gate()
    running = database.run(gate)
    waiting = database.run(lambda c: _add(c, "behind"))
    closing = database_close(database)
    with pytest.raises(StoreClosed):
        await database.run(_count)
    assert not closing.called
    gate.go.set()
    await closing
    assert await running == "done"
    await waiting
    with pytest.raises(StoreClosed):
        await database.read(_count)
    await database.close()  # once more does no harm
    again = Database(url, reactor=reactor)
    await again.open()
    assert await again.read(_count) == 2
    await again.close()


def database_close(database: Database) -> Any:
    from twisted.internet.defer import ensureDeferred

    return ensureDeferred(database.close())


@pytest_twisted.ensureDeferred
async def test_a_cancelled_caller_does_not_undo_the_work(database: Database) -> None:
    gate = Gate()
    answer = database.run(gate)
    answer.cancel()
    with pytest.raises(CancelledError):
        await answer
    gate.go.set()
    assert await database.run(_count) in (0, 1)  # PostgreSQL may run beside it
    await database.close()
    await database.open()
    assert await database.read(_count) == 1


@pytest_twisted.ensureDeferred
async def test_work_before_opening_fails(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}", reactor=reactor)
    with pytest.raises(StoreClosed):
        await database.run(_count)
    await database.close()


@pytest_twisted.ensureDeferred
async def test_a_failed_opening_leaves_no_thread_behind(tmp_path: Path) -> None:
    before = threading.active_count()
    database = Database(f"sqlite:///{tmp_path / 'absent' / 'x.db'}", reactor=reactor)
    with pytest.raises(OSError, match="absent"):
        await database.open()
    assert threading.active_count() == before
    with pytest.raises(StoreClosed):
        await database.run(_count)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "mémoire"),
        ("sqlite:///:memory:", "mémoire"),
        ("mysql://u:secret@h/d", "prise en charge"),
        ("not a url secret", "illisible"),
    ],
)
def test_an_url_that_cannot_hold_durable_state_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Database(url, reactor=reactor)
    assert "secret" not in str(caught.value)


# --- SQLite ---------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'drimbox.db'}"


@pytest_twisted.ensureDeferred
async def test_sqlite_connections_are_durable_and_strict(sqlite_url: str, tmp_path: Path) -> None:
    database = Database(sqlite_url, reactor=reactor)
    await database.open()

    def pragmas(connection: Connection) -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "query_only")
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names}

    writer = await database.run(pragmas)
    assert writer == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "query_only": 0}
    assert (await database.read(pragmas))["query_only"] == 1
    with pytest.raises(OperationalError, match="readonly"):
        await database.read(lambda connection: _add(connection, "x"))
    await database.run(lambda connection: _add(connection, "x"))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await database.close()


@pytest_twisted.ensureDeferred
async def test_sqlite_has_one_writer_and_keeps_the_order_of_the_calls(sqlite_url: str) -> None:
    database = Database(sqlite_url, reactor=reactor, threads=4)
    await database.open()
    seen: list[tuple[int, int]] = []
    done = [database.run(lambda _, n=n: seen.append((n, threading.get_ident()))) for n in range(50)]
    for answer in done:
        await answer
    assert [number for number, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen}) == 1
    await database.close()


@pytest_twisted.ensureDeferred
async def test_sqlite_readers_do_not_wait_for_the_writer(sqlite_url: str) -> None:
    database = Database(sqlite_url, reactor=reactor)
    await database.open()
    gate = Gate()
    writing = database.run(gate)
    assert await database.read(_count) == 0
    gate.go.set()
    await writing
    assert await database.read(_count) == 1, "a commit is seen at once"
    await database.close()


@pytest_twisted.ensureDeferred
async def test_two_owners_of_one_sqlite_store_are_refused(sqlite_url: str) -> None:
    owner = Database(sqlite_url, reactor=reactor, exclusive=True)
    await owner.open()
    with pytest.raises(StoreLocked, match="autre instance"):
        await Database(sqlite_url, reactor=reactor, exclusive=True).open()
    tool = Database(sqlite_url, reactor=reactor)
    await tool.open()
    assert await tool.read(_count) == 0
    await tool.close()
    await owner.close()
    successor = Database(sqlite_url, reactor=reactor, exclusive=True)
    await successor.open()
    await successor.close()


@pytest.mark.peer("postgres")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.requirement("DB.SO.35")
@pytest_twisted.ensureDeferred
async def test_a_server_that_became_a_standby_is_left(url: str) -> None:
    """It keeps our connections and refuses every change; the row that was worked on is not to blame."""
    database = Database(url, reactor=reactor, threads=1)
    await database.open()
    change = text("UPDATE audit_export SET confirmed_at = now()")
    demoted = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    try:
        await database.run(lambda connection: connection.execute(demoted))
        with pytest.raises(InternalError) as refused:
            await database.run(lambda connection: connection.execute(change))
        assert not blames_row(refused.value)
        assert await database.run(lambda connection: connection.execute(change).rowcount) == 1
    finally:
        await database.close()
