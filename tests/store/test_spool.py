"""The spool: bytes come back as they went, space is bounded and given back, errors are told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread

from drimbox.ports import SpoolFull
from drimbox.store.spool import Spool


def at_once(work: Callable[[], Any]) -> Deferred[Any]:
    return maybeDeferred(work)


class Later:
    """Threads whose work ends when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, work: Callable[[], Any]) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.waiting.append((result, work))
        return result

    def step(self) -> None:
        result, work = self.waiting.pop(0)
        maybeDeferred(work).chainDeferred(result)


def make(folder: Path, in_thread: Any = at_once, per_file: int = 1000, total: int = 1500) -> Spool:
    return Spool(folder / "spool", per_file=per_file, total=total, in_thread=in_thread)


@pytest_twisted.ensureDeferred
async def test_bytes_come_back_as_they_went_and_the_files_have_no_name(tmp_path: Path) -> None:
    spool = make(tmp_path, deferToThread)
    file = spool.open()
    first, second = file.reserve(5), file.reserve(4)
    writing = [
        Deferred.fromCoroutine(file.write(first, b"hello")),
        Deferred.fromCoroutine(file.write(second, b"moon")),
    ]
    for each in writing:
        await each
    assert await file.read(second, 4) == b"moon"
    assert await file.read(first, 5) == b"hello"
    assert os.listdir(tmp_path / "spool") == []
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    await file.close()
    assert spool.used == 0


@pytest_twisted.ensureDeferred
async def test_one_file_and_all_of_them_are_bounded(tmp_path: Path) -> None:
    spool = make(tmp_path)
    one, two = spool.open(), spool.open()
    one.reserve(1000)
    with pytest.raises(SpoolFull):
        one.reserve(1)
    with pytest.raises(SpoolFull):
        two.reserve(501)
    two.reserve(500)
    assert spool.used == 1500
    await one.close()
    assert spool.used == 500
    await one.close()
    assert spool.used == 500
    await two.close()
    assert spool.used == 0
    with pytest.raises(SpoolFull):
        two.reserve(1)


def test_emptied_space_counts_until_the_disk_has_it_back(tmp_path: Path) -> None:
    threads = Later()
    spool = make(tmp_path, threads)
    file = spool.open()
    writing = Deferred.fromCoroutine(file.write(file.reserve(3), b"old"))
    file.empty()
    again = Deferred.fromCoroutine(file.write(file.reserve(6), b"fresh!"))
    assert spool.used == 9
    threads.step()
    assert writing.called
    threads.step()
    assert spool.used == 6
    # What is written after emptying is written after emptying.
    threads.step()
    assert again.called
    reading = Deferred.fromCoroutine(file.read(0, 6))
    threads.step()
    assert reading.result == b"fresh!"  # type: ignore[attr-defined]


def test_a_disk_that_takes_a_part_is_written_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, bytes(data)[:2], offset))
    file = make(tmp_path).open()
    assert Deferred.fromCoroutine(file.write(file.reserve(7), b"patient")).called
    reading = Deferred.fromCoroutine(file.read(0, 7))
    assert reading.result == b"patient"  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    file = make(tmp_path).open()
    with pytest.raises(OSError, match="No space"):
        await file.write(file.reserve(7), b"patient")
    monkeypatch.undo()
    with pytest.raises(OSError, match="shorter"):
        await file.read(0, 7)
    # The lock was given back: the file can still be closed.
    await file.close()


def test_switched_off(tmp_path: Path) -> None:
    assert not make(tmp_path, per_file=0).enabled
    assert not make(tmp_path, total=0).enabled
    assert make(tmp_path).enabled
