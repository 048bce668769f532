"""What a compressed image says of itself, read before any decoder sees it.

A decoder allocates what the head of its stream announces. So the head is read here first, in a few lines
that allocate nothing, and held against the data set: a stream that announces other dimensions than Rows
and Columns is refused (threats.md, forged dimensions). JPEG and JPEG-LS share one chain of marker
segments (ITU-T T.81 B.1, T.87 C.1); JPEG 2000 opens with SIZ (T.800 A.5.1).
"""

from __future__ import annotations

import re
import struct
from typing import Final

import attrs

from drimbox.dicom.elements import Buffer, DatasetRefused
from drimbox.dicom.syntaxes import (
    JPEG2000,
    JPEG2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
)

_SOF_OF: Final[dict[str, frozenset[int]]] = {
    # Extended files may hold baseline frames, and the other way round happens: both are sequential DCT.
    JPEG_BASELINE: frozenset({0xC0, 0xC1}),
    JPEG_EXTENDED: frozenset({0xC0, 0xC1}),
    JPEG_LOSSLESS: frozenset({0xC3}),
    JPEG_LOSSLESS_SV1: frozenset({0xC3}),
    JPEG_LS_LOSSLESS: frozenset({0xF7}),
    JPEG_LS_NEAR_LOSSLESS: frozenset({0xF7}),
}
#: Every start-of-frame marker: SOF0 to SOF15 without DHT, JPG and DAC, and SOF55 of JPEG-LS.
_ALL_SOF: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_SOS: Final = 0xDA
_SOT: Final = 0xFF90
#: A codestream has at most 65,535 tiles; of tile-parts we follow as many.
_MAX_TILES: Final = 65_535
#: A marker, with the fill bytes that may stand before it; a stuffed zero makes none (T.81 B.1.1).
_MARKER: Final = re.compile(rb"\xff+[\x01-\xfe]")
_RESTARTS: Final = range(0xD0, 0xD8)
#: Neither a marker nor what decoders put in the place of what is missing.
_MORE: Final = bytes.fromhex("b54a2d961ac773d80fe45b8ea7392ed4") * 2
#: Marker segments before the first scan beyond which a stream is taken for an attack.
_MAX_SEGMENTS: Final = 1000


@attrs.frozen
class StreamHead:
    """Head of one compressed frame."""

    rows: int
    columns: int
    samples: int
    #: Bits of one sample.
    precision: int
    #: JPEG 2000 says whether samples are signed; None where the stream does not.
    signed: bool | None = None
    #: JPEG of three components: True YCbCr, False RGB, None when only the data set can tell.
    ycc: bool | None = None
    #: True for samples at fewer places than pixels (JPEG chroma).
    subsampled: bool = False
    #: JPEG 2000: a component transform is undone by the decoder.
    transformed: bool = False
    #: True when this very stream has lost something: DCT, NEAR > 0, or the 9-7 wavelet.
    lossy: bool = False


def read_head(syntax: str, stream: Buffer) -> StreamHead:
    """Read the head of a JPEG, JPEG-LS or JPEG 2000 frame. Raises `DatasetRefused`."""
    try:
        if syntax in _SOF_OF:
            return _jpeg(memoryview(stream), _SOF_OF[syntax])
        if syntax in (JPEG2000, JPEG2000_LOSSLESS):
            return _jpeg2000(memoryview(stream))
    except (struct.error, IndexError):
        raise DatasetRefused("a compressed frame ends inside its head") from None
    raise DatasetRefused("no decoder for this transfer syntax")


def _jpeg(stream: memoryview, expected: frozenset[int]) -> StreamHead:
    if bytes(stream[:2]) != b"\xff\xd8":
        raise DatasetRefused("a frame is no JPEG image")
    position = 2
    frame: memoryview | None = None
    kind = 0
    adobe: int | None = None
    jfif = False
    for _ in range(_MAX_SEGMENTS):
        if stream[position] != 0xFF:
            raise DatasetRefused("a JPEG frame without its markers")
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte (T.81 B.1.1.2)
            position += 1
            continue
        length = struct.unpack_from(">H", stream, position + 2)[0]
        body = stream[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise DatasetRefused("a JPEG frame ends inside a marker segment")
        position += 2 + length
        if marker in _ALL_SOF:
            if frame is not None or marker not in expected:
                raise DatasetRefused(f"a JPEG frame of kind SOF{marker - 0xC0}, not of its transfer syntax")
            frame, kind = body, marker
        elif marker == 0xEE and bytes(body[:5]) == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker == 0xE0 and bytes(body[:5]) == b"JFIF\0":
            jfif = True
        elif marker == _SOS:
            if frame is None:
                break
            check_end(stream)
            return _frame_head(frame, kind, adobe, jfif, body)
    raise DatasetRefused("a JPEG frame without its head")


def _frame_head(
    frame: memoryview, kind: int, adobe: int | None, jfif: bool, scan: memoryview
) -> StreamHead:
    precision, rows, columns, samples = struct.unpack_from(">BHHB", frame)
    if len(frame) != 6 + 3 * samples:
        raise DatasetRefused("a JPEG frame head of the wrong length")
    numbers = bytes(frame[6::3])
    ycc: bool | None = None
    if samples == 3:
        # Adobe's marker says it; JFIF allows nothing else than YCbCr; some encoders name their components.
        ycc = adobe != 0 if adobe is not None else True if jfif else False if numbers == b"RGB" else None
    return StreamHead(
        rows,
        columns,
        samples,
        precision,
        ycc=ycc,
        subsampled=len(set(bytes(frame[7::3]))) > 1,
        # The first parameter after the components of a JPEG-LS scan is NEAR (T.87 C.2.3).
        lossy=kind in (0xC0, 0xC1) or (kind == 0xF7 and scan[1 + 2 * scan[0]] > 0),
    )


def _jpeg2000(stream: memoryview) -> StreamHead:
    if bytes(stream[:4]) != b"\xff\x4f\xff\x51":
        raise DatasetRefused("a frame is no JPEG 2000 codestream")
    length, _, right, bottom, left, top = struct.unpack_from(">HHIIII", stream, 4)
    samples = struct.unpack_from(">H", stream, 40)[0]
    if length != 38 + 3 * samples:
        raise DatasetRefused("a JPEG 2000 head of the wrong length")
    parts = [struct.unpack_from(">BBB", stream, 42 + 3 * number) for number in range(min(samples, 5))]
    if not parts or any(part != parts[0] for part in parts):
        raise DatasetRefused("JPEG 2000 components that differ")
    depth, across, down = parts[0]
    if right <= left or bottom <= top or (across, down) != (1, 1):
        raise DatasetRefused("a JPEG 2000 frame that is empty or subsampled")
    transformed, lossy, tiles = _coding_style(stream, 4 + length)
    _check_tiles(stream, tiles)
    return StreamHead(
        bottom - top,
        right - left,
        samples,
        (depth & 0x7F) + 1,
        signed=depth >= 0x80,
        transformed=transformed,
        lossy=lossy,
    )


def _coding_style(stream: memoryview, position: int) -> tuple[bool, bool, int]:
    """Find COD in the main head (T.800 A.6.1): is there a component transform, is the wavelet 9-7.

    The third answer is the offset of the first tile-part.
    """
    found: tuple[bool, bool] | None = None
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", stream, position)
        if marker == _SOT:
            if found is None:
                break
            return *found, position
        if marker == 0xFF52:
            found = stream[position + 8] != 0, stream[position + 13] == 0
        if marker < 0xFF00 or length < 2:
            break
        position += 2 + length
    raise DatasetRefused("a JPEG 2000 head without coding style")


def _check_tiles(stream: memoryview, position: int) -> None:
    """Follow the tile-parts to the end: the decoder would fill in what a truncated stream lacks."""
    for _ in range(_MAX_TILES):
        marker = struct.unpack_from(">H", stream, position)[0]
        if marker == 0xFFD9:
            return
        if marker != _SOT:
            break
        length = struct.unpack_from(">I", stream, position + 6)[0]
        if length == 0:  # the last one, up to the end of the codestream (T.800 A.4.2)
            check_end(stream)
            return
        position += length
        if length < 14 or position > len(stream):
            break
        if position == len(stream):
            # Complete, save for its end marker: some encoders leave it out, and decoders do not mind.
            return
    raise DatasetRefused("a JPEG 2000 frame is cut short")


def with_more(stream: bytes) -> bytes:
    """Return a JPEG or JPEG 2000 frame with bytes of no meaning behind each run of its coded pixels.

    A decoder passes over them behind a run that is whole, and takes them for pixels in one that was cut
    short, where it would otherwise fill in what is missing. The frame is one whose head was read
    (`read_head`). Raises `DatasetRefused` when it is no chain of marker segments.
    """
    return _scans_with_more(stream) if stream[:2] == b"\xff\xd8" else _tiles_with_more(stream)


def _scans_with_more(stream: bytes) -> bytes:
    pieces: list[bytes] = []
    position, copied, size = 2, 0, len(stream)
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.match(stream, position)
        if marker is None:
            break
        position = marker.end()
        kind = stream[position - 1]
        if kind == 0xD9:
            return b"".join((*pieces, stream[copied:]))
        position += int.from_bytes(stream[position : position + 2], "big")
        if kind != _SOS:
            continue
        while (found := _MARKER.search(stream, position)) is not None:
            position = found.start()
            pieces += (stream[copied:position], _MORE)
            copied = position
            if stream[found.end() - 1] not in _RESTARTS:
                break
            position = found.end()
        if position >= size:
            break
    raise DatasetRefused("a JPEG frame without its end")


def _tiles_with_more(stream: bytes) -> bytes:
    """Lengthen the last part of each tile (T.800 A.4.2)."""
    _, _, position = _coding_style(memoryview(stream), 4 + int.from_bytes(stream[4:6], "big"))
    pieces, last = [stream[:position]], {}
    while stream[position : position + 2] == b"\xff\x90":
        tile, length = struct.unpack_from(">HI", stream, position + 4)
        # Without a length it goes up to the end of the codestream.
        end = position + length if length else stream.rindex(b"\xff\xd9")
        last[tile] = len(pieces)
        pieces.append(stream[position:end])
        position = end
    for number in last.values():
        part = bytearray(pieces[number])
        (length,) = struct.unpack_from(">I", part, 6)
        if length:
            struct.pack_into(">I", part, 6, length + len(_MORE))
        pieces[number] = bytes(part) + _MORE
    return b"".join((*pieces, stream[position:]))


def ends_image(stream: Buffer) -> bool:
    """Say whether these bytes end with EOI or EOC, padding apart; neither occurs inside coded data."""
    return b"\xff\xd9" in bytes(stream[-8:])


def check_end(stream: Buffer) -> None:
    """Refuse a frame without its end marker: decoders paint what is missing grey."""
    if not ends_image(stream):
        raise DatasetRefused("a compressed frame is cut short")
