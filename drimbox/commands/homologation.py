"""`drimbox homologation`: load test KOS by hand in the running process, and clear them."""

from __future__ import annotations

import os
from pathlib import Path

import click

from drimbox.commands.archive import follow, result_of
from drimbox.commands.common import json_option, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control


@click.group(subcommand_metavar="COMMANDE ...")
def homologation() -> None:
    """Mode homologation : KOS de test, hors de l'archive et du DMP.

    Désactivé par défaut : [homologation] enabled dans la configuration. Les chemins sont ceux du serveur où
    tourne DRIMbox.
    """


@homologation.command()
@click.argument("paths", nargs=-1, required=True, metavar="FICHIER...")
@click.option("--site", metavar="NOM", help="Le site qui détient les images ; utile s'il y en a plusieurs.")
@admin_option
@json_option
def load(
    paths: tuple[str, ...], site: str | None, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Charger des KOS (fichiers .dcm) ou une archive XDM, pour répondre aux demandes d'images.

    Rien n'est envoyé au DMP. Les métadonnées XDS peuvent manquer.
    """
    process = client_of(client, config_path)
    body = {"site": site, "paths": [os.path.abspath(path) for path in paths]}
    job = follow(process, process.ask("POST", "/homologation/load", body)["job"], quiet=as_json)
    if as_json:
        print_json(job)
    result = result_of(job)
    if not as_json:
        click.echo(f"{result['loaded']} KOS de test chargés, {result['known']} déjà présents")
        for each in result["refused"]:
            click.echo(escape_control(f"refusé : {each['file']} : {each['reason']}"), err=True)
        if result["patients"] > 1:
            click.echo(
                f"Attention : ces KOS sont de {result['patients']} patients ; un consommateur peut "
                "n'en prendre qu'un en compte.",
                err=True,
            )
    if result["refused"]:
        raise click.exceptions.Exit(1)


@homologation.command()
@admin_option
def clear(client: AdminClient | None, config_path: Path) -> None:
    """Effacer tous les KOS de test : leurs images ne sont plus servies."""
    answer = client_of(client, config_path).ask("POST", "/homologation/clear")
    click.echo(f"{answer['cleared']} KOS de test effacés.")


@homologation.command()
@admin_option
@json_option
def status(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Dire si le mode est actif, et combien de KOS de test sont chargés."""
    answer = client_of(client, config_path).ask("GET", "/homologation")
    if as_json:
        print_json(answer)
        return
    state = "ACTIF" if answer["enabled"] else "désactivé"
    click.echo(
        f"Mode homologation {state}, {answer['loaded']} KOS de test de {answer['patients']} patients."
    )
