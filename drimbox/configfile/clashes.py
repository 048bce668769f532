"""Names that clash, and references to what is not there."""

from __future__ import annotations

from typing import Any

from drimbox.configfile.report import Report, Tree, sites
from drimbox.configfile.rules import closest


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


def check(tree: Tree, report: Report) -> None:
    """Report what has the name of another, and what names nothing."""
    _unique_names(tree, report)
    _ris(tree, report)
    _references(tree, report)


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
        names, lists = ("sending_application", "sending_facility"), ("addresses", "certificate_names")
        if not all(key in ris for key in names + lists):
            continue
        mark = (*(ris[key] for key in names), *(frozenset(ris[key]) for key in lists))
        if mark in seen:
            report.error(
                f"ris[{position}]",
                f"ne se distingue pas de {seen[mark]} : mêmes sending_application, sending_facility, "
                "addresses et certificate_names",
                "distinguer les deux RIS par MSH-3, MSH-4, leur adresse ou leur certificat",
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
