"""Fills the tables of the documents that state what the gateway does, from the code that does it.

`python -m drimbox.statements` rewrites, in docs/*.md, what stands between `<!-- table: NAME -->` and
`<!-- end -->`; the text around it is written by hand. A test fails while a table is not what the code says
(DB.CS.160).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from prometheus_client.metrics import MetricWrapperBase
from pydicom._uid_dict import UID_dictionary

from drimbox import errors, metrics
from drimbox.config import DicomSettings, Pacs
from drimbox.dicom import states, syntaxes, targets
from drimbox.dicom.charset import SINGLE_BYTE, STAND_ALONE
from drimbox.web import routes

DOCUMENTS: Final = Path(__file__).resolve().parent.parent / "docs"
_TABLE: Final = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """Return a document with its tables as the code makes them now; `KeyError` for an unknown table."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


# -- DICOM -----------------------------------------------------------------------------------------


def storage_classes() -> str:
    """List the Storage SOP classes of PS3.6 that are not retired."""
    rows = [
        (name, f"`{uid}`")
        for uid, (name, kind, _, retired, _) in UID_dictionary.items()
        if kind == "SOP Class" and re.search(r"Storage( - For (Presentation|Processing))?$", name)
        if retired != "Retired"
    ]
    return _rows(("SOP class", "UID"), sorted(rows))


def received_syntaxes() -> str:
    """Say of each known transfer syntax what becomes of an instance that a PACS offers in it."""

    def fate(uid: str) -> str:
        if syntaxes.is_shared(uid):
            return "passed on as it is"
        if syntaxes.served_as(uid) is not None:
            return "rewritten as Explicit VR Little Endian while it streams"
        if uid in targets.DECODABLE:
            return "decoded and encoded again, when the client accepts nothing else the PACS proposes"
        return "not accepted"

    return _rows(
        ("Transfer syntax", "UID", "Instance"),
        [(row.name, f"`{uid}`", fate(uid)) for uid, row in syntaxes.TABLE.items()],
    )


def web_syntaxes() -> str:
    """List the transfer syntaxes of WADO-RS answers, and which of them we can produce ourselves."""
    return _rows(
        ("Transfer syntax", "UID", "Lossless", "Produced by transcoding"),
        [
            (row.name, f"`{uid}`", _tick(row.lossless), _tick(uid in targets.PRODUCED))
            for uid, row in syntaxes.TABLE.items()
            if row.shared
        ],
    )


def character_sets() -> str:
    """List the character sets in which patient traits are written into instances."""
    single = [f"`ISO_IR {number}`, `ISO 2022 IR {number}`" for number in SINGLE_BYTE]
    return "".join(
        f"- {each}\n" for each in ("ASCII (absent)", *single, *(f"`{term}`" for term in STAND_ALONE))
    )


def associations() -> str:
    """List the parameters of associations and their defaults, by configuration key."""
    return _rows(
        ("Parameter", "Default"),
        [*_settings("dicom", DicomSettings), *_settings("site.pacs", Pacs)],
    )


def _settings(section: str, cls: Any) -> Iterator[tuple[str, str]]:
    for field in attrs.fields(cls):
        default = "required" if field.default is attrs.NOTHING else f"`{field.default}`"
        yield f"`{section}.{field.name}`", default


def upper_layer() -> str:
    """Write the state machine: the action of each event in each state (PS3.8 Table 9-10)."""
    return _rows(
        ("Event", *(state.value for state in states.State)),
        [
            (
                f"{happening.value}: {happening.name.lower().replace('_', ' ')}",
                *(states.TRANSITIONS.get((happening, state), "") for state in states.State),
            )
            for happening in states.Happening
        ],
    )


def _tick(value: bool) -> str:
    return "yes" if value else "no"


# -- codes and metrics -----------------------------------------------------------------------------


def feed_errors() -> str:
    """List the coded errors of the feed."""
    return _rows(
        ("Code", "Erreur", "Réessayée d'elle-même"),
        [(cls.code, cls.title, "oui" if cls.retry else "non") for cls in _errors(errors.FeedError)],
    )


def image_errors() -> str:
    """List the coded errors of image requests, with their HTTP status."""
    return _rows(
        ("Code", "HTTP", "Erreur"),
        [(cls.code, cls.http_status, cls.title) for cls in _errors(errors.ImageError)],
    )


def _errors(base: type[errors.DrimboxError]) -> list[type[errors.DrimboxError]]:
    known = [
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, base) and "title" in vars(cls)
    ]
    rest = [errors.DrimboxError] if base is errors.FeedError else []
    return sorted((*known, *rest), key=lambda cls: (int(cls.code[1:]), cls.http_status or 0, cls.title))


def prometheus() -> str:
    """List the metrics, with their kind and their labels."""
    found = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    rows = [
        (
            f"`{each._name}{'_total' if each._type == 'counter' else ''}`",
            each._type,
            ", ".join(f"`{label}`" for label in each._labelnames),
            each._documentation,
        )
        for each in found
    ]
    return _rows(("Métrique", "Type", "Étiquettes", "Sens"), sorted(rows))


# -- administration --------------------------------------------------------------------------------


def admin_routes() -> str:
    """List the routes of the admin listener, with the role that may call them."""
    return _rows(
        ("Route", "Role", "What it does", "Keys"),
        [
            (
                f"`{each.method} {each.path}`",
                each.role.value if each.role is not None else "anybody",
                each.does,
                " ".join(f"`{key}`" for key in each.takes.split()),
            )
            for each in routes.ROUTES
        ],
    )


TABLES: Final[dict[str, Callable[[], str]]] = {
    "storage-classes": storage_classes,
    "received-syntaxes": received_syntaxes,
    "web-syntaxes": web_syntaxes,
    "character-sets": character_sets,
    "associations": associations,
    "upper-layer": upper_layer,
    "feed-errors": feed_errors,
    "image-errors": image_errors,
    "metrics": prometheus,
    "admin-routes": admin_routes,
}


def main() -> None:
    """Rewrite the tables of every document."""
    for path in sorted(DOCUMENTS.glob("*.md")):
        text = path.read_text("utf-8")
        filled = fill(text)
        if filled != text:
            path.write_text(filled, "utf-8")
            print(path.name)


if __name__ == "__main__":
    main()
