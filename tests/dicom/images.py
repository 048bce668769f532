"""Images made on the spot, in every kind of pixel, and peers that encode and decode them."""

from __future__ import annotations

import io
import subprocess
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import dcmread, read_dataset

from drimbox.dicom import syntaxes
from drimbox.dicom.part10 import file_preamble
from tests.dicom.datasets import encode

SC = "1.2.840.10008.5.1.4.1.1.7"
UID = "2.25.777"


@attrs.frozen
class Everything:
    """A client that takes everything; `liked` come with a higher q, in their order."""

    liked: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    only: bool = False

    def rank(self, transfer_syntax: str) -> tuple[float, bool] | None:
        if transfer_syntax in self.refused or (self.only and transfer_syntax not in self.liked):
            return None
        lossy = not syntaxes.is_lossless(transfer_syntax)
        if transfer_syntax in self.liked:
            return (-1.0 + 0.1 * self.liked.index(transfer_syntax), lossy)
        return (-0.1, lossy)


def texture(
    rows: int, columns: int, bits: int, *, frames: int = 1, samples: int = 1, signed: bool = False
) -> Any:
    """Make a smooth image with noise that uses all its bits: (frames, rows, columns[, samples])."""
    random = numpy.random.default_rng(rows * columns + bits)
    shape = (frames, rows, columns, samples) if samples > 1 else (frames, rows, columns)
    steps = numpy.indices(shape).astype(float)
    wave = (numpy.sin(steps[1] / 9) + numpy.cos(steps[2] / 7 + steps[0]) + 2) / 4
    if samples > 1:
        wave = numpy.abs(wave - steps[3] / 4)
    top = 2**bits - 1
    whole = numpy.clip(wave * top + random.normal(0, max(1, top / 100), shape), 0, top).astype(numpy.int64)
    if bits > 1:
        whole.flat[0], whole.flat[-1] = 0, top
    if signed:
        whole -= 2 ** (bits - 1)
    return whole.astype(f"<{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def image(
    pixels: Any,
    *,
    stored: int,
    photometric: str = "MONOCHROME2",
    planar: int = 0,
    allocated: int | None = None,
) -> Dataset:
    """Make a secondary capture of (frames, rows, columns[, samples]) pixels, native."""
    samples = pixels.shape[3] if pixels.ndim == 4 else 1
    if allocated is not None:
        pixels = pixels.astype(f"<{pixels.dtype.kind}{allocated // 8}")
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID, ds.SOPInstanceUID = SC, UID
    ds.StudyDate, ds.Modality, ds.ConversionType = "20260102", "OT", "WSD"
    ds.private_block(0x0009, "ACME 1.0", create=True).add_new(0x01, "OB", b"\1\2\3\4" * 20)
    ds.PatientName, ds.PatientID = "NOM^PRÉNOM", "IPP-42"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.101", "2.25.102"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, photometric
    if samples > 1:
        ds.PlanarConfiguration = planar
    if len(pixels) > 1:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[1:3]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = pixels.dtype.itemsize * 8, stored, stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if photometric == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
            setattr(ds, f"{colour}PaletteColorLookupTableData", bytes(range(256)) * 2)
    icon = Dataset()
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.Rows = icon.Columns = 4
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    icon.add_new(0x7FE00010, "OB", bytes(range(16)))
    ds.IconImageSequence = [icon]
    ds.add_new(0x60003000, "OW", b"\xaa\x55" * 8)
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60000011, "US", 16)
    data = pixels.transpose(0, 3, 1, 2) if samples > 1 and planar else pixels
    if photometric == "YBR_FULL_422":
        data = subsampled(pixels)
    raw = data.tobytes()
    ds.add_new(0x7FE00010, "OW" if ds.BitsAllocated > 8 else "OB", raw + b"\0" * (len(raw) % 2))
    return ds


def subsampled(pixels: Any) -> Any:
    """Write YCbCr pixels as Y Y Cb Cr (PS3.3 C.7.6.3.1.2)."""
    frames, rows, columns, _ = pixels.shape
    out = numpy.empty((frames, rows, columns // 2, 4), dtype=pixels.dtype)
    out[..., 0], out[..., 1] = pixels[:, :, 0::2, 0], pixels[:, :, 1::2, 0]
    out[..., 2], out[..., 3] = pixels[:, :, 0::2, 1], pixels[:, :, 0::2, 2]
    return out


def with_streams(ds: Dataset, streams: list[bytes], **options: Any) -> Dataset:
    """Give a data set compressed frames."""
    ds.add_new(0x7FE00010, "OB", encapsulate(streams, **options))
    ds["PixelData"].is_undefined_length = True
    return ds


def encoded(ds: Dataset, syntax: str = syntaxes.EXPLICIT_LE) -> bytes:
    return encode(ds, syntax)


def read(data: bytes) -> Dataset:
    """Read an explicit little endian data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(io.BytesIO(data), False, True)


def frames_of(data: bytes) -> list[bytes]:
    """Return the compressed frames of a data set."""
    ds = read(data)
    return list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1)))


def write_file(path: Path, data: bytes, syntax: str) -> Path:
    path.write_bytes(file_preamble(SC, UID, syntax) + data)
    return path


def run(folder: Path, data: bytes, syntax: str, *command: str) -> Dataset:
    """Give a data set to a DCMTK program that reads one file and writes another; return what it wrote."""
    source = write_file(folder / "in.dcm", data, syntax)
    target = folder / "out.dcm"
    done = subprocess.run(
        [*command, str(source), str(target)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dcmread(target)


def body(ds: Dataset) -> bytes:
    """Return the data set of a file that a peer wrote, as it stands there."""
    file = Path(str(ds.filename)).read_bytes()
    return file[144 + ds.file_meta.FileMetaInformationGroupLength :]


def decoded(folder: Path, data: bytes, syntax: str) -> bytes:
    """Return the native pixel data that DCMTK makes of a data set, without padding."""
    if syntax == syntaxes.JPEG_LS_LOSSLESS:
        ds = run(folder, data, syntax, "dcmdjpls")
    elif syntax in (syntaxes.JPEG_LOSSLESS_SV1, syntaxes.JPEG_BASELINE, syntaxes.JPEG_EXTENDED):
        ds = run(folder, data, syntax, "dcmdjpeg", "+cn")
    else:
        ds = read(data)
    size = int(ds.get("NumberOfFrames") or 1) * ds.Rows * ds.Columns * ds.SamplesPerPixel
    return bytes(ds.PixelData[: size * ds.BitsAllocated // 8])
