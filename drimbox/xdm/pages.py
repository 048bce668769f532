"""INDEX.HTM and README.TXT: what a person who opens the medium finds (interfaces.md 5).

Written piece by piece, because a month may hold hundreds of thousands of manifests. No instant of writing
is in them: the same month is always the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

import attrs

from drimbox.xdm import names


@attrs.frozen
class Sender:
    """Who writes an archive."""

    #: Name and national identifier of each structure.
    structures: tuple[tuple[str, str], ...]
    site: str
    application: str
    version: str
    manufacturer: str


@attrs.frozen
class Listed:
    """One manifest in the index."""

    #: From the top folder: `IHE_XDM/SS000001/KOS_1_1.DCM`.
    path: str
    study_uid: str
    #: `YYYYMMDD…` as the metadata have it, empty when they do not.
    date: str


_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="fr" lang="fr">
<head>
<meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
<title>{title}</title>
</head>
<body>
<h1>{title}</h1>
"""
_TABLE = """<table summary="KOS de l'archive">
<thead><tr><th>Fichier</th><th>Examen</th><th>Date</th></tr></thead>
<tbody>
"""


def index(sender: Sender, name: str, listed: Iterable[Listed]) -> Iterator[bytes]:
    """Yield INDEX.HTM, XHTML 1.0 Strict in UTF-8, with every manifest of the archive `name`.

    `listed` holds at least one.
    """
    yield _HEAD.format(title=escape(f"Archive de KOS {name}")).encode("utf-8")
    for structure, identifier in sender.structures:
        yield f"<p>Emetteur : {escape(structure)} ({escape(identifier)})</p>\n".encode()
    yield f'<p>Voir le fichier <a href="{names.README}">ReadMe</a></p>\n'.encode()
    yield _TABLE.encode("utf-8")
    for each in listed:
        cells = f'<td><a href="{escape(each.path)}">{escape(each.path)}</a></td>'
        cells += f"<td>{escape(each.study_uid)}</td><td>{escape(_day(each.date))}</td>"
        yield f"<tr>{cells}</tr>\n".encode()
    yield b"</tbody>\n</table>\n</body>\n</html>\n"


def readme(sender: Sender, name: str, sets: int) -> Iterator[bytes]:
    """Yield README.TXT: UTF-8, CRLF, four titled blocks; the last one is the tree of `sets` sets."""
    yield _block("Emetteur :", [*_structures(sender), f"    . Site : {sender.site}"])
    application = [("Nom", sender.application), ("Version", sender.version)]
    application.append(("Editeur", sender.manufacturer))
    yield _block("Application de l'emetteur :", [f"    . {key} : {value}" for key, value in application])
    yield _block(
        "Instructions :",
        [
            "    . Archive de manifestes d'imagerie (KOS) publiés dans le DMP, au format IHE XDM.",
            "    . À charger dans une autre DRIMbox du même site par sa commande d'administration.",
        ],
    )
    yield (
        _block("Arborescence :", [f"    {name}", *(f"         {file}" for file in _TOP)]).rstrip() + b"\r\n"
    )
    for number in range(1, sets + 1):
        lines = [f"              {names.set_name(number)}"]
        files = (names.METADATA, names.kos_name(number), names.REPORTS)
        lines += [f"                   {file}" for file in files]
        yield _lines(lines)


_TOP = (names.INDEX, names.README, names.HOLDER)


def _structures(sender: Sender) -> Iterator[str]:
    for structure, identifier in sender.structures:
        yield f"    . Nom : {structure}"
        yield f"    . Organisme : {structure} ({identifier})"


def _block(title: str, lines: Iterable[str]) -> bytes:
    return _lines([title, "=" * len(title), *lines, ""])


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8")


def _day(digits: str) -> str:
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if digits[:8].isdigit() and len(digits) >= 8 else ""
