"""Writes docs/configuration.md, the operator's reference of the configuration keys.

Nothing is written twice: what a key is for comes from the comments of the example file, what it may be
from `keys`, its default from `drimbox.config`. After changing any of them run
`python -m drimbox.configfile.reference etc/drimbox.toml`; a test compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import attrs

from drimbox.config import Certificate, Config
from drimbox.configfile.keys import RULES
from drimbox.configfile.shape import keys_of

HEAD = """# Configuration de DRIMbox

<!-- Produit par « python -m drimbox.configfile.reference etc/drimbox.toml » : ne pas modifier ici. -->

Toute la configuration tient dans un fichier TOML, `/etc/drimbox/drimbox.toml` par défaut (option
`--config` ou variable `DRIMBOX_CONFIG`). `etc/drimbox.toml` est un exemple complet à trois sites.

- **Durées** : un nombre de secondes, ou `"500ms"`, `"30s"`, `"5min"`, `"2h"`, `"1j"`.
- **Tailles** : un nombre d'octets, ou `"512KiB"`, `"32MiB"`, `"2GiB"`.
- **Chemins** : absolus, ou relatifs au dossier du fichier de configuration.
- **Secrets** : toujours dans un fichier à part, dont la configuration donne le chemin.

`drimbox check-config` lit ce fichier, les certificats et les clés qu'il nomme, sans rien démarrer ni
écrire. Toutes les erreurs sont données en une fois, avec leur place, leur ligne et la façon de les
corriger :

```
/etc/drimbox/drimbox.toml : configuration inutilisable (1 erreur, 0 avertissement)
  erreur         site[0].pacs.port (ligne 530) : 70000 n'est pas un port (1 à 65535)
                 -> écrire un entier, sans guillemets
```

`site[0]` est le premier `[[site]]` du fichier. Une **erreur** empêche le démarrage ; un
**avertissement** (certificat bientôt expiré, clé lisible par tous, nom inattendu…) ne l'empêche pas et
est rappelé dans le journal à chaque démarrage. Le code de sortie est 0 sans erreur, 1 avec.
"""

_PAIR = (
    '`{ certificate = "…", key = "…" }` (PEM) ou `{ pkcs12 = "…", password_file = "…" }` '
    "(voir docs/exploitation-confiance.md)"
)


@attrs.define
class _Section:
    """One section of the example: its heading and what its comments say."""

    heading: str
    intro: str
    roles: dict[str, str] = attrs.field(factory=dict)


def _sections(example: str) -> dict[str, _Section]:
    """Read the example's comments: those above a heading present it, those above keys their role."""
    found: dict[str, _Section] = {}
    comments: list[str] = []
    current: _Section | None = None
    for line in example.splitlines():
        heading = re.fullmatch(r"#?(\[{1,2}([a-z0-9.]+)\]{1,2})", line)
        key = re.match(r"#?([a-z0-9_]+) = ", line)
        if heading:
            # The second site and the second RIS of the example present nothing new.
            current = found.setdefault(heading[2], _Section(heading[1], " ".join(comments)))
            comments = []
        elif key and current is not None:
            current.roles.setdefault(key[1], " ".join(comments))
            comments = []
        elif line.startswith("# "):
            comments.append(line[2:])
        elif not line.strip():
            comments = []
    return found


def _default(value: Any, shown: str) -> str:
    if value is attrs.NOTHING:
        return "**obligatoire**"
    return "absente" if value is None else f"`{shown}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def document(example: str) -> str:
    """Return the reference as Markdown, from the text of the example file."""
    sections = _sections(example)
    values = {
        (name, key): value
        for name, body in re.findall(
            r"^#?\[{1,2}([a-z0-9.]+)\]{1,2}$(.*?)(?=^#?\[|\Z)", example, re.M | re.S
        )
        for key, value in re.findall(r"^#([a-z0-9_]+) = (.*)$", body, re.M)
    }
    lines = [HEAD]

    def write(cls: type, name: str, defaults: Any) -> None:
        section = sections[name]
        lines.append(f"## `{section.heading}`\n\n{section.intro}\n")
        lines.append("| Clé | Défaut | Valeur | Rôle |\n|---|---|---|---|")
        nested = []
        for key, field, table, repeated in keys_of(cls):
            if table is not None and table is not Certificate:
                nested.append((table, f"{name}.{key}", field.default, repeated))
                continue
            default = getattr(defaults, field.name) if attrs.has(type(defaults)) else field.default
            kind = RULES[cls][key].kind if table is None else _PAIR
            shown = values.get((name, key)) or _toml(default)
            cells = (f"`{key}`", _default(default, shown), _cell(kind), _cell(section.roles[key]))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        for inner, path, default, _ in nested:
            write(inner, path, default)

    for key, field, table, _ in keys_of(Config):
        assert table is not None
        write(table, key, field.default)
    return "\n".join(lines).rstrip() + "\n"


def _toml(value: Any) -> str:
    """Write a default that the example does not show because it sets the key."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    sys.stdout.buffer.write(document(Path(sys.argv[1]).read_text(encoding="utf-8")).encode("utf-8"))
