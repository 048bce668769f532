"""The admin routes of the whitelist: what is in force, and a refresh on demand (DB.CS.147)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from drimbox.trust.listkeeper import ListKeeper
from drimbox.trust.whitelist import Domain, WhitelistHolder
from drimbox.web.admin import AdminApi, AdminCall

#: Notes in the audit trail what somebody asked for: the action, and what it is about.
Note = Callable[[str, str], Awaitable[None]]


def register(api: AdminApi, holder: WhitelistHolder, keeper: ListKeeper, note: Note) -> None:
    """Add the routes of the whitelist to the admin listener."""

    async def get_list(call: AdminCall) -> object:
        shown = _state(holder, keeper)
        if "domains" in call.query:
            current = holder.current
            shown["domains"] = [domain_facts(each) for each in current.domains] if current else []
        return shown

    async def post_refresh(call: AdminCall) -> object:
        older = call.body.get("accept_older") is True
        await note("Récupération de la liste blanche", "version antérieure admise" if older else "")
        result = await keeper.refresh(take_older=older)
        return {"outcome": result.outcome, "reasons": list(result.reasons), **_state(holder, keeper)}

    api.register("GET", "/whitelist", get_list)
    api.register("POST", "/whitelist/refresh", post_refresh)


def domain_facts(domain: Domain) -> dict[str, Any]:
    """Return what is shown of one entry; `usable` is False for one whose DN cannot be read."""
    return {
        "id": domain.identifier,
        "db": domain.db,
        "vi": domain.vi,
        "name": domain.name,
        "dn": domain.dn,
        "usable": domain.identity is not None,
    }


def _state(holder: WhitelistHolder, keeper: ListKeeper) -> dict[str, Any]:
    current = holder.current
    return {
        "in_force": current is not None,
        "generated": _text(current.generated if current is not None else None),
        "entries": len(current.domains) if current is not None else 0,
        "signer_expires": _text(current.signer.not_valid_after_utc if current is not None else None),
        "fetched": _text(keeper.fetched_at),
        "failing_since": _text(keeper.failing_since),
        "sites": {site.name: holder.serves(site) for site in holder.sites},
    }


def _text(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant is not None else None
