"""What the configuration says of the health check: one list of probes, and somebody who may ask.

Works, like `sense`, on the tree that `shape` read, in which a value that was wrong is absent.
"""

from __future__ import annotations

from drimbox.configfile.report import Report, Tree, sites


def check(tree: Tree, report: Report) -> None:
    """Report a list of probes that nobody reads, or viewer names that answer nobody."""
    health = tree.get("health", {})
    file, url = health.get("addresses_file"), health.get("addresses_url")
    if file is not None and url is not None:
        report.warn(
            "health.addresses_url", "sans effet : addresses_file est lu à la place", "garder l'un des deux"
        )
    served = any(site.get("viewer_certificate") is not None for _, site in sites(tree))
    if served and file is None and url is None and health.get("addresses") == ():
        report.warn(
            "health.addresses",
            "aucune sonde ne peut interroger /healthcheck/… (DB.SO.182)",
            "écrire addresses, addresses_file ou addresses_url",
        )
