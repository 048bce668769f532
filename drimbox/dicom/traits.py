"""Writing the INS and its traits into an image while it streams (DB.SO.39, an option of the Source).

The KOS of a request says whose study it is by the INS: matricule, domain, and the strict traits that
qualify it. A PACS often knows its patient by the local identifier alone, so each instance gets them on
its way out, as the manifest itself writes them (interfaces.md 3.2):

    (0010,0010) PatientName               birth family name and first birth given name: replaced
    (0010,0030) PatientBirthDate          replaced
    (0010,0040) PatientSex                replaced
    (0010,1001) OtherPatientNames         list of birth given names, used names; those there stay behind
    (0010,1002) OtherPatientIDsSequence   the INS; other items stay, one of the same domain is replaced
    (0010,4000) PatientComments           INSEE code of the birth place, unless a comment stands there

PatientID and its issuer, which hold the local identifier, are kept. A trait that the KOS does not give,
or that the character set of the data set cannot express (`charset`), leaves the element as it was, and
`left` names it. A comment that is not a place code may be a warning to whoever treats the patient: it
stays. Group lengths and Length to End, retired, would be wrong after the change and are dropped. Every
other byte is the one that came.

The data set is Explicit VR Little Endian in its heads (all syntaxes that may leave are); Implicit VR goes
through `explicit` first. Elements are passed as they come: what is remembered is a cut head, or one short
value that has to be looked at. Once the series UID is behind, bytes are not even looked at; a trait that
stands twice or out of its place before it is refused, because readers would differ on which one counts.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from drimbox.dicom.charset import CharacterSet
from drimbox.dicom.elements import (
    FIRST_GROUP,
    ITEM,
    MAX_DEPTH,
    SHORT_VRS,
    UNDEFINED,
    Buffer,
    DatasetRefused,
    tag_text,
)
from drimbox.dicom.explicit import ImplicitToExplicit
from drimbox.dicom.nesting import LITTLE, Nesting, is_vr, no_vr
from drimbox.dicom.patientids import MAX_SEQUENCE, OTHER_IDS, read_items
from drimbox.kos.values import Fitter, clean, date
from drimbox.model import Patient

__all__ = ["DatasetRefused", "TraitInserter"]

_CHARACTER_SET: Final = 0x00080005
_NAME, _BIRTH_DATE, _SEX = 0x00100010, 0x00100030, 0x00100040
_OTHER_NAMES, _COMMENTS = 0x00101001, 0x00104000
#: The traits, in the order in which they stand.
_TRAITS: Final = (_NAME, _BIRTH_DATE, _SEX, _OTHER_NAMES, OTHER_IDS, _COMMENTS)
_OWNED: Final = frozenset(_TRAITS)
_KEYWORDS: Final = {
    _NAME: "PatientName",
    _BIRTH_DATE: "PatientBirthDate",
    _SEX: "PatientSex",
    _OTHER_NAMES: "OtherPatientNames",
    OTHER_IDS: "OtherPatientIDsSequence",
    _COMMENTS: "PatientComments",
}
#: Where the walk ends, as that of `scan`: SeriesInstanceUID.
_LAST: Final = 0x0020000E
#: Length to End, and the length of the group that changes.
_STALE: Final = frozenset({0x00080001, 0x00100000})
#: Longest value looked at, bytes: that of a short VR.
_MAX_VALUE: Final = 65534

_NIA_OID: Final = "1.2.250.1.213.1.4.9"
_INS: Final = re.compile(r"[0-9A-Z]{1,64}", re.ASCII)
_OID: Final = re.compile(r"[0-9.]{1,64}", re.ASCII)
_PLACE: Final = re.compile(rb"[0-9][0-9AB][0-9]{3}")

_SHORT = struct.Struct("<HH2sH").pack
_LONG = struct.Struct("<HH2sHI").pack
_HEAD = struct.Struct("<HHI").pack
#: Bytes of a head with a long length.
_LONG_HEAD: Final = 12


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" "
    if vr in SHORT_VRS:
        return _SHORT(tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    return _LONG(tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value


def _item(value: bytes) -> bytes:
    return _HEAD(ITEM >> 16, ITEM & 0xFFFF, len(value)) + value


def ins_item(patient: Patient) -> bytes:
    """Write the item of Other Patient IDs Sequence that holds the INS (interfaces.md 3.2).

    Raises `ValueError` for a matricule or a domain that is none.
    """
    if _INS.fullmatch(patient.ins) is None or _OID.fullmatch(patient.ins_oid) is None:
        raise ValueError("no INS matricule with its domain")
    issuer = b"ASIP-SANTE-INS-NIA" if patient.ins_oid == _NIA_OID else b"ASIP-SANTE-INS-NIR"
    authority = _element(0x00400032, b"UT", patient.ins_oid.encode("ascii")) + _element(
        0x00400033, b"CS", b"ISO"
    )
    return _item(
        _element(0x00100020, b"LO", patient.ins.encode("ascii"))
        + _element(0x00100021, b"LO", issuer)
        + _element(0x00100022, b"CS", b"TEXT")
        + _element(0x00100024, b"SQ", _item(authority))
    )


class TraitInserter:
    """Rewrites one data set without file meta; any cutting of the input gives the same output.

    `max_bytes` bounds how far the patient's group may be, `max_depth` how deep sequences nest. Raises
    `ValueError` when `patient` carries no INS.
    """

    def __init__(self, patient: Patient, max_bytes: int = 1024 * 1024, max_depth: int = MAX_DEPTH) -> None:
        self._patient = patient
        self._ins = ins_item(patient)
        self._max_bytes = max_bytes
        #: Keywords of the traits that could not be written, for the log.
        self.left: tuple[str, ...] = ()
        self._seen = 0
        self._rest = b""
        self._nesting = Nesting(max_depth=max_depth)
        self._character_set = CharacterSet()
        #: Traits whose place has not come yet.
        self._waiting = list(_TRAITS)
        #: Element whose value is being read: head, tag, VR, value so far, bytes to come (None: delimited).
        self._held: tuple[bytes, int, bytes, bytearray] | None = None
        #: Bytes of the present value still to come, and whether they are left out.
        self._value = 0
        self._dropping = False
        self._done = False

    @property
    def done(self) -> bool:
        """True once every trait is written: `feed` gives back what it gets."""
        return self._done

    def feed(self, data: Buffer) -> Buffer:
        """Take the next bytes; return those that can be written. Raises `DatasetRefused`."""
        if self.done:
            return data
        self._seen += len(data)
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        out: list[Buffer] = []
        position = self._walk(memoryview(data), out)
        if self._done:
            out.append(memoryview(data)[position:])
        else:
            self._rest = bytes(data[position:])
            if self._seen > self._max_bytes:
                raise DatasetRefused(f"the patient's group is not over in {self._max_bytes} bytes")
        return b"".join(out)

    def finish(self) -> bytes:
        """Say that the data set has ended; return the last bytes to write.

        Raises `DatasetRefused` when it ended inside an element before its traits were written.
        """
        if self._done:
            return b""
        if self._rest or self._value or self._held is not None or self._nesting.stack:
            raise DatasetRefused("the data set ends inside an element")
        out: list[Buffer] = []
        self._insert_before(UNDEFINED, out)
        self._done = True
        return b"".join(out)

    # -- walking -----------------------------------------------------------------------------------

    def _walk(self, view: memoryview, out: list[Buffer]) -> int:
        """Write what can be written of `view`; return where the rest of it begins."""
        size = len(view)
        position = 0
        while not self._done:
            if self._value:
                taken = min(self._value, size - position)
                self._pass(view[position : position + taken], out)
                position += taken
                self._value -= taken
                if self._value:
                    return position
                if not self._nesting.stack:
                    self._release(out)
            if position + 8 > size:
                return position
            used = (
                self._inside(view, position, out)
                if self._nesting.stack
                else self._head(view, position, out)
            )
            if not used:
                return position
            position += used
        return position

    def _pass(self, piece: memoryview, out: list[Buffer]) -> None:
        if self._held is not None:
            self._held[3].extend(piece)
            if len(self._held[3]) > _MAX_VALUE:
                raise DatasetRefused(f"{tag_text(self._held[1])} holds too many bytes")
        elif not self._dropping:
            out.append(piece)

    def _inside(self, view: memoryview, position: int, out: list[Buffer]) -> int:
        """Pass one head inside a sequence of undefined length; return its length, 0 if more is needed."""
        reach = position + self._max_bytes + MAX_SEQUENCE
        following = self._nesting.step(view, position, len(view), reach)
        if following is None:
            return 0
        # The value after the head is passed with it as far as it is there.
        used = min(following, len(view)) - position
        self._pass(view[position : position + used], out)
        self._value = following - position - used
        if not self._nesting.stack:
            self._release(out)
        return used

    def _head(self, view: memoryview, position: int, out: list[Buffer]) -> int:
        """Take the head at `position`; return its length, 0 if more is needed."""
        head, long_length = LITTLE
        group, number, vr, length = head(view, position)
        tag = group << 16 | number
        used = 8
        if group < 0xFFFE and vr not in SHORT_VRS:
            if not is_vr(vr):
                raise no_vr(tag)
            if position + 12 > len(view):
                return 0
            length = long_length(view, position + 8)[0]
            used = 12
        if group < FIRST_GROUP or group >= 0xFFFE:
            raise DatasetRefused(f"{tag_text(tag)} does not belong in a data set")
        self._insert_before(tag, out)
        if tag > _LAST:
            self._done = True
            return 0
        if length == UNDEFINED:
            if tag in _STALE or (tag in _OWNED and tag != OTHER_IDS) or tag == _CHARACTER_SET:
                raise DatasetRefused(f"{tag_text(tag)} has an undefined length")
            self._nesting.push(vr == b"UN")
        elif self._seen - len(view) + position + used + length > self._max_bytes:
            raise DatasetRefused(f"{tag_text(tag)} holds {length} bytes")
        else:
            self._value = length
        self._take(tag, vr, bytes(view[position : position + used]), out)
        if not self._value and not self._nesting.stack:
            self._release(out)
        return used

    def _take(self, tag: int, vr: bytes, head: bytes, out: list[Buffer]) -> None:
        """Decide what becomes of an element: passed, dropped, or looked at."""
        self._dropping = tag in _STALE
        if tag in _OWNED:
            if self._waiting[:1] != [tag]:
                raise DatasetRefused(f"{tag_text(tag)} stands twice or out of its place")
            self._waiting.pop(0)
        if tag in _OWNED or tag == _CHARACTER_SET:
            self._held = (head, tag, vr, bytearray())
        elif not self._dropping:
            out.append(head)

    def _release(self, out: list[Buffer]) -> None:
        """The element is over: write what becomes of the one that was looked at."""
        self._dropping = False
        held, self._held = self._held, None
        if held is None:
            return
        head, tag, vr, value = held
        if tag == _CHARACTER_SET:
            self._character_set = CharacterSet(bytes(value))
            out.append(head + value)
        else:
            undefined = vr == b"UN" and head[8:] == b"\xff\xff\xff\xff"
            out.append(self._written(tag, vr, bytes(value), undefined) or head + value)

    # -- traits ------------------------------------------------------------------------------------

    def _insert_before(self, tag: int, out: list[Buffer]) -> None:
        """Write the traits whose place is before `tag`."""
        while self._waiting and self._waiting[0] < tag:
            out.append(self._written(self._waiting.pop(0), b"", b"", False))

    def _written(self, tag: int, vr: bytes, before: bytes, undefined: bool) -> bytes:
        """Return the element of a trait in place of `before`; empty to leave things as they are."""
        if tag == OTHER_IDS:
            return self._other_ids(vr, before, undefined)
        patient = self._patient
        if tag == _BIRTH_DATE:
            return self._text(tag, b"DA", date(patient.birth_date))
        if tag == _SEX:
            return self._text(tag, b"CS", patient.sex if patient.sex in ("M", "F", "O") else "")
        if tag == _COMMENTS:
            there = before.strip(b"\0 ")
            if there and _PLACE.fullmatch(there) is None:
                self._leave(tag)
                return b""
            return self._text(tag, b"LT", clean(patient.birth_place))
        fit = Fitter(
            (
                patient.family,
                patient.given,
                patient.given_list,
                patient.used_family,
                patient.used_given,
            )
        )
        if self._character_set.multibyte:
            fit.codec = "utf-8"
        if tag == _NAME:
            return self._text(tag, b"PN", fit.person_name(patient.family, patient.given))
        names = [
            fit.given_list(patient.given_list or patient.given),
            fit.person_name(patient.used_family, patient.used_given),
        ]
        return self._other_names(names, before.strip(b"\0 "))

    def _text(self, tag: int, vr: bytes, text: str) -> bytes:
        value = self._character_set.encode(text) if text else None
        if value is None:
            self._leave(tag)
            return b""
        return _element(tag, vr, value)

    def _other_names(self, names: list[str], before: bytes) -> bytes:
        """Write the names of the INS first, and those that were there behind them.

        The used name is told from an alias by standing second, so its place stays empty without one.
        """
        written = [self._character_set.encode(name) for name in names]
        if None in written or not any(written):
            self._leave(_OTHER_NAMES)
            return b""
        given, used = (each or b"" for each in written)
        placed = given + b"\\" + used
        ours = placed if used else given
        if before in (b"", given, ours):
            value = ours
        elif before.startswith(placed + b"\\"):
            value = before
        else:
            value = placed + b"\\" + before
        if len(value) > _MAX_VALUE:
            self._leave(_OTHER_NAMES)
            return b""
        return _element(_OTHER_NAMES, b"PN", value)

    def _other_ids(self, vr: bytes, before: bytes, undefined: bool) -> bytes:
        """Put the INS in the place of the first item of its domain, else behind all items."""
        if vr == b"UN":
            # A sequence nobody knew is in Implicit VR (PS3.5 6.2.2).
            converter = ImplicitToExplicit()
            length = UNDEFINED if undefined else len(before)
            converted = converter.feed(_HEAD(OTHER_IDS >> 16, OTHER_IDS & 0xFFFF, length) + before)
            before = (converted + converter.finish())[_LONG_HEAD:]
        items: list[bytes] = []
        placed = False
        for item in read_items(before, implicit=False):
            if item.authority != self._patient.ins_oid:
                items.append(item.raw)
            elif not placed:
                items.append(self._ins)
                placed = True
        if not placed:
            items.append(self._ins)
        return _element(OTHER_IDS, b"SQ", b"".join(items))

    def _leave(self, tag: int) -> None:
        self.left += (_KEYWORDS[tag],)
