"""A whole Explicit VR Big Endian data set rewritten as Explicit VR Little Endian.

The syntax is retired and may not travel on the web side (requirements.md 3.9), but old archives still
hold it. Heads are rewritten and numbers turned, each VR by its own width (PS3.5 7.3); lengths stay what
they were, since both encodings give every value the same size. OW, pixel data included, is a row of
16-bit words whatever the pixel's size. What stands in UN is not known to be numbers, and is left alone;
content of UN with undefined length is Implicit VR Little Endian already (PS3.5 6.2.2).
"""

from __future__ import annotations

import struct
from typing import Final

import numpy

from drimbox.dicom.elements import (
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
from drimbox.dicom.outline import outline

_WIDTHS: Final = {
    b"AT": 2, b"US": 2, b"SS": 2, b"OW": 2,
    b"UL": 4, b"SL": 4, b"FL": 4, b"OL": 4, b"OF": 4,
    b"FD": 8, b"OD": 8, b"SV": 8, b"UV": 8, b"OV": 8,
}  # fmt: skip
_HEAD_BIG: Final = struct.Struct(">HHI")
_HEAD: Final = struct.Struct("<HHI")
_SHORT_BIG: Final = struct.Struct(">HH2sH")
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sHI")


def to_little(data: Buffer) -> bytes:
    """Return the same data set in Explicit VR Little Endian.

    Raises `DatasetRefused` for what is not a big endian data set, whole and within bounds.
    """
    # Checks depth, truncation, and where sequences of undefined length end.
    outline(data, Encoding.EXPLICIT_BIG)
    out = bytearray(data)
    try:
        _turn(memoryview(data), out)
    except struct.error:
        raise DatasetRefused("the data set ends inside an element") from None
    return bytes(out)


def _turn(data: memoryview, out: bytearray) -> None:
    """Rewrite heads and numbers in place, in one pass over all levels."""
    #: (is a sequence, offset where it ends or None for a delimiter) of what is open; the root first.
    stack: list[tuple[bool, int | None]] = [(False, len(data))]
    position = 0
    while True:
        while stack and stack[-1][1] == position:
            stack.pop()
        if not stack:
            return
        in_sequence, end = stack[-1]
        if end is not None and position > end:
            raise DatasetRefused("an element passes the end of what holds it")
        if in_sequence:
            position = _item(data, out, position, stack)
            continue
        group, number, vr, length = _SHORT_BIG.unpack_from(data, position)
        tag = group << 16 | number
        if tag == ITEM_END:
            _HEAD.pack_into(out, position, group, number, 0)
            _close(stack, tag)
            position += 8
            continue
        if vr in SHORT_VRS:
            _SHORT.pack_into(out, position, group, number, vr, length)
            position += 8
        else:
            length = struct.unpack_from(">I", data, position + 8)[0]
            _LONG.pack_into(out, position, group, number, vr, 0, length)
            position += 12
        if vr == b"SQ":
            _open(stack, True, position, length)
        elif length == UNDEFINED:
            if vr != b"UN":
                raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
            position = _past_unknown(data, position)
        else:
            _swap(out, position, length, _WIDTHS.get(vr, 1))
            position += length


def _item(data: memoryview, out: bytearray, position: int, stack: list[tuple[bool, int | None]]) -> int:
    group, number, length = _HEAD_BIG.unpack_from(data, position)
    _HEAD.pack_into(out, position, group, number, length)
    tag = group << 16 | number
    if tag == SEQUENCE_END:
        _close(stack, tag)
    elif tag == ITEM:
        _open(stack, False, position + 8, length)
    else:
        raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
    return position + 8


def _open(stack: list[tuple[bool, int | None]], is_sequence: bool, start: int, length: int) -> None:
    if len(stack) > 2 * MAX_DEPTH:
        raise DatasetRefused(f"sequences nest deeper than {MAX_DEPTH}")
    stack.append((is_sequence, None if length == UNDEFINED else start + length))


def _close(stack: list[tuple[bool, int | None]], tag: int) -> None:
    if stack.pop()[1] is not None:
        raise DatasetRefused(f"{tag_text(tag)} where none belongs")


def _past_unknown(data: memoryview, position: int) -> int:
    """Return the offset after UN of undefined length, whose content is not turned."""
    # `outline` has checked its form; only sequences and items of undefined length need counting.
    depth, place = 1, position
    while depth:
        group, number, length = _HEAD.unpack_from(data, place)
        tag = group << 16 | number
        place += 8
        if tag in (SEQUENCE_END, ITEM_END):
            depth -= 1
        elif length == UNDEFINED:
            depth += 1
        else:
            place += length
    return place


def _swap(out: bytearray, start: int, length: int, width: int) -> None:
    """Turn `length` bytes of numbers; a tail shorter than a number is left alone."""
    if width == 1 or length < width:
        return
    if start + length > len(out):
        raise DatasetRefused("the data set ends inside an element")
    numbers = numpy.frombuffer(out, dtype=f">u{width}", count=length // width, offset=start)
    numbers.byteswap(inplace=True)
