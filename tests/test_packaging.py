"""What is shipped: the wheel holds everything the appliance needs, on versions without known holes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Lowest version without a hole that reaches us (docs of each project's advisories).
FLOORS = {
    "twisted": (26, 10, 0),
    "pydicom": (3, 0, 2),
    "pynetdicom": (3, 0, 4),
    "lxml": (6, 1),
    "signxml": (4, 4),
}


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_no_dependency_is_below_its_floor(name: str, floor: tuple[int, ...]) -> None:
    installed = tuple(int(part) for part in version(name).split(".")[: len(floor)])
    assert installed >= floor


def test_the_wheel_carries_the_plugin_the_types_and_the_migrations(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("drimbox-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "twisted/plugins/drimbox_plugin.py",
        "drimbox/py.typed",
        "drimbox/service.py",
        "drimbox/store/migrations/env.py",
    } <= names
    assert any(name.startswith("drimbox/store/migrations/versions/r0001") for name in names)
    assert not any(name.startswith(("tests/", "bench/")) for name in names)


def test_what_is_released_is_complete_and_listed() -> None:
    """An index would take wheel and source archive; the bill of materials names all that is deployed."""
    done = subprocess.run(
        ["make", "dist", "sbom"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
    (archive,) = (ROOT / "dist").glob("drimbox-*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "etc/drimbox.toml", "tests/conftest.py", "docs/configuration.md"} <= names
    listed = json.loads((ROOT / "dist" / "drimbox.cdx.json").read_text("utf-8"))["components"]
    locked = (ROOT / "requirements" / "runtime.txt").read_text("utf-8")
    wanted = set(re.findall(r"^([a-z0-9][a-z0-9-]*)==([^ ;]+)", locked, re.MULTILINE))
    assert {(each["name"], each["version"]) for each in listed} == wanted
    assert all(each["externalReferences"] for each in listed)


def test_locks_name_no_host_and_no_folder() -> None:
    for name in ("build.txt", "dev.txt", "runtime.txt", "release.txt"):
        text = (ROOT / "requirements" / name).read_text("utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        assert "--find-links" not in text
        assert "--hash=sha256:" in text
