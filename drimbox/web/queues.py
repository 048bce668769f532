"""The admin routes of the queues: see rows, play them again, give them up (DB.SO.21).

Everything that changes a row, or shows its content, is audited before it is done. A listing names studies
and systems, never a patient; the content of a row (a message, a submission) leaves by a POST of its own,
which no page of a browser can send.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from drimbox.model import is_uid
from drimbox.store.mending import CannotMend, Mending
from drimbox.store.parking import TABLES
from drimbox.store.queuelist import MAX_PAGE, STATES, QueueList
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply

#: Longest reason of an operator, characters.
MAX_REASON = 500


def register(
    api: AdminApi, rows: QueueList, mending: Mending, note: Note, wake: Callable[[str], None]
) -> None:
    """Add the routes of the queues; `wake` is told which queue has something to do."""

    async def get_page(call: AdminCall) -> object:
        queue, query = _queue(call), call.query
        state, study = query.get("state", ""), query.get("study", "")
        if state and state not in STATES:
            raise AdminProblem(400, f"state : un de {', '.join(STATES)}")
        if study and not is_uid(study):
            raise AdminProblem(400, "study : StudyInstanceUID attendu")
        before, limit = _number(query.get("before"), "before"), _number(query.get("limit"), "limit")
        page = await rows.page(queue, state=state, study=study, before=before, limit=limit or 50)
        return {"rows": page, "limit": min(limit or 50, MAX_PAGE)}

    async def get_row(call: AdminCall) -> object:
        row = await rows.one(_queue(call), _id(call))
        if row is None:
            raise _unknown(call)
        return row

    async def post_raw(call: AdminCall) -> Reply:
        queue, number = _queue(call), _id(call)
        await note("Contenu d'une ligne de file extrait", f"{queue} {number}")
        content = await rows.raw(queue, number)
        if content is None:
            raise _unknown(call)
        return Reply(content, content_type="application/octet-stream")

    async def post_retry(call: AdminCall) -> object:
        queue, number = _queue(call), _id(call)
        await note("Rejeu d'une ligne de file", f"{queue} {number}")
        await _mend(call, mending.retry(queue, number))
        wake(queue)
        return {"queue": queue, "retried": [number]}

    async def post_retry_all(call: AdminCall) -> object:
        queue, state, after = _queue(call), call.body.get("state"), call.body.get("after", 0)
        if state not in ("parked", "failed"):
            raise AdminProblem(400, "state : parked ou failed")
        if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 10**18:
            raise AdminProblem(400, "after : numéro de ligne attendu")
        await note(f"Rejeu des lignes de file : {state}", f"{queue} > {after}")
        batch = await mending.retry_all(queue, state, after=after)
        wake(queue)
        refused = [{"id": number, "reason": why} for number, why in batch.refused.items()]
        return {"queue": queue, "retried": batch.done, "refused": refused, "after": batch.after}

    async def post_drop(call: AdminCall) -> object:
        queue, number, reason = _queue(call), _id(call), call.body.get("reason")
        if not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON:
            raise AdminProblem(400, f"reason : un motif de {MAX_REASON} caractères au plus est exigé")
        await note(f"Abandon d'une ligne de file : {reason.strip()}", f"{queue} {number}")
        await _mend(call, mending.drop(queue, number, reason.strip()))
        wake(queue)
        return {"queue": queue, "dropped": number}

    api.register("GET", "/queues/{queue}", get_page)
    api.register("GET", "/queues/{queue}/{id}", get_row)
    api.register("POST", "/queues/{queue}/retry", post_retry_all)
    api.register("POST", "/queues/{queue}/{id}/raw", post_raw)
    api.register("POST", "/queues/{queue}/{id}/retry", post_retry)
    api.register("POST", "/queues/{queue}/{id}/drop", post_drop)


async def _mend(call: AdminCall, work: Awaitable[None]) -> None:
    try:
        await work
    except KeyError:
        raise _unknown(call) from None
    except CannotMend as reason:
        raise AdminProblem(409, f"ligne {call.params['id']} : {reason}") from None


def _queue(call: AdminCall) -> str:
    queue = call.params["queue"]
    if queue not in TABLES:
        raise AdminProblem(404, f"file inconnue ; files : {', '.join(TABLES)}")
    return queue


def _id(call: AdminCall) -> int:
    number = _number(call.params["id"], "numéro de ligne")
    assert number is not None
    return number


def _number(value: Any, what: str) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        raise AdminProblem(400, f"{what} : nombre attendu")
    return int(value)


def _unknown(call: AdminCall) -> AdminProblem:
    return AdminProblem(404, f"la file {call.params['queue']} n'a pas de ligne {call.params['id']}")
