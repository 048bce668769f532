"""Figures of one run: kept by name, printed as a table, written as JSON with the machine they came from.

What could not be measured is kept too, with the reason: a figure is measured, failed, or left out; none
is ever made up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from bench.targets import target_of


@attrs.frozen
class Result:
    """One figure."""

    name: str
    value: float
    unit: str


@attrs.frozen
class Missing:
    """What has no figure, and why."""

    name: str
    why: str


class Results:
    """The figures of one run, in the order they were measured."""

    def __init__(self, *, quick: bool = False) -> None:
        self._results: dict[str, Result] = {}
        #: Measures that went wrong, and figures that were not to be had.
        self.failed: list[Missing] = []
        self.left_out: list[Missing] = []
        #: Versions of the peers measured, added to the machine's description.
        self.peers: dict[str, str] = {}
        #: True for a small run that only shows that everything works.
        self.quick = quick
        self._started = time.time()

    def add(self, name: str, value: float, unit: str) -> None:
        """Keep a figure; a name is used once. Raises ValueError when it comes again."""
        if name in self._results:
            raise ValueError(f"{name} was measured already")
        self._results[name] = Result(name, value, unit)

    def fail(self, name: str, why: str) -> None:
        """Say that a measure went wrong."""
        self.failed.append(Missing(name, why))

    def leave_out(self, name: str, why: str) -> None:
        """Say that something cannot be measured here."""
        self.left_out.append(Missing(name, why))

    def get(self, name: str) -> float | None:
        """Return a figure, None when it was not measured."""
        found = self._results.get(name)
        return None if found is None else found.value

    def all(self) -> list[Result]:
        """Return all figures."""
        return list(self._results.values())

    def table(self) -> str:
        """Return the figures as aligned lines, then what failed and what was left out."""
        width = max((len(result.name) for result in self.all()), default=0)
        lines = [
            f"{each.name:<{width}}  {number(each.value):>10} {each.unit:<8} {_verdict(each)}".rstrip()
            for each in self.all()
        ]
        lines += [f"ÉCHEC {missing.name} : {missing.why}" for missing in self.failed]
        lines += [f"non mesuré {missing.name} : {missing.why}" for missing in self.left_out]
        return "\n".join(lines)

    def write(self, path: Path, machine: Mapping[str, object]) -> None:
        """Write everything, with what `machine` is said to be, as one JSON document, at once or not at all.

        `{"machine": {...}, "run": {...}, "results": [{"name", "value", "unit"}], "failed": [{"name",
        "why"}], "left_out": [...]}`; a result that has a target has `target` and `met` too.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": {**machine, "peers": self.peers},
            "run": {
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
                "seconds": round(time.time() - self._started),
                "quick": self.quick,
            },
            "results": [_as_json(result) for result in self.all()],
            "failed": [attrs.asdict(missing) for missing in self.failed],
            "left_out": [attrs.asdict(missing) for missing in self.left_out],
        }
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(path)


def number(value: float) -> str:
    """Write a figure with as many digits as mean something."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _as_json(result: Result) -> dict[str, Any]:
    target = target_of(result.name)
    if target is None:
        return attrs.asdict(result)
    return {**attrs.asdict(result), "target": str(target), "met": target.met(result.value)}


def _verdict(result: Result) -> str:
    target = target_of(result.name)
    if target is None:
        return ""
    return f"{'ok' if target.met(result.value) else 'HORS CIBLE'} ({target})"
