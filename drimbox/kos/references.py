"""The two long lists of a manifest: its evidence, and its content tree (interfaces.md 3.2, 3.3).

Both name every instance of the study, thousands of times the same four short elements. A general writer
spends some 200 µs an instance on objects it throws away, a second for a large study, on the thread that
carries everybody's images; so these lists, and only they, are written directly in Explicit VR Little
Endian. pydicom writes the rest, and reads all of it back in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from drimbox.dicom.elements import SHORT_VRS
from drimbox.kos.classes import value_type
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage
from drimbox.model import Instance, Series

_SHORT = struct.Struct("<HH2sH").pack
_LONG = struct.Struct("<HH2sHI").pack
_ITEM = struct.Struct("<HHI").pack
_IS_RANGE: Final = range(-(2**31), 2**31)

_DESCRIPTION = ("113012", "DCM", "Key Object Description")
_OF_INTEREST = ("113000", "DCM", "Of Interest")


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Write one element, its value padded to an even length."""
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    if vr in SHORT_VRS:
        return _SHORT(tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    return _LONG(tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value


def sequence(tag: int, items: Iterable[bytes]) -> bytes:
    """Write a sequence of items, each given as its elements; lengths are defined."""
    body = b"".join(_ITEM(0xFFFE, 0xE000, len(item)) + item for item in items)
    return _LONG(tag >> 16, tag & 0xFFFF, b"SQ", 0, len(body)) + body


def ordered(series: Iterable[Series]) -> list[Series]:
    """Put series in the order a person expects, so that the same study always gives the same list."""
    return sorted(series, key=lambda each: (each.number is None, each.number or 0, each.series_uid))


def evidence(
    study_uid: str,
    series: Iterable[Series],
    *,
    base: str,
    location_uid: str | None,
    key_images: Mapping[str, Sequence[KeyImage]],
    codec: str,
) -> bytes:
    """Write (0040,A375): the study's series, where to fetch each, and their instances.

    `base` stands before the series UID in RetrieveURL. `key_images` gives, by SOPInstanceUID, the key
    image notes that cite an instance; their text is written in `codec`.
    """
    items = []
    for each in series:
        references = []
        for instance in _instances(each):
            notes = key_images.get(instance.sop_instance_uid)
            nested = sequence(0x00081199, (_key_image(note, codec) for note in notes)) if notes else b""
            references.append(_reference(instance, nested))
        item = (
            element(0x00081190, b"UR", (base + each.series_uid).encode("ascii"))
            + sequence(0x00081199, references)
            + element(0x0020000E, b"UI", each.series_uid.encode("ascii"))
            + _number(0x00200011, each.number)
        )
        if location_uid is not None:
            item += element(0x0040E011, b"UI", location_uid.encode("ascii"))
        items.append(item)
    study = sequence(0x00081115, items) + element(0x0020000D, b"UI", study_uid.encode("ascii"))
    return sequence(0x0040A375, [study])


def content(series: Iterable[Series], text: bytes) -> bytes:
    """Write (0040,A730): one item an instance, then the text, already encoded."""
    items = []
    for each in series:
        for instance in _instances(each):
            items.append(
                sequence(0x00081199, [_reference(instance)]) + _RELATION[value_type(instance.sop_class_uid)]
            )
    items.append(
        _RELATION["TEXT"] + sequence(0x0040A043, [code(*_DESCRIPTION)]) + element(0x0040A160, b"UT", text)
    )
    return sequence(0x0040A730, items)


def code(value: str, scheme: str, meaning: str) -> bytes:
    """Write the elements of a code item; all three are ASCII."""
    return (
        element(0x00080100, b"SH", value.encode("ascii"))
        + element(0x00080102, b"SH", scheme.encode("ascii"))
        + element(0x00080104, b"LO", meaning.encode("ascii"))
    )


_RELATION: Final = {
    kind: element(0x0040A010, b"CS", b"CONTAINS") + element(0x0040A040, b"CS", kind.encode("ascii"))
    for kind in ("IMAGE", "COMPOSITE", "TEXT")
}


def _instances(series: Series) -> list[Instance]:
    return sorted(
        series.instances, key=lambda each: (each.number is None, each.number or 0, each.sop_instance_uid)
    )


def _number(tag: int, number: int | None) -> bytes:
    # A number that no IS can hold is left out: it is for people only.
    return element(tag, b"IS", b"%d" % number) if number is not None and number in _IS_RANGE else b""


def _reference(instance: Instance, nested: bytes = b"") -> bytes:
    """Write the elements of a reference; `nested` goes where ascending tags want it."""
    uids = _uids(instance.sop_class_uid, instance.sop_instance_uid)
    return uids + nested + _number(0x00200013, instance.number)


def _uids(sop_class_uid: str, sop_instance_uid: str) -> bytes:
    return element(0x00081150, b"UI", sop_class_uid.encode("ascii")) + element(
        0x00081155, b"UI", sop_instance_uid.encode("ascii")
    )


def _key_image(note: KeyImage, codec: str) -> bytes:
    return (
        _uids(KOS_SOP_CLASS, note.sop_instance_uid)
        + element(0x0020000E, b"UI", note.series_uid.encode("ascii"))
        + sequence(0x0040A043, [code(*_OF_INTEREST)])
        + sequence(0x0040A730, [element(0x0040A160, b"UT", note.description.encode(codec))])
    )
