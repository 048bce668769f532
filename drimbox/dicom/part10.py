"""DICOM files on the wire: the header we put before a data set, and reading the one others put.

A WADO-RS part and a stored KOS are Part 10 files (PS3.10 7.1): 128 bytes of preamble, `DICM`, the file
meta elements of group 0002 in Explicit VR Little Endian, then the data set exactly as it came. A PACS
sends only the data set, so the header is made here, once an image: everything that does not change
from one image of a series to the next is remembered.

The preamble is always zero: it is the place where a file can pretend to be a program (CVE-2019-11687).
"""

from __future__ import annotations

import functools
import struct
from typing import Final

import attrs

from drimbox.dicom.elements import SHORT_VRS, Buffer, DatasetRefused
from drimbox.model import is_ae_title, is_uid

#: (0002,0012): names this implementation in the files and associations it makes (PS3.7 D.3.3.2).
IMPLEMENTATION_CLASS_UID: Final = "2.25.212052626913945801561141163133249834299"
#: (0002,0013)
IMPLEMENTATION_VERSION_NAME: Final = "DRIMBOX_1"

_PREFIX = b"\0" * 128 + b"DICM"
_META_VERSION = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<I")
_HEAD = b"\x02\x00\x00\x00UL\x04\x00"
#: Bytes of file meta we are willing to read; real ones stay under 1 KB.
MAX_FILE_META: Final = 64 * 1024


def _element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(2, number, vr, len(value)) + value


@functools.lru_cache(maxsize=512)
def _before(sop_class_uid: str) -> bytes:
    if not is_uid(sop_class_uid):
        raise DatasetRefused("the SOP class is not a UID")
    return _META_VERSION + _element(0x0002, b"UI", sop_class_uid)


@functools.lru_cache(maxsize=512)
def _after(transfer_syntax_uid: str, source_ae_title: str) -> bytes:
    if not is_uid(transfer_syntax_uid):
        raise DatasetRefused("the transfer syntax is not a UID")
    meta = (
        _element(0x0010, b"UI", transfer_syntax_uid)
        + _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID)
        + _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME)
    )
    title = source_ae_title.strip()
    if title:
        if not is_ae_title(title):
            raise DatasetRefused("the source is not an AE title")
        meta += _element(0x0016, b"AE", title)
    return meta


def file_preamble(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str = ""
) -> bytes:
    """Make what stands before a data set in a Part 10 file: preamble, `DICM`, group 0002 (PS3.10 7.1).

    `source_ae_title` is (0002,0016), left out when blank. Raises `DatasetRefused` for anything that is
    not a UID or an AE title: all four come from a peer.
    """
    if not is_uid(sop_instance_uid):
        raise DatasetRefused("the SOP instance is not a UID")
    meta = (
        _before(sop_class_uid)
        + _element(0x0003, b"UI", sop_instance_uid)
        + _after(transfer_syntax_uid, source_ae_title)
    )
    return _PREFIX + _HEAD + _LONG.pack(len(meta)) + meta


@attrs.frozen
class FileMeta:
    """What group 0002 of a file says, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int


def read_file_meta(data: Buffer) -> FileMeta:
    """Read the file meta of a whole file, or of its first bytes, without looking at the data set.

    The group ends where the elements of group 0002 end: group lengths are wrong often enough to be no
    guide. A missing UID is an empty string, except the transfer syntax, without which nothing can be
    read. Raises `DatasetRefused` when this is no Part 10 file or its meta is cut.
    """
    view = memoryview(data)
    if bytes(view[128:132]) != b"DICM":
        raise DatasetRefused("no DICM at byte 128: not a Part 10 file")
    position, values = 132, {0x0002: "", 0x0003: "", 0x0010: ""}
    while position + 8 <= len(view):
        group, number, vr, length = _SHORT.unpack_from(view, position)
        if group != 2:
            break
        start = position + 8
        if vr not in SHORT_VRS:
            if start + 4 > len(view):
                raise DatasetRefused("file meta is cut short")
            length = _LONG.unpack_from(view, start)[0]
            start += 4
        position = start + length
        if position > min(len(view), MAX_FILE_META):
            raise DatasetRefused("file meta is cut short or too long")
        if number in values:
            values[number] = bytes(view[start:position]).rstrip(b"\0 ").decode("ascii", "replace")
    if any(uid and not is_uid(uid) for uid in values.values()) or not values[0x0010]:
        raise DatasetRefused("file meta without a transfer syntax, or with something that is not a UID")
    return FileMeta(values[0x0002], values[0x0003], values[0x0010], position)
