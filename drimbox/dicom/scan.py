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

from typing import Final

import attrs

from drimbox.dicom.elements import (
    FIRST_GROUP,
    MAX_DEPTH,
    SHORT_VRS,
    UNDEFINED,
    Buffer,
    DatasetRefused,
    Encoding,
    encoding_of,
    tag_text,
)
from drimbox.dicom.nesting import BIG, IMPLICIT_LITTLE_HEAD, LITTLE, Nesting, is_vr, no_vr
from drimbox.dicom.patientids import (
    MAX_SEQUENCE,
    OTHER_IDS,
    PATIENT_ID,
    QUALIFIERS,
    read_authority,
    read_items,
)
from drimbox.model import INS_OIDS, Identifier, is_uid

__all__ = ["DatasetRefused", "Header", "HeaderScanner"]

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_ISSUER: Final = 0x00100021
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_UIDS: Final = frozenset({_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES})
#: Without these the search goes on until their place has passed.
_NEEDED: Final = _UIDS | {PATIENT_ID}
_SEQUENCES: Final = frozenset({QUALIFIERS, OTHER_IDS})
_WANTED: Final = _NEEDED | {_ISSUER} | _SEQUENCES
#: Longest wanted value, bytes: 64 characters, in the worst character set and with escapes.
_MAX_VALUE: Final = 512


@attrs.frozen
class Header:
    """Whose data set this is; None for what it does not hold or leaves empty.

    Texts are read as ASCII, or as Latin-1 when they are not: good for comparing, not for show.
    """

    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_uid: str | None
    series_uid: str | None
    #: (0010,0020), and who gave it: (0010,0021) in words, (0010,0024) > (0040,0032) as an OID.
    patient_id: str | None
    patient_id_issuer: str | None = None
    patient_id_authority: str | None = None
    #: Every INS of (0010,1002): matricule and domain (interfaces.md 0.1).
    ins: tuple[Identifier, ...] = ()


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
        self._seen = 0
        self._rest = b""
        #: Bytes still to jump over before the next head.
        self._skip = 0
        self._nesting = Nesting(big=self._big, max_depth=max_depth)
        #: Value so far of a wanted sequence of undefined length, while inside it; its tag, its encoding.
        self._captured: bytearray | None = None
        self._capturing = (0, False)
        self._found: dict[int, str | None] = {}
        self._ins: tuple[Identifier, ...] = ()
        self._header: Header | None = None

    def feed(self, data: Buffer) -> Header | None:
        """Take the next bytes; return the header once it is known, None while it is not.

        Once it is known, more bytes change nothing. Raises `DatasetRefused`.
        """
        if self._header is not None:
            return self._header
        size = len(data)
        self._seen += size
        if self._skip >= size and not self._rest and self._captured is None:
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
            if self._rest or self._skip or self._nesting.stack:
                raise DatasetRefused("the data set ends inside an element")
            self._header = self._make_header()
        return self._header

    def _check_size(self) -> None:
        if self._seen > self._max_bytes:
            raise DatasetRefused(f"no series UID in the first {self._max_bytes} bytes")

    def _make_header(self) -> Header:
        found = self._found.get
        return Header(
            found(_SOP_CLASS),
            found(_SOP_INSTANCE),
            found(_STUDY),
            found(_SERIES),
            found(PATIENT_ID),
            found(_ISSUER),
            found(QUALIFIERS),
            self._ins,
        )

    def _scan(self, data: Buffer, position: int) -> bool:
        """Walk `data` from `position`; return whether the search is over, else remember where it stands."""
        end = len(data)
        nesting = self._nesting
        stack = nesting.stack
        implicit = self._implicit
        head, long_length = BIG if self._big else LITTLE
        # How far a value may reach: beyond the bytes we agree to look at, its length is a lie.
        reach = self._max_bytes - self._seen + end
        # Where the bytes begin that a captured sequence has not got yet.
        mark = 0
        while True:
            if position >= end:
                self._capture(data, mark, end)
                self._skip = position - end
                return False
            start = position
            if position + 8 > end:
                break
            if stack:
                following = nesting.step(data, position, end, reach)
                if following is None:
                    break
                position = following
                if not stack:
                    self._capture(data, mark, position)
                    self._end_capture()
                continue
            if implicit:
                group, number, length = IMPLICIT_LITTLE_HEAD(data, position)
                position += 8
            else:
                group, number, vr, length = head(data, position)
                position += 8
                if vr not in SHORT_VRS:
                    if not is_vr(vr):
                        raise no_vr(group << 16 | number)
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
                inside = implicit or vr == b"UN"
                nesting.push(inside)
                if tag in _WANTED:
                    if tag not in _SEQUENCES:
                        raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
                    self._captured, self._capturing, mark = bytearray(), (tag, inside), position
                continue
            if tag in _WANTED:
                if length > (MAX_SEQUENCE if tag in _SEQUENCES else _MAX_VALUE):
                    raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
                if position + length > end:
                    position = start
                    break
                value = bytes(data[position : position + length])
                if tag in _SEQUENCES:
                    self._keep_sequence(tag, value, implicit or vr == b"UN")
                elif self._keep(tag, value):
                    return True
            position += length
            if position > reach:
                raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        self._capture(data, mark, start)
        self._skip = 0
        self._rest = bytes(data[start:])
        return False

    def _capture(self, data: Buffer, start: int, end: int) -> None:
        """Add to the value of the wanted sequence we are inside of, if we are."""
        if self._captured is not None:
            self._captured += data[start:end]
            if len(self._captured) > MAX_SEQUENCE:
                raise DatasetRefused(f"{tag_text(self._capturing[0])} holds too many bytes")

    def _end_capture(self) -> None:
        captured, self._captured = self._captured, None
        if captured is not None:
            self._keep_sequence(self._capturing[0], bytes(captured), self._capturing[1])

    def _keep(self, tag: int, raw: bytes) -> bool:
        """Remember a wanted value; return whether everything needed is known.

        Two different places for one identity are an attempt to deceive.
        """
        if tag in self._found:
            raise DatasetRefused(f"{tag_text(tag)} stands twice")
        text = raw.decode("latin-1").strip("\0 ")
        if tag in _UIDS and text and not is_uid(text):
            raise DatasetRefused(f"{tag_text(tag)} is not a UID")
        self._found[tag] = text or None
        return tag in _NEEDED and self._found.keys() >= _NEEDED

    def _keep_sequence(self, tag: int, value: bytes, implicit: bool) -> None:
        if tag in self._found:
            raise DatasetRefused(f"{tag_text(tag)} stands twice")
        if tag == QUALIFIERS:
            self._found[tag] = read_authority(value, implicit=implicit, big=self._big) or None
            return
        self._found[tag] = None
        self._ins = tuple(
            Identifier(item.value, item.authority)
            for item in read_items(value, implicit=implicit, big=self._big)
            if item.authority in INS_OIDS and item.value
        )
