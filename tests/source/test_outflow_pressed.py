"""What is in memory when the associations stop, and cannot leave it by itself."""

from __future__ import annotations

import pytest

from tests.source.answers import Scene, bare_part

pytestmark = pytest.mark.threat("slowloris, stalled reader")


def test_less_than_a_block_goes_to_disk_too_when_nothing_more_is_read() -> None:
    """It came in the same read as what filled the window: more than half of it, and never a whole block."""
    scene = Scene(window=1000)
    scene.sink.pause()
    channel = scene.channel()
    part = bare_part(channel)
    scene.outflow.push(part, [b"a" * 1100])
    assert channel.paused
    scene.clock.advance(5)
    for _ in range(6):
        # Still from that read: the association is stopped by now.
        scene.outflow.push(part, [b"b" * 200])
    assert channel.paused
    scene.area.settle()
    assert scene.outflow.held == 0
    assert not channel.paused
    part.ended = True
    scene.outflow.push(part, [])
    scene.area.settle()
    scene.sink.resume()
    scene.area.settle()
    assert scene.sent == [part]
    assert scene.sink.output.endswith(b"a" * 1100 + b"b" * 1200)
    scene.outflow.close()
    scene.quiet()


def test_no_association_is_stopped_inside_what_must_be_whole() -> None:
    """Nothing else than the rest of it can make room; the next instance waits."""
    scene = Scene(window=1000)
    scene.sink.pause()
    channel, other = scene.channel(), scene.channel()
    scene.outflow.gather(channel, True)
    scene.outflow.weigh(1500)
    assert other.paused
    assert not channel.paused
    assert not scene.outflow.held_back
    scene.outflow.gather(channel, False)
    assert channel.paused
    assert scene.outflow.held_back
    scene.outflow.weigh(-1500)
    assert not channel.paused
    scene.outflow.close()
    scene.quiet()
