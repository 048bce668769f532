"""The feed is measured with what it claims: every report published, each step in order, nothing made up."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find  # type: ignore[attr-defined]

from bench import __main__ as bench_main
from bench import feed as bench_feed
from bench.drain import measure_drain, rate
from bench.feed import large_studies, measure_bursts, measure_large_reports, measure_latency, small_studies
from bench.feeding import FedGateway, NotPublished
from bench.feedreport import FEED_SECTIONS
from bench.finder import FinderPacs, elements, matches
from bench.kosarchive import measure_archive
from bench.machine import describe
from bench.plan import QUICK
from bench.report import DOCUMENT, filled
from bench.results import Results
from bench.ris import NotAccepted, Ris, message, study_of
from bench.targets import TARGETS, target_of
from drimbox.cda.header import read_header
from drimbox.dicom.identifiers import IMPLICIT_LE, encode_dataset
from drimbox.hl7.message import read_message

PLAN = attrs.evolve(
    QUICK,
    feed_repeat=1,
    feed_burst=6,
    feed_connections=(1, 2),
    feed_instances=2,
    feed_large_instances=3,
    feed_large_burst=2,
    feed_large_reports=1,
    feed_backlog=20,
    archived=300,
)


# --- the stand-in PACS ----------------------------------------------------------------------------


def query(level: str, **keys: str) -> Dataset:
    """An identifier of C-FIND, with a sequence in it as the gateway's have."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.OtherPatientIDsSequence = []
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


@pytest.mark.parametrize(
    ("level", "above", "count"),
    [
        ("STUDY", {}, 1),
        ("SERIES", {}, 3),
        ("IMAGE", {"SeriesInstanceUID": "1.2.3.2"}, 4),
    ],
)
def test_finder_answers_what_pydicom_reads(level: str, above: dict[str, str], count: int) -> None:
    asked = elements(encode_dataset(query(level, StudyInstanceUID="1.2.3", **above), IMPLICIT_LE))
    found = [read_dataset(io.BytesIO(data), True, True) for data in matches(asked, 3, 4)]
    assert len(found) == count
    assert {each.StudyInstanceUID for each in found} == {"1.2.3"}
    assert all(each.QueryRetrieveLevel == level for each in found)
    if level == "IMAGE":
        assert len({each.SOPInstanceUID for each in found}) == count
        assert {each.SeriesInstanceUID for each in found} == {"1.2.3.2"}


def test_finder_speaks_to_pynetdicom(tmp_path: Path) -> None:
    with FinderPacs(2, 3, log=tmp_path / "log") as pacs:
        entity = AE()
        entity.add_requested_context(Find)
        association = entity.associate("127.0.0.1", pacs.port)
        assert association.is_established
        answers = list(association.send_c_find(query("SERIES", StudyInstanceUID="1.2.3"), Find))
        assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0x0000]
        assert [each.SeriesInstanceUID for _, each in answers[:2]] == ["1.2.3.1", "1.2.3.2"]
        association.release()
        assert association.is_released


# --- the RIS --------------------------------------------------------------------------------------


def test_every_report_is_about_a_study_of_its_own_and_as_large_as_asked() -> None:
    first, second = (read_message(message(number)) for number in (1, 2))
    studies = [read_header(each.document).acts[0].study_uid for each in (first, second)]
    assert studies == [study_of(1), study_of(2)]
    assert read_header(first.document).document_id != read_header(second.document).document_id
    assert len(message(1, 300_000)) > 500_000


def test_a_report_that_is_not_accepted_gives_no_figure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                data = b""
                while not data.endswith(b"\x1c\r"):
                    data += connection.recv(65536)
                connection.sendall(b"\x0bMSH|^~\\&|||||||ACK\rMSA|AE|0\r\x1c\r")

        thread = threading.Thread(target=refuse)
        thread.start()
        with Ris(log=tmp_path / "log") as ris, pytest.raises(NotAccepted, match="1 reports of 1"):
            ris.send(server.getsockname()[1], 0, 1)
        thread.join()


# --- the measures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FedGateway, FedGateway]]:
    """One gateway before small studies and one before large ones: each is five processes to start."""
    folder = tmp_path_factory.mktemp("fed")
    with small_studies(PLAN, folder) as small, large_studies(PLAN, folder) as large:
        yield small, large


@pytest.fixture
def started(fed: tuple[FedGateway, FedGateway], monkeypatch: pytest.MonkeyPatch) -> FedGateway:
    """Have what is measured find these two running; return the one before small studies."""
    small, large = fed
    monkeypatch.setattr(bench_feed, "small_studies", lambda plan, folder: nullcontext(small))
    monkeypatch.setattr(bench_feed, "large_studies", lambda plan, folder: nullcontext(large))
    return small


@pytest.mark.usefixtures("started")
def test_latency_is_the_sum_of_its_steps(tmp_path: Path) -> None:
    results = Results()
    measure_latency(results, PLAN, tmp_path)
    value = {each.name.removeprefix("feed.latency."): each.value for each in results.all()}
    steps = sum(value[name] for name in ("read", "match", "queue", "ask"))
    assert steps == pytest.approx(value["dmp"], abs=0.005)
    assert steps + value["judge"] + value["end"] == pytest.approx(value["published"], abs=0.005)
    assert 0 < value["ack"] < value["dmp"] < value["published"]
    assert value["large.dmp"] > 0


@pytest.mark.usefixtures("started")
def test_bursts_count_only_what_was_published(tmp_path: Path) -> None:
    results = Results()
    measure_bursts(results, PLAN, tmp_path)
    measure_large_reports(results, PLAN, tmp_path)
    value = {each.name: each.value for each in results.all()}
    for name in ("feed.publications", "feed.accept.1.rate", "feed.accept.2.rate", "feed.accept.large.rate"):
        assert value[name] > 0
    assert value["feed.accept.large.size"] > 13
    assert 0 < value["feed.cpu.dmp_share"] < 1


def test_a_full_inbox_is_drained_whole(tmp_path: Path) -> None:
    results = Results()
    measure_drain(results, PLAN, tmp_path)
    assert results.get("drain.reports") == PLAN.feed_backlog
    assert (results.get("drain.kept") or 0) > 0
    assert (results.get("drain.memory.peak") or 0) >= (results.get("drain.memory.start") or 0) > 1
    assert rate([1.0, 1.5, 2.0]) == 2.0


def test_what_is_not_published_gives_no_figure(
    started: FedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.send(1)
    started.wait_published(seconds=60)
    monkeypatch.setattr(started, "reports", started.reports + 1)
    with pytest.raises(NotPublished, match=f"{started.reports - 1} publications of {started.reports}"):
        started.wait_published(seconds=1)


def test_archive_is_looked_up_by_the_gateway_s_own_code(tmp_path: Path) -> None:
    results = Results()
    measure_archive(results, PLAN, tmp_path)
    assert results.get("archive.kos") == PLAN.archived
    names = {each.name for each in results.all()}
    assert {"archive.lookup", "archive.lookup_cold", "archive.lookup_large", "archive.insert"} <= names


# --- the run and the document ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("feed.latency.dmp", 0.5, 0.51),
        ("feed.accept.1.rate", 100.0, 99.0),
        ("feed.publications", 20.0, 19.9),
        ("archive.lookup", 0.005, 0.0051),
        ("drain.kept", 0.9, 0.89),
    ],
)
def test_targets_are_those_of_the_issue(name: str, inside: float, outside: float) -> None:
    target = target_of(name)
    assert target is not None
    assert target.met(inside)
    assert not target.met(outside)
    assert sum(each.covers(name) for each in TARGETS) == 1


@pytest.mark.parametrize(
    ("only", "file"),
    [(["feed"], "feed.json"), (["drain"], "partial.json"), (["feed", "drain"], "feed.json")],
)
def test_run_of_the_feed_needs_no_pacs_and_keeps_to_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: list[str], file: str
) -> None:
    def measured(results: Results, plan: object, folder: Path) -> None:
        results.add(folder.name.rpartition("-")[0], 1.0, "/s")

    def nobody(*unused: object, **more: object) -> None:
        raise AssertionError("no PACS is needed")

    monkeypatch.setattr(bench_main, "FEED", dict.fromkeys(bench_main.FEED, measured))
    monkeypatch.setattr(bench_main, "make_studies", nobody)
    monkeypatch.setattr(bench_main, "DATA", tmp_path)
    monkeypatch.setattr(bench_main, "FOLDER", tmp_path)
    monkeypatch.setattr(bench_main, "FEED_RUN", tmp_path / "feed.json")
    done = CliRunner().invoke(bench_main.main, [f"--only={name}" for name in only])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / file).read_text())
    names = [each["name"] for each in written["results"] if "machine" not in each["name"]]
    assert names == (list(bench_main.FEED) if "feed" in only else only)


def test_document_shows_the_feed_from_its_own_run(tmp_path: Path) -> None:
    results = Results()
    for name, value, unit in (
        ("machine.scaling", 0.5, "ratio"),
        ("feed.latency.dmp", 0.6, "s"),
        ("feed.publications", 25.0, "/s"),
        ("feed.accept.4.rate", 250.0, "reports/s"),
        ("archive.lookup", 0.001, "s"),
    ):
        results.add(name, value, unit)
    results.fail("drain", "Stuck: 5 of 9")
    results.leave_out("archive", "trop long")
    path = tmp_path / "feed.json"
    results.write(path, describe())
    run = json.loads(path.read_text())
    text = "".join(f"<!-- figures: {name} -->\nold\n<!-- end -->\n" for name in FEED_SECTIONS)
    written = filled(text, {"feed": run})
    assert "old" not in written
    assert "| **to TD2.1 at the DMP** | ≤ 500 ms | **600 ms** ✗ |" in written
    assert "| **publications, end to end** | ≥ 20.0 /s | 25.0 /s |" in written
    assert "accepted over 4 connections" in written
    assert "The machine had other work" in written
    assert "failed: drain: Stuck: 5 of 9" in written
    assert "left out: archive: trop long" in written
    assert filled(text, {}).count("Not measured (`results/feed.json`)") == len(FEED_SECTIONS)
    document = DOCUMENT.read_text()
    assert all(f"<!-- figures: {name} -->" in document for name in FEED_SECTIONS)
