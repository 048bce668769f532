"""Where in the file a mistake is: the line of its key, of the section it belongs to, or of none."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from drimbox.configfile.report import ConfigMistake

_HEADING = re.compile(r"\s*(\[{1,2})\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*\]{1,2}\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*[=.]")


def with_lines(mistakes: Iterable[ConfigMistake], document: str) -> list[ConfigMistake]:
    """Return the mistakes, each with its line in `document` where it has one."""
    lines = _lines(document)
    return [attrs.evolve(each, line=_line(each.path, lines)) for each in mistakes]


def _line(path: str, lines: dict[str, int]) -> int | None:
    """Return the line of a path, else that of the nearest table around it."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def _lines(document: str) -> dict[str, int]:
    """Return the first line of every table and key, by its path (`site[0].pacs.port`).

    What looks like a key inside a text of several lines counts as one: it only adds paths nobody asks for.
    """
    found: dict[str, int] = {}
    #: How often each list of tables was headed, by its path.
    repeated: dict[str, int] = {}
    table = ""
    for number, line in enumerate(document.splitlines(), 1):
        if heading := _HEADING.fullmatch(line):
            table = _path([part.strip() for part in heading[2].split(".")], heading[1] == "[[", repeated)
            found.setdefault(table, number)
            found.setdefault(table.removesuffix("[0]"), number)
        elif key := _KEY.match(line):
            found.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return found


def _path(parts: list[str], new: bool, repeated: dict[str, int]) -> str:
    """Return the path of a heading; `new` begins the next table of a list."""
    path = ""
    for position, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if new and position == len(parts) - 1:
            repeated[path] = repeated.get(path, 0) + 1
        if path in repeated:
            path += f"[{repeated[path] - 1}]"
    return path
