"""What the configuration says of native archives: one for each site without PACS, and what each kind needs.

Works, like `sense`, on the tree that `shape` read, in which a value that was wrong is absent.
Nothing of an editor's module is run here: it is only looked for.
"""

from __future__ import annotations

import importlib.util

from drimbox.configfile.report import Report, Tree, credentials, sites

_ONE = "un site a un PACS ou une archive native"


def check(tree: Tree, report: Report) -> None:
    """Report every site that has neither PACS nor native archive, or both, and what is wrong with these."""
    for path, site in sites(tree):
        pacs, native = site.get("pacs"), site.get("native")
        if pacs is None and native is None:
            report.error(
                f"{path}.pacs",
                "section obligatoire absente",
                "ajouter [site.pacs] avec au moins : name, ae_title, host, port, pool ; "
                "ou [site.native] avec au moins : name, kind",
            )
        if native is None:
            continue
        if pacs is not None:
            report.error(f"{path}.native", f"{_ONE}, non les deux", "retirer [site.pacs] ou [site.native]")
        if site.get("speedtest", {}).get("enabled"):
            report.error(
                f"{path}.speedtest.enabled",
                "le test mesure la liaison avec un PACS, et ce site a une archive native",
                "écrire enabled = false",
            )
        _native(f"{path}.native", native, report)


def _native(path: str, native: Tree, report: Report) -> None:
    kind = native.get("kind")
    if kind == "orthanc" and native.get("url", "") is None:
        report.error(f"{path}.url", "absente", 'écrire url = "http://127.0.0.1:8042"')
    if kind == "python" and native.get("factory", "") is None:
        report.error(f"{path}.factory", "absente", 'écrire factory = "module:objet" (docs/native.md)')
    if kind == "python" and native.get("factory"):
        _module(path, native["factory"], report)
    credentials(native, path, report)
    parallel, most = native.get("parallel"), native.get("max_readings")
    if parallel is not None and most is not None and parallel > most:
        report.error(
            f"{path}.parallel",
            f"{parallel} dépasse max_readings ({most})",
            "réduire parallel ou augmenter max_readings",
        )


def _module(path: str, factory: str, report: Report) -> None:
    package = factory.partition(":")[0].partition(".")[0]
    try:
        found = importlib.util.find_spec(package)
    except ValueError:
        found = None  # `__main__`, which is no module of anybody's
    if found is None:
        report.error(
            f"{path}.factory",
            f"le module « {package} » n'est pas installé",
            "l'installer dans l'environnement Python de DRIMbox",
        )
