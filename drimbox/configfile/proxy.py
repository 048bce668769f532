"""What the configuration says of the hospital's proxy: an address, and credentials that go together.

Works, like `sense`, on the tree that `shape` read, in which a value that was wrong is absent.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from drimbox.configfile.report import Report, Tree, credentials


def check(tree: Tree, report: Report) -> None:
    """Report a proxy that could not be used."""
    proxy = tree.get("proxy")
    if proxy is None:
        return
    if "url" in proxy:
        parts = urlsplit(proxy["url"])
        if parts.scheme != "http" or parts.path not in ("", "/") or parts.query or parts.port is None:
            report.error(
                "proxy.url",
                "n'est pas l'adresse d'un proxy",
                "écrire http://, le nom du proxy et son port, sans rien après : http://proxy.exemple.fr:3128",
            )
    credentials(proxy, "proxy", report)
