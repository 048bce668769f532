"""The admin route of the sites: who and what each is, its archive, the AE titles in use, what it is set to.

No secret stands in it: neither keys nor passwords nor where they are. Whether an archive answers is as last
known (`reached`): looking costs an association, which `drimbox doctor` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from drimbox.config import Config, Native, Pacs, Site, Structure
from drimbox.dicom.aetitles import Pool
from drimbox.native.places import Places
from drimbox.reached import Reached
from drimbox.statistics import structure_of
from drimbox.web.admin import AdminApi, AdminCall

#: Switches of `[[site]]` that are shown as they are.
_SWITCHES = (
    "check_identity",
    "check_feed_identity",
    "check_feed_birth_date",
    "check_feed_strictly",
    "insert_traits",
    "list_rejection_notes",
)


def register(
    api: AdminApi,
    config: Config,
    *,
    pools: Mapping[str, Pool],
    places: Mapping[str, Places],
    reached: Reached,
    served: Callable[[Site], bool],
) -> None:
    """Add the route; `pools` by PACS, `places` by site, `served`: the whitelist has it (DB.CS.164)."""
    structures = {each.id: each for each in config.structures}

    def shown(site: Site) -> dict[str, Any]:
        here = [structures[name] for name in site.structures] or list(config.structures)
        facts: dict[str, Any] = {
            "name": site.name,
            "wado": site.wado_fqdn,
            "viewer": site.viewer_fqdn,
            "image_access": served(site),
            "structures": [_structure(each) for each in here],
            "ris": list(site.ris),
            "reach": reached.facts(site.name),
            "options": _options(site),
        }
        if site.pacs is not None:
            return {**facts, "archive": _pacs(site.pacs), "pool": _pool(pools[site.pacs.name])}
        assert site.native is not None, "the configuration has one of the two"
        return {**facts, "archive": _native(site.native), "readings": _readings(places[site.name])}

    async def get_sites(_: AdminCall) -> object:
        return {"sites": [shown(site) for site in config.sites]}

    api.register("GET", "/sites", get_sites)


def _structure(structure: Structure) -> dict[str, str]:
    kind, number = structure_of(structure.id)
    return {
        "id": structure.id,
        "kind": kind,
        "number": number,
        "name": structure.name,
        "internal_id": structure.internal_id or structure.id,
    }


def _pacs(pacs: Pacs) -> dict[str, Any]:
    return {
        "kind": "pacs",
        "name": pacs.name,
        "ae_title": pacs.ae_title,
        "host": pacs.host,
        "port": pacs.port,
        "max_associations": pacs.max_associations,
    }


def _native(native: Native) -> dict[str, Any]:
    # An address without what could be a secret in it.
    url = urlsplit(native.url or "")
    return {"kind": native.kind, "name": native.name, "host": url.hostname, "port": url.port}


def _pool(pool: Pool) -> dict[str, Any]:
    titles = {title.ae_title: title.state.value for title in pool.titles.values()}
    return {"ae_titles": titles, "free": pool.free, "waiting": pool.waiting}


def _readings(places: Places) -> dict[str, int]:
    return {"most": places.total, "free": places.free, "waiting": places.waiting}


def _options(site: Site) -> dict[str, Any]:
    return {
        **{name: getattr(site, name) for name in _SWITCHES},
        "excluded_uid_roots": list(site.excluded_uid_roots),
        "retrieve_location_uid": site.retrieve_location_uid,
        "speedtest": {
            "enabled": site.speedtest.enabled,
            "period": site.speedtest.period,
            "reference_study": site.speedtest.study is not None,
        },
    }
