"""`drimbox certificates`: what we present, until when, the revocation lists, and a reload now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drimbox.commands.common import json_option, local_time, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control


@click.group(subcommand_metavar="COMMANDE ...")
def certificates() -> None:
    """Certificats et listes de révocation."""


@certificates.command()
@admin_option
@json_option
def show(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer nos certificats, leur échéance, et les listes de révocation."""
    answer = client_of(client, config_path).ask("GET", "/certificates")
    if as_json:
        print_json(answer)
        return
    for each in answer["certificates"]:
        end = local_time(each["expires"])[:10] if each["expires"] else "illisible"
        click.echo(escape_control(f"{end:<11} {each['label']:<32} {each['subject']}"))
    _show_lists(answer["revocation"])


@certificates.command()
@admin_option
@json_option
def reload(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Relire les certificats TLS et récupérer les listes de révocation, sans interrompre les délivrances.

    Le code de sortie est 1 quand les certificats n'ont pas pu être relus : les précédents restent.
    """
    answer = client_of(client, config_path).ask("POST", "/certificates/reload")
    if as_json:
        print_json(answer)
    elif answer["problem"]:
        click.echo(escape_control(f"Non rechargés : {answer['problem']}"))
    else:
        click.echo("Certificats rechargés.")
        _show_lists(answer["revocation"])
    if answer["problem"]:
        raise click.exceptions.Exit(1)


def _show_lists(lists: list[dict[str, Any]]) -> None:
    if not lists:
        click.echo("Aucune liste de révocation configurée : la révocation n'est pas vérifiée.")
    for each in lists:
        state = "à jour" if each["current"] else "PAS À JOUR"
        until = f", jusqu'au {local_time(each['next_update'])[:16]}" if each["next_update"] else ""
        click.echo(
            escape_control(f"{each['url']} : {state}{until}, {each['revoked']} certificats révoqués")
        )
        if each["problem"]:
            click.echo(escape_control(f"  {each['problem']}"))
