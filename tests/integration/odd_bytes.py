"""Data sets written byte by byte: what is legal, or what PACS carry all the same, and nobody writes.

A reader that parses an instance and writes it again gives most of these back otherwise than they came:
lengths made definite or the other way round, groups without their length, paddings mended.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from drimbox.dicom.elements import Encoding
from drimbox.dicom.outline import outline
from tests.integration.hospital import data_set

_UNDEFINED = 0xFFFFFFFF


def short(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def long(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, size) + value


def bare(tag: int, length: int, value: bytes = b"") -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


def item(value: bytes, *, undefined: bool) -> bytes:
    if undefined:
        return bare(0xFFFEE000, _UNDEFINED, value + bare(0xFFFEE00D, 0))
    return bare(0xFFFEE000, len(value), value)


def sequence(tag: int, *items: bytes, undefined: bool, vr: bytes = b"SQ") -> bytes:
    value = b"".join(items)
    if undefined:
        return long(tag, vr, value + bare(0xFFFEE0DD, 0), _UNDEFINED)
    return long(tag, vr, value)


_REFERENCE = short(0x00081150, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + short(
    0x00081155, b"UI", b"2.25.77 "
)
_CODE = short(0x00080100, b"SH", b"121311") + short(0x00080102, b"SH", b"DCM\0")
_NESTED = sequence(0x0040A170, item(_CODE, undefined=True), undefined=True)

#: By tag, what is put among the elements of an ordinary image.
ODD: Mapping[int, bytes] = {
    # Retired (PS3.6): data set type, data set subtype.
    0x00080040: short(0x00080040, b"US", b"\0\0"),
    0x00080041: short(0x00080041, b"LO", b"IMA NONE"),
    # Undefined and definite lengths in turn, an item without content, a sequence without items.
    0x00081140: sequence(
        0x00081140,
        item(_REFERENCE + _NESTED, undefined=True),
        item(_REFERENCE, undefined=False),
        item(b"", undefined=True),
        item(b"", undefined=False),
        undefined=True,
    ),
    0x00082112: sequence(0x00082112, undefined=True),
    0x00081250: sequence(0x00081250, item(_REFERENCE, undefined=True), undefined=False),
    # Private: a creator padded with NUL, a big unknown value, an unknown sequence (its content is
    # implicit), a private sequence.
    0x00090010: short(0x00090010, b"LO", b"ACME ODD\0\0"),
    0x00091001: long(0x00091001, b"UN", bytes(range(256)) * 400),
    0x00091002: sequence(
        0x00091002,
        item(bare(0x00080100, 6, b"121311") + bare(0x00091003, 4, b"\1\2\3\4"), undefined=True),
        undefined=True,
        vr=b"UN",
    ),
    0x00091004: sequence(0x00091004, item(_CODE, undefined=False), undefined=True),
    # Text padded with NUL, a UID with a blank, a number without value.
    0x00104000: short(0x00104000, b"LT", b"Remarque \xe9crite \xe0 la main\0"),
    0x00181151: short(0x00181151, b"IS", b""),
    0x00200052: short(0x00200052, b"UI", b"2.25.1234567890 "),
    0x00204000: short(0x00204000, b"LT", b"x \0 y "),
    # An overlay, and after the pixels trailing padding.
    0x60000010: short(0x60000010, b"US", struct.pack("<H", 16)),
    0x60000011: short(0x60000011, b"US", struct.pack("<H", 16)),
    0x60000040: short(0x60000040, b"CS", b"G "),
    0x60000050: short(0x60000050, b"SS", struct.pack("<hh", 1, 1)),
    0x60000100: short(0x60000100, b"US", struct.pack("<H", 1)),
    0x60000102: short(0x60000102, b"US", struct.pack("<H", 0)),
    0x60003000: long(0x60003000, b"OW", b"\xaa\x55" * 16),
    0xFFFCFFFC: long(0xFFFCFFFC, b"OB", bytes(126)),
}

#: Pixel data that is there and empty, and pixel data of fragments one of which is empty.
EMPTY_PIXELS = long(0x7FE00010, b"OW", b"")


def emptied_fragment(pixels: bytes) -> bytes:
    """Put an empty fragment before the delimiter of encapsulated pixel data."""
    return pixels[:-8] + bare(0xFFFEE000, 0) + pixels[-8:]


def made_odd(path: Path, *, pixels: str = "as they are", group_lengths: bool = True) -> None:
    """Rewrite a Part 10 file with the odd elements, and group lengths in the groups 0008 to 0028."""
    whole = path.read_bytes()
    data = data_set(whole)
    elements = {
        element.tag: data[element.start : element.end]
        for element in outline(data, Encoding.EXPLICIT_LITTLE)
    }
    elements.update(ODD)
    match pixels:
        case "empty":
            elements[0x7FE00010] = EMPTY_PIXELS
        case "absent":
            del elements[0x7FE00010]
        case "empty fragment":
            elements[0x7FE00010] = emptied_fragment(elements[0x7FE00010])
    if group_lengths:
        for group in {tag >> 16 for tag in elements} & {0x0008, 0x0010, 0x0018, 0x0020, 0x0028}:
            size = sum(len(raw) for tag, raw in elements.items() if tag >> 16 == group)
            elements[group << 16] = short(group << 16, b"UL", struct.pack("<I", size))
    path.write_bytes(whole[: len(whole) - len(data)] + b"".join(elements[tag] for tag in sorted(elements)))
