"""Memory counted for an instance that waits for a codec, when all answers together hold too much."""

from __future__ import annotations

import pytest

from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS
from drimbox.dicom.transcoding import Transcoded
from drimbox.source.conversion import Conversion
from drimbox.source.parts import CollectedPart
from tests.dicom.datasets import encode
from tests.dicom.images import image, texture
from tests.source.answers import Scene, command
from tests.source.test_conversion import SERIES, STUDY, WANTED, ByHand


class Crowded:
    """One answer that holds more than all answers together may."""

    def __init__(self) -> None:
        self.scene = Scene(window=1 << 20, total=100)
        self.codec = ByHand()
        self.conversion = Conversion(self.codec, WANTED, self.scene.outflow, self.refused)
        self.channel = self.scene.channel()

    def refused(self, error: Exception) -> None:
        raise error

    def add(self) -> CollectedPart:
        data = image(texture(33, 40, 8), stored=8)
        data.SOPInstanceUID = "2.25.1"
        part = CollectedPart(
            command("2.25.1", str(data.SOPClassUID)),
            EXPLICIT_LE,
            study_uid=STUDY,
            series_uid=SERIES,
            channel=self.channel,
            max_bytes=1 << 20,
        )
        self.scene.outflow.enlist(part)
        stream = encode(data, EXPLICIT_LE)
        part.feed(stream, True)
        part.channel = None
        part.weighed = len(stream)
        self.scene.outflow.weigh(part.weighed)
        self.conversion.add(part)
        return part


@pytest.mark.requirement("DB.SO.32")
def test_an_instance_is_not_counted_as_sent_when_its_memory_is_given_back_before_its_bytes() -> None:
    """The room it leaves wakes the answer, which must not take an instance without bytes for one sent."""
    here = Crowded()
    part = here.add()
    assert here.channel.paused
    here.codec.asked[0][2].callback(Transcoded(JPEG_LS_LOSSLESS, b"the image"))
    assert here.scene.sent == [part]
    here.scene.outflow.complete()
    (whole,), closed = here.scene.sink.read()
    assert closed
    assert whole.endswith(b"the image")
    here.scene.quiet()


def test_an_instance_that_waits_for_its_turn_is_counted_once() -> None:
    here = Crowded()
    here.scene.sink.pause()
    here.add()
    here.codec.asked[0][2].callback(Transcoded(JPEG_LS_LOSSLESS, b"x" * 50))
    assert 50 < here.scene.outflow.held < 1000
    here.scene.sink.resume()
    assert here.scene.outflow.held == 0
    assert not here.channel.paused
