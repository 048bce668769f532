"""Slow is not stalled: what the client's machine has taken decides, whatever the kernel holds for it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from drimbox.errors import PacsUnavailable
from tests.wado.test_server import Face

#: What a client of 10 KB a second takes in a minute, and a drip.
SLOW, DRIP = 600_000, 600
LEFT = 5_000_000


class Below:
    """The socket side: what has not left yet."""

    def __init__(self) -> None:
        self.left = LEFT
        self.closed = False
        self._tempDataLen = 50

    @property
    def dataBuffer(self) -> Any:
        return range(self.left)  # only its length is looked at

    def loseConnection(self) -> None:
        self.closed = True


class Answering:
    """An answer that has begun, and how often whoever feeds it was told to pause."""

    def __init__(self, *more: str) -> None:
        self.face = Face()
        self.channel, self.wire = self.face.ask(*more)
        self.below = self.wire.transport = Below()
        _, self.answer, self.end = self.face.gate.served[0]
        self.paused = 0
        self.answer.listen(pause=self._pause, resume=lambda: None, lost=lambda: None)
        self.answer.start("multipart/related")

    def _pause(self) -> None:
        self.paused += 1

    def finish(self) -> None:
        self.answer.finish()
        self.end.callback(None)

    def minute(self, taken: int) -> None:
        for _ in range(60):
            self.below.left -= taken // 60
            self.face.clock.advance(1)


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize(("taken", "told"), [(SLOW, True), (DRIP, False), (0, False)])
def test_who_feeds_a_full_connection_hears_that_its_client_reads(taken: int, told: bool) -> None:
    slow = Answering()
    slow.wire.producer.pauseProducing()
    assert slow.paused == 1
    slow.minute(taken)
    assert (slow.paused > 1) is told
    before = slow.paused
    slow.wire.producer.resumeProducing()
    slow.minute(SLOW)
    # Not full any more: there is nothing to tell.
    assert slow.paused == before
    slow.finish()


@pytest.mark.parametrize("lost", [True, False])
def test_the_end_of_a_full_connection_leaves_no_timer(lost: bool) -> None:
    slow = Answering()
    slow.wire.producer.pauseProducing()
    if not lost:
        slow.finish()
    slow.channel.connectionLost(Failure(ConnectionLost()))
    if lost:
        slow.end.callback(None)
    assert not slow.face.clock.getDelayedCalls()


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_the_last_bytes_have_the_time_that_a_slow_client_needs(connection: str) -> None:
    slow = Answering(f"Connection: {connection}")
    slow.finish()
    for _ in range(8):  # the idle time is over after the first
        slow.minute(SLOW)
        assert not slow.wire.aborted
    slow.minute(DRIP)
    slow.minute(DRIP)
    assert slow.wire.aborted


def test_a_client_that_has_everything_is_closed_without_a_reset() -> None:
    slow = Answering("Connection: close")
    slow.finish()
    slow.minute(LEFT)
    slow.below.left = slow.below._tempDataLen = 0
    slow.minute(0)
    slow.minute(0)
    # It may still be reading what its machine holds: a reset could throw that away.
    assert slow.below.closed
    assert not slow.wire.aborted


@pytest.mark.threat("slowloris, stalled reader")
def test_a_client_that_does_not_take_the_last_bytes_is_cut() -> None:
    face = Face()
    _, wire = face.ask("Connection: close")
    wire.transport = below = Below()
    face.gate.served[0][2].callback(PacsUnavailable())
    assert wire.disconnecting
    below.left -= SLOW
    face.clock.advance(60)
    assert not wire.aborted  # it takes some: it may go on
    face.clock.advance(60)  # nothing taken since
    assert wire.aborted
    assert not below.closed


def test_a_client_that_cannot_be_looked_at_is_cut() -> None:
    face = Face()
    channel, wire = face.ask("Connection: close")
    face.gate.served[0][2].callback(PacsUnavailable())
    face.clock.advance(60)
    assert wire.aborted
    channel.connectionLost(Failure(ConnectionLost()))
    assert not face.clock.getDelayedCalls()
