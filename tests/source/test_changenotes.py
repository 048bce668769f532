"""Key objects that a PACS stores: answered when safe, and what happens when they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE
from drimbox.kos.changes import MAX_BYTES
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.sim.studies import make_study
from drimbox.sim.study_objects import add_key_objects
from drimbox.source.changenotes import ChangeNotes
from drimbox.source.interpretation import interpret
from tests.source.answers import CT
from tests.source.fakes import at_once

pytestmark = pytest.mark.requirement("DB.SO.25", "DB.SO.26")
JPEG_LS = "1.2.840.10008.1.2.4.80"


class Stage:
    """An inbox that takes what it is given when told to, and a channel that notes the answers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.woken = 0
        self.commit: Deferred[int] | None = None
        self.failure: Exception | None = None
        self.receiver = ChangeNotes(self, at_once, stored=self.wake).receiver("P", "192.0.2.9")

    async def add(self, **row: Any) -> int:
        if self.failure is not None:
            raise self.failure
        if self.commit is not None:
            await self.commit
        self.rows.append(row)
        return len(self.rows)

    def wake(self) -> None:
        self.woken += 1

    def respond(self, command: Command, status: int) -> None:
        self.answers.append(status)

    def pause(self) -> None:
        """Never asked for."""

    resume = abort = pause

    def store(
        self, data: bytes, *, uid: str = "2.25.9", sop_class: str = KOS_SOP_CLASS, cut: int = 0
    ) -> None:
        command = Command(
            CommandField.C_STORE_RQ,
            message_id=1,
            affected_class=sop_class,
            affected_instance=uid,
            has_dataset=True,
        )
        self.receiver.store(self, command, EXPLICIT_LE)
        for start in range(0, len(data), 1 << 16):
            piece = memoryview(data)[start : start + (1 << 16)]
            last = start + (1 << 16) >= len(data)
            if cut and last:
                return
            self.receiver.data(self, piece, last)


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Data sets of key objects by title."""
    folder: Path = tmp_path_factory.mktemp("notes")
    made = {}
    for title in ("113039", "113030"):
        study = make_study(folder / title, instances=1, rows=8, columns=8, study_uid="2.25.4711")
        data = add_key_objects(study, title=title).instances[-1].path.read_bytes()
        made[title] = data[read_file_meta(data).dataset_offset :]
    return made


def test_only_key_objects_uncompressed_are_taken() -> None:
    choose = Stage().receiver.choose
    assert choose(ProposedContext(1, KOS_SOP_CLASS, (IMPLICIT_LE, EXPLICIT_LE))) == EXPLICIT_LE
    assert choose(ProposedContext(1, KOS_SOP_CLASS, (IMPLICIT_LE,))) == IMPLICIT_LE
    assert choose(ProposedContext(1, KOS_SOP_CLASS, (JPEG_LS,))) is None
    assert choose(ProposedContext(1, CT, (EXPLICIT_LE,))) is None


def test_a_note_is_answered_when_it_is_safe_and_read_back_as_a_change(notes: dict[str, bytes]) -> None:
    stage = Stage()
    stage.commit = Deferred()
    stage.store(notes["113039"])
    assert (stage.answers, stage.woken) == ([], 0)
    stage.commit.callback(1)
    assert (stage.answers, stage.woken) == ([Status.SUCCESS], 1)
    (row,) = stage.rows
    assert (row["ris"], row["peer"]) == ("P", "192.0.2.9")
    read = interpret(row["raw"])
    assert (read.changed, read.error) == (("2.25.4711",), None)


def test_a_manifest_that_comes_back_changes_nothing(notes: dict[str, bytes]) -> None:
    stage = Stage()
    stage.store(notes["113030"])
    assert (stage.answers, stage.rows) == ([Status.SUCCESS], [])


def test_what_cannot_be_stored_now_is_to_be_sent_again(notes: dict[str, bytes]) -> None:
    stage = Stage()
    stage.failure = OSError("disk full")
    stage.store(notes["113039"])
    assert (stage.answers, stage.woken) == ([Status.OUT_OF_RESOURCES], 0)


@pytest.mark.parametrize(
    "given",
    [
        {"data": b"\0" * 300},
        {"data": b"\0" * (MAX_BYTES + 1)},
        {"uid": "../../etc"},
        {"sop_class": "x"},
    ],
)
def test_what_is_no_key_object_is_refused(notes: dict[str, bytes], given: dict[str, Any]) -> None:
    stage = Stage()
    stage.store(**{"data": notes["113039"], **given})
    assert (stage.answers, stage.rows) == ([Status.CANNOT_UNDERSTAND], [])


def test_half_a_note_is_none(notes: dict[str, bytes]) -> None:
    stage = Stage()
    stage.store(notes["113039"], cut=True)
    stage.receiver.closed(stage, False)
    assert (stage.answers, stage.rows) == ([], [])
    stage.receiver.data(stage, memoryview(b""), True)
    assert stage.answers == []
