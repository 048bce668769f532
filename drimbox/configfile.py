"""Reads the TOML file into `drimbox.config.Config` and says everything that is wrong with it at once.

Theory of operation. The file goes through four steps, none of which has a side effect:

1. *syntax*: bytes to tables (`tomllib`); a mistake here hides the rest, so it is reported alone;
2. *shape*: the classes of `drimbox.config` say which tables and keys exist; each value goes through its
   rule (`configrules`). The outcome is a tree of good values: what was wrong is left out and reported;
3. *sense*: what several values say together (`configcheck`), then what the paths lead to (`configpaths`),
   on whatever part of the tree is good, so that one mistake does not hide another;
4. *build*: only when no error was found, the tree becomes a `Config`.

Every mistake carries its path in the file (`site[0].pacs.port`), the problem and the way to mend it, in
French. A secret is always a path to a file, never a value, and no value that may be one is printed.
"""

from __future__ import annotations

import re
import tomllib
import types
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from drimbox import (
    configcheck,
    confighealth,
    confignative,
    confignotify,
    configpaths,
    configproxy,
    configtrust,
)
from drimbox.config import Certificate, Config, Listener
from drimbox.configcheck import ConfigMistake, Report, Tree
from drimbox.configkeys import RULES
from drimbox.configrules import Rejected, closest, show

__all__ = ["ConfigErrors", "ConfigMistake", "admin_listener", "check", "load"]

MAX_FILE_BYTES = 1024 * 1024

#: Keys of the file whose name differs from the field: `[[site]]` reads better than `[[sites]]`.
TABLE_NAMES = {"sites": "site", "structures": "structure"}


class ConfigErrors(Exception):
    """The file cannot be used. `mistakes` are the errors, in the order of the file's sections."""

    def __init__(self, path: Path, mistakes: list[ConfigMistake]) -> None:
        super().__init__(f"{path} : " + " / ".join(map(str, mistakes)))
        self.path = path
        self.mistakes = mistakes


def load(path: Path, *, files: bool = True, now: datetime | None = None) -> Config:
    """Return the configuration, every path made absolute.

    `files=False` leaves the files named in it unread, for commands that need none of them. Raises
    `ConfigErrors` with all mistakes at once.
    """
    config, report = _examine(path, files=files, now=now)
    if config is None:
        raise ConfigErrors(path, report.errors)
    return config


def check(
    path: Path, *, files: bool = True, now: datetime | None = None
) -> tuple[list[ConfigMistake], list[ConfigMistake]]:
    """Return the errors (the gateway would not start) and the warnings (it would, but look)."""
    _, report = _examine(path, files=files, now=now)
    return report.errors, report.warnings


def admin_listener(path: Path) -> Listener:
    """Return where the running process listens for commands, whatever the rest of the file holds.

    An operator may ask for the status without being allowed to read the private keys. Raises
    `ConfigErrors` when the file cannot be read or `[admin]` itself is wrong.
    """
    report = Report()
    raw = _parse(path, report)
    section = _Shape(report, path.parent).read(Config, {"admin": raw.get("admin", {})}, "", only="admin")
    if report.errors or "admin" not in section:
        raise ConfigErrors(path, report.errors)
    built: Listener = _build(Listener, section["admin"])
    return built


def _examine(path: Path, *, files: bool, now: datetime | None) -> tuple[Config | None, Report]:
    report = Report()
    raw = _parse(path, report)
    if report.errors:
        return None, report
    tree = _Shape(report, path.absolute().parent).read(Config, raw, "")
    configcheck.check(tree, report)
    confignative.check(tree, report)
    confignotify.check(tree, report)
    confighealth.check(tree, report)
    configproxy.check(tree, report)
    configtrust.check(tree, report)
    if files:
        configpaths.check(tree, report, now or datetime.now(UTC))
    if report.errors:
        return None, report
    config: Config = _build(Config, tree)
    return config, report


# --- 1. syntax --------------------------------------------------------------------------------------


def _parse(path: Path, report: Report) -> dict[str, Any]:
    """Return the tables of the file; an unusable file is reported and gives an empty answer."""
    try:
        with path.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        report.error(str(path), configpaths.cannot_read(error), "donner le bon chemin avec --config")
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
    if "deux fois" in ours:
        mend = "retirer la répétition : une clé ou une section ne s'écrit qu'une fois"
    elif line <= len(lines) and re.match(r"\s*[\w.-]+\s*=\s*[^\s\"'\[{0-9tf+-]", lines[line - 1]):
        mend = "mettre le texte entre guillemets"
    else:
        mend = 'vérifier les guillemets, les crochets et la forme « clé = "valeur" »'
    report.error(f"ligne {line}, colonne {found[3]}", f"syntaxe TOML : {ours}", mend)


# --- 2. shape ---------------------------------------------------------------------------------------


def table_of(kind: Any) -> tuple[type | None, bool]:
    """Return the class of the table a field holds (None for a plain value), and whether it is a list."""
    origin = typing.get_origin(kind)
    members = typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (member for member in members if member is not types.NoneType)
        return table_of(kind)
    if origin is tuple:
        return (members[0], True) if attrs.has(members[0]) else (None, False)
    return (kind, False) if isinstance(kind, type) and attrs.has(kind) else (None, False)


def keys_of(cls: type) -> Iterator[tuple[str, attrs.Attribute[Any], type | None, bool]]:
    """Yield for each field of `cls`: its key in the file, the field, its table class, whether a list."""
    hints = typing.get_type_hints(cls)
    for field in attrs.fields(cls):
        table, repeated = table_of(hints[field.name])
        key = TABLE_NAMES.get(field.name, field.name) if table is not None else field.name
        yield key, field, table, repeated


class _Shape:
    """Reads tables against the classes; what is wrong goes to the report and is left out of the tree."""

    def __init__(self, report: Report, folder: Path) -> None:
        self._report = report
        self._folder = folder

    def read(
        self, cls: type, raw: object, path: str, *, defaults: object = None, only: str | None = None
    ) -> Tree:
        """Return the good values of one table, defaults included, by field name of `cls`.

        `defaults` is an instance that gives the defaults in place of the class; `only` reads one key.
        """
        if not isinstance(raw, dict):
            self._report.error(path, f"{show(raw)} n'est pas une table", f"écrire une section [{path}]")
            return {}
        known = list(keys_of(cls))
        self._unknown(cls, [key for key, *_ in known], raw, path)
        tree: Tree = {}
        hints = typing.get_type_hints(cls)
        for key, field, table, repeated in known:
            optional = types.NoneType in typing.get_args(hints[field.name])
            if only is not None and key != only:
                continue
            here = f"{path}.{key}" if path else key
            default = field.default if defaults is None else getattr(defaults, field.name)
            if key not in raw:
                if default is not attrs.NOTHING:
                    tree[field.name] = default if table is None else _tree_of(default)
                elif table is not None and optional:
                    tree[field.name] = None  # configcheck says when it must be there
                elif repeated:
                    tree[field.name] = []  # configcheck says which lists must not be empty
                else:
                    self._missing(cls, key, table, here)
            elif table is None:
                self._value(cls, field.name, raw[key], here, tree)
            elif repeated:
                items = self._list(table, raw[key], here)
                if items is not None:
                    tree[field.name] = items
            else:
                given = default if attrs.has(type(default)) else None
                tree[field.name] = self.read(table, raw[key], here, defaults=given)
        return tree

    def _value(self, cls: type, name: str, raw: object, here: str, tree: Tree) -> None:
        try:
            value = RULES[cls][name].read(raw)
        except Rejected as rejected:
            self._report.error(here, rejected.problem, rejected.mend)
            return
        tree[name] = self._folder / value if isinstance(value, Path) else value

    def _list(self, table: type, raw: object, here: str) -> list[Tree] | None:
        if not isinstance(raw, list):
            self._report.error(
                here, f"{show(raw)} n'est pas une liste de tables", f"écrire [[{here}]], crochets doublés"
            )
            return None
        return [self.read(table, item, f"{here}[{position}]") for position, item in enumerate(raw)]

    def _missing(self, cls: type, key: str, table: type | None, here: str) -> None:
        if table is None:
            self._report.error(here, "clé obligatoire absente", f"l'écrire ici ; {RULES[cls][key].kind}")
            return
        required = [name for name, field, *_ in keys_of(table) if field.default is attrs.NOTHING]
        if table is Certificate:
            mend = (
                f'écrire {key} = {{ certificate = "….pem", key = "….key" }} '
                'ou { pkcs12 = "….p12", password_file = "…" }'
            )
        else:
            section = re.sub(r"\[\d+\]", "", here)
            mend = f"ajouter [{section}] avec au moins : {', '.join(required)}"
        self._report.error(here, "section obligatoire absente", mend)

    def _unknown(self, cls: type, known: list[str], raw: dict[str, Any], path: str) -> None:
        for key in raw:
            if key in known:
                continue
            here = f"{path}.{show_key(key)}" if path else show_key(key)
            near = closest(key, known)
            elsewhere = [] if near else _owners(key)
            if near:
                mend = f"écrire plutôt « {near} » ?"
            elif elsewhere:
                mend = f"cette clé se place dans {' ou '.join(elsewhere)}"
            else:
                mend = "la retirer ; clés connues ici : " + ", ".join(known)
            section = isinstance(raw[key], dict) or (not path and isinstance(raw[key], list))
            self._report.error(here, "section inconnue" if section else "clé inconnue", mend)


def show_key(key: str) -> str:
    """Write a key as the file must: bare when it can be, else quoted and without control characters."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else '"' + show(key)[2:-2] + '"'


def _owners(wanted: str) -> list[str]:
    """Return the sections of the file in which the key `wanted` exists."""
    found = []
    for section, _, table, repeated in keys_of(Config):
        name = f"[[{section}]]" if repeated else f"[{section}]"
        for key, _, nested, _ in keys_of(table) if table else ():
            if key == wanted:
                found.append(name)
            elif nested and any(inner == wanted for inner, *_ in keys_of(nested)):
                found.append(f"[{section}.{key}]")
    return found[:3]


def _tree_of(value: Any) -> Any:
    """Return the tree of a default: an instance becomes what reading its keys would have given."""
    if not attrs.has(type(value)):
        return value
    return {field.name: _tree_of(getattr(value, field.name)) for field in attrs.fields(type(value))}


# --- 4. build ---------------------------------------------------------------------------------------


def _build(cls: type, tree: Tree) -> Any:
    """Make an instance of `cls` from a tree in which nothing is missing."""
    values: dict[str, Any] = {}
    for _, field, table, repeated in keys_of(cls):
        value = tree[field.name]
        if table is not None and value is not None:
            value = tuple(_build(table, item) for item in value) if repeated else _build(table, value)
        values[field.name] = value
    return cls(**values)
