"""Figures of one run: kept by name, printed as a table, written as JSON with the machine they came from."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import attrs

_DISTRIBUTIONS = ("drimbox", "twisted", "pynetdicom", "pydicom", "pyopenssl", "cryptography")


@attrs.frozen
class Result:
    """One figure."""

    name: str
    value: float
    unit: str


class Results:
    """The figures of one run, in the order they were measured."""

    def __init__(self) -> None:
        self._results: dict[str, Result] = {}
        #: Versions of the peers measured, added to the machine's description.
        self.peers: dict[str, str] = {}

    def add(self, name: str, value: float, unit: str) -> None:
        """Keep a figure; a name is used once. Raises ValueError when it comes again."""
        if name in self._results:
            raise ValueError(f"{name} was measured already")
        self._results[name] = Result(name, value, unit)

    def get(self, name: str) -> float | None:
        """Return a figure, None when it was not measured."""
        found = self._results.get(name)
        return None if found is None else found.value

    def all(self) -> list[Result]:
        """Return all figures."""
        return list(self._results.values())

    def table(self) -> str:
        """Return the figures as aligned lines."""
        width = max((len(result.name) for result in self.all()), default=0)
        return "\n".join(
            f"{result.name:<{width}}  {_number(result.value):>10} {result.unit}" for result in self.all()
        )

    def write(self, path: Path) -> None:
        """Write `{"machine": {...}, "results": [{"name", "value", "unit"}]}`, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": {**machine(), "peers": self.peers},
            "results": [attrs.asdict(result) for result in self.all()],
        }
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(path)


def machine() -> dict[str, object]:
    """Describe this machine: processor, cores, memory, system, Python and the libraries that matter."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in _DISTRIBUTIONS},
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _field(file: str, name: str) -> str:
    try:
        for line in Path(file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""
