"""Transcoding on the way with a codec played by hand: order, failures, and never an answer left hanging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from drimbox.dicom.elements import Buffer
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS, RLE_LOSSLESS
from drimbox.dicom.transcoding import Transcoded, TranscodeFailed
from drimbox.errors import ImageError, NotAcceptable, TooManyRequests
from drimbox.source import conversion as conversion_module
from drimbox.source.conversion import Conversion
from drimbox.source.parts import CollectedPart
from drimbox.wado.accept import parse
from tests.dicom.datasets import encode
from tests.dicom.images import image, texture
from tests.source.answers import FakeChannel, Scene, command

WANTED = parse([b'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80'])
STUDY, SERIES = "2.25.101", "2.25.102"


class ByHand:
    """A transcoder whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Sequence[str], Deferred[Transcoded]]] = []

    async def transcode_to_first(self, dataset: Buffer, source: str, targets: Sequence[str]) -> Transcoded:
        answer: Deferred[Transcoded] = Deferred()
        self.asked.append((bytes(dataset), targets, answer))
        return await answer


class Converting:
    """A conversion between a scene and a codec."""

    def __init__(self) -> None:
        self.scene = Scene(window=1 << 20)
        self.codec = ByHand()
        self.refused: list[ImageError] = []
        self.conversion = Conversion(self.codec, WANTED, self.scene.outflow, self.refused.append)

    def add(self, number: int, **changes: Any) -> CollectedPart:
        data = image(texture(33, 40, 8), stored=8)
        data.SOPInstanceUID = f"2.25.{number}"
        for name, value in changes.items():
            setattr(data, name, value)
        part = CollectedPart(
            command(f"2.25.{number}", str(data.SOPClassUID)),
            EXPLICIT_LE,
            study_uid=STUDY,
            series_uid=SERIES,
            channel=FakeChannel(),
            max_bytes=1 << 20,
        )
        self.scene.outflow.enlist(part)
        part.feed(encode(data, EXPLICIT_LE), True)
        self.conversion.add(part)
        return part


def test_what_is_done_first_waits_for_what_came_first() -> None:
    here = Converting()
    parts = [here.add(number) for number in range(1, 7)]
    # Few at a time; the rest wait for one of them.
    assert len(here.codec.asked) == 4
    assert all(targets == (JPEG_LS_LOSSLESS,) for _, targets, _ in here.codec.asked)
    for number in (3, 2, 1):
        here.codec.asked[number][2].callback(Transcoded(JPEG_LS_LOSSLESS, b"image %d" % number))
        assert not here.scene.sink.output
    here.codec.asked[0][2].callback(Transcoded(JPEG_LS_LOSSLESS, b"image 0"))
    for number in (4, 5):
        here.codec.asked[number][2].callback(Transcoded(JPEG_LS_LOSSLESS, b"image %d" % number))
    here.scene.outflow.complete()
    whole, closed = here.scene.sink.read()
    assert closed
    assert [part[-7:] for part in whole] == [b"image %d" % number for number in range(6)]
    assert [part.instance_uid for part in here.scene.sent] == [part.instance_uid for part in parts]
    assert not here.refused


@pytest.mark.parametrize(
    ("result", "kind", "status"),
    [("crashed", ImageError, 500), ("timeout", ImageError, 500), ("memory", ImageError, 500),
     ("refused", ImageError, 500), ("busy", TooManyRequests, 503)],
)  # fmt: skip
def test_what_no_codec_can_do_refuses_the_answer(result: str, kind: type[ImageError], status: int) -> None:
    here = Converting()
    here.add(1)
    here.codec.asked[0][2].errback(TranscodeFailed(result, "why"))
    (error,) = here.refused
    assert type(error) is kind
    assert error.status == status


@pytest.mark.threat("forged dimensions, codec out of bounds")
@pytest.mark.parametrize(
    "changes", [{"NumberOfFrames": "1"}, {"BitsStored": 99}, {"Rows": 0}, {"SamplesPerPixel": 2}]
)
def test_a_header_that_makes_no_sense_refuses_the_answer_and_asks_no_codec(changes: dict[str, Any]) -> None:
    here = Converting()
    here.add(1, **changes)
    if changes == {"NumberOfFrames": "1"}:
        assert len(here.codec.asked) == 1
        return
    assert len(here.refused) == 1
    assert not here.codec.asked


def test_a_bug_that_shows_at_once_refuses_the_answer_instead_of_leaving_it_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble(dataset: Buffer, source: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(conversion_module, "read_image_facts", stumble)
    here = Converting()
    here.add(1)
    assert [type(error) for error in here.refused] == [ImageError]


def test_nothing_that_can_be_produced_is_406() -> None:
    here = Converting()
    part = here.add(1, BitsAllocated=32, BitsStored=32, HighBit=31)
    assert part.source == EXPLICIT_LE
    assert [type(error) for error in here.refused] == [NotAcceptable]
    assert RLE_LOSSLESS not in here.refused[0].detail


def test_who_leaves_is_not_waited_for() -> None:
    here = Converting()
    for number in range(1, 7):
        here.add(number)
    here.conversion.close()
    assert all(answer.called for _, _, answer in here.codec.asked)
    assert len(here.codec.asked) == 4
    assert not here.refused
    assert not here.scene.sink.output
