"""An image cut short, and closed: decoders paint what is missing, and it must not look whole."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate

from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.streams import with_more
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG2000, JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS
from tests.dicom.images import encoded, frames_of, image, read, texture, with_streams
from tests.dicom.test_transcode_hostile import SAMPLES, sample, turn

pytestmark = [
    pytest.mark.threat("forged dimensions, codec out of bounds"),
    pytest.mark.requirement("DB.CS.83"),
]
END = b"\xff\xd9"
CODED = (JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG2000)


def head_of(stream: bytes, syntax: str) -> int:
    """Return where the coded pixels begin."""
    if syntax == JPEG2000:
        return stream.index(b"\xff\x93") + 2
    start = stream.index(b"\xff\xda")
    return start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")


def closed(stream: bytes, syntax: str, at: int) -> bytes:
    """Cut a stream, and make it say that this is all."""
    cut = bytearray(stream[:at])
    if syntax == JPEG2000:
        tile = cut.index(b"\xff\x90\x00\x0a")
        struct.pack_into(">I", cut, tile + 6, at - tile)
    return bytes(cut) + END


@given(syntax=st.sampled_from(CODED), part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_what_is_cut_short_and_closed_is_refused_or_whole(syntax: str, part: float) -> None:
    """Wherever it is cut: what comes out is the whole image, or nothing."""
    ds = sample(syntax)
    stream = frames_of(encoded(ds))[0].rstrip(b"\0").removesuffix(END)
    first = head_of(stream, syntax)
    ds.PixelData = encapsulate([closed(stream, syntax, first + int((len(stream) - first) * part))])
    try:
        made = turn(encoded(ds), syntax, EXPLICIT_LE)
    except DatasetRefused:
        return
    assert read(made).PixelData == read(turn(encoded(SAMPLES[syntax]), syntax, EXPLICIT_LE)).PixelData


@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_LOSSLESS_SV1])
@pytest.mark.parametrize("kind", ["colour", "two bytes"])
def test_in_colour_and_of_sixteen_bits_too(syntax: str, kind: str) -> None:
    if kind == "colour":
        ds = image(texture(40, 48, 8, samples=3), stored=8, photometric="RGB")
    elif syntax == JPEG_BASELINE:
        pytest.skip("baseline has eight bits")
    else:
        ds = image(texture(40, 48, 12), stored=12)
    made = turn(encoded(ds), EXPLICIT_LE, syntax)
    assert turn(made, syntax, EXPLICIT_LE)
    stream = frames_of(made)[0].rstrip(b"\0").removesuffix(END)
    cut = read(made)
    cut.PixelData = encapsulate([closed(stream, syntax, (len(stream) + head_of(stream, syntax)) // 2)])
    cut["PixelData"].is_undefined_length = True
    with pytest.raises(DatasetRefused, match="cut short"):
        turn(encoded(cut), syntax, EXPLICIT_LE)


def restarting(pixels: Any, blocks: int) -> bytes:
    """Encode a baseline JPEG with restart markers."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG", quality=95, restart_marker_blocks=blocks)
    return target.getvalue()


def test_each_restart_interval_is_whole() -> None:
    pixels = texture(40, 48, 8)[0]
    stream = restarting(pixels, 4)
    marks = [at for at in range(len(stream) - 1) if stream[at] == 0xFF and 0xD0 <= stream[at + 1] < 0xD8]
    assert len(marks) == 7
    whole = turn(encoded(with_streams(image(pixels[None], stored=8), [stream])), JPEG_BASELINE, EXPLICIT_LE)
    found = numpy.frombuffer(read(whole).PixelData, numpy.uint8).astype(int)
    assert abs(found - pixels.ravel()).mean() < 5
    # The last bytes of the third interval are gone; the markers are all there.
    short = stream[: marks[2] - 12] + stream[marks[2] :]
    with pytest.raises(DatasetRefused, match="cut short"):
        turn(encoded(with_streams(image(pixels[None], stored=8), [short])), JPEG_BASELINE, EXPLICIT_LE)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_walk_stumble(data: bytes) -> None:
    good = frames_of(encoded(SAMPLES[JPEG_BASELINE]))[0]
    for stream in (b"\xff\xd8" + data, good[:-2] + data, good[: head_of(good, JPEG_BASELINE)] + data):
        with contextlib.suppress(DatasetRefused):
            assert len(with_more(stream)) >= len(stream)
