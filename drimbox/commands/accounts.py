"""`drimbox accounts`: who may administer the gateway, and in which role."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from drimbox.accounts import Account, AccountsUnusable, Role, make_account, read_accounts, write_accounts
from drimbox.commands.common import Command, Failed, config_option, json_option, print_json, refused
from drimbox.configfile import ConfigErrors, admin_listener
from drimbox.systemerrors import system_reason


def _file_option(command: Command) -> Command:
    add = click.option(
        "--file",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FICHIER",
        help="Fichier des comptes ; par défaut, [admin] accounts de la configuration.",
    )
    return config_option(add(command))


def _file(file: Path | None, config_path: Path) -> Path:
    if file is not None:
        return file
    try:
        named = admin_listener(config_path).accounts
    except ConfigErrors as errors:
        raise refused(errors) from None
    if named is None:
        raise Failed("écrire [admin] accounts dans la configuration, ou donner --file.")
    return named


def _read(path: Path) -> dict[str, Account]:
    try:
        return read_accounts(path) if path.exists() else {}
    except AccountsUnusable as error:
        raise Failed(str(error)) from None


def _write(path: Path, accounts: dict[str, Account]) -> None:
    try:
        write_accounts(path, accounts.values())
    except OSError as error:
        raise Failed(f"{path} : écriture impossible ({system_reason(error)}).") from None


@click.group(subcommand_metavar="COMMANDE ...")
def accounts() -> None:
    """Comptes de l'administration."""


@accounts.command()
@click.argument("name", metavar="NOM")
@click.option("--role", type=click.Choice([each.value for each in Role]), required=True)
@_file_option
def add(name: str, role: str, file: Path | None, config_path: Path) -> None:
    """Ajouter un compte, ou changer son mot de passe et son rôle.

    Le mot de passe est demandé, ou lu sur l'entrée standard (une ligne).
    """
    path = _file(file, config_path)
    if sys.stdin.isatty():
        password = click.prompt("Mot de passe", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    found = _read(path)
    changed = name in found
    try:
        found[name] = make_account(name, Role(role), password)
    except ValueError as error:
        raise Failed(str(error)) from None
    _write(path, found)
    click.echo(f"Compte {name} ({role}) {'modifié' if changed else 'ajouté'}.")


@accounts.command("list")
@_file_option
@json_option
def list_(file: Path | None, config_path: Path, as_json: bool) -> None:
    """Montrer les comptes et leur rôle."""
    found = _read(_file(file, config_path))
    if as_json:
        print_json([{"name": each.name, "role": each.role.value} for each in found.values()])
        return
    for each in found.values():
        click.echo(f"{each.name:<32} {each.role.value}")


@accounts.command()
@click.argument("name", metavar="NOM")
@_file_option
def remove(name: str, file: Path | None, config_path: Path) -> None:
    """Retirer un compte ; il n'entre plus dès sa prochaine requête."""
    path = _file(file, config_path)
    found = _read(path)
    if found.pop(name, None) is None:
        raise Failed(f"aucun compte ne s'appelle « {name} ».")
    _write(path, found)
    click.echo(f"Compte {name} retiré.")
