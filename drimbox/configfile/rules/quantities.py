"""Numbers, durations and sizes."""

from __future__ import annotations

import math
import re

from drimbox.configfile.rules.values import Rejected, Rule, show

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

_DURATION = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*(ms|s|min|h|j|d)", re.ASCII)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": MINUTE, "h": HOUR, "j": DAY, "d": DAY}
_SIZE = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*(B|o|KiB|MiB|GiB|TiB|Kio|Mio|Gio|Tio)", re.ASCII)
_SIZE_UNITS = {"B": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB, "o": 1}


def _number(value: float) -> str:
    return f"{value:g}".replace(".", ",")


def amount(value: int) -> str:
    """Write a count, or a size in the largest unit that divides it: `32MiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def span(seconds: float) -> str:
    """Write a duration in the largest unit that divides it: `30s`, `5min`, `500ms`."""
    for unit, name in ((DAY, "j"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{_number(seconds / unit)}{name}"
    return f"{_number(seconds)}s" if seconds == 0 or seconds >= 1 else f"{_number(seconds * 1000)}ms"


def integer(low: int, high: int) -> Rule:
    """An integer from `low` to `high`, both allowed."""
    limits = f"de {low} à {high}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Rejected(f"{show(value)} n'est pas un nombre entier", f"écrire un entier {limits}")
        if not low <= value <= high:
            raise Rejected(f"{show(value)} n'est pas {limits}", f"écrire un entier {limits}")
        return value

    return Rule(f"entier {limits}", read)


def number(low: float, high: float) -> Rule:
    """A number, with or without decimals, from `low` to `high`, both allowed."""
    limits = f"de {_number(low)} à {_number(high)}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Rejected(f"{show(value)} n'est pas un nombre", f"écrire un nombre {limits}")
        if not low <= value <= high:  # false for NaN too
            raise Rejected(f"{show(value)} n'est pas {limits}", f"écrire un nombre {limits}")
        return float(value)

    return Rule(f"nombre {limits}", read)


#: Examples of each, as they are written.
_DURATIONS = {30: "30s", 300: "5min", 7200: "2h"}
_SIZES = {64 * 1024: "64KiB", 32 * 1024 * 1024: "32MiB", 2 * 1024**3: "2GiB"}


def _among(examples: dict[int, str], low: float, high: float) -> str:
    """Name the examples that may be written, if any."""
    named = [f'"{text}"' for value, text in examples.items() if low <= value <= high]
    if not named:
        return ""
    return ", par exemple " + " ou ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def duration(low: float, high: float) -> Rule:
    """Seconds, written as a number or as `"30s"`, `"5min"`, `"2h"`, `"500ms"`, `"1j"`."""
    mend = f"écrire une durée de {span(low)} à {span(high)}{_among(_DURATIONS, low, high)}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Rejected(f"{show(value)} n'est pas une durée", mend)
        if isinstance(value, str):
            found = _DURATION.fullmatch(value.strip())
            if found is None:
                raise Rejected(f"{show(value)} n'est pas une durée", mend)
            seconds = float(found[1].replace(",", ".")) * _DURATION_UNITS[found[2]]
        elif isinstance(value, int) and value.bit_length() > 64:
            seconds = math.inf
        else:
            seconds = float(value)
        if not low <= seconds <= high:  # false for NaN too
            raise Rejected(f"{show(value)} n'est pas entre {span(low)} et {span(high)}", mend)
        return seconds

    return Rule(f"durée de {span(low)} à {span(high)}", read)


def size(low: int, high: int) -> Rule:
    """Bytes, written as an integer or as `"32MiB"`, `"2GiB"`, `"512KiB"`."""
    mend = f"écrire une taille de {amount(low)} à {amount(high)}{_among(_SIZES, low, high)}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Rejected(f"{show(value)} n'est pas une taille", mend)
        if isinstance(value, str):
            found = _SIZE.fullmatch(value.strip())
            if found is None:
                raise Rejected(f"{show(value)} n'est pas une taille", mend)
            count = float(found[1].replace(",", ".")) * _SIZE_UNITS[found[2][0]]
            found_bytes = int(count) if count < 2**63 else 2**63
        else:
            found_bytes = value
        if not low <= found_bytes <= high:
            raise Rejected(f"{show(value)} n'est pas entre {amount(low)} et {amount(high)}", mend)
        return found_bytes

    return Rule(f"taille de {amount(low)} à {amount(high)}", read)
