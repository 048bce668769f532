"""The cache gives back what it was given, whole and unaltered, or nothing."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from drimbox.config import CacheSettings
from drimbox.ports import CacheDamaged, CachedInstance
from drimbox.store import cache as cache_module
from drimbox.store import cachewriting
from drimbox.store.cache import Cache
from drimbox.store.cachefiles import Folder, Partial
from drimbox.store.cachemanifest import BLOCK
from tests.store.cache_scene import (
    CT,
    EXPLICIT,
    JPEG_LS,
    SETTINGS,
    Scene,
    content,
    now,
    read,
    read_all,
    start,
)

T = TypeVar("T")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "cache")


# --- what is kept is given back -------------------------------------------------------------------


def test_a_series_is_given_back_as_the_pacs_sent_it(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    first, second = writer.add("1.5.1", CT, EXPLICIT), writer.add("1.5.2", "1.2.3", JPEG_LS)
    data = os.urandom(3 * BLOCK + 17)
    # Two associations at once: their bytes come mixed.
    for start_ in range(0, len(data), 100_000):
        first.write(data[start_ : start_ + 100_000])
        second.write(memoryview(b"ab"))
    first.end()
    second.end()
    assert now(writer.commit(["1.5.1", "1.5.2"]))
    reader = scene.find()
    assert reader is not None
    assert reader.instances == (
        CachedInstance("1.5.1", CT, EXPLICIT, len(data)),
        CachedInstance("1.5.2", "1.2.3", JPEG_LS, 64),
    )
    assert read_all(reader) == {"1.5.1": data, "1.5.2": b"ab" * 32}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=300)), max_size=40))
def test_any_mix_of_pieces_is_given_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]]
) -> None:
    scene = Scene(tmp_path_factory.mktemp("mix"))
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    slots = [writer.add(f"1.5.{n}", CT, EXPLICIT) for n in range(3)]
    for which, piece in pieces:
        slots[which].write(piece)
    for slot in slots:
        slot.end()
    uids = {f"1.5.{n}" for n in range(3)}
    assert now(writer.commit(uids))
    scene.reopen()
    reader = scene.find(due=uids)
    assert reader is not None
    expected = {f"1.5.{n}": b"".join(piece for which, piece in pieces if which == n) for n in range(3)}
    assert read_all(reader) == expected


def test_blocks_are_bounded(scene: Scene) -> None:
    assert scene.keep(size=5 * BLOCK // 2, count=1)
    reader = scene.find(count=1)
    assert reader is not None

    async def sizes() -> list[int]:
        return [len(block) async for block in reader.read(reader.instances[0])]

    found = now(sizes())
    assert max(found) <= BLOCK
    assert sum(found) == 5 * BLOCK // 2


@pytest_twisted.ensureDeferred
async def test_it_works_with_real_threads(tmp_path: Path) -> None:
    from tests.store.samples import TestClock

    def in_thread(work: Callable[[], T]) -> Awaitable[T]:
        return deferToThread(work)

    cache = Cache(SETTINGS, tmp_path / "cache", clock=TestClock(), in_thread=in_thread)
    await cache.open()
    writer = cache.begin("site", "1.4", "1.5")
    assert writer is not None
    expected = content("1.5", 3 * BLOCK, 5)
    for uid, data in expected.items():
        slot = writer.add(uid, CT, EXPLICIT)
        for place in range(0, len(data), 65536):
            slot.write(data[place : place + 65536])
        slot.end()
    assert await writer.commit(expected)
    reader = await cache.find("site", "1.4", "1.5", set(expected))
    assert reader is not None
    assert {each.sop_instance_uid: await read(reader, each) for each in reader.instances} == expected
    await reader.close()
    await cache.close()


# --- complete series only -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "due",
    [{"1.5.1"}, {"1.5.1", "1.5.2", "1.5.3"}, {"1.5.1", "1.5.9"}, set()],
    ids=["more than due", "one missing", "another", "nothing due"],
)
def test_a_series_that_is_not_exactly_what_is_due_is_not_kept(scene: Scene, due: set[str]) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    for uid in ("1.5.1", "1.5.2"):
        slot = writer.add(uid, CT, EXPLICIT)
        slot.write(b"x" * 2 * BLOCK)
        slot.end()
    assert not now(writer.commit(due))
    assert scene.files() == []
    assert (scene.cache.used, scene.cache._held) == (0, 0)
    assert scene.cache.begin("site", "1.4", "1.5") is not None


def test_an_instance_cut_short_keeps_the_series_out(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    writer.add("1.5.1", CT, EXPLICIT).write(b"half")
    assert not now(writer.commit({"1.5.1"}))
    assert (scene.files(), scene.cache.used, scene.cache._held) == ([], 0, 0)


def test_an_instance_dropped_and_sent_again_counts_once(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    lost = writer.add("1.5.1", CT, EXPLICIT)
    lost.write(b"bad" * BLOCK)
    lost.write(b"more")
    lost.drop()
    lost.write(b"ignored")
    lost.end()
    again = writer.add("1.5.1", CT, JPEG_LS)
    again.write(b"good")
    again.end()
    again.write(b"ignored")
    repeated = writer.add("1.5.1", CT, EXPLICIT)
    repeated.write(b"ignored")
    repeated.end()
    assert now(writer.commit({"1.5.1"}))
    reader = scene.find(due={"1.5.1"})
    assert reader is not None
    assert reader.instances[0].transfer_syntax_uid == JPEG_LS
    assert read_all(reader) == {"1.5.1": b"good"}
    assert scene.cache._held == 0


@pytest.mark.parametrize("due", [{"1.5.1"}, {"1.5.1", "1.5.2", "1.5.3"}], ids=["removed", "added"])
def test_a_kos_that_lists_something_else_makes_the_entry_stale(scene: Scene, due: set[str]) -> None:
    assert scene.keep()
    assert scene.find(due=due) is None
    assert (scene.files(), scene.cache.used) == ([], 0)


def test_only_the_site_study_and_series_asked_for_are_found(scene: Scene) -> None:
    assert scene.keep()
    due = set(content("1.5", 0, 2))
    for site, study, series in (("other", "1.4", "1.5"), ("site", "1.41", "1.5"), ("site", "1.4", "1.6")):
        assert now(scene.cache.find(site, study, series, due)) is None
    assert scene.find() is not None


def test_a_series_is_written_once_at_a_time(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    assert scene.cache.begin("site", "1.4", "1.5") is None
    now(writer.discard())
    assert scene.keep()
    assert scene.cache.begin("site", "1.4", "1.5") is None


def test_ending_twice_is_harmless(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    now(writer.discard())
    now(writer.discard())
    assert not now(writer.commit({"1.5.1"}))
    assert scene.keep()
    reader = scene.find()
    assert reader is not None
    now(reader.close())
    now(reader.close())
    assert scene.cache.used == scene.on_disk()


# --- restart --------------------------------------------------------------------------------------


def test_a_restart_keeps_the_entries_and_the_order_of_use(scene: Scene) -> None:
    for number, series in enumerate(("1.5", "1.6", "1.7")):
        assert scene.keep(series)
        (entry,) = (e for e in scene.cache._index.values() if e.key.series_uid == series)
        manifest = scene.root / "entries" / entry.name / "manifest"
        os.utime(manifest, (number, number))
    reader = scene.find("1.5")
    assert reader is not None
    now(reader.close())
    used = scene.cache.used
    scene.reopen()
    assert scene.cache.used == used == scene.on_disk()
    assert [key.series_uid for key in scene.cache._index] == ["1.6", "1.7", "1.5"]
    assert all(scene.find(series) for series in ("1.5", "1.6", "1.7"))


def test_what_a_crash_left_is_removed_at_start(scene: Scene) -> None:
    assert scene.keep()
    writer = scene.cache.begin("site", "1.4", "1.6")
    assert writer is not None
    writer.add("1.6.1", CT, EXPLICIT).write(b"x" * 2 * BLOCK)
    (scene.root / "trash" / "old").mkdir()
    (scene.root / "trash" / "old" / "data").write_bytes(b"x")
    (scene.root / "partial" / "file").write_bytes(b"x")
    assert len(scene.files()) == 5
    scene.reopen()
    assert len(scene.files()) == 2
    assert scene.find() is not None


@pytest.mark.parametrize(
    ("damage", "stray"),
    [
        (lambda path: (path / "manifest").unlink(), False),
        (lambda path: (path / "data").unlink(), False),
        (lambda path: os.truncate(path / "data", 1999), False),
        (lambda path: (path / "manifest").write_bytes(b""), False),
        (lambda path: (path / "manifest").write_bytes(b"garbage\n\xff\n"), False),
        (lambda path: path.rename(path.with_name("0" * 64 + path.name[64:])), False),
        (lambda path: path.rename(path.with_name("strange")), False),
        (lambda path: path.with_name("file").write_bytes(b""), True),
    ],
    ids=[
        "no manifest",
        "no data",
        "cut data",
        "empty manifest",
        "garbage",
        "other name",
        "no name",
        "a file",
    ],
)
def test_what_is_no_entry_is_removed_at_start(
    scene: Scene, damage: Callable[[Path], object], stray: bool
) -> None:
    assert scene.keep("1.6")
    (path,) = (scene.root / "entries").iterdir()
    damage(path)
    scene.keep("1.5")
    scene.reopen()
    # A stray file beside an entry takes nothing from it.
    assert scene.has("1.6") is stray
    assert len(list((scene.root / "entries").iterdir())) == scene.cache.series == 1 + stray
    assert scene.find("1.5") is not None
    assert scene.cache.used == scene.on_disk()


def test_of_several_versions_of_a_series_the_newest_is_kept(scene: Scene, tmp_path: Path) -> None:
    for number in range(6):
        other = Scene(tmp_path / str(number))
        other.clock.advance(number)
        assert other.keep(size=20 + number)
        for path in (other.root / "entries").iterdir():
            path.rename(scene.root / "entries" / path.name)
    scene.clock.advance(10)
    scene.reopen()
    reader = scene.find()
    assert reader is not None
    assert [each.size for each in reader.instances] == [25, 25]
    assert len(list((scene.root / "entries").iterdir())) == 1


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def entry_file(scene: Scene, name: str) -> Path:
    (entry,) = (scene.root / "entries").iterdir()
    return entry / name


def test_a_damaged_block_never_leaves(scene: Scene) -> None:
    assert scene.keep(size=3 * BLOCK, count=1)
    flip(entry_file(scene, "data"), 2 * BLOCK + 5)
    reader = scene.find(count=1)
    assert reader is not None
    given_out: list[bytes] = []

    async def use() -> None:
        async for block in reader.read(reader.instances[0]):
            given_out.append(block)

    with pytest.raises(CacheDamaged):
        now(use())
    assert b"".join(given_out) == content("1.5", 3 * BLOCK, 1)["1.5.1"][: 2 * BLOCK]
    now(reader.close())
    assert scene.find(count=1) is None
    assert (scene.files(), scene.cache.used) == ([], 0)
    assert scene.keep(size=10, count=1)


@pytest.mark.parametrize("place", [0, 70, -3])
def test_a_damaged_manifest_is_a_miss(scene: Scene, place: int) -> None:
    assert scene.keep()
    flip(entry_file(scene, "manifest"), place)
    assert scene.find() is None
    assert (scene.files(), scene.cache.used) == ([], 0)


@pytest.mark.parametrize("size", [0, 1999, 2001])
def test_data_of_another_size_is_a_miss(scene: Scene, size: int) -> None:
    assert scene.keep()
    os.truncate(entry_file(scene, "data"), size)
    assert scene.find() is None
    assert scene.files() == []


def test_the_files_of_another_series_in_its_place_are_a_miss(scene: Scene) -> None:
    assert scene.keep("1.5")
    assert scene.keep("1.6")
    names = {key.series_uid: entry.name for key, entry in scene.cache._index.items()}
    folder = scene.root / "entries"
    (folder / names["1.5"]).rename(folder / "swap")
    (folder / names["1.6"]).rename(folder / names["1.5"])
    assert scene.find("1.5", due=set(content("1.6", 0, 2))) is None
    assert not scene.has("1.5")


def test_a_link_in_the_place_of_data_is_not_followed(scene: Scene, tmp_path: Path) -> None:
    assert scene.keep()
    data = entry_file(scene, "data")
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert scene.find() is None


# --- bounds ---------------------------------------------------------------------------------------


def test_the_series_asked_for_longest_ago_goes_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_bytes=10_000)
    for series in ("1.5", "1.6", "1.7"):
        assert scene.keep(series, size=1300)
    reader = scene.find("1.5")
    assert reader is not None
    now(reader.close())
    assert scene.keep("1.8", size=1300)
    assert [scene.has(series) for series in ("1.5", "1.6", "1.7", "1.8")] == [True, False, True, True]
    assert scene.cache.used == scene.on_disk() <= 10_000


def test_a_series_being_read_is_never_evicted(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_bytes=8_000)
    assert scene.keep("1.5", size=3000)
    reader = scene.find("1.5")
    assert reader is not None
    assert not scene.keep("1.6", size=3000)
    assert scene.has("1.5")
    assert read_all(reader) == content("1.5", 3000, 2)
    assert scene.keep("1.6", size=3000)
    assert not scene.has("1.5")


def test_a_series_larger_than_the_cache_is_not_kept_and_costs_no_other_for_long(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_bytes=3 * BLOCK)
    assert not scene.keep("1.5", size=2 * BLOCK, count=3)
    assert (scene.files(), scene.cache.used, scene.cache._held) == ([], 0, 0)
    assert scene.keep("1.6")


def test_the_number_of_series_is_bounded(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_series=2)
    for series in ("1.5", "1.6", "1.7"):
        assert scene.keep(series)
    assert [scene.has(series) for series in ("1.5", "1.6", "1.7")] == [False, True, True]
    scene.reopen(max_series=1)
    assert scene.cache.series == 1
    assert scene.cache.used == scene.on_disk()


def test_a_series_grows_too_old_however_often_it_is_asked_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_age=100.0)
    assert scene.keep()
    scene.clock.advance(99)
    reader = scene.find()
    assert reader is not None
    now(reader.close())
    scene.clock.advance(2)
    assert scene.find() is None
    assert (scene.files(), scene.cache.used) == ([], 0)


def test_a_sweep_removes_what_nobody_asks_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_age=100.0)
    assert scene.keep("1.5")
    scene.clock.advance(60)
    assert scene.keep("1.6")
    scene.clock.advance(60)
    now(scene.cache.sweep())
    assert [scene.has("1.5"), scene.has("1.6")] == [False, True]
    scene.clock.advance(60)
    scene.reopen()
    assert scene.files() == []


def test_a_clock_set_back_does_not_keep_a_series_for_ever(scene: Scene) -> None:
    assert scene.keep()
    scene.clock.advance(-100)
    assert scene.has()
    reader = scene.find()
    assert reader is not None
    now(reader.close())
    scene.clock.advance(-86400)
    assert scene.find() is None


def test_the_disk_keeps_what_is_to_be_left_free(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scene.keep("1.5")
    assert scene.keep("1.6")
    # Others fill the disk: it would take both series and more.
    monkeypatch.setattr(Folder, "free", lambda self: 100 - scene.on_disk())
    scene.settings = CacheSettings(enabled=True, min_free=50)
    scene.cache._settings = scene.settings
    assert not scene.keep("1.7")
    assert scene.cache.series == 0
    assert scene.files() == []
    monkeypatch.setattr(Folder, "free", lambda self: 10_000_000)
    assert scene.keep("1.7")
    monkeypatch.setattr(Folder, "free", lambda self: 0 if scene.on_disk() else 100)
    now(scene.cache.sweep())
    assert not scene.has("1.7")


def test_a_disk_slower_than_the_pacs_costs_the_entry_not_the_memory(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MAX_HELD", 4 * BLOCK)
    scene.threads.by_hand = True
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    slot = writer.add("1.5.1", CT, EXPLICIT)
    for _ in range(100):
        slot.write(bytes(BLOCK // 2))
        assert scene.cache._held <= 4 * BLOCK
    slot.end()
    done = start(writer.commit({"1.5.1"}))
    scene.threads.settle()
    assert done.result is False
    assert (scene.files(), scene.cache.used, scene.cache._held) == ([], 0, 0)


def test_too_many_instances_are_not_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachewriting, "MAX_INSTANCES", 1)
    assert not scene.keep()
    assert scene.keep(count=1)


# --- a disk that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["begin", "write", "seal"])
def test_a_disk_that_fails_costs_the_entry_and_nothing_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder if where == "begin" else Partial, where, fail)
    assert not scene.keep(size=2 * BLOCK)
    monkeypatch.undo()
    assert (scene.files(), scene.cache.used, scene.cache._held) == ([], 0, 0)
    assert scene.keep()


def test_a_disk_that_does_not_give_back_is_damage(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scene.keep()
    reader = scene.find()
    assert reader is not None

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(CacheDamaged):
        now(read(reader, reader.instances[0]))
    assert not scene.has()


def test_a_disk_that_does_not_let_go_still_hides_the_entry(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scene.keep()

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Folder, "remove", fail)
    now(scene.cache.purge("site", "1.4"))
    assert scene.find() is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_leaves_the_cache_off(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    scene = Scene(tmp_path / "cache")
    tmp_path.chmod(0o700)
    assert not scene.cache.enabled
    assert "inutilisable" in scene.cache.problem


def test_a_file_in_the_place_of_the_folder_leaves_the_cache_off(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    scene = Scene(tmp_path / "cache")
    assert not scene.cache.enabled
    assert "inutilisable" in scene.cache.problem
    assert not scene.keep()
    assert scene.find() is None
    now(scene.cache.close())


def test_two_processes_do_not_share_a_cache(scene: Scene) -> None:
    assert scene.keep()
    other = Cache(SETTINGS, scene.root, clock=scene.clock, in_thread=scene.threads)
    now(other.open())
    assert not other.enabled
    assert other.problem
    assert scene.find() is not None
    # Nor does one that has it switched off take the files of the other away.
    off = Cache(CacheSettings(), scene.root, clock=scene.clock, in_thread=scene.threads)
    now(off.open())
    assert "effacées" in off.problem
    assert scene.find() is not None


# --- purge ----------------------------------------------------------------------------------------


def test_a_study_removed_from_the_pacs_leaves_the_cache(scene: Scene) -> None:
    for study, series in (("1.4", "1.5"), ("1.4", "1.6"), ("1.41", "1.7")):
        assert scene.keep(series, study=study)
    now(scene.cache.purge("site", "1.4"))
    assert [scene.has("1.5"), scene.has("1.6"), scene.has("1.7", study="1.41")] == [False, False, True]
    assert scene.cache.used == scene.on_disk()
    now(scene.cache.purge("other", "1.41"))
    assert scene.has("1.7", study="1.41")
    scene.reopen()
    assert scene.cache.series == 1


def test_nothing_is_found_from_the_moment_a_purge_begins(scene: Scene) -> None:
    assert scene.keep()
    scene.threads.by_hand = True
    purging = start(scene.cache.purge("site", "1.4"))
    assert not scene.has()
    scene.threads.settle()
    assert purging.called
    assert scene.files() == []


def test_a_purge_while_an_entry_is_being_opened_is_a_miss(scene: Scene) -> None:
    assert scene.keep()
    scene.threads.by_hand = True
    finding = start(scene.cache.find("site", "1.4", "1.5", set(content("1.5", 0, 2))))
    start(scene.cache.purge("site", "1.4"))
    scene.threads.settle()
    assert finding.result is None
    assert (scene.files(), scene.cache.used) == ([], 0)


def test_who_reads_when_a_purge_comes_reads_to_the_end(scene: Scene) -> None:
    assert scene.keep()
    reader = scene.find()
    assert reader is not None
    used = scene.cache.used
    now(scene.cache.purge("site", "1.4"))
    assert scene.files() == []
    # The disk has not got the bytes back before the reader lets go.
    assert scene.cache.used == used
    assert read_all(reader) == content("1.5", 1000, 2)
    assert scene.cache.used == 0


@pytest.mark.parametrize("steps", range(6))
def test_a_purge_at_any_moment_of_a_writing_wins(scene: Scene, steps: int) -> None:
    """The images came before the study was removed: they must not appear after it."""
    scene.threads.by_hand = True
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    slot = writer.add("1.5.1", CT, EXPLICIT)
    slot.write(bytes(2 * BLOCK))
    slot.end()
    committing = start(writer.commit({"1.5.1"}))
    for _ in range(steps):
        if scene.threads.pending:
            scene.threads.step()
    purging = start(scene.cache.purge("site", "1.4"))
    while not purging.called:
        scene.threads.step()
    assert scene.files() == []
    assert not scene.has()
    scene.threads.settle()
    assert committing.called
    assert (scene.files(), scene.cache.used, scene.cache._held) == ([], 0, 0)
    scene.threads.by_hand = False
    assert scene.keep()


@pytest.mark.parametrize("steps", range(8))
def test_a_purge_of_several_series_waits_for_none_to_appear(scene: Scene, steps: int) -> None:
    assert scene.keep("1.6")
    scene.threads.by_hand = True
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    slot = writer.add("1.5.1", CT, EXPLICIT)
    slot.write(bytes(2 * BLOCK))
    slot.end()
    committing = start(writer.commit({"1.5.1"}))
    for _ in range(steps):
        if scene.threads.pending:
            scene.threads.step()
    start(scene.cache.purge("site", "1.4"))
    # The removal of the entry that was there takes its time; meanwhile the writer goes on.
    removal = scene.threads.pending.pop()
    scene.threads.settle()
    assert scene.cache.series == 0
    scene.threads.pending.append(removal)
    scene.threads.settle()
    assert committing.called
    assert (scene.files(), scene.cache.used) == ([], 0)


def test_a_series_may_come_again_after_a_purge(scene: Scene) -> None:
    scene.threads.by_hand = True
    old = scene.cache.begin("site", "1.4", "1.5")
    assert old is not None
    old.add("1.5.1", CT, EXPLICIT).write(bytes(2 * BLOCK))
    purging = start(scene.cache.purge("site", "1.4"))
    scene.threads.settle()
    assert purging.called
    scene.threads.by_hand = False
    assert scene.keep()
    # The delivery of before the purge ends only now.
    now(old.discard())
    assert scene.find() is not None
    assert scene.cache.used == scene.on_disk()


def test_closing_gives_up_what_is_being_written(scene: Scene) -> None:
    writer = scene.cache.begin("site", "1.4", "1.5")
    assert writer is not None
    writer.add("1.5.1", CT, EXPLICIT).write(bytes(2 * BLOCK))
    now(scene.cache.close())
    assert scene.files() == []
    assert scene.cache.begin("site", "1.4", "1.5") is None


def test_reading_after_closing_is_a_mistake_that_costs_no_entry(scene: Scene) -> None:
    assert scene.keep()
    reader = scene.find()
    assert reader is not None
    now(reader.close())
    with pytest.raises(RuntimeError):
        now(read(reader, reader.instances[0]))
    assert scene.has()


# --- files ----------------------------------------------------------------------------------------


def test_off_it_makes_no_file_and_removes_its_own(tmp_path: Path) -> None:
    off = Scene(tmp_path / "cache", enabled=False)
    assert not (tmp_path / "cache").exists()
    assert off.cache.begin("site", "1.4", "1.5") is None
    assert off.find() is None
    now(off.cache.sweep())
    now(off.cache.purge("site", "1.4"))
    assert not (tmp_path / "cache").exists()
    on = Scene(tmp_path / "cache")
    assert on.keep()
    now(on.cache.close())
    off.reopen()
    assert not (tmp_path / "cache").exists()
    assert not off.cache.problem


def test_off_it_touches_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    for name in ("entries", "partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    (tmp_path / "CACHEDIR.TAG").write_bytes(
        b"Signature: 8a477f597d28d172789f06886806bc55\n# somebody else\n"
    )
    Scene(tmp_path, enabled=False)
    assert (tmp_path / "entries" / "file").exists()


@pytest.mark.parametrize(
    "tag", [None, b"", b"Signature: 8a477f597d28d172789f06886806bc55\n# somebody else\n"]
)
def test_a_folder_that_holds_something_else_is_neither_used_nor_emptied(
    tmp_path: Path, tag: bytes | None
) -> None:
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "thesis.txt").write_bytes(b"x")
    if tag is not None:
        (tmp_path / "CACHEDIR.TAG").write_bytes(tag)
    scene = Scene(tmp_path)
    assert not scene.cache.enabled
    assert "non vide" in scene.cache.problem
    assert (tmp_path / "entries" / "thesis.txt").exists()


def test_an_empty_disk_of_its_own_and_a_start_cut_short_are_taken(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "CACHEDIR.TAG.new").write_bytes(b"Sig")
    scene = Scene(tmp_path)
    assert scene.keep()
    scene.reopen()
    assert scene.find() is not None
    assert (tmp_path / "lost+found").exists()


def test_only_the_owner_may_read(scene: Scene) -> None:
    old = os.umask(0)
    try:
        scene.reopen()
        assert scene.keep(size=2 * BLOCK)
        writer = scene.cache.begin("site", "1.4", "1.6")
        assert writer is not None
        writer.add("1.6.1", CT, EXPLICIT).write(bytes(2 * BLOCK))
    finally:
        os.umask(old)
    for path in [scene.root, *scene.root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_backups_pass_by(scene: Scene) -> None:
    assert (
        (scene.root / "CACHEDIR.TAG")
        .read_bytes()
        .startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    )


@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest.mark.parametrize("evil", ["../../../evil", "/etc/evil", "a\0b", "x" * 5000, ".", ""])
def test_no_string_of_a_peer_is_in_a_path(tmp_path: Path, evil: str) -> None:
    scene = Scene(tmp_path / "in" / "cache")
    writer = scene.cache.begin(evil, evil, evil)
    assert writer is not None
    slot = writer.add("1.2.3", CT, EXPLICIT)
    slot.write(b"x")
    slot.end()
    assert now(writer.commit({"1.2.3"}))
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"cache"}
    for path in scene.root.rglob("*"):
        assert "evil" not in path.name
    reader = now(scene.cache.find(evil, evil, evil, {"1.2.3"}))
    assert reader is not None
    now(scene.cache.purge(evil, evil))
    assert scene.files() == []


# --- at random ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_count_is_that_of_the_disk(tmp_path: Path, seed: int) -> None:
    """Random writers, readers, purges, restarts and threads that finish when they like."""
    chance = random.Random(seed)
    scene = Scene(tmp_path, max_bytes=60_000, max_series=6, max_age=1000.0)
    scene.threads.by_hand = True
    readers: list[tuple[str, object]] = []
    waiting = []
    for _ in range(250):
        series = f"1.{chance.randrange(12)}"
        match chance.randrange(8):
            case 0 | 1 | 2:
                writer = scene.cache.begin("site", f"2.{series}", series)
                if writer is not None:
                    for uid, data in content(series, chance.choice([10, 5000, 20_000]), 2).items():
                        slot = writer.add(uid, CT, EXPLICIT)
                        slot.write(data)
                        slot.end()
                    waiting.append(start(writer.commit(set(content(series, 0, 2)))))
            case 3 | 4:
                due = set(content(series, 0, 2))
                found = start(scene.cache.find("site", f"2.{series}", series, due))
                found.addCallback(lambda reader, series=series: readers.append((series, reader)))
                waiting.append(found)
            case 5:
                waiting.append(start(scene.cache.purge("site", f"2.{series}")))
            case 6:
                scene.clock.advance(chance.choice([1, 300]))
                waiting.append(start(scene.cache.sweep()))
            case 7 if readers:
                series, reader = readers.pop()
                if reader is not None:
                    waiting.append(start(reader.close()))
        for _ in range(chance.randrange(4)):
            if scene.threads.pending:
                scene.threads.step()
        assert scene.cache.series <= 6 + len(scene.cache._writers) + 1
    scene.threads.settle()
    scene.threads.by_hand = False
    for series, reader in readers:
        if reader is not None:
            assert set(read_all(reader)) == set(content(series, 0, 2))
    assert all(each.called and not isinstance(each.result, Failure) for each in waiting)
    assert scene.cache._held == 0
    assert not scene.cache._writers
    now(scene.cache.sweep())
    assert scene.cache.used == scene.on_disk() <= 60_000
    assert scene.cache.series == len(list((scene.root / "entries").iterdir())) <= 6
    before = set(scene.cache._index)
    scene.reopen()
    assert set(scene.cache._index) == before
