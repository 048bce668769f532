"""Writing a little text in the character set that a data set already has (PS3.5 6.1, PS3.3 C.12.1.1.2).

An image comes with its own Specific Character Set, and every text in it, down to the last nested item,
is written in that one: adding a name cannot change it. So the name adapts. It is written as it is when
the set has its letters, through a code extension (an escape sequence) when the set allows one that has
them, and otherwise without the marks of its letters: `É` becomes `E`, `Œ` becomes `OE`. Every set of the
standard holds ASCII, and the strict traits of the INS are nearly always written in it. What is still not
ASCII then (another alphabet) cannot be written.

The multi-byte sets with escapes (Japanese, Korean, Chinese) are used for their ASCII half only.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

#: Standard number of a single-byte set, to Python's codec and the escape that brings it in G1.
SINGLE_BYTE: Final = {
    "100": ("latin-1", b"\x1b-A"),
    "101": ("iso8859-2", b"\x1b-B"),
    "109": ("iso8859-3", b"\x1b-C"),
    "110": ("iso8859-4", b"\x1b-D"),
    "144": ("iso8859-5", b"\x1b-L"),
    "127": ("iso8859-6", b"\x1b-G"),
    "126": ("iso8859-7", b"\x1b-F"),
    "138": ("iso8859-8", b"\x1b-H"),
    "148": ("iso8859-9", b"\x1b-M"),
    "203": ("iso8859-15", b"\x1b-b"),
    "166": ("tis-620", b"\x1b-T"),
}
#: Sets that stand alone.
STAND_ALONE: Final = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
_NUMBER: Final = re.compile(r"ISO(?:_| 2022 )IR ([0-9]{1,3})")
#: Letters that no decomposition turns into ASCII.
_LIGATURES: Final = str.maketrans(
    {
        "Œ": "OE", "œ": "oe", "Æ": "AE", "æ": "ae", "ẞ": "SS", "ß": "ss", "Ø": "O", "ø": "o",
        "Ł": "L", "ł": "l", "Đ": "D", "đ": "d", "Ð": "D", "ð": "d", "Þ": "TH", "þ": "th", "ı": "i",
        "’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-", "–": "-", "—": "-",
    }
)  # fmt: skip
#: What parts a text: an escape holds until the next of them (PS3.5 6.1.2.5.3).
_DELIMITERS: Final = re.compile(r"([\\^=])")


def plain(text: str) -> str:
    """Return `text` in ASCII as far as letters can be written without their marks."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_LIGATURES))
    return "".join(each for each in decomposed if not unicodedata.combining(each))


class CharacterSet:
    """The character set of a data set; `value` is (0008,0005) as written, empty or blank for none."""

    def __init__(self, value: bytes = b"") -> None:
        terms = [term.strip("\0 ") for term in value.decode("latin-1").split("\\")]
        self._codec = _codec(terms[0])
        #: (codec, escape) of each single-byte extension, in the order of the data set.
        self._extensions: list[tuple[str, bytes]] = []
        if terms[0] not in STAND_ALONE:
            matches = (_NUMBER.fullmatch(term) for term in terms[1:] if term.startswith("ISO 2022"))
            self._extensions = [SINGLE_BYTE[m[1]] for m in matches if m is not None and m[1] in SINGLE_BYTE]
        #: True when a letter may take several bytes.
        self.multibyte = terms[0] in STAND_ALONE

    def encode(self, text: str) -> bytes | None:
        """Write `text`, whose `^`, `=` and backslash are delimiters; None when it cannot be written."""
        written = [self._part(part) for part in _DELIMITERS.split(text)]
        found = [part for part in written if part is not None]
        return b"".join(found) if len(found) == len(written) else None

    def _part(self, text: str) -> bytes | None:
        for codec, escape in [(self._codec, b""), *self._extensions, ("ascii", b"")]:
            try:
                return escape + text.encode(codec)
            except UnicodeEncodeError:
                pass
        try:
            return plain(text).encode("ascii")
        except UnicodeEncodeError:
            return None


def _codec(term: str) -> str:
    """Return the codec of the first term; one we do not know has ASCII in common with all others."""
    if term in STAND_ALONE:
        return STAND_ALONE[term]
    match = _NUMBER.fullmatch(term)
    return SINGLE_BYTE[match[1]][0] if match is not None and match[1] in SINGLE_BYTE else "ascii"
