"""Encapsulated pixel data: from fragments to frames and back (PS3.5 A.4).

Pixel data of an encapsulated syntax is an offset table and a row of fragments. Nothing in a fragment
says which frame it belongs to; in the order of trust: one frame takes them all; as many fragments as
frames go one to one; an offset table, basic or extended, names the first fragment of each frame; without
one, a fragment that opens an image after one that closed an image starts a frame. Whatever does not come
out at exactly the number of frames of the header is refused: a frame must never be joined with another's
bytes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Final

from drimbox.dicom.elements import ITEM, SEQUENCE_END, UNDEFINED, Buffer, DatasetRefused
from drimbox.dicom.streams import ends_image

_HEAD: Final = struct.Struct("<HHI")
_PIXEL_DATA: Final = (0x7FE0, 0x0010)
#: First bytes of a JPEG or JPEG-LS image, and of a JPEG 2000 codestream.
_STARTS: Final = (b"\xff\xd8", b"\xff\x4f")
#: Fragments of one instance beyond which it is taken for an attack.
MAX_FRAGMENTS: Final = 200_000


def _items(data: memoryview, position: int, end: int) -> list[tuple[int, memoryview]]:
    """List (offset of the item, its value), the offset table included, up to the delimiter."""
    items: list[tuple[int, memoryview]] = []
    while True:
        if position + 8 > end:
            raise DatasetRefused("pixel data ends inside a fragment")
        group, number, length = _HEAD.unpack_from(data, position)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return items
        if tag != ITEM or length == UNDEFINED or position + 8 + length > end:
            raise DatasetRefused("pixel data holds something else than fragments")
        if len(items) > MAX_FRAGMENTS:
            raise DatasetRefused(f"more than {MAX_FRAGMENTS} fragments")
        items.append((position, data[position + 8 : position + 8 + length]))
        position += 8 + length


def split(
    data: Buffer, start: int, end: int, frames: int, extended: Sequence[int] | None = None
) -> list[list[memoryview]]:
    """Return the fragments of each frame, from the value of (7FE0,0010) between `start` and `end`.

    `extended` is the Extended Offset Table (7FE0,0001), None when there is none. Raises `DatasetRefused`.
    """
    items = _items(memoryview(data), start, end)
    if not items:
        raise DatasetRefused("pixel data without offset table")
    table, fragments = items[0][1], items[1:]
    if len(fragments) < frames:
        raise DatasetRefused(f"{frames} frames in {len(fragments)} fragments")
    values = [value for _, value in fragments]
    if frames == 1:
        return [values]
    if len(fragments) == frames:
        return [[value] for value in values]
    offsets = extended
    if not offsets:
        if len(table) % 4:
            raise DatasetRefused("offset table of an odd length")
        offsets = struct.unpack(f"<{len(table) // 4}I", table)
    starts = _from_table(fragments, offsets) if offsets else _from_content(values)
    if len(starts) != frames:
        raise DatasetRefused(f"{frames} frames, {len(starts)} found in {len(fragments)} fragments")
    edges = [*starts, len(values)]
    return [values[first:last] for first, last in itertools.pairwise(edges)]


def _from_table(fragments: list[tuple[int, memoryview]], offsets: Sequence[int]) -> list[int]:
    """Turn offsets of first fragments into their indices; they must rise and meet fragments."""
    base = fragments[0][0]
    index = {position - base: number for number, (position, _) in enumerate(fragments)}
    starts = [index.get(offset, -1) for offset in offsets]
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        raise DatasetRefused("the offset table does not match the fragments")
    return starts


def _from_content(values: list[memoryview]) -> list[int]:
    """Find the fragments that open an image after the one before has closed its own."""
    starts = []
    closed = True
    for number, value in enumerate(values):
        if closed and bytes(value[:2]) in _STARTS:
            starts.append(number)
        closed = ends_image(value)
    if not starts or starts[0] != 0:
        raise DatasetRefused("the first fragment does not open an image")
    return starts


def joined(fragments: Sequence[memoryview]) -> Buffer:
    """Return the bytes of one frame, copied only when it is in several fragments."""
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


def encapsulated(frames: Sequence[Buffer]) -> list[Buffer]:
    """Write (7FE0,0010) with one fragment a frame, in pieces.

    The offset table is filled in for several frames, and left empty for one, and where 32 bits cannot
    say an offset (PS3.5 A.4). A frame of odd length gets one NUL.
    """
    out: list[Buffer] = [struct.pack("<HH2sHI", *_PIXEL_DATA, b"OB", 0, UNDEFINED)]
    offsets, position = [], 0
    for frame in frames:
        offsets.append(position)
        position += 8 + len(frame) + len(frame) % 2
    if len(frames) == 1 or position > UNDEFINED:
        offsets = []
    out.append(_HEAD.pack(ITEM >> 16, ITEM & 0xFFFF, 4 * len(offsets)))
    out.append(struct.pack(f"<{len(offsets)}I", *offsets))
    for frame in frames:
        odd = len(frame) % 2
        out.append(_HEAD.pack(ITEM >> 16, ITEM & 0xFFFF, len(frame) + odd))
        out.append(frame)
        if odd:
            out.append(b"\0")
    out.append(_HEAD.pack(SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0))
    return out
