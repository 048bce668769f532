"""The patient's identifiers in an image: PatientID's own domain and Other Patient IDs Sequence.

An image names its patient by the local identifier of the hospital, and, when the PACS knows it, by the
INS: an item of (0010,1002) whose domain, (0010,0024) > (0040,0032), is one of the INS (interfaces.md 3.2).
Both are read from the bytes of the sequence's value once they are all there; they are few and short.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import attrs

from drimbox.dicom.elements import (
    ITEM,
    ITEM_END,
    MAX_DEPTH,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    DatasetRefused,
    tag_text,
)
from drimbox.dicom.nesting import BIG, IMPLICIT_BIG_HEAD, IMPLICIT_LITTLE_HEAD, LITTLE, is_vr, no_vr
from drimbox.model import INS_ISSUER, INS_OIDS, Identifier

PATIENT_ID: Final = 0x00100020
QUALIFIERS: Final = 0x00100024
OTHER_IDS: Final = 0x00101002
_UNIVERSAL_ID: Final = 0x00400032
#: Longest value of the sequences read here, bytes; an item takes about 150.
MAX_SEQUENCE: Final = 32 * 1024

#: Tag to (start, end, whether its content is Implicit VR, length in its head).
_Members = dict[int, tuple[int, int, bool, int]]


@attrs.frozen
class PatientIdItem:
    """One item of Other Patient IDs Sequence."""

    #: (0010,0020), as ASCII or Latin-1, without padding.
    value: str
    #: (0010,0024) > (0040,0032), empty when the item does not say.
    authority: str
    #: The item as it stands, head and delimiter included.
    raw: bytes


def read_items(value: bytes, *, implicit: bool, big: bool = False) -> list[PatientIdItem]:
    """Read the value of Other Patient IDs Sequence, its delimiter left out or not.

    Raises `DatasetRefused` for garbage.
    """
    reader = _Reader(value, big)
    return [
        PatientIdItem(reader.text(members.get(PATIENT_ID)), reader.authority(members), value[start:end])
        for start, end, members in reader.items(0, len(value), UNDEFINED, implicit, 1)[0]
    ]


def read_authority(value: bytes, *, implicit: bool, big: bool = False) -> str:
    """Read the value of Issuer of Patient ID Qualifiers Sequence: its Universal Entity ID or nothing."""
    reader = _Reader(value, big)
    items = reader.items(0, len(value), UNDEFINED, implicit, 1)[0]
    return reader.text(items[0][2].get(_UNIVERSAL_ID)) if items else ""


def ins_among(items: Iterable[tuple[str, str, Collection[str]]]) -> tuple[Identifier, ...]:
    """Find every INS among the items of Other Patient IDs Sequence (DB.SO.16).

    Each item is its PatientID, its issuer in words, and its authorities as OIDs. The domain tells an INS;
    without any, the issuer's words do, and the domain of what is returned is empty.
    """
    found = []
    for value, issuer, authorities in items:
        domain = next((each for each in authorities if each in INS_OIDS), "")
        if value and (domain or (not authorities and issuer.startswith(INS_ISSUER))):
            found.append(Identifier(value, domain))
    return tuple(found)


class _Reader:
    """Reads nested items that are wholly there; recursion is bounded by the depth."""

    def __init__(self, data: bytes, big: bool) -> None:
        self._data = data
        self._big = big

    def text(self, member: tuple[int, int, bool, int] | None) -> str:
        if member is None or member[3] == UNDEFINED:
            return ""
        return self._data[member[0] : member[1]].decode("latin-1").strip("\0 ")

    def authority(self, members: _Members) -> str:
        found = members.get(QUALIFIERS)
        if found is None:
            return ""
        start, end, implicit, length = found
        items = self.items(start, end, length, implicit, 2)[0]
        return self.text(items[0][2].get(_UNIVERSAL_ID)) if items else ""

    def items(
        self, position: int, limit: int, length: int, implicit: bool, depth: int
    ) -> tuple[list[tuple[int, int, _Members]], int]:
        """Return each item (start, end, members) and where the sequence ends.

        One of undefined length ends at its delimiter, or at `limit`.
        """
        if depth > MAX_DEPTH:
            raise DatasetRefused(f"sequences nest deeper than {MAX_DEPTH}")
        found: list[tuple[int, int, _Members]] = []
        while position < limit:
            tag, _, start, size = self._bare(position, limit, implicit)
            if tag == SEQUENCE_END and length == UNDEFINED:
                return found, start
            if tag != ITEM:
                raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
            open_ended = size == UNDEFINED
            if not open_ended and start + size > limit:
                raise DatasetRefused("an item passes the end of its sequence")
            end = limit if open_ended else start + size
            members, end = self._members(start, end, implicit, depth, open_ended)
            found.append((position, end, members))
            position = end
        return found, position

    def _members(
        self, position: int, limit: int, implicit: bool, depth: int, open_ended: bool
    ) -> tuple[_Members, int]:
        found: _Members = {}
        while position < limit:
            tag, inside, start, length = self._head(position, limit, implicit)
            if tag == ITEM_END and open_ended:
                return found, start
            if tag >= ITEM:
                raise DatasetRefused(f"{tag_text(tag)} inside an item")
            if tag in found:
                raise DatasetRefused(f"{tag_text(tag)} stands twice")
            if length == UNDEFINED:
                end = self.items(start, limit, UNDEFINED, inside, depth + 1)[1]
            else:
                end = start + length
            if end > limit:
                raise DatasetRefused(f"{tag_text(tag)} passes the end of what holds it")
            found[tag] = (start, end, inside, length)
            position = end
        if open_ended:
            raise DatasetRefused("an item without its end")
        return found, position

    def _head(self, position: int, limit: int, implicit: bool) -> tuple[int, bool, int, int]:
        """Return tag, whether its content is implicit, where its value starts, its length."""
        bare = self._bare(position, limit, implicit)
        tag, _, start, _ = bare
        if implicit or tag >= ITEM:
            return bare
        head, long_length = BIG if self._big else LITTLE
        _, _, vr, length = head(self._data, position)
        if vr not in SHORT_VRS:
            if not is_vr(vr):
                raise no_vr(tag)
            if start + 4 > limit:
                raise DatasetRefused(f"{tag_text(tag)} is cut short")
            length = long_length(self._data, start)[0]
            start += 4
        # What nobody knew the VR of was written in Implicit VR Little Endian (PS3.5 6.2.2).
        return tag, vr == b"UN", start, length

    def _bare(self, position: int, limit: int, implicit: bool) -> tuple[int, bool, int, int]:
        if position + 8 > limit:
            raise DatasetRefused("a sequence ends inside an element")
        read = IMPLICIT_BIG_HEAD if self._big and not implicit else IMPLICIT_LITTLE_HEAD
        group, number, length = read(self._data, position)
        return group << 16 | number, implicit, position + 8, length
