"""The figures of one run as a document shows them: cells, targets, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.targets import target_of


class Figures:
    """The figures of one run, by name."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._results = {each["name"]: each for each in document.get("results", ())}

    def value(self, name: str) -> float | None:
        """Return a figure, None when there is none."""
        found = self._results.get(name)
        return None if found is None else float(found["value"])

    def cell(self, name: str) -> str:
        """Write a figure: a dash when there is none, bold and marked when it misses its target."""
        found = self._results.get(name)
        if found is None:
            return "–"
        text = written(found["value"], found["unit"])
        return text if found.get("met", True) else f"**{text}** ✗"

    def target(self, *names: str) -> str:
        """Write the target of the first of these figures that has one."""
        for name in names:
            bound, found = target_of(name), self._results.get(name)
            if bound is not None and found is not None:
                sign, limit = ("≤", bound.at_most) if bound.at_most is not None else ("≥", bound.at_least)
                return f"{sign} {written(limit or 0.0, found['unit'])}"
        return ""

    def numbers(self, pattern: str) -> list[str]:
        """Return what stands for `(...)` in the names that fit, once each, in order."""
        found = (re.fullmatch(pattern, name) for name in self._results)
        return list(dict.fromkeys(match[1] for match in found if match))


def written(value: float, unit: str) -> str:
    """Write a value with its unit."""
    if unit == "s":
        return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "ratio":
        return f"{value:.2f}"
    digits = 0 if abs(value) >= 100 else 1
    return f"{value:.{digits}f} {unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
