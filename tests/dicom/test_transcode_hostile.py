"""Forged headers and broken streams are refused before a codec is called, and never half decoded."""

from __future__ import annotations

import copy
import struct
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_buffer
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from drimbox.config import TranscodingSettings
from drimbox.dicom import codecs
from drimbox.dicom.bigendian import to_little
from drimbox.dicom.elements import DatasetRefused, Encoding
from drimbox.dicom.fragments import split
from drimbox.dicom.outline import outline, spliced
from drimbox.dicom.pixels import read_image_facts
from drimbox.dicom.streams import read_head
from drimbox.dicom.syntaxes import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from drimbox.dicom.transcode import transcode
from tests.dicom.datasets import ct, encode
from tests.dicom.images import encoded, frames_of, image, read, texture, with_streams

SETTINGS = TranscodingSettings()
ENCAPSULATED = (JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000, RLE_LOSSLESS)
PIXELS = texture(40, 48, 8)
#: Sequence delimiter.
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def turn(data: bytes, source: str, target: str, limits: TranscodingSettings = SETTINGS) -> bytes:
    return b"".join(transcode(data, source, target, limits))


def compressed(syntax: str, frames: int = 1) -> Dataset:
    """Return an image of that syntax, ready to be forged."""
    pixels = texture(40, 48, 8, frames=frames)
    ds = image(pixels, stored=8)
    if syntax == RLE_LOSSLESS:
        encode_frame = get_encoder(RLE_LOSSLESS).encode
        options: dict[str, Any] = {
            "rows": 40, "columns": 48, "samples_per_pixel": 1, "bits_allocated": 8, "bits_stored": 8,
            "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2", "number_of_frames": 1,
        }  # fmt: skip
        streams = [encode_frame(frame.tobytes(), **options) for frame in pixels]
    elif syntax == JPEG2000:
        streams = [encode_buffer(frame.tobytes(), 48, 40, 1, 8, False) for frame in pixels]
    else:
        return reopened(turn(encoded(ds), EXPLICIT_LE, syntax))
    return with_streams(ds, streams)


def reopened(data: bytes) -> Dataset:
    ds = read(data)
    ds["PixelData"].is_undefined_length = True
    return ds


@pytest.fixture
def no_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when any codec is called."""

    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError("a codec was called")

    for name in ("decode_rle", "decode_jpeg2000", "encode_jpeg2000"):
        monkeypatch.setattr(codecs, name, called)
    for module in (codecs.imagecodecs, codecs.jpeg_ls):
        for name in ("jpeg8_decode", "jpeg8_encode", "jpegls_encode", "encode_buffer", "decode_buffer"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, called)


FORGERIES: tuple[dict[str, Any], ...] = (
    {"Rows": 65535},
    {"Columns": 65535},
    {"Rows": 65535, "Columns": 65535},
    {"Rows": 0},
    {"NumberOfFrames": 2},
    {"NumberOfFrames": 200_000},
    {"NumberOfFrames": 10**11},
    {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
    {"SamplesPerPixel": 3},
    {"SamplesPerPixel": 65535},
    {"BitsAllocated": 7},
    {"BitsStored": 9},
    {"BitsStored": 0},
    {"HighBit": 60},
)


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("forged", FORGERIES, ids=str)
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, *ENCAPSULATED])
def test_forged_header_never_reaches_a_codec(syntax: str, forged: dict[str, Any]) -> None:
    ds = sample(syntax) if syntax != EXPLICIT_LE else image(PIXELS, stored=8)
    for name, value in forged.items():
        setattr(ds, name, value)
    target = JPEG_LS_LOSSLESS if syntax != JPEG_LS_LOSSLESS else EXPLICIT_LE
    with pytest.raises(DatasetRefused):
        turn(encode(ds, syntax), syntax, target)


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.parametrize(
    "text", [b"++5 ", b"+-5 ", b"0x5 ", b"1e3 ", b"5_0 ", b"\xb25  ", b"5\\5 ", b"-5  "]
)
def test_a_number_of_frames_that_is_none_is_refused(text: bytes) -> None:
    """Read in the gateway's own process: whatever it says, nothing else than a refusal may come of it."""
    ds = image(PIXELS, stored=8)
    ds.NumberOfFrames = 1000
    data = encoded(ds)
    assert data.count(b"IS\x04\0001000") == 1
    with pytest.raises(DatasetRefused):
        read_image_facts(data.replace(b"IS\x04\0001000", b"IS\x04\0" + text), EXPLICIT_LE)


SAMPLES = {syntax: compressed(syntax) for syntax in ENCAPSULATED}


def sample(syntax: str) -> Dataset:
    return copy.deepcopy(SAMPLES[syntax])


def test_the_samples_above_are_good() -> None:
    """Otherwise the forgeries would be refused for another reason."""
    for syntax, ds in SAMPLES.items():
        target = JPEG_LOSSLESS_SV1 if syntax != JPEG_LOSSLESS_SV1 else JPEG_LS_LOSSLESS
        back = read(turn(turn(encoded(ds), syntax, target), target, EXPLICIT_LE))
        if syntax != JPEG_BASELINE:
            assert back.PixelData == PIXELS.tobytes()


@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, RLE_LOSSLESS])
def test_twice_the_bits_are_not_there(syntax: str) -> None:
    ds = sample(syntax) if syntax != EXPLICIT_LE else image(PIXELS, stored=8)
    ds.BitsAllocated = 16
    with pytest.raises(DatasetRefused):
        turn(encoded(ds), syntax, JPEG_LS_LOSSLESS)


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000])
def test_stream_that_announces_another_image_never_reaches_a_codec(syntax: str) -> None:
    ds = sample(syntax)
    stream = bytearray(frames_of(encoded(ds))[0])
    if syntax == JPEG2000:
        struct.pack_into(">I", stream, 8, 2**31)
    else:
        marker = {JPEG_BASELINE: 0xC0, JPEG_LOSSLESS_SV1: 0xC3, JPEG_LS_LOSSLESS: 0xF7}[syntax]
        struct.pack_into(">H", stream, stream.index(bytes([0xFF, marker])) + 5, 65535)
    ds.PixelData = encapsulate([bytes(stream)])
    with pytest.raises(DatasetRefused, match="under a header of"):
        turn(encoded(ds), syntax, EXPLICIT_LE)


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.usefixtures("no_codec")
def test_chroma_at_fewer_places_belongs_to_no_lossless_stream() -> None:
    pixels = texture(40, 48, 8, samples=3)
    ds = image(pixels, stored=8, photometric="RGB")
    ds = with_streams(ds, [SUBSAMPLED])
    with pytest.raises(DatasetRefused, match="bits in"):
        turn(encoded(ds), JPEG_LOSSLESS_SV1, EXPLICIT_LE)


def subsampled_stream() -> bytes:
    data = encoded(image(texture(40, 48, 8, samples=3), stored=8, photometric="RGB"))
    stream = bytearray(frames_of(turn(data, EXPLICIT_LE, JPEG_LOSSLESS_SV1))[0])
    stream[stream.index(b"\xff\xc3") + 11] = 0x22
    return bytes(stream)


SUBSAMPLED = subsampled_stream()


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("syntax", [one for one in ENCAPSULATED if one != RLE_LOSSLESS])
def test_truncated_frame_never_reaches_a_codec(syntax: str) -> None:
    """Decoders paint what is missing grey; a grey half of an image must not look like one."""
    ds = sample(syntax)
    stream = frames_of(encoded(ds))[0]
    for kept in (2, 10, len(stream) // 4, len(stream) // 2, len(stream) - 20):
        ds.PixelData = encapsulate([stream[:kept]])
        with pytest.raises(DatasetRefused):
            turn(encoded(ds), syntax, EXPLICIT_LE)


def test_truncated_rle_frame_is_refused() -> None:
    ds = sample(RLE_LOSSLESS)
    stream = frames_of(encoded(ds))[0]
    for kept in (2, 10, 64, len(stream) // 2, len(stream) - 20):
        ds.PixelData = encapsulate([stream[:kept]])
        with pytest.raises(DatasetRefused):
            turn(encoded(ds), RLE_LOSSLESS, EXPLICIT_LE)


@given(syntax=st.sampled_from(ENCAPSULATED), cut=st.integers(min_value=0, max_value=10_000))
@settings(deadline=None)
def test_truncated_data_set_is_refused(syntax: str, cut: int) -> None:
    data = encoded(SAMPLES[syntax])
    # Cut before its pixels, between two elements, it is a whole object without pixels.
    first = outline(data, Encoding.EXPLICIT_LITTLE)[-1].start + 1
    with pytest.raises(DatasetRefused):
        turn(data[: first + cut % (len(data) - first)], syntax, EXPLICIT_LE)


def test_limits_of_the_configuration() -> None:
    data = encoded(image(PIXELS, stored=8))
    for limits in (
        attrs.evolve(SETTINGS, max_instance_bytes=len(data) - 1),
        attrs.evolve(SETTINGS, max_decoded_bytes=PIXELS.size - 1),
    ):
        with pytest.raises(DatasetRefused, match="allowed"):
            turn(data, EXPLICIT_LE, JPEG_LS_LOSSLESS, limits)
    enough = attrs.evolve(SETTINGS, max_instance_bytes=len(data), max_decoded_bytes=PIXELS.size)
    assert turn(data, EXPLICIT_LE, JPEG_LS_LOSSLESS, enough)


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.usefixtures("no_codec")
def test_blank_image_of_a_few_bytes_is_bounded_by_the_decoded_size() -> None:
    """JPEG 2000 has no least size: what protects is the limit, before the codec."""
    ds = sample(JPEG2000)
    ds.Rows = ds.Columns = 60000
    with pytest.raises(DatasetRefused, match="allowed"):
        turn(encoded(ds), JPEG2000, EXPLICIT_LE)


@pytest.mark.threat("DICOM deflate bomb")
def test_deflated_data_set_is_not_inflated() -> None:
    with pytest.raises(DatasetRefused, match="deflated"):
        turn(b"\x78\x9c" * 100, "1.2.840.10008.1.2.1.99", EXPLICIT_LE)


def test_native_pixels_must_be_as_many_as_the_header_says() -> None:
    ds = image(PIXELS, stored=8)
    whole = ds.PixelData
    ds.PixelData = whole[:-2]
    with pytest.raises(DatasetRefused, match="announces"):
        turn(encoded(ds), EXPLICIT_LE, JPEG_LS_LOSSLESS)
    ds.PixelData = whole + bytes(len(whole))
    with pytest.raises(DatasetRefused, match="announces"):
        turn(encoded(ds), EXPLICIT_LE, JPEG_LS_LOSSLESS)
    ds.PixelData = whole + b"\0" * 100  # padding, as pydicom and DCMTK take it
    out = turn(encoded(ds), EXPLICIT_LE, JPEG_LS_LOSSLESS)
    assert read(turn(out, JPEG_LS_LOSSLESS, EXPLICIT_LE)).PixelData == whole


def test_fragments_that_cannot_be_shared_out_are_refused() -> None:
    """A frame is never joined with another's bytes."""
    streams = frames_of(encoded(compressed(JPEG_LS_LOSSLESS, frames=3)))
    good = encapsulate(streams, fragments_per_frame=2)
    cases = {
        "a frame is missing": (encapsulate(streams[:2], fragments_per_frame=2), 3),
        "a frame too many": (encapsulate(streams, fragments_per_frame=2, has_bot=False), 2),
        "offsets that meet no fragment": (good.replace(struct.pack("<I", 0), struct.pack("<I", 2), 1), 3),
        "no fragments": (encapsulate(streams)[:20], 3),
    }
    for name, (value, frames) in cases.items():
        with pytest.raises(DatasetRefused):
            pytest.fail(f"{name}: {split(value + END, 0, len(value) + 8, frames)}")
    found = split(good + END, 0, len(good) + 8, 3)
    assert [b"".join(parts).rstrip(b"\0") for parts in found] == [part.rstrip(b"\0") for part in streams]


@pytest.mark.requirement("DB.SO.41")
@pytest.mark.parametrize("undefined", [False, True])
def test_big_endian_is_turned_whole(undefined: bool) -> None:
    """Nested sequences, private elements, numbers of every width: what pydicom would have written."""
    little = ct(undefined=undefined)
    for tag, vr, value in (
        (0x00181000, "UL", 0x01020304), (0x00189073, "FD", 1.5), (0x00186020, "SL", -7),
        (0x00209165, "AT", 0x00181000), (0x00280009, "AT", [0x00181063, 0x00181065]),
        (0x00720074, "FD", [1.0, 2.0]), (0x00720076, "FL", 2.5),
    ):  # fmt: skip
        little.add_new(tag, vr, value)
    big = ct(undefined=undefined, pixels=b"\x02\x01" * 64)
    for element in little:
        if element.tag != 0x7FE00010:
            big[element.tag] = element
    assert to_little(encode(big, EXPLICIT_BE)) == encode(little, EXPLICIT_LE)


@given(place=st.integers(min_value=0), value=st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_readers_stumble(place: int, value: bytes) -> None:
    """Whatever is overwritten: an answer or a refusal, from everything that runs in the gateway."""
    for syntax, data in READ.items():
        at = place % len(data)
        forged = data[:at] + value + data[at + len(value) :]
        try:
            read_image_facts(forged, syntax)
            if syntax == EXPLICIT_BE:
                to_little(forged)
            else:
                elements = outline(forged, Encoding.EXPLICIT_LITTLE)
                last = elements[-1]
                if last.undefined:
                    for parts in split(forged, last.value, last.end, 3):
                        read_head(syntax, b"".join(parts))
        except DatasetRefused:
            pass


READ = {
    EXPLICIT_LE: encode(ct(undefined=True), EXPLICIT_LE),
    IMPLICIT_LE: encode(ct(undefined=True), IMPLICIT_LE),
    EXPLICIT_BE: encode(ct(undefined=True), EXPLICIT_BE),
    JPEG_LS_LOSSLESS: encoded(compressed(JPEG_LS_LOSSLESS, frames=3)),
    JPEG_BASELINE: encoded(compressed(JPEG_BASELINE, frames=3)),
    JPEG2000: encoded(compressed(JPEG2000, frames=3)),
}


@given(dropped=st.sets(st.integers(min_value=0, max_value=40)), added=st.sets(st.integers(1, 0xFFFF)))
def test_spliced_changes_what_it_is_told_and_nothing_else(dropped: set[int], added: set[int]) -> None:
    data = READ[EXPLICIT_LE]
    elements = outline(data, Encoding.EXPLICIT_LITTLE)
    gone = {elements[number].tag for number in dropped if number < len(elements)}
    new = {0x00110000 | number: struct.pack("<HH2sH", 0x11, number, b"UL", 0) for number in added}
    changes: dict[int, Any] = dict.fromkeys(gone) | {tag: [raw] for tag, raw in new.items()}
    out = b"".join(spliced(data, elements, changes))
    kept = {e.tag: data[e.start : e.end] for e in elements if e.tag not in gone}
    found = outline(out, Encoding.EXPLICIT_LITTLE)
    assert {e.tag: out[e.start : e.end] for e in found} == kept | new
    assert [e.tag for e in found] == sorted(kept | new)


@pytest.mark.threat("nested sequences, recursion")
def test_nesting_is_bounded() -> None:
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(DatasetRefused, match="deeper"):
        outline((sequence + item) * 1000, Encoding.EXPLICIT_LITTLE)
    big = struct.pack(">HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    big_item = struct.pack(">HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(DatasetRefused, match="deeper"):
        to_little((big + big_item) * 1000)
