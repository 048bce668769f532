"""`drimbox speedtest`: test a PACS now, through the running process, and show what the tests measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from drimbox.commands.common import Failed, json_option, print_csv, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

#: Seconds between two questions whether a run has ended: at first, and at most.
_FIRST_LOOK, _LONGEST_LOOK = 0.1, 1.0

site_option = click.option("--site", metavar="NOM", help="Un seul site ; par défaut, tous.")


@click.group(invoke_without_command=True, subcommand_metavar="[results ...]")
@site_option
@admin_option
@json_option
@click.pass_context
def speedtest(
    context: click.Context, site: str | None, client: AdminClient | None, config_path: Path, as_json: bool
) -> None:
    """Mesurer le débit et la latence d'un PACS (C-MOVE de l'examen de référence).

    Sans sous-commande, lance le test dans le processus et attend la mesure ; « results » montre les
    mesures du mois en cours et du précédent.
    """
    if context.invoked_subcommand is not None:
        return
    process = client_of(client, config_path)
    measures = [_run(process, name, as_json) for name in _sites(process, site)]
    if as_json:
        print_json(measures)
    if any(measure["error"] for measure in measures):
        raise click.exceptions.Exit(1)


def _sites(process: AdminClient, wanted: str | None) -> list[str]:
    if wanted is not None:
        return [wanted]
    found = [each["site"] for each in _states(process) if each["reference_study"]]
    if not found:
        raise Failed(
            "aucun site n'a d'examen de référence : écrire son StudyInstanceUID "
            "dans [site.speedtest] study."
        )
    return found


def _states(process: AdminClient) -> list[dict[str, Any]]:
    answer: dict[str, list[dict[str, Any]]] = process.ask("GET", "/speedtest")
    return answer["sites"]


def _run(process: AdminClient, site: str, quiet: bool) -> dict[str, Any]:
    """Begin a run, or join the one on its way, and return its measure."""
    begun = process.ask("POST", f"/speedtest/{quote(site, safe='')}")
    if begun["joined"] and not quiet:
        click.echo(escape_control(f"{site} : un test est déjà en cours, sa mesure est attendue"))
    pause = _FIRST_LOOK
    while True:
        state = next((each for each in _states(process) if each["site"] == site), None)
        if state is not None and state["ended"] >= begun["run"] and state["last"] is not None:
            break
        if state is None or not state["running"]:
            raise Failed(f"{site} : test interrompu, DRIMbox s'arrête ou a redémarré.")
        time.sleep(pause)
        pause = min(_LONGEST_LOOK, pause * 1.5)
    measure: dict[str, Any] = state["last"]
    if not quiet:
        click.echo(escape_control(f"{site} : {_said(measure)}"))
    return measure


def _said(measure: dict[str, Any]) -> str:
    if measure["error"]:
        return f"échec, {measure['error']} ({measure['images']} images reçues)"
    size = measure["bytes"] / 1e6
    rate = f" ({size / measure['duration']:.0f} Mo/s)" if measure["duration"] else ""
    return (
        f"latence {measure['latency']:.3f} s, transfert {measure['duration']:.3f} s, "
        f"{measure['images']} images, {size:.1f} Mo{rate}"
    )


@speedtest.command()
@site_option
@click.option("--csv", "as_csv", is_flag=True, help="Écrire toutes les mesures brutes, en CSV.")
@admin_option
@json_option
@click.pass_context
def results(
    context: click.Context,
    site: str | None,
    as_csv: bool,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Montrer la moyenne, le minimum et le maximum de chaque jour (STF20, STF21)."""
    if as_csv and as_json:
        raise click.UsageError("choisir --csv ou --json")
    process = _client(context, client, config_path)
    query = f"?site={quote(site, safe='')}" if site else ""
    if as_csv:
        _print_csv(_raw(process, query))
        return
    days = process.ask("GET", f"/speedtest/results{query}")["days"]
    if as_json:
        print_json(days)
    elif not days:
        click.echo("Aucune mesure.")
    else:
        click.echo(f"{'jour':<11}{'site':<20}{'tests':>6}{'échecs':>7}", nl=False)
        click.echo(f"  {'latence (s) moy. min. max.':<28}{'transfert (s) moy. min. max.'}")
        for day in days:
            head = f"{day['day']:<11}{day['site']:<20}{day['runs']:>6}{day['failures']:>7}"
            click.echo(escape_control(f"{head}  {_spread(day['latency']):<28}{_spread(day['duration'])}"))


def _client(context: click.Context, client: AdminClient | None, config_path: Path) -> AdminClient:
    """Return the client; `--admin` and `--config` also count when written before `results`."""
    parent = context.parent
    given = context.get_parameter_source("config_path") not in (None, ParameterSource.DEFAULT)
    if parent is not None and client is None:
        client = parent.params["client"] if not given else None
        config_path = config_path if given else parent.params["config_path"]
    return client_of(client, config_path)


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    return " ".join(f"{values[key]:8.3f}" for key in ("mean", "min", "max"))


def _raw(process: AdminClient, query: str) -> Iterator[dict[str, Any]]:
    """Yield every raw measure, newest first, page by page."""
    before: int | None = None
    while True:
        page = f"{query}{'&' if query else '?'}before={before}" if before is not None else query
        found = process.ask("GET", f"/speedtest/measures{page}")["measures"]
        if not found:
            return
        if before is not None and found[0]["id"] >= before:
            raise Failed("réponse de DRIMbox incohérente : la même page revient.")
        yield from found
        before = found[-1]["id"]


def _print_csv(measures: Iterator[dict[str, Any]]) -> None:
    keys = ("site", "started_at", "latency", "duration", "images", "bytes", "error")
    heads = ("site", "debut", "STF21_latence_s", "STF20_transfert_s", "images", "octets", "erreur")
    print_csv(heads, (tuple(each[key] for key in keys) for each in measures))
