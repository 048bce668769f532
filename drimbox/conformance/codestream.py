"""Recognising a compressed image by its first bytes, to hold it against the transfer syntax that is told.

A JPEG says what it is in its frame header (ISO/IEC 10918-1 B.2.2, ISO/IEC 14495-1 C.2.2): the marker SOF
names the process, and for lossless ones SOS names the predictor. JPEG 2000 and MPEG-2 begin with their
own start code. Nothing is decoded; what is not recognised is simply not judged.
"""

from __future__ import annotations

import enum

from drimbox.dicom import syntaxes


class Codec(enum.Enum):
    """What the first bytes of a fragment are."""

    JPEG_BASELINE = "JPEG de base (SOF0)"
    JPEG_EXTENDED = "JPEG étendu (SOF1)"
    JPEG_PROGRESSIVE = "JPEG progressif (SOF2)"
    JPEG_LOSSLESS = "JPEG sans perte (SOF3)"
    JPEG_LOSSLESS_SV1 = "JPEG sans perte, prédicteur 1 (SOF3)"
    JPEG_LS = "JPEG-LS"
    JPEG2000 = "JPEG 2000"
    MPEG2 = "MPEG-2"


_ALLOWED = {
    syntaxes.JPEG_BASELINE: {Codec.JPEG_BASELINE},
    # Process 2 and 4: a baseline image is one of them (PS3.5 A.4.1).
    syntaxes.JPEG_EXTENDED: {Codec.JPEG_EXTENDED, Codec.JPEG_BASELINE},
    syntaxes.JPEG_LOSSLESS: {Codec.JPEG_LOSSLESS, Codec.JPEG_LOSSLESS_SV1},
    syntaxes.JPEG_LOSSLESS_SV1: {Codec.JPEG_LOSSLESS_SV1},
    syntaxes.JPEG_LS_LOSSLESS: {Codec.JPEG_LS},
    syntaxes.JPEG_LS_NEAR_LOSSLESS: {Codec.JPEG_LS},
    syntaxes.JPEG2000_LOSSLESS: {Codec.JPEG2000},
    syntaxes.JPEG2000: {Codec.JPEG2000},
}
_FRAMES = {
    0xC0: Codec.JPEG_BASELINE,
    0xC1: Codec.JPEG_EXTENDED,
    0xC2: Codec.JPEG_PROGRESSIVE,
    0xC3: Codec.JPEG_LOSSLESS,
    0xF7: Codec.JPEG_LS,
}
_SOS = 0xDA


def codec_of(first: bytes) -> Codec | None:
    """Return what a fragment that starts with these bytes is; None when it is not recognised."""
    if first.startswith(b"\xff\x4f\xff\x51"):
        return Codec.JPEG2000
    if first.startswith(b"\x00\x00\x01\xb3"):
        return Codec.MPEG2
    return _jpeg(first) if first.startswith(b"\xff\xd8") else None


def contradicts(codec: Codec, transfer_syntax: str) -> bool:
    """Say whether `codec` cannot stand under this transfer syntax."""
    allowed = _ALLOWED.get(transfer_syntax)
    return allowed is not None and codec not in allowed


def _jpeg(data: bytes) -> Codec | None:
    """Walk over the marker segments up to SOF, and to SOS when the predictor matters."""
    codec: Codec | None = None
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        segment = data[position + 4 : position + 2 + length]
        if marker in _FRAMES:
            codec = _FRAMES[marker]
            if codec is not Codec.JPEG_LOSSLESS:
                return codec
        elif marker == _SOS:
            # Ns, two bytes a component, then the selection value, which is the predictor.
            predictor = segment[1 + 2 * segment[0] :][:1] if segment else b""
            if codec is Codec.JPEG_LOSSLESS and predictor == b"\x01":
                return Codec.JPEG_LOSSLESS_SV1
            return codec if predictor else None
        position += 2 + length
        if length < 2:
            break
    # A lossless JPEG whose scan header was not reached could have any predictor.
    return None
