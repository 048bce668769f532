"""WADO-RS answers made byte by byte, so that each can be wrong in one thing."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from drimbox.dicom.part10 import file_preamble

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_SV1 = "1.2.840.10008.1.2.4.70"
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "2.25.1001"
SERIES = "2.25.1001.1"
BOUNDARY = "d2f3c9e4b7a1d2f3c9e4b7a1"
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")

#: The first bytes of a JPEG-LS image: SOI, SOF55.
JLS_START = (
    b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x02\x00\x02\x01\x01\x11\x00"
    + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
)
#: A lossless JPEG of predictor 1, and of predictor 6: SOI, SOF3, SOS.
_SOF3 = b"\xff\xd8\xff\xc3\x00\x0b\x08\x00\x02\x00\x02\x01\x01\x11\x00"
SV1_START = _SOF3 + b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
SV6_START = _SOF3 + b"\xff\xda\x00\x08\x01\x01\x00\x06\x00\x00"


def element(tag: int, vr: bytes, value: bytes, *, pad: bool = True) -> bytes:
    if len(value) % 2 and pad:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    if vr in _LONG:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def ui(tag: int, value: str) -> bytes:
    return element(tag, b"UI", value.encode("ascii"))


def us(tag: int, value: int) -> bytes:
    return element(tag, b"US", struct.pack("<H", value))


def fragments(*pieces: bytes) -> bytes:
    """(7FE0,0010) encapsulated: an empty offset table, then the pieces."""
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    pieces = tuple(piece + b"\0" * (len(piece) % 2) for piece in pieces)
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", *pieces))
    return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def native(size: int = 8) -> bytes:
    return element(0x7FE00010, b"OW", b"\1" * size)


def dataset(
    instance: str,
    *,
    study: str = STUDY,
    series: str = SERIES,
    sop_class: str = CT,
    patient: str = "IPP1",
    rows: int = 2,
    pixels: bytes = native(),
    extra: bytes = b"",
) -> bytes:
    """An image of 2 x 2 words; `extra` stands between the image module and the pixels."""
    return (
        ui(0x00080016, sop_class)
        + ui(0x00080018, instance)
        + element(0x00100020, b"LO", patient.encode())
        + ui(0x0020000D, study)
        + ui(0x0020000E, series)
        + us(0x00280002, 1)
        + element(0x00280004, b"CS", b"MONOCHROME2")
        + us(0x00280010, rows)
        + us(0x00280011, 2)
        + us(0x00280100, 16)
        + extra
        + pixels
    )


def part10(data: bytes, instance: str, syntax: str = EXPLICIT, sop_class: str = CT) -> bytes:
    return file_preamble(sop_class, instance, syntax) + data


def image(number: int = 1, syntax: str = EXPLICIT, **changes: object) -> bytes:
    """A whole good instance, number from 1."""
    uid = f"{SERIES}.{number}"
    return part10(dataset(uid, **changes), uid, syntax)  # type: ignore[arg-type]


def part(content: bytes, syntax: str | None = EXPLICIT, header: bytes | None = None) -> bytes:
    """A part with its headers, without delimiter."""
    if header is None:
        kind = b"application/dicom" + (b";transfer-syntax=" + syntax.encode() if syntax else b"")
        header = b"Content-Type: " + kind + b"\r\nContent-ID: <1@db1.349.example>\r\n"
    return header + b"\r\n" + content


def multipart(parts: Sequence[bytes], *, closing: bool = True) -> bytes:
    delimiter = b"--" + BOUNDARY.encode()
    body = b"".join(delimiter + b"\r\n" + each + b"\r\n" for each in parts)
    return body + (delimiter + b"--\r\n" if closing else b"")


def chunked(body: bytes, size: int = 4096, *, last: bool = True) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return data + (b"0\r\n\r\n" if last else b"")


KIND = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def head(status: str = "200 OK", kind: str | None = KIND, *more: str, version: str = "HTTP/1.1") -> bytes:
    lines = [f"{version} {status}", *([f"Content-Type: {kind}"] if kind else []), *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(*parts: bytes, closing: bool = True, last: bool = True, kind: str | None = KIND) -> bytes:
    """A whole chunked answer of these parts."""
    body = multipart(parts, closing=closing)
    return head("200 OK", kind, "Transfer-Encoding: chunked") + chunked(body, last=last)
