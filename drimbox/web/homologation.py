"""The admin routes of the homologation mode: load test KOS by hand, count them, clear them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from drimbox.config import Site
from drimbox.source.homologation import OFF, Homologation
from drimbox.source.jobs import Jobs, Progress
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply
from drimbox.web.archive import chosen_site, server_paths
from drimbox.web.jobs import begin


def register(
    api: AdminApi,
    sites: Sequence[Site],
    jobs: Jobs,
    homologation: Homologation,
    note: Note,
    changed: Callable[[], Awaitable[None]],
) -> None:
    """Add the routes; `changed` is awaited when the test KOS are others than before."""
    by_name = {site.name: site for site in sites}

    async def get_state(_: AdminCall) -> object:
        count = await homologation.count()
        return {"enabled": homologation.enabled, "loaded": count.kos, "patients": count.patients}

    async def post_load(call: AdminCall) -> Reply:
        if not homologation.enabled:
            raise AdminProblem(409, OFF)
        site = (
            sites[0] if len(sites) == 1 and not call.body.get("site") else chosen_site(call.body, by_name)
        )
        paths = server_paths(call.body)

        async def work(progress: Progress) -> Mapping[str, Any]:
            try:
                return await homologation.load(progress, site=site, paths=paths)
            finally:
                await changed()

        subject = f"{site.name} : {', '.join(map(str, paths))}"
        return await begin(jobs, note, "homologation", "Chargement de KOS de test", subject, work)

    async def post_clear(_: AdminCall) -> object:
        await note("Effacement des KOS de test", "homologation")
        cleared = await homologation.clear()
        await changed()
        return {"cleared": cleared}

    api.register("GET", "/homologation", get_state)
    api.register("POST", "/homologation/load", post_load)
    api.register("POST", "/homologation/clear", post_clear)
