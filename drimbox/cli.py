"""The `drimbox` command. Exit codes: 0 good, 1 the check or the work failed, 2 wrong command line."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import click

from drimbox.commands.accounts import accounts
from drimbox.commands.archive import archive
from drimbox.commands.audit import audit
from drimbox.commands.backup import backup, backup_key, restore
from drimbox.commands.certificates import certificates
from drimbox.commands.configuration import check_config
from drimbox.commands.doctor import doctor
from drimbox.commands.homologation import homologation
from drimbox.commands.inspection import inspection
from drimbox.commands.notices import notices
from drimbox.commands.pacs import pacs
from drimbox.commands.process import status
from drimbox.commands.queue import queue
from drimbox.commands.sites import sites
from drimbox.commands.speedtest import speedtest
from drimbox.commands.statistics import statistics
from drimbox.commands.validate import validate
from drimbox.commands.wado import wado
from drimbox.commands.walks import resync, url_change
from drimbox.commands.whitelist import whitelist
from drimbox.redaction import escape_control
from drimbox.systemerrors import system_reason


@click.group(
    subcommand_metavar="COMMANDE ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Passerelle d'imagerie DRIMbox.

    Le service lui-même se lance par « twistd -n drimbox --config FICHIER ».
    """


@cli.command()
def version() -> None:
    """Afficher la version."""
    # It drags the parsers of mail and archives in, which no other command starts with.
    import importlib.metadata

    click.echo(f"DRIMbox {importlib.metadata.version('drimbox')}")


for command in (
    accounts,
    archive,
    audit,
    backup,
    backup_key,
    restore,
    certificates,
    check_config,
    doctor,
    homologation,
    status,
    notices,
    queue,
    pacs,
    inspection,
    sites,
    speedtest,
    statistics,
    resync,
    url_change,
    validate,
    wado,
    whitelist,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line, in UTF-8 whatever the locale says.

    What the system refuses where no command expects it (standard output on a full disk) is said in a line,
    and the exit code is 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        cli(prog_name="drimbox")
    except OSError as error:
        # What is left in the buffer cannot go out either; the interpreter would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        where = f"{escape_control(str(error.filename))} : " if error.filename else ""
        click.echo(f"Erreur : {where}{system_reason(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
