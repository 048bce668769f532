"""What several values of the configuration say together: names that clash, references, limits.

Works on the tree that `configfile` read: nested dicts by field name, in which a value that was wrong is
simply absent. Each check therefore looks only at what is there, and one mistake never hides another.
Nothing here reads a file, a clock or a socket.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import attrs

from drimbox.config import DmpSettings, StoreSettings
from drimbox.configrules import amount, closest, span

Tree = dict[str, Any]

#: The specification's smallest number of simultaneous connections of a Source (DB.SO.35).
LEAST_DELIVERIES = 3
#: Seconds by which the lease of a row outlasts an attempt to publish (`store.outbox.begin`).
LEASE_MARGIN = 10.0
_DMP_TIMEOUT = float(attrs.fields(DmpSettings).timeout.default or 0)
_LEASE = StoreSettings().lease


@attrs.frozen
class ConfigMistake:
    """One mistake: where it is in the file, what is wrong, how to mend it (both in French)."""

    path: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path} : {self.problem}"


@attrs.define
class Report:
    """Collects errors and warnings in the order they are found."""

    errors: list[ConfigMistake] = attrs.field(factory=list)
    warnings: list[ConfigMistake] = attrs.field(factory=list)

    def error(self, path: str, problem: str, mend: str) -> None:
        """Note what keeps the gateway from starting."""
        self.errors.append(ConfigMistake(path, problem, mend))

    def warn(self, path: str, problem: str, mend: str) -> None:
        """Note what deserves a look but keeps nothing from starting."""
        self.warnings.append(ConfigMistake(path, problem, mend))


def check(tree: Tree, report: Report) -> None:
    """Report everything the values of `tree` say together that cannot be, or is doubtful."""
    for section, why in (
        ("site", "au moins un PACS (DB.SO.05)"),
        ("structure", "au moins une structure et ses certificats"),
        ("ris", "au moins un RIS : sans lui aucun message n'est accepté (DB.SO.04)"),
    ):
        if not tree.get({"site": "sites", "structure": "structures"}.get(section, section), [{}]):
            report.error(section, "aucune section", f"ajouter [[{section}]] ; il faut {why}")
    _unique_names(tree, report)
    _ris(tree, report)
    _references(tree, report)
    _pools(tree, report)
    _fqdn(tree, report)
    _structures(tree, report)
    _limits(tree, report)
    _listeners(tree, report)
    _front_ends(tree, report)
    _speed_tests(tree, report)
    _identity(tree, report)
    _feed_checks(tree, report)
    _store(tree, report)


def sites(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield the path and the tree of every site."""
    for position, site in enumerate(tree.get("sites", [])):
        yield f"site[{position}]", site


def _pacs(tree: Tree) -> Iterator[tuple[str, Tree]]:
    for path, site in sites(tree):
        if site.get("pacs") is not None:
            yield f"{path}.pacs", site["pacs"]


def _unique(pairs: list[tuple[str, str | None]], what: str, mend: str, report: Report) -> None:
    """Report every value met before; `pairs` are paths and values, None for a value that is absent."""
    first: dict[str, str] = {}
    for path, value in pairs:
        if value is None:
            continue
        if value in first:
            report.error(path, f"{what} « {value} » déjà pris par {first[value]}", mend)
        else:
            first[value] = path


def _unique_names(tree: Tree, report: Report) -> None:
    another = "donner un autre nom"
    _unique([(f"{path}.name", site.get("name")) for path, site in sites(tree)], "nom", another, report)
    archives = [
        (f"{path}.{key}.name", site[key].get("name"))
        for path, site in sites(tree)
        for key in ("pacs", "native")
        if site.get(key) is not None
    ]
    _unique(archives, "nom", another, report)
    for section, field, key in (("ris", "ris", "name"), ("structure", "structures", "id")):
        pairs = [(f"{section}[{at}].{key}", item.get(key)) for at, item in enumerate(tree.get(field, []))]
        _unique(pairs, "nom" if key == "name" else "identifiant", another, report)
    names = [
        (f"{path}.{key}", site.get(key))
        for path, site in sites(tree)
        for key in ("wado_fqdn", "viewer_fqdn")
    ]
    _unique(names, "nom de domaine", "donner à chaque site sa paire de noms (DB.SO.173)", report)


def _ris(tree: Tree, report: Report) -> None:
    """Two RIS that no message can tell apart: the second would never be found (DB.SO.04)."""
    seen: dict[tuple[Any, ...], str] = {}
    for position, ris in enumerate(tree.get("ris", [])):
        keys = ("sending_application", "sending_facility", "addresses")
        if not all(key in ris for key in keys):
            continue
        mark = (*(ris[key] for key in keys[:2]), frozenset(ris["addresses"]))
        if mark in seen:
            report.error(
                f"ris[{position}]",
                f"ne se distingue pas de {seen[mark]} : mêmes sending_application, sending_facility "
                "et addresses",
                "distinguer les deux RIS par MSH-3, MSH-4 ou leur adresse",
            )
        else:
            seen[mark] = f"ris[{position}]"


def _references(tree: Tree, report: Report) -> None:
    """Every RIS and structure that a site names must exist, and every RIS should lead to a PACS."""
    used: set[str] = set()
    for key, section, field in (("ris", "ris", "name"), ("structures", "structure", "id")):
        known = [item[field] for item in tree.get(key, []) if field in item]
        complete = len(known) == len(tree.get(key, []))
        for path, site in sites(tree):
            named = site.get(key, ())
            if key == "ris":
                used.update(named or known)
            for name in named:
                if name in known or not complete:
                    continue
                near = closest(name, known)
                mend = f"écrire plutôt « {near} » ?" if near else f"ajouter [[{section}]] {field} = …"
                report.error(f"{path}.{key}", f"« {name} » ne désigne aucun [[{section}]]", mend)
    for position, ris in enumerate(tree.get("ris", [])):
        if tree.get("sites") and ris.get("name") and ris["name"] not in used:
            report.warn(
                f"ris[{position}]",
                "aucun site ne cherche les examens de ce RIS (DB.SO.140)",
                f"ajouter « {ris['name']} » à la liste ris d'un [[site]]",
            )


def _pools(tree: Tree, report: Report) -> None:
    """An AE title of a pool tells which request an image is for: one use in the whole file (DB.SO.85)."""
    first: dict[str, str] = {}
    ours = tree.get("dicom", {}).get("ae_title")
    for path, pacs in _pacs(tree):
        pool = pacs.get("pool", ())
        for title in pool:
            if title == ours:
                report.error(
                    f"{path}.pool", f"« {title} » est déjà dicom.ae_title", "donner un autre AE title"
                )
            elif title in first:
                report.error(
                    f"{path}.pool",
                    f"« {title} » est déjà dans {first[title]}",
                    "donner à chaque PACS ses propres AE titles",
                )
            else:
                first[title] = f"{path}.pool"
            if title == pacs.get("ae_title"):
                report.error(
                    f"{path}.pool",
                    f"« {title} » est l'AE title du PACS lui-même",
                    "mettre ici des AE titles de la DRIMbox, déclarés comme destinations dans le PACS",
                )
        if 0 < len(pool) < LEAST_DELIVERIES:
            report.warn(
                f"{path}.pool",
                f"{len(pool)} AE title : une demande à la fois par AE title, les autres attendent",
                f"en déclarer au moins {LEAST_DELIVERIES} (DB.SO.35, DB.SO.85)",
            )
        most = pacs.get("max_associations")
        if most is not None and most < len(pool):
            report.warn(
                f"{path}.max_associations",
                f"{most} associations pour {len(pool)} AE titles : le pool ne servira pas en entier",
                "augmenter max_associations ou réduire pool (DB.SO.121)",
            )
    leased = sum(len(pacs.get("pool", ())) for _, pacs in _pacs(tree))
    taken = tree.get("dicom", {}).get("max_associations")
    if taken is not None and taken < leased:
        report.warn(
            "dicom.max_associations",
            f"{taken} associations reçues à la fois pour {leased} AE titles en tout",
            "augmenter max_associations : un PACS peut en ouvrir plusieurs par AE title (DB.SO.85)",
        )
    where: dict[tuple[Any, ...], str] = {}
    for path, pacs in _pacs(tree):
        if all(key in pacs for key in ("ae_title", "host", "port")):
            address = (pacs["ae_title"], pacs["host"].lower(), pacs["port"])
            if address in where:
                report.warn(path, f"même PACS que {where[address]}", "vérifier ae_title, host et port")
            where.setdefault(address, path)


def _fqdn(tree: Tree, report: Report) -> None:
    """Names follow `db<index>.<system_id>…` and `vi<index>.<system_id>…` (requirements 3.12)."""
    system = tree.get("drimbox", {}).get("system_id")
    for path, site in sites(tree):
        index = {}
        for key, prefix in (("wado_fqdn", "db"), ("viewer_fqdn", "vi")):
            if key not in site or system is None:
                continue
            found = re.match(rf"{prefix}([0-9]+)\.{system}\.", site[key])
            if found:
                index[key] = found[1]
                continue
            report.warn(
                f"{path}.{key}",
                f"« {site[key]} » n'a pas la forme « {prefix}<numéro>.{system}.… »",
                "vérifier le nom attribué par l'ANS et drimbox.system_id",
            )
        if len(set(index.values())) == 2:
            report.warn(
                f"{path}.viewer_fqdn",
                f"porte le numéro {index['viewer_fqdn']}, wado_fqdn le numéro {index['wado_fqdn']}",
                "un même PACS porte le même numéro dans ses deux noms",
            )


def _speed_tests(tree: Tree, report: Report) -> None:
    """A test that runs by itself needs a study to retrieve (DB.SO.155)."""
    for path, site in sites(tree):
        settings = site.get("speedtest", {})
        if settings.get("enabled") and settings.get("study", "") is None:
            report.error(
                f"{path}.speedtest.enabled",
                "le test est activé sans examen de référence",
                "écrire dans study le StudyInstanceUID d'un examen d'essai que ce PACS détient",
            )


#: Struct_IdNat (requirements 3.5): FINESS, SIREN, SIRET, RPPS-rang, technical number.
_STRUCTURE_ID = re.compile(r"1[0-9A-Z]{9}|2[0-9]{9}|3[0-9]{14}|4[0-9]{14}|[0-9]{14}", re.ASCII)


def _structures(tree: Tree, report: Report) -> None:
    for position, structure in enumerate(tree.get("structures", [])):
        if "id" in structure and not _STRUCTURE_ID.fullmatch(structure["id"]):
            report.warn(
                f"structure[{position}].id",
                f"« {structure['id']} » n'a aucune des formes connues de Struct_IdNat",
                "écrire le préfixe puis le numéro : 1 + FINESS, 3 + SIRET, 2 + SIREN, 4 + RPPS-rang",
            )


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
    for path, pacs in _pacs(tree):
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
        needed = {"certificate": "chiffrement", "accounts": "compte"}
        missing = [word for key, word in needed.items() if tree["admin"].get(key, "wrong") is None]
        if missing:
            report.error(
                "admin.host",
                f"« {admin} » n'est pas une adresse de bouclage : il y manque {' et '.join(missing)}",
                'écrire "127.0.0.1", ou certificate et accounts (docs/exploitation-administration.md)',
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


def _identity(tree: Tree, report: Report) -> None:
    """What the DMP and the registry ask of a gateway in service, and a test bench does without."""
    appliance = tree.get("drimbox", {})
    if appliance.get("oid") == "2.25.1":
        report.warn(
            "drimbox.oid",
            "garde la valeur d'essai « 2.25.1 »",
            "écrire l'OID de cette instance avant la mise en service",
        )
    for key, what in (("serial_number", "LPS_ID"), ("dmp_certification", "LPS_ID_HOMOLOGATION_DMP")):
        if appliance.get(key) == "":
            report.warn(
                f"drimbox.{key}",
                f"est vide : le DMP attend {what} dans le VIHF",
                "écrire la valeur reçue lors de l'homologation",
            )


def _feed_checks(tree: Tree, report: Report) -> None:
    """Strictness without a check does nothing (DB.SO.16, DB.SO.191)."""
    for path, site in sites(tree):
        checks = ("check_feed_identity", "check_feed_birth_date")
        if site.get("check_feed_strictly") and not any(site.get(key, True) for key in checks):
            report.warn(
                f"{path}.check_feed_strictly",
                "n'a aucun effet : ni check_feed_identity ni check_feed_birth_date n'est activé",
                "activer l'un de ces contrôles ou retirer check_feed_strictly",
            )


def _store(tree: Tree, report: Report) -> None:
    store = tree.get("store") or {}
    url = store.get("url")
    if not url or not url.startswith("postgresql"):
        if store.get("password_file") is not None:
            report.warn("store.password_file", "SQLite ne demande pas de mot de passe", "retirer cette clé")
        return
    if importlib.util.find_spec("psycopg") is None:
        report.error(
            "store.url", "PostgreSQL demande le module psycopg, qui n'est pas installé", "l'installer"
        )
    lease = store.get("lease") or _LEASE
    longest = ((tree.get("dmp") or {}).get("timeout") or _DMP_TIMEOUT) + LEASE_MARGIN
    if lease < longest:
        report.error(
            "store.lease",
            "un envoi au DMP encore en cours pourrait être repris par un autre nœud",
            f"écrire {longest:.0f}s ou plus : [dmp] timeout et {LEASE_MARGIN:.0f} s",
        )
    if (tree.get("cache") or {}).get("enabled"):
        report.warn(
            "cache.enabled",
            "chaque nœud a son cache : un changement vu par un nœud ne vide pas celui des autres",
            "avec plusieurs nœuds, garder max_age court ou se passer de cache",
        )
