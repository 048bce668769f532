"""Lossless transcoding gives every kind of pixel back, bit for bit; DCMTK is the judge."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import jpeg_ls
import numpy
import pytest
from openjpeg.utils import encode_buffer
from pydicom.encaps import encapsulate_extended

from drimbox.config import TranscodingSettings
from drimbox.dicom.elements import DatasetRefused, Encoding
from drimbox.dicom.outline import outline
from drimbox.dicom.syntaxes import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
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
from drimbox.dicom.transcode import transcode
from tests.dicom.images import (
    body,
    decoded,
    encoded,
    frames_of,
    image,
    read,
    run,
    texture,
    with_streams,
    write_file,
)

SETTINGS = TranscodingSettings()
LOSSLESS = (JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1)


def turn(data: bytes, source: str, target: str, settings: TranscodingSettings = SETTINGS) -> bytes:
    return b"".join(transcode(data, source, target, settings))


def overlay_in_the_pixels() -> Any:
    pixels = texture(33, 41, 12)
    return pixels | (texture(33, 41, 1) << 14).astype("<u2")


#: Every kind of native image: pixels, and how `image` describes them.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "8 bits": (texture(40, 48, 8), {"stored": 8}),
    "8 bits MONOCHROME1": (texture(40, 48, 8), {"stored": 8, "photometric": "MONOCHROME1"}),
    "8 bits signed": (texture(40, 48, 8, signed=True), {"stored": 8}),
    "6 bits in 8": (texture(40, 48, 6), {"stored": 6}),
    "8 bits in 16": (texture(40, 48, 8), {"stored": 8, "allocated": 16}),
    "10 bits": (texture(40, 48, 10), {"stored": 10}),
    "12 bits": (texture(40, 48, 12), {"stored": 12}),
    "12 bits signed": (texture(40, 48, 12, signed=True), {"stored": 12}),
    "14 bits": (texture(40, 48, 14), {"stored": 14}),
    "15 bits signed": (texture(40, 48, 15, signed=True), {"stored": 15}),
    "16 bits": (texture(40, 48, 16), {"stored": 16}),
    "16 bits signed": (texture(40, 48, 16, signed=True), {"stored": 16}),
    "12 bits with an overlay above": (overlay_in_the_pixels(), {"stored": 12}),
    "palette": (texture(40, 48, 8), {"stored": 8, "photometric": "PALETTE COLOR"}),
    "RGB by pixel": (texture(40, 48, 8, samples=3), {"stored": 8, "photometric": "RGB"}),
    "RGB by plane": (texture(40, 48, 8, samples=3), {"stored": 8, "photometric": "RGB", "planar": 1}),
    "RGB 16 bits": (texture(40, 48, 16, samples=3), {"stored": 16, "photometric": "RGB"}),
    "YBR_FULL": (texture(40, 48, 8, samples=3), {"stored": 8, "photometric": "YBR_FULL"}),
    "odd rows and columns": (texture(7, 5, 8), {"stored": 8}),
    "odd RGB": (texture(7, 5, 8, samples=3), {"stored": 8, "photometric": "RGB"}),
    "one pixel": (texture(1, 1, 8), {"stored": 8}),
    "five frames": (texture(30, 31, 12, frames=5), {"stored": 12}),
    "three colour frames": (
        texture(30, 31, 8, frames=3, samples=3),
        {"stored": 8, "photometric": "RGB", "planar": 1},
    ),
    "noise": (
        numpy.random.default_rng(1).integers(0, 65536, (1, 64, 64)).astype("<u2"),
        {"stored": 16},
    ),
}


def kind(name: str) -> tuple[bytes, bytes]:
    """Return a data set of that kind and its pixels, colour by pixel."""
    pixels, options = KINDS[name]
    allocated = options.get("allocated")
    words = pixels.astype(f"<{pixels.dtype.kind}{allocated // 8}") if allocated else pixels
    return encoded(image(pixels, **options)), words.tobytes()


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dcmdjpls", "dcmdjpeg")
@pytest.mark.parametrize("target", LOSSLESS)
@pytest.mark.parametrize("name", KINDS)
def test_lossless_is_bit_exact_for_another_decoder(name: str, target: str, tmp_path: Path) -> None:
    data, pixels = kind(name)
    out = turn(data, EXPLICIT_LE, target)
    assert decoded(tmp_path, out, target) == pixels
    ds = read(out)
    assert ds.PhotometricInterpretation == read(data).PhotometricInterpretation
    assert ds.get("PlanarConfiguration", 0) == 0
    assert "LossyImageCompression" not in ds


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize(
    "name", [name for name, (pixels, _) in KINDS.items() if pixels.dtype.itemsize == 2]
)
def test_a_decoder_that_reads_no_header_gives_the_very_words(name: str) -> None:
    """Not every decoder extends the sign of the stored bits: the stream itself must hold all of them."""
    data, pixels = kind(name)
    for target, decode in (
        (JPEG_LS_LOSSLESS, lambda stream: jpeg_ls.decode_buffer(stream)[0]),
        (JPEG_LOSSLESS_SV1, lambda stream: imagecodecs.jpeg8_decode(stream).tobytes()),
    ):
        streams = frames_of(turn(data, EXPLICIT_LE, target))
        assert b"".join(bytes(decode(stream)) for stream in streams) == pixels


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("target", LOSSLESS)
@pytest.mark.parametrize("name", KINDS)
def test_lossless_there_and_back_changes_only_the_planes(name: str, target: str) -> None:
    data, pixels = kind(name)
    back = read(turn(turn(data, EXPLICIT_LE, target), target, EXPLICIT_LE))
    there = read(data)
    assert back.PixelData[: len(pixels)] == pixels
    assert back["PixelData"].VR == there["PixelData"].VR
    for ds in (back, there):
        del ds.PixelData
    if "PlanarConfiguration" in there:
        there.PlanarConfiguration = 0
    assert back == there


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dcmcjpls", "dcmcjpeg", "dcmcrle")
@pytest.mark.parametrize(
    ("syntax", "command"),
    [
        (JPEG_LS_LOSSLESS, ("dcmcjpls",)),
        (JPEG_LOSSLESS_SV1, ("dcmcjpeg", "+e1")),
        (JPEG_LOSSLESS, ("dcmcjpeg", "+el", "+sv", "6")),
        (RLE_LOSSLESS, ("dcmcrle",)),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_what_dcmtk_compressed_is_read_bit_exact(
    name: str, syntax: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    data, pixels = kind(name)
    source = body(run(tmp_path, data, EXPLICIT_LE, *command))
    if name == "three colour frames" and command[0] == "dcmcjpeg":
        # dcmcjpeg 3.6.7 mixes the planes of several frames up: what dcmdjpeg reads back is no longer them.
        pixels = decoded(tmp_path, source, JPEG_LOSSLESS_SV1)
    for target in (EXPLICIT_LE, *LOSSLESS):
        if target != syntax:
            out = turn(source, syntax, target)
            assert decoded(tmp_path, out, target) == pixels
            assert read(out).get("PlanarConfiguration", 0) == 0


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dcmdjpls")
@pytest.mark.parametrize("name", ["8 bits", "12 bits", "12 bits signed", "16 bits signed", "RGB by pixel"])
def test_jpeg_2000_lossless_is_read_bit_exact(name: str, tmp_path: Path) -> None:
    pixels, options = KINDS[name]
    ds = image(pixels, **options)
    colour = ds.SamplesPerPixel == 3
    stream = encode_buffer(
        pixels.tobytes(), ds.Columns, ds.Rows, ds.SamplesPerPixel, ds.BitsStored,
        bool(ds.PixelRepresentation), photometric_interpretation=1 if colour else 0,
    )  # fmt: skip
    if colour:
        ds.PhotometricInterpretation = "YBR_RCT"
    source = encoded(with_streams(ds, [stream]))
    for target in (EXPLICIT_LE, JPEG_LS_LOSSLESS):
        out = turn(source, JPEG2000_LOSSLESS, target)
        assert decoded(tmp_path, out, target) == pixels.tobytes()
        assert read(out).PhotometricInterpretation == ("RGB" if colour else "MONOCHROME2")


@pytest.mark.peer("dcmdjpls", "dcmdjpeg")
@pytest.mark.parametrize("target", [*LOSSLESS, JPEG_BASELINE, JPEG2000])
def test_chroma_of_native_422_stands_at_every_pixel_afterwards(target: str, tmp_path: Path) -> None:
    pixels = texture(40, 48, 8, samples=3)
    pixels[..., 1::2, 1:] = pixels[..., 0::2, 1:]
    data = encoded(image(pixels, stored=8, photometric="YBR_FULL_422"))
    out = turn(data, EXPLICIT_LE, target)
    if target in LOSSLESS:
        assert decoded(tmp_path, out, target) == pixels.tobytes()
        assert read(out).PhotometricInterpretation == "YBR_FULL"
    elif target == JPEG_BASELINE:
        lossy = numpy.frombuffer(decoded(tmp_path, out, target), "u1").reshape(pixels[0].shape)
        assert numpy.abs(lossy.astype(int) - pixels[0]).mean() < 3
        assert read(out).PhotometricInterpretation == "YBR_FULL_422"
    else:
        assert read(out).PhotometricInterpretation == "YBR_FULL"


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dcmcjpeg", "dcmdjpeg")
@pytest.mark.parametrize("options", [("+cy", "+s2"), ("+cy", "+s4"), ("+cy", "+n2"), ("+cr",)])
def test_colour_jpeg_is_read_as_dcmtk_reads_it(options: tuple[str, ...], tmp_path: Path) -> None:
    """JPEG baseline, subsampled or not, YCbCr or RGB: the very RGB that dcmdjpeg makes of it."""
    data = encoded(image(texture(41, 48, 8, samples=3), stored=8, photometric="RGB"))
    lossy = body(run(tmp_path, data, EXPLICIT_LE, "dcmcjpeg", "+eb", *options))
    reference = run(tmp_path, lossy, JPEG_BASELINE, "dcmdjpeg", "+cp")
    for target in (EXPLICIT_LE, *LOSSLESS):
        out = turn(lossy, JPEG_BASELINE, target)
        ds = read(out)
        assert (ds.PhotometricInterpretation, ds.PlanarConfiguration) == ("RGB", 0)
        assert ds.LossyImageCompression == "01"
        pixels = numpy.frombuffer(decoded(tmp_path, out, target), "u1")
        wanted = numpy.frombuffer(reference.PixelData[: len(pixels)], "u1").astype(int)
        assert reference.PlanarConfiguration == 0
        assert (pixels == wanted).all()


@pytest.mark.peer("dcmcjpeg", "dcmdjpeg")
def test_twelve_bit_jpeg_is_read_as_dcmtk_reads_it(tmp_path: Path) -> None:
    data = encoded(image(texture(40, 48, 12), stored=12))
    lossy = body(run(tmp_path, data, EXPLICIT_LE, "dcmcjpeg", "+ee"))
    reference = run(tmp_path, lossy, JPEG_EXTENDED, "dcmdjpeg")
    ours = read(turn(lossy, JPEG_EXTENDED, EXPLICIT_LE))
    difference = numpy.frombuffer(ours.PixelData, "<u2").astype(int) - reference.pixel_array.ravel()
    assert numpy.abs(difference).max() <= 1
    assert ours.LossyImageCompressionMethod == "ISO_10918_1"


@pytest.mark.peer("dcmcjpls", "dcmdjpls")
@pytest.mark.parametrize("name", ["8 bits", "12 bits", "RGB by pixel"])
def test_near_lossless_keeps_its_mark(name: str, tmp_path: Path) -> None:
    """Decoding a near-lossless image must not wipe out that it lost something."""
    data, _ = kind(name)
    lossy = body(run(tmp_path, data, EXPLICIT_LE, "dcmcjpls", "+en", "+md", "3"))
    reference = run(tmp_path, lossy, JPEG_LS_NEAR_LOSSLESS, "dcmdjpls")
    ds = read(turn(lossy, JPEG_LS_NEAR_LOSSLESS, JPEG_LS_LOSSLESS))
    assert ds.LossyImageCompression == "01"
    out = turn(lossy, JPEG_LS_NEAR_LOSSLESS, EXPLICIT_LE)
    assert (
        decoded(tmp_path, out, EXPLICIT_LE)
        == reference.PixelData[: len(decoded(tmp_path, out, EXPLICIT_LE))]
    )


@pytest.mark.requirement("DB.SO.41")
@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_BE])
@pytest.mark.parametrize("target", [EXPLICIT_LE, *LOSSLESS])
@pytest.mark.parametrize("name", ["12 bits signed", "RGB by plane", "palette", "five frames"])
def test_other_encodings_come_in(name: str, syntax: str, target: str) -> None:
    data, pixels = kind(name)
    ds = read(data)
    if syntax == EXPLICIT_BE:
        # pydicom writes OW as it stands: turn the words beforehand.
        for tag in (0x60003000, 0x7FE00010, 0x00281201, 0x00281202, 0x00281203):
            if tag in ds and ds[tag].VR == "OW":
                ds[tag].value = numpy.frombuffer(ds[tag].value, "<u2").byteswap().tobytes()
    out = turn(encoded(ds, syntax), syntax, target)
    back = out if target == EXPLICIT_LE else turn(out, target, EXPLICIT_LE)
    result, there = read(back), read(data)
    if there.get("PlanarConfiguration") == 1 and target == EXPLICIT_LE:
        # Nothing but the encoding of heads and numbers has changed.
        assert result.PixelData == there.PixelData
    else:
        assert result.PixelData[: len(pixels)] == pixels
    for left, right in ((result, there), (there, result)):
        for element in left:
            if element.tag not in (0x7FE00010, 0x00280006, 0x00880200):
                assert right[element.tag].value == element.value, element.tag


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("target", [JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_BASELINE, JPEG2000])
def test_everything_but_the_pixels_keeps_its_bytes(target: str) -> None:
    data, _ = kind("RGB by plane")
    out = turn(data, EXPLICIT_LE, target)
    changed = {0x00280004, 0x00280006, 0x00282110, 0x00282112, 0x00282114, 0x7FE00010}
    before = {e.tag: data[e.start : e.end] for e in outline(data, Encoding.EXPLICIT_LITTLE)}
    after = {e.tag: out[e.start : e.end] for e in outline(out, Encoding.EXPLICIT_LITTLE)}
    assert {tag: raw for tag, raw in before.items() if tag not in changed} == {
        tag: raw for tag, raw in after.items() if tag not in changed
    }
    assert list(after) == sorted(after)
    assert len(out) % 2 == 0


def test_group_lengths_and_offset_tables_that_would_lie_are_left_out() -> None:
    pixels, options = KINDS["five frames"]
    ds = image(pixels, **options)
    streams = frames_of(turn(encoded(ds), EXPLICIT_LE, JPEG_LS_LOSSLESS))
    value, table, lengths = encapsulate_extended(streams)
    ds.add_new(0x7FE00010, "OB", value)
    ds["PixelData"].is_undefined_length = True
    ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = table, lengths
    data = encoded(ds)
    group = struct.pack("<HH2sHI", 0x28, 0, b"UL", 4, 1234)
    at = next(e.start for e in outline(data, Encoding.EXPLICIT_LITTLE) if e.tag >= 0x00280000)
    out = read(turn(data[:at] + group + data[at:], JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1))
    assert 0x00280000 not in out
    assert "ExtendedOffsetTable" not in out
    assert "ExtendedOffsetTableLengths" not in out
    native = read(turn(data, JPEG_LS_LOSSLESS, EXPLICIT_LE))
    assert native.PixelData == pixels.tobytes()


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_in_several_fragments_are_found(table: bool, fragments: int) -> None:
    pixels, options = KINDS["five frames"]
    ds = image(pixels, **options)
    streams = frames_of(turn(encoded(ds), EXPLICIT_LE, JPEG_LS_LOSSLESS))
    data = encoded(with_streams(ds, streams, fragments_per_frame=fragments, has_bot=table))
    assert read(turn(data, JPEG_LS_LOSSLESS, EXPLICIT_LE)).PixelData == pixels.tobytes()


def test_one_fragment_a_frame_and_a_true_offset_table() -> None:
    data, _ = kind("five frames")
    out = turn(data, EXPLICIT_LE, JPEG_LOSSLESS_SV1)
    value = read(out).PixelData
    size = struct.unpack_from("<I", value, 4)[0]
    assert size == 20
    for offset, stream in zip(struct.unpack_from("<5I", value, 8), frames_of(out), strict=True):
        tag, length = struct.unpack_from("<II", value, 8 + size + offset)
        assert tag == 0xE000FFFE
        assert length % 2 == 0
        assert value[16 + size + offset :].startswith(stream)


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("name", ["8 bits", "12 bits signed", "16 bits", "RGB by pixel"])
def test_jpeg_lossless_is_written_with_predictor_1(name: str) -> None:
    """`.70` is process 14 with selection value 1; a decoder would not notice another one."""
    stream = frames_of(turn(kind(name)[0], EXPLICIT_LE, JPEG_LOSSLESS_SV1))[0]
    scan = stream.index(b"\xff\xda")
    components = stream[scan + 4]
    predictor, _, point_transform = stream[scan + 5 + 2 * components : scan + 8 + 2 * components]
    assert (predictor, point_transform & 0x0F) == (1, 0)
    assert b"\xff\xc3" in stream[:scan]


@pytest.mark.peer("dcmcjpls")
def test_an_icon_compressed_with_its_image_becomes_native(tmp_path: Path) -> None:
    """It may not stay in the old syntax; one that cannot be decoded is left out (PS3.5 A.4)."""
    data, _ = kind("12 bits")
    source = body(run(tmp_path, data, EXPLICIT_LE, "dcmcjpls"))
    assert read(source).IconImageSequence[0].PixelData != bytes(range(16))
    icon = read(turn(source, JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1)).IconImageSequence[0]
    assert icon.PixelData == bytes(range(16))
    at = source.index(b"\xff\xd8\xff\xf7")
    broken = source[: at + 8] + b"\x09" + source[at + 9 :]  # its rows
    assert "IconImageSequence" not in read(turn(broken, JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1))


def errors_of(path: Path) -> set[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60, check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("target", [*LOSSLESS, JPEG2000, JPEG_BASELINE])
@pytest.mark.parametrize("name", ["8 bits", "12 bits signed", "RGB by plane", "palette"])
def test_dciodvfy_finds_no_new_error(name: str, target: str, tmp_path: Path) -> None:
    data, _ = kind(name)
    try:
        out = turn(data, EXPLICIT_LE, target)
    except DatasetRefused:
        assert target in (JPEG_BASELINE, JPEG2000)
        return
    before = errors_of(write_file(tmp_path / "before.dcm", data, EXPLICIT_LE))
    after = errors_of(write_file(tmp_path / "after.dcm", out, target))
    assert after <= before


@pytest.mark.parametrize("target", [*LOSSLESS, JPEG2000, JPEG_BASELINE])
def test_one_bit_and_packed_pixels_are_refused(target: str) -> None:
    """No codec of the list holds them; `targets` sends them as Explicit VR Little Endian."""
    for allocated in (1, 32):
        ds = image(texture(40, 48, 8), stored=8)
        ds.BitsAllocated = allocated
        ds.BitsStored, ds.HighBit = allocated, allocated - 1
        ds.PixelData = b"\0" * (40 * 48 * allocated // 8)
        with pytest.raises(DatasetRefused):
            turn(encoded(ds), EXPLICIT_LE, target)
