"""What the streaming readers of this package share: tags, VR tables, encodings, and their refusal.

A data set is a row of elements; how an element's head is written depends on three encodings only
(PS3.5 7.1): Implicit VR Little Endian, Explicit VR Little Endian (also the outside of every
encapsulated syntax), and the retired Explicit VR Big Endian. Everything else that a transfer syntax
says is about pixels, which nothing here opens.
"""

from __future__ import annotations

import enum
from typing import Final

Buffer = bytes | bytearray | memoryview

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
#: Data sets that must be inflated before they can be read; one kilobyte may hide a gigabyte.
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
UNDEFINED: Final = 0xFFFFFFFF

#: Groups 0000 (commands), 0002 (file meta), 0004 (DICOMDIR), 0006 never stand in a data set (PS3.5 7.1).
FIRST_GROUP: Final = 0x0008

#: VRs whose length is 16 bits and follows at once (PS3.5 Table 7.1-2). Every other VR, those of the
#: future included, has two reserved bytes and 32 bits of length (PS3.5 6.2, note on unknown VRs).
SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
#: Nesting of sequences beyond which a data set is taken for an attack (CVE-2026-10528).
MAX_DEPTH: Final = 32


class DatasetRefused(Exception):
    """The bytes are not a data set we accept: garbage, truncated, too deep, too long, or deflated."""


class Encoding(enum.Enum):
    """How the heads of elements are written."""

    IMPLICIT_LITTLE = "implicit little endian"
    EXPLICIT_LITTLE = "explicit little endian"
    EXPLICIT_BIG = "explicit big endian"


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """Return the encoding of element heads under a transfer syntax; refuse the deflated ones.

    Every syntax but the three named ones is taken for Explicit VR Little Endian, as PS3.5 A.4 demands
    of encapsulated syntaxes.
    """
    if transfer_syntax_uid == IMPLICIT_LITTLE:
        return Encoding.IMPLICIT_LITTLE
    if transfer_syntax_uid == EXPLICIT_BIG:
        return Encoding.EXPLICIT_BIG
    if transfer_syntax_uid in DEFLATED:
        raise DatasetRefused("deflated data sets are not read")
    return Encoding.EXPLICIT_LITTLE


def tag_text(tag: int) -> str:
    """Write a tag as the standard does: `(0008,0018)`."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
