"""`drimbox audit`: the audit trail, searched and verified beside the running process."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import click

from drimbox.audit.kinds import EVENTS, OUTCOMES
from drimbox.commands.common import config_option, json_option


class _Moment(click.ParamType[datetime]):
    """A date, or a date and time, local unless it says its zone; at the end of a period, a whole day."""

    name = "date"

    def __init__(self, *, end: bool) -> None:
        self._end = end

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the instant; the end of the day for a date alone, when it ends a period."""
        text = str(value)
        try:
            instant = datetime.fromisoformat(text)
            if self._end and re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text):
                instant += timedelta(days=1)
            return instant.astimezone()
        except (ValueError, OverflowError, OSError):
            self.fail("écrire AAAA-MM-JJ ou AAAA-MM-JJTHH:MM", param, ctx)


class _Known(click.ParamType[tuple[int, str]]):
    """A head noted earlier: number, colon, hash."""

    name = "maillon"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, str]:
        """Return the head."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", str(value))
        if found is None:
            self.fail("écrire le dernier maillon comme « audit verify » l'affiche", param, ctx)
        return int(found[1]), found[2]


@click.group(subcommand_metavar="COMMANDE ...")
def audit() -> None:
    """Journal d'audit : recherche et vérification, que le service tourne ou non."""


@audit.command()
@click.option(
    "--from", "start", type=_Moment(end=False), metavar="DATE", help="Début de la période, compris."
)
@click.option(
    "--to",
    "end",
    type=_Moment(end=True),
    metavar="DATE",
    help="Fin : un jour entier compris, un instant exclu.",
)
@click.option("--ins", default="", metavar="MATRICULE", help="Tout ce qui concerne ce patient.")
@click.option("--study", default="", metavar="UID", help="Un seul examen (StudyInstanceUID).")
@click.option("--event", type=click.Choice([*EVENTS]), help="Une seule sorte d'événement.")
@click.option("--outcome", type=click.Choice([*OUTCOMES]), help="Un seul résultat.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000_000),
    default=100,
    show_default=True,
    metavar="N",
    help="Événements au plus, les plus récents d'abord.",
)
@click.option("--all", "every", is_flag=True, help="Tous, sans limite de nombre.")
@click.option(
    "--before", type=click.IntRange(min=1), metavar="NUMÉRO", help="Seulement les événements plus anciens."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "xml"]),
    default="text",
    show_default=True,
    help="xml : messages DICOM PS3.15 (ATNA).",
)
@config_option
def search(
    start: datetime | None,
    end: datetime | None,
    ins: str,
    study: str,
    event: str | None,
    outcome: str | None,
    limit: int,
    every: bool,
    before: int | None,
    form: str,
    config_path: Path,
) -> None:
    """Chercher des événements. La recherche est elle-même auditée, au nom de qui la lance."""
    from drimbox.commands.audittrail import Search, search_trail

    search_trail(
        Search(start, end, ins, study, event, outcome, None if every else limit, before, form), config_path
    )


@audit.command()
@click.option(
    "--known",
    type=_Known(),
    metavar="NUMÉRO:EMPREINTE",
    help="Un dernier maillon noté ailleurs, qui doit faire partie de la chaîne.",
)
@config_option
@json_option
def verify(known: tuple[int, str] | None, config_path: Path, as_json: bool) -> None:
    """Vérifier la chaîne : ni événement modifié, ni ajouté, ni effacé avant son heure.

    Le code de sortie est 1 au premier défaut, qui est nommé. Le dernier maillon affiché, noté ailleurs
    (papier, autre machine), permet plus tard de voir que rien n'a été réécrit (--known).
    """
    from drimbox.commands.audittrail import verify_trail

    verify_trail(known, config_path, as_json=as_json)
