"""Taking a manifest back: asked first, sent once, and believed only when the registry says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from drimbox.config import Structure
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    DmpUnavailable,
    NotAdmitted,
    Outcome,
    Refused,
    RegistryEntry,
    Removal,
)
from drimbox.source.publication import Publication
from tests.source.fakes import START, archived, config, run
from tests.source.test_publication import Item, Stage, ours, submission

pytestmark = pytest.mark.requirement("DB.SO.26", "DB.SO.97")
DELETED = "urn:asip:ci-sis:2010:StatusType:Deleted"


def removal() -> Removal:
    made = submission()
    return Removal(
        made.sop_instance_uid, "2.25.600", START, made.report, made.patient_class, made.structure_id
    )


class RemovalStage(Stage):
    """The same, asked to remove."""

    def __init__(
        self,
        *kos: ArchivedKos,
        entries: Sequence[RegistryEntry | Exception | None],
        answers: Sequence[Outcome | Exception] = (),
        settings: Any = None,
    ) -> None:
        super().__init__(*kos, settings=settings, entries=entries)
        self.answers = list(answers)
        self.sent: list[tuple[Removal, str]] = []
        self.gone: list[tuple[str, str]] = []
        self.dmp.remove = self._remove  # type: ignore[attr-defined]
        self.outbox.removed = self._removed  # type: ignore[attr-defined]
        self.publication = Publication(settings or config(), self.publication._doors, self._told)

    async def _remove(self, structure: Structure, order: Removal, entry_uuid: str) -> Outcome:
        self.log.append("remove")
        self.sent.append((order, entry_uuid))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _removed(self, item_id: int, warnings: Sequence[str] = ()) -> None:
        self.log.append("removed")
        self.outbox.ended.append((item_id, "removed", tuple(warnings)))

    async def _told(self, site: str, study_uid: str) -> None:
        self.log.append("told")
        self.gone.append((site, study_uid))

    def remove(self, **changes: Any) -> None:
        run(self.publication.publish(attrs.evolve(Item(submission=removal()), **changes)))  # type: ignore[arg-type]


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_the_entry_is_found_then_withdrawn() -> None:
    stage = RemovalStage(entries=[ours()], answers=[Accepted(("attention",))])
    stage.remove()
    assert stage.log == ["find", "audit", "begin", "remove", "audit", "removed", "told"]
    assert stage.sent == [(removal(), "urn:uuid:9")]
    assert stage.dmp.asked == [removal().sop_instance_uid]
    assert stage.result == (3, "removed", ("attention",))
    assert stage.trail.shown() == [("ITI-18", ""), ("ITI-57", "")]
    assert stage.trail.events[-1].action == "U"
    assert stage.gone == [("site1", Item().study_uid)]


@pytest.mark.parametrize("held", [None, ours(status=DELETED)])
@pytest.mark.parametrize("unknown", [False, True])
def test_what_is_not_there_any_more_is_not_asked_for_again(
    held: RegistryEntry | None, unknown: bool
) -> None:
    stage = RemovalStage(entries=[held])
    stage.remove(attempts=1, outcome_unknown=unknown)
    assert stage.sent == []
    assert stage.result == (3, "removed", ())
    # Unless an attempt may have reached the DMP, nothing was asked of it: the record does not name it.
    assert stage.trail.shown()[-1] == ("ITI-57", "")
    assert len(stage.trail.events[-1].participants) == (2 if unknown else 1)


def test_a_no_of_a_registry_that_has_let_go_is_a_yes() -> None:
    gone = Refused("XDSMetadataUpdateError", "already deleted")
    stage = RemovalStage(entries=[ours(), ours(status=DELETED)], answers=[gone])
    stage.remove()
    assert stage.result == (3, "removed", ("already deleted",))


@pytest.mark.requirement("DB.SO.45", "DB.SO.21")
def test_a_no_is_e007_in_the_dmp_s_words() -> None:
    no = Refused("XDSMetadataUpdateError", "published by another structure")
    stage = RemovalStage(entries=[ours()], answers=[no])
    stage.remove()
    assert stage.result == (
        3,
        "E007",
        "retrait du KOS refusé : XDSMetadataUpdateError published by another structure",
    )
    assert stage.trail.shown()[-1] == ("ITI-57", "E007")
    assert stage.notices.open[f"E007-{Item().study_uid}"][0] == "E007"
    assert stage.gone == []


@pytest.mark.requirement("DB.SO.21")
@pytest.mark.parametrize("other", [{"hash": "0" * 40}, {"size": 1}])
def test_somebody_else_s_document_under_our_identifier_is_not_removed(other: dict[str, Any]) -> None:
    made = submission()
    kept = archived(sop_instance_uid=made.sop_instance_uid, data=made.kos)
    for entry, result in ((ours(**other), "E007"), (ours(), "removed")):
        stage = RemovalStage(kept, entries=[entry], answers=[Accepted()])
        stage.remove()
        assert stage.result[1] == result
        assert len(stage.sent) == (result == "removed")
        assert len(stage.trail.events[-1].participants) == (2 if result == "removed" else 1)


@pytest.mark.parametrize("sent", [True, False])
def test_no_answer_is_asked_about_next_time(sent: bool) -> None:
    stage = RemovalStage(entries=[ours()], answers=[DmpUnavailable("coupée", sent=sent), Accepted()])
    stage.remove()
    assert stage.outbox.ended == []
    ((_, _, _, unknown),) = stage.outbox.retried
    assert stage.trail.shown() == [("ITI-18", ""), ("ITI-57", "E007")]
    assert len(stage.trail.events[-1].participants) == (2 if sent else 1)
    stage.clock.advance(3600)
    stage.remove(attempts=1, outcome_unknown=unknown)
    assert stage.result == (3, "removed", ())
    assert len(stage.sent) == 2


def test_a_silent_dmp_keeps_it_waiting_before_anything_is_sent() -> None:
    stage = RemovalStage(entries=[DmpUnavailable("éteint", sent=False)])
    stage.remove()
    assert stage.sent == []
    assert "begin" not in stage.log
    assert len(stage.outbox.retried) == 1
    assert stage.trail.shown() == [("ITI-57", "E007")]


@pytest.mark.requirement("SC.DMP/CONF.14")
def test_a_no_that_cannot_be_asked_about_is_recorded_and_asked_about_later() -> None:
    no = Refused("XDSMetadataUpdateError", "non")
    nobody = DmpUnavailable("éteint", sent=False)
    stage = RemovalStage(entries=[ours(), nobody], answers=[no])
    stage.remove()
    assert stage.trail.shown() == [("ITI-18", ""), ("ITI-57", "E007")]
    assert [unknown for *_, unknown in stage.outbox.retried] == [True]


def test_a_structure_no_longer_configured_costs_no_removal() -> None:
    stage = RemovalStage(entries=[ours()])
    order = attrs.evolve(removal(), structure_id="1888888888")
    run(stage.publication.publish(Item(submission=order)))  # type: ignore[arg-type]
    assert stage.outbox.ended == []
    assert "aucun certificat" in stage.outbox.retried[0][2]


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
def test_being_turned_away_keeps_the_removal_waiting() -> None:
    away = NotAdmitted("le DMP a répondu HTTP 403")
    stage = RemovalStage(entries=[ours()], answers=[away, Accepted()])
    stage.remove()
    assert stage.outbox.ended == []
    assert [unknown for *_, unknown in stage.outbox.retried] == [False]
    assert "HTTP 403" in stage.notices.open["publication-1999999999"][1]
    assert stage.trail.shown()[-1] == ("ITI-57", "E007")
    stage.clock.advance(200)
    stage.remove()
    assert stage.result[1] == "removed"
    assert stage.notices.open == {}
