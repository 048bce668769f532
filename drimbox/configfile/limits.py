"""Limits that contradict each other, and doors that cannot be opened together."""

from __future__ import annotations

import ipaddress

from drimbox.configfile.report import Report, Tree, pacs_of_sites
from drimbox.configfile.rules import amount, span

#: The specification's smallest number of simultaneous connections of a Source (DB.SO.35).
LEAST_DELIVERIES = 3


#: Pairs (section, smaller key, larger key) in which the first may not exceed the second.
_ORDERED = (
    ("hl7", "max_message_bytes", "max_held_bytes"),
    ("hl7", "max_connections_per_address", "max_connections"),
    ("wado", "window", "total_window"),
    ("wado", "spool", "total_spool"),
    ("wado", "max_deliveries", "max_connections"),
    ("wado", "max_per_consumer", "max_connections_per_address"),
    ("dmp", "connect_timeout", "timeout"),
    ("dmp", "retry_first", "retry_max"),
    ("feed", "retry_first", "retry_max"),
    ("notifications", "retry_first", "retry_max"),
)
_ORDERED_PACS = (
    ("first_image_timeout", "move_ceiling"),
    ("gap_timeout", "move_ceiling"),
    ("patience", "gap_timeout"),
)


def check(tree: Tree, report: Report) -> None:
    """Report limits out of order, and listeners that clash or are open to too many."""
    _limits(tree, report)
    _listeners(tree, report)
    _front_ends(tree, report)


def _limits(tree: Tree, report: Report) -> None:
    wado = tree.get("wado", {})
    for key in ("max_deliveries", "max_per_consumer"):
        deliveries = wado.get(key)
        if deliveries is not None and deliveries < LEAST_DELIVERIES:
            report.error(
                f"wado.{key}",
                f"{deliveries} est sous le minimum de {LEAST_DELIVERIES} connexions simultanées (DB.SO.35)",
                f"écrire {LEAST_DELIVERIES} ou plus",
            )
    if "prefixes" in wado and "dicom-web-rs" not in wado["prefixes"]:
        report.warn(
            "wado.prefixes",
            "ne contient pas « dicom-web-rs », le chemin de la spécification (DB.SO.173)",
            "ajouter « dicom-web-rs »",
        )
    for section, smaller, larger in _ORDERED:
        _ordered(tree.get(section) or {}, section, smaller, larger, report)
    for path, pacs in pacs_of_sites(tree):
        for smaller, larger in _ORDERED_PACS:
            _ordered(pacs, path, smaller, larger, report)


def _ordered(values: Tree, path: str, smaller: str, larger: str, report: Report) -> None:
    if smaller in values and larger in values and values[smaller] > values[larger]:
        write = span if isinstance(values[larger], float) else amount
        report.error(
            f"{path}.{smaller}",
            f"{write(values[smaller])} dépasse {larger} ({write(values[larger])})",
            f"réduire {smaller} ou augmenter {larger}",
        )


def _listeners(tree: Tree, report: Report) -> None:
    """No two listeners on one port, and the admin one on the loop, or with TLS and accounts."""
    taken: list[tuple[str, str, int]] = []
    for section in ("admin", "hl7", "dicom", "wado"):
        values = tree.get(section, {})
        if "host" not in values or "port" not in values:
            continue
        host, port = values["host"], values["port"]
        for other, address, number in taken:
            if port == number and (host == address or _everywhere(host) or _everywhere(address)):
                report.error(
                    f"{section}.port", f"{port} est déjà le port de [{other}]", "donner un autre port"
                )
        taken.append((section, host, port))
    admin = tree.get("admin", {}).get("host")
    if admin is not None and not ipaddress.ip_address(admin).is_loopback:
        needed = {"chiffrement": ("certificate",), "compte": ("accounts", "client_roots")}
        values = tree["admin"]
        missing = [
            word for word, keys in needed.items() if all(values.get(key, "wrong") is None for key in keys)
        ]
        if missing:
            report.error(
                "admin.host",
                f"« {admin} » n'est pas une adresse de bouclage : il y manque {' et '.join(missing)}",
                'écrire "127.0.0.1", ou certificate et accounts ou client_roots '
                "(docs/exploitation-administration.md)",
            )


def _front_ends(tree: Tree, report: Report) -> None:
    """Whoever is a front end may say that a connection comes from anywhere."""
    for section in ("hl7", "wado"):
        for position, entry in enumerate(tree.get(section, {}).get("front_ends", ())):
            if ipaddress.ip_network(entry).prefixlen == 0:
                report.error(
                    f"{section}.front_ends",
                    f"élément {position + 1} : « {entry} » désigne tout le monde",
                    "n'écrire que les adresses des frontaux",
                )


def _everywhere(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
