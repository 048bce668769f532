"""The directory of a zip kept on disk: the same zip as the library's own, in memory that does not grow."""

from __future__ import annotations

import io
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from drimbox.xdm.directory import Directory

pytestmark = pytest.mark.requirement("DB.SO.29")


def entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 0, 0x20
    return info


def written(count: int, *, spooled: bool = True) -> tuple[io.BytesIO, Directory, int]:
    """Write a zip of so many entries; return it, its directory, and where that begins."""
    file, directory = io.BytesIO(), Directory(entry)
    archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
    if spooled:
        directory.of(archive)
    for number in range(count):
        archive.writestr(entry(f"KA202601/{number}"), b"%d" % number * 9)
    archive.close()
    return file, directory, archive.start_dir


def test_it_is_the_zip_that_the_library_writes() -> None:
    plain, _, _ = written(300, spooled=False)
    file, directory, start = written(300)
    assert file.getvalue() == plain.getvalue()
    assert len(directory) == 300
    assert directory.agrees(file, start)
    directory.close()


@pytest.mark.peer("unzip")
def test_more_entries_than_the_first_zip_knew(tmp_path: Path) -> None:
    file, directory, start = written(66_000)
    assert directory.agrees(file, start)
    with zipfile.ZipFile(file) as archive:
        assert len(archive.infolist()) == 66_000
        assert archive.read("KA202601/65999") == b"65999" * 9
    path = tmp_path / "many.zip"
    path.write_bytes(file.getvalue())
    done = subprocess.run(["unzip", "-tq", str(path)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_memory_does_not_grow_with_the_entries(tmp_path: Path) -> None:
    """The library keeps some 700 bytes an entry, and as many to read it back."""

    def peak(count: int) -> int:
        with (tmp_path / f"{count}.zip").open("w+b") as file:
            archive, directory = zipfile.ZipFile(file, "w"), Directory(entry)
            directory.of(archive)
            tracemalloc.start()
            for number in range(count):
                archive.writestr(entry(f"KA202601/{number}"), b"x")
            archive.close()
            assert directory.agrees(file, archive.start_dir)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            directory.close()
        return found

    assert peak(5_000) < peak(500) + 100_000


Spoil = Callable[[bytearray, int], None]


def data_changed(held: bytearray, start: int) -> None:
    held[45] ^= 0xFF


def name_changed(held: bytearray, start: int) -> None:
    held[30] ^= 0x01


def local_header_gone(held: bytearray, start: int) -> None:
    held[0:4] = bytes(4)


def checksum_changed(held: bytearray, start: int) -> None:
    held[start + 16] ^= 0xFF


def offset_changed(held: bytearray, start: int) -> None:
    held[start + 42] ^= 0xFF


def end_gone(held: bytearray, start: int) -> None:
    at = held.rindex(b"PK\x05\x06")
    held[at : at + 4] = bytes(4)


def directory_cut(held: bytearray, start: int) -> None:
    del held[start + 20 :]


def data_cut(held: bytearray, start: int) -> None:
    del held[40:]


@pytest.mark.parametrize(
    "spoil",
    [
        data_changed,
        name_changed,
        local_header_gone,
        checksum_changed,
        offset_changed,
        end_gone,
        directory_cut,
        data_cut,
    ],
)
def test_what_the_medium_did_not_keep_is_noticed(spoil: Spoil) -> None:
    file, directory, start = written(3)
    held = bytearray(file.getvalue())
    spoil(held, start)
    assert not directory.agrees(io.BytesIO(bytes(held)), start)
