"""Test KOS loaded by hand: read from files or archives, metadata or not; nothing when the mode is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from drimbox.kos.reading import Manifest
from drimbox.source import homologation as module
from drimbox.source.homologation import Homologation
from drimbox.source.jobs import JobFailed, Progress
from tests.source.fakes import at_once, run, site
from tests.store import samples
from tests.xdm.builders import files, published, set_entries, zipped


@attrs.frozen
class Count:
    kos: int
    patients: int


@attrs.define
class Loaded:
    kept: dict[str, tuple[str, bytes]] = attrs.field(factory=dict)

    async def load(self, site: str, manifest: Manifest, data: bytes) -> bool:
        if manifest.sop_instance_uid in self.kept:
            return False
        self.kept[manifest.sop_instance_uid] = (site, data)
        return True

    async def clear(self) -> int:
        count = len(self.kept)
        self.kept.clear()
        return count

    async def count(self) -> Count:
        return Count(len(self.kept), 1)


def load(loaded: Loaded, *paths: Path, enabled: bool = True) -> dict[str, Any]:
    work = Homologation(enabled, loaded, at_once)
    return dict(run(work.load(Progress(), site=site(), paths=paths)))


def bare(folder: Path, number: int, **changes: Any) -> Path:
    path = folder / f"{number}.dcm"
    report = samples.report(f"2.25.{number}")
    report = attrs.evolve(report, patient=attrs.evolve(report.patient, **changes))
    path.write_bytes(published(number, report=report).submission.kos)
    return path


def test_bare_manifests_are_loaded(tmp_path: Path) -> None:
    loaded = Loaded()
    result = load(loaded, bare(tmp_path, 1), bare(tmp_path, 2))
    assert (result["loaded"], result["known"], result["patients"], result["refused"]) == (2, 0, 1, [])
    assert set(loaded.kept) == {"2.25.5001", "2.25.5002"}
    assert load(loaded, bare(tmp_path, 2))["known"] == 1


def test_several_patients_are_told(tmp_path: Path) -> None:
    one, other = bare(tmp_path, 1), bare(tmp_path, 2, ins="184070100499094")
    assert load(Loaded(), one, other)["patients"] == 2


def test_an_archive_without_metadata_is_loaded(tmp_path: Path) -> None:
    held = files()
    del held["METADATA.XML"], held["CR.TXT"]
    path = tmp_path / "KA202601.ZIP"
    path.write_bytes(zipped(set_entries(held)))
    assert load(Loaded(), path)["loaded"] == 1


def test_what_is_no_manifest_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    (tmp_path / "y.dcm").write_bytes(b"neither")
    result = load(Loaded(), tmp_path / "x.dcm", tmp_path / "y.dcm", tmp_path / "z.dcm", bare(tmp_path, 1))
    assert result["loaded"] == 1
    assert [each["file"] for each in result["refused"]] == ["x.dcm", "y.dcm", "z.dcm"]


def test_nothing_is_loaded_while_the_mode_is_off(tmp_path: Path) -> None:
    loaded = Loaded()
    with pytest.raises(JobFailed, match="désactivé"):
        load(loaded, bare(tmp_path, 1), enabled=False)
    assert loaded.kept == {}


def test_there_is_a_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOADED", 2)
    loaded = Loaded()
    load(loaded, bare(tmp_path, 1), bare(tmp_path, 2))
    with pytest.raises(JobFailed, match="plus de 2"):
        load(loaded, bare(tmp_path, 3))


def test_what_must_not_be_forgotten_is_said() -> None:
    assert "actif" in Homologation(True, Loaded(), at_once).warning(Count(0, 0))
    assert "clear" in Homologation(False, Loaded(), at_once).warning(Count(2, 1))
    assert Homologation(False, Loaded(), at_once).warning(Count(0, 0)) == ""
