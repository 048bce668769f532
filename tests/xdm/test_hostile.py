"""Archives that nobody honest made: one test a trick (threat "zip bomb / zip slip")."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from drimbox.xdm import opening
from drimbox.xdm.checking import TakenKos, check_set
from drimbox.xdm.opening import ArchiveRefused, FileRefused, open_archive
from tests.xdm.builders import files, set_entries, zipped

pytestmark = [
    pytest.mark.requirement("DB.SO.30"),
    pytest.mark.threat("zip bomb, zip slip (XDM)"),
]
GOOD = "SS000002"


@contextmanager
def opened(folder: Path, data: bytes) -> Iterator[opening.SetArchive]:
    path = folder / "KA202601.ZIP"
    path.write_bytes(data)
    with open_archive(path) as archive:
        yield archive


def read_all(folder: Path, data: bytes) -> None:
    with opened(folder, data) as archive:
        for name in archive.sets:
            archive.files(name)


def refused(folder: Path, data: bytes, reason: str) -> None:
    """The whole archive is refused, and nothing was written anywhere."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(ArchiveRefused, match=reason):
        read_all(folder, data)
    (folder / "KA202601.ZIP").unlink()
    assert sorted(folder.parent.rglob("*")) == before


def costs_itself_only(folder: Path, odd: Mapping[str, bytes] | bytes, reason: str) -> None:
    """A bad set is refused, the good one beside it is taken."""
    data = odd if isinstance(odd, bytes) else zipped({**odd, **set_entries(files(), name=GOOD)})
    with opened(folder, data) as archive:
        assert archive.sets == ["SS000001", GOOD]
        with pytest.raises(FileRefused, match=reason):
            archive.files("SS000001")
        (found,) = check_set(archive.files(GOOD))
        assert isinstance(found, TakenKos)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x",
        "KA202601/IHE_XDM/../../../x",
        "/etc/passwd",
        "C:/windows/x",
        "KA202601\\..\\..\\x",
        "\\\\server\\share\\x",
        "KA202601//x",
        "KA202601/./x",
        "a" * 1100,
    ],
)
def test_a_name_that_climbs(tmp_path: Path, name: str) -> None:
    refused(tmp_path, zipped({**set_entries(files()), name: b"x"}), "nom de fichier dangereux")


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    data = zipped({**set_entries(files()), "KA202601/aXb": b"x"}).replace(b"KA202601/aXb", b"KA202601/a\0b")
    refused(tmp_path, data, "nom de fichier dangereux")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("KA202601/IHE_XDM/SS000001/KOS_1_1.DCM")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    refused(tmp_path, zipped([(link, b"/etc/shadow")]), "lien ou un fichier spécial")


@pytest.mark.parametrize("name", ["KA202602.ZIP", "IHE_XDM/SS000001/x.zip", "photos.7z", "a.tar.gz"])
def test_an_archive_within_the_archive(tmp_path: Path, name: str) -> None:
    refused(tmp_path, zipped({f"KA202601/{name}": zipped({})}), "archive contenant une archive")


def test_a_bomb_that_declares_its_size(tmp_path: Path) -> None:
    bomb = {**files(), "KOS_1_1.DCM": bytes(20 * 1024**2)}
    costs_itself_only(tmp_path, set_entries(bomb), "annonce 20971520 octets")


def test_a_bomb_within_the_limits_of_size(tmp_path: Path) -> None:
    bomb = {**files(), "KOS_1_1.DCM": bytes(15 * 1024**2)}
    costs_itself_only(tmp_path, set_entries(bomb), "taux de compression")


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    held = {**files(), "CR.TXT": os.urandom(40_000)}
    data = bytearray(zipped({**set_entries(held), **set_entries(files(), name=GOOD)}))
    for head, where in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = -1
        while (at := data.find(head, at + 1)) >= 0:
            if struct.unpack_from("<L", data, at + where)[0] == 40_000:
                struct.pack_into("<L", data, at + where, 100)
    costs_itself_only(tmp_path, bytes(data), "CR.TXT")


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    data = bytearray(zipped({**set_entries(files()), **set_entries(files(), name=GOOD)}))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    refused(tmp_path, bytes(data), "se chevauchent")


def test_more_entries_than_any_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped({**set_entries(files()), "KA202601/a": b"", "KA202601/b": b""})
    monkeypatch.setattr(opening, "MAX_ENTRIES", 4)
    refused(tmp_path, data, "5 entrées, 4 au plus")
    # An end that lies: the directory itself is counted too.
    end = data.rindex(b"PK\x05\x06")
    small = data[: end + 8] + struct.pack("<HH", 1, 1) + data[end + 12 :]
    refused(tmp_path, small, "5 entrées|ZIP lisible")


def test_a_directory_larger_than_memory(tmp_path: Path) -> None:
    data = zipped(set_entries(files()))
    end = data.rindex(b"PK\x05\x06")
    huge = data[: end + 12] + struct.pack("<L", 0xF0000000) + data[end + 16 :]
    refused(tmp_path, huge, "taille impossible")


def test_a_zip64_end_that_claims_a_billion_entries(tmp_path: Path) -> None:
    data = zipped(set_entries(files()))
    end = data.rindex(b"PK\x05\x06")
    whole = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 10**6, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    refused(tmp_path, data[:end] + whole + locator + data[end:], "1000000000 entrées")


def test_more_than_an_archive_may_inflate_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_TOTAL", 1000)
    refused(tmp_path, zipped(set_entries(files())), "décompressée")


def test_the_same_file_twice_in_a_set(tmp_path: Path) -> None:
    """Which of two manifests was checked must never be in doubt."""
    pairs = [*set_entries(files()).items(), ("KA202601/IHE_XDM/SS000001/kos_1_1.dcm", b"other")]
    pairs += set_entries(files(), name=GOOD).items()
    costs_itself_only(tmp_path, zipped(pairs), "en double")


def test_an_encrypted_file(tmp_path: Path) -> None:
    data = bytearray(zipped({**set_entries(files()), **set_entries(files(), name=GOOD)}))
    for head, where in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        struct.pack_into("<H", data, data.index(head) + where, 1)
    costs_itself_only(tmp_path, bytes(data), "chiffré")


def test_a_method_that_nobody_needs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in set_entries(files()).items():
            archive.writestr(name, data, zipfile.ZIP_LZMA)
        for name, data in set_entries(files(), name=GOOD).items():
            archive.writestr(name, data, zipfile.ZIP_STORED)
    costs_itself_only(tmp_path, buffer.getvalue(), "méthode de compression")


def test_damage_inside_an_entry(tmp_path: Path) -> None:
    data = bytearray(zipped({**set_entries(files()), **set_entries(files(), name=GOOD)}))
    at = data.index(b"SS000001/KOS_1_1.DCM") + 200
    data[at : at + 8] = bytes(8)
    costs_itself_only(tmp_path, bytes(data), "endommagé|taille")


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip" * 100, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip(tmp_path: Path, data: bytes) -> None:
    if data.startswith(b"PK\x05\x06"):
        with opened(tmp_path, data) as archive:
            assert archive.sets == []
    else:
        refused(tmp_path, data, "ZIP lisible")


def test_any_cut_or_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = zipped(set_entries(files()))
    for at in range(0, len(whole), 97):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            try:
                with opened(tmp_path, data) as archive:
                    for name in archive.sets:
                        check_set(archive.files(name))
            except (ArchiveRefused, FileRefused):
                pass


# --- folders ----------------------------------------------------------------------------------------


def unpacked(folder: Path, held: Mapping[str, bytes], name: str = "SS000001") -> Path:
    place = folder / "KA202601" / "IHE_XDM" / name
    place.mkdir(parents=True)
    for file, data in held.items():
        (place / file).write_bytes(data)
    return folder / "KA202601"


def folder_costs_itself_only(top: Path, reason: str) -> None:
    with open_archive(top) as archive:
        with pytest.raises(FileRefused, match=reason):
            archive.files("SS000001")
        assert isinstance(check_set(archive.files(GOOD))[0], TakenKos)


def test_a_link_on_a_medium(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(files()["KOS_1_1.DCM"])
    top = unpacked(tmp_path, files())
    unpacked_too = unpacked(tmp_path / "more", files(), GOOD) / "IHE_XDM" / GOOD
    unpacked_too.rename(top / "IHE_XDM" / GOOD)
    manifest = top / "IHE_XDM" / "SS000001" / "KOS_1_1.DCM"
    manifest.unlink()
    manifest.symlink_to(secret)
    folder_costs_itself_only(top, "est un lien")
    # A pipe would be waited for without end.
    manifest.unlink()
    os.mkfifo(manifest)
    folder_costs_itself_only(top, "n'est pas un fichier")
    manifest.unlink()
    manifest.write_bytes(bytes(17 * 1024**2))
    folder_costs_itself_only(top, "dépasse")


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    top = unpacked(tmp_path / "elsewhere", files())
    medium = tmp_path / "KA202602" / "IHE_XDM"
    medium.mkdir(parents=True)
    (medium / "SS000001").symlink_to(top / "IHE_XDM" / "SS000001")
    with open_archive(tmp_path / "KA202602") as archive:
        assert archive.sets == []


def test_a_linked_archive_is_not_opened(tmp_path: Path) -> None:
    real = tmp_path / "real.zip"
    real.write_bytes(zipped(set_entries(files())))
    (tmp_path / "KA202601.ZIP").symlink_to(real)
    with (
        pytest.raises(ArchiveRefused, match="ouverture impossible"),
        open_archive(tmp_path / "KA202601.ZIP"),
    ):
        pass


# --- dialects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "KA202601/", "ka202601/", "KA202601\\", "PACS1_KA202601/"])
def test_honest_archives_of_every_maker_are_read(tmp_path: Path, top: str) -> None:
    separator = "\\" if "\\" in top else "/"
    lower = {name.lower(): data for name, data in files().items()}
    entries = {
        f"{top}ihe_xdm{separator}ss000001{separator}{name}": data
        for name, data in {**lower, "sign_1.xml": b"<x/>"}.items()
    }
    entries[f"{top}INDEX.HTM"] = b"<html/>"
    with opened(tmp_path, zipped(entries)) as archive:
        (name,) = archive.sets
        assert isinstance(check_set(archive.files(name))[0], TakenKos)


def test_a_month_of_more_entries_than_zip_first_foresaw_is_read(tmp_path: Path) -> None:
    """Past 65,535 entries a zip is a ZIP64."""
    held = files()
    entries: dict[str, bytes] = {}
    for number in range(1, 22_001):
        folder = f"KA202601/IHE_XDM/SS{number:06}/"
        entries |= {f"{folder}{name}": b"" for name in held}
    for name, data in held.items():
        entries[f"KA202601/IHE_XDM/SS022000/{name}"] = data
    data = zipped(entries)
    assert b"PK\x06\x06" in data
    with opened(tmp_path, data) as archive:
        assert len(archive.sets) == 22_000
        assert isinstance(check_set(archive.files("SS022000"))[0], TakenKos)


def test_archives_are_found_where_they_lie(tmp_path: Path) -> None:
    for name in ("KA202602.ZIP", "KA202601.zip", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    unpacked(tmp_path / "x", files())
    (tmp_path / "x" / "KA202601").rename(tmp_path / "KA202512")
    (tmp_path / "x").rmdir()
    found = [path.name for path in opening.find_archives(tmp_path)]
    assert found == ["KA202512", "KA202601.zip", "KA202602.ZIP"]
    assert opening.find_archives(tmp_path / "KA202512") == [tmp_path / "KA202512"]
    with pytest.raises(ArchiveRefused, match="ni archive"):
        opening.find_archives(tmp_path / "KA202512" / "IHE_XDM" / "SS000001")
