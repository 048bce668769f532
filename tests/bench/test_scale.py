"""A whole archive is measured by what was done to all of it, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from bench.machine import describe
from bench.plan import QUICK
from bench.report import filled
from bench.results import Results
from bench.scale import NotDone, measure_scale, waited
from bench.targets import target_of
from drimbox.conformance.archive import validate_archive

PLAN = attrs.evolve(QUICK, feed_instances=2, scale_walk=12, scale_month=20)


def test_an_archive_is_loaded_held_against_the_pacs_and_exported(tmp_path: Path) -> None:
    results = Results()
    measure_scale(results, PLAN, tmp_path)
    figures = {each.name: each.value for each in results.all()}
    counts = [figures[f"scale.{name}.kos"] for name in ("import", "resync", "export")]
    assert counts == [12, 12, 20]
    assert all(figures[f"scale.{name}.rate"] > 0 for name in ("import", "resync", "export"))
    assert set(figures) >= {"scale.resync.memory", "scale.resync.cpu", "scale.export.each"}
    # What was loaded and exported is an archive like any other.
    for path in (tmp_path / "first" / "KA202601.ZIP", tmp_path / "medium" / "KA202601.ZIP"):
        report = validate_archive(path)
        assert report.ok, report.lines()


def test_what_is_not_over_in_time_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scale._AT_LEAST", 0.1)
    monkeypatch.setattr("bench.scale._EACH", 0.0)
    with pytest.raises(NotDone, match="too slow: 3"):
        waited(lambda: 3, lambda seen: seen == 4, 100)


def test_the_document_shows_the_figures(tmp_path: Path) -> None:
    results = Results()
    results.add("scale.resync.kos", 20_000, "KOS")
    results.add("scale.resync.rate", 50.0, "KOS/s")
    results.add("scale.resync.memory", 40.0, "MB")
    results.write(tmp_path / "run.json", describe())
    run = json.loads((tmp_path / "run.json").read_text())
    text = "".join(f"<!-- figures: {name} -->\nold\n<!-- end -->\n" for name in ("scale",))
    written = filled(text, {"scale": run})
    assert "old" not in written
    assert (
        "| held against the PACS (DB.SO.28) | 20000 KOS | 50.0 KOS/s | – | **40.0 MB** ✗ | ≤ 32.0 MB |"
        in written
    )
    assert "Not measured (`results/scale.json`)" in filled(text, {})
    target = target_of("scale.export.memory")
    assert target is not None
    assert target.met(32.0)
