"""What several values of the configuration say together: names that clash, references, limits.

Works on the tree that `shape` read, in which a value that was wrong is absent. Nothing here reads a file,
a clock or a socket.
"""

from __future__ import annotations

import importlib.util
import re

import attrs

from drimbox.config import DmpSettings, StoreSettings
from drimbox.configfile import clashes, limits, pools
from drimbox.configfile.report import Report, Tree, sites

#: Seconds by which the lease of a row outlasts an attempt to publish (`store.outbox.begin`).
LEASE_MARGIN = 10.0
_DMP_TIMEOUT = float(attrs.fields(DmpSettings).timeout.default or 0)
_LEASE = StoreSettings().lease


def check(tree: Tree, report: Report) -> None:
    """Report everything the values of `tree` say together that cannot be, or is doubtful."""
    for section, why in (
        ("site", "au moins un PACS (DB.SO.05)"),
        ("structure", "au moins une structure et ses certificats"),
        ("ris", "au moins un RIS : sans lui aucun message n'est accepté (DB.SO.04)"),
    ):
        if not tree.get({"site": "sites", "structure": "structures"}.get(section, section), [{}]):
            report.error(section, "aucune section", f"ajouter [[{section}]] ; il faut {why}")
    clashes.check(tree, report)
    pools.check(tree, report)
    _fqdn(tree, report)
    _structures(tree, report)
    limits.check(tree, report)
    _speed_tests(tree, report)
    _identity(tree, report)
    _feed_checks(tree, report)
    _store(tree, report)


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
