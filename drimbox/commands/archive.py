"""`drimbox archive`: export the archive, load that of another DRIMbox, through the running process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from drimbox.commands.common import Failed, json_option, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

#: Seconds between two questions how far a work is: at first, and at most.
_FIRST_LOOK, _LONGEST_LOOK = 0.1, 2.0
_FATES = {
    "charge": "chargés",
    "plus-ancien": "plus anciens que ceux d'ici, gardés comme remplacés",
    "deja-present": "déjà présents",
    "autre-site": "déjà présents sous un autre site",
    "refuse": "refusés",
}


@click.group(subcommand_metavar="COMMANDE ...")
def archive() -> None:
    """Archive des KOS : export au format XDM, chargement de celle d'une autre DRIMbox.

    Les chemins sont ceux du serveur où tourne DRIMbox, et doivent être accessibles au compte du service.
    """


@archive.command("export")
@click.option(
    "--to",
    "folder",
    required=True,
    metavar="DOSSIER",
    help="Dossier du serveur : disque amovible, partage.",
)
@click.option("--site", metavar="NOM", help="Un seul site (un seul PACS) ; par défaut, tous.")
@click.option("--month", metavar="AAAAMM", help="Un seul mois de publication ; par défaut, tous.")
@click.option("--large", is_flag=True, help="Admettre des fichiers de plus de 4 Gio (jamais sur FAT32).")
@admin_option
@json_option
def export(
    folder: str,
    site: str | None,
    month: str | None,
    large: bool,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Écrire un fichier KAAAAAMM.ZIP par site et par mois (DB.SO.29)."""
    process = client_of(client, config_path)
    body = {"folder": os.path.abspath(folder), "site": site, "month": month, "large": large}
    job = follow(process, process.ask("POST", "/archive/export", body)["job"], quiet=as_json)
    if as_json:
        print_json(job)
    result = result_of(job)
    if not as_json:
        _say_export(result)
    if result["failed"]:
        raise click.exceptions.Exit(1)


@archive.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="CHEMIN...")
@click.option("--site", required=True, metavar="NOM", help="Le site (le PACS) dont c'est l'archive.")
@click.option("--dry-run", is_flag=True, help="Tout vérifier, ne rien charger.")
@admin_option
@json_option
def load(
    paths: tuple[str, ...],
    site: str,
    dry_run: bool,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Charger l'archive d'une autre DRIMbox du même site (DB.SO.30).

    Chaque CHEMIN est un fichier KAAAAAMM.ZIP, un dossier KAAAAAMM, ou un dossier qui en contient. Aucune
    transaction n'est faite avec le DMP ; la DRIMbox remplacée ne doit plus en faire non plus. Relancer la
    commande ne charge rien deux fois.
    """
    process = client_of(client, config_path)
    body = {"site": site, "paths": [os.path.abspath(path) for path in paths], "dry_run": dry_run}
    job = follow(process, process.ask("POST", "/archive/import", body)["job"], quiet=as_json)
    if as_json:
        print_json(job)
    result = result_of(job)
    if not as_json:
        _say_import(result)
    if result["unusable"] or result["counts"]["refuse"]:
        raise click.exceptions.Exit(1)


@archive.command()
@admin_option
@json_option
def status(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer où en est le dernier export ou chargement."""
    job = client_of(client, config_path).ask("GET", "/archive")["job"]
    if as_json:
        print_json(job)
    elif job is None:
        click.echo("Aucun export ni chargement depuis le démarrage.")
    elif job["running"]:
        click.echo(f"{job['kind']} en cours : {job['done']} sur {job['total']}")
    elif job["error"]:
        click.echo(escape_control(f"{job['kind']} échoué : {job['error']}"))
    else:
        (_say_export if job["kind"] == "export" else _say_import)(job["result"])


def follow(process: AdminClient, number: int, *, quiet: bool) -> dict[str, Any]:
    """Wait until the work `number` has ended and return its state."""
    pause, shown = _FIRST_LOOK, 0.0
    while True:
        job: dict[str, Any] | None = process.ask("GET", "/archive")["job"]
        if job is None or job["number"] != number:
            raise Failed("travail interrompu : DRIMbox s'arrête ou a redémarré ; relancer la commande.")
        if not job["running"]:
            return job
        if not quiet and time.monotonic() - shown > 10:
            click.echo(f"{job['done']} sur {job['total']} ...", err=True)
            shown = time.monotonic()
        time.sleep(pause)
        pause = min(_LONGEST_LOOK, pause * 1.5)


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    if job["error"]:
        raise Failed(escape_control(job["error"]))
    result: dict[str, Any] = job["result"]
    return result


def _say_export(result: dict[str, Any]) -> None:
    if not result["files"]:
        click.echo("Aucun KOS publié à exporter.")
    for each in result["files"]:
        line = f"{each['site']} : {each['file']}, {each['sets']} KOS, {each['bytes']} octets"
        click.echo(escape_control(line))
    for each in result["failed"]:
        click.echo(escape_control(f"non exporté : {each['sop_instance_uid']} : {each['reason']}"), err=True)
    if result["waiting"]:
        click.echo(
            f"Attention : {result['waiting']} messages, examens ou envois au DMP attendent encore ; avant "
            "un remplacement, exporter une fois les files vides (drimbox status).",
            err=True,
        )


def _say_import(result: dict[str, Any]) -> None:
    head = "Essai, rien n'a été chargé" if result["dry_run"] else f"Site {result['site']}"
    click.echo(escape_control(f"{head} : {result['archives']} archives"))
    for key, words in _FATES.items():
        if result["counts"][key]:
            click.echo(f"  {result['counts'][key]:>8} {words}")
    if result["warnings"]:
        click.echo(f"  {result['warnings']:>8} avec une remarque")
    for each in result["unusable"]:
        click.echo(escape_control(f"archive inutilisable : {each['archive']} : {each['reason']}"), err=True)
    for each in result["refused"]:
        where = f"{each['archive']} {each['jeu']} {each['fichier']}".strip()
        click.echo(escape_control(f"{each['sort']} : {where} : {each['motif']}"), err=True)
    click.echo(escape_control(f"Rapport complet sur le serveur : {result['report']}"))
