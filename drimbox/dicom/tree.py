"""A whole small data set as nested dictionaries, within limits fixed beforehand.

Manifests, key image notes and rejection notes come from other systems, and are small trees of short
values. A general reader builds an object for each element and recurses into sequences, so that a few
megabytes written for the purpose cost gigabytes, or the stack. This one counts what it makes, recurses
nowhere, and leaves the values as bytes: whoever reads one knows its VR from the standard.

Only Explicit VR Little Endian is walked; Implicit VR goes through the streaming converter first, so
that both encodings meet the same checks.
"""

from __future__ import annotations

import struct
from typing import Final

from drimbox.dicom.elements import (
    ITEM,
    ITEM_END,
    MAX_DEPTH,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    DatasetRefused,
    Encoding,
    encoding_of,
    tag_text,
)
from drimbox.dicom.explicit import ImplicitToExplicit

_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_LENGTH = struct.Struct("<I").unpack_from
_HEAD = struct.Struct("<HHI").unpack_from

#: Enough for a manifest of some 30,000 instances, delimiters counted.
MAX_ELEMENTS: Final = 500_000


class Item:
    """A data set: by tag, the bytes of its values and the items of its sequences."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[int, bytes | list[Item]] = {}

    def value(self, tag: int) -> bytes | None:
        """Return the bytes of a value, None when it is absent."""
        found = self.members.get(tag)
        return found if isinstance(found, bytes) else None

    def items(self, tag: int) -> list[Item]:
        """Return the items of a sequence, none when it is absent."""
        found = self.members.get(tag)
        return found if isinstance(found, list) else []

    def first(self, tag: int) -> Item:
        """Return the first item of a sequence, an empty one when there is none."""
        found = self.items(tag)
        return found[0] if found else Item()

    def text(self, tag: int) -> str:
        """Return an ASCII value (UI, CS, DA, TM, IS ...) without its padding; empty when absent."""
        found = self.members.get(tag)
        return found.decode("latin-1").strip("\0 \t\r\n") if isinstance(found, bytes) else ""


def read_tree(
    data: bytes, transfer_syntax_uid: str, max_elements: int = MAX_ELEMENTS, max_depth: int = MAX_DEPTH
) -> Item:
    """Read a data set without file meta.

    Raises `DatasetRefused` for garbage, truncation, big endian and deflated syntaxes, more than
    `max_elements` elements and items in all, or sequences nested deeper than `max_depth`.
    """
    encoding = encoding_of(transfer_syntax_uid)
    if encoding is Encoding.EXPLICIT_BIG:
        raise DatasetRefused("big endian data sets are not read")
    if encoding is Encoding.IMPLICIT_LITTLE:
        converter = ImplicitToExplicit(max_depth)
        data = converter.feed(data) + converter.finish()
    return _Walk(data, max_elements, max_depth).run()


class _Walk:
    """One pass over the bytes; `_open` holds what is being read: an item, or the items of a sequence."""

    def __init__(self, data: bytes, max_elements: int, max_depth: int) -> None:
        self._data = data
        self._left = max_elements
        self._max_open = 2 * max_depth + 1
        self._root = Item()
        #: (item or list of items, offset where it ends or None for a delimiter, offset never to pass)
        self._open: list[tuple[Item | list[Item], int | None, int]] = [(self._root, len(data), len(data))]

    def run(self) -> Item:
        position = 0
        try:
            while True:
                while self._open and self._open[-1][1] == position:
                    self._open.pop()
                if not self._open:
                    return self._root
                self._left -= 1
                if self._left < 0:
                    raise DatasetRefused("too many elements")
                target, _, limit = self._open[-1]
                if isinstance(target, Item):
                    position = self._element(target, position, limit)
                else:
                    position = self._item(target, position, limit)
        except struct.error:
            raise DatasetRefused("the data set ends inside an element") from None

    def _element(self, target: Item, position: int, limit: int) -> int:
        group, number, vr, length = _EXPLICIT(self._data, position)
        tag: int = group << 16 | number
        start = position + 8
        if tag == ITEM_END:
            return self._delimiter(start)
        if group >= 0xFFFE:
            raise DatasetRefused(f"{tag_text(tag)} inside a data set")
        if vr not in SHORT_VRS:
            if not (vr.isalpha() and vr.isupper()):
                raise DatasetRefused(f"{tag_text(tag)} has no value representation")
            length = _LENGTH(self._data, start)[0]
            start += 4
        if tag in target.members:
            raise DatasetRefused(f"{tag_text(tag)} stands twice")
        if vr == b"SQ":
            items: list[Item] = []
            target.members[tag] = items
            return self._descend(items, start, length, limit)
        end: int = start + length
        if length == UNDEFINED or end > limit:
            raise DatasetRefused(f"{tag_text(tag)} passes the end of what holds it")
        target.members[tag] = self._data[start:end]
        return end

    def _item(self, items: list[Item], position: int, limit: int) -> int:
        group, number, length = _HEAD(self._data, position)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return self._delimiter(position + 8)
        if tag != ITEM:
            raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
        item = Item()
        items.append(item)
        return self._descend(item, position + 8, length, limit)

    def _descend(self, target: Item | list[Item], start: int, length: int, limit: int) -> int:
        if len(self._open) >= self._max_open:
            raise DatasetRefused("sequences nest too deep")
        end = None if length == UNDEFINED else start + length
        if end is not None and end > limit:
            raise DatasetRefused("a sequence passes the end of what holds it")
        self._open.append((target, end, limit if end is None else end))
        return start

    def _delimiter(self, position: int) -> int:
        if self._open[-1][1] is not None:
            raise DatasetRefused("a delimiter where none belongs")
        self._open.pop()
        return position
