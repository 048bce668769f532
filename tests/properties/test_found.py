"""Histories that random ones found to end badly, each in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from drimbox.source.attempt import Incomplete
from tests.properties.clients import Wish
from tests.properties.plans import Oddity, Plan
from tests.properties.test_histories import happen
from tests.properties.world import Conditions, History


@pytest.mark.requirement("DB.SO.32")
def test_a_transcoded_instance_is_not_lost_when_memory_is_short(tmp_path: Path) -> None:
    """The memory it had while it was encoded woke the answer, which took it for sent: one was missing."""
    conditions = Conditions(titles=4, total_window=2000)
    for series in range(6):
        wish = Wish(series, accept="compressed" if series != 2 else "plain")
        world = happen(History(conditions, (wish,), ()), tmp_path)
        assert world.clients[0].finished == wish.servable, wish


@pytest.mark.requirement("DB.SO.32", "DB.SO.85")
def test_no_second_move_goes_behind_half_an_instance(tmp_path: Path) -> None:
    """The first move hung inside its only instance, and the PACS had proposed other syntaxes."""
    hung = Plan(oddities=(Oddity("hang"),), final="early", status=0xA702, proposes_more=True)
    history = History(Conditions(), (Wish(series=2, instance=0, accept="compressed"),), (hung, Plan()))
    world = happen(history, tmp_path)
    (client,) = world.clients
    assert client.content_type
    assert client.result is not None
    assert isinstance(client.result.error, Incomplete)
    assert len(world.archive.moves) == 1


@pytest.mark.requirement("DB.SO.32")
def test_what_comes_slowly_after_the_final_response_is_waited_for(tmp_path: Path) -> None:
    """It came without a pause worth the name, but took longer in all than one pause may."""
    late = Plan(oddities=(Oddity("drip", at=4),), final="early")
    world = happen(History(Conditions(), (Wish(series=0),), (late,)), tmp_path)
    (client,), (move,) = world.clients, world.archive.moves
    assert client.finished
    assert client.result is not None
    assert move.final_at is not None
    assert client.result.seconds - move.final_at > world.pacs.gap_timeout


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("seed", range(4))
def test_what_came_before_the_pause_does_not_stay_in_memory(tmp_path: Path, seed: int) -> None:
    """Less than a block of the spool, and more than half the window: nothing ever let the PACS go on."""
    slow = Plan(lanes=2, pdu=700, oddities=(Oddity("drip"),))
    conditions = Conditions(seed=seed, window=4000, total_window=2000)
    world = happen(History(conditions, (Wish(series=3),), (slow,)), tmp_path)
    assert not world.archive.moves[0].impatient


@pytest.mark.threat("slowloris, stalled reader")
@pytest.mark.parametrize("seed", range(4))
def test_no_association_is_stopped_inside_an_instance_that_is_of_use_only_whole(
    tmp_path: Path, seed: int
) -> None:
    """Half of it fills the window; neither codec nor disk can take it; the client reads nothing."""
    wish = Wish(series=1, accept="compressed", speed=0.0)
    world = happen(History(Conditions(seed=seed, window=500), (wish,), ()), tmp_path)
    assert not world.archive.moves[0].impatient
