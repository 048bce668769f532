"""Lossy targets: close to the original, and marked as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from pydicom import dcmread

from drimbox.config import TranscodingSettings
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.lossy import appended, ratio_text
from drimbox.dicom.syntaxes import (
    EXPLICIT_LE,
    JPEG2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
)
from drimbox.dicom.transcode import transcode
from tests.dicom.images import decoded, encoded, frames_of, image, read, texture, write_file

SETTINGS = TranscodingSettings()


def turn(data: bytes, source: str, target: str, settings: TranscodingSettings = SETTINGS) -> bytes:
    return b"".join(transcode(data, source, target, settings))


def smooth(bits: int, **options: Any) -> Any:
    """A larger image, as images are: what a lossy codec is made for."""
    return texture(128, 130, bits, **options)


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize(
    ("pixels", "stored"),
    [
        (smooth(8), 8),
        (smooth(12), 12),
        (smooth(12, signed=True), 12),
        (smooth(16), 16),
        (smooth(8, frames=3), 8),
    ],
)
def test_jpeg_2000_is_close_and_marked(pixels: Any, stored: int, tmp_path: Path) -> None:
    out = turn(encoded(image(pixels, stored=stored)), EXPLICIT_LE, JPEG2000)
    # Pillow decodes it: another binding of the codec than ours.
    ds = dcmread(write_file(tmp_path / "out.dcm", out, JPEG2000))
    seen = ds.pixel_array.reshape(pixels.shape)
    assert seen.dtype.kind == pixels.dtype.kind
    error = numpy.abs(seen.astype(int) - pixels).mean() / 2**stored
    assert 0 < error < 0.02
    assert ds.LossyImageCompression == "01"
    assert ds.LossyImageCompressionMethod == "ISO_15444_1"
    compressed = sum(len(frame) for frame in frames_of(out))
    native = pixels.size * (1 if stored <= 8 else 2)
    assert abs(float(ds.LossyImageCompressionRatio) - native / compressed) < 0.05
    # The ratio of the configuration is over the bits stored.
    assert pixels.size * stored / 8 / compressed > 8
    assert ds.SOPInstanceUID == read(out).SOPInstanceUID == "2.25.777"
    assert ds.ImageType == ["ORIGINAL", "PRIMARY"]


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.peer("dcmdjpeg")
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "RGB", "YBR_FULL"])
def test_jpeg_baseline_is_close_and_marked(photometric: str, tmp_path: Path) -> None:
    colour = not photometric.startswith("MONO")
    pixels = smooth(8, samples=3 if colour else 1)
    out = turn(encoded(image(pixels, stored=8, photometric=photometric)), EXPLICIT_LE, JPEG_BASELINE)
    ds = read(out)
    assert ds.PhotometricInterpretation == ("YBR_FULL_422" if colour else photometric)
    assert ds.get("PlanarConfiguration", 0) == 0
    assert ds.LossyImageCompressionMethod == "ISO_10918_1"
    frame = frames_of(out)[0]
    assert b"\xff\xc0" in frame
    if photometric != "RGB":  # +cn leaves the components as they are coded
        seen = numpy.frombuffer(decoded(tmp_path, out, JPEG_BASELINE), "u1").astype(int)
        assert numpy.abs(seen - pixels.ravel()).mean() < 4
    else:
        path = write_file(tmp_path / "out.dcm", out, JPEG_BASELINE)
        assert numpy.abs(dcmread(path).pixel_array.astype(int) - pixels[0]).mean() < 4


def test_rgb_in_jpeg_2000_is_transformed_and_says_so(tmp_path: Path) -> None:
    pixels = smooth(8, samples=3)
    out = turn(encoded(image(pixels, stored=8, photometric="RGB", planar=1)), EXPLICIT_LE, JPEG2000)
    ds = dcmread(write_file(tmp_path / "out.dcm", out, JPEG2000))
    assert (ds.PhotometricInterpretation, ds.PlanarConfiguration) == ("YBR_ICT", 0)
    assert numpy.abs(ds.pixel_array.astype(int) - pixels[0]).mean() < 5


def test_each_lossy_step_is_told_in_its_order() -> None:
    """From JPEG 2000 to JPEG: two ratios, two methods, side by side (PS3.3 C.7.6.1.1.5)."""
    first = turn(encoded(image(smooth(8), stored=8)), EXPLICIT_LE, JPEG2000)
    second = read(turn(first, JPEG2000, JPEG_BASELINE))
    assert list(second.LossyImageCompressionMethod) == ["ISO_15444_1", "ISO_10918_1"]
    assert second.LossyImageCompressionRatio[0] == read(first).LossyImageCompressionRatio
    assert len(second.LossyImageCompressionRatio) == 2
    kept = read(turn(first, JPEG2000, JPEG_LS_LOSSLESS))
    assert kept.LossyImageCompressionMethod == "ISO_15444_1"


def test_a_lossy_source_that_does_not_say_so_is_made_to() -> None:
    """Decoded to a lossless syntax, the only trace of the loss would be gone."""
    ds = read(turn(encoded(image(smooth(8), stored=8)), EXPLICIT_LE, JPEG_BASELINE))
    compressed = sum(len(frame) for frame in frames_of(encoded_again(ds)))
    del ds.LossyImageCompression, ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod
    for target in (EXPLICIT_LE, JPEG_LOSSLESS_SV1):
        out = read(turn(encoded_again(ds), JPEG_BASELINE, target))
        assert out.LossyImageCompression == "01"
        assert out.LossyImageCompressionMethod == "ISO_10918_1"
        assert abs(float(out.LossyImageCompressionRatio) - 128 * 130 / compressed) < 0.1
    twice = read(turn(encoded_again(ds), JPEG_BASELINE, JPEG2000))
    assert list(twice.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]


def encoded_again(ds: Any) -> bytes:
    ds["PixelData"].is_undefined_length = True
    return encoded(ds)


def test_what_must_not_be_lost_is_refused() -> None:
    """An overlay above the stored bits, a palette index: no lossy form of them makes sense."""
    with_overlay = smooth(12) | (1 << 14)
    for ds, target in (
        (image(with_overlay, stored=12), JPEG2000),
        (image(smooth(8), stored=8, photometric="PALETTE COLOR"), JPEG2000),
        (image(smooth(8), stored=8, photometric="PALETTE COLOR"), JPEG_BASELINE),
        (image(smooth(12), stored=12), JPEG_BASELINE),
        (image(smooth(8, signed=True), stored=8), JPEG_BASELINE),
    ):
        with pytest.raises(DatasetRefused):
            turn(encoded(ds), EXPLICIT_LE, target)


def test_quality_and_ratio_are_those_of_the_configuration() -> None:
    data = encoded(image(smooth(8), stored=8))
    low = turn(data, EXPLICIT_LE, JPEG_BASELINE, TranscodingSettings(jpeg_quality=20))
    high = turn(data, EXPLICIT_LE, JPEG_BASELINE, TranscodingSettings(jpeg_quality=95))
    assert len(frames_of(low)[0]) < len(frames_of(high)[0]) / 2
    tight = turn(data, EXPLICIT_LE, JPEG2000, TranscodingSettings(jpeg2000_ratio=20))
    assert 18 < 128 * 130 / len(frames_of(tight)[0]) < 26


def test_ratios_are_decimal_strings_and_steps_stay_side_by_side() -> None:
    assert [ratio_text(*pair) for pair in ((30, 10), (10, 3), (10**9, 1), (1, 3), (1000, 10))] == [
        "3", "3.3333", "9999999", "0.3333", "100",
    ]  # fmt: skip
    assert appended("", "a", 0) == "a"
    assert appended("a", "b", 1) == "a\\b"
    assert appended("", "b", 1) == "\\b"
