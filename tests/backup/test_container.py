"""The file of a backup believes nothing: what is missing, added, changed or from elsewhere is refused."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from drimbox.backup import container
from drimbox.backup.container import DATABASE, MANIFEST, BackupUnusable, Manifest, describe, read, write

pytestmark = pytest.mark.requirement("DB.SO.24")


def manifest(files: dict[str, Path], **changes: Any) -> Manifest:
    made = Manifest(
        format=1,
        version="0.1.0",
        made_at="2026-01-12T09:30:00+00:00",
        system_id="349",
        revision="r0009",
        audit_last=3,
        audit_hash="0" * 64,
        kos=1,
        configuration="configuration.toml",
        secrets=False,
        members=tuple(describe(name, path, f"/etc/{name}") for name, path in files.items()),
    )
    return attrs.evolve(made, **changes)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, content in (
        (DATABASE, random.Random(1).randbytes(3_000_000)),
        ("configuration.toml", b"[drimbox]\n"),
    ):
        found[name] = tmp_path / name
        found[name].write_bytes(content)
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup.tar.gz"


def test_what_is_written_is_read_back(files: dict[str, Path], target: Path, tmp_path: Path) -> None:
    made = manifest(files)
    write(target, made, files)
    assert target.stat().st_mode & 0o777 == 0o600
    folder = tmp_path / "out"
    folder.mkdir()
    assert read(target, folder) == made
    for name, path in files.items():
        assert (folder / name).read_bytes() == path.read_bytes()
        assert (folder / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_is_refused(files: dict[str, Path], target: Path, share: float) -> None:
    write(target, manifest(files), files)
    data = target.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BackupUnusable):
        read(target)


def test_any_byte_changed_is_noticed(files: dict[str, Path], target: Path) -> None:
    write(target, manifest(files), files)
    good = target.read_bytes()
    for place in range(12, len(good), max(1, len(good) // 60)):
        target.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        with pytest.raises(BackupUnusable):
            read(target)


def forge(target: Path, made: Manifest, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Write a tar of our own making behind a manifest."""
    with gzip.open(target, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        text = json.dumps(attrs.asdict(made)).encode()
        for info, content in [(tarfile.TarInfo(MANIFEST), text), *members]:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.threat("path traversal by UID, AE title, file name")
@pytest.mark.parametrize(
    ("change", "members"),
    [
        (lambda made: made, lambda data: [(info("../evil"), b"x"), *data]),
        (lambda made: made, lambda data: [(info("/etc/passwd"), b"x"), *data]),
        (lambda made: made, lambda data: [*data, (info("more"), b"x")]),
        (lambda made: made, lambda data: [*data, data[0]]),
        (lambda made: made, lambda data: data[:1]),
        (lambda made: made, lambda data: []),
        (
            lambda made: made,
            lambda data: [(info(DATABASE, tarfile.SYMTYPE, "/etc/passwd"), b""), *data[1:]],
        ),
        (lambda made: made, lambda data: [(info(DATABASE, tarfile.LNKTYPE, "x"), b""), *data[1:]]),
        (lambda made: made, lambda data: [(info(DATABASE, tarfile.FIFOTYPE), b""), *data[1:]]),
        (lambda made: made, lambda data: [(data[0][0], data[0][1] + b"x"), *data[1:]]),
        (lambda made: made, lambda data: [(data[0][0], b"E" + data[0][1][1:]), *data[1:]]),
        (lambda made: attrs.evolve(made, format=2), lambda data: data),
        (lambda made: attrs.evolve(made, made_at="hier"), lambda data: data),
        (lambda made: attrs.evolve(made, made_at="2026-01-12T09:30:00"), lambda data: data),
        (lambda made: attrs.evolve(made, members=made.members[1:]), lambda data: data[1:]),
        (lambda made: attrs.evolve(made, members=(*made.members, made.members[1])), lambda data: data),
        (
            lambda made: attrs.evolve(
                made, members=(attrs.evolve(made.members[1], name="../configuration.toml"), *made.members)
            ),
            lambda data: data,
        ),
        (lambda made: attrs.evolve(made, kos="beaucoup"), lambda data: data),
        (lambda made: attrs.evolve(made, configuration="autre.toml"), lambda data: data),
        (lambda made: attrs.evolve(made, configuration=DATABASE), lambda data: data),
        (
            lambda made: attrs.evolve(
                made, members=(made.members[0], attrs.evolve(made.members[1], origin="/etc/\0evil"))
            ),
            lambda data: data,
        ),
    ],
)
def test_a_forged_file_is_refused_and_writes_nowhere_else(
    files: dict[str, Path],
    target: Path,
    tmp_path: Path,
    change: Callable[[Manifest], Manifest],
    members: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]],
) -> None:
    data = [(info(name), path.read_bytes()) for name, path in files.items()]
    forge(target, change(manifest(files)), members(data))
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    with pytest.raises(BackupUnusable):
        read(target, folder)
    assert set(tmp_path.rglob("*evil*")) == set()
    assert {path.name for path in folder.iterdir()} <= set(files)
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_file_that_begins_with_something_else_is_no_backup(target: Path) -> None:
    with gzip.open(target, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        content = b"{}"
        made = info("something")
        made.size = len(content)
        tar.addfile(made, io.BytesIO(content))
    with pytest.raises(BackupUnusable, match="manifeste"):
        read(target)
    target.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(BackupUnusable, match="n'est pas une sauvegarde"):
        read(target)


def test_a_manifest_without_end_is_not_read(target: Path, files: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(container, "MAX_MANIFEST", 100)
    forge(target, manifest(files), [])
    with pytest.raises(BackupUnusable, match="manifeste"):
        read(target)


@pytest.mark.threat("zip bomb, zip slip (XDM)")
@pytest.mark.parametrize("before", [True, False], ids=["first", "between"])
@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME], ids=["pax", "global", "long name"]
)
def test_a_header_that_announces_a_whole_disk_takes_no_memory(
    files: dict[str, Path], target: Path, kind: bytes, *, before: bool
) -> None:
    """A few hundred kilobytes that tarfile alone would unpack into memory, several times over."""
    long = info("x", kind)
    long.size = 64 * 1024 * 1024
    with gzip.open(target, "wb", compresslevel=1) as packed:
        if not before:
            text = json.dumps(attrs.asdict(manifest(files))).encode()
            head = info(MANIFEST)
            head.size = len(text)
            packed.write(head.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512))
        packed.write(long.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            packed.write(bytes(1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(BackupUnusable, match="annonce plus"):
            read(target)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_manifest_that_announces_more_than_the_disk_is_not_unpacked(
    files: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    made = manifest(files)
    huge = attrs.evolve(made.members[0], size=2**60)
    forge(target, attrs.evolve(made, members=(huge, made.members[1])), [(info(DATABASE), b"x")])
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(BackupUnusable, match="place insuffisante"):
        read(target, folder)
    assert list(folder.iterdir()) == []
