"""The admin routes of the walks over the archive (DB.SO.28, DB.SO.31, DB.SO.88).

`POST /walks` begins one and answers at once: it takes hours, and `GET /walks` tells how far it is. Every
act of an administrator is noted in the audit trail before it is done. No patient is named.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from drimbox.config import Config, Site
from drimbox.kos.manifest import retrieve_base
from drimbox.source.resync import Resync, WalkRefused
from drimbox.store.walks import Walks
from drimbox.walks import OPEN_STATES, JudgedStudy, Verdict, Walk, WalkKind, WalkState
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply

_KINDS = {kind.value: kind for kind in WalkKind}
_SPOKEN = {WalkKind.RESYNC: "Resynchronisation", WalkKind.ADDRESS: "Changement d'adresse d'accès"}


def register(api: AdminApi, config: Config, resync: Resync, store: Walks, note: Note) -> None:
    """Add the routes of the walks to the admin listener."""
    routes = _Routes(config.sites, config, resync, store, note)
    api.register("GET", "/walks", routes.listed)
    api.register("POST", "/walks", routes.start)
    api.register("GET", "/walks/{number}", routes.one)
    api.register("GET", "/walks/{number}/studies", routes.studies)
    for action in ("stop", "confirm", "abandon"):
        api.register("POST", f"/walks/{{number}}/{action}", routes.act(action))
    api.register("GET", "/addresses", routes.addresses)


class _Routes:
    def __init__(
        self, sites: Sequence[Site], config: Config, resync: Resync, store: Walks, note: Note
    ) -> None:
        self._sites = {site.name: site for site in sites}
        self._config = config
        self._resync = resync
        self._store = store
        self._note = note

    async def listed(self, call: AdminCall) -> object:
        """Return walks, newest first."""
        name = call.query.get("site", "")
        if name:
            self._site(name)
        kind = call.query.get("kind", "")
        if kind and kind not in _KINDS:
            raise AdminProblem(400, f"kind : {' ou '.join(_KINDS)} attendu")
        before = call.query.get("before", "")
        found = await self._store.listed(
            kind=_KINDS.get(kind),
            site=name,
            before=_number(before) if before else None,
            limit=_number(call.query.get("limit", "1000")),
        )
        return {"sites": list(self._sites), "walks": [self._walk(walk) for walk in found]}

    async def one(self, call: AdminCall) -> object:
        """Return one walk."""
        return self._walk(await self._get(call))

    async def studies(self, call: AdminCall) -> object:
        """Return the studies of a walk that follow `after`, in order."""
        walk = await self._get(call)
        wanted = call.query.get("verdict", "")
        if wanted and wanted not in {verdict.value for verdict in Verdict}:
            raise AdminProblem(400, f"verdict « {wanted} » inconnu")
        found = await self._store.report(
            walk.id, after=call.query.get("after", ""), verdict=Verdict(wanted) if wanted else None
        )
        return {"studies": [_study(each) for each in found]}

    async def start(self, call: AdminCall) -> Reply:
        """Begin a walk, or go on with a stopped one."""
        site = self._site(str(call.body.get("site", "")))
        kind = _KINDS.get(str(call.body.get("kind", "")))
        dry_run = call.body.get("dry_run", False)
        if kind is None or not isinstance(dry_run, bool):
            raise AdminProblem(400, "kind (resync ou address) et dry_run (true ou false) attendus")
        what = f"{_SPOKEN[kind]} : lancement" + (" à blanc" if dry_run else "")
        await self._note(what, site.name)
        try:
            walk, resumed = await self._resync.start(kind, site, dry_run=dry_run)
        except WalkRefused as refusal:
            raise AdminProblem(409, str(refusal)) from None
        return Reply({**self._walk(walk), "resumed": resumed}, status=202)

    def act(self, action: str) -> Callable[[AdminCall], Awaitable[object]]:
        """Return the handler of one action on a walk."""
        does, word = {
            "stop": (self._resync.stop, "arrêt"),
            "confirm": (self._resync.confirm, "retraits confirmés"),
            "abandon": (self._resync.abandon, "abandon"),
        }[action]

        async def handler(call: AdminCall) -> object:
            walk = await self._get(call)
            subject = f"{walk.site}, passage {walk.id}"
            await self._note(f"{_SPOKEN[walk.kind]} : {word}", subject)
            try:
                return self._walk(await does(walk.id))
            except WalkRefused as refusal:
                raise AdminProblem(409, str(refusal)) from None

        return handler

    async def addresses(self, _: AdminCall) -> object:
        """Return, for each site, its address and how many KOS give another one, as its last walk saw."""
        found = []
        for site in self._sites.values():
            walks = await self._store.listed(kind=WalkKind.ADDRESS, site=site.name, limit=1)
            address = retrieve_base(site, self._config.wado)
            facts: dict[str, Any] = {"site": site.name, "address": address, "walk": None, "elsewhere": None}
            if walks:
                facts["walk"] = self._walk(walks[0])
                # What was judged against another address says nothing about this one.
                if walks[0].address == address:
                    facts["elsewhere"] = await self._store.elsewhere(walks[0].id)
            found.append(facts)
        return {"sites": found}

    # -- own ---------------------------------------------------------------------------------------

    def _site(self, name: str) -> Site:
        site = self._sites.get(name)
        if site is None:
            raise AdminProblem(404, f"site « {name} » inconnu ; sites : {', '.join(self._sites)}")
        return site

    async def _get(self, call: AdminCall) -> Walk:
        number = _number(call.params["number"])
        try:
            return await self._store.get(number)
        except KeyError:
            raise AdminProblem(404, f"aucun passage ne porte le numéro {number}") from None

    def _walk(self, walk: Walk) -> dict[str, Any]:
        counts = walk.counts
        return {
            "walk": walk.id,
            "kind": walk.kind.value,
            "site": walk.site,
            "dry_run": walk.dry_run,
            "state": walk.state.value,
            "open": walk.state in OPEN_STATES,
            "waiting": self._resync.waiting(walk) if walk.state is WalkState.RUNNING else walk.reason,
            "address": walk.address,
            "started_at": walk.started_at,
            "ended_at": walk.ended_at,
            "walked": walk.walked,
            "STR01": walk.kos_before,
            "STR02": counts[Verdict.GONE],
            "STR03": counts[Verdict.CHANGED],
            "STR04": counts[Verdict.UNCHANGED],
            "STR05": walk.kos_after,
            "retracted": counts[Verdict.RETRACTED],
            "silent": counts[Verdict.SILENT],
            "undecidable": counts[Verdict.UNDECIDABLE],
        }


def _study(study: JudgedStudy) -> dict[str, Any]:
    return {
        "study_uid": study.study_uid,
        "verdict": study.verdict.value,
        "detail": study.detail,
        "step": study.step.value,
        "result": study.result,
        "judged_at": study.judged_at,
    }


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise AdminProblem(400, "nombre attendu")
    return int(text)
