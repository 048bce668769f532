"""`drimbox doctor`: try every link, and say what to mend; through the running process, or without it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import click

from drimbox.commands.common import Failed, json_option, print_json, refused
from drimbox.commands.pacs import react
from drimbox.commands.process import AdminClient, NotRunning, admin_option, client_of
from drimbox.configfile import ConfigErrors, check, load
from drimbox.model import is_uid
from drimbox.redaction import escape_control

#: Seconds between two looks at an examination in the process.
_LOOK = 0.25
_MARKS = {"ok": "ok", "warning": "attention", "error": "ERREUR", "skipped": "non essayé"}
#: What each check is called on the screen.
_NAMES = {
    "configuration": "configuration",
    "certificate": "certificat",
    "disk": "disque",
    "backup": "sauvegarde",
    "clock": "horloge",
    "store": "base",
    "node": "nœud",
    "listener": "écoute",
    "front-end": "frontal",
    "ris": "RIS",
    "pacs-echo": "PACS, C-ECHO",
    "pacs-find": "PACS, C-FIND",
    "pacs-move": "PACS, C-MOVE",
    "dmp": "DMP",
    "psc": "Pro Santé Connect",
    "whitelist": "liste blanche",
    "crl": "révocation",
    "ocsp": "OCSP",
    "probes": "sondes",
    "mail": "courrier",
    "webhook": "webhook",
    "atna": "dépôt d'audit",
    "examination": "examen",
}


def _uid(_: click.Context, __: click.Parameter, value: str | None) -> str:
    if value is not None and not is_uid(value):
        raise click.BadParameter("ce n'est pas un UID")
    return value or ""


@click.command()
@click.option(
    "--study",
    callback=_uid,
    metavar="UID",
    help="Examen à faire envoyer par chaque PACS ; par défaut, l'examen témoin de chaque site.",
)
@click.option(
    "--send",
    is_flag=True,
    help="Envoyer aussi un message d'essai par courrier et webhook (sans cela, rien n'est envoyé).",
)
@admin_option
@json_option
def doctor(study: str, send: bool, client: AdminClient | None, config_path: Path, as_json: bool) -> None:
    """Essayer toutes les liaisons et dire quoi réparer.

    Le processus fait l'examen quand il tourne ; sinon la commande le fait seule, à lancer alors avec
    l'utilisateur du service. Code de sortie 0 si rien n'est en erreur, 1 sinon.
    """
    explicit = client is not None
    try:
        findings, mode = _through(client_of(client, config_path), study, send), "process"
    except NotRunning:
        if explicit:
            raise
        findings, mode = _alone(config_path, study, send), "alone"
    healthy = all(each["state"] != "error" for each in findings)
    if as_json:
        print_json({"mode": mode, "healthy": healthy, "findings": findings})
    else:
        _show(findings, mode)
    if not healthy:
        raise click.exceptions.Exit(1)


def _through(process: AdminClient, study: str, send: bool) -> list[dict[str, Any]]:
    """Have the process do it, and wait."""
    begun = process.ask("POST", "/doctor", {"study": study, "send": send})
    if begun["joined"] and send:
        raise Failed("un examen est déjà en cours, sans message d'essai peut-être : recommencer après lui.")
    while True:
        state = process.ask("GET", "/doctor")
        if state["number"] != begun["number"]:
            raise Failed("examen interrompu : DRIMbox s'arrête ou a redémarré.")
        if not state["running"]:
            found: list[dict[str, Any]] = state["findings"]
            return found
        time.sleep(_LOOK)


def _alone(path: Path, study: str, send: bool) -> list[dict[str, Any]]:
    try:
        config = load(path)
    except ConfigErrors as errors:
        if not _only_files(path):
            raise refused(errors) from None
        # What a file holds is looked at again below, with everything else.
        config = load(path, files=False)

    async def look(reactor: Any) -> list[dict[str, Any]]:
        from drimbox.doctor.alone import examine_alone

        found = await examine_alone(config, path, reactor, study, send=send)
        return [attrs.asdict(each) | {"state": each.state.value} for each in found]

    return react(look)


def _only_files(path: Path) -> bool:
    """Say whether only the files that the configuration names are wrong, not what it says."""
    return not check(path, files=False)[0]


def _show(findings: list[dict[str, Any]], mode: str) -> None:
    if mode == "alone":
        click.echo("Le service ne tourne pas : examen fait par cette commande.")
    for each in findings:
        mark = _MARKS[each["state"]]
        head = (
            f"{mark:<11} {_NAMES.get(each['check'], each['check']):<18} {each['subject']} : {each['text']}"
        )
        click.echo(escape_control(head))
        if each["mend"]:
            click.echo(escape_control(f"{'':<11} -> {each['mend']}"))
    counts = {state: sum(each["state"] == state for each in findings) for state in _MARKS}
    click.echo(
        f"{counts['error']} erreur(s), {counts['warning']} avertissement(s), "
        f"{counts['skipped']} non essayé(s), {counts['ok']} bon(s)"
    )
