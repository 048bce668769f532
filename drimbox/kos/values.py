"""Fitting text from elsewhere into DICOM values: characters, lengths, dates (PS3.5 6.1, 6.2).

Names and descriptions come from reports and PACS that do not always respect the limits of the VR they
end in. A manifest with one value too long is refused by validators and by some archives, so every free
text is cut to what its VR allows; identifiers never pass through here and are never cut. The limits are
counted in bytes: the standard counts characters, but readers (`dciodvfy` among them) count bytes, and in
Latin-1, which nearly every manifest uses, both are the same.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterable

#: Limit of an LO, and of each component group of a PN (PS3.5 Table 6.2-1).
MAX_LO = 64
MAX_PN = 64
#: Of a name too long for a PN, what the family name keeps at least.
_FAMILY_FLOOR = 32

_BLANKS = re.compile(r"\s+")
_DATE = re.compile(r"([0-9]{4})[.\-]?([0-9]{2})[.\-]?([0-9]{2})", re.ASCII)
_TIME = re.compile(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(\.[0-9]{1,6})?)?)?", re.ASCII)


def clean(text: str) -> str:
    """Return `text` on one line, composed (NFC), without control characters.

    A backslash, which would part the value in two, becomes a slash.
    """
    text = unicodedata.normalize("NFC", text).replace("\\", "/")
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return _BLANKS.sub(" ", text).strip()


class Fitter:
    """Cuts texts for one data set, whose character set it chooses (interfaces.md 3.2)."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Choose Latin-1 when every one of `texts`, as they will be written, fits in it, else UTF-8."""
        try:
            for text in texts:
                text.encode("latin-1")
        except UnicodeEncodeError:
            self.character_set, self.codec = "ISO_IR 192", "utf-8"
        else:
            self.character_set, self.codec = "ISO_IR 100", "latin-1"

    def cut(self, text: str, room: int) -> str:
        """Return the longest start of `text` that takes at most `room` bytes, without blanks at its end."""
        raw = text.encode(self.codec)
        return raw[: max(room, 0)].decode(self.codec, "ignore").rstrip()

    def long_string(self, text: str, room: int = MAX_LO) -> str:
        """Fit `text` into an LO, or into `room` bytes of one."""
        return self.cut(clean(text), room)

    def person_name(self, family: str, given: str) -> str:
        """Write a PN of two components, each only when known: `FAMILY^GIVEN`, `FAMILY`, `^GIVEN`.

        When both do not fit, the given name yields first, then the family name down to half the room.
        """
        family, given = _component(family), _component(given)
        if not given:
            return self.cut(family, MAX_PN)
        family = self.cut(family, max(MAX_PN - 1 - self._size(given), _FAMILY_FLOOR))
        return f"{family}^{self.cut(given, MAX_PN - 1 - self._size(family))}"

    def given_list(self, names: str) -> str:
        """Write the birth given names as a PN, `^ANNE MARIE`; whole names that do not fit are dropped."""
        names = _component(names)
        kept = self.cut(names, MAX_PN - 1)
        if len(kept) < len(names) and names[len(kept)] != " ":
            kept = kept.rpartition(" ")[0] or kept
        return f"^{kept}" if kept else ""

    def _size(self, text: str) -> int:
        return len(text.encode(self.codec))


def _component(text: str) -> str:
    return clean(text.replace("^", " ").replace("=", " "))


def date(text: str) -> str:
    """Return a DA, or an empty one when `text` is no date: a PACS may write anything."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return ""
    year, month, day = match.groups()
    try:
        datetime.date(int(year), int(month), int(day))
    except ValueError:
        return ""
    return year + month + day


def time(text: str) -> str:
    """Return a TM, or an empty one when `text` is no time of day."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return ""
    hour, minute, second, fraction = match.groups("")
    if int(hour) > 23 or int(minute or 0) > 59 or int(second or 0) > 60:
        return ""
    return hour + minute + second + fraction
