"""Figures are kept right, held against their targets, never made up; the document says what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import __main__ as bench_main
from bench.machine import cores, describe, speed
from bench.plan import QUICK, Plan
from bench.processes import cpu_seconds, peak_mb, reset_peak, resident_mb, session_cpu_seconds
from bench.profile import Profile, functions, library_shares
from bench.program import ROOT, Program, ProgramFailed
from bench.report import DOCUMENT, SECTIONS, filled
from bench.results import Results
from bench.study import kept_study, make_studies, reference_study
from bench.targets import TARGETS, target_of
from drimbox.sim.peers import PeerMissing, free_port

TINY = Plan(instances=2, small=1, large=3, tiny=2, slow_instances=1, parallel=(1,))


def document(results: Results, path: Path) -> dict[str, Any]:
    results.write(path, describe())
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def test_results_are_written_whole_with_their_machine(tmp_path: Path) -> None:
    results = Results()
    results.add("dcmqrscp.bare_move", 1.0456, "s")
    results.add("dcmqrscp.pipeline_ratio", 1.6, "ratio")
    with pytest.raises(ValueError, match="measured already"):
        results.add("dcmqrscp.bare_move", 2, "s")
    assert (results.get("dcmqrscp.bare_move"), results.get("orthanc.study")) == (1.0456, None)
    path = tmp_path / "results" / "latest.json"
    written = document(results, path)
    assert written["results"] == [
        {"name": "dcmqrscp.bare_move", "value": 1.0456, "unit": "s"},
        {
            "name": "dcmqrscp.pipeline_ratio",
            "value": 1.6,
            "unit": "ratio",
            "target": "≤ 1.5",
            "met": False,
        },
    ]
    assert {"cpu", "cores", "python", "versions", "peers"} <= set(written["machine"])
    assert [entry.name for entry in path.parent.iterdir()] == ["latest.json"]
    assert "HORS CIBLE" in results.table()


def test_what_has_no_figure_is_said(tmp_path: Path) -> None:
    results = Results()
    results.fail("orthanc.tiny", "MoveFailed: status 0xA702")
    results.leave_out("dcmqrscp.growth.13000", "trop grand")
    written = document(results, tmp_path / "latest.json")
    assert written["failed"] == [{"name": "orthanc.tiny", "why": "MoveFailed: status 0xA702"}]
    assert written["left_out"] == [{"name": "dcmqrscp.growth.13000", "why": "trop grand"}]
    assert "0xA702" in results.table()
    assert "trop grand" in results.table()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("dcmqrscp.pipeline_ratio", 1.5, 1.51),
        ("orthanc.first_image", 0.1, 0.11),
        ("orthanc.first_image_after_store", 0.02, 0.021),
        ("dcmqrscp.obvious_ratio", 5.0, 4.9),
        ("orthanc.dicomweb_ratio", 2.0, 2.1),
        ("orthanc.growth.linearity", 1.1, 1.2),
        ("orthanc.parallel.50.kept", 0.9, 0.89),
        ("dcmqrscp.tiny.rate", 1000.0, 999.0),
        ("orthanc.transcoded.first_image", 0.15, 0.16),
        ("health.kept.cpu", 3.0, 3.1),
        ("door.resumed", 0.0, 1.0),
    ],
)
def test_targets_are_those_of_the_issue(name: str, inside: float, outside: float) -> None:
    target = target_of(name)
    assert target is not None
    assert target.met(inside)
    assert not target.met(outside)
    assert sum(each.covers(name) for each in TARGETS) == 1


def test_what_has_no_target_is_held_against_none() -> None:
    for name in ("orthanc.growth.1300.study", "dcmqrscp.obvious.first_image", "memory.idle", "study.size"):
        assert target_of(name) is None


def test_studies_are_made_once_and_are_all_different(tmp_path: Path) -> None:
    first = reference_study(2, data=tmp_path)
    stamp = first.files[0].stat().st_mtime_ns
    again = reference_study(2, data=tmp_path)
    assert again == first
    assert again.files[0].stat().st_mtime_ns == stamp
    first.files[1].write_bytes(b"")
    assert reference_study(2, data=tmp_path).files[1].stat().st_size > 1000
    other = {"instances": 2, "rows": 16, "columns": 16}
    assert kept_study("reference-2", tmp_path, **other).size < 10_000
    studies = make_studies(TINY, data=tmp_path)
    everything = (studies.reference, studies.small, studies.large, studies.slow, studies.tiny)
    assert len({study.study_uid for study in everything}) == 5
    assert studies.tiny.files[0].stat().st_size == pytest.approx(20_000, abs=2_000)


def test_run_names_what_is_absent_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *unused: object, **more: object) -> None:
        if name == "orthanc":
            raise PeerMissing("Orthanc")
        raise RuntimeError("the disk is full")

    studies = make_studies(TINY, data=tmp_path)
    monkeypatch.setattr(bench_main, "open_site", absent)
    monkeypatch.setattr(bench_main, "make_studies", lambda plan: studies)
    monkeypatch.setattr(bench_main, "DATA", tmp_path)
    output = tmp_path / "latest.json"
    done = CliRunner().invoke(bench_main.main, ["--quick", "--only", "pipeline", "--output", str(output)])
    assert done.exit_code == 1
    written = json.loads(output.read_text())
    assert written["run"]["quick"] is True
    assert {each["name"] for each in written["results"]} >= {"study.instances", "study.size"}
    assert written["failed"] == [{"name": "dcmqrscp", "why": "RuntimeError: the disk is full"}]
    assert written["left_out"] == [{"name": "orthanc", "why": "Orthanc absent (paquet orthanc)"}]


def test_program_that_fails_says_why(tmp_path: Path) -> None:
    program = Program("bench.no_such_module", log=tmp_path / "log", timeout=10)
    with pytest.raises(ProgramFailed, match="no_such_module"), program:
        program.read()
    client = Program("bench.client", log=tmp_path / "log", timeout=10)
    with pytest.raises(ProgramFailed, match="refused"), client:
        client.ask(port=1, name="localhost", path="/", headers=[])
    silent = Program("bench.client", log=tmp_path / "log", timeout=0.2)
    with pytest.raises(ProgramFailed, match="in time"), silent:
        silent.read()


def test_processes_are_weighed(tmp_path: Path) -> None:
    with Program("bench.tap", str(free_port()), "9", log=tmp_path / "log") as program:
        program.read()
        assert cpu_seconds(program.pid) > 0
        assert 1 < resident_mb(program.pid) <= peak_mb(program.pid) < 500
        reset_peak(program.pid)
        assert peak_mb(program.pid) < 500
    assert session_cpu_seconds(os.getsid(0)) >= cpu_seconds(os.getpid())
    assert speed(1) > 1e6


@pytest.mark.parametrize("disturbed", [None, 0.3])
def test_document_is_filled_from_a_run_and_says_what_it_misses(
    tmp_path: Path, disturbed: float | None
) -> None:
    results = Results()
    for name, value, unit in (
        ("machine.scaling", 0.9 * cores() if disturbed is None else disturbed, "ratio"),
        ("dcmqrscp.pipeline_ratio", 1.7, "ratio"),
        ("orthanc.pipeline_ratio", 1.4, "ratio"),
        ("orthanc.growth.100.study", 0.08, "s"),
        ("orthanc.parallel.3.kept", 0.95, "ratio"),
        ("transcode.80-70.1w.rate", 81.0, "images/s"),
        ("transcode.80-70.2w.rate", 160.0, "images/s"),
    ):
        results.add(name, value, unit)
    results.fail("orthanc.tiny", "MoveFailed")
    run = document(results, tmp_path / "latest.json")
    sections = [name for name, (run_name, _) in SECTIONS.items() if run_name in ("latest", "profile")]
    text = "".join(f"# {name}\n<!-- figures: {name} -->\nold\n<!-- end -->\nkept\n" for name in sections)
    written = filled(text, {"latest": run})
    assert "old" not in written
    assert written.count("kept") == len(sections)
    assert "| **pipeline ratio** | ≤ 1.50 | **1.70** ✗ | 1.40 |" in written
    assert "| orthanc | 100 | 80 ms | – |" in written
    assert "| 80 → 70 | 81.0 images/s | – | 160 images/s | – | – |" in written
    assert "failed: orthanc.tiny: MoveFailed" in written
    assert "Not measured (`results/profile.json`)" in written
    assert ("The machine had other work" in written) == (disturbed is not None)
    assert filled(written, {"latest": run}) == written


def test_document_of_this_checkout_has_every_section() -> None:
    text = DOCUMENT.read_text()
    for name in SECTIONS:
        assert f"<!-- figures: {name} -->" in text
    latest = ROOT / "bench" / "results" / "latest.json"
    if latest.exists():
        filled(text, {"latest": json.loads(latest.read_text())})


def test_the_audit_trail_has_a_run_of_its_own(tmp_path: Path) -> None:
    results = Results()
    for name, value, unit in (
        ("speed", 1000.0, "MB/s"),
        ("speed_after", 999.0, "MB/s"),
        ("scaling", 2.0, ""),
    ):
        results.add(f"machine.{name}", value, unit)
    results.add("audit.command", 1.5, "s")
    run = document(results, tmp_path / "audit.json")
    text = "<!-- figures: audit -->\nold\n<!-- end -->\n"
    assert "Not measured (`results/audit.json`)" in filled(text, {})
    assert "**1.50 s** ✗" in filled(text, {"audit": run})
    assert "<!-- figures: audit -->" in DOCUMENT.read_text()


def test_the_door_has_a_run_of_its_own(tmp_path: Path) -> None:
    results = Results()
    results.add("door.handshake.rate", 400.0, "/s")
    results.add("door.handshake.cpu", 1.25, "ms")
    results.add("door.resumed", 2.0, "connections")
    run = document(results, tmp_path / "door.json")
    text = "<!-- figures: door -->\nold\n<!-- end -->\n"
    assert "Not measured (`results/door.json`)" in filled(text, {})
    written = filled(text, {"door": run})
    assert "| connections let in, every check (TLS 1.3) | 400 /s | 1.2 ms |" in written
    assert "**2.0 connections** ✗" in written
    assert "<!-- figures: door -->" in DOCUMENT.read_text()


def test_profile_counts_what_a_delivery_adds(tmp_path: Path) -> None:
    few: Profile = {("/x/site-packages/twisted/web/http.py", 7, "write"): (10, 10, 0.5, 0.5, {})}
    more: Profile = {
        ("/x/site-packages/twisted/web/http.py", 7, "write"): (30, 30, 1.5, 1.5, {}),
        ("/a/drimbox/dicom/pdu.py", 9, "feed"): (40, 40, 3.0, 3.0, {}),
        ("~", 0, "<method 'poll' of 'select.epoll' objects>"): (5, 5, 9.0, 9.0, {}),
    }
    found = functions(few, more, 20)
    assert found["calls_per_image"] == 3.0
    assert found["functions"] == [
        {"name": "drimbox.dicom.pdu.feed", "share": 0.75, "calls_per_image": 2.0},
        {"name": "twisted.web.http.write", "share": 0.25, "calls_per_image": 1.0},
    ]
    report = "# Overhead  Shared Object\n    60.50%  libpython3.11.so.1.0\n    39.00%  [kernel.kallsyms]\n"
    assert library_shares(report) == {
        "Python interpreter": pytest.approx(0.605),
        "kernel (TCP, epoll)": pytest.approx(0.39),
    }
    assert QUICK.instances < Plan().instances
