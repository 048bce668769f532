"""What `drimbox backup` and `drimbox restore` do once called; apart, because a database loads slowly."""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import click
from sqlalchemy.exc import SQLAlchemyError

from drimbox.audit.messages import administration
from drimbox.backup import making, restoring
from drimbox.backup.container import BackupUnusable, Manifest
from drimbox.backup.running import STAGE
from drimbox.clock import SystemClock
from drimbox.commands.audittrail import account, configuration, desk
from drimbox.commands.common import Failed, local_time, print_json
from drimbox.redaction import escape_control
from drimbox.store.engine import parse_url, sqlite_path
from drimbox.store.errors import StoreError
from drimbox.store.words import database_reason
from drimbox.systemerrors import system_reason


def make_backup(
    folder: Path | None,
    recipients: tuple[str, ...],
    keep: int | None,
    config_path: Path,
    *,
    as_json: bool,
    stages: bool,
) -> None:
    """Make a backup, audited before it leaves, and say what it is. Raises `Failed`."""
    config = configuration(config_path)
    settings = config.backup
    target = folder or settings.folder
    if target is None:
        raise Failed("donner le dossier, ou écrire [backup] folder dans la configuration.")

    def announce(name: str) -> None:
        _audit(config.store_url, f"Sauvegarde ({name})")

    with _told(), _ending_gently():
        made = making.make(
            config,
            config_path,
            target,
            recipients=recipients or settings.recipients,
            keep=keep or settings.keep,
            announce=announce,
            told=_say_stage if stages else lambda stage: None,
        )
    if as_json:
        print_json(
            {
                "file": str(made.path),
                "size": made.size,
                "sha256": made.sha256,
                "removed": [str(path) for path in made.removed],
                **attrs.asdict(made.manifest),
            }
        )
        return
    click.echo(f"{made.path} : {made.size} octets, vérifiée.")
    click.echo(f"SHA-256 : {made.sha256}")
    _describe(made.manifest)
    for path in made.removed:
        click.echo(f"Ancienne sauvegarde supprimée : {path.name}")


def _say_stage(stage: int) -> None:
    click.echo(f"{STAGE}{stage}", err=True)


def check_backup(path: Path, identity: Path | None, *, as_json: bool) -> None:
    """Verify a backup and say what it is. Raises `Failed`."""
    with _told():
        manifest = restoring.check_only(path, identity)
    if as_json:
        print_json({"file": str(path), "size": path.stat().st_size, **attrs.asdict(manifest)})
        return
    click.echo(f"{path.name} : sauvegarde entière.")
    _describe(manifest)


def restore_backup(path: Path, identity: Path | None, state_dir: Path, config_path: Path) -> None:
    """Put a backup in place, audit it, say what is left to do. Raises `Failed`."""
    target = state_dir / "drimbox.db"
    if config_path.exists():
        place = sqlite_path(parse_url(configuration(config_path).store_url))
        if place is None:
            raise Failed("la configuration désigne une base PostgreSQL : restaurer avec pg_restore.")
        target = place
    with _told():
        done = restoring.restore(path, target=target, config_path=config_path, identity=identity)
    click.echo(f"Base restaurée : {done.database}")
    _describe(done.manifest)
    for each in done.placed:
        click.echo(f"Configuration restaurée : {each}")
    for each, origin in done.aside:
        click.echo(f"Mis de côté : {each} (venait de {escape_control(origin)})")
    if not done.manifest.secrets:
        click.echo("Clés et secrets ne sont pas dans une sauvegarde non chiffrée : les remettre en place.")
    click.echo(f"Publications en attente : {done.waiting} ; le DMP sera interrogé avant tout envoi.")
    made_at = local_time(done.manifest.made_at)
    click.echo(
        "Ensuite : drimbox check-config, démarrer le service, faire renvoyer par les RIS les messages"
    )
    click.echo(f"acquittés depuis le {made_at}, puis drimbox resync start.")
    _audit(f"sqlite:///{done.database}", f"Restauration de la sauvegarde du {made_at}")


def _describe(manifest: Manifest) -> None:
    click.echo(
        f"Contenu : passerelle {escape_control(manifest.system_id)}, version "
        f"{escape_control(manifest.version)}, du {local_time(manifest.made_at)} ; "
        f"{manifest.kos} KOS ; dernier maillon de l'audit {manifest.audit_last}:{manifest.audit_hash}"
    )


def _audit(store_url: str, action: str) -> None:
    """Write who did it into the trail (DB.CS.10)."""
    event = administration(
        name="DRIMbox",
        source_name=socket.gethostname(),
        user=account(),
        action=action,
        subject="sauvegarde",
    )
    with desk(store_url) as trail:
        trail.record(event, SystemClock())


@contextmanager
def _ending_gently() -> Iterator[None]:
    """Have whoever ends us with SIGTERM let us clear away half a backup."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (BackupUnusable, StoreError) as error:
        raise Failed(escape_control(str(error))) from None
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise Failed(f"base de données : {database_reason(error)}") from None
    except OSError as error:
        where = f"{escape_control(str(error.filename))} : " if error.filename else ""
        raise Failed(f"{where}{system_reason(error)}") from None
