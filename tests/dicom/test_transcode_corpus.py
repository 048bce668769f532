"""Real and odd images of other makers, as pydicom ships them: what it decodes is what comes out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array

from drimbox.config import TranscodingSettings
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.pixels import read_image_facts
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS
from drimbox.dicom.targets import candidates, producible
from drimbox.dicom.transcode import transcode
from tests.dicom.images import Everything, body, read, write_file

SETTINGS = TranscodingSettings()

IMAGES = (
    "693_J2KI.dcm", "CT_small.dcm", "ExplVR_BigEnd.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm",
    "SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm",
    "examples_overlay.dcm", "examples_ybr_color.dcm", "rtdose_rle.dcm", "SC_rgb_rle_32bit_2frame.dcm",
)  # fmt: skip
#: JPEG baseline, whose inverse transform is not the same in every library to the last unit.
LOSSY = (
    "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_small_odd_jpeg.dcm",
)  # fmt: skip
NO_PIXELS = ("rtplan.dcm", "reportsi.dcm", "test-SR.dcm", "waveform_ecg.dcm")


def opened(name: str) -> tuple[pydicom.Dataset, bytes, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.skip(f"this pydicom does not ship {name}")
        ds = pydicom.dcmread(str(path))
    return ds, body(ds), str(ds.file_meta.TransferSyntaxUID)


def seen(path: Path) -> Any:
    """Decode a file to the numbers a viewer would get, colours as RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(path).astype(numpy.int64)


def outputs(data: bytes, syntax: str, folder: Path) -> list[tuple[str, Any]]:
    found = []
    facts = read_image_facts(data, syntax)
    for target in (EXPLICIT_LE, JPEG_LS_LOSSLESS, JPEG_LOSSLESS_SV1):
        if target in producible(syntax, facts):
            out = b"".join(transcode(data, syntax, target, SETTINGS))
            if target == JPEG_LOSSLESS_SV1:  # what pydicom has no decoder for here
                out = b"".join(transcode(out, target, EXPLICIT_LE, SETTINGS))
            shown = EXPLICIT_LE if target == JPEG_LOSSLESS_SV1 else target
            found.append((target, seen(write_file(folder / "out.dcm", out, shown))))
    return found


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("name", IMAGES)
def test_other_makers_images_come_out_as_pydicom_sees_them(name: str, tmp_path: Path) -> None:
    ds, data, syntax = opened(name)
    reference = seen(Path(str(ds.filename)))
    results = outputs(data, syntax, tmp_path)
    assert results
    for target, pixels in results:
        assert pixels.shape == reference.shape, target
        assert (pixels == reference).all(), target


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("name", LOSSY)
def test_other_makers_jpegs_keep_their_colours(name: str, tmp_path: Path) -> None:
    ds, data, syntax = opened(name)
    reference = seen(Path(str(ds.filename)))
    for target, pixels in outputs(data, syntax, tmp_path):
        assert numpy.abs(pixels - reference).max() <= 3, target


@pytest.mark.requirement("DB.CS.83")
@pytest.mark.parametrize("name", NO_PIXELS)
def test_objects_without_pixels_keep_every_byte(name: str) -> None:
    _, data, syntax = opened(name)
    assert read_image_facts(data, syntax) is None
    target = candidates(syntax, Everything(), None)[0]
    assert target == EXPLICIT_LE
    out = b"".join(transcode(data, syntax, target, SETTINGS))
    if syntax == EXPLICIT_LE:
        assert out == data
    else:
        assert len(read(out)) == len(read_implicit(data))


def read_implicit(data: bytes) -> pydicom.Dataset:
    ds = pydicom.filereader.read_dataset(pydicom.filebase.DicomBytesIO(data), True, True)
    return pydicom.Dataset({tag: ds[tag] for tag in ds.keys() if tag.element != 0})  # noqa: SIM118


@pytest.mark.parametrize("name", ["JPEG2000-embedded-sequence-delimiter.dcm", "GDCMJ2K_TextGBR.dcm"])
def test_streams_that_are_not_their_syntax_are_refused(name: str) -> None:
    """A damaged codestream; a JP2 file where a codestream belongs (PS3.5 A.4.4)."""
    _, data, syntax = opened(name)
    with pytest.raises(DatasetRefused):
        transcode(data, syntax, EXPLICIT_LE, SETTINGS)
