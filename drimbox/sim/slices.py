"""Pixels of the generated studies: a noisy body, drawn with numpy and encoded by CharLS.

The noise decides what a slice weighs once compressed, and it is tuned (see `drimbox.sim.studies`): a
noiseless phantom would shrink to nothing and make every measure of throughput a lie.
"""

from __future__ import annotations

from typing import Any

import jpeg_ls
import numpy
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless

#: Bits Stored of every generated image, in words of 16.
BITS_STORED = 12


def encoded_slices(count: int, rows: int, columns: int, transfer_syntax: str, seed: int) -> list[bytes]:
    """Draw and encode slices: a noisy body with lungs and spine in quieter air, different each time."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    slices = []
    for index in range(count):
        swell = 1 + 0.05 * numpy.sin(index / 3)
        body = (x / (0.88 * swell)) ** 2 + (y / 0.66) ** 2 < 1
        image = numpy.where(body, 1064.0, 24.0)
        for centre in (-0.42, 0.42):
            image[((x - centre) / (0.28 * swell)) ** 2 + ((y + 0.05) / 0.42) ** 2 < 1] = 180.0
        image[(x / 0.09) ** 2 + ((y - 0.42) / 0.11) ** 2 < 1] = 1500.0
        noise = random.standard_normal((rows, columns)) * numpy.where(body, 8.5, 2.9)
        pixels = numpy.clip(image + noise, 0, (1 << BITS_STORED) - 1).astype("<u2")
        slices.append(_encode(pixels, transfer_syntax))
    return slices


def _encode(pixels: numpy.ndarray[Any, numpy.dtype[numpy.uint16]], transfer_syntax: str) -> bytes:
    raw = pixels.tobytes()
    if transfer_syntax != JPEGLSLossless:
        return raw
    rows, columns = pixels.shape
    return encapsulate([bytes(jpeg_ls.encode_buffer(raw, rows, columns, 1, BITS_STORED))])
