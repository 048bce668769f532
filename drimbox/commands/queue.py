"""`drimbox queue`: the rows of the three queues, seen, played again and given up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from drimbox.commands.common import Command, Failed, json_option, local_time, print_json, tree_lines
from drimbox.commands.process import AdminClient, admin_option, client_of
from drimbox.commands.words import KINDS, QUEUE_STATES, french
from drimbox.redaction import escape_control
from drimbox.systemerrors import system_reason

QUEUES = ("inbox", "feed", "outbox")
#: Rows read at once.
_PAGE = 200

_queue_argument = click.argument("queue", type=click.Choice(QUEUES), metavar="FILE")
_number_argument = click.argument("number", type=click.IntRange(min=1), metavar="LIGNE")


@click.group(subcommand_metavar="COMMANDE ...")
def queue() -> None:
    """Files de travail : inbox (messages), feed (examens à comparer), outbox (échanges avec le DMP)."""


def _options(command: Command) -> Command:
    return admin_option(json_option(command))


@queue.command("list")
@click.argument("queue", type=click.Choice(QUEUES), metavar="[FILE]", required=False)
@click.option(
    "--state",
    type=click.Choice([*QUEUE_STATES]),
    help="Un seul état ; par défaut, tout ce qui n'est ni terminé ni abandonné.",
)
@click.option("--study", metavar="UID", help="Un seul examen (StudyInstanceUID).")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Lignes montrées par file, les plus récentes d'abord.",
)
@click.option(
    "--before", type=click.IntRange(min=1), metavar="LIGNE", help="Seulement les lignes plus anciennes."
)
@_options
def list_rows(
    queue: str | None,
    state: str | None,
    study: str | None,
    limit: int,
    before: int | None,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Lister les lignes, sans donnée de patient."""
    process = client_of(client, config_path)
    found: list[dict[str, Any]] = []
    for name in (queue,) if queue else QUEUES:
        rows, more = _rows(process, name, state, study, before, limit)
        found += rows
        if not as_json:
            for row in rows:
                click.echo(escape_control(_line(row)))
            if more:
                click.echo(f"{name} : d'autres lignes suivent (--before {rows[-1]['id']})")
    if as_json:
        print_json(found)
    elif not found:
        click.echo("Aucune ligne.")


def _rows(
    process: AdminClient, queue: str, state: str | None, study: str | None, before: int | None, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return at most `limit` rows of a queue, and whether there are more."""
    found: list[dict[str, Any]] = []
    while len(found) <= limit:
        wanted = {"state": state, "study": study, "before": before, "limit": _PAGE}
        query = urlencode({key: value for key, value in wanted.items() if value is not None})
        page = process.ask("GET", f"/queues/{queue}?{query}")["rows"]
        found += page
        if len(page) < _PAGE:
            break
        before = page[-1]["id"]
    return found[:limit], len(found) > limit


def _line(row: dict[str, Any]) -> str:
    about = row.get("study_uid") or row.get("ris", "")
    kind = KINDS.get(row.get("kind", ""), "")
    parts = [f"{row['queue']} {row['id']}", local_time(row["came_at"]), _state(row)]
    parts += [kind, about, row["code"], row["reason"]]
    return "  ".join(part for part in parts if part)


def _state(row: dict[str, Any]) -> str:
    word = QUEUE_STATES.get(row["state"], str(row["state"]))
    if row["state"] == "put_off":
        word += f" jusqu'au {local_time(row['due_at'])}"
    return word


@queue.command()
@_queue_argument
@_number_argument
@click.option(
    "--raw",
    type=click.Path(path_type=Path),
    metavar="FICHIER",
    help="Écrire aussi le contenu (données de santé) dans ce nouveau fichier ; l'accès est audité.",
)
@_options
def show(
    queue: str,
    number: int,
    raw: Path | None,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Montrer tout ce qui est connu d'une ligne, sauf son contenu."""
    process = client_of(client, config_path)
    row = process.ask("GET", f"/queues/{queue}/{number}")
    if as_json:
        print_json(row)
    else:
        click.echo("\n".join(tree_lines(french({**row, "state": _state(row)}))))
    if raw is not None:
        _write_private(raw, lambda: process.fetch(f"/queues/{queue}/{number}/raw"))
        click.echo(f"Contenu écrit dans {escape_control(str(raw))} (lisible de vous seul).", err=True)


def _write_private(path: Path, fetch: Any) -> None:
    """Write what `fetch` returns to a new file of mode 0600; an existing one is left alone."""
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Failed(f"{path} existe déjà : donner un nouveau nom.") from None
    except OSError as error:
        raise Failed(f"{path} : écriture impossible ({system_reason(error)}).") from None
    try:
        with os.fdopen(target, "wb") as file:
            # Whatever the umask added or took away.
            os.fchmod(file.fileno(), 0o600)
            file.write(fetch())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Failed(f"{path} : écriture impossible ({system_reason(error)}).") from None
        raise


@queue.command()
@_queue_argument
@click.argument("numbers", type=click.IntRange(min=1), nargs=-1, metavar="[LIGNE...]")
@click.option(
    "--all", "every", type=click.Choice(["parked", "failed"]), help="Toutes les lignes de cet état."
)
@_options
def retry(
    queue: str,
    numbers: tuple[int, ...],
    every: str | None,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Rejouer des lignes mises de côté ou en échec.

    inbox : le message est relu, avec la configuration d'aujourd'hui. feed : l'examen est de nouveau
    comparé avec son PACS. outbox : le même envoi est retenté, après avoir demandé au DMP ce qu'il détient.
    """
    if bool(numbers) == bool(every):
        raise click.UsageError("donner des numéros de ligne, ou --all parked, ou --all failed")
    process = client_of(client, config_path)
    if every:
        done, refused = _retry_all(process, queue, every)
    else:
        done, refused = [], []
        for number in numbers:
            process.ask("POST", f"/queues/{queue}/{number}/retry")
            done.append(number)
    if as_json:
        print_json({"queue": queue, "retried": done, "refused": refused})
    else:
        click.echo(f"{queue} : {len(done)} ligne(s) rejouée(s).")
        for each in refused:
            click.echo(escape_control(f"{queue} {each['id']} non rejouée : {each['reason']}"))
    if refused:
        raise click.exceptions.Exit(1)


def _retry_all(process: AdminClient, queue: str, state: str) -> tuple[list[int], list[dict[str, Any]]]:
    done: list[int] = []
    refused: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        answer = process.ask("POST", f"/queues/{queue}/retry", {"state": state, "after": after})
        done += answer["retried"]
        refused += answer["refused"]
        if answer["after"] is not None and answer["after"] <= after:
            raise Failed("réponse de DRIMbox incohérente : le même lot revient.")
        after = answer["after"]
    return done, refused


@queue.command()
@_queue_argument
@_number_argument
@click.option("--reason", required=True, metavar="TEXTE", help="Motif, écrit dans l'audit.")
@_options
def drop(
    queue: str,
    number: int,
    reason: str,
    client: AdminClient | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Abandonner une ligne : elle reste visible, plus rien n'en sera fait."""
    process = client_of(client, config_path)
    answer = process.ask("POST", f"/queues/{queue}/{number}/drop", {"reason": reason})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{queue} {number} abandonnée.")
