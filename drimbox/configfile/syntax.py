"""From the bytes of the file to its tables."""

from __future__ import annotations

import errno
import re
import tomllib
from pathlib import Path
from typing import Any

from drimbox.configfile.report import Report, cannot_read

MAX_FILE_BYTES = 1024 * 1024


def parse(path: Path, report: Report) -> dict[str, Any]:
    """Return the tables of the file; an unusable file is reported and gives an empty answer."""
    try:
        with path.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        mend = "donner le bon chemin avec --config"
        if error.errno == errno.EACCES:
            mend = (
                "lancer la commande avec un compte qui peut le lire : root, ou celui du service (sudo -u)"
            )
        report.error(str(path), cannot_read(error), mend)
        return {}
    if len(data) > MAX_FILE_BYTES:
        report.error(str(path), "dépasse 1 Mio", "donner un fichier de configuration TOML")
        return {}
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]  # a byte order mark, the habit of some editors, means nothing in UTF-8
    try:
        document = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.error(f"ligne {line}", "n'est pas en UTF-8", "enregistrer le fichier en UTF-8")
        return {}
    report.document = document
    try:
        return tomllib.loads(document)
    except RecursionError:
        report.error(str(path), "imbrique trop de crochets", "retirer les crochets en trop")
    except (tomllib.TOMLDecodeError, ValueError) as error:
        _report_syntax(error, document, report)
    return {}


#: The parser's own words, by their beginning, and ours.
_SYNTAX = {
    "Cannot overwrite a value": "clé écrite deux fois",
    "Cannot declare": "section écrite deux fois",
    "Cannot mutate immutable namespace": "section déjà écrite d'une autre façon",
    "Duplicate inline table key": "clé écrite deux fois entre accolades",
    "Invalid value": "valeur illisible",
    "Invalid statement": "ligne illisible",
    "Invalid date or datetime": "date impossible",
    "Invalid hex value": "caractère \\u impossible",
    "Invalid initial character for a key part": "clé illisible",
    "Unclosed array": "crochet non fermé",
    "Unclosed inline table": "accolade non fermée",
    "Unterminated string": "guillemet non fermé",
    "Expected '=' after a key": "signe « = » attendu après la clé",
    "Expected newline or end of document": "fin de ligne attendue après la valeur",
    "Expected ']": "crochet fermant attendu",
    "Illegal character": "caractère interdit (guillemet non fermé ?)",
    "Unescaped '\\' in a string": "barre oblique inverse à doubler",
}


def _report_syntax(error: ValueError, document: str, report: Report) -> None:
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error), re.DOTALL)
    theirs = found[1] if found else str(error).removesuffix(" (at end of document)")
    ours = next((words for start, words in _SYNTAX.items() if theirs.startswith(start)), theirs)
    if found is None:
        report.error("fin du fichier", f"syntaxe TOML : {ours}", "terminer la dernière valeur")
        return
    line = int(found[2])
    lines = document.splitlines()
    if (
        line <= len(lines)
        and lines[line - 1].lstrip().startswith("[")
        and theirs.startswith("Cannot overwrite")
    ):
        ours = "une section de celle-ci est déjà écrite plus haut"
        mend = "écrire une [section.détail] après la [[section]] à laquelle elle appartient"
    elif "deux fois" in ours:
        mend = "retirer la répétition : une clé ou une section ne s'écrit qu'une fois"
    elif line <= len(lines) and re.match(r"\s*[\w.-]+\s*=\s*[^\s\"'\[{0-9tf+-]", lines[line - 1]):
        mend = "mettre le texte entre guillemets"
    else:
        mend = 'vérifier les guillemets, les crochets et la forme « clé = "valeur" »'
    report.error(f"ligne {line}, colonne {found[3]}", f"syntaxe TOML : {ours}", mend)
