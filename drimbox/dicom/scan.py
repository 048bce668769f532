"""Reading the identity of an instance from the first kilobytes of its data set, as they arrive.

A C-STORE's data set goes to the reader of the HTTP answer without being parsed. Before its first byte
leaves, the gateway must know whose it is: the study and series it says it belongs to, its own UIDs, its
patient (retrieval-engine.md, rule 1). `HeaderScanner` walks the heads of the elements, jumps over every
value and sequence of known length without looking inside, and descends only into sequences of undefined
length, because only their content tells where they end.

What it keeps between two pieces of the stream is a position: an element cut in two leaves at most its
head, or one short wanted value, in `_rest`. The caller keeps the bytes.
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
    Buffer,
    DatasetRefused,
    Encoding,
    encoding_of,
    tag_text,
)
from drimbox.model import is_uid

__all__ = ["DatasetRefused", "Header", "HeaderScanner"]

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_PATIENT_ID: Final = 0x00100020
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_WANTED: Final = frozenset({_SOP_CLASS, _SOP_INSTANCE, _PATIENT_ID, _STUDY, _SERIES})
#: Longest wanted value, bytes: 64 characters, in the worst character set and with escapes.
_MAX_VALUE: Final = 512

_UPPER: Final = frozenset(range(0x41, 0x5B))
_LITTLE = (struct.Struct("<HH2sH").unpack_from, struct.Struct("<I").unpack_from)
_BIG = (struct.Struct(">HH2sH").unpack_from, struct.Struct(">I").unpack_from)
_IMPLICIT = struct.Struct("<HHI").unpack_from
_IMPLICIT_BIG = struct.Struct(">HHI").unpack_from


def _no_vr(tag: int) -> DatasetRefused:
    return DatasetRefused(f"{tag_text(tag)} has no value representation")


@attrs.frozen
class Header:
    """Whose data set this is; None for what it does not hold or leaves empty.

    `patient_id` is (0010,0020) as ASCII, or as Latin-1 when it is not: good for comparing, not for show.
    """

    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_uid: str | None
    series_uid: str | None
    patient_id: str | None


class HeaderScanner:
    """Find the identity elements of one data set without file meta (PS3.7 9.3.1.1).

    `max_bytes` bounds how far it looks, `max_depth` how deep sequences may nest.
    """

    def __init__(
        self, transfer_syntax_uid: str, max_bytes: int = 1024 * 1024, max_depth: int = MAX_DEPTH
    ) -> None:
        encoding = encoding_of(transfer_syntax_uid)
        self._implicit = encoding is Encoding.IMPLICIT_LITTLE
        self._big = encoding is Encoding.EXPLICIT_BIG
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._seen = 0
        self._rest = b""
        #: Bytes still to jump over before the next head.
        self._skip = 0
        #: One entry for each open sequence of undefined length: [inside an item, its items are implicit].
        self._stack: list[list[bool]] = []
        self._found: dict[int, str | None] = {}
        self._header: Header | None = None

    def feed(self, data: Buffer) -> Header | None:
        """Take the next bytes; return the header once it is known, None while it is not.

        Once it is known, more bytes change nothing. Raises `DatasetRefused`.
        """
        if self._header is not None:
            return self._header
        size = len(data)
        self._seen += size
        if self._skip >= size and not self._rest:
            self._skip -= size
            self._check_size()
            return None
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        done = self._scan(data, self._skip)
        if not done:
            self._check_size()
            return None
        self._header = self._make_header()
        return self._header

    def finish(self) -> Header:
        """Say that the data set has ended; return what is known.

        Raises `DatasetRefused` when it ended inside an element or a sequence.
        """
        if self._header is None:
            if self._rest or self._skip or self._stack:
                raise DatasetRefused("the data set ends inside an element")
            self._header = self._make_header()
        return self._header

    def _check_size(self) -> None:
        if self._seen > self._max_bytes:
            raise DatasetRefused(f"no series UID in the first {self._max_bytes} bytes")

    def _make_header(self) -> Header:
        found = self._found.get
        return Header(
            found(_SOP_CLASS), found(_SOP_INSTANCE), found(_STUDY), found(_SERIES), found(_PATIENT_ID)
        )

    def _scan(self, data: Buffer, position: int) -> bool:
        """Walk `data` from `position`; return whether the search is over, else remember where it stands."""
        end = len(data)
        stack = self._stack
        implicit = self._implicit
        head, long_length = _BIG if self._big else _LITTLE
        # How far a value may reach: beyond the bytes we agree to look at, its length is a lie.
        reach = self._max_bytes - self._seen + end
        while True:
            if position >= end:
                self._skip = position - end
                return False
            start = position
            if position + 8 > end:
                break
            if stack:
                following = self._step_inside(data, position, end, reach)
                if following is None:
                    break
                position = following
                continue
            if implicit:
                group, number, length = _IMPLICIT(data, position)
                position += 8
            else:
                group, number, vr, length = head(data, position)
                position += 8
                if vr not in SHORT_VRS:
                    if not (vr[0] in _UPPER and vr[1] in _UPPER):
                        raise _no_vr(group << 16 | number)
                    if position + 4 > end:
                        position = start
                        break
                    length = long_length(data, position)[0]
                    position += 4
            tag = group << 16 | number
            if tag > _SERIES:
                if group >= 0xFFFE:
                    raise DatasetRefused(f"{tag_text(tag)} outside any sequence")
                return True
            if group < FIRST_GROUP:
                raise DatasetRefused(f"{tag_text(tag)} does not belong in a data set")
            if length == UNDEFINED:
                if tag in _WANTED:
                    raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
                self._push(implicit or vr == b"UN")
                continue
            if tag in _WANTED:
                if length > _MAX_VALUE:
                    raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
                if position + length > end:
                    position = start
                    break
                self._keep(tag, bytes(data[position : position + length]))
                if len(self._found) == len(_WANTED):
                    return True
            position += length
            if position > reach:
                raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        self._skip = 0
        self._rest = bytes(data[start:])
        return False

    def _push(self, implicit: bool) -> None:
        if len(self._stack) >= self._max_depth:
            raise DatasetRefused(f"sequences nest deeper than {self._max_depth}")
        self._stack.append([False, implicit])

    def _step_inside(self, data: Buffer, position: int, end: int, reach: int) -> int | None:
        """Pass one head inside a sequence of undefined length; None when it is cut short."""
        in_item, implicit = self._stack[-1]
        # Items and delimiters have no VR under any encoding (PS3.5 7.5).
        read = _IMPLICIT_BIG if self._big and not implicit else _IMPLICIT
        group, number, length = read(data, position)
        tag: int = group << 16 | number
        position += 8
        if not in_item:
            if tag == SEQUENCE_END:
                self._stack.pop()
                return position
            if tag != ITEM:
                raise DatasetRefused(f"{tag_text(tag)} between the items of a sequence")
            if length == UNDEFINED:
                self._stack[-1][0] = True
                return position
        elif tag == ITEM_END:
            self._stack[-1][0] = False
            return position
        else:
            if group >= 0xFFFE:
                raise DatasetRefused(f"{tag_text(tag)} inside an item")
            vr = b""
            if not implicit:
                head, long_length = _BIG if self._big else _LITTLE
                _, _, vr, length = head(data, position - 8)
                if vr not in SHORT_VRS:
                    if not (vr[0] in _UPPER and vr[1] in _UPPER):
                        raise _no_vr(tag)
                    if position + 4 > end:
                        return None
                    length = long_length(data, position)[0]
                    position += 4
            if length == UNDEFINED:
                self._push(implicit or vr == b"UN")
                return position
        if position + length > reach:
            raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        following: int = position + length
        return following

    def _keep(self, tag: int, raw: bytes) -> None:
        """Remember a wanted value; two different places for one identity are an attempt to deceive."""
        if tag in self._found:
            raise DatasetRefused(f"{tag_text(tag)} stands twice")
        text = raw.decode("latin-1").strip("\0 ")
        if tag != _PATIENT_ID and text and not is_uid(text):
            raise DatasetRefused(f"{tag_text(tag)} is not a UID")
        self._found[tag] = text or None
