"""What a rule is, how it refuses a value, and how a value is shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import attrs

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Rejected(ValueError):
    """A value that a rule refuses: `problem` says what is wrong, `mend` what to write instead."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


@attrs.frozen
class Rule:
    """How one value is read; `kind` describes what it may be, in French, for the reference document."""

    kind: str
    read: Callable[[object], Any]


def show(value: object) -> str:
    """Write a value of the file as an operator knows it: « text », 12, true, une liste, une table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return "« " + _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", short) + " »"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)[:40]
    if isinstance(value, list):
        return "une liste"
    return "une table" if isinstance(value, dict) else "une date"


def closest(word: str, known: list[str]) -> str | None:
    """Return the known word that `word` most likely meant, or None."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def string(value: object, mend: str) -> str:
    """Return a value that is a text without control characters. Raises `Rejected`, with `mend`."""
    if not isinstance(value, str):
        raise Rejected(f"{show(value)} n'est pas un texte", mend)
    if _CONTROL.search(value):
        raise Rejected("contient un caractère de contrôle", "retirer ce caractère")
    return value
