"""What an entry says of its study, its orders and its structure."""

from __future__ import annotations

from drimbox.conformance.xds import tables, types
from drimbox.conformance.xds.rim import RimObject


def references(entry: RimObject) -> dict[str, set[tuple[str, str]]]:
    """Return (identifier, authority) of referenceIdList by the last word of their type."""
    found: dict[str, set[tuple[str, str]]] = {}
    for value in entry.slots.get(tables.REFERENCES, ()):
        parsed = types.reference(value)
        if parsed is not None:
            identifier, authority, kind = parsed
            found.setdefault(kind.rpartition(":")[2], set()).add((types.unescaped(identifier), authority))
    return found


def institutions(entry: RimObject) -> set[str]:
    """Return the structures that the authors of a manifest work for."""
    return {
        place
        for code in entry.coded(tables.KOS.author)
        for value in code.slots.get("authorInstitution", ())
        if (place := types.institution(value)) is not None
    }
