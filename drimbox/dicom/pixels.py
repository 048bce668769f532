"""What the header of an image says of its pixels, and whether its pixel data can hold them.

Every number of group 0028 comes from outside, and decoders have been broken with forged ones
(threats.md). `read_facts` reads them with their bounds; `PixelFacts.expected` is the arithmetic on them;
`check_frames` holds them against the bytes that are really there. All of it happens before a codec is
called, and before anything is allocated by those numbers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

import attrs

from drimbox.dicom.elements import Buffer, DatasetRefused, Encoding, encoding_of, tag_text
from drimbox.dicom.outline import Element, outline
from drimbox.dicom.syntaxes import (
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    RLE_LOSSLESS,
)

SAMPLES: Final = 0x00280002
PHOTOMETRIC: Final = 0x00280004
PLANAR: Final = 0x00280006
FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
BITS_ALLOCATED: Final = 0x00280100
BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
LOSSY: Final = 0x00282110
LOSSY_RATIO: Final = 0x00282112
LOSSY_METHOD: Final = 0x00282114
PIXEL_DATA: Final = 0x7FE00010
ICONS: Final = 0x00880200
FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_PIXEL_DATA: Final = 0x7FE00009
#: Extended Offset Table, its lengths, and the total length of encapsulated pixel data (PS3.5 A.4).
OFFSET_TABLES: Final = (0x7FE00001, 0x7FE00002, 0x7FE00003)

#: Whole samples that a byte of compressed data can possibly stand for: the shortest code is one bit a
#: sample, or two (DC and end of block) for 64 of them that chroma may spread over four times as many
#: pixels, or an RLE run of 128 bytes in two. What claims more is forged. JPEG-LS and JPEG 2000 have no such
#: limit: a blank image takes next to nothing there.
_MOST_SAMPLES: Final = {
    JPEG_BASELINE: 1024, JPEG_EXTENDED: 1024, JPEG_LOSSLESS: 8, JPEG_LOSSLESS_SV1: 8, RLE_LOSSLESS: 64,
}  # fmt: skip
_MAX_FRAMES: Final = 200_000
#: Integer String (PS3.5 6.2) of what cannot be negative.
_COUNT: Final = re.compile(r"\+?[0-9]{1,12}", re.ASCII)


@attrs.frozen
class PixelFacts:
    """The Image Pixel module (PS3.3 C.7.6.3), as far as a transcoding needs it."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int = 0
    frames: int = 1
    #: Float or Double Float Pixel Data: native, and no codec for it.
    floating: bool = False

    @property
    def colour(self) -> bool:
        """True for three samples a pixel."""
        return self.samples == 3

    @property
    def frame_samples(self) -> int:
        """Samples of one decoded frame."""
        return self.rows * self.columns * self.samples

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame of whole bytes a sample."""
        return self.frame_samples * (self.bits_allocated // 8)

    @property
    def expected(self) -> int:
        """Bytes of native pixel data, without padding (PS3.5 8.1.1)."""
        bits = self.frames * self.frame_samples * self.bits_allocated
        if self.photometric == "YBR_FULL_422":
            # Two pixels share their chroma (PS3.3 C.7.6.3.1.2): four samples for two pixels.
            bits = bits * 2 // 3
        return (bits + 7) // 8


def read_image_facts(dataset: Buffer, source: str) -> PixelFacts | None:
    """Read what `targets.candidates` needs to know, without touching a pixel; None without pixels.

    `dataset` is whole, without file meta, in the syntax `source`. Raises `DatasetRefused`.
    """
    encoding = encoding_of(source)
    return read_facts(dataset, outline(dataset, encoding), encoding)


def read_facts(data: Buffer, elements: Sequence[Element], encoding: Encoding) -> PixelFacts | None:
    """Read the Image Pixel module of the root; None for an object without pixels.

    Raises `DatasetRefused` when a number is missing or makes no sense.
    """
    places = {element.tag: element for element in elements}
    if PIXEL_DATA not in places:
        if FLOAT_PIXEL_DATA not in places and DOUBLE_PIXEL_DATA not in places:
            return None
        size = 32 if FLOAT_PIXEL_DATA in places else 64
        return PixelFacts(0, 0, 1, size, size, size - 1, True, "MONOCHROME2", floating=True)
    order = ">" if encoding is Encoding.EXPLICIT_BIG else "<"

    def raw(tag: int) -> bytes:
        place = places.get(tag)
        if place is None or place.undefined or place.end - place.value > 64:
            return b""
        return bytes(memoryview(data)[place.value : place.end])

    def number(tag: int, default: int | None = None) -> int:
        value = raw(tag)
        if len(value) < 2:
            if default is None:
                raise DatasetRefused(f"{tag_text(tag)} is missing")
            return default
        found: int = struct.unpack_from(order + "H", value)[0]
        return found

    stored = number(BITS_STORED)
    facts = PixelFacts(
        rows=number(ROWS),
        columns=number(COLUMNS),
        samples=number(SAMPLES, 1),
        bits_allocated=number(BITS_ALLOCATED),
        bits_stored=stored,
        high_bit=number(HIGH_BIT, stored - 1 if stored else 0),
        signed=number(PIXEL_REPRESENTATION, 0) == 1,
        photometric=text_of(raw(PHOTOMETRIC)),
        planar=number(PLANAR, 0),
        frames=_frames(raw(FRAMES)),
    )
    _check_numbers(facts)
    return facts


def text_of(value: bytes) -> str:
    """Return an ASCII value without its padding."""
    return value.decode("latin-1").strip("\0 ")


def _frames(value: bytes) -> int:
    text = text_of(value)
    if not text:
        return 1
    if _COUNT.fullmatch(text) is None:
        raise DatasetRefused("Number of Frames is not a number")
    return int(text)


def _check_numbers(facts: PixelFacts) -> None:
    """Refuse what no image can be, whatever its bytes."""
    if facts.rows < 1 or facts.columns < 1:
        raise DatasetRefused("an image without rows or columns")
    if facts.samples not in (1, 3, 4):
        raise DatasetRefused(f"{facts.samples} samples a pixel")
    if not 1 <= facts.frames <= _MAX_FRAMES:
        raise DatasetRefused(f"{facts.frames} frames, {_MAX_FRAMES} allowed")
    if facts.bits_allocated not in (1, 8, 12, 16, 24, 32, 64):
        raise DatasetRefused(f"{facts.bits_allocated} bits allocated")
    if not 1 <= facts.bits_stored <= facts.bits_allocated or not (
        facts.bits_stored - 1 <= facts.high_bit < facts.bits_allocated
    ):
        raise DatasetRefused("bits stored that do not fit in the bits allocated")
    if facts.planar not in (0, 1):
        raise DatasetRefused(f"planar configuration {facts.planar}")
    if (facts.samples == 1) != facts.photometric.startswith(("MONOCHROME", "PALETTE")):
        raise DatasetRefused("a photometric interpretation of another number of samples")


def check_frames(
    facts: PixelFacts, syntax: str, frames: Sequence[Sequence[Buffer]], max_decoded: int
) -> None:
    """Hold the header against fragments: can these bytes be that image? Raises `DatasetRefused`.

    `max_decoded` bounds the decoded instance, in bytes.
    """
    check_size(facts, max_decoded)
    most = _MOST_SAMPLES.get(syntax)
    for fragments in frames:
        size = sum(len(fragment) for fragment in fragments)
        needed = facts.frame_bytes if syntax == RLE_LOSSLESS else facts.frame_samples
        if size < 2 or (most is not None and needed > most * size):
            raise DatasetRefused(
                f"{size} bytes cannot hold a frame of {facts.rows} x {facts.columns} x {facts.samples}"
            )


def check_native(facts: PixelFacts, length: int, max_decoded: int) -> None:
    """Hold the header against native pixel data of `length` bytes. Raises `DatasetRefused`.

    Less than a frame too much is padding, as decoders take it; too little is never accepted.
    """
    check_size(facts, max_decoded)
    surplus = length - facts.expected
    if surplus < 0 or surplus >= max(facts.expected // facts.frames, 2):
        raise DatasetRefused(f"{length} bytes of pixel data where the header announces {facts.expected}")


def check_size(facts: PixelFacts, max_decoded: int) -> None:
    """Refuse an instance whose decoded pixels exceed `max_decoded` bytes."""
    decoded = facts.frames * facts.frame_samples * facts.bits_allocated // 8
    if decoded > max_decoded:
        raise DatasetRefused(f"{decoded} bytes of decoded pixels, {max_decoded} allowed")
