"""What the class of an archive answers is bounded in time and looked at before it is believed."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred

from drimbox.errors import PacsCommunicationError
from drimbox.model import Series, Study
from drimbox.native.archive import MAX_TEXT, NativeArchive
from drimbox.native.store import Changes, StoreTimeout, StoreUnavailable
from tests.native.scripted import SERIES, STUDY, Scene, result, started, study


class Guarded:
    def __init__(self, **settings: Any) -> None:
        scene = Scene(**settings)
        self.store, self.clock = scene.store, scene.clock
        self.archive = NativeArchive(scene.store, scene.settings, scene.clock)


def test_a_study_is_told_as_the_class_tells_it() -> None:
    guarded = Guarded()
    guarded.store.study = study(1, 2)
    assert result(started(guarded.archive.find_study(STUDY))) == study(1, 2)
    guarded.store.study = None
    assert result(started(guarded.archive.find_study(STUDY))) is None
    assert (guarded.archive.name, guarded.archive.patience) == ("A", 5.0)
    assert guarded.clock.getDelayedCalls() == []


def test_an_empty_series_is_in_no_manifest() -> None:
    guarded = Guarded()
    held = study(1)
    guarded.store.study = attrs.evolve(held, series=(*held.series, Series("2.25.3", "CT", ())))
    assert result(started(guarded.archive.find_study(STUDY))) == held


@pytest.mark.requirement("DB.SO.14")
@pytest.mark.parametrize(
    "said",
    [
        StoreUnavailable("plus de disque"),
        StoreTimeout("trop lent"),
        ValueError("DUPONT Jean"),
        CancelledError(),
        attrs.evolve(study(1), study_uid="2.25.99"),
        Study(STUDY, (attrs.evolve(study(1).series[0], series_uid="série"),)),
        Study(
            STUDY,
            (Series(SERIES, "CT", (attrs.evolve(study(1).series[0].instances[0], sop_class_uid=""),)),),
        ),
        Study(
            STUDY,
            (
                Series(
                    SERIES, "CT", (attrs.evolve(study(1).series[0].instances[0], sop_instance_uid="../x"),)
                ),
            ),
        ),
    ],
    ids=["unavailable", "slow", "bug", "cancelled", "other study", "series", "class", "path"],
)
def test_an_answer_that_cannot_be_used_is_e003(said: Any) -> None:
    guarded = Guarded()
    guarded.store.study = said
    with pytest.raises(PacsCommunicationError) as caught:
        result(started(guarded.archive.find_study(STUDY)))
    assert "DUPONT" not in str(caught.value)
    assert guarded.clock.getDelayedCalls() == []


def test_a_silent_class_is_not_waited_for() -> None:
    guarded = Guarded(timeout=10.0)
    guarded.store.study = Deferred()
    asked = started(guarded.archive.find_study(STUDY))
    guarded.clock.advance(9.9)
    assert not asked.called
    guarded.clock.advance(0.2)
    with pytest.raises(PacsCommunicationError, match="10 s"):
        result(asked)


def test_not_even_when_it_ignores_cancellation() -> None:
    guarded = Guarded(timeout=10.0)
    later: Deferred[Any] = Deferred()

    async def stubborn(study_uid: str) -> Any:
        try:
            await Deferred()
        except CancelledError:
            return await later

    guarded.store.find_study = stubborn  # type: ignore[method-assign]
    asked = started(guarded.archive.find_study(STUDY))
    guarded.clock.advance(10.1)
    with pytest.raises(PacsCommunicationError):
        result(asked)


@pytest.mark.requirement("DB.SO.27")
def test_without_changes_of_its_own_every_study_is_looked_at() -> None:
    guarded = Guarded()
    changes = result(started(guarded.archive.changes(None)))
    assert not changes.complete
    assert not changes.studies
    guarded.store.study = study(1, 2)
    first = result(started(guarded.archive.mark(STUDY)))
    guarded.store.study = study(2, 1)
    assert result(started(guarded.archive.mark(STUDY))) == first
    guarded.store.study = study(1, 3)
    assert result(started(guarded.archive.mark(STUDY))) != first
    guarded.store.study = None
    assert result(started(guarded.archive.mark(STUDY))) is None


def test_changes_are_bounded_and_only_of_uids() -> None:
    guarded = Guarded()

    async def changes(cursor: str | None) -> Changes:
        return Changes([STUDY, "nom", STUDY], cursor or "1")

    guarded.store.changes = changes  # type: ignore[method-assign]
    assert result(started(guarded.archive.changes("7"))) == Changes(frozenset({STUDY}), "7")
    with pytest.raises(PacsCommunicationError):
        result(started(guarded.archive.changes("7" * (MAX_TEXT + 1))))
