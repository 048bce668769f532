"""The admin routes of the archive: export and loading (DB.SO.29, DB.SO.30).

Either lasts longer than an HTTP request should: a POST begins it and gives its number, `GET /archive` says
how far the last one is and what it came to. Paths are those of the machine that DRIMbox runs on. What is
asked is audited; nothing here names a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drimbox.config import Site
from drimbox.source.archiveexport import ArchiveExport
from drimbox.source.archiveimport import MAX_PATHS, ArchiveImport
from drimbox.source.jobs import Jobs
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply
from drimbox.web.jobs import begin, shown
from drimbox.xdm.names import Month


def register(
    api: AdminApi,
    sites: Sequence[Site],
    jobs: Jobs,
    export: ArchiveExport,
    load: ArchiveImport,
    note: Note,
) -> None:
    """Add the routes of the archive to the admin listener."""
    by_name = {site.name: site for site in sites}

    async def post_export(call: AdminCall) -> Reply:
        folder = absolute(call.body.get("folder"))
        chosen = [chosen_site(call.body, by_name)] if call.body.get("site") else list(sites)
        month = _month(call.body)
        large = call.body.get("large", False) is True
        subject = ", ".join(site.name for site in chosen) + (f", {month}" if month is not None else "")
        return await begin(
            jobs,
            note,
            "export",
            f"Export de l'archive XDM vers {folder}",
            subject,
            lambda progress: export.run(progress, folder=folder, sites=chosen, month=month, large=large),
        )

    async def post_import(call: AdminCall) -> Reply:
        site = chosen_site(call.body, by_name)
        found = server_paths(call.body)
        dry_run = call.body.get("dry_run", False) is not False
        return await begin(
            jobs,
            note,
            "import",
            "Chargement d'une archive XDM" + (" (essai)" if dry_run else ""),
            f"{site.name} : {', '.join(str(path) for path in found)}",
            lambda progress: load.run(progress, site=site, paths=found, dry_run=dry_run),
        )

    async def get_state(_: AdminCall) -> object:
        return shown(jobs)

    api.register("GET", "/archive", get_state)
    api.register("POST", "/archive/export", post_export)
    api.register("POST", "/archive/import", post_import)


def chosen_site(body: Mapping[str, Any], known: Mapping[str, Site]) -> Site:
    """Return the site that a body names. Raises `AdminProblem`."""
    site = known.get(str(body.get("site", "")))
    if site is None:
        raise AdminProblem(404, f"site inconnu ou absent ; sites : {', '.join(known)}")
    return site


def _month(body: Mapping[str, Any]) -> Month | None:
    if body.get("month") is None:
        return None
    month = Month.parse(str(body["month"]))
    if month is None:
        raise AdminProblem(400, "month : AAAAMM attendu")
    return month


def server_paths(body: Mapping[str, Any]) -> list[Path]:
    """Return the paths that a body names. Raises `AdminProblem`."""
    paths = body.get("paths")
    if not isinstance(paths, list) or not 0 < len(paths) <= MAX_PATHS:
        raise AdminProblem(400, f"paths : de 1 à {MAX_PATHS} chemins du serveur attendus")
    return [absolute(path) for path in paths]


def absolute(value: object) -> Path:
    """Return an absolute path; a relative one would start from wherever the process does."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4096:
        raise AdminProblem(400, "chemin absolu sur le serveur de DRIMbox attendu")
    return Path(value)
