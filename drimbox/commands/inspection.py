"""`drimbox inspect`: what the gateway reads in a file, as JSON on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from drimbox.commands.common import Command, Failed, print_json
from drimbox.configfile.report import cannot_read
from drimbox.errors import DrimboxError

MAX_FILE_BYTES = 64 * 1024 * 1024


def read_input(name: str) -> bytes:
    """Return the content of a file, or of standard input for `-`. Raises `Failed`."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(name).open("rb") as source:
                data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Failed(f"{name} : {cannot_read(error)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise Failed(f"{name} : plus de {MAX_FILE_BYTES // 1024 // 1024} Mio")
    return data


_FILE: Callable[[Command], Command] = click.argument("file", metavar="FICHIER")


@click.group("inspect", subcommand_metavar="COMMANDE ...")
def inspection() -> None:
    """Lire un compte rendu ou un KOS comme le fait DRIMbox."""


@inspection.command()
@_FILE
def report(file: str) -> None:
    """Compte rendu : message HL7 ou document CDA ; « - » lit l'entrée standard.

    Le code de sortie est 1 quand ce compte rendu ne donnerait pas de KOS ; « reason » dit pourquoi.
    """
    data = read_input(file)
    from drimbox.conformance.inspect_report import inspect_report

    found = inspect_report(data)
    print_json(found)
    if not found.get("feed"):
        raise click.exceptions.Exit(1)


@inspection.command()
@_FILE
def kos(file: str) -> None:
    """KOS : fichier DICOM ; « - » lit l'entrée standard."""
    data = read_input(file)
    from drimbox.conformance.inspect_kos import inspect_kos
    from drimbox.kos.reading import ManifestRefused

    try:
        found = inspect_kos(data)
    except (DrimboxError, ManifestRefused) as error:
        raise Failed(f"{file} : {error}") from None
    print_json(found)
