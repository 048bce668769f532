"""Lazy HL7 v2 reader: segments found at once, fields cut only when asked for.

Theory of operation. A report message is a dozen short segments and one of up to 20 MB (the CDA in
base64). So the raw bytes are never split wholesale: one pass with the C search for CR and LF finds where
segments begin; a segment keeps its two offsets; asking for a field finds the separators of that segment
once, again with the C search, and slices the one field. Only short fields are ever decoded.

A segment begins after CR, LF or CRLF with three upper-case alphanumerics and the field separator; any
other line continues the one before it (interfaces.md 1.1: line ends inside a text field, base64 wrapped
at 76 characters), and its line ends are dropped when a field is read.

Counts that come from outside are bounded: segments, fields of a segment, repetitions of a field, and the
size of a field read as text (threats.md, HL7/MLLP).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from drimbox.hl7.refusal import Hl7Refused

MAX_SEGMENTS = 10_000
MAX_FIELDS = 512
MAX_REPETITIONS = 256
MAX_TEXT_BYTES = 65_536

_SEGMENT_NAME = re.compile(rb"[A-Z0-9]{3}\Z")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+\Z")
_CHARSETS = re.compile(r"8859/(1[0-6]|[1-9])\Z")


def not_hl7(text: str) -> Hl7Refused:
    """Make the refusal of bytes that cannot be read as HL7 at all: AE 100 (interfaces.md 1.5)."""
    return Hl7Refused("AE", "100", text)


@attrs.frozen
class Delimiters:
    """The separators a message announces in MSH-1 and MSH-2, each one byte."""

    field: bytes = b"|"
    component: bytes = b"^"
    repetition: bytes = b"~"
    escape: bytes = b"\\"
    subcomponent: bytes = b"&"

    @classmethod
    def of(cls, head: bytes) -> Delimiters:
        """Read them from the first 16 bytes of a message (`MSH|^~\\&|...`). Raises `Hl7Refused` AE 100."""
        if not head.startswith(b"MSH") or len(head) < 9:
            raise not_hl7("le message ne commence pas par un segment MSH")
        # A fifth character is the truncation mark of v2.7; nothing here needs it.
        marks = head[3:4] + head[4:].split(head[3:4], 1)[0]
        if len(marks) not in (5, 6) or not all(0x20 < mark < 0x7F for mark in marks):
            raise not_hl7("les séparateurs de MSH-1 et MSH-2 ne sont pas valides")
        if len(set(marks)) != len(marks) or any(marks[i : i + 1].isalnum() for i in range(len(marks))):
            raise not_hl7("les séparateurs de MSH-1 et MSH-2 ne sont pas distincts")
        return cls(*(marks[i : i + 1] for i in range(5)))


class Segment:
    """One segment: a window on the raw message. Fields are numbered as in HL7 (MSH-1 is the separator)."""

    def __init__(self, raw: bytes, start: int, end: int, marks: Delimiters) -> None:
        self._raw = raw
        self.start = start
        self.end = end
        self._marks = marks
        self._bounds: list[int] | None = None
        self.name = raw[start : start + 3].decode("ascii")

    def __len__(self) -> int:
        """Bytes of the segment, line ends of continuations included."""
        return self.end - self.start

    def span(self, number: int) -> tuple[int, int]:
        """Return where field `number` lies in the raw message; an empty span when it is absent.

        Raises `Hl7Refused` AE 198 when the segment has more than `MAX_FIELDS` fields.
        """
        bounds = self._boundaries()
        if self.name == "MSH":
            # MSH-1 is the separator itself, so what follows it is MSH-2.
            if number == 1:
                return self.start + 3, self.start + 4
            number -= 1
        if number + 1 >= len(bounds):
            return self.end, self.end
        return bounds[number] + 1, bounds[number + 1]

    def raw_field(self, number: int) -> bytes:
        """Return field `number` as it stands, line ends removed; empty when absent."""
        start, end = self.span(number)
        return self._raw[start:end].translate(None, b"\r\n")

    def component(self, number: int, component: int = 1) -> bytes:
        """Return a component of the first repetition of a field, undecoded; empty when absent."""
        value = self.raw_field(number)
        if len(value) > MAX_TEXT_BYTES:
            raise Hl7Refused(
                "AE", "102", f"champ de plus de {MAX_TEXT_BYTES} octets", f"{self.name}^1^{number}"
            )
        first = value.split(self._marks.repetition, 1)[0]
        return _item(first, self._marks.component, component)

    def _boundaries(self) -> list[int]:
        if self._bounds is None:
            bounds = [self.start - 1]
            raw, separator, end = self._raw, self._marks.field, self.end
            position = raw.find(separator, self.start, end)
            while position >= 0:
                bounds.append(position)
                if len(bounds) > MAX_FIELDS:
                    raise Hl7Refused(
                        "AE", "198", f"segment {self.name} de plus de {MAX_FIELDS} champs", self.name
                    )
                position = raw.find(separator, position + 1, end)
            bounds.append(end)
            self._bounds = bounds
        return self._bounds


def _item(value: bytes, separator: bytes, number: int) -> bytes:
    parts = value.split(separator, number)
    return parts[number - 1] if number <= len(parts) else b""


class Message:
    """An HL7 v2 message read lazily.

    Raises `Hl7Refused` AE 100 when `raw` does not begin with a readable MSH, AE 198 when it has more
    than `MAX_SEGMENTS` segments. Blank lines and a byte order mark before MSH are tolerated.
    """

    def __init__(self, raw: bytes) -> None:
        head = raw[:256]
        start = len(head) - len(head.lstrip(b"\xef\xbb\xbf\r\n\t "))
        self.delimiters = Delimiters.of(raw[start : start + 16])
        self.segments = tuple(_segments(raw, start, self.delimiters))
        self.msh = self.segments[0]
        if sum(1 for _ in self.named("MSH")) > 1:
            # The second would be acknowledged with the first, and never read.
            raise not_hl7("plusieurs segments MSH dans un même message")
        self.raw = raw
        self._codec: str | None = None

    def named(self, name: str) -> Iterator[Segment]:
        """Iterate over the segments called `name`, in order."""
        return (segment for segment in self.segments if segment.name == name)

    def first(self, name: str) -> Segment | None:
        """Return the first segment called `name`, or None."""
        return next(self.named(name), None)

    @property
    def charset(self) -> str:
        """MSH-18 as the message gives it (first repetition)."""
        return self.msh.component(18).decode("ascii", "replace").strip()

    @property
    def codec(self) -> str:
        """Python codec the text fields are decoded with (interfaces.md 1.3, character set).

        A declared single-byte set yields to UTF-8 when the text is valid UTF-8 with a multibyte
        sequence; a declared or supposed UTF-8 that does not decode yields to ISO 8859-15.
        """
        if self._codec is None:
            self._codec = self._find_codec()
        return self._codec

    def _find_codec(self) -> str:
        # The large segment is base64, ASCII by nature: deciding on the others spares decoding it.
        text = b"".join(
            self.raw[segment.start : segment.end]
            for segment in self.segments
            if len(segment) <= MAX_TEXT_BYTES
        )
        if text.isascii():
            return "utf-8"
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            declared = codec_of(self.charset)
            return declared if declared not in (None, "utf-8", "ascii") else "iso8859-15"
        return "utf-8"

    def text(self, value: bytes) -> str:
        """Decode and unescape a field, component or subcomponent that was already cut out."""
        if len(value) > MAX_TEXT_BYTES:
            raise Hl7Refused("AE", "102", f"champ texte de plus de {MAX_TEXT_BYTES} octets")
        return unescape(value.decode(self.codec, "replace"), self.delimiters, self.codec)

    def get(self, segment: Segment | None, field: int, component: int = 1, subcomponent: int = 1) -> str:
        """Return one subcomponent of the first repetition as text, blanks stripped; empty when absent."""
        if segment is None:
            return ""
        value = segment.component(field, component)
        return self.text(_item(value, self.delimiters.subcomponent, subcomponent)).strip()

    def repetitions(self, segment: Segment | None, field: int) -> list[Repetition]:
        """Cut a field into its repetitions. Raises `Hl7Refused` AE 198 beyond `MAX_REPETITIONS`."""
        if segment is None:
            return []
        value = segment.raw_field(field)
        if not value:
            return []
        location = f"{segment.name}^1^{field}"
        if len(value) > MAX_TEXT_BYTES:
            raise Hl7Refused("AE", "102", f"champ de plus de {MAX_TEXT_BYTES} octets", location)
        parts = value.split(self.delimiters.repetition, MAX_REPETITIONS)
        if len(parts) > MAX_REPETITIONS:
            raise Hl7Refused("AE", "198", f"champ de plus de {MAX_REPETITIONS} répétitions", location)
        return [Repetition(self, part) for part in parts]


@attrs.frozen
class Repetition:
    """One repetition of a field."""

    message: Message
    value: bytes

    def get(self, component: int, subcomponent: int = 1) -> str:
        """Return one subcomponent as text, blanks stripped; empty when absent."""
        marks = self.message.delimiters
        value = _item(_item(self.value, marks.component, component), marks.subcomponent, subcomponent)
        return self.message.text(value).strip()


def _segments(raw: bytes, start: int, marks: Delimiters) -> Iterator[Segment]:
    count = 0
    for line in _line_starts(raw, start):
        if not (_SEGMENT_NAME.match(raw[line : line + 3]) and raw[line + 3 : line + 4] == marks.field):
            continue
        if line > start:
            yield Segment(raw, start, line, marks)
            start = line
        count += 1
        if count > MAX_SEGMENTS:
            raise Hl7Refused("AE", "198", f"message de plus de {MAX_SEGMENTS} segments")
    yield Segment(raw, start, len(raw), marks)


def _line_starts(raw: bytes, start: int) -> Iterator[int]:
    """Yield where lines begin. Each terminator is searched once: the two cursors only move forward."""
    yield start
    size = len(raw)
    cr, lf = raw.find(b"\r", start), raw.find(b"\n", start)
    while cr >= 0 or lf >= 0:
        if lf < 0 or 0 <= cr < lf:
            line, cr = cr + 1, raw.find(b"\r", cr + 1)
        else:
            line, lf = lf + 1, raw.find(b"\n", lf + 1)
        if line < size:
            yield line


def codec_of(charset: str) -> str | None:
    """Return the Python codec of an MSH-18 value (HL70211), or None when it is unknown or empty."""
    name = charset.strip().upper()
    if name in ("UNICODE UTF-8", "UTF-8", "UTF8", "UNICODE"):
        return "utf-8"
    if name == "ASCII":
        return "ascii"
    single = _CHARSETS.match(name)
    return f"iso8859-{single.group(1)}" if single else None


def unescape(text: str, marks: Delimiters, codec: str = "utf-8") -> str:
    """Undo `\\F\\ \\S\\ \\T\\ \\R\\ \\E\\ \\X..\\ \\.br\\` (HL7 v2.5 2.7); others stay as written."""
    escape = marks.escape.decode("ascii")
    if escape not in text:
        return text
    known = {
        "F": marks.field.decode("ascii"),
        "S": marks.component.decode("ascii"),
        "T": marks.subcomponent.decode("ascii"),
        "R": marks.repetition.decode("ascii"),
        "E": escape,
        ".br": "\n",
    }
    parts = text.split(escape)
    out = [parts[0]]
    position = 1
    # Odd parts stand between two escape characters as long as each one found was a known sequence.
    while position < len(parts):
        part = parts[position]
        replacement = known.get(part)
        if replacement is None and part[:1] == "X" and _HEX.match(part[1:]):
            replacement = bytes.fromhex(part[1:]).decode(codec, "replace")
        if replacement is not None and position + 1 < len(parts):
            out += [replacement, parts[position + 1]]
            position += 2
        else:
            out += [escape, part]
            position += 1
    return "".join(out)


def escape(text: str, marks: Delimiters | None = None) -> str:
    """Make `text` safe as one subcomponent: delimiters escaped, control characters dropped."""
    marks = marks or Delimiters()
    mark = marks.escape.decode("ascii")
    table: dict[int, str | None] = dict.fromkeys((*range(0x20), 0x7F))
    for name, value in zip(
        "FSTRE",
        (marks.field, marks.component, marks.subcomponent, marks.repetition, marks.escape),
        strict=True,
    ):
        table[value[0]] = f"{mark}{name}{mark}"
    return text.translate(table)
