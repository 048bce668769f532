"""`drimbox validate`: judge what was captured on the wire, or a manifest, whoever made it.

Every finding is printed with its clause; the exit code is 1 when one of them is an error. `validate kos`
also asks `dciodvfy` (Debian: dicom3tools) when it is installed: an independent reader of PS3.3. What it
says about the attributes that the national format adds on purpose is left out.
"""

from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click

from drimbox.commands.common import Command, Failed, json_option, print_json, tree_lines
from drimbox.commands.inspection import read_input
from drimbox.configfile.report import cannot_read
from drimbox.conformance.report import Report
from drimbox.redaction import escape_control

#: What the facts of a report are called on the screen.
_FACTS = {
    "method": "méthode",
    "location": "hôte",
    "study_uid": "examen",
    "series_uid": "série",
    "instance_uid": "instance",
    "kos_uid": "KOS",
    "token_length": "longueur du jeton",
    "accept": "syntaxes demandées",
    "status": "statut",
    "problem": "refus",
    "body_bytes": "octets",
    "parts": "parties",
    "instances": "instances",
    "series": "séries",
    "key_images": "images clés",
    "transfer_syntaxes": "syntaxes de transfert",
    "complete": "complète",
    "missing": "instances absentes",
    "extra": "instances en plus",
    "manifests": "manifestes",
    "studies": "examens du compte rendu",
    "requests": "demandes du compte rendu",
    "files": "fichiers d'images",
    "xades": "version XAdES",
    "sets": "jeux de soumission",
    "kos": "KOS",
}

_FILE: Callable[[Command], Command] = click.argument("file", metavar="FICHIER")
#: A judge from outside gets this long, seconds, and this many of its lines are shown.
JUDGE_TIMEOUT = 60.0
_JUDGE_LINES = 50
#: Seconds between two words on how far a long judgement is.
_SAID_EVERY = 10.0
#: Files looked at beside a METADATA.XML.
MAX_BESIDE = 1000
#: What dciodvfy says of every IMG-KOS (interfaces.md 3.8).
_INHERENT = re.compile(
    r"Warning - Attribute is not present in standard DICOM IOD - \((?:0x0008,0x1190|0x0020,0x0011"
    r"|0x0020,0x0013|0x0008,0x1199|0x0008,0x1150|0x0008,0x1155|0x0020,0x000e|0x0040,0xa043|0x0008,0x0100"
    r"|0x0008,0x0102|0x0008,0x0104|0x0040,0xa730|0x0040,0xa160)\) .*"
    r"|Warning - Dicom dataset contains attributes not present in standard DICOM IOD .*"
    r"|Warning - Missing attribute or value that would be needed to build DICOMDIR - Study (?:ID|Date|Time)"
    r"|Warning - Value dubious for this VR - \(0x0010,0x1001\) .*Retired Person Name form",
    re.IGNORECASE,
)


@click.group("validate", subcommand_metavar="COMMANDE ...")
def validate() -> None:
    """Vérifier la conformité d'un échange capturé ou d'un KOS.

    Le code de sortie est 1 quand il y a une erreur.
    """


@validate.command("wado-request")
@_FILE
@json_option
def wado_request(file: str, as_json: bool) -> None:
    """Requête WADO-RS capturée ; « - » lit l'entrée standard."""
    data = read_input(file)
    from drimbox.conformance.wado_request import validate_request

    conclude(validate_request(data), file, as_json)


@validate.command("wado-response")
@_FILE
@click.option(
    "--kos", "kos_file", metavar="FICHIER", help="KOS dont la réponse doit contenir les instances."
)
@json_option
def wado_response(file: str, kos_file: str | None, as_json: bool) -> None:
    """Réponse WADO-RS capturée, en-têtes compris ; « - » lit l'entrée standard.

    Par exemple : curl -i --raw … > reponse.http
    """
    from drimbox.conformance.wado_response import validate_response
    from drimbox.kos.reading import ManifestRefused, read_manifest

    manifest = None
    if kos_file is not None:
        try:
            manifest = read_manifest(read_input(kos_file))
        except ManifestRefused as refusal:
            raise Failed(f"{kos_file} : {refusal}") from None
    try:
        source = sys.stdin.buffer if file == "-" else Path(file)
        report = validate_response(source, manifest=manifest)
    except OSError as error:
        raise Failed(f"{file} : {cannot_read(error)}") from None
    conclude(report, file, as_json)


@validate.command("kos")
@_FILE
@json_option
def kos(file: str, as_json: bool) -> None:
    """KOS : fichier DICOM ; « - » lit l'entrée standard.

    Quand dciodvfy est installé, son avis est demandé aussi.
    """
    data = read_input(file)
    from drimbox.conformance.kos_rules import validate_kos

    report = validate_kos(data)
    second_opinion(data, report)
    conclude(report, file, as_json)


@validate.command("xds")
@_FILE
@click.option(
    "--kos", "kos_file", metavar="FICHIER", help="KOS envoyé, quand la capture ne le contient pas."
)
@json_option
def xds(file: str, kos_file: str | None, as_json: bool) -> None:
    """Publication ou mise à jour dans le DMP, METADATA.XML ; « - » lit l'entrée standard.

    La capture est la requête HTTP (MTOM) avec ou sans en-têtes, ou l'enveloppe SOAP seule. Les fichiers
    qu'un METADATA.XML désigne sont lus à côté de lui. Quand xmlsec1 est installé, il vérifie aussi les
    signatures.
    """
    data = read_input(file)
    kos_data = read_input(kos_file) if kos_file is not None else None
    from drimbox.commands.signatures import xmlsec1_verifies
    from drimbox.conformance.xds.validate import validate_xds

    folder = None
    if Path(file).name.upper() == "METADATA.XML":
        folder = functools.partial(beside, Path(file).parent)
    report = validate_xds(data, kos=kos_data, folder=folder, judge=xmlsec1_verifies)
    report.facts["xmlsec1"] = shutil.which("xmlsec1") is not None
    conclude(report, file, as_json)


@validate.command("archive")
@click.argument("path", metavar="CHEMIN", type=click.Path(path_type=Path))
@json_option
def archive(path: Path, as_json: bool) -> None:
    """Archive XDM : fichier KAAAAAMM.ZIP, dossier KAAAAAMM, ou dossier qui en contient.

    Chaque jeu est jugé comme le ferait une DRIMbox qui le charge, ses métadonnées et ses KOS comme par
    « validate xds » et « validate kos » ; dciodvfy n'est pas demandé.
    """
    from drimbox.conformance.archive import Known, validate_archive
    from drimbox.xdm.names import archive_prefix
    from drimbox.xdm.opening import ArchiveRefused, find_archives

    try:
        paths = find_archives(path)
    except ArchiveRefused as refusal:
        raise Failed(escape_control(str(refusal))) from None
    # Two PACS may hold the same study, each with its KOS.
    known: dict[str, Known] = defaultdict(Known)
    reports = []
    for each in paths:
        said = None if as_json else _Progress(each.name)
        report = validate_archive(each, known=known[archive_prefix(each.name)], progress=said)
        reports.append({"file": each.name, **report.as_json()})
        if not as_json:
            show(report, each.name)
    good = all(each["ok"] for each in reports)
    if as_json:
        print_json({"file": str(path), "ok": good, "archives": reports})
    if not good:
        raise click.exceptions.Exit(1)


class _Progress:
    """Says on stderr now and then how far a long judgement is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = time.monotonic() + _SAID_EVERY

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            click.echo(escape_control(f"{self._name} : {done} sur {total} ..."), err=True)
            self._next = time.monotonic() + _SAID_EVERY


def beside(folder: Path, uri: str) -> bytes | None:
    """Return the file that the URI of a METADATA.XML in `folder` names; None when it is not there.

    `uri` is `SSNNNNNN/NAME.EXT`: the file must stand in that very folder, whose name is not compared, and
    be no link. Names are compared without case (DB.SO.29).
    """
    name = uri.rpartition("/")[2].upper()
    try:
        for path in itertools.islice(folder.iterdir(), MAX_BESIDE):
            if path.name.upper() == name and not path.is_symlink() and path.is_file():
                return read_input(str(path))
    except OSError:
        return None
    return None


@validate.command("cross")
@click.option(
    "--report",
    "report_file",
    metavar="FICHIER",
    required=True,
    help="Compte rendu : document CDA, ou message HL7 qui le porte.",
)
@click.option(
    "--kos", "kos_files", metavar="FICHIER", required=True, multiple=True, help="KOS ; répétable."
)
@click.option(
    "--images", "folder", metavar="DOSSIER", type=click.Path(path_type=Path), help="Dossier des images."
)
@click.option(
    "--xds", "xds_file", metavar="FICHIER", help="Publication (TD2.1) ou METADATA.XML de ces KOS."
)
@click.option(
    "--exclude-root",
    "roots",
    metavar="UID",
    multiple=True,
    help="Racine de SOPInstanceUID laissée hors des KOS (DB.SO.199) ; répétable.",
)
@json_option
def cross(
    report_file: str,
    kos_files: tuple[str, ...],
    folder: Path | None,
    xds_file: str | None,
    roots: tuple[str, ...],
    as_json: bool,
) -> None:
    """KOS contre le compte rendu et, si possible, contre les métadonnées et les images.

    Avec plusieurs KOS, chaque examen du compte rendu doit en avoir un et un seul.
    """
    data = read_input(report_file)
    manifests = [read_input(each) for each in kos_files]
    metadata = read_input(xds_file) if xds_file is not None else None
    from drimbox.conformance.cross import validate_cross

    try:
        report = validate_cross(data, manifests, folder, metadata=metadata, excluded_roots=roots)
    except OSError as error:
        raise Failed(f"{folder} : {cannot_read(error)}") from None
    conclude(report, report_file, as_json)


def second_opinion(data: bytes, report: Report) -> None:
    """Add what dciodvfy says of a file; nothing but a fact when it is not installed."""
    program = shutil.which("dciodvfy")
    report.facts["dciodvfy"] = program is not None
    if program is None:
        return
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(data)
        file.flush()
        try:
            # No shell, and the only argument is the name of our own file.
            done = subprocess.run(  # noqa: S603
                [program, file.name], capture_output=True, timeout=JUDGE_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            report.inform("dciodvfy n'a pas répondu", "dciodvfy")
            return
    said = (done.stderr + done.stdout).decode("utf-8", "replace").splitlines()
    kept = [line.strip() for line in said if not _INHERENT.fullmatch(line.strip())]
    for line in kept[:_JUDGE_LINES]:
        if line.startswith("Error"):
            report.error(_without_values(line), "dciodvfy ; PS3.3")
        elif line.startswith("Warning"):
            report.warning(_without_values(line), "dciodvfy ; PS3.3")
    if done.returncode < 0:
        report.inform("dciodvfy s'est arrêté en cours de route", "dciodvfy")


def _without_values(line: str) -> str:
    """Return a line of dciodvfy without the values it quotes, which may be a patient's."""
    return re.sub(r"=\s*<.*>", "= <…>", line)[:300]


def conclude(report: Report, name: str, as_json: bool) -> None:
    """Print a report; exit with 1 when it has an error."""
    if as_json:
        print_json({"file": name, **report.as_json()})
    else:
        show(report, name)
    if not report.ok:
        raise click.exceptions.Exit(1)


def show(report: Report, name: str) -> None:
    """Print a report for a person."""
    for line in report.lines(name):
        click.echo(line)
    for line in tree_lines({_FACTS.get(key, key): value for key, value in report.facts.items()}, 2):
        click.echo(line)
