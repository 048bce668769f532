"""One month on a medium: its names, its pages, its bytes, and what happens when the medium fails."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from drimbox.xdm import checking, entries, metadata, opening, writing
from drimbox.xdm.entries import MetadataRefused
from drimbox.xdm.rebuilding import structure_of
from tests.xdm.builders import MONTH, SENDER, published, write
from tests.xds.builders import schemas

pytestmark = pytest.mark.requirement("DB.SO.29")
SETS = ["METADATA.XML", "KOS_{}_1.DCM", "CR.TXT"]


def test_a_month_has_the_layout_of_the_specification(tmp_path: Path) -> None:
    path = write(tmp_path, published(1).exported("2.25.901", "2.25.902"), published(2).exported())
    assert os.listdir(tmp_path) == ["KA202601.ZIP"]
    with zipfile.ZipFile(path) as archive:
        inside = archive.namelist()
        assert inside == [
            *(f"KA202601/IHE_XDM/SS00000{n}/{name.format(n)}" for n in (1, 2) for name in SETS),
            "KA202601/INDEX.HTM",
            "KA202601/README.TXT",
        ]
        kos = archive.read("KA202601/IHE_XDM/SS000001/KOS_1_1.DCM")
        reports = archive.read("KA202601/IHE_XDM/SS000001/CR.TXT").decode()
        readme = archive.read("KA202601/README.TXT")
        index = archive.read("KA202601/INDEX.HTM")
        text = archive.read("KA202601/IHE_XDM/SS000002/METADATA.XML")
    assert kos == published(1).submission.kos
    assert reports == "".join(f"2.25.90{n};1.2.250.1.213.1.4.10;284070100499094\r\n" for n in (1, 2))
    assert readme.count(b"\n") == readme.count(b"\r\n")
    for part in (
        "    . Organisme : CABINET Y (1999999999)",
        "SS000002",
        "KOS_2_1.DCM",
        "Emetteur :\r\n=====",
    ):
        assert part in readme.decode("utf-8")
    page = etree.fromstring(index, etree.XMLParser(load_dtd=False, no_network=True))
    cells = page.findall(".//{*}td")
    assert [cell.text for cell in cells if cell.text] == ["2.25.1", "2026-01-12", "2.25.2", "2026-01-12"]
    assert b"Emetteur : CABINET Y (1999999999)" in index
    assert b'href="README.TXT"' in index

    entry = etree.fromstring(text).find(".//{*}ExtrinsicObject[@mimeType='application/dicom']")
    slots = {slot.get("name"): slot.findtext(".//{*}Value") for slot in entry.findall("{*}Slot")}
    held = published(2).submission.kos
    assert slots["hash"] == hashlib.sha1(held, usedforsecurity=False).hexdigest()
    assert (slots["size"], slots["URI"]) == (str(len(held)), "SS000002/KOS_2_1.DCM")
    assert entry.get("id").startswith("urn:uuid:")
    assert {each.get("classifiedObject") for each in entry.findall("{*}Classification")} == {
        entry.get("id")
    }
    members = etree.fromstring(text).findall(".//{*}Association")
    assert sum(each.get("targetObject") == entry.get("id") for each in members) == 1


def test_the_same_month_is_the_same_bytes(tmp_path: Path) -> None:
    months = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        months.append(write(tmp_path / name, *(published(n).exported() for n in (1, 2, 3))).read_bytes())
    assert months[0] == months[1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_read_and_written_again_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], data: st.DataObject
) -> None:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    exported = []
    for number in numbers:
        ids = data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=3, unique=True))
        exported.append(published(number).exported(*(f"2.25.{each}" for each in ids)))
    path = write(first, *exported)
    again = []
    with opening.open_archive(path) as archive:
        for name in archive.sets:
            (found,) = checking.check_set(archive.files(name))
            assert isinstance(found, checking.TakenKos)
            assert found.warnings == ()
            assert structure_of(found).id == "1999999999"
            again.append(
                writing.ExportedKos(
                    found.manifest.sop_instance_uid,
                    found.manifest.study_uid,
                    found.kos,
                    found.metadata,
                    found.reports,
                )
            )
    assert write(second, *again).read_bytes() == path.read_bytes()


@pytest.mark.peer("unzip")
def test_another_program_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path, published(1).exported())
    done = subprocess.run(
        ["unzip", "-t", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "No errors detected" in done.stdout


def test_the_metadata_follow_the_schema(tmp_path: Path) -> None:
    found = next(iter(sorted(schemas().rglob("lcm.xsd"))), None) if schemas().exists() else None
    if found is None:
        pytest.skip("the public schemas are not here")
    path = write(tmp_path, published(1).exported())
    with zipfile.ZipFile(path) as archive:
        text = archive.read("KA202601/IHE_XDM/SS000001/METADATA.XML")
    schema = etree.XMLSchema(etree.parse(str(found)))
    schema.assertValid(etree.fromstring(text))


def test_a_month_that_fat32_cannot_hold_is_refused_before_the_medium_is_full(tmp_path: Path) -> None:
    with pytest.raises(writing.ExportRefused, match="FAT32"):
        write(tmp_path, published(1).exported(), published(2).exported(), limit=14_000)
    assert os.listdir(tmp_path) == []
    assert write(tmp_path, published(1).exported(), published(2).exported(), limit=None).exists()


def test_hash_and_size_are_added_where_the_submission_had_none(tmp_path: Path) -> None:
    """XDS lets a submission leave them out, an archive must have them (requirements.md 3.11)."""
    one = published(1)
    slot = rb'<Slot name="(?:hash|size)"[^>]*>.*?</Slot>'
    bare = re.sub(slot, b"", one.metadata)
    assert bare != one.metadata
    whole = one.exported()
    written = [
        metadata.exported(text, one.uid, "SS000001/KOS_1_1.DCM", whole.kos) for text in (one.metadata, bare)
    ]
    found = [entries.read(entries.parse(text)).entries[0] for text in written]
    assert found[0] == found[1]
    assert (found[1].hash, found[1].size) == (
        hashlib.sha1(whole.kos, usedforsecurity=False).hexdigest(),
        len(whole.kos),
    )


def test_metadata_of_another_manifest_cost_only_that_one(tmp_path: Path) -> None:
    one, two = published(1).exported(), published(2)
    writer = writing.MonthWriter(tmp_path, "", MONTH, SENDER, limit=None)
    wrong = writing.ExportedKos("2.25.77", one.study_uid, one.kos, one.metadata, one.reports)
    with pytest.raises(MetadataRefused):
        writer.add(wrong)
    writer.add(two.exported())
    with zipfile.ZipFile(writer.finish()) as archive:
        assert "KA202601/IHE_XDM/SS000001/KOS_1_1.DCM" in archive.namelist()
        assert len(archive.namelist()) == 5


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "KA202601.TMP").write_bytes(b"half")
    (tmp_path / "KA202601.ZIP").write_bytes(b"old")
    path = write(tmp_path, published(1).exported())
    assert os.listdir(tmp_path) == ["KA202601.ZIP"]
    assert zipfile.is_zipfile(path)


@pytest.mark.threat("zip bomb, zip slip (XDM)")
def test_a_link_left_on_the_medium_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    medium = tmp_path / "medium"
    medium.mkdir()
    (medium / "KA202601.TMP").symlink_to(victim)
    write(medium, published(1).exported())
    assert victim.read_text() == "mine"


def test_a_medium_that_forgets_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(descriptor: int) -> None:
        os.pwrite(descriptor, b"\0" * 64, 400)

    monkeypatch.setattr(writing.os, "fsync", forget)
    with pytest.raises(writing.ExportRefused, match="relecture"):
        write(tmp_path, published(1).exported())
    assert os.listdir(tmp_path) == []


def test_a_full_medium_leaves_nothing_and_spares_the_old_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "KA202601.ZIP").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write(tmp_path, published(1).exported())
    assert os.listdir(tmp_path) == ["KA202601.ZIP"]
    assert (tmp_path / "KA202601.ZIP").read_bytes() == b"old"
