"""`drimbox resync` and `drimbox url-change`: walks over the archive, through the running process.

Both begin a walk and return: it takes hours, goes on without the command and is looked at with `status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from drimbox.commands.common import Failed, json_option, local_time, print_csv, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

_STATES = {
    "running": "en cours",
    "stopped": "arrêté",
    "suspended": "suspendu",
    "done": "terminé",
    "abandoned": "abandonné",
}
_VERDICTS = {
    "unchanged": "inchangé",
    "changed": "différent",
    "gone": "absent",
    "retracted": "sans compte rendu",
    "silent": "sans réponse",
    "undecidable": "indécidable",
}
_STATISTICS = ("STR01", "STR02", "STR03", "STR04", "STR05")

site_option = click.option("--site", metavar="NOM", help="Un seul site ; par défaut, tous.")
dry_option = click.option("--dry-run", is_flag=True, help="Comparer et compter, sans rien changer.")
csv_option = click.option("--csv", "as_csv", is_flag=True, help="Écrire du CSV (point-virgule).")
number_argument = click.argument("number", type=click.IntRange(min=1), metavar="PASSAGE")


@click.group(subcommand_metavar="COMMANDE ...")
def resync() -> None:
    """Resynchroniser l'archive des KOS et le DMP avec les PACS."""


@click.group(subcommand_metavar="COMMANDE ...")
def url_change() -> None:
    """Republier les KOS dont l'adresse d'accès aux images a changé."""


# --- beginning --------------------------------------------------------------------------------------


@resync.command("start")
@site_option
@dry_option
@admin_option
@json_option
def resync_start(
    site: str | None, dry_run: bool, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Lancer un passage, ou reprendre celui qui est arrêté."""
    _start(client_of(client, config_path), "resync", site, dry_run, as_json)


@url_change.command("start")
@site_option
@dry_option
@admin_option
@json_option
def address_start(
    site: str | None, dry_run: bool, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Republier chaque KOS qui donne une autre adresse que celle de la configuration."""
    _start(client_of(client, config_path), "address", site, dry_run, as_json)


def _start(process: AdminClient, kind: str, site: str | None, dry_run: bool, as_json: bool) -> None:
    names = [site] if site is not None else process.ask("GET", "/walks?limit=0")["sites"]
    begun, refusals = [], []
    for name in names:
        try:
            begun.append(process.ask("POST", "/walks", {"kind": kind, "site": name, "dry_run": dry_run}))
        except Failed as failure:
            # One site that cannot must not keep the others from beginning.
            refusals.append(failure.message)
    if as_json:
        print_json(begun)
    else:
        for walk in begun:
            word = "repris" if walk["resumed"] else "lancé"
            click.echo(escape_control(f"{walk['site']} : passage {walk['walk']} {word}{_dry(walk)}"))
    if refusals:
        raise Failed("\n".join(refusals))


# --- looking ----------------------------------------------------------------------------------------


@resync.command("status")
@site_option
@admin_option
@json_option
def resync_status(site: str | None, client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer où en est le dernier passage de chaque site."""
    process = client_of(client, config_path)
    _status(_last(process, "resync", site), as_json)


@resync.command("list")
@site_option
@csv_option
@admin_option
@json_option
def resync_list(
    site: str | None, as_csv: bool, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Lister les passages avec leurs statistiques (STR01 à STR05)."""
    if as_csv and as_json:
        raise click.UsageError("choisir --csv ou --json")
    walks = _all(client_of(client, config_path), "resync", site)
    if as_csv:
        _print_statistics(walks)
    elif as_json:
        print_json(list(walks))
    else:
        click.echo(f"{'passage':>7}  {'site':<20}{'début':<21}{'état':<11}", nl=False)
        click.echo("".join(f"{name:>9}" for name in _STATISTICS))
        for walk in walks:
            head = f"{walk['walk']:>7}  {walk['site']:<20}{local_time(walk['started_at']):<21}"
            numbers = "".join(f"{_shown(walk[name]):>9}" for name in _STATISTICS)
            click.echo(escape_control(f"{head}{_STATES[walk['state']]:<11}{numbers}{_dry(walk)}"))


@resync.command("report")
@number_argument
@csv_option
@admin_option
@json_option
def resync_report(
    number: int, as_csv: bool, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Montrer les statistiques d'un passage (STR01 à STR05)."""
    if as_csv and as_json:
        raise click.UsageError("choisir --csv ou --json")
    walk = client_of(client, config_path).ask("GET", f"/walks/{number}")
    if as_csv:
        _print_statistics([walk])
    else:
        _status([walk], as_json)


@resync.command("studies")
@number_argument
@click.option("--verdict", type=click.Choice(list(_VERDICTS)), help="Un seul verdict ; par défaut, tous.")
@admin_option
def resync_studies(number: int, verdict: str | None, client: AdminClient | None, config_path: Path) -> None:
    """Écrire le verdict de chaque examen d'un passage, en CSV, sans identité de patient."""
    process = client_of(client, config_path)
    rows = (
        (each["study_uid"], _VERDICTS[each["verdict"]], each["detail"], each["result"], each["judged_at"])
        for each in _studies(process, number, verdict)
    )
    print_csv(("examen", "verdict", "detail", "suite", "examine_le"), rows)


@url_change.command("status")
@admin_option
@json_option
def address_status(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer, par site, combien de KOS donnent encore une autre adresse."""
    sites = client_of(client, config_path).ask("GET", "/addresses")["sites"]
    if as_json:
        print_json(sites)
        return
    for site in sites:
        click.echo(escape_control(f"{site['site']} : {site['address']}"))
        walk, left = site["walk"], site["elsewhere"]
        if walk is None:
            click.echo("  aucun passage : KOS non vérifiés")
            continue
        click.echo(escape_control(f"  {_progress(walk)}"))
        if left is None:
            click.echo("  l'adresse a changé depuis ce passage : le relancer")
        else:
            click.echo(f"  KOS parcourus qui donnent encore une autre adresse : {left}")


def _status(walks: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(walks)
        return
    if not walks:
        click.echo("Aucun passage.")
    for walk in walks:
        click.echo(escape_control(f"{walk['site']} : {_progress(walk)}"))
        for name, text in (
            ("STR01", "KOS archivés avant"),
            ("STR02", "examens absents de l'archive d'images"),
            ("STR03", "examens dont le KOS devait être mis à jour"),
            ("STR04", "examens inchangés"),
            ("STR05", "KOS archivés après"),
        ):
            click.echo(f"  {name} {text} : {_shown(walk[name])}")
        for name in ("retracted", "silent", "undecidable"):
            if walk[name]:
                click.echo(f"  {_VERDICTS[name]} : {walk[name]}")


def _progress(walk: dict[str, Any]) -> str:
    since = local_time(walk["started_at"])
    head = f"passage {walk['walk']}{_dry(walk)} {_STATES[walk['state']]}, lancé le {since}"
    why = f" ; {walk['waiting']}" if walk["waiting"] else ""
    return f"{head}, {walk['walked']} KOS parcourus sur {walk['STR01']}{why}"


# --- acting -----------------------------------------------------------------------------------------


@resync.command("stop")
@site_option
@admin_option
def resync_stop(site: str | None, client: AdminClient | None, config_path: Path) -> None:
    """Arrêter les passages en cours là où ils sont ; « start » les reprend."""
    _stop(client_of(client, config_path), "resync", site)


@url_change.command("stop")
@site_option
@admin_option
def address_stop(site: str | None, client: AdminClient | None, config_path: Path) -> None:
    """Arrêter les passages en cours là où ils sont ; « start » les reprend."""
    _stop(client_of(client, config_path), "address", site)


def _stop(process: AdminClient, kind: str, site: str | None) -> None:
    running = [walk for walk in _last(process, kind, site) if walk["state"] == "running"]
    if not running:
        click.echo("Aucun passage en cours.")
    for walk in running:
        process.ask("POST", f"/walks/{walk['walk']}/stop")
        click.echo(escape_control(f"{walk['site']} : passage {walk['walk']} arrêté"))


@resync.command("confirm")
@number_argument
@admin_option
def resync_confirm(number: int, client: AdminClient | None, config_path: Path) -> None:
    """Retirer du DMP ce qu'un passage suspendu a trouvé absent."""
    walk = client_of(client, config_path).ask("POST", f"/walks/{number}/confirm")
    click.echo(f"Passage {number} repris : {walk['STR02']} examens absents seront vérifiés puis retirés.")


@resync.command("abandon")
@number_argument
@admin_option
def resync_abandon(number: int, client: AdminClient | None, config_path: Path) -> None:
    """Mettre fin à un passage, même d'un changement d'adresse, sans rien retirer de plus."""
    client_of(client, config_path).ask("POST", f"/walks/{number}/abandon")
    click.echo(f"Passage {number} abandonné.")


# --- asking and printing ----------------------------------------------------------------------------


def _all(process: AdminClient, kind: str, site: str | None) -> Iterator[dict[str, Any]]:
    """Yield the walks of a kind, newest first, page by page."""
    where = f"/walks?kind={kind}" + (f"&site={quote(site, safe='')}" if site else "")
    before: int | None = None
    while True:
        found = process.ask("GET", where + (f"&before={before}" if before is not None else ""))["walks"]
        if not found:
            return
        if before is not None and found[0]["walk"] >= before:
            raise Failed("réponse de DRIMbox incohérente : la même page revient.")
        yield from found
        before = found[-1]["walk"]


def _last(process: AdminClient, kind: str, site: str | None) -> list[dict[str, Any]]:
    """Return the last walk of each site."""
    found: dict[str, dict[str, Any]] = {}
    names = [site] if site else process.ask("GET", "/walks?limit=0")["sites"]
    for name in names:
        walks = process.ask("GET", f"/walks?kind={kind}&limit=1&site={quote(name, safe='')}")["walks"]
        if walks:
            found[name] = walks[0]
    return list(found.values())


def _studies(process: AdminClient, number: int, verdict: str | None) -> Iterator[dict[str, Any]]:
    """Yield the studies of a walk, in order, page by page."""
    after = ""
    only = f"&verdict={verdict}" if verdict else ""
    while True:
        found = process.ask("GET", f"/walks/{number}/studies?after={quote(after, safe='')}{only}")[
            "studies"
        ]
        if not found:
            return
        if found[-1]["study_uid"] == after:
            raise Failed("réponse de DRIMbox incohérente : la même page revient.")
        yield from found
        after = found[-1]["study_uid"]


def _print_statistics(walks: Iterable[dict[str, Any]]) -> None:
    rows = (
        (
            walk["walk"],
            walk["site"],
            "oui" if walk["dry_run"] else "non",
            walk["started_at"],
            walk["ended_at"],
            _STATES[walk["state"]],
            *(walk[name] for name in _STATISTICS),
        )
        for walk in walks
    )
    print_csv(("passage", "site", "a_blanc", "debut", "fin", "etat", *_STATISTICS), rows)


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)


def _dry(walk: dict[str, Any]) -> str:
    return " (à blanc)" if walk["dry_run"] else ""
