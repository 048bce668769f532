"""`drimbox notices`: what the administrator must know, read, acknowledged, and how it leaves."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from drimbox.commands.common import json_option, local_time, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

SEVERITIES = ("information", "attention", "grave")
#: Seconds a test may take: two channels, each within its own time-out.
_TEST = 60.0


@click.group(subcommand_metavar="COMMANDE ...")
def notices() -> None:
    """Avis à l'administrateur."""


@notices.command("list")
@click.option("--all", "every", is_flag=True, help="Aussi les avis acquittés, les plus récents d'abord.")
@click.option("--severity", type=click.Choice(SEVERITIES), help="Cette gravité et les plus fortes.")
@click.option("--code", metavar="CODE", help="Un seul code, par exemple E007.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=200, show_default=True, metavar="N", help="Au plus N."
)
@click.option(
    "--before", type=click.IntRange(min=1), metavar="NUMÉRO", help="Seulement les avis plus anciens."
)
@admin_option
@json_option
def list_notices(
    every: bool,
    severity: str | None,
    code: str | None,
    limit: int,
    before: int | None,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Lister les avis ouverts."""
    wanted = {"all": "1" if every else None, "severity": severity, "code": code, "before": before}
    query = urlencode(
        {key: value for key, value in {**wanted, "limit": limit}.items() if value is not None}
    )
    answer = client_of(client, config_path).ask("GET", f"/notices?{query}")
    found = answer.get("notices", []) if isinstance(answer, dict) else []
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("Aucun avis." if every else "Aucun avis ouvert.")
    for notice in found:
        click.echo(escape_control(_line(notice)))


def _line(notice: dict[str, Any]) -> str:
    count = notice.get("count", 1)
    times = f" ({count} fois depuis le {local_time(notice.get('first'))})" if count > 1 else ""
    line = f"{notice.get('id')}  {local_time(notice.get('last'))}  {notice.get('severity', ''):<11}  "
    line += f"{notice.get('code', '')}  {notice.get('text', '')}{times}"
    if notice.get("acknowledged"):
        line += f"  [acquitté le {local_time(notice['acknowledged'])} : {notice.get('by')}]"
    return line


@notices.command("ack")
@click.argument("numbers", type=click.IntRange(min=1), nargs=-1, required=True, metavar="NUMÉRO...")
@click.option("--by", metavar="NOM", help="Qui acquitte ; par défaut, l'utilisateur du système.")
@admin_option
def acknowledge(
    numbers: tuple[int, ...], by: str | None, client: AdminClient | None, config_path: Path
) -> None:
    """Acquitter des avis par leur numéro."""
    process = client_of(client, config_path)
    for number in numbers:
        process.ask("POST", f"/notices/{number}/acknowledge", {"by": by or _user()})
        click.echo(f"Avis {number} acquitté.")


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for our number
        return None


@notices.command("test")
@admin_option
@json_option
def send_test(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Envoyer un essai par chaque canal configuré (courrier, webhook)."""
    answer = client_of(client, config_path).ask("POST", "/notices/test", timeout=_TEST)
    channels = answer["channels"]
    if as_json:
        print_json(channels)
    else:
        for each in channels:
            said = f"échec, {each['error']}" if each["error"] else "envoyé"
            remark = f" ({each['remark']})" if each["remark"] else ""
            click.echo(escape_control(f"{each['channel']} : {said}{remark}"))
    if any(each["error"] for each in channels):
        raise click.exceptions.Exit(1)
