"""Transcoding alone, in a process of its own: instances through the pool of codec workers.

`python -m bench.codecs` reads an order (workers, seconds, pairs of names), makes what it needs, warms the
workers, transcodes each pair for so many seconds with every worker busy, and prints instances and
decoded bytes a second for each pair. A pair that fails says so instead.

Instances are slices of the reference study, 512 x 512 of 16 bits (12 stored), or of 8 bits where the
target takes no more.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy
from openjpeg.utils import encode_buffer as encode_jpeg2000
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian
from rle.rle import encode_frame as encode_rle
from twisted.internet import defer, task

from bench.program import say
from drimbox.config import TranscodingSettings
from drimbox.dicom import syntaxes
from drimbox.dicom.codecpool import CodecPool
from drimbox.sim.studies import make_study, write_instance

#: Short names of the transfer syntaxes, as figures use them.
NAMES: Final = {
    "native": syntaxes.EXPLICIT_LE,
    "rle": syntaxes.RLE_LOSSLESS,
    "50": syntaxes.JPEG_BASELINE,
    "70": syntaxes.JPEG_LOSSLESS_SV1,
    "80": syntaxes.JPEG_LS_LOSSLESS,
    "90": syntaxes.JPEG2000_LOSSLESS,
    "91": syntaxes.JPEG2000,
}
#: What is measured: source and target; JPEG baseline takes 8 bits only.
PAIRS: Final = (
    ("native", "80"),
    ("native", "70"),
    ("80", "native"),
    ("80", "70"),
    ("80", "91"),
    ("80", "50"),
    ("70", "80"),
    ("rle", "80"),
    ("90", "80"),
)
#: Different slices, used in turn.
_SLICES = 8
_EDGE = 512


class Sources:
    """Data sets without file meta, by short name of the syntax and bits allocated."""

    def __init__(self, pool: CodecPool) -> None:
        self._pool = pool
        self._made: dict[tuple[str, int], list[bytes]] = {}

    async def of(self, name: str, bits: int) -> list[bytes]:
        """Return the slices in a syntax, made once."""
        if (name, bits) not in self._made:
            self._made[name, bits] = await self._make(name, bits)
        return self._made[name, bits]

    async def _make(self, name: str, bits: int) -> list[bytes]:
        if name == "native":
            return _native(bits)
        native = await self.of("native", bits)
        if name in ("rle", "90"):
            # What we read and never write.
            return [_compressed(name, dataset) for dataset in native]
        target = NAMES[name]
        return [
            bytes(await self._pool.transcode(dataset, syntaxes.EXPLICIT_LE, target)) for dataset in native
        ]


def _native(bits: int) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(
            Path(folder),
            instances=_SLICES,
            rows=_EDGE,
            columns=_EDGE,
            transfer_syntax=str(ExplicitVRLittleEndian),
            distinct=_SLICES,
        )
        if bits == 8:
            for path in study.files:
                image = dcmread(path)
                words = numpy.frombuffer(image.PixelData, dtype="<u2")
                image.PixelData = (words >> 4).astype("u1").tobytes()
                image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
                image["PixelData"].VR = "OB"
                image.save_as(path)
        return [_without_meta(path.read_bytes()) for path in study.files]


def _compressed(name: str, dataset: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.dcm"
        image = _read(dataset)
        raw = bytes(image.PixelData)
        if name == "rle":
            frame = encode_rle(raw, image.Rows, image.Columns, 1, image.BitsAllocated, "<")
        else:
            frame = encode_jpeg2000(raw, image.Columns, image.Rows, 1, image.BitsStored, False)
        image.PixelData = encapsulate([bytes(frame)])
        image["PixelData"].VR = "OB"
        image["PixelData"].is_undefined_length = True
        write_instance(path, image, NAMES[name])
        return _without_meta(path.read_bytes())


def _read(dataset: bytes) -> Dataset:
    from io import BytesIO

    image = dcmread(BytesIO(dataset), force=True)
    image.PixelData  # noqa: B018 - reads it before the buffer goes
    return image


def _without_meta(part10: bytes) -> bytes:
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


async def _rate(
    pool: CodecPool, datasets: list[bytes], source: str, target: str, seconds: float, at_once: int
) -> float:
    """Return instances a second, with `at_once` in the pool at any time."""
    done = 0
    end = 0.0

    async def one_after_the_other(first: int) -> None:
        nonlocal done
        number = first
        while time.monotonic() < end:
            await pool.transcode(datasets[number % len(datasets)], source, target)
            number += 1
            done += 1

    async def together(work: Callable[[int], Any], many: int) -> None:
        await defer.gatherResults(
            [defer.Deferred.fromCoroutine(work(number)) for number in range(many)], consumeErrors=True
        )

    # Every worker has loaded its codecs and seen this pair before the clock starts.
    await together(lambda number: _warm(pool, datasets[0], source, target), at_once)
    start = time.monotonic()
    end = start + seconds
    await together(one_after_the_other, at_once)
    return done / (time.monotonic() - start)


async def _warm(pool: CodecPool, dataset: bytes, source: str, target: str) -> None:
    for _ in range(2):
        await pool.transcode(dataset, source, target)


async def _measure(reactor: Any, order: dict[str, Any]) -> None:
    workers = int(order["workers"])
    pool = CodecPool(reactor, TranscodingSettings(workers=workers))
    sources = Sources(pool)
    answers = []
    try:
        for source, target in order["pairs"]:
            bits = 8 if target == "50" else 16
            try:
                datasets = await sources.of(source, bits)
                rate = await _rate(
                    pool, datasets, NAMES[source], NAMES[target], order["seconds"], 2 * workers
                )
            except Exception as error:  # one pair must not cost the others
                problem = getattr(error, "subFailure", error)
                answers.append({"source": source, "target": target, "problem": str(problem)})
                continue
            size = _EDGE * _EDGE * bits // 8
            answers.append(
                {"source": source, "target": target, "rate": rate, "bytes_per_second": rate * size}
            )
    finally:
        await pool.close()
    say(pairs=answers)


def main() -> None:
    """Carry out one order."""
    order = json.loads(sys.stdin.readline())
    task.react(lambda reactor: defer.Deferred.fromCoroutine(_measure(reactor, order)))


if __name__ == "__main__":
    main()
