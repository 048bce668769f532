"""Whole objects as JSON text, for the columns that hold what must come back exactly as it was.

Bytes are base64, instants ISO 8601 in UTC; JSON is ASCII, sorted and without blanks, so that the same
object always gives the same text (the audit chain hashes it) and every database stores it unchanged.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, TypeVar

import cattrs

from drimbox.store.errors import StoreDamaged

T = TypeVar("T")

#: Longest free text kept of an error or of a peer's words, characters.
MAX_TEXT = 4000


def _write_instant(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("an instant without time zone cannot be stored")
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _read_instant(value: Any, _: Any) -> datetime:
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError("instant without time zone")
    return instant


def _strict(kind: type) -> Any:
    """Refuse a value of another JSON type instead of converting it: damage must not pass for data."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{kind.__name__} expected")
        return value

    return structure


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(bytes, lambda value: base64.b64encode(value).decode("ascii"))
    converter.register_structure_hook(bytes, lambda value, _: base64.b64decode(value, validate=True))
    converter.register_unstructure_hook(datetime, _write_instant)
    converter.register_structure_hook(datetime, _read_instant)
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _strict(kind))
    return converter


_CONVERTER = _converter()


def to_plain(value: Any) -> Any:
    """Turn attrs objects into what JSON can say."""
    return _CONVERTER.unstructure(value)


def from_plain(value: Any, cls: type[T]) -> T:
    """Build a `cls` from what `to_plain` made; `StoreDamaged` when it does not fit."""
    try:
        return _CONVERTER.structure(value, cls)
    except Exception as error:  # cattrs raises groups, and hooks whatever the value provokes
        # Not chained: the original quotes values, which may be a patient's.
        raise StoreDamaged(f"Objet {cls.__name__} illisible ({type(error).__name__}).") from None


def canonical(value: Any) -> str:
    """Write plain values as the one JSON text they have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def dumps(value: Any) -> str:
    """Write an attrs object as JSON text."""
    return canonical(to_plain(value))


def loads(data: str, cls: type[T]) -> T:
    """Read back what `dumps` wrote; `StoreDamaged` when it does not fit `cls`."""
    try:
        plain = json.loads(data)
    except ValueError:
        raise StoreDamaged(f"Objet {cls.__name__} illisible (JSON).") from None
    return from_plain(plain, cls)


def clip(value: str, limit: int = MAX_TEXT) -> str:
    """Bound a free text and take out what a text column cannot hold (NUL, lone surrogates)."""
    if len(value) > limit:
        value = value[: limit - 1] + "…"
    return value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
