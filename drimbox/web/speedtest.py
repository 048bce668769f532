"""The admin routes of the PACS test (DB.SO.156, DB.SO.87).

A run may last longer than an HTTP request should: `POST /speedtest/{site}` begins it (or joins the one on
its way) and gives its number; it has ended when `GET /speedtest` says so of that number. Nothing here
names the reference study or anything of a patient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from drimbox.config import Site
from drimbox.ports import SpeedMeasure
from drimbox.source.speedtest import NoReferenceStudy, SpeedTests
from drimbox.store.speedtests import SpeedTestStore
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply


def register(
    api: AdminApi, sites: Sequence[Site], tests: SpeedTests, store: SpeedTestStore, note: Note
) -> None:
    """Add the routes of the test to the admin listener."""
    by_name = {site.name: site for site in sites}

    def chosen(call: AdminCall) -> str:
        """Return the site that a listing is limited to, "" for all."""
        name = call.query.get("site", "")
        if name and name not in by_name:
            raise AdminProblem(404, _unknown(name, by_name))
        return name

    async def get_state(_: AdminCall) -> object:
        return {"sites": [_state(site, tests) for site in sites]}

    async def post_run(call: AdminCall) -> Reply:
        name = call.params["site"]
        site = by_name.get(name)
        if site is None:
            raise AdminProblem(404, _unknown(name, by_name))
        if site.pacs is None:
            raise AdminProblem(409, f"site « {name} » sans PACS : son archive est native, rien à mesurer")
        if site.speedtest.study is None:
            raise AdminProblem(409, _no_study(name))
        await note("Test de débit du PACS à la demande", name)
        joined = tests.progress(site).running
        try:
            number = tests.start(site)
        except NoReferenceStudy:
            raise AdminProblem(409, _no_study(name)) from None
        return Reply({"site": name, "run": number, "joined": joined}, status=202)

    async def get_results(call: AdminCall) -> object:
        days = await store.days(chosen(call))
        return {"days": [attrs.asdict(each) for each in days]}

    async def get_measures(call: AdminCall) -> object:
        before = call.query.get("before", "")
        if before and not re.fullmatch(r"[0-9]{1,18}", before, re.ASCII):
            raise AdminProblem(400, "before : numéro de mesure attendu")
        found = await store.measures(chosen(call), before=int(before) if before else None)
        return {"measures": [{"id": each.id, **_measure(each.measure)} for each in found]}

    api.register("GET", "/speedtest", get_state)
    api.register("POST", "/speedtest/{site}", post_run)
    api.register("GET", "/speedtest/results", get_results)
    api.register("GET", "/speedtest/measures", get_measures)


def _state(site: Site, tests: SpeedTests) -> dict[str, Any]:
    progress = tests.progress(site)
    return {
        "site": site.name,
        "reference_study": site.pacs is not None and site.speedtest.study is not None,
        "enabled": site.speedtest.enabled,
        "period": site.speedtest.period,
        "running": progress.running,
        "ended": progress.ended,
        "last": _measure(progress.last) if progress.last is not None else None,
    }


def _measure(measure: SpeedMeasure) -> dict[str, Any]:
    return attrs.asdict(measure)


def _unknown(name: str, known: dict[str, Site]) -> str:
    return f"site « {name} » inconnu ; sites : {', '.join(known)}"


def _no_study(name: str) -> str:
    return (
        f"site « {name} » sans examen de référence : écrire son StudyInstanceUID dans "
        "[site.speedtest] study, puis relancer DRIMbox"
    )
