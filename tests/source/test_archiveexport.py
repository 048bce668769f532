"""Which months of which sites are written, and what happens when a medium does not play along."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from drimbox.config import Site
from drimbox.source import archiveexport
from drimbox.source.archiveexport import ArchiveExport
from drimbox.source.jobs import JobFailed, JobStopped, Progress
from drimbox.xdm import writing
from drimbox.xdm.names import Month
from drimbox.xdm.writing import ExportedKos
from tests.source.fakes import at_once, config, run, site
from tests.xdm.builders import published

pytestmark = pytest.mark.requirement("DB.SO.29")
SITES = (site(1), site(2))


@attrs.define
class Listing:
    """Manifests by site: when each was published, and what it is."""

    held: dict[str, list[tuple[datetime, ExportedKos]]]
    #: Depublished while the export runs.
    gone: frozenset[str] = frozenset()

    async def span(self, site: str) -> tuple[datetime, datetime] | None:
        instants = [instant for instant, _ in self.held.get(site, ())]
        return (min(instants), max(instants)) if instants else None

    async def numbers(self, site: str, start: datetime, end: datetime) -> list[int]:
        return [int(kos.sop_instance_uid[5:]) for at, kos in self.held.get(site, ()) if start <= at < end]

    async def load(self, kos_id: int) -> ExportedKos | None:
        every = [kos for site in self.held.values() for _, kos in site]
        found = next(kos for kos in every if kos.sop_instance_uid == f"2.25.{kos_id}")
        return None if found.sop_instance_uid in self.gone else found


def at(month: int) -> datetime:
    return datetime(2026, month, 15, 12, tzinfo=UTC)


def listing(**changes: Any) -> Listing:
    held = {
        "site1": [
            (at(1), published(1).exported()),
            (at(1), published(2).exported()),
            (at(3), published(3).exported()),
        ],
        "site2": [(at(3), published(4).exported())],
    }
    return Listing(held, **changes)


def export(
    folder: Path,
    held: Listing,
    *,
    sites: Sequence[Site] = SITES,
    progress: Progress | None = None,
    **what: Any,
) -> dict[str, Any]:
    async def waiting() -> int:
        return 3

    work = ArchiveExport(config(*SITES), held, at_once, waiting)
    return dict(run(work.run(progress or Progress(), folder=folder, sites=sites, **what)))


def test_each_site_and_month_is_a_file_of_its_own(tmp_path: Path) -> None:
    progress = Progress()
    result = export(tmp_path, listing(), progress=progress)
    assert sorted(os.listdir(tmp_path)) == [
        "SITE1_KA202601.ZIP",
        "SITE1_KA202603.ZIP",
        "SITE2_KA202603.ZIP",
    ]
    assert [(each["file"], each["sets"]) for each in result["files"]] == [
        ("SITE1_KA202601.ZIP", 2),
        ("SITE1_KA202603.ZIP", 1),
        ("SITE2_KA202603.ZIP", 1),
    ]
    assert (progress.done, progress.total, result["waiting"], result["failed"]) == (4, 4, 3, [])


def test_one_site_or_one_month_alone(tmp_path: Path) -> None:
    export(tmp_path, listing(), sites=SITES[1:])
    assert os.listdir(tmp_path) == ["SITE2_KA202603.ZIP"]
    export(tmp_path, listing(), month=Month(2026, 1))
    assert sorted(os.listdir(tmp_path)) == ["SITE1_KA202601.ZIP", "SITE2_KA202603.ZIP"]


def test_a_month_whose_manifests_all_left_meanwhile_leaves_no_file(tmp_path: Path) -> None:
    held = listing(gone=frozenset({"2.25.5001", "2.25.5002"}))
    result = export(tmp_path, held, sites=SITES[:1])
    assert os.listdir(tmp_path) == ["SITE1_KA202603.ZIP"]
    assert len(result["files"]) == 1


def test_one_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    held = listing()
    held.held["site1"][0] = (at(1), attrs.evolve(published(1).exported(), metadata=b"<x/>"))
    result = export(tmp_path, held)
    assert [each["sop_instance_uid"] for each in result["failed"]] == ["2.25.5001"]
    assert result["files"][0]["sets"] == 1


def test_a_stop_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(JobStopped):
        export(tmp_path, listing(), progress=Progress(stopping=True))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["missing", "relative", "unseen"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, where: str) -> None:
    # What may not be looked at is an error of the system, as a name that is too long is.
    folder = {"missing": tmp_path / "missing", "relative": Path(), "unseen": tmp_path / ("x" * 300)}[where]
    with pytest.raises(JobFailed, match="chemin absolu"):
        export(folder, listing())


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "support plein"), (errno.EROFS, "lecture seule"), (errno.EIO, "entrée")],
)
def test_a_medium_that_fails_is_said_in_french(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(JobFailed, match=words):
        export(tmp_path, listing())
    assert os.listdir(tmp_path) == []


def test_large_lifts_the_limit_of_fat32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiveexport, "FAT_LIMIT", 1000)
    with pytest.raises(JobFailed, match="--large"):
        export(tmp_path, listing())
    assert os.listdir(tmp_path) == []
    assert len(export(tmp_path, listing(), large=True)["files"]) == 3
