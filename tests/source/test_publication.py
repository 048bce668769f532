"""Publishing one row of the outbox: every answer of the DMP, and none (interfaces.md 4.8 to 4.10)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
import pytest

from drimbox.errors import PublicationError, ReportNotInterpretable
from drimbox.model import KosState
from drimbox.ports import (
    Accepted,
    ArchivedKos,
    DmpUnavailable,
    Doubtful,
    NotAdmitted,
    Refused,
    Submission,
)
from drimbox.source.outage import STUCK_AFTER
from drimbox.source.publication import Doors, Publication
from tests.source.fakes import (
    STUDY,
    Archive,
    Clock,
    Dmp,
    Notices,
    Trail,
    archived,
    config,
    entry_of,
    run,
    site,
    structure,
)
from tests.store.samples import submission as sample

PATIENT = "284070100499094"
DUPLICATE = Refused("XDSDuplicateUniqueIdInRegistry", "XDSDuplicateUniqueIdInRegistry", duplicate=True)
BAD = Refused("XDSRegistryMetadataError", "XDSRegistryMetadataError mauvais slot")
NO_PATIENT = Refused("XDSUnknownPatientId", "XDSUnknownPatientId", unknown_patient=True)
LOST = DmpUnavailable("délai dépassé", sent=True)
STALE = DmpUnavailable("connexion coupée", sent=True, stale=True)
NOBODY = DmpUnavailable("connexion refusée", sent=False)
DEPRECATED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Deprecated"


#: Two structures, one of which may be in trouble.
TWO = config(structures=[structure(), structure("1888888888")])


def submission(ins: str = PATIENT) -> Submission:
    made = sample("2.25.500", STUDY)
    report = attrs.evolve(made.report, patient=attrs.evolve(made.report.patient, ins=ins))
    return attrs.evolve(made, report=report, structure_id="1999999999")


@attrs.frozen
class Item:
    id: int = 3
    site: str = "site1"
    study_uid: str = STUDY
    submission: Submission = attrs.field(factory=submission)
    attempts: int = 0
    outcome_unknown: bool = False


class Outbox:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.ended: list[tuple[Any, ...]] = []
        self.retried: list[tuple[int, datetime, str, bool]] = []

    async def begin(self, item_id: int) -> None:
        self.log.append("begin")

    async def retry(self, item_id: int, at: datetime, error: str, outcome_unknown: bool) -> None:
        self.log.append("retry")
        self.retried.append((item_id, at, error, outcome_unknown))

    async def published(self, item_id: int, entry_uuid: str | None, warnings: Sequence[str] = ()) -> None:
        self.log.append("published")
        self.ended.append((item_id, "published", entry_uuid, tuple(warnings)))

    async def refused(self, item_id: int, code: str, text: str) -> None:
        self.log.append("refused")
        self.ended.append((item_id, code, text))


class Stage:
    def __init__(self, *kos: ArchivedKos, settings: Any = None, **script: Any) -> None:
        #: What happened, in order.
        self.log: list[str] = []
        self.dmp = Dmp(log=self.log, **script)
        self.outbox, self.clock = Outbox(self.log), Clock()
        self.trail, self.notices = Trail(self.log), Notices(self.log)
        doors = Doors(
            outbox=self.outbox,
            archive=Archive(*kos),
            record=self.dmp,
            audit=self.trail,
            notices=self.notices,
            clock=self.clock,
        )
        self.publication = Publication(settings or config(), doors)

    def publish(self, item: Item | None = None) -> None:
        run(self.publication.publish(item or Item()))

    @property
    def result(self) -> tuple[Any, ...]:
        (ended,) = self.outbox.ended
        return ended


def ours(**changes: Any) -> Any:
    return entry_of(submission(), **changes)


# -- yes ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.22", "SC.DMP/CONF.14", "DB.CS.06")
def test_a_first_publication_asks_for_the_record_sends_and_learns_the_entry_uuid() -> None:
    stage = Stage(entries=[ours()])
    stage.publish()
    # Audited before the row ends, and begun before anything is sent.
    assert stage.log == ["exists", "audit", "begin", "publish", "find", "audit", "audit", "published"]
    assert stage.result == (3, "published", "urn:uuid:9", ())
    assert stage.dmp.replaced == [None]
    assert stage.trail.shown() == [("TD0.2", ""), ("ITI-18", ""), ("ITI-41", "")]
    for event in stage.trail.events:
        us, dmp = event.participants
        assert us.user_id == "1999999999/interne"
        assert us.network_id == "db1.349.mesimagesmedicales.fr"
        assert dmp.user_id == "https://dmp.test"
        assert (event.patient_ins, event.study_uid) == (PATIENT, STUDY)
    assert stage.notices.posted == []


def test_warnings_of_the_dmp_are_kept() -> None:
    stage = Stage(publish=[Accepted(("XDSExtraMetadataNotSaved slot",))], entries=[ours()])
    stage.publish()
    assert stage.result == (3, "published", "urn:uuid:9", ("XDSExtraMetadataNotSaved slot",))


@pytest.mark.requirement("DB.SO.22")
@pytest.mark.parametrize("lookup", [None, LOST, NOBODY, PublicationError("clé de signature inutilisable")])
def test_a_question_that_fails_after_the_success_does_not_undo_it(lookup: Any) -> None:
    stage = Stage(entries=[lookup])
    stage.publish()
    assert stage.result == (3, "published", None, ())
    assert stage.notices.posted == []


# -- replacement -------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize("status", ["urn:oasis:names:tc:ebxml-regrep:StatusType:Approved", ""])
def test_a_replacement_names_what_it_replaces(status: str) -> None:
    old = ours(entry_uuid="urn:uuid:70", unique_id="2.25.70", status=status)
    stage = Stage(archived(), entries=[old, ours()])
    stage.publish()
    assert stage.dmp.asked == ["2.25.70", "2.25.500"]
    assert stage.dmp.replaced == ["urn:uuid:70"]
    assert "exists" not in stage.log
    assert ("Association", "RPLC") in _details(stage.trail.events[-1])


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize("old", [None, ours(status=DEPRECATED)])
def test_what_the_dmp_no_longer_holds_as_current_is_not_replaced(old: Any) -> None:
    stage = Stage(archived(), entries=[old, ours()])
    stage.publish()
    assert stage.dmp.replaced == [None]
    assert "exists" in stage.log
    assert stage.result[1] == "published"


@pytest.mark.requirement("DB.SO.13", "DB.SO.140")
def test_a_study_that_moved_to_another_pacs_replaces_its_kos_there() -> None:
    settings = config(site(1), site(2))
    stage = Stage(
        archived(site="site2"), settings=settings, entries=[ours(entry_uuid="urn:uuid:70"), ours()]
    )
    stage.publish()
    assert stage.dmp.replaced == ["urn:uuid:70"]
    stranger = Stage(archived(site="site2", structure_id="5"), settings=settings, entries=[ours()])
    stranger.publish()
    assert stranger.dmp.replaced == [None]


@pytest.mark.requirement("DB.SO.13", "DB.SO.22")
def test_what_was_given_up_in_doubt_is_replaced_if_the_dmp_holds_it() -> None:
    given_up = archived(state=KosState.REFUSED)
    held = Stage(given_up, entries=[entry_of(submission(), entry_uuid="urn:uuid:70"), ours()])
    held.publish()
    assert held.dmp.replaced == ["urn:uuid:70"]
    assert "exists" not in held.log
    never_came = Stage(given_up, entries=[None, ours()])
    never_came.publish()
    assert never_came.dmp.replaced == [None]
    assert never_came.log.count("find") == 2, "asked before, and for the entry after"
    stranger = Stage(archived(state=KosState.REFUSED, site="site2", structure_id="5"), entries=[ours()])
    stranger.publish()
    assert stranger.log.count("find") == 1


@pytest.mark.requirement("DB.SO.13", "DB.SO.21")
@pytest.mark.threat("a KOS in the record of another patient")
def test_while_a_kos_stays_in_another_patients_record_nothing_is_published() -> None:
    stage = Stage(archived(patient_ins="184070100499094"), entries=[ours()])
    stage.publish()
    assert stage.dmp.replaced == []
    assert stage.result[:2] == (3, "E001")
    code, text = stage.notices.open[f"E001-{STUDY}"]
    assert code == "E001"
    assert "184070100499094" not in text


# -- no ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize(("answer", "code"), [(BAD, "E007"), (NO_PATIENT, "E006")])
def test_a_refusal_ends_the_row_once_it_is_told(answer: Refused, code: str) -> None:
    stage = Stage(publish=[answer])
    stage.publish()
    assert stage.result[:2] == (3, code)
    assert answer.code in stage.result[2]
    assert stage.log[-3:] == ["audit", "notice", "refused"]
    event = stage.trail.events[-1]
    assert event.outcome_description.startswith(code)
    assert [part.user_id for part in event.participants][1:] == ["https://dmp.test"]
    assert stage.notices.open[f"{code}-{STUDY}"][0] == code


@pytest.mark.requirement("DB.SO.21", "DB.SO.45", "SC.DMP/CONF.14")
def test_a_patient_without_record_is_e006_and_nothing_is_sent() -> None:
    stage = Stage(exists=[Refused("NF", "aucun DMP pour ce patient", unknown_patient=True)])
    stage.publish()
    assert stage.result[:2] == (3, "E006")
    assert "begin" not in stage.log
    assert stage.trail.shown() == [("TD0.2", "E006"), ("ITI-41", "E006")]
    # Nothing of the submission left: its record names no DMP.
    assert len(stage.trail.events[1].participants) == 1


def test_a_request_that_cannot_be_made_of_this_report_is_refused() -> None:
    stage = Stage(publish=[ReportNotInterpretable("secteur d'activité absent")])
    stage.publish()
    assert stage.result[:2] == (3, "E005")


# -- duplicates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [ours(), ours(hash="", size=0), ours(hash=ours().hash.upper())])
def test_a_duplicate_that_is_ours_is_published(entry: Any) -> None:
    stage = Stage(publish=[DUPLICATE], entries=[entry])
    stage.publish()
    assert stage.result == (3, "published", "urn:uuid:9", ())


@pytest.mark.requirement("DB.SO.21")
@pytest.mark.parametrize("entry", [ours(hash="0" * 40), ours(size=1)])
def test_a_duplicate_that_is_not_ours_is_e007(entry: Any) -> None:
    stage = Stage(publish=[DUPLICATE], entries=[entry])
    stage.publish()
    assert stage.result[:2] == (3, "E007")
    assert "autre document" in stage.result[2]


@pytest.mark.requirement("DB.SO.21", "DB.SO.22")
def test_a_duplicate_nobody_shows_is_asked_about_again_when_we_have_sent_it_before() -> None:
    stage = Stage(publish=[DUPLICATE], entries=[None, None, ours()])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert stage.outbox.ended == []
    ((_, due, reason, unknown),) = stage.outbox.retried
    assert unknown
    assert "ne le montre pas" in reason
    stage.clock.instant = due
    stage.publish(Item(attempts=2, outcome_unknown=True))
    assert stage.result == (3, "published", "urn:uuid:9", ())


def test_a_duplicate_of_what_was_never_sent_is_e007() -> None:
    stage = Stage(publish=[DUPLICATE], entries=[None])
    stage.publish()
    assert stage.result[1] == "E007"


@pytest.mark.requirement("DB.SO.13")
@pytest.mark.parametrize("code", ["XDSRegistryDeprecatedDocumentError", "XDSReplaceFailed"])
def test_already_replaced_is_success_only_by_what_the_dmp_holds(code: str) -> None:
    for held, result in ((ours(), "published"), (None, "E007"), (ours(size=1), "E007")):
        stage = Stage(
            archived(), publish=[Refused(code, code)], entries=[ours(entry_uuid="urn:uuid:70"), held]
        )
        stage.publish()
        assert stage.result[1] == result
        if held is None:
            assert code in stage.result[2]


@pytest.mark.requirement("DB.SO.22")
def test_what_was_put_out_of_force_since_is_not_called_published() -> None:
    stage = Stage(entries=[ours(status=DEPRECATED)])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert stage.result[1] == "E007"
    assert "plus en vigueur (Deprecated)" in stage.result[2]


# -- outcome unknown ---------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.22")
def test_an_attempt_of_unknown_outcome_is_asked_for_before_anything_is_sent() -> None:
    stage = Stage(entries=[ours()])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert stage.log == ["find", "audit", "audit", "published"]
    assert stage.result == (3, "published", "urn:uuid:9", ())


def test_what_was_registered_as_a_replacement_is_audited_as_one() -> None:
    stage = Stage(archived(), entries=[ours()])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert ("Association", "RPLC") in _details(stage.trail.events[-1])


def test_what_never_arrived_is_sent_again() -> None:
    stage = Stage(entries=[None, ours()])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert stage.dmp.asked == ["2.25.500", "2.25.500"]
    assert stage.log.count("publish") == 1
    assert stage.result[1] == "published"


def test_while_nobody_can_say_nothing_is_sent() -> None:
    stage = Stage(entries=[LOST])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert "publish" not in stage.log
    assert stage.outbox.retried[0][3] is True


def test_something_else_under_our_identifier_is_e007_and_not_sent_over() -> None:
    stage = Stage(entries=[ours(hash="0" * 40)])
    stage.publish(Item(attempts=1, outcome_unknown=True))
    assert stage.result[:2] == (3, "E007")
    assert "publish" not in stage.log


# -- unavailable -------------------------------------------------------------------------------------


@pytest.mark.requirement("DB.SO.21", "SC.DMP/CONF.14")
@pytest.mark.parametrize(
    ("script", "before", "unknown"),
    [
        pytest.param({"publish": [LOST]}, False, True, id="submission sent, no answer"),
        pytest.param({"publish": [NOBODY]}, False, False, id="submission never left"),
        pytest.param({"publish": [NOBODY]}, True, True, id="never left, but the one before may have"),
        pytest.param({"exists": [LOST]}, False, False, id="question sent, no answer"),
        pytest.param({"exists": [NOBODY]}, False, False, id="question never left"),
    ],
)
def test_what_is_known_of_the_outcome_is_kept(script: dict[str, Any], before: bool, unknown: bool) -> None:
    stage = Stage(**script)
    stage.publish(Item(attempts=int(before), outcome_unknown=before))
    ((row, due, reason, outcome_unknown),) = stage.outbox.retried
    assert (row, outcome_unknown) == (3, unknown)
    assert 5 <= (due - stage.clock.now()).total_seconds() <= 10
    (error,) = next(iter(script.values()))
    assert reason == str(error)
    assert stage.notices.open["dmp-unavailable"][0] == "E007"
    # A request that left names the DMP; where none did, the trail says that the publication waits.
    kind = {"publish": "ITI-41", "exists": "TD0.2"}[next(iter(script))] if error.sent else "ITI-41"
    (failed,) = [event for event in stage.trail.events if event.outcome]
    assert failed.event_type[0] == kind
    assert (failed.outcome, failed.outcome_description[:4]) == (4, "E007")
    assert [part.user_id for part in failed.participants][1:] == (
        ["https://dmp.test"] if error.sent else []
    )


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest.mark.parametrize("where", ["exists", "entries"])
def test_a_question_put_again_is_audited_each_time_that_it_left(where: str) -> None:
    answer = Accepted() if where == "exists" else ours()
    stage = Stage(**{"entries": [ours()], where: [STALE, answer]})
    stage.publish()
    kind = "TD0.2" if where == "exists" else "ITI-18"
    asked = [event for event in stage.trail.events if event.event_type[0] == kind]
    assert [event.outcome for event in asked] == [4, 0]
    assert asked[0].outcome_description.endswith("connexion coupée")
    assert stage.result == (3, "published", "urn:uuid:9", ())


@pytest.mark.requirement("SC.DMP/CONF.14")
@pytest.mark.parametrize(("second", "records"), [(STALE, 2), (NOBODY, 1)])
def test_a_question_is_put_again_once_and_no_more(second: DmpUnavailable, records: int) -> None:
    stage = Stage(exists=[STALE, second, Accepted()])
    stage.publish()
    assert stage.log.count("exists") == 2
    assert [kind for kind, _ in stage.trail.shown()].count("TD0.2") == records
    assert len(stage.outbox.retried) == 1


@pytest.mark.requirement("SC.DMP/CONF.14", "DB.SO.22")
@pytest.mark.parametrize("entry", [ours(), None, ours(hash="0" * 40), ours(status=DEPRECATED)])
def test_a_partial_success_is_settled_by_asking_and_the_question_is_audited(entry: Any) -> None:
    stage = Stage(publish=[Doubtful(Accepted(("attention",)), BAD)], entries=[entry])
    stage.publish()
    assert stage.dmp.asked == ["2.25.500"]
    shown = [("TD0.2", ""), ("ITI-18", "")]
    if entry == ours():
        assert stage.result == (3, "published", "urn:uuid:9", ("attention",))
        assert stage.trail.shown() == [*shown, ("ITI-41", "")]
    else:
        assert stage.result[:2] == (3, "E007")
        assert stage.trail.shown() == [*shown, ("ITI-41", "E007")]


@pytest.mark.requirement("SC.DMP/CONF.14", "DB.SO.22")
@pytest.mark.parametrize("question", [LOST, NOBODY])
def test_a_partial_success_nobody_can_ask_about_leaves_the_outcome_unknown(question: Any) -> None:
    stage = Stage(publish=[Doubtful(Accepted(), BAD)], entries=[question])
    stage.publish()
    assert [unknown for *_, unknown in stage.outbox.retried] == [True]
    assert stage.trail.shown()[-1] == ("ITI-41", "E007")
    busy = Stage(publish=[Doubtful(Accepted(), LOST)], entries=[None])
    busy.publish()
    assert [unknown for *_, unknown in busy.outbox.retried] == [True]


@pytest.mark.requirement("DB.SO.45")
def test_that_the_dmp_stays_away_is_audited_now_and_then() -> None:
    stage = Stage(exists=[NOBODY])
    for _ in range(9):
        stage.publish()
        stage.clock.advance(200)
    # The first time, the second, the fourth, the eighth.
    assert stage.trail.shown() == [("ITI-41", "E007")] * 4
    assert {event.outcome_description for event in stage.trail.events} == {
        "E007 - DMP : problème lors de la publication du KOS : connexion refusée"
    }


@pytest.mark.requirement("DB.SO.21")
def test_while_the_dmp_is_away_one_row_asks_and_the_others_wait_for_it() -> None:
    stage = Stage(exists=[NOBODY])
    for row in range(20):
        stage.publish(Item(id=row))
    assert stage.log.count("exists") == 1
    assert len(stage.outbox.retried) == 20
    due = {at for _, at, _, _ in stage.outbox.retried[1:]}
    assert len(due) == 1
    # When the gate opens the next one asks, and all are due once it is answered.
    stage.clock.advance((due.pop() - stage.clock.now()).total_seconds())
    stage.dmp.script["exists"] = [Accepted()]
    stage.dmp.script["find"] = [ours()]
    for row in range(20):
        stage.publish(Item(id=row))
    assert len(stage.outbox.ended) == 20
    assert stage.notices.open == {}


def test_the_wait_grows_although_no_attempt_begins() -> None:
    stage = Stage(exists=[NOBODY])
    waits = []
    for _ in range(8):
        stage.publish()
        waits.append((stage.outbox.retried[-1][1] - stage.clock.now()).total_seconds())
        stage.clock.advance(waits[-1])
    assert all(min(10 * 2**n, 160) / 2 <= wait <= min(10 * 2**n, 160) for n, wait in enumerate(waits))


@pytest.mark.requirement("DB.SO.21")
def test_a_row_the_dmp_chokes_on_is_told_while_others_pass() -> None:
    stage = Stage(publish=[LOST])
    for attempt in range(STUCK_AFTER):
        stage.dmp.script.update(publish=[LOST], find=[None])
        stage.publish(Item(attempts=attempt, outcome_unknown=attempt > 0))
        stage.clock.advance(200)
        stage.dmp.script.update(publish=[Accepted()], find=[None])
        stage.publish(Item(id=99, study_uid="2.25.99"))
    assert list(stage.notices.open) == [f"bloque-{STUDY}"]
    stage.publish(Item(attempts=STUCK_AFTER, outcome_unknown=True))
    assert stage.notices.open == {}


@pytest.mark.requirement("DB.SO.21")
@pytest.mark.parametrize("error", [PublicationError("clé de signature illisible"), None])
def test_our_own_certificate_or_configuration_out_of_order_costs_no_publication(error: Any) -> None:
    stage = Stage(exists=[error or Accepted()], settings=None if error else config(structures=[]))
    for _ in range(3):
        stage.publish()
        stage.clock.advance(200)
    assert stage.outbox.ended == []
    assert [unknown for *_, unknown in stage.outbox.retried] == [False] * 3
    assert stage.notices.open["publication-1999999999"][0] == "E007"
    # The DMP itself is well, and other structures go on.
    assert "dmp-unavailable" not in stage.notices.open
    # Nothing left: the first two of three failures in a row are told as the row's own.
    assert stage.trail.shown() == [("ITI-41", "E007")] * 2
    for event in stage.trail.events:
        assert event.outcome == 4
        assert event.outcome_description.count("E007") == 1
        assert len(event.participants) == 1


@pytest.mark.requirement("DB.SO.21", "DB.SO.45")
@pytest.mark.parametrize("where", ["exists", "publish", "find"])
def test_being_turned_away_keeps_the_structures_rows_until_it_is_mended(where: str) -> None:
    away = NotAdmitted("le DMP n'admet pas notre demande : FailedAuthentication VIHF invalide")
    script: dict[str, Any] = {"entries" if where == "find" else where: [away]}
    stage = Stage(*((archived(),) if where == "find" else ()), settings=TWO, **script)
    for unknown in (False, False, True):
        stage.publish(Item(outcome_unknown=unknown))
        stage.clock.advance(200)
    assert stage.outbox.ended == []
    # Nothing was done: what was not known is still not, and nothing else has become so.
    assert [unknown for *_, unknown in stage.outbox.retried] == [False, False, True]
    code, text = stage.notices.open["publication-1999999999"]
    assert code == "E007"
    assert "FailedAuthentication VIHF invalide" in text
    # The DMP itself is well, other structures go on, and every request that left is audited.
    assert "dmp-unavailable" not in stage.notices.open
    assert [event.outcome for event in stage.trail.events if event.outcome] == [
        stage.trail.events[-1].outcome
    ] * 3
    stage.dmp.script.update(exists=[Accepted()], publish=[Accepted()], find=[None])
    other = attrs.evolve(submission(), structure_id="1888888888")
    stage.publish(Item(id=9, study_uid="2.25.99", submission=other))
    assert stage.result[1] == "published"
    stage.outbox.ended.clear()
    stage.publish(Item())
    assert stage.result[1] == "published"
    assert stage.notices.open == {}


def test_an_unforeseen_failure_is_left_to_the_worker() -> None:
    stage = Stage(publish=[RuntimeError("bug")])
    with pytest.raises(RuntimeError):
        stage.publish()
    assert stage.outbox.ended == stage.outbox.retried == []


def _details(event: Any) -> list[tuple[str, str]]:
    return [detail for one in event.objects for detail in one.details]
