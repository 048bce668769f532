"""What is found wrong, and the tree it is found in.

`shape` reads the file into nested dicts by field name, in which a value that was wrong is simply absent:
each check looks only at what is there, and one mistake never hides another.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import attrs

from drimbox.systemerrors import system_reason

Tree = dict[str, Any]


@attrs.frozen
class ConfigMistake:
    """One mistake: where it is in the file, what is wrong, how to mend it (both in French)."""

    path: str
    problem: str
    mend: str
    #: Line of the file, counted from one; None where it has none.
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path} : {self.problem}"


@attrs.define
class Report:
    """Collects errors and warnings in the order they are found."""

    #: The file as text, once it could be read.
    document: str = ""
    errors: list[ConfigMistake] = attrs.field(factory=list)
    warnings: list[ConfigMistake] = attrs.field(factory=list)

    def error(self, path: str, problem: str, mend: str) -> None:
        """Note what keeps the gateway from starting."""
        self.errors.append(ConfigMistake(path, problem, mend))

    def warn(self, path: str, problem: str, mend: str) -> None:
        """Note what deserves a look but keeps nothing from starting."""
        self.warnings.append(ConfigMistake(path, problem, mend))


def cannot_read(error: OSError) -> str:
    """Say in French why a file cannot be read."""
    reasons = {
        errno.ENOENT: "fichier introuvable",
        errno.ENOTDIR: "fichier introuvable : un de ses dossiers est un fichier",
        errno.EACCES: "lecture refusée par les droits du fichier ou d'un de ses dossiers",
        errno.EISDIR: "est un dossier et non un fichier",
        errno.EINVAL: "n'est pas un fichier ordinaire",
        errno.ELOOP: "trop de liens symboliques",
        errno.ENAMETOOLONG: "chemin trop long",
    }
    return reasons.get(error.errno or 0, f"lecture impossible ({system_reason(error)})")


def credentials(tree: Tree, path: str, report: Report) -> None:
    """Report `user` without `password_file` in the table at `path`, or the other way round."""
    if (tree.get("user", "") is None) != (tree.get("password_file", "") is None):
        report.error(
            f"{path}.user", "user et password_file vont ensemble", "écrire les deux, ou aucun des deux"
        )


def sites(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield the path and the tree of every site."""
    for position, site in enumerate(tree.get("sites", [])):
        yield f"site[{position}]", site


def pacs_of_sites(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield the path and the tree of the PACS of every site that has one."""
    for path, site in sites(tree):
        if site.get("pacs") is not None:
            yield f"{path}.pacs", site["pacs"]
