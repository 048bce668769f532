"""`drimbox statistics`: the statistics of the specification, by month, and the raw rows behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from drimbox.commands.common import Failed, json_option, print_csv, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.redaction import escape_control

_MONTH = "AAAA-MM"
#: Seconds a sum over years of rows may take.
_TIMEOUT = 30.0
#: Columns that say whose a value is.
_WHOSE = ("type_structure", "structure", "site", "detail")


def _period(command: Any) -> Any:
    last = click.option("--to", "last", metavar=_MONTH, help="Dernier mois ; par défaut le mois en cours.")
    first = click.option(
        "--from", "first", metavar=_MONTH, help="Premier mois ; par défaut le mois en cours."
    )
    month = click.option("--month", metavar=_MONTH, help="Un seul mois.")
    return month(first(last(command)))


@click.group(subcommand_metavar="show|export ...")
def statistics() -> None:
    """Statistiques STF01 à STF23 (DB.SO.87), gardées 24 mois ; STF20 et STF21, deux mois."""


@statistics.command()
@_period
@admin_option
@json_option
def show(
    month: str | None,
    first: str | None,
    last: str | None,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Montrer les valeurs par mois, par structure et par site."""
    found = _ask(client_of(client, config_path), "/statistics", _query(month, first, last))
    if as_json:
        print_json(found)
        return
    titles = {each["id"]: each["title"] for each in found["definitions"]}
    heading = None
    for each in sorted(found["values"], key=lambda value: (value["month"], value["stat"])):
        if heading != (each["month"], each["stat"]):
            heading = (each["month"], each["stat"])
            click.echo(f"{each['month']}  {each['stat']}  {titles[each['stat']]}")
        click.echo(escape_control(f"  {_whose(each):<48}{_number(each['value']):>16}"))
    for day in found["days"]:
        for stat, title in (("STF20", "transmission du PACS (s)"), ("STF21", "latence du PACS (s)")):
            click.echo(
                escape_control(f"{day['day']}  {stat}  {title}, {day['site']} : {_spread(day[stat])}")
            )
    if not found["values"] and not found["days"]:
        click.echo("Aucun événement compté.")


@statistics.command()
@_period
@click.option(
    "--raw", is_flag=True, help="Les événements bruts, un par ligne, au lieu des valeurs du mois."
)
@admin_option
def export(
    month: str | None,
    first: str | None,
    last: str | None,
    raw: bool,
    client: AdminClient | None,
    config_path: Path,
) -> None:
    """Écrire en CSV (point-virgule) les valeurs par mois, ou les données dont elles sont la somme."""
    process, query = client_of(client, config_path), _query(month, first, last)
    if raw:
        heads = ("numero", "instant", "statistique", *_WHOSE, "quantite")
        keys = ("id", "at", "stat", "structure_kind", "structure", "site", "part", "amount")
        print_csv(heads, (tuple(each[key] for key in keys) for each in _raw(process, query)))
        return
    found = _ask(process, "/statistics", query)
    columns = ("month", "stat", "structure_kind", "structure", "site", "part", "value")
    values = [tuple(each[key] for key in columns) for each in found["values"]]
    print_csv(("periode", "statistique", *_WHOSE, "valeur"), [*values, *_of_days(found["days"])])


def _of_days(days: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield a row for mean, minimum and maximum of each day of the PACS test (STF20, STF21)."""
    for day in days:
        for stat in ("STF20", "STF21"):
            for key, word in (("mean", "moyenne"), ("min", "minimum"), ("max", "maximum")):
                if day[stat] is not None:
                    yield (day["day"], stat, "", "", day["site"], word, day[stat][key])


def _raw(process: AdminClient, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield every raw row, oldest first, page by page."""
    after = 0
    while True:
        rows = _ask(process, "/statistics/raw", {**query, "after": str(after)})["rows"]
        if not rows:
            return
        if rows[0]["id"] <= after:
            raise Failed("réponse de DRIMbox incohérente : la même page revient.")
        yield from rows
        after = rows[-1]["id"]


def _ask(process: AdminClient, path: str, query: dict[str, str]) -> Any:
    return process.ask("GET", f"{path}?{urlencode(query)}" if query else path, timeout=_TIMEOUT)


def _query(month: str | None, first: str | None, last: str | None) -> dict[str, str]:
    if month is not None and (first is not None or last is not None):
        raise click.UsageError("choisir --month, ou --from et --to")
    asked = {"from": month or first, "to": month or last}
    return {key: value for key, value in asked.items() if value is not None}


def _whose(value: dict[str, Any]) -> str:
    structure = f"{value['structure_kind']} {value['structure']}".strip() or "structure inconnue"
    return ", ".join(part for part in (structure, value["site"], value["part"]) if part)


def _number(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "aucune mesure"
    return f"moyenne {values['mean']:.3f}, min. {values['min']:.3f}, max. {values['max']:.3f}"
