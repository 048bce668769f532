"""`drimbox backup` and `drimbox restore` (DB.SO.24)."""

from __future__ import annotations

from pathlib import Path

import click

from drimbox.commands.common import config_option, json_option

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_identity = click.option(
    "--identity",
    type=_FILE,
    metavar="FICHIER",
    help="Clé secrète age, pour une sauvegarde chiffrée.",
)


@click.command()
@click.argument(
    "folder",
    metavar="[DOSSIER]",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    metavar="AGE1…",
    help="Chiffrer pour cette clé publique (répétable) ; par défaut [backup] recipients. Sans chiffrement, "
    "clés et secrets n'y sont pas.",
)
@click.option(
    "--keep",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Ne garder dans le dossier que les N dernières sauvegardes de cette passerelle ; par défaut "
    "[backup] keep.",
)
@click.option("--stages", is_flag=True, hidden=True, help="Dire sur l'erreur standard où elle en est.")
@json_option
@config_option
def backup(
    folder: Path | None,
    recipients: tuple[str, ...],
    keep: int | None,
    stages: bool,
    as_json: bool,
    config_path: Path,
) -> None:
    """Sauvegarder archive, files, statistiques, audit et configuration, le service tournant ou non.

    DOSSIER est par défaut celui de [backup] folder. La sauvegarde est relue et vérifiée avant que la
    commande ne réussisse. À lancer sous le compte du service.
    """
    from drimbox.commands.backups import make_backup

    make_backup(folder, recipients, keep, config_path, as_json=as_json, stages=stages)


@click.command("backup-key")
def backup_key() -> None:
    """Créer une paire de clés age pour les sauvegardes.

    La clé secrète est à garder ailleurs que sur cette machine ; sans elle, une sauvegarde chiffrée est
    perdue.
    """
    from drimbox.backup.sealing import new_identity

    secret, public = new_identity()
    click.echo(f"# clé publique : {public}")
    click.echo(secret)


@click.command()
@click.argument("file", metavar="FICHIER", type=_FILE)
@_identity
@click.option("--check", is_flag=True, help="Vérifier seulement ; rien n'est écrit.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/drimbox"),
    show_default=True,
    metavar="DOSSIER",
    help="Dossier de la base, quand il n'y a pas encore de configuration.",
)
@json_option
@config_option
def restore(
    file: Path, identity: Path | None, check: bool, state_dir: Path, as_json: bool, config_path: Path
) -> None:
    """Restaurer une sauvegarde sur une machine vide, service arrêté.

    Tout est vérifié avant que rien ne soit posé, et rien n'est écrasé. Les publications en attente seront
    d'abord cherchées au DMP.
    """
    from drimbox.commands.backups import check_backup, restore_backup

    if check:
        check_backup(file, identity, as_json=as_json)
    elif as_json:
        raise click.UsageError("--json ne va qu'avec --check")
    else:
        restore_backup(file, identity, state_dir, config_path)
