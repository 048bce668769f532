"""When a move is made once more with other transfer syntaxes: only while the answer has not begun."""

from __future__ import annotations

import pytest

from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS
from drimbox.source.attempt import Incomplete
from drimbox.source.batch import SOON
from tests.source.answers import CT, EXPLICIT, command, dataset
from tests.source.test_delivery import ONE, TWO, Moving, World, result_of

BOTH = ProposedContext(1, CT, (EXPLICIT_LE, JPEG_LS_LOSSLESS))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def begin(move: Moving, instance: str) -> None:
    """Send the first half of an instance, more than its header."""
    move.receiver.store(move.channel, command(instance), EXPLICIT)
    data = dataset(instance)
    move.receiver.data(move.channel, data[: len(data) - 50], False)


def test_a_move_that_brought_nothing_is_made_again_with_the_other_syntaxes(world: World) -> None:
    sink, asked = world.ask()
    first = world.moves[0]
    chosen = first.receiver.choose(BOTH)
    first.over(0xA702, completed=0)
    assert not asked.called
    second = world.moves[1]
    assert second.receiver.choose(BOTH) == ({EXPLICIT_LE, JPEG_LS_LOSSLESS} - {chosen}).pop()
    for instance in (ONE, TWO):
        second.send(instance)
    second.over(completed=2)
    assert result_of(asked).error is None
    assert len(sink.read()[0]) == 2


@pytest.mark.requirement("DB.SO.32")
def test_a_move_that_ended_inside_its_first_instance_is_not_made_again(world: World) -> None:
    """The first half has left: a second try would put another answer behind it."""
    sink, asked = world.ask()
    move = world.moves[0]
    move.receiver.choose(BOTH)
    begin(move, ONE)
    world.clock.advance(SOON)
    assert sink.output
    # The final answer came, and the association hangs.
    move.over(0xA702, completed=0)
    result = result_of(asked)
    assert len(world.moves) == 1
    assert isinstance(result.error, Incomplete)
    assert result.cut
    assert sink.aborted
    assert not sink.finished
