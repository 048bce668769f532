"""The tests shared by two processes: nothing of the matrix is lost, and who measures time is alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parents[1]

_CONFTEST = """
from pathlib import Path

import tests.conftest as shared
from tests.conftest import *

shared.REPORTS = Path(__file__).parent / "reports"
"""

#: Either file: its tests see through the folder what the other process is at.
_FILE = """
import os, time
from pathlib import Path

import pytest

from drimbox.sim import peers

HERE = Path(__file__).parent
MINE, OTHER = {mine!r}, {other!r}


def there(name):
    limit = time.monotonic() + 60
    while not (HERE / name).exists():
        assert time.monotonic() < limit, name
        time.sleep(0.01)


@pytest.mark.requirement("DB.SO.03")
def test_with_the_other():
    # Either waits for the other: one process alone would never come past here.
    (HERE / f"ports-{{MINE}}").write_text(os.environ[peers.PORTS_VARIABLE])
    there(f"ports-{{OTHER}}")


@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    assert not list(HERE.glob("busy-*"))
    (HERE / f"busy-{{MINE}}").touch()
    time.sleep(0.3)
    assert len(list(HERE.glob("busy-*"))) == 1
    (HERE / f"busy-{{MINE}}").unlink()


@pytest.mark.parametrize("number", range(20))
def test_shared(number):
    (HERE / f"busy-{{MINE}}").touch()
    time.sleep(0.05)
    (HERE / f"busy-{{MINE}}").unlink()


@pytest.mark.requirement("DB.SO.05")
def test_fails_in_one():
    assert MINE == "one"


@pytest.mark.requirement("DB.SO.11")
@pytest.mark.peer("a-program-that-nobody-has")
def test_of_a_peer():
    pass


@pytest.mark.requirement("DB.SO.12")
def test_dies_in_one():
    if MINE == "two":
        os._exit(3)
"""


@attrs.frozen
class Run:
    """What a run of two files by two processes said, by test and by requirement."""

    code: int
    output: str
    matrix: dict[str, dict[str, str]]
    ports: tuple[range, range]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "conftest.py").write_text(_CONFTEST)
    for mine, other in (("one", "two"), ("two", "one")):
        (folder / f"test_{mine}.py").write_text(_FILE.format(mine=mine, other=other))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-rA", "--color=no"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"CI": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    assert (folder / "reports" / "conformance.json").exists(), output
    rows = json.loads((folder / "reports" / "conformance.json").read_text("utf-8"))
    first, second = (
        [int(port) for port in (folder / f"ports-{name}").read_text().split("-")] for name in ("one", "two")
    )
    ports = (range(first[0], first[1] + 1), range(second[0], second[1] + 1))
    return Run(done.returncode, output, {row["id"]: row["tests"] for row in rows}, ports)


def test_the_matrix_has_the_tests_of_both(run: Run) -> None:
    assert run.matrix["DB.SO.03"] == {
        "test_one.py::test_with_the_other": "passed",
        "test_two.py::test_with_the_other": "passed",
    }
    assert run.matrix["DB.SO.05"] == {
        "test_one.py::test_fails_in_one": "passed",
        "test_two.py::test_fails_in_one": "failed",
    }


def test_a_peer_that_is_not_there_fails_the_run_in_ci(run: Run) -> None:
    assert set(run.matrix["DB.SO.11"].values()) == {"failed"}
    assert "skipped in CI" in run.output


def test_who_is_to_be_alone_is(run: Run) -> None:
    for name in ("one", "two"):
        for number in range(3):
            assert f"PASSED test_{name}.py::test_alone[{number}]" in run.output, run.output


def test_a_process_that_dies_fails_the_run(run: Run) -> None:
    assert run.code == 1
    assert "crashed while running" in run.output
    assert "test_one.py::test_dies_in_one" in run.matrix["DB.SO.12"]


def test_neither_takes_ports_of_the_other(run: Run) -> None:
    first, second = run.ports
    assert not set(first) & set(second)
    assert min(len(first), len(second)) > 5000
