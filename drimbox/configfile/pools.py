"""The AE titles that tell which request an image is for."""

from __future__ import annotations

from typing import Any

from drimbox.configfile.limits import LEAST_DELIVERIES
from drimbox.configfile.report import Report, Tree, pacs_of_sites


def check(tree: Tree, report: Report) -> None:
    """An AE title of a pool tells which request an image is for: one use in the whole file (DB.SO.85)."""
    first: dict[str, str] = {}
    ours = tree.get("dicom", {}).get("ae_title")
    for path, pacs in pacs_of_sites(tree):
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
    leased = sum(len(pacs.get("pool", ())) for _, pacs in pacs_of_sites(tree))
    taken = tree.get("dicom", {}).get("max_associations")
    if taken is not None and taken < leased:
        report.warn(
            "dicom.max_associations",
            f"{taken} associations reçues à la fois pour {leased} AE titles en tout",
            "augmenter max_associations : un PACS peut en ouvrir plusieurs par AE title (DB.SO.85)",
        )
    where: dict[tuple[Any, ...], str] = {}
    for path, pacs in pacs_of_sites(tree):
        if all(key in pacs for key in ("ae_title", "host", "port")):
            address = (pacs["ae_title"], pacs["host"].lower(), pacs["port"])
            if address in where:
                report.warn(path, f"même PACS que {where[address]}", "vérifier ae_title, host et port")
            where.setdefault(address, path)
