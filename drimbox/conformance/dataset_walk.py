"""Walking over a whole data set as it streams by, to say whether it is sound (PS3.5 7).

The walk reads the head of every element and jumps over its value: 200 MB of pixels cost no more than
their heads. It descends only where the length is undefined, since only the content then tells the end.
On the way it keeps a few short values of the root (identity, size of the image), how the pixel data is
held, and the first bytes of its first fragment, from which the codec can be recognised.

Memory is one element's head and the values wanted; depth and the number of elements are bounded.
"""

from __future__ import annotations

import struct
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
    DatasetRefused,
    tag_text,
)

SOP_CLASS: Final = 0x00080016
SOP_INSTANCE: Final = 0x00080018
PATIENT_ID: Final = 0x00100020
STUDY: Final = 0x0020000D
SERIES: Final = 0x0020000E
SAMPLES, PHOTOMETRIC, FRAMES = 0x00280002, 0x00280004, 0x00280008
ROWS, COLUMNS, BITS_ALLOCATED = 0x00280010, 0x00280011, 0x00280100
PIXEL_DATA: Final = 0x7FE00010
FLOAT_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009})
_WANTED: Final = frozenset(
    {SOP_CLASS, SOP_INSTANCE, PATIENT_ID, STUDY, SERIES, SAMPLES, PHOTOMETRIC, FRAMES}
    | {ROWS, COLUMNS, BITS_ALLOCATED}
)
#: Longest wanted value, bytes.
_MAX_VALUE = 512
#: Bytes of the first fragment that are kept.
FIRST_BYTES: Final = 4096
_MAX_ELEMENTS = 5_000_000

_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHI").unpack_from
_LONG = struct.Struct("<I").unpack_from


@attrs.define
class Pixels:
    """How (7FE0,0010) is held."""

    #: Bytes of a native value, None when it is encapsulated.
    length: int | None
    #: Fragments, the offset table not counted.
    fragments: int = 0
    #: The first bytes of the first fragment.
    first: bytes = b""


@attrs.define
class _Level:
    """What is open: the root, a sequence, an item of one, or the fragments of pixel data."""

    kind: str
    implicit: bool


class DatasetWalk:
    """Walks one data set in little endian: `feed`, then `finish`."""

    def __init__(self, *, implicit: bool, also: frozenset[int] = frozenset()) -> None:
        """`also` names short values of the root that are kept beside the usual ones."""
        self._wanted = _WANTED | also
        self.values: dict[int, bytes] = {}
        self.pixels: Pixels | None = None
        #: True when pixel data is there as floating point.
        self.float_pixels = False
        #: The first two tags of the root that are not in ascending order, None when all are.
        self.disorder: tuple[int, int] | None = None
        #: The first element whose length is odd.
        self.odd: int | None = None
        self._levels = [_Level("root", implicit)]
        self._rest = b""
        self._skip = 0
        #: Bytes of the first fragment still to keep.
        self._keep = 0
        self._last = 0
        self._elements = 0
        self._offset_table = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `DatasetRefused` for what cannot be walked over."""
        if self._skip:
            passed = min(self._skip, len(data))
            self._note(data[: min(passed, self._keep)])
            self._skip -= passed
            if passed == len(data):
                return
            data = data[passed:]
        if self._rest:
            data, self._rest = self._rest + data, b""
        position = 0
        while position < len(data):
            step = self._step(data, position)
            if step < 0:
                self._rest = data[position:]
                return
            position = step
        self._skip = position - len(data)

    def finish(self) -> None:
        """Say that the data set has ended. Raises `DatasetRefused` when it ended inside something."""
        if self._rest or self._skip:
            raise DatasetRefused("the data set ends inside an element")
        if len(self._levels) > 1:
            raise DatasetRefused("the data set ends inside a sequence")

    @property
    def last(self) -> int:
        """The tag of the root reached last."""
        return self._last

    def text(self, tag: int) -> str:
        """Return a wanted value as text without padding; empty when absent."""
        return self.values.get(tag, b"").decode("latin-1").strip("\0 ")

    def number(self, tag: int) -> int | None:
        """Return a wanted US value, or None."""
        value = self.values.get(tag)
        return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None

    def _step(self, data: bytes, position: int) -> int:
        """Read one head; return where to read on, -1 when more bytes are needed."""
        if position + 8 > len(data):
            return -1
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise DatasetRefused("too many elements")
        level = self._levels[-1]
        if level.kind in ("sequence", "fragments"):
            return self._item(data, position, level)
        if level.implicit:
            group, element, length = _IMPLICIT(data, position)
            vr, start = b"", position + 8
        else:
            group, element, vr, length = _EXPLICIT(data, position)
            start = position + 8
        tag: int = group << 16 | element
        if tag == ITEM_END and level.kind == "item":
            self._levels.pop()
            return position + 8
        if group >= 0xFFFE:
            raise DatasetRefused(f"{tag_text(tag)} where an element belongs")
        if not level.implicit and vr not in SHORT_VRS:
            if not (vr.isalpha() and vr.isupper()):
                raise DatasetRefused(f"{tag_text(tag)} has no value representation")
            if start + 4 > len(data):
                return -1
            length = _LONG(data, start)[0]
            start += 4
        return self._element(data, start, tag, vr, length, level)

    def _element(self, data: bytes, start: int, tag: int, vr: bytes, length: int, level: _Level) -> int:
        root = level.kind == "root"
        wanted = root and tag in self._wanted
        if wanted and length > _MAX_VALUE:
            raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        if wanted and start + length > len(data):
            return -1
        if root:
            self._order(tag)
        pixels = root and tag == PIXEL_DATA
        if length == UNDEFINED:
            encapsulated = tag == PIXEL_DATA and vr in (b"OB", b"OW", b"")
            self._open("fragments" if encapsulated else "sequence", level.implicit or vr == b"UN")
            if pixels:
                self.pixels = Pixels(None)
            self._offset_table = pixels
            return start
        if length % 2 and self.odd is None:
            self.odd = tag
        if pixels:
            self.pixels = Pixels(length)
        elif root and tag in FLOAT_PIXELS:
            self.float_pixels = True
        elif wanted:
            self.values[tag] = data[start : start + length]
        return start + length

    def _order(self, tag: int) -> None:
        if tag >> 16 < FIRST_GROUP:
            raise DatasetRefused(f"{tag_text(tag)} does not belong in a data set")
        if tag <= self._last and self.disorder is None:
            self.disorder = (self._last, tag)
        self._last = tag

    def _open(self, kind: str, implicit: bool) -> None:
        if len(self._levels) > 2 * MAX_DEPTH:
            raise DatasetRefused(f"sequences nest deeper than {MAX_DEPTH}")
        self._levels.append(_Level(kind, implicit))

    def _item(self, data: bytes, position: int, level: _Level) -> int:
        group, element, length = _IMPLICIT(data, position)
        tag = group << 16 | element
        start = position + 8
        if tag == SEQUENCE_END:
            self._levels.pop()
            return start
        if tag != ITEM:
            raise DatasetRefused(f"{tag_text(tag)} between items")
        if level.kind == "sequence":
            if length == UNDEFINED:
                self._open("item", level.implicit)
                return start
            return start + int(length)
        if length == UNDEFINED:
            raise DatasetRefused("a fragment of undefined length")
        return self._fragment(data, start, length)

    def _fragment(self, data: bytes, start: int, length: int) -> int:
        if length % 2 and self.odd is None:
            self.odd = PIXEL_DATA
        if len(self._levels) == 2 and self.pixels is not None:
            if self._offset_table:
                self._offset_table = False
            else:
                self.pixels.fragments += 1
                if self.pixels.fragments == 1:
                    self._keep = min(length, FIRST_BYTES)
                    self._note(data[start : start + self._keep])
        return start + length

    def _note(self, data: bytes) -> None:
        if self._keep and self.pixels is not None:
            self.pixels.first += data
            self._keep -= len(data)
