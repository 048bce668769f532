"""Loading archives: in the order of the months, into one site, each set for itself."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drimbox.config import Structure
from drimbox.source import archiveimport
from drimbox.source.archiveimport import ArchiveImport
from drimbox.source.jobs import JobFailed, JobStopped, Progress
from drimbox.xdm.checking import check_set
from drimbox.xdm.takeover import Fate, Takeover
from tests.source.fakes import Clock, at_once, config, run, site, structure
from tests.xdm.builders import files, published, set_entries, write, zipped

pytestmark = pytest.mark.requirement("DB.SO.30")


@attrs.define
class Imports:
    """Keeps what it is given; the study numbers in `older` are known in a newer version."""

    older: frozenset[str] = frozenset()
    taken: list[Takeover] = attrs.field(factory=list)

    async def take(self, record: Takeover) -> Fate:
        fate = await self.fate(record)
        if fate in (Fate.LOADED, Fate.OLDER):
            self.taken.append(record)
        return fate

    async def fate(self, record: Takeover) -> Fate:
        made = record.submission
        if any(each.submission.sop_instance_uid == made.sop_instance_uid for each in self.taken):
            return Fate.KNOWN
        return Fate.OLDER if made.study.study_uid in self.older else Fate.LOADED


def load(
    folder: Path,
    imports: Imports,
    *paths: Path,
    structures: Sequence[Structure] | None = None,
    progress: Progress | None = None,
    **what: Any,
) -> dict[str, Any]:
    settings = config(structures=structures)
    work = ArchiveImport(settings, imports, at_once, Clock(), folder / "imports")
    return dict(run(work.run(progress or Progress(), site=site(), paths=paths, **what)))


def rows(result: dict[str, Any]) -> list[dict[str, str]]:
    with Path(result["report"]).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def archives(folder: Path) -> Path:
    """Write two months, the later one first."""
    place = folder / "medium"
    place.mkdir()
    late = zipped(set_entries(files(2), top="KA202602/"))
    (place / "KA202602.ZIP").write_bytes(late)
    write(place, published(1).exported(), published(3).exported())
    return place


def test_every_month_is_loaded_and_told_in_a_report(tmp_path: Path) -> None:
    imports, progress = Imports(older=frozenset({"2.25.3"})), Progress()
    result = load(tmp_path, imports, archives(tmp_path), progress=progress)
    assert [each.submission.study.study_uid for each in imports.taken] == ["2.25.1", "2.25.3", "2.25.2"]
    assert (result["archives"], result["counts"]["charge"], result["counts"]["plus-ancien"]) == (2, 2, 1)
    assert (progress.done, progress.total) == (3, 3)
    found = rows(result)
    assert [(row["archive"], row["jeu"], row["sort"]) for row in found] == [
        ("KA202601.ZIP", "SS000001", "charge"),
        ("KA202601.ZIP", "SS000002", "plus-ancien"),
        ("KA202602.ZIP", "SS000001", "charge"),
    ]
    assert "vérifier ce que le DMP détient" in found[1]["motif"]
    assert "284070100499094" not in Path(result["report"]).read_text("utf-8-sig")
    # Filed where its archive says, whenever it was submitted.
    assert imports.taken[2].published_at == datetime(2026, 2, 1).astimezone()


def test_a_trial_keeps_nothing(tmp_path: Path) -> None:
    imports = Imports()
    result = load(tmp_path, imports, archives(tmp_path), dry_run=True)
    assert (imports.taken, result["counts"]["charge"], result["dry_run"]) == ([], 3, True)
    assert result["report"].endswith("-essai.csv")


def test_a_structure_without_certificate_is_told(tmp_path: Path) -> None:
    imports = Imports()
    result = load(tmp_path, imports, archives(tmp_path), structures=[structure("1777777777")])
    assert result["warnings"] == 3
    assert imports.taken[0].submission.structure_id == "1999999999"
    assert "sans certificat ici" in rows(result)[0]["motif"]


@pytest.mark.threat("a KOS in the record of another patient")
def test_archives_of_several_pacs_never_go_into_one_site(tmp_path: Path) -> None:
    imports = Imports()
    for name in ("SITE1_KA202601.ZIP", "SITE2_KA202601.ZIP"):
        (tmp_path / name).write_bytes(zipped(set_entries(files())))
    with pytest.raises(JobFailed, match="plusieurs PACS"):
        load(tmp_path, imports, tmp_path)
    assert imports.taken == []
    assert load(tmp_path, imports, tmp_path / "SITE1_KA202601.ZIP")["counts"]["charge"] == 1


def test_an_archive_that_cannot_be_used_costs_the_others_nothing(tmp_path: Path) -> None:
    imports, place = Imports(), archives(tmp_path)
    (place / "KA202512.ZIP").write_bytes(b"nothing")
    result = load(tmp_path, imports, place)
    assert [each["archive"] for each in result["unusable"]] == ["KA202512.ZIP"]
    assert len(imports.taken) == 3


def test_a_set_that_breaks_its_reader_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(held: dict[str, bytes]) -> Any:
        if b"2.25.5001" in held["METADATA.XML"]:
            raise RecursionError
        return check_set(held)

    monkeypatch.setattr(archiveimport, "check_set", check)
    imports = Imports()
    result = load(tmp_path, imports, archives(tmp_path))
    assert (result["counts"]["refuse"], len(imports.taken)) == (1, 2)


def test_a_stop_keeps_what_was_loaded_and_its_report(tmp_path: Path) -> None:
    imports = Imports()
    with pytest.raises(JobStopped):
        load(tmp_path, imports, archives(tmp_path), progress=Progress(stopping=True))
    assert len(imports.taken) == 1
    (report,) = (tmp_path / "imports").iterdir()
    assert report.read_text("utf-8-sig").count("charge") == 1


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="ni archive"):
        load(tmp_path, Imports(), tmp_path)


@given(st.sampled_from(["METADATA.XML", "KOS_1_1.DCM", "CR.TXT"]), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_of_a_set_breaks_the_check(name: str, data: st.DataObject) -> None:
    held = dict(_HELD)
    where = data.draw(st.integers(0, len(held[name]) - 1))
    piece = data.draw(st.binary(max_size=8))
    held[name] = held[name][:where] + piece + held[name][where + data.draw(st.integers(0, 8)) :]
    for found in check_set(held):
        assert found is not None


_HELD = files()
