"""Why a database refused, in French, without a statement or a value of it."""

from __future__ import annotations

_SQLITE = {
    "unable to open database file": "fichier inaccessible à ce compte",
    "readonly database": "écriture refusée à ce compte, ou système de fichiers en lecture seule",
    "database or disk is full": "disque plein",
    "disk i/o error": "erreur d'entrée-sortie du disque",
    "database is locked": "occupée par un autre programme",
    "file is not a database": "ce fichier n'est pas une base de données",
    "malformed": "base endommagée",
}


def database_reason(error: BaseException) -> str:
    """Say in French why a database refused; what a server or an unknown error says, in its own words."""
    cause = getattr(error, "orig", None) or error
    said = (str(cause).splitlines() or [""])[0]
    lowered = said.lower()
    known = next((words for text, words in _SQLITE.items() if text in lowered), None)
    return known or said or type(cause).__name__
