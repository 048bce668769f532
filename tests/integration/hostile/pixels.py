"""Images that a PACS taken over may send: encoded pixels that lie about themselves, for every codec."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from drimbox.dicom.syntaxes import (
    JPEG2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.dicom.images import encoded, frames_of
from tests.dicom.test_transcode_hostile import SAMPLES
from tests.integration.hospital import ACCEPT, EXPLICIT_LE, JPEG_LS

#: The start-of-frame marker of each codec that has one.
_SOF = {JPEG_BASELINE: 0xC0, JPEG_LOSSLESS_SV1: 0xC3, JPEG_LS_LOSSLESS: 0xF7}
_END = b"\xff\xd9"


def _announce(stream: bytearray, syntax: str, rows: int, columns: int) -> None:
    """Write other dimensions into the head of a stream."""
    if syntax == JPEG2000:
        # Xsiz and Ysiz, and one tile of all.
        struct.pack_into(">II", stream, 8, columns, rows)
        struct.pack_into(">II", stream, 24, columns, rows)
    elif syntax in _SOF:
        struct.pack_into(">HH", stream, stream.index(bytes([0xFF, _SOF[syntax]])) + 5, rows, columns)


def _giant(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """Head and stream agree on more pixels than anybody may decode."""
    image.Rows = image.Columns = 65000
    _announce(stream, syntax, 65000, 65000)
    return bytes(stream)


def _bomb(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """Some kilobytes that agree on as many pixels as may just be decoded."""
    image.Rows = image.Columns = 7000
    _announce(stream, syntax, 7000, 7000)
    return bytes(stream)


def _mismatch(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """Stream and data set differ by one row."""
    image.Rows += 1
    return bytes(stream)


def _understated(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """The stream announces far more than the data set."""
    _announce(stream, syntax, 60000, 60000)
    return bytes(stream)


def _truncated(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """Half of it, without an end."""
    return bytes(stream[: len(stream) // 2])


def _closed(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """Half of it, and an end all the same: decoders paint what is missing."""
    half = stream[: len(stream) // 2]
    if syntax == JPEG2000:
        # The tile says that this is all of it.
        start = half.index(b"\xff\x90\x00\x0a")
        struct.pack_into(">I", half, start + 6, len(half) - start)
    return bytes(half) + (b"" if syntax == RLE_LOSSLESS else _END)


def _frames(image: Dataset, stream: bytearray, syntax: str) -> bytes:
    """One frame that says it is a hundred thousand."""
    image.NumberOfFrames = 100_000
    return bytes(stream)


FORGERIES: tuple[Callable[[Dataset, bytearray, str], bytes], ...] = (
    _giant, _bomb, _mismatch, _understated, _truncated, _closed, _frames,
)  # fmt: skip
#: Every codec with every forgery; an RLE stream announces no dimensions.
KINDS = [
    (syntax, forgery)
    for forgery in FORGERIES
    for syntax in sorted(SAMPLES)
    if (syntax, forgery) != (RLE_LOSSLESS, _understated)
]


def accept(kind: int) -> tuple[str]:
    """Return what a client accepts who gets one of `KINDS` through a codec only."""
    return (ACCEPT.format(EXPLICIT_LE if KINDS[kind][0] == JPEG_LOSSLESS_SV1 else JPEG_LOSSLESS_SV1),)


def forged_study(folder: Path, seed: int, **facts: Any) -> GeneratedStudy:
    """Make a study with a series of two images for each of `KINDS`, of which the second is forged."""
    count = len(KINDS)
    study = make_study(
        folder,
        instances=2 * count,
        series=count,
        rows=32,
        columns=32,
        transfer_syntax=JPEG_LS,
        seed=seed,
        **facts,
    )
    for kind, series in enumerate(study.series):
        forge(series.instances[1].path, kind)
    return study


def forge(path: Path, kind: int) -> None:
    """Put one of `KINDS` in the place of the pixels of a file, which keeps its identity."""
    syntax, forgery = KINDS[kind]
    held = dcmread(path)
    image = copy.deepcopy(SAMPLES[syntax])
    stream = bytearray(frames_of(encoded(image))[0])
    made = forgery(image, stream, syntax)
    for name in (
        "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
        "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    ):  # fmt: skip
        if name in image:
            setattr(held, name, getattr(image, name))
    held.PixelData = encapsulate([made])
    held["PixelData"].VR = "OB"
    held["PixelData"].is_undefined_length = True
    held.file_meta.TransferSyntaxUID = syntax
    held.save_as(path)
