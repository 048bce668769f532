"""The admin routes of the audit trail (DB.CS.10): a page of events that match, and whether it is whole.

Who searches is written into the trail first. A patient's identifier stands in the query, which is why the
listener logs no requests; what comes back is the auditor's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from drimbox.audit.kinds import EVENTS, OUTCOMES
from drimbox.audit.listing import CSV_HEADS, csv_row
from drimbox.audit.ontrail import trail_read
from drimbox.source.jobs import Jobs, Progress
from drimbox.store.audit import AuditStore
from drimbox.store.auditchain import ChainHead
from drimbox.store.auditsearch import AuditQuery
from drimbox.web.access import CALLER, Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply
from drimbox.web.jobs import begin, shown

#: Events of one page, by default and at the most.
DEFAULT_PAGE, MAX_PAGE = 100, 1000
_CRITERIA = ("from", "to", "ins", "study", "event", "outcome", "limit", "before")
_LONGEST = 64


def register(api: AdminApi, store: AuditStore, system_id: str, jobs: Jobs, note: Note) -> None:
    """Add the routes of the trail to the admin listener; `jobs` runs verifications."""

    async def search(call: AdminCall) -> object:
        query = _query(call)
        limit = _number(call, "limit", DEFAULT_PAGE, MAX_PAGE)
        # What is asked for does not begin with the question itself.
        head = await store.head()
        before = min(_number(call, "before", head.last_id + 1), head.last_id + 1)
        await store.record(
            trail_read(
                user=CALLER.get(),
                machine="",
                program="GET /audit",
                trail=f"urn:drimbox:{system_id}:audit",
                criteria=tuple((key, call.query[key]) for key in _CRITERIA if call.query.get(key)),
                patient_ins=query.ins,
                study_uid=query.study,
            )
        )
        found = await store.search(query, limit=limit, before=before)
        events = [
            dict(zip(CSV_HEADS, csv_row(one.id, one.instant, one.event, one.hash), strict=True))
            for one in found
        ]
        return {"events": events, "before": found[-1].id if len(found) == limit else None}

    async def verify(progress: Progress, known: ChainHead | None) -> Mapping[str, Any]:
        progress.total = (await store.head()).last_id
        check = await store.verify(known=known, told=lambda checked: progress.step(checked - progress.done))
        return check.facts()

    async def post_verification(call: AdminCall) -> Reply:
        known = _known(call.body.get("known"))
        action = "Vérification du journal d'audit"
        return await begin(jobs, note, "audit", action, "audit", lambda progress: verify(progress, known))

    async def get_verification(_: AdminCall) -> object:
        return shown(jobs)

    api.register("GET", "/audit", search)
    api.register("GET", "/audit/verification", get_verification)
    api.register("POST", "/audit/verification", post_verification)


def _known(given: object) -> ChainHead | None:
    """Read a head noted earlier. Raises `AdminProblem` 400."""
    if given is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", given) if isinstance(given, str) else None
    if found is None:
        raise AdminProblem(400, "known : dernier maillon attendu, NUMÉRO:EMPREINTE")
    return ChainHead(int(found[1]), found[2])


def _query(call: AdminCall) -> AuditQuery:
    """Read the criteria. Raises `AdminProblem` 400."""
    unknown = set(call.query) - set(_CRITERIA)
    if unknown:
        raise AdminProblem(400, f"critère inconnu : {min(unknown)[:_LONGEST]}")
    event, outcome = call.query.get("event", ""), call.query.get("outcome", "")
    if event and event not in EVENTS:
        raise AdminProblem(400, f"event : {', '.join(EVENTS)}")
    if outcome and outcome not in OUTCOMES:
        raise AdminProblem(400, f"outcome : {', '.join(OUTCOMES)}")
    event_id, event_types = EVENTS[event] if event else ("", ())
    return AuditQuery(
        _instant(call, "from"),
        _instant(call, "to"),
        _text(call, "ins"),
        _text(call, "study"),
        event_id,
        event_types,
        OUTCOMES[outcome] if outcome else (),
    )


def _text(call: AdminCall, key: str) -> str:
    value = call.query.get(key, "")
    if not re.fullmatch(r"[0-9A-Za-z.]{0,64}", value):
        raise AdminProblem(400, f"{key} : identifiant attendu")
    return value


def _instant(call: AdminCall, key: str) -> datetime | None:
    if key not in call.query:
        return None
    try:
        return datetime.fromisoformat(call.query[key]).astimezone()
    except (ValueError, OverflowError, OSError):
        raise AdminProblem(400, f"{key} : instant ISO 8601 attendu") from None


def _number(call: AdminCall, key: str, default: int, most: int = 10**18) -> int:
    value = call.query.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) or not 1 <= int(value) <= most:
        raise AdminProblem(400, f"{key} : nombre de 1 à {most} attendu")
    return int(value)
