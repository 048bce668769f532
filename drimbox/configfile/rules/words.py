"""Words, patterns, choices, paths, and lists of anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from drimbox.configfile.rules.values import Rejected, Rule, closest, show, string


def boolean() -> Rule:
    """`true` or `false`, nothing that looks like it."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise Rejected(f"{show(value)} n'est ni true ni false", "écrire true ou false, sans guillemets")
        return value

    return Rule("true ou false", read)


def text(longest: int = 128, *, empty: bool = False) -> Rule:
    """Free text of at most `longest` characters, without control characters."""

    def read(value: object) -> str:
        words = string(value, "écrire un texte entre guillemets")
        if not words.strip() and not empty:
            raise Rejected("est vide", "écrire une valeur, ou retirer la ligne si la clé est facultative")
        if len(words) > longest:
            raise Rejected(f"dépasse {longest} caractères", f"écrire au plus {longest} caractères")
        return words

    return Rule(f"texte ({longest} caractères au plus)", read)


def pattern(expression: str, what: str, example: str) -> Rule:
    """Text that matches the whole of `expression`; `what` and `example` explain it."""
    compiled = re.compile(expression, re.ASCII)
    mend = f"écrire {what}, par exemple « {example} »"

    def read(value: object) -> str:
        words = string(value, mend)
        if compiled.fullmatch(words) is None:
            raise Rejected(f"{show(value)} n'est pas {what}", mend)
        return words

    return Rule(what, read)


def choice(*allowed: str) -> Rule:
    """One of a few words."""
    listed = ", ".join(f'"{word}"' for word in allowed)

    def read(value: object) -> str:
        words = string(value, f"écrire une de ces valeurs : {listed}")
        if words not in allowed:
            near = closest(words, list(allowed))
            mend = f'écrire plutôt "{near}" ?' if near else f"écrire une de ces valeurs : {listed}"
            raise Rejected(f"{show(value)} n'est pas une de ces valeurs : {listed}", mend)
        return words

    return Rule(f"une de ces valeurs : {listed}", read)


def path() -> Rule:
    """A path; a relative one starts from the folder of the file."""

    def read(value: object) -> Path:
        words = string(value, "écrire un chemin entre guillemets")
        if not words.strip():
            raise Rejected("est vide", "écrire un chemin")
        if words.startswith("~"):
            raise Rejected(
                f"{show(value)} commence par ~, qui n'est pas développé ici", "écrire un chemin absolu"
            )
        return Path(words)

    return Rule("chemin (relatif : depuis le dossier de ce fichier)", read)


def several(rule: Rule, *, least: int = 0, most: int = 1024) -> Rule:
    """A list in which every element obeys `rule` and none comes twice; given back as a tuple."""

    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Rejected(
                f"{show(value)} n'est pas une liste", 'écrire des crochets, par exemple ["un", "deux"]'
            )
        if not least <= len(value) <= most:
            problem = "est vide" if not value else f"compte {len(value)} éléments"
            raise Rejected(problem, f"écrire de {least} à {most} éléments entre crochets")
        items = []
        for position, item in enumerate(value):
            try:
                items.append(rule.read(item))
            except Rejected as rejected:
                raise Rejected(f"élément {position + 1} : {rejected.problem}", rejected.mend) from None
        for position, item in enumerate(items):
            if item in items[:position]:
                raise Rejected(f"{show(item)} y figure deux fois", "retirer la répétition")
        return tuple(items)

    return Rule(f"liste ; chaque élément : {rule.kind}", read)
