"""What every command shares: where the configuration is, how a failure is said, how JSON is printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from drimbox.configfile import ConfigErrors, ConfigMistake
from drimbox.redaction import escape_control

DEFAULT_CONFIG = Path("/etc/drimbox/drimbox.toml")
CONFIG_VARIABLE = "DRIMBOX_CONFIG"

#: A function that click makes a command of.
Command = Callable[..., None]


class Failed(click.ClickException):
    """The command did its work and the answer is bad: the message goes to stderr, the exit code is 1."""

    exit_code = 1


config_option: Callable[[Command], Command] = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    envvar=CONFIG_VARIABLE,
    show_default=True,
    metavar="FICHIER",
    # `show_envvar` would have click name the variable in errors, in English.
    help=f"Fichier de configuration, ou variable d'environnement {CONFIG_VARIABLE}.",
)

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Écrire du JSON."
)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    click.echo(escape_lines(json.dumps(value, ensure_ascii=False, indent=2, default=str)))


def local_time(value: object) -> str:
    """Write an instant of an answer (ISO 8601) in the time of this machine, to the second."""
    try:
        return f"{datetime.fromisoformat(str(value)).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return str(value or "")


def print_csv(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Print semicolon-separated values, row by row: what a French spreadsheet opens without being asked."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=";", lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow(["" if value is None else escape_control(str(value)) for value in row])
        click.echo(buffer.getvalue(), nl=False)
        buffer.seek(0)
        buffer.truncate()
    click.echo(buffer.getvalue(), nl=False)


def escape_lines(text: str) -> str:
    """Escape the control characters of a text of several lines, its own line ends excepted."""
    return "\n".join(escape_control(line) for line in text.split("\n"))


def mistake_lines(word: str, mistakes: list[ConfigMistake]) -> list[str]:
    """Return two lines for each mistake: what is wrong, and how to mend it."""
    return [
        escape_control(line)
        for mistake in mistakes
        for line in (f"  {word:<14} {_placed(mistake)}", f"  {'':<14} -> {mistake.mend}")
    ]


def _placed(mistake: ConfigMistake) -> str:
    line = "" if mistake.line is None else f" (ligne {mistake.line})"
    return f"{mistake.path}{line} : {mistake.problem}"


def refused(errors: ConfigErrors) -> Failed:
    """Return the failure to raise when the configuration cannot be used."""
    lines = mistake_lines("erreur", errors.mistakes)
    return Failed("\n".join([f"configuration inutilisable ({errors.path})", *lines]))


def tree_lines(value: Any, indent: int = 0) -> list[str]:
    """Return the lines that show JSON data to a person: one `key : value` a line, indented."""
    lines = []
    pairs = value.items() if isinstance(value, dict) else [("-", item) for item in value]
    for key, item in pairs:
        head = " " * indent + escape_control(str(key)) + (" :" if key != "-" else "")
        if isinstance(item, dict | list) and item:
            lines += [head, *tree_lines(item, indent + 2)]
        else:
            lines.append(f"{head} {_plain(item)}")
    return lines


def _plain(item: Any) -> str:
    if isinstance(item, bool):
        return "oui" if item else "non"
    return "-" if item is None or item in ({}, []) else escape_control(str(item))
