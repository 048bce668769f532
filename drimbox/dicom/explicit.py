"""Turning an Implicit VR Little Endian data set into Explicit VR Little Endian while it streams.

A PACS may send Implicit VR Little Endian, the default of the DICOM network; a WADO-RS answer may not
carry it (DB.SO.41). Both encodings hold the same values in the same order: only the heads of the
elements differ. So nothing is decoded and nothing collected: each head is rewritten with its VR, each
value passes through as it comes, pixel data included. What is remembered is one frame for each open
sequence and item, and the cut end of a head.

Lengths of sequences and items change with their content, which has not come yet: all are written with
undefined length and delimiters (PS3.5 7.5), whatever they had. Elements whose value is a length of the
old encoding (group lengths, Length to End) are dropped; both are retired.

The VR comes from the dictionary. A private element is `UN`: its bytes stay what they were, and a reader
that knows the creator reads them as Implicit VR, which they are (PS3.5 6.2.2). A private sequence of
undefined length can be nothing but `SQ`. Where the dictionary leaves a choice the rules are those of
pydicom's `correct_ambiguous_vr`, as far as what came before decides: a signed value standing before its
Pixel Representation (0028,0103), a rarity, is taken for unsigned.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from pydicom.datadict import dictionary_VR

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
    tag_text,
)

__all__ = ["DatasetRefused", "ImplicitToExplicit"]

_HEAD = struct.Struct("<HHI")
_SHORT = struct.Struct("<HH2sH").pack
_LONG = struct.Struct("<HH2sHI").pack
_US = struct.Struct("<H")

_ITEM_OPEN: Final = _HEAD.pack(ITEM >> 16, ITEM & 0xFFFF, UNDEFINED)
_ITEM_CLOSE: Final = _HEAD.pack(ITEM_END >> 16, ITEM_END & 0xFFFF, 0)
_SEQUENCE_CLOSE: Final = _HEAD.pack(SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)

_LENGTH_TO_END: Final = 0x00080001
_PIXEL_REPRESENTATION: Final = 0x00280103
_LUT_DESCRIPTOR: Final = 0x00283002
_LUT_DATA: Final = 0x00283006
#: Elements whose first number decides the VR of later ones.
_DECIDING: Final = frozenset({_PIXEL_REPRESENTATION, _LUT_DESCRIPTOR})

_US_OR_SS: Final = b"US or SS"
#: Longest value of a VR with a 16-bit length; longer ones are written UN (PS3.5 6.2.2).
_MAX_SHORT: Final = 65534
#: Padded with a blank when a sender left them odd; every other VR with NUL (PS3.5 6.2).
_TEXT_VRS: Final = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())
_NUMBER_SIZES: Final = {
    b"AT": 4, b"FD": 8, b"FL": 4, b"SL": 4, b"SS": 2, b"SV": 8, b"UL": 4, b"US": 2, b"UV": 8,
}  # fmt: skip


@functools.lru_cache(maxsize=8192)
def _standard_vr(tag: int) -> bytes:
    """VR of a standard tag, repeating groups included; `UN` when no edition we know has it."""
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return b"UN"
    if vr == "US or SS" or len(vr) == 2:
        return vr.encode("ascii")
    # "OB or OW", "US or OW" (LUT Data, save one case) and "US or SS or OW": unencapsulated data that came
    # in Implicit VR is OW (PS3.5 A.1), which Explicit VR allows for all of them.
    return b"OW"


class _Frame:
    """An open data set (the root or an item) or an open sequence."""

    __slots__ = ("end", "is_sequence", "limit", "lut_entries", "signed")

    def __init__(self, is_sequence: bool, end: int | None, parent: _Frame | None) -> None:
        self.is_sequence = is_sequence
        #: Offset where it ends, None while only a delimiter will tell.
        self.end = end
        #: Offset nothing inside may pass, None when nothing bounds it.
        self.limit: int | None = end if end is not None or parent is None else parent.limit
        #: Pixel Representation of this data set, else of the nearest one around it.
        self.signed: bool = parent.signed if parent is not None else False
        #: First value of the LUT Descriptor of this data set.
        self.lut_entries: int | None = None


class ImplicitToExplicit:
    """Convert one data set; any cutting of the input gives the same output (DB.SO.41).

    Raises `DatasetRefused` for what is not an Implicit VR Little Endian data set: garbage between items,
    values that pass the end of their item, delimiters out of place, sequences deeper than `max_depth`.
    """

    def __init__(self, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        self._stack = [_Frame(is_sequence=False, end=None, parent=None)]
        #: Offset in the input of the next byte to be read.
        self._offset = 0
        #: A head (or a head and the first number of its value) that was cut.
        self._rest = b""
        #: Bytes of the present value still to come, whether they are dropped, and what to add after them.
        self._value = 0
        self._dropping = False
        self._padding = b""

    def feed(self, data: Buffer) -> bytes:
        """Take the next bytes of the data set; return those that can be written."""
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        view = memoryview(data)
        size = len(view)
        position = 0
        out: list[Buffer] = []
        while True:
            if self._value:
                taken = min(self._value, size - position)
                if not self._dropping:
                    out.append(view[position : position + taken])
                position += taken
                self._offset += taken
                self._value -= taken
                if self._value:
                    break
                out.append(self._padding)
            self._close_ended(out)
            if position + 8 > size:
                break
            used = self._head(view[position:], out)
            if not used:
                break
            position += used
            self._offset += used
        self._rest = bytes(view[position:])
        return b"".join(out)

    def finish(self) -> bytes:
        """Say that the data set has ended; return the last bytes to write.

        Raises `DatasetRefused` when it ended inside a value, an item or a sequence.
        """
        if self._rest or self._value or len(self._stack) > 1:
            raise DatasetRefused("the data set ends inside an element")
        return b""

    def _close_ended(self, out: list[Buffer]) -> None:
        while self._stack[-1].end == self._offset:
            frame = self._stack.pop()
            out.append(_SEQUENCE_CLOSE if frame.is_sequence else _ITEM_CLOSE)

    def _head(self, view: memoryview, out: list[Buffer]) -> int:
        """Rewrite the head at the start of `view`; return its length there, 0 if more is needed."""
        group, number, length = _HEAD.unpack_from(view)
        tag = group << 16 | number
        frame = self._stack[-1]
        if length != UNDEFINED and frame.limit is not None and self._offset + 8 + length > frame.limit:
            raise DatasetRefused(f"{tag_text(tag)} passes the end of what holds it")
        if frame.is_sequence:
            self._between_items(tag, length, frame, out)
            return 8
        if group >= 0xFFFE:
            if tag != ITEM_END or frame.end is not None or length or len(self._stack) == 1:
                raise DatasetRefused(f"{tag_text(tag)} inside a data set")
            self._stack.pop()
            out.append(_ITEM_CLOSE)
            return 8
        if group < FIRST_GROUP:
            raise DatasetRefused(f"{tag_text(tag)} does not belong in a data set")
        if tag in _DECIDING and 2 <= length != UNDEFINED:
            if len(view) < 10:
                return 0
            first = _US.unpack_from(view, 8)[0]
            if tag == _PIXEL_REPRESENTATION:
                frame.signed = first != 0
            else:
                frame.lut_entries = first
        if number == 0 or tag == _LENGTH_TO_END:
            if length == UNDEFINED:
                raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
            self._value, self._dropping, self._padding = length, True, b""
            return 8
        vr = self._vr(tag, length, frame)
        if vr == b"SQ":
            out.append(_LONG(group, number, b"SQ", 0, UNDEFINED))
            self._push(is_sequence=True, length=length)
            return 8
        odd = length % 2
        if vr in SHORT_VRS:
            out.append(_SHORT(group, number, vr, length + odd))
        else:
            out.append(_LONG(group, number, vr, 0, length + odd))
        self._value, self._dropping = length, False
        self._padding = (b" " if vr in _TEXT_VRS else b"\0") if odd else b""
        return 8

    def _between_items(self, tag: int, length: int, frame: _Frame, out: list[Buffer]) -> None:
        if tag == ITEM:
            out.append(_ITEM_OPEN)
            self._push(is_sequence=False, length=length)
        elif tag == SEQUENCE_END and frame.end is None and not length:
            self._stack.pop()
            out.append(_SEQUENCE_CLOSE)
        else:
            raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")

    def _push(self, *, is_sequence: bool, length: int) -> None:
        # Root, then a sequence and an item for each level.
        if len(self._stack) > 2 * self._max_depth:
            raise DatasetRefused(f"sequences nest deeper than {self._max_depth}")
        end = None if length == UNDEFINED else self._offset + 8 + length
        self._stack.append(_Frame(is_sequence, end, self._stack[-1]))

    def _vr(self, tag: int, length: int, frame: _Frame) -> bytes:
        """Choose the VR to write for an element of this length in this data set."""
        if not tag & 0x10000:
            vr = _standard_vr(tag)
        elif 0x10 <= tag & 0xFFFF <= 0xFF:
            vr = b"LO"
        else:
            vr = b"UN"
        if length == UNDEFINED:
            # Implicit VR knows no encapsulated pixels: what has no length is a sequence.
            if vr not in (b"SQ", b"UN"):
                raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
            return b"SQ"
        if vr == _US_OR_SS:
            vr = b"SS" if frame.signed else b"US"
        elif tag == _LUT_DATA and frame.lut_entries == 1:
            vr = b"US"
        if vr in SHORT_VRS and length > _MAX_SHORT:
            return b"UN"
        size = _NUMBER_SIZES.get(vr)
        if size is not None and length % size:
            # Not a row of such numbers: the honest VR is that of bytes nobody understands.
            return b"UN"
        return vr
