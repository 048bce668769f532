"""`drimbox sites`: each site with its structures, its archive and whether it answers, its AE titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drimbox.commands.common import escape_lines, json_option, local_time, print_json
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.commands.words import TITLE_STATES

_STATES = {"answers": "répond", "silent": "NE RÉPOND PAS", "unknown": "pas encore interrogé"}


@click.command()
@admin_option
@json_option
def sites(client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Montrer chaque site : structures, PACS, état des AE titles, options."""
    found = client_of(client, config_path).ask("GET", "/sites")["sites"]
    if as_json:
        print_json(found)
        return
    for each in found:
        click.echo(escape_lines("\n".join(_lines(each))))


def _lines(site: dict[str, Any]) -> list[str]:
    access = "ouvert" if site["image_access"] else "FERMÉ (absent de la liste blanche)"
    lines = [f"{site['name']} : {site['wado']}, accès aux images {access}"]
    for each in site["structures"]:
        lines.append(f"  structure    {each['name']} ({each['kind']} {each['number']})")
    archive = site["archive"]
    where = f"{archive['host']}:{archive['port']}" if archive["host"] else archive["kind"]
    title = f" ({archive['ae_title']})" if "ae_title" in archive else ""
    lines.append(f"  archive      {archive['name']}{title}, {where} : {_reach(site['reach'])}")
    if "pool" in site:
        titles = site["pool"]["ae_titles"].items()
        lines.append(
            "  AE titles    " + ", ".join(f"{name} {TITLE_STATES.get(s, s)}" for name, s in titles)
        )
    places = site.get("pool") or site["readings"]
    lines.append(f"  places       {places['free']} libre(s), {places['waiting']} demande(s) en attente")
    on = [name for name, value in site["options"].items() if value is True]
    lines.append("  options      " + (", ".join(on) or "aucune"))
    return lines


def _reach(reach: dict[str, Any]) -> str:
    text = _STATES[reach["state"]]
    if reach["since"]:
        text += f" depuis le {local_time(reach['since'])}"
    return text + (f" ({reach['detail']})" if reach["detail"] else "")
