"""The open sequences of undefined length of a data set that streams by (PS3.5 7.5).

A sequence or item of known length is jumped over without looking inside. One of undefined length has to be
walked, because only its content tells where it ends: what is remembered is one entry for each open
sequence. Nothing here recurses, and the depth is bounded.
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
    Buffer,
    DatasetRefused,
    tag_text,
)

#: Readers of an explicit head (group, element, VR, short length) and of a long length.
LITTLE: Final = (struct.Struct("<HH2sH").unpack_from, struct.Struct("<I").unpack_from)
BIG: Final = (struct.Struct(">HH2sH").unpack_from, struct.Struct(">I").unpack_from)
#: Readers of an implicit head, which items and delimiters have under any encoding.
IMPLICIT_LITTLE_HEAD: Final = struct.Struct("<HHI").unpack_from
IMPLICIT_BIG_HEAD: Final = struct.Struct(">HHI").unpack_from

_UPPER: Final = frozenset(range(0x41, 0x5B))


def is_vr(vr: bytes) -> bool:
    """Say whether two bytes can be a value representation: two capital letters."""
    return vr[0] in _UPPER and vr[1] in _UPPER


def no_vr(tag: int) -> DatasetRefused:
    """Return the refusal of an element without value representation."""
    return DatasetRefused(f"{tag_text(tag)} has no value representation")


class Nesting:
    """Passes the heads inside sequences of undefined length; `big` is for Explicit VR Big Endian."""

    def __init__(self, *, big: bool = False, max_depth: int = MAX_DEPTH) -> None:
        self._big = big
        self._max_depth = max_depth
        #: One entry for each open sequence: [inside an item, its items are implicit].
        self.stack: list[list[bool]] = []

    def push(self, implicit: bool) -> None:
        """Enter a sequence of undefined length. Raises `DatasetRefused` when it nests too deep."""
        if len(self.stack) >= self._max_depth:
            raise DatasetRefused(f"sequences nest deeper than {self._max_depth}")
        self.stack.append([False, implicit])

    def step(self, data: Buffer, position: int, end: int, reach: int) -> int | None:
        """Pass the head at `position`, of which 8 bytes are there; return where the next one stands.

        None when the head is cut short by `end`. The next one may stand behind `end`, but not behind
        `reach`. Raises `DatasetRefused` for anything else than items, elements and delimiters in place.
        """
        in_item, implicit = self.stack[-1]
        # Items and delimiters have no VR under any encoding (PS3.5 7.5).
        read = IMPLICIT_BIG_HEAD if self._big and not implicit else IMPLICIT_LITTLE_HEAD
        group, number, length = read(data, position)
        tag: int = group << 16 | number
        position += 8
        if not in_item:
            if tag == SEQUENCE_END:
                self.stack.pop()
                return position
            if tag != ITEM:
                raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
            if length == UNDEFINED:
                self.stack[-1][0] = True
                return position
        elif tag == ITEM_END:
            self.stack[-1][0] = False
            return position
        else:
            if group >= 0xFFFE:
                raise DatasetRefused(f"{tag_text(tag)} inside an item")
            vr = b""
            if not implicit:
                head, long_length = BIG if self._big else LITTLE
                _, _, vr, length = head(data, position - 8)
                if vr not in SHORT_VRS:
                    if not is_vr(vr):
                        raise no_vr(tag)
                    if position + 4 > end:
                        return None
                    length = long_length(data, position)[0]
                    position += 4
            if length == UNDEFINED:
                self.push(implicit or vr == b"UN")
                return position
        if position + length > reach:
            raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        following: int = position + length
        return following
