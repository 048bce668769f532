"""From the tables of the file to a tree of good values, and from the tree to a `Config`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from drimbox.config import Certificate, Config
from drimbox.configfile.keys import RULES
from drimbox.configfile.report import Report, Tree
from drimbox.configfile.rules import Rejected, closest, show

#: Keys of the file whose name differs from the field: `[[site]]` reads better than `[[sites]]`.
TABLE_NAMES = {"sites": "site", "structures": "structure", "clients": "client"}


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


class Shape:
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
            self._report.error(path, f"{show(raw)} n'est pas une table", _written(cls, path))
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
                    tree[field.name] = None  # `sense` says when it must be there
                elif repeated:
                    tree[field.name] = []  # `sense` says which lists must not be empty
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
            mend = _written(table, here)
        else:
            mend = f"ajouter [{_heading(here)}] avec au moins : {', '.join(required)}"
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


def _heading(path: str) -> str:
    """Return what stands between the brackets of the heading of a table."""
    return re.sub(r"\[\d+\]", "", path)


def _written(cls: type, path: str) -> str:
    """Say how the table at `path` is written."""
    if cls is not Certificate:
        return f"écrire une section [{_heading(path)}]"
    return (
        f'écrire {path.rpartition(".")[2]} = {{ certificate = "….pem", key = "….key" }} '
        'ou { pkcs12 = "….p12", password_file = "…" }'
    )


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


def build(cls: type, tree: Tree) -> Any:
    """Make an instance of `cls` from a tree in which nothing is missing."""
    values: dict[str, Any] = {}
    for _, field, table, repeated in keys_of(cls):
        value = tree[field.name]
        if table is not None and value is not None:
            value = tuple(build(table, item) for item in value) if repeated else build(table, value)
        values[field.name] = value
    return cls(**values)
