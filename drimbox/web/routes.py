"""Every route of the admin listener: who may call it, and what for (docs/admin-api.md is made of it).

A route that is not here is the operator's alone. An auditor's changes nothing, and shows no content of a
message.
"""

from __future__ import annotations

from typing import Final

import attrs

from drimbox.accounts import Role


@attrs.frozen
class Route:
    """One route."""

    method: str
    path: str
    #: Least role that may call it, None for anybody.
    role: Role | None
    #: What it does.
    does: str
    #: Keys of the query of a GET, of the JSON body of a POST; `?` after a key that may be left out.
    takes: str = ""


def _anybody(path: str, does: str) -> Route:
    return Route("GET", path, None, does)


def _look(path: str, does: str, takes: str = "") -> Route:
    return Route("GET", path, Role.AUDITOR, does, takes)


def _act(path: str, does: str, takes: str = "") -> Route:
    return Route("POST", path, Role.OPERATOR, does, takes)


ROUTES: Final = (
    _anybody("/live", "The process lives"),
    _anybody("/ready", "Work may be sent to it; 503 while not"),
    _look("/account", "Whose request this is, and what its account may call"),
    _look("/status", "Queues, archive, notices, nodes, sites"),
    _look("/metrics", "Metrics, in the Prometheus text format"),
    _look("/sites", "Each site: structures, PACS, AE titles, options, whether its archive answers"),
    _look("/queues/{queue}", "One page of a queue, newest first", "state? study? before? limit?"),
    _look("/queues/{queue}/{id}", "One row, with all that is known of it"),
    _act("/queues/{queue}/retry", "Play the rows of a state again, batch by batch", "state after?"),
    _act("/queues/{queue}/{id}/retry", "Play one row again"),
    _act("/queues/{queue}/{id}/drop", "Give one row up", "reason"),
    _act("/queues/{queue}/{id}/raw", "The content of one row, as bytes: a message, a submission"),
    _look("/notices", "Notices to the administrator, newest first", "all? severity? code? before? limit?"),
    _act("/notices/{id}/acknowledge", "Close a notice", "by?"),
    _act("/notices/test", "Send a test by every channel configured"),
    _look("/whitelist", "The whitelist in force", "domains?"),
    _act("/whitelist/refresh", "Fetch the whitelist now", "accept_older?"),
    _look("/certificates", "Our certificates, and the revocation lists"),
    _act("/certificates/reload", "Read certificates again, fetch revocation lists"),
    _look("/walks", "Walks over the archive, newest first", "site? kind? before? limit?"),
    _look("/walks/{number}", "One walk"),
    _look("/walks/{number}/studies", "What a walk judged, in the order of studies", "after? verdict?"),
    _act("/walks", "Begin a resynchronisation or a change of address", "site kind dry_run?"),
    _act("/walks/{number}/stop", "Stop a walk; it can go on later"),
    _act("/walks/{number}/confirm", "Let a walk withdraw more than its share"),
    _act("/walks/{number}/abandon", "End a walk where it is"),
    _look("/addresses", "The address of each site, and how many manifests give another one"),
    _look("/archive", "How far the last export or loading is"),
    _act("/archive/export", "Export the archive to a folder of the server", "folder site? month? large?"),
    _act("/archive/import", "Load an exported archive", "site paths dry_run?"),
    _look("/speedtest", "The PACS test of each site"),
    _look("/speedtest/results", "Results by day", "site?"),
    _look("/speedtest/measures", "Single measures, newest first", "site? before?"),
    _act("/speedtest/{site}", "Test the PACS of a site now"),
    _look("/audit", "Search the audit trail", "from? to? ins? study? event? outcome? before? limit?"),
    _look("/audit/verification", "How far the last verification of the audit trail is"),
    _act("/audit/verification", "Verify the chain of the audit trail", "known?"),
    _look("/statistics", "Statistics by month", "from? to?"),
    _look("/statistics/raw", "The rows they add up to", "from? to? after?"),
    _look("/backup", "How far the last backup or check is, and what is configured"),
    _look("/backup/files", "Backups of this gateway in a folder, newest first", "folder?"),
    _act("/backup", "Make a backup", "folder? recipients? keep?"),
    _act("/backup/check", "Verify a backup", "file"),
    _look("/doctor", "What the last examination found so far"),
    _act("/doctor", "Try every link; with `send` test messages leave too", "study? send?"),
    _look("/homologation", "Whether test manifests are served, and how many"),
    _act("/homologation/load", "Load test manifests", "paths site?"),
    _act("/homologation/clear", "Forget every test manifest"),
)

#: Paths that anybody may ask, and what an auditor may.
OPEN: Final = frozenset(each.path for each in ROUTES if each.role is None)
AUDITOR: Final = frozenset((each.method, each.path) for each in ROUTES if each.role is not Role.OPERATOR)


def allowed(role: Role, method: str, path: str) -> bool:
    """Say whether a role may call a route."""
    return role is Role.OPERATOR or (method, path) in AUDITOR
