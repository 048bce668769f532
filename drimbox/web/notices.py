"""The admin routes of the notices: list, acknowledge, test how they leave (DB.SO.21)."""

from __future__ import annotations

import re
from typing import Any

import attrs

from drimbox.ports import Notice, Severity
from drimbox.source.notifying import Notifier
from drimbox.store.notices import NoticeStore
from drimbox.web.access import CALLER, Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem

#: Longest name of whoever acknowledges, characters.
MAX_NAME = 100
_SEVERITIES = list(Severity)


def register(api: AdminApi, store: NoticeStore, notifier: Notifier, note: Note) -> None:
    """Add the routes of the notices to the admin listener."""

    async def get_notices(call: AdminCall) -> object:
        query = call.query
        limit, before = _number(query.get("limit"), "limit"), _number(query.get("before"), "before")
        found = await store.page(
            every=query.get("all", "") in ("1", "true"),
            severities=_at_least(query.get("severity", "")),
            code=query.get("code", ""),
            before=before,
            limit=200 if limit is None else limit,
        )
        return {"notices": [_shown(each) for each in found]}

    async def post_acknowledge(call: AdminCall) -> object:
        number = _number(call.params["id"], "numéro d'avis")
        assert number is not None
        who = _who(call.body.get("by"))
        await note(f"Acquittement d'un avis par {who}", f"avis {number}")
        if not await store.acknowledge(number, who):
            raise AdminProblem(404, f"aucun avis ouvert ne porte le numéro {number}")
        return {"acknowledged": number, "by": who}

    async def post_test(_: AdminCall) -> object:
        if not notifier.channels:
            raise AdminProblem(
                409, "aucun envoi configuré : écrire [notifications.mail] ou [notifications.webhook]"
            )
        await note("Essai d'envoi des avis", ", ".join(each.name for each in notifier.channels))
        return {"channels": [attrs.asdict(each) for each in await notifier.test()]}

    api.register("GET", "/notices", get_notices)
    api.register("POST", "/notices/{id}/acknowledge", post_acknowledge)
    api.register("POST", "/notices/test", post_test)


def _shown(notice: Notice) -> dict[str, Any]:
    closed = notice.acknowledged_at
    return {
        "id": notice.id,
        "severity": notice.severity.value,
        "code": notice.code,
        "text": notice.text,
        "count": notice.count,
        "first": notice.first_at.isoformat(),
        "last": notice.last_at.isoformat(),
        "acknowledged": closed.isoformat() if closed is not None else None,
        "by": notice.acknowledged_by,
    }


def _at_least(word: str) -> list[Severity]:
    """Return the severities from a named one up; none for no name, which is all."""
    if not word:
        return []
    try:
        least = Severity(word)
    except ValueError:
        names = ", ".join(each.value for each in _SEVERITIES)
        raise AdminProblem(400, f"severity : une de {names}") from None
    return _SEVERITIES[_SEVERITIES.index(least) :]


def _who(name: object) -> str:
    """Return who acknowledges: the account, and the name that is given."""
    if name is None:
        return CALLER.get()
    if not isinstance(name, str) or not 0 < len(name.strip()) <= MAX_NAME or not name.isprintable():
        raise AdminProblem(400, f"by : un nom de {MAX_NAME} caractères au plus")
    return f"{CALLER.get()} ({name.strip()})"


def _number(value: str | None, what: str) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        raise AdminProblem(400, f"{what} : nombre attendu")
    return int(value)
