"""What all tests share: the conformance matrix, and no silent skip of a real peer in CI.

The matrix is written to `reports/conformance.{json,md}` at the end of a run: for every requirement of
`tests/requirements.tsv`, the tests that name it and what they said. When several processes share the tests
(pytest-xdist) each report carries its requirements to the one that hands the tests out, which alone writes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from drimbox.sim import peers
from drimbox.sim.postgres import Absent, Cluster, find_programs
from tests.turns import Turns

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
CATALOGUE = Path(__file__).parent / "requirements.tsv"
_results: dict[str, dict[str, str]] = defaultdict(dict)
_RANK = {"passed": 0, "skipped": 1, "failed": 2}
_TURNS = pytest.StashKey[Turns]()
_LOCKS = pytest.StashKey[Path]()
# An example may take as long as the machine needs: 200 ms by the clock fail where others work beside us.
hypothesis.settings.register_profile("unhurried", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unhurried")


def _catalogue() -> dict[str, tuple[str, str]]:
    rows = (line.split("\t") for line in CATALOGUE.read_text("utf-8").splitlines() if line)
    return {row[0]: (row[1], row[4]) for row in rows}


def pytest_configure(config: pytest.Config) -> None:
    """Give processes that share the tests ports of their own, and let what tests start keep its bytecode.

    Gateways and commands are started many hundred times: compiling their modules is a sixth of each start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        share = len(peers.PORTS) // int(worker["workercount"])
        first = peers.PORTS[0] + share * int(worker["workerid"].removeprefix("gw"))
        os.environ[peers.PORTS_VARIABLE] = f"{first}-{first + share - 1}"
        config.stash[_TURNS] = Turns(Path(worker["turns"]))


def pytest_configure_node(node: Any) -> None:
    """Tell a process that will share the tests where the locks are (a hook of pytest-xdist)."""
    node.workerinput["turns"] = str(
        node.config.stash.setdefault(_LOCKS, Path(tempfile.mkdtemp())) / "turns"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Have a test marked `alone` run while no other process runs one."""
    turns = item.config.stash.get(_TURNS, None)
    if turns is None:
        return (yield)
    with turns.hold(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the locks."""
    if folder := config.stash.get(_LOCKS, None):
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a requirement that the catalogue does not have, and a peer marker without a program."""
    known = _catalogue()
    for item in items:
        for marker in item.iter_markers("requirement"):
            unknown = [name for name in marker.args if name not in known]
            if unknown:
                raise pytest.UsageError(f"{item.nodeid}: unknown requirement {unknown}")


def _installed(program: str) -> bool:
    if program == "postgres":
        # Debian keeps it off the path.
        return find_programs() is not None
    return shutil.which(program) is not None or Path("/usr/sbin", program).exists()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose peer program is not installed, saying which package brings it."""
    for marker in item.iter_markers("peer"):
        for program in marker.args:
            if not _installed(program):
                pytest.skip(f"{program} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, pytest.TestReport]:
    """Have a report name its requirements; in CI a real-peer test that was skipped has failed."""
    report: pytest.TestReport = yield
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("peer") is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where every peer must be there: {report.longrepr}"
    report.requirements = [name for marker in item.iter_markers("requirement") for name in marker.args]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note results by requirement."""
    if report.when == "call" or report.outcome != "passed":
        # A test whose process died has a report that is not of our making, and names no requirement.
        for name in getattr(report, "requirements", ()):
            known = _results[name].get(report.nodeid, "passed")
            _results[name][report.nodeid] = max(known, report.outcome, key=_RANK.__getitem__)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A PostgreSQL server of our own, for the whole run."""
    try:
        cluster = Cluster()
    except Absent as reason:
        pytest.skip(str(reason))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the matrix, unless only part of the tests was asked for by name."""
    if session.config.option.collectonly or hasattr(session.config, "workerinput"):
        return
    REPORTS.mkdir(exist_ok=True)
    rows = []
    for name, (level, text) in _catalogue().items():
        tests = _results.get(name, {})
        result = max(tests.values(), key=_RANK.__getitem__) if tests else "none"
        rows.append({"id": name, "level": level, "text": text, "result": result, "tests": tests})
    (REPORTS / "conformance.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    lines = ["| Requirement | Level | Result | Tests |", "|---|---|---|---|"]
    lines += [f"| {r['id']} {r['text']} | {r['level']} | {r['result']} | {len(r['tests'])} |" for r in rows]
    (REPORTS / "conformance.md").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def unhandled() -> Iterator[list[Failure]]:
    """Return what is logged as a failure meanwhile, as the reactor does with what its timers raise."""
    found: list[Failure] = []

    def observer(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            found.append(event["log_failure"])

    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)
