"""Group 0002 of a DICOM file, read and judged (PS3.10 7.1): the elements it must hold, its length."""

from __future__ import annotations

import struct
from typing import Final

from drimbox.dicom.elements import SHORT_VRS

#: Bytes before group 0002: preamble and `DICM`.
PREFIX: Final = 132
CLASS, INSTANCE, SYNTAX, IMPLEMENTATION = 0x0002, 0x0003, 0x0010, 0x0012
_NAMES: Final = {
    0x0001: "(0002,0001) FileMetaInformationVersion",
    CLASS: "(0002,0002) MediaStorageSOPClassUID",
    INSTANCE: "(0002,0003) MediaStorageSOPInstanceUID",
    SYNTAX: "(0002,0010) TransferSyntaxUID",
    IMPLEMENTATION: "(0002,0012) ImplementationClassUID",
}
_HEAD = struct.Struct("<HH2sH").unpack_from
_LONG = struct.Struct("<I").unpack_from


def meta_end(head: bytes, elements: dict[int, bytes], *, final: bool) -> int | None:
    """Read the elements of group 0002 into `elements`; return where they end, None when not there yet.

    `final` says that `head` is the whole file.
    """
    position = PREFIX
    while position + 8 <= len(head):
        group, number, vr, length = _HEAD(head, position)
        if group != 2:
            return position
        start = position + 8
        if vr not in SHORT_VRS:
            if start + 4 > len(head):
                return None
            length = _LONG(head, start)[0]
            start += 4
        position = start + length
        if position <= len(head):
            elements.setdefault(number, head[start:position])
    return position if final and position == len(head) else None


def meta_faults(elements: dict[int, bytes], end: int) -> list[str]:
    """Return what is wrong with the elements of group 0002, in French; `end` is where they end."""
    found = [f"{name} absent" for number, name in _NAMES.items() if not elements.get(number)]
    length = elements.get(0)
    if length is None or len(length) != 4:
        found.append("(0002,0000) FileMetaInformationGroupLength absent")
    elif PREFIX + 12 + int(_LONG(length)[0]) != end:
        found.append("(0002,0000) FileMetaInformationGroupLength faux")
    return found
