"""`drimbox check-config`: what the configuration would do, without starting anything."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from drimbox.commands.common import config_option, json_option, mistake_lines, print_json
from drimbox.configfile import check
from drimbox.redaction import escape_control


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}"


@click.command("check-config")
@config_option
@json_option
def check_config(config_path: Path, as_json: bool) -> None:
    """Vérifier la configuration, fichiers et certificats compris."""
    errors, warnings = check(config_path)
    if as_json:
        print_json(
            {
                "errors": [attrs.asdict(each) for each in errors],
                "warnings": [attrs.asdict(each) for each in warnings],
            }
        )
    else:
        verdict = "correcte" if not errors else "inutilisable"
        counts = f"{_count(len(errors), 'erreur')}, {_count(len(warnings), 'avertissement')}"
        click.echo(escape_control(f"{config_path} : configuration {verdict} ({counts})"))
        for line in mistake_lines("erreur", errors) + mistake_lines("avertissement", warnings):
            click.echo(line)
    if errors:
        raise click.exceptions.Exit(1)
