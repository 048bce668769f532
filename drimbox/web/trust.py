"""The admin routes of trust: whitelist, revocation lists, certificates; refresh on demand (DB.CS.147)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from drimbox.trust.listkeeper import ListKeeper
from drimbox.trust.revocation import RevocationKeeper
from drimbox.trust.tlskeeper import TlsKeeper
from drimbox.trust.whitelist import Domain, WhitelistHolder
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall


class Trust(Protocol):
    """What the routes show and refresh (`guard.Guard`)."""

    whitelist: WhitelistHolder
    lists: ListKeeper
    tls: TlsKeeper

    @property
    def keepers(self) -> Sequence[RevocationKeeper]:
        """Who holds the revocation lists."""


def register(api: AdminApi, guard: Trust, note: Note) -> None:
    """Add the routes to the admin listener."""
    holder, keeper = guard.whitelist, guard.lists

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

    async def get_certificates(_: AdminCall) -> object:
        return {
            "certificates": [
                {
                    "label": each.label,
                    "file": str(each.path),
                    "subject": each.subject,
                    "expires": _text(each.expires),
                }
                for each in guard.tls.expiries()
            ],
            "revocation": _revocation(guard),
        }

    async def post_reload(_: AdminCall) -> object:
        await note("Rechargement des certificats TLS et des listes de révocation", "")
        for keeper in guard.keepers:
            await keeper.refresh()
        return {"problem": await guard.tls.reload() or None, "revocation": _revocation(guard)}

    api.register("GET", "/certificates", get_certificates)
    api.register("POST", "/certificates/reload", post_reload)
    api.register("GET", "/whitelist", get_list)
    api.register("POST", "/whitelist/refresh", post_refresh)


def _revocation(guard: Trust) -> list[dict[str, Any]]:
    return [each for keeper in guard.keepers for each in keeper.facts()]


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
