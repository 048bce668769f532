"""One frame decoded, one frame encoded: the only module that calls a codec.

Between the two a frame is an array of *words*: unsigned numbers as wide as Bits Allocated, colour by
pixel, with the very bits the native pixel data would have. Signedness is a matter of the header; the
words of a signed image are its two's complement.

Lossless means the same words come back, from every decoder. Two habits of decoders decide how wide we
encode. Those of JPEG lossless and JPEG-LS know no sign, and few extend that of the stored bits: signed
samples are encoded with all their allocated bits. And bits above the stored ones may hold an overlay, or
what a modality left there: when they are not empty, all allocated bits are encoded too (PS3.5 8.1.1).
Otherwise the precision is Bits Stored, as PS3.5 8.2 has it.

Everything here may crash, hang or devour memory when it meets what its authors did not foresee; it is
called in a worker process with limits, never in the gateway (threats.md, codec out of bounds).
"""

from __future__ import annotations

from typing import Any, Final

import imagecodecs
import jpeg_ls
import numpy
from openjpeg.utils import decode as decode_jpeg2000
from openjpeg.utils import encode_buffer as encode_jpeg2000
from rle.rle import decode_frame as decode_rle

from drimbox.config import TranscodingSettings
from drimbox.dicom.elements import Buffer, DatasetRefused
from drimbox.dicom.pixels import PixelFacts
from drimbox.dicom.streams import StreamHead, read_head, with_more
from drimbox.dicom.syntaxes import (
    JPEG2000,
    JPEG2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    RLE_LOSSLESS,
)

#: An array of words, rows x columns or rows x columns x samples.
Words = Any

_DCT: Final = frozenset({JPEG_BASELINE, JPEG_EXTENDED})
_JPEG: Final = _DCT | {JPEG_LOSSLESS, JPEG_LOSSLESS_SV1}
_JPEG_LS: Final = frozenset({JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS})
_JPEG2000: Final = frozenset({JPEG2000, JPEG2000_LOSSLESS})
_ONE_SAMPLE: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_THREE_SAMPLES: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})

#: Bytes of an image that its JPEG-LS form, head included, may exceed.
_TINY: Final = 4096


def _word(facts: PixelFacts) -> Any:
    """Return the little endian type of a word."""
    return numpy.dtype(f"<u{facts.bits_allocated // 8}")


def _shape(facts: PixelFacts) -> tuple[int, ...]:
    return (facts.rows, facts.columns) + ((facts.samples,) if facts.samples > 1 else ())


def check_kind(facts: PixelFacts) -> None:
    """Refuse pixels that no codec here takes, native ones included. Raises `DatasetRefused`."""
    if facts.floating or facts.bits_allocated not in (8, 16, 32):
        raise DatasetRefused(f"pixels of {facts.bits_allocated} bits cannot be encoded again")
    if facts.photometric not in (_ONE_SAMPLE if facts.samples == 1 else _THREE_SAMPLES):
        raise DatasetRefused("a photometric interpretation that cannot be encoded again")


def decode(syntax: str, stream: Buffer, facts: PixelFacts) -> tuple[Words, str, bool]:
    """Decode one compressed frame of `syntax`.

    Returns its words, their photometric interpretation, and whether this very stream had lost something.
    Raises `DatasetRefused` when the stream is not the image of the header, or its decoder gives up.
    """
    check_kind(facts)
    if syntax == RLE_LOSSLESS:
        return _decode_rle(stream, facts), _plain(facts.photometric), False
    head = read_head(syntax, stream)
    if (head.rows, head.columns, head.samples) != (facts.rows, facts.columns, facts.samples):
        raise DatasetRefused(
            f"a frame of {head.rows} x {head.columns} x {head.samples} under a header of"
            f" {facts.rows} x {facts.columns} x {facts.samples}"
        )
    if not 1 <= head.precision <= facts.bits_allocated or (head.subsampled and syntax not in _DCT):
        raise DatasetRefused(f"a frame of {head.precision} bits in {facts.bits_allocated} allocated")
    try:
        words, photometric = _decoded(syntax, bytes(stream), head, facts)
        if syntax not in _JPEG_LS:
            # These decoders tell nobody of pixels that they had to make up: those depend on what follows.
            again, _ = _decoded(syntax, with_more(bytes(stream)), head, facts)
            if not numpy.array_equal(words, again):
                raise DatasetRefused("a compressed frame is cut short")
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise DatasetRefused(f"a frame cannot be decoded: {type(error).__name__}") from error
    if words.shape != _shape(facts):
        raise DatasetRefused("a decoder made another image than its stream announced")
    return _widened(words, head, facts), photometric, head.lossy


def _decoded(syntax: str, data: bytes, head: StreamHead, facts: PixelFacts) -> tuple[Words, str]:
    if syntax in _JPEG:
        return _decode_jpeg(syntax, data, head, facts)
    if syntax in _JPEG_LS:
        raw, said = jpeg_ls.decode_buffer(data)
        words = numpy.frombuffer(raw, dtype=_stream_word(head.precision))
        if head.samples > 1 and said["interleave_mode"] == 0:
            planes = words.reshape(head.samples, head.rows, head.columns)
            words = numpy.ascontiguousarray(planes.transpose(1, 2, 0))
        return words.reshape(_shape(facts)), _plain(facts.photometric)
    raw = decode_jpeg2000(data, 0, False)
    words = numpy.frombuffer(raw, dtype=_stream_word(head.precision)).reshape(_shape(facts))
    if facts.colour and (head.transformed or facts.photometric in ("YBR_ICT", "YBR_RCT")):
        return words, "RGB"
    return words, _plain(facts.photometric)


def _stream_word(precision: int) -> Any:
    return numpy.dtype("<u1" if precision <= 8 else "<u2" if precision <= 16 else "<u4")


def _plain(photometric: str) -> str:
    """Chroma is at every pixel once decoded."""
    return "YBR_FULL" if photometric == "YBR_FULL_422" else photometric


def _decode_jpeg(syntax: str, data: bytes, head: StreamHead, facts: PixelFacts) -> tuple[Words, str]:
    if not facts.colour:
        return imagecodecs.jpeg8_decode(data), facts.photometric
    if syntax in _DCT:
        # What the stream says of itself wins: the header is often left wrong by encoders.
        ycc = head.ycc if head.ycc is not None else facts.photometric != "RGB"
        space = "YCBCR" if ycc else "RGB"
        return imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace="RGB"), "RGB"
    # Lossless JPEG transforms no colour, whatever its markers say (PS3.5 8.2.1).
    words = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
    return words, _plain(facts.photometric)


def _decode_rle(stream: Buffer, facts: PixelFacts) -> Words:
    width = facts.bits_allocated // 8
    # One segment for each byte of each sample (PS3.5 G.2); the codec believes the stream.
    if int.from_bytes(stream[:4], "little") != facts.samples * width:
        raise DatasetRefused("an RLE frame of another number of segments than its header")
    try:
        raw = decode_rle(bytes(stream), facts.rows * facts.columns, facts.bits_allocated, "<")
    except (ValueError, OverflowError) as error:
        raise DatasetRefused(f"an RLE frame cannot be decoded: {type(error).__name__}") from error
    if len(raw) != facts.frame_samples * width:
        raise DatasetRefused("an RLE frame of another length than its header")
    words = numpy.frombuffer(raw, dtype=_word(facts))
    if facts.samples == 1:
        return words.reshape(facts.rows, facts.columns)
    planes = words.reshape(facts.samples, facts.rows, facts.columns)
    return numpy.ascontiguousarray(planes.transpose(1, 2, 0))


def _widened(words: Words, head: StreamHead, facts: PixelFacts) -> Words:
    """Turn samples of the stream's precision into words: sign extended when the header is signed."""
    word = _word(facts)
    bits, precision = facts.bits_allocated, head.precision
    if head.signed and not facts.signed and precision < words.dtype.itemsize * 8:
        # The header wins over the stream: same bits, no sign.
        words = words & words.dtype.type((1 << precision) - 1)
    words = words.astype(word, copy=False)
    if facts.signed and precision < bits:
        shift = bits - precision
        words = ((words << shift).view(f"<i{bits // 8}") >> shift).view(word)
    return words


def native_words(frame: Buffer, facts: PixelFacts) -> Words:
    """Return the words of one native frame, colour by pixel; chroma of YBR_FULL_422 at every pixel."""
    flat = numpy.frombuffer(frame, dtype=_word(facts))
    if facts.photometric == "YBR_FULL_422":
        if facts.columns % 2:
            raise DatasetRefused("YBR_FULL_422 of an odd number of columns")
        # Y1 Y2 Cb Cr for two pixels (PS3.3 C.7.6.3.1.2).
        pairs = flat.reshape(facts.rows, facts.columns // 2, 4)
        words = numpy.empty((facts.rows, facts.columns // 2, 2, 3), dtype=flat.dtype)
        words[..., 0] = pairs[..., 0:2]
        words[..., 1] = pairs[..., 2:3]
        words[..., 2] = pairs[..., 3:4]
        return words.reshape(_shape(facts))
    if facts.samples > 1 and facts.planar == 1:
        planes = flat.reshape(facts.samples, facts.rows, facts.columns)
        return numpy.ascontiguousarray(planes.transpose(1, 2, 0))
    return flat.reshape(_shape(facts))


def _fits_stored(words: Words, facts: PixelFacts) -> bool:
    """Say whether the bits above the stored ones hold nothing but the sign."""
    if facts.high_bit != facts.bits_stored - 1:
        return False
    if facts.bits_stored == facts.bits_allocated:
        return True
    if not facts.signed:
        return int(words.max()) >> facts.bits_stored == 0
    numbers = words.view(f"<i{facts.bits_allocated // 8}")
    half = 1 << (facts.bits_stored - 1)
    return -half <= int(numbers.min()) and int(numbers.max()) < half


def _lossless_precision(words: Words, facts: PixelFacts) -> int:
    if facts.bits_allocated == 8:
        return 8
    # Under 9 bits decoders would make bytes of what the header calls words.
    if facts.signed or facts.bits_stored <= 8 or not _fits_stored(words, facts):
        return 16
    return facts.bits_stored


def encode(
    target: str, words: Words, facts: PixelFacts, photometric: str, settings: TranscodingSettings
) -> tuple[Buffer, str]:
    """Encode one frame; return its bytes and their photometric interpretation.

    `photometric` is that of the words. Raises `DatasetRefused` when `target` cannot hold such words
    (`targets.producible` says so beforehand, save for what only the words tell).
    """
    samples = facts.samples
    if target == JPEG_LS_LOSSLESS:
        return _encode_jpeg_ls(words, facts), photometric
    if target == JPEG_LOSSLESS_SV1:
        precision = _lossless_precision(words, facts)
        space = "RGB" if samples > 1 else None  # that is: no colour transform
        stream = imagecodecs.jpeg8_encode(
            words,
            lossless=True,
            predictor=1,
            bitspersample=precision,
            colorspace=space,
            outcolorspace=space,
        )
        return stream, photometric
    if not _fits_stored(words, facts):
        raise DatasetRefused("bits above the stored ones would be lost")
    if target == JPEG_BASELINE:
        if samples == 1:
            return imagecodecs.jpeg8_encode(words, settings.jpeg_quality), photometric
        stream = imagecodecs.jpeg8_encode(
            words,
            settings.jpeg_quality,
            colorspace="RGB" if photometric == "RGB" else "YCBCR",
            outcolorspace="YCBCR",
            subsampling="422",
        )
        return stream, "YBR_FULL_422"
    if target == JPEG2000:
        return _encode_jpeg2000(words, facts, photometric, settings)
    raise DatasetRefused("no encoder for this transfer syntax")


def _encode_jpeg_ls(words: Words, facts: PixelFacts) -> Buffer:
    if words.nbytes < _TINY:
        # The other library gives the encoder no more room than the image takes; this one has no precision
        # to choose, which costs a tiny image nothing.
        return imagecodecs.jpegls_encode(words)
    # Interleaved by pixel: within a thousandth of the other two orders in size, and twice as fast.
    mode = 2 if facts.samples > 1 else 0
    precision = _lossless_precision(words, facts)
    stream: bytearray = jpeg_ls.encode_buffer(
        words.tobytes(), facts.rows, facts.columns, facts.samples, precision, 0, mode
    )
    return stream


def _encode_jpeg2000(
    words: Words, facts: PixelFacts, photometric: str, settings: TranscodingSettings
) -> tuple[Buffer, str]:
    transform = photometric == "RGB"
    stream = encode_jpeg2000(
        words.astype(_stream_word(facts.bits_stored), copy=False).tobytes(),
        facts.columns,
        facts.rows,
        facts.samples,
        facts.bits_stored,
        facts.signed,
        photometric_interpretation=1 if transform else 0,
        use_mct=transform,
        compression_ratios=[settings.jpeg2000_ratio],
    )
    return stream, "YBR_ICT" if transform else photometric
