"""The admin routes of the backups (DB.SO.24): make one, check one, list them; restoring needs a stop.

Paths are those of the machine that DRIMbox runs on; what is asked is audited before it begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from drimbox.config import BackupSettings
from drimbox.source.jobs import Jobs, Progress
from drimbox.systemerrors import system_reason
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply
from drimbox.web.archive import absolute
from drimbox.web.jobs import begin, shown

#: Public keys of one backup, and backups kept, at the most.
MAX_RECIPIENTS, MAX_KEPT = 20, 10_000


class Backups(Protocol):
    """Makes and checks backups (`backup.running.BackupRuns`)."""

    jobs: Jobs
    settings: BackupSettings

    async def make(
        self, progress: Progress, folder: Path, recipients: Sequence[str], keep: int | None
    ) -> Mapping[str, Any]:
        """Make one."""

    async def check(self, progress: Progress, file: Path) -> Mapping[str, Any]:
        """Verify one."""

    async def files(self, folder: Path) -> list[dict[str, Any]]:
        """List those of a folder. Raises `OSError`."""


def register(api: AdminApi, backups: Backups, note: Note) -> None:
    """Add the routes to the admin listener."""
    settings = backups.settings

    def folder_of(given: object) -> Path:
        if given is not None:
            return absolute(given)
        if settings.folder is None:
            raise AdminProblem(400, "folder : dossier attendu, [backup] folder n'étant pas configuré")
        return settings.folder

    async def get_state(_: AdminCall) -> object:
        configured = {
            "folder": str(settings.folder) if settings.folder is not None else None,
            "recipients": list(settings.recipients),
            "keep": settings.keep,
        }
        return {**shown(backups.jobs), "configured": configured}

    async def get_files(call: AdminCall) -> object:
        folder = folder_of(call.query.get("folder"))
        try:
            return {"folder": str(folder), "files": await backups.files(folder)}
        except OSError as error:
            raise AdminProblem(409, f"{folder} : lecture impossible ({system_reason(error)})") from None

    async def post_make(call: AdminCall) -> Reply:
        folder = folder_of(call.body.get("folder"))
        # Where keys are configured, nobody makes a backup in clear.
        keys = _recipients(call.body.get("recipients", [])) or settings.recipients
        keep = _keep(call.body.get("keep")) or settings.keep
        sealed = f"chiffrée pour {len(keys)} clé(s)" if keys else "non chiffrée"
        return await begin(
            backups.jobs,
            note,
            "backup",
            f"Sauvegarde vers {folder}, {sealed}",
            "sauvegarde",
            lambda progress: backups.make(progress, folder, keys, keep),
        )

    async def post_check(call: AdminCall) -> Reply:
        file = absolute(call.body.get("file"))
        return await begin(
            backups.jobs,
            note,
            "check",
            f"Vérification d'une sauvegarde ({file.name})",
            "sauvegarde",
            lambda progress: backups.check(progress, file),
        )

    api.register("GET", "/backup", get_state)
    api.register("GET", "/backup/files", get_files)
    api.register("POST", "/backup", post_make)
    api.register("POST", "/backup/check", post_check)


def _recipients(given: object) -> list[str]:
    if not isinstance(given, list) or len(given) > MAX_RECIPIENTS:
        raise AdminProblem(
            400, f"recipients : liste de {MAX_RECIPIENTS} clés publiques age au plus attendue"
        )
    if not all(isinstance(each, str) and re.fullmatch(r"age1[0-9a-z]{20,100}", each) for each in given):
        raise AdminProblem(400, "recipients : une clé publique age commence par « age1 »")
    return given


def _keep(given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MAX_KEPT:
        raise AdminProblem(400, f"keep : nombre de 1 à {MAX_KEPT} attendu")
    return given
