"""The top level of a whole data set as a list of places, without reading a value.

To replace the pixels of an instance and nothing else, one must know where each element of the root
stands; what is inside sequences is jumped over. A sequence of known length is one jump; one of undefined
length is walked, for only its content tells where it ends. The walk is a loop over a stack of its own,
within bounds on depth and on the number of elements, and never leaves the buffer.

`spliced` is the counterpart: the same bytes with some elements replaced, added or left out. What is not
named keeps its very bytes, private elements, overlays and the order they came in included.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

import attrs

from drimbox.dicom.elements import (
    FIRST_GROUP,
    ITEM,
    ITEM_END,
    MAX_DEPTH,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    Buffer,
    DatasetRefused,
    Encoding,
    tag_text,
)

#: Elements of the root beyond which a data set is taken for an attack; a real one has some hundreds.
MAX_ELEMENTS: Final = 20_000


@attrs.frozen(slots=True)
class Element:
    """Where one element of the root stands."""

    tag: int
    #: Two letters, empty under Implicit VR.
    vr: bytes
    #: Offset of its head, of its value, and of what follows it (its delimiter included).
    start: int
    value: int
    end: int
    #: True when its length is undefined: a sequence, or fragments.
    undefined: bool


class _Heads:
    """How the heads of one encoding are read; `struct.error` says that the buffer ended."""

    def __init__(self, data: Buffer, encoding: Encoding) -> None:
        order = ">" if encoding is Encoding.EXPLICIT_BIG else "<"
        self._data = data
        self._implicit = encoding is Encoding.IMPLICIT_LITTLE
        self._short = struct.Struct(order + "HH2sH").unpack_from
        self._long = struct.Struct(order + "I").unpack_from
        self._plain = struct.Struct(order + "HHI").unpack_from
        # Content of UN with undefined length is Implicit VR Little Endian everywhere (PS3.5 6.2.2).
        self._unknown = struct.Struct("<HHI").unpack_from

    def item(self, position: int, unknown: bool) -> tuple[int, int]:
        """Read the head of an item or delimiter: tag and length."""
        group, number, length = (self._unknown if unknown else self._plain)(self._data, position)
        return group << 16 | number, length

    def element(self, position: int, unknown: bool) -> tuple[int, bytes, int, int]:
        """Read the head of an element: tag, VR, offset of the value, length."""
        if unknown or self._implicit:
            group, number, length = (self._unknown if unknown else self._plain)(self._data, position)
            return group << 16 | number, b"", position + 8, length
        group, number, vr, length = self._short(self._data, position)
        if vr in SHORT_VRS:
            return group << 16 | number, vr, position + 8, length
        if group == 0xFFFE:
            return group << 16 | number, b"", position + 8, self.item(position, False)[1]
        if not (vr.isalpha() and vr.isupper()):
            raise DatasetRefused(f"{tag_text(group << 16 | number)} has no value representation")
        return group << 16 | number, vr, position + 12, self._long(self._data, position + 8)[0]


def outline(
    data: Buffer, encoding: Encoding, *, max_elements: int = MAX_ELEMENTS, max_depth: int = MAX_DEPTH
) -> list[Element]:
    """List the elements of the root, in the order they stand, none twice.

    Raises `DatasetRefused` for what is not a data set of that encoding, for truncation, for too many
    elements and for sequences nested too deep.
    """
    heads = _Heads(data, encoding)
    found: list[Element] = []
    seen: set[int] = set()
    position, size = 0, len(data)
    try:
        while position < size:
            tag, vr, value, length = heads.element(position, False)
            if tag >> 16 < FIRST_GROUP or tag >> 16 >= 0xFFFE:
                raise DatasetRefused(f"{tag_text(tag)} does not belong in the root of a data set")
            if tag in seen:
                raise DatasetRefused(f"{tag_text(tag)} stands twice")
            if len(found) >= max_elements:
                raise DatasetRefused(f"more than {max_elements} elements")
            if length == UNDEFINED:
                end = _past(heads, value, size, vr == b"UN", max_depth)
            else:
                end = value + length
            if end > size:
                raise DatasetRefused("the data set ends inside an element")
            found.append(Element(tag, vr, position, value, end, length == UNDEFINED))
            seen.add(tag)
            position = end
    except struct.error:
        raise DatasetRefused("the data set ends inside an element") from None
    return found


def _past(heads: _Heads, position: int, size: int, unknown: bool, max_depth: int) -> int:
    """Return the offset after the delimiter of the sequence (or fragments) whose content starts here."""
    #: One entry for each open sequence of undefined length: [inside an item, its content is UN's].
    stack = [[False, unknown]]
    while stack:
        in_item, inside_unknown = stack[-1]
        if not in_item:
            tag, length = heads.item(position, inside_unknown)
            position += 8
            if tag == SEQUENCE_END:
                stack.pop()
            elif tag != ITEM:
                raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
            elif length == UNDEFINED:
                stack[-1][0] = True
            else:
                position += length
        else:
            tag, vr, value, length = heads.element(position, inside_unknown)
            position = value
            if tag == ITEM_END:
                stack[-1][0] = False
            elif tag >> 16 >= 0xFFFE:
                raise DatasetRefused(f"{tag_text(tag)} inside an item")
            elif length != UNDEFINED:
                position += length
            elif len(stack) >= max_depth:
                raise DatasetRefused(f"sequences nest deeper than {max_depth}")
            else:
                stack.append([False, inside_unknown or vr == b"UN"])
        if position > size:
            raise DatasetRefused("a sequence passes the end of the data set")
    return position


def items_of(data: Buffer, sequence: Element) -> list[tuple[int, int]]:
    """Return where the content of each item of a sequence starts and ends (Explicit VR Little Endian).

    `sequence` comes from `outline`, which has checked it only if its length is undefined. Raises
    `DatasetRefused`.
    """
    heads = _Heads(data, Encoding.EXPLICIT_LITTLE)
    found: list[tuple[int, int]] = []
    position, size = sequence.value, sequence.end
    try:
        while position < size:
            tag, length = heads.item(position, False)
            position += 8
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or len(found) >= MAX_ELEMENTS:
                raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
            if length != UNDEFINED:
                found.append((position, position + length))
                position += length
                continue
            start = position
            while (head := heads.element(position, False))[0] != ITEM_END:
                _, vr, value, length = head
                if length == UNDEFINED:
                    position = _past(heads, value, size, vr == b"UN", MAX_DEPTH)
                else:
                    position = value + length
            found.append((start, position))
            position += 8
    except struct.error:
        raise DatasetRefused("a sequence ends inside an item") from None
    if position > size:
        raise DatasetRefused("an item passes the end of its sequence")
    return found


def spliced(
    data: Buffer, elements: list[Element], changes: Mapping[int, list[Buffer] | None]
) -> list[Buffer]:
    """Return the data set, in pieces, with the elements of `changes` replaced.

    A change is the whole new element, head included, in one or more pieces; None leaves the element out.
    New ones go before the first element with a larger tag.
    """
    view = memoryview(data)
    out: list[Buffer] = []
    waiting = sorted(tag for tag, pieces in changes.items() if pieces is not None)
    kept = 0
    for element in elements:
        cut = False
        while waiting and waiting[0] <= element.tag:
            if not cut:
                out.append(view[kept : element.start])
                kept, cut = element.start, True
            out.extend(changes[waiting.pop(0)] or ())
        if element.tag in changes:
            if not cut:
                out.append(view[kept : element.start])
            kept = element.end
    out.append(view[kept:])
    for tag in waiting:
        out.extend(changes[tag] or ())
    return [piece for piece in out if len(piece)]


def written(tag: int, vr: bytes, value: bytes) -> list[Buffer]:
    """Write one element in Explicit VR Little Endian; text is padded with a blank, the rest with NUL."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    group, number = tag >> 16, tag & 0xFFFF
    if vr in SHORT_VRS:
        return [struct.pack("<HH2sH", group, number, vr, len(value)) + value]
    return [struct.pack("<HH2sHI", group, number, vr, 0, len(value)), value]
