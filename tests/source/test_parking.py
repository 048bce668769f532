"""Parked rows are told to auditor and administrator, once, whatever breaks (DB.SO.21, DB.SO.45)."""

from __future__ import annotations

import attrs
import pytest

from drimbox.ports import ParkedRow
from drimbox.source.parking import Parking
from tests.source.fakes import STUDY, Notices, Trail, config, run

pytestmark = pytest.mark.requirement("DB.SO.21", "DB.SO.45")
PATIENT = "279035121518989"
MESSAGE = ParkedRow("inbox", 4, "KeyError (drimbox/x.py:1)", ris="ris-a", peer="10.0.0.1")
JOB = ParkedRow("feed", 5, "TypeError", ris="ris-a", study_uid=STUDY)
REMOVAL = ParkedRow(
    "outbox",
    6,
    "TypeError",
    study_uid=STUDY,
    sop_instance_uid="2.25.501",
    structure_id="1999999999",
    patient_ins=PATIENT,
    removal=True,
)


class Rows:
    def __init__(self, *rows: ParkedRow) -> None:
        self.rows = list(rows)
        self.error: Exception | None = None

    async def untold(self, limit: int = 100) -> list[ParkedRow]:
        if self.error is not None:
            raise self.error
        return self.rows[:1]

    async def told(self, row: ParkedRow) -> None:
        self.rows.remove(row)


class Stage:
    def __init__(self, *rows: ParkedRow) -> None:
        self.rows, self.trail, self.notices = Rows(*rows), Trail(), Notices()
        self.parking = Parking(config(), self.rows, self.trail, self.notices)


def test_each_row_gives_one_audit_record_and_one_notice() -> None:
    stage = Stage(MESSAGE, JOB, REMOVAL)
    run(stage.parking.tell())
    assert stage.rows.rows == []
    assert stage.trail.shown() == [("RAD-128", "E008"), ("ITI-41", "E008"), ("ITI-57", "E008")]
    assert all(event.outcome == 8 for event in stage.trail.events)
    assert stage.trail.events[0].participants[0].network_id == "10.0.0.1"
    last = stage.trail.events[2]
    assert (last.patient_ins, last.study_uid) == (PATIENT, STUDY)
    assert [one.id for one in last.objects] == [PATIENT, "2.25.501", STUDY]
    assert last.participants[0].user_id == "1999999999/interne"
    assert stage.notices.posted == ["file-inbox-4", "file-feed-5", "file-outbox-6"]
    code, text = stage.notices.open["file-outbox-6"]
    assert code == "E008"
    assert STUDY in text
    assert "drimbox queue show outbox 6" in text
    assert PATIENT not in text


def test_of_one_that_another_took_the_place_of_only_the_auditor_is_told() -> None:
    stage = Stage(attrs.evolve(REMOVAL, removal=False, dropped=True))
    run(stage.parking.tell())
    assert stage.rows.rows == []
    assert stage.trail.shown() == [("ITI-41", "E008")]
    assert stage.notices.posted == []


def test_a_row_is_told_after_its_audit_and_its_notice() -> None:
    stage = Stage(JOB)

    async def fails(**_: str) -> None:
        raise OSError("disk full")

    stage.notices.post = fails  # type: ignore[assignment]
    with pytest.raises(OSError, match="disk full"):
        run(stage.parking.tell())
    assert stage.rows.rows == [JOB], "told again later"
    del stage.notices.post
    run(stage.parking.tell())
    assert stage.rows.rows == []


def test_a_failure_is_logged_and_the_next_wake_tells(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(JOB)
    stage.rows.error = OSError("store away")
    stage.parking.wake()
    stage.rows.error = None
    assert stage.notices.posted == []
    stage.parking.wake()
    assert stage.notices.posted == ["file-feed-5"]
