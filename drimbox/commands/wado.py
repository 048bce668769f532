"""`drimbox wado get`: ask any Source for a series as a Consumer does, and judge what comes back.

The client is the gateway's own (`wado.client`), the judge is `validate wado-response` on the raw bytes
of the answer, which go to a nameless file first so that the judge does not slow the measured transfer.
The token comes from a file, never from the command line, where every user of the machine could read it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import click

from drimbox.commands.common import Failed, json_option, print_json
from drimbox.commands.inspection import read_input
from drimbox.commands.pacs import react
from drimbox.commands.received import Receiver
from drimbox.config import Certificate
from drimbox.configfile.report import cannot_read
from drimbox.conformance.report import Report
from drimbox.dicom import syntaxes
from drimbox.model import is_uid
from drimbox.redaction import escape_control
from drimbox.wado import query as asking
from drimbox.wado.capabilities import CONTENT_TYPE, NAMESPACE
from drimbox.wado.query import Address, Query, QueryRefused
from drimbox.xml import XmlRefused, safe_parse

MAX_TOKEN = 16 * 1024


@attrs.frozen
class Got:
    """One exchange: what the client says, what the judge says, what was kept."""

    outcome: Any
    report: Report
    receiver: Receiver


@click.group("wado", subcommand_metavar="COMMANDE ...")
def wado() -> None:
    """Interroger une DRIMbox source comme le fait une consommatrice."""


def _uid(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_uid(value):
        raise click.BadParameter("ce n'est pas un UID")
    return value


def _accept(_: click.Context, __: click.Parameter, value: str) -> asking.Ranges:
    """Read `lossless`, `lossy`, or transfer syntaxes best first."""
    if value in ("lossless", "lossy"):
        return asking.LOSSLESS if value == "lossless" else asking.LOSSY
    uids = [uid.strip() for uid in value.split(",")]
    if not all(uid == "*" or is_uid(uid) for uid in uids) or len(uids) > 64:
        raise click.BadParameter("écrire lossless, lossy, ou des UID séparés par des virgules")
    return asking.ranked(uids)


def _connect(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    host, _colon, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter("écrire ADRESSE:PORT, par exemple 127.0.0.1:8443")
    return host.strip("[]"), int(port)


_PATH = click.Path(path_type=Path, exists=True, dir_okay=False)


@wado.command()
@click.option("--url", metavar="URL", help="RetrieveURL du KOS ; sinon --host, --study et --series.")
@click.option("--host", metavar="FQDN", help="Nom WADO-RS de la source (dbN.…).")
@click.option("--port", type=click.IntRange(1, 65535), default=443, show_default=True, metavar="PORT")
@click.option("--study", callback=_uid, metavar="UID", help="StudyInstanceUID.")
@click.option("--series", callback=_uid, metavar="UID", help="SeriesInstanceUID.")
@click.option("--instance", callback=_uid, metavar="UID", help="Une seule instance (images clés).")
@click.option(
    "--connect", callback=_connect, metavar="ADRESSE:PORT", help="Où se connecter, au lieu du nom."
)
@click.option("--kos", "kos_uid", callback=_uid, metavar="UID", help="SOPInstanceUID du KOS ouvert.")
@click.option("--kos-file", type=_PATH, metavar="FICHIER", help="Ce KOS, pour comparer les instances.")
@click.option("--token-file", type=_PATH, metavar="FICHIER", help="Jeton d'accès Pro Santé Connect.")
@click.option("--situation", metavar="STRUCTURE", help="Structure d'exercice du professionnel.")
@click.option(
    "--certificate", type=_PATH, required=True, metavar="FICHIER", help="Certificat SSL_SERV (PEM)."
)
@click.option("--key", type=_PATH, required=True, metavar="FICHIER", help="Sa clé privée (PEM).")
@click.option("--roots", type=_PATH, required=True, metavar="FICHIER", help="Racines des sources (PEM).")
@click.option(
    "--accept",
    callback=_accept,
    default="lossless",
    show_default=True,
    metavar="CHOIX",
    help="lossless, lossy, ou des syntaxes de transfert par préférence, séparées par des virgules.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DOSSIER", help="Où écrire les instances."
)
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=600.0, show_default=True, metavar="SECONDES"
)
@click.option("--capabilities", is_flag=True, help="Demander les capacités (OPTIONS) et rien d'autre.")
@json_option
def get(**options: Any) -> None:
    """Demander une série, la mesurer et la juger.

    Le code de sortie est 1 si la réponse n'est pas un succès complet et conforme.
    """
    address = _address(options)
    query = _query(address, options)
    manifest = _manifest(options["kos_file"])
    folder = _folder(options["output"])
    try:
        got = react(lambda reactor: _exchange(reactor, query, manifest, folder, options))
    except QueryRefused as refused:
        raise Failed(f"requête impossible : {refused}") from None
    except OSError as error:
        raise Failed(f"écriture impossible : {cannot_read(error)}") from None
    if query.method == "OPTIONS":
        _judge_capabilities(got)
    answer = describe(got)
    if options["as_json"]:
        print_json(answer)
    else:
        _say(got, answer)
    if not (got.outcome.complete and got.report.ok):
        raise click.exceptions.Exit(1)


# --- what to ask ----------------------------------------------------------------------------------


def _address(options: dict[str, Any]) -> Address:
    if options["url"] is not None:
        try:
            return asking.read_url(options["url"])
        except QueryRefused as refused:
            raise click.BadParameter(str(refused), param_hint="--url") from None
    if options["host"] is None:
        raise click.UsageError("donner --url, ou --host")
    if options["capabilities"]:
        return Address(options["host"], options["port"], "/")
    if options["study"] is None or options["series"] is None:
        raise click.UsageError("donner --study et --series avec --host")
    path = f"/dicom-web-rs/studies/{options['study']}/series/{options['series']}"
    if options["instance"] is not None:
        path += f"/instances/{options['instance']}"
    return Address(options["host"], options["port"], path)


def _query(address: Address, options: dict[str, Any]) -> Query:
    if options["capabilities"]:
        return Query(attrs.evolve(address, target="/"), accept=(), method="OPTIONS")
    token = None
    if options["token_file"] is not None:
        try:
            with options["token_file"].open("rb") as file:
                token = file.read(MAX_TOKEN).decode("ascii", "replace").strip()
        except OSError as error:
            raise Failed(f"{options['token_file']} : {cannot_read(error)}") from None
    return Query(
        address,
        token=token,
        kos_uid=options["kos_uid"],
        accept=options["accept"],
        situation=options["situation"],
    )


def _manifest(path: Path | None) -> Any:
    if path is None:
        return None
    from drimbox.kos.reading import ManifestRefused, read_manifest

    try:
        return read_manifest(read_input(str(path)))
    except ManifestRefused as refusal:
        raise Failed(f"{path} : {refusal}") from None


def _folder(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise Failed(f"{path} : le dossier n'est pas vide")
    except OSError as error:
        raise Failed(f"{path} : {cannot_read(error)}") from None
    return path


# --- the exchange ---------------------------------------------------------------------------------


async def _exchange(
    reactor: Any, query: Query, manifest: Any, folder: Path | None, options: dict[str, Any]
) -> Got:
    from drimbox.trust.certificates import CertificateUnusable
    from drimbox.trust.outgoing import client_policy
    from drimbox.wado.client import Limits, fetch

    try:
        policy = client_policy(options["roots"], Certificate(options["certificate"], options["key"]))
    except CertificateUnusable as unusable:
        raise Failed(str(unusable)) from None
    receiver = Receiver(folder)
    limits = Limits(total=options["timeout"], idle=min(60.0, options["timeout"]))
    with tempfile.TemporaryFile(dir=folder) as raw:
        try:
            outcome = await fetch(
                reactor,
                policy,
                query,
                receiver,
                limits=limits,
                connect_to=options["connect"],
                tap=raw.write,
            )
        finally:
            receiver.close()
        report = _judge(raw, outcome, manifest, options)
    return Got(outcome, report, receiver)


def _judge(raw: BinaryIO, outcome: Any, manifest: Any, options: dict[str, Any]) -> Report:
    """Judge the raw answer as the validator judges a capture."""
    from drimbox.conformance.wado_response import Expected, ResponseCheck, expected_of

    if options["capabilities"]:
        return Report("capacités WADO-RS")
    if outcome.head is None:
        report = Report("réponse WADO-RS")
        report.error(outcome.detail or "aucune réponse", "RFC 9110 15")
        return report
    one = options["instance"]
    expected = Expected(options["study"] or "", options["series"] or "", {one: ""} if one else None)
    if manifest is not None:
        whole = expected_of(manifest, options["series"] or _series_of(options["url"]))
        due = whole.instances or {}
        expected = attrs.evolve(whole, instances={one: due.get(one, "")} if one else due)
    check = ResponseCheck(expected=expected)
    raw.seek(0)
    while data := raw.read(256 * 1024):
        check.feed(data)
    report = check.finish()
    if outcome.trouble is not None and report.ok:
        report.error(outcome.detail, "RFC 9112 8")
    return report


def _series_of(url: str | None) -> str:
    """Return the series that a RetrieveURL names, empty when it names none."""
    _, found, rest = (url or "").partition("/series/")
    return rest.partition("/")[0] if found else ""


def _judge_capabilities(got: Got) -> None:
    """Judge a WADL (DB.SO.103): the series resource must be there."""
    outcome, report = got.outcome, got.report
    if outcome.head is None or outcome.trouble is not None:
        report.error(outcome.detail or "aucune réponse", "DB.SO.103")
        return
    if outcome.status != 200:
        report.error(f"statut {outcome.status} : 200 attendu", "DB.SO.103 ; PS3.18 8.9")
        return
    kind = (outcome.head.get("content-type") or "").partition(";")[0].strip().lower()
    if kind != CONTENT_TYPE.decode("ascii"):
        report.error("Content-Type : application/vnd.sun.wadl+xml attendu", "PS3.18 8.9")
    try:
        root = safe_parse(outcome.body)
    except XmlRefused as refused:
        report.error(f"WADL illisible ({refused})", "DB.SO.103")
        return
    paths = [str(each.get("path", "")) for each in root.iter(f"{{{NAMESPACE}}}resource")]
    report.facts["resources"] = paths[:50]
    if not any(path.strip("/").endswith("studies/{studyUID}/series/{seriesUID}") for path in paths):
        report.error("ressource de la série absente du WADL", "DB.SO.103 ; DB.SO.173")


# --- what to say ----------------------------------------------------------------------------------


def describe(got: Got) -> dict[str, Any]:
    """Return the whole result as JSON data."""
    outcome = got.outcome
    return {
        "status": outcome.status,
        "complete": outcome.complete,
        "trouble": outcome.trouble.value if outcome.trouble is not None else None,
        "detail": outcome.detail,
        "problem": attrs.asdict(outcome.problem) if outcome.problem is not None else None,
        "instances": outcome.parts,
        "bytes": outcome.received,
        "first_image_s": None if outcome.first_part is None else round(outcome.first_part, 4),
        "total_s": round(outcome.total, 4),
        "transfer_syntaxes": got.receiver.syntaxes,
        "files": [attrs.asdict(stored) for stored in got.receiver.stored],
        "report": got.report.as_json(),
    }


def _say(got: Got, answer: dict[str, Any]) -> None:
    outcome = got.outcome
    if outcome.status is None:
        click.echo(escape_control(f"pas de réponse : {outcome.detail}"))
    else:
        click.echo(
            f"statut {outcome.status}, réponse {'complète' if outcome.trouble is None else 'INCOMPLÈTE'}"
        )
        if outcome.detail:
            click.echo(escape_control(f"  {outcome.detail}"))
    if outcome.problem is not None:
        words = (outcome.problem.code, outcome.problem.title, outcome.problem.detail)
        click.echo(escape_control("  " + " - ".join(word for word in words if word)))
    if outcome.parts:
        first = answer["first_image_s"]
        click.echo(
            f"  {outcome.parts} image(s), {outcome.received / 1e6:.1f} Mo ; première en {first:.3f} s, "
            f"tout en {outcome.total:.3f} s"
        )
    for uid, count in got.receiver.syntaxes.items():
        click.echo(escape_control(f"  {count} en {syntaxes.describe(uid) if uid else 'syntaxe non dite'}"))
    for path in got.report.facts.get("resources", ()):
        click.echo(escape_control(f"  ressource {path}"))
    for line in got.report.lines():
        click.echo(line)
