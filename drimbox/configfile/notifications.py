"""What the configuration says of notifications: a channel that would leak its secret is not one.

Works, like `sense`, on the tree that `shape` read, in which a value that was wrong is absent.
"""

from __future__ import annotations

import ipaddress

from drimbox.configfile.report import Report, Tree, credentials
from drimbox.configfile.rules import is_address


def check(tree: Tree, report: Report) -> None:
    """Report a mail channel whose keys do not go together."""
    mail = (tree.get("notifications") or {}).get("mail")
    if mail is None:
        return
    path = "notifications.mail"
    credentials(mail, path, report)
    if mail.get("security") != "none":
        return
    if "host" in mail and not _here(mail["host"]):
        report.error(
            f"{path}.security",
            f"« none » enverrait les avis en clair à {mail['host']}",
            'écrire security = "starttls" ou "tls" ; "none" est réservé à un relais de cette machine',
        )
    if mail.get("user") is not None:
        report.error(
            f"{path}.security", "« none » enverrait le mot de passe en clair", "retirer user, ou chiffrer"
        )


def _here(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
