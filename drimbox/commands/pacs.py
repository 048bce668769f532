"""`drimbox pacs`: try the link to a PACS from the command line, in a reactor of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from drimbox.commands.common import (
    Command,
    Failed,
    config_option,
    json_option,
    print_json,
    refused,
)
from drimbox.config import DicomSettings, Pacs
from drimbox.configfile import ConfigErrors, load, rules
from drimbox.configfile.rules import Rejected
from drimbox.errors import DrimboxError
from drimbox.model import Study, is_uid
from drimbox.redaction import escape_control

Result = TypeVar("Result")


def react(work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Run `work(reactor)` in a reactor that ends with it, and return its result or raise its exception."""
    from twisted.internet.defer import ensureDeferred
    from twisted.internet.task import react as twisted_react

    results: list[Result] = []
    failures: list[BaseException] = []

    async def main(reactor: Any) -> None:
        try:
            results.append(await work(reactor))
        except Exception as error:
            failures.append(error)

    with contextlib.suppress(SystemExit):  # how Twisted's react ends, always
        twisted_react(lambda reactor: ensureDeferred(main(reactor)))
    if failures:
        raise failures[0]
    if not results:
        raise Failed("interrompu")
    return results[0]


def _direct(_: click.Context, __: click.Parameter, value: str | None) -> Pacs | None:
    """Read `AE@host:port`."""
    if value is None:
        return None
    title, _at, address = value.partition("@")
    host, _colon, port = address.rpartition(":")
    try:
        return Pacs(
            name=title,
            ae_title=rules.ae_title().read(title),
            host=rules.host().read(host.strip("[]")),
            port=rules.port().read(int(port) if port.isascii() and port.isdigit() else port),
            pool=(),
        )
    except Rejected as rejected:
        raise click.BadParameter(f"{rejected.problem} ; écrire AETITLE@hote:port") from None


def _title(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else str(rules.ae_title().read(value))
    except Rejected as rejected:
        raise click.BadParameter(rejected.problem) from None


def pacs_options(command: Command) -> Command:
    """Add the options that choose the PACS."""
    for add in (
        click.option("--site", metavar="NOM", help="Un seul site ; par défaut, tous."),
        click.option(
            "--to",
            "direct",
            callback=_direct,
            metavar="AETITLE@HOTE:PORT",
            help="Un PACS hors configuration ; aucun fichier n'est alors lu.",
        ),
        click.option(
            "--as", "title", callback=_title, metavar="AETITLE", help="AE title appelant, au lieu du nôtre."
        ),
        json_option,
        config_option,
    ):
        command = add(command)
    return command


def chosen(
    config_path: Path, site: str | None, direct: Pacs | None, title: str | None
) -> tuple[list[Pacs], DicomSettings]:
    """Return the PACS asked for and our side of DICOM. Raises `Failed`."""
    if direct is not None:
        return [direct], DicomSettings(ae_title=title or DicomSettings().ae_title)
    try:
        config = load(config_path, files=False)
    except ConfigErrors as errors:
        raise refused(errors) from None
    asked = [each for each in config.sites if site in (None, each.name)]
    found = [each.pacs for each in asked if each.pacs is not None]
    if asked and not found:
        raise Failed("aucun PACS à essayer : archive native" + ("" if site is None else f" (site {site})"))
    if not found:
        names = ", ".join(each.name for each in config.sites)
        raise Failed(f"aucun site ne s'appelle « {site} » ; sites configurés : {names}")
    return found, config.dicom if title is None else attrs.evolve(config.dicom, ae_title=title)


@click.group(subcommand_metavar="COMMANDE ...")
def pacs() -> None:
    """Essayer la liaison avec les PACS."""


@pacs.command()
@pacs_options
def echo(
    config_path: Path, site: str | None, direct: Pacs | None, title: str | None, as_json: bool
) -> None:
    """Vérifier qu'un PACS répond (C-ECHO)."""
    targets, settings = chosen(config_path, site, direct, title)

    async def ask(reactor: Any) -> list[tuple[Pacs, float | DrimboxError]]:
        from drimbox.dicom.requestor import echo as dicom_echo

        answers: list[tuple[Pacs, float | DrimboxError]] = []
        for target in targets:
            try:
                answers.append((target, await dicom_echo(target, settings, reactor)))
            except DrimboxError as error:
                answers.append((target, error))
        return answers

    answers = react(ask)
    if as_json:
        print_json(
            [
                {"pacs": target.name, "error": str(answer)}
                if isinstance(answer, DrimboxError)
                else {"pacs": target.name, "seconds": round(answer, 4)}
                for target, answer in answers
            ]
        )
    else:
        for target, answer in answers:
            _say_echo(target, settings, answer)
    if any(isinstance(answer, DrimboxError) for _, answer in answers):
        raise click.exceptions.Exit(1)


def _say_echo(target: Pacs, settings: DicomSettings, answer: float | DrimboxError) -> None:
    where = f"{target.name} ({target.ae_title}@{target.host}:{target.port})"
    if isinstance(answer, DrimboxError):
        click.echo(escape_control(f"{where} : {answer.detail or answer}"))
        click.echo(
            f"  vérifier l'adresse et le port, le pare-feu, et que ce PACS connaît l'AE title "
            f"« {settings.ae_title} » et s'appelle bien « {target.ae_title} »"
        )
    else:
        click.echo(f"{where} : répond en {answer * 1000:.0f} ms")


@pacs.command()
@click.option("--study", "study_uid", required=True, metavar="UID", help="StudyInstanceUID de l'examen.")
@pacs_options
def find(
    study_uid: str,
    config_path: Path,
    site: str | None,
    direct: Pacs | None,
    title: str | None,
    as_json: bool,
) -> None:
    """Chercher un examen dans les PACS (C-FIND)."""
    if not is_uid(study_uid):
        raise click.BadParameter("ce n'est pas un UID", param_hint="--study")
    targets, settings = chosen(config_path, site, direct, title)

    async def ask(reactor: Any) -> list[tuple[Pacs, Study | DrimboxError | None]]:
        from drimbox.dicom.directory import find_study
        from drimbox.dicom.requestor import Links

        links = Links(settings, reactor)
        answers: list[tuple[Pacs, Study | DrimboxError | None]] = []
        for target in targets:
            try:
                answers.append((target, await find_study(links, target, study_uid)))
            except DrimboxError as error:
                answers.append((target, error))
        return answers

    answers = react(ask)
    if as_json:
        print_json([_study_json(target, answer) for target, answer in answers])
    else:
        for target, answer in answers:
            _say_study(target, answer)
    if not any(isinstance(answer, Study) for _, answer in answers):
        raise click.exceptions.Exit(1)


def _study_json(target: Pacs, answer: Study | DrimboxError | None) -> dict[str, Any]:
    if isinstance(answer, DrimboxError):
        return {"pacs": target.name, "error": str(answer)}
    if answer is None:
        return {"pacs": target.name, "found": False}
    series = [
        {"series_uid": each.series_uid, "modality": each.modality, "instances": len(each.instances)}
        for each in answer.series
    ]
    return {"pacs": target.name, "found": True, "instances": answer.instance_count, "series": series}


def _say_study(target: Pacs, answer: Study | DrimboxError | None) -> None:
    if isinstance(answer, DrimboxError):
        click.echo(escape_control(f"{target.name} : {answer.detail or answer}"))
    elif answer is None:
        click.echo(f"{target.name} : examen absent")
    else:
        click.echo(f"{target.name} : {len(answer.series)} série(s), {answer.instance_count} image(s)")
        for each in answer.series:
            line = f"  {each.modality:<4} {len(each.instances):>6} image(s)  {each.series_uid}"
            click.echo(escape_control(line))
