"""Key image notes: fetched, read, told to the manifest; their absence never costs the KOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from drimbox.dicom.dimse import Command, CommandField, Status
from drimbox.dicom.moving import MoveResult
from drimbox.dicom.negotiation import ProposedContext
from drimbox.dicom.part10 import read_file_meta
from drimbox.dicom.syntaxes import EXPLICIT_LE
from drimbox.errors import PacsUnavailable
from drimbox.kos.keyimages import MAX_BYTES
from drimbox.kos.reading import KOS_SOP_CLASS
from drimbox.model import Instance, Series, Study
from drimbox.sim.studies import GeneratedStudy, make_study
from drimbox.sim.study_objects import add_key_objects
from drimbox.source.keynotes import Collector, KeyNotes, Marks
from tests.source.answers import CT, FakeChannel
from tests.source.fakes import at_once, run

pytestmark = pytest.mark.requirement("DB.SO.194")


def listed(study: GeneratedStudy) -> Study:
    """The study as its PACS lists it."""
    return Study(
        study.study_uid,
        tuple(
            Series(
                series.series_uid,
                series.modality,
                tuple(Instance(one.sop_instance_uid, one.sop_class_uid) for one in series.instances),
            )
            for series in study.series
        ),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    folder: Path = tmp_path_factory.mktemp("study")
    made = make_study(folder, instances=3, rows=8, columns=8)
    return add_key_objects(made, targets=made.instances[1:2])


@attrs.define
class Archive:
    """An archive that sends what the test says (an `ImageArchive`)."""

    study: GeneratedStudy
    failure: Exception | None = None
    damage: bool = False
    asked: list[str] = attrs.field(factory=list)
    name: str = "P"
    patience: float = 1.0

    async def find_study(self, study_uid: str) -> Study | None:
        return listed(self.study)

    def retrieval(self, receiver: Any, needed: Any = None) -> Any:
        archive = self

        class Run:
            sent_at = None

            async def run(
                self, study: str, series: str, *, wait: float, instance_uid: str | None = None
            ) -> Any:
                archive.asked.append(series)
                if archive.failure is not None:
                    raise archive.failure
                archive.send(receiver, series)
                return MoveResult(0, 1, 0, 0)

            def abandon(self) -> None:
                """Never asked for."""

        return Run()

    def send(self, receiver: Any, series_uid: str) -> None:
        channel = FakeChannel()
        receiver.opened(channel)
        for series in self.study.series:
            if series.series_uid == series_uid:
                for one in series.instances:
                    data = one.path.read_bytes()
                    data = data[read_file_meta(data).dataset_offset :]
                    if self.damage:
                        data = data[:-7]
                    send(receiver, channel, one.sop_instance_uid, data)
        receiver.closed(channel, True)


def send(receiver: Any, channel: Any, uid: str, data: bytes) -> None:
    command = Command(
        CommandField.C_STORE_RQ,
        message_id=1,
        affected_class=KOS_SOP_CLASS,
        affected_instance=uid,
        has_dataset=True,
    )
    receiver.store(channel, command, EXPLICIT_LE)
    receiver.data(channel, memoryview(data), True)


def marks(archive: Archive) -> Marks:
    return run(KeyNotes(Clock(), at_once).marks(archive, listed(archive.study)))


def test_the_images_a_note_cites_are_marked_with_it(study: GeneratedStudy) -> None:
    archive = Archive(study)
    found = marks(archive)
    note = study.series[-1]
    assert archive.asked == [note.series_uid]
    assert found.complete
    (cited,) = found.images
    assert cited == study.instances[1].sop_instance_uid
    (mark,) = found.images[cited]
    assert (mark.sop_instance_uid, mark.series_uid) == (note.instances[0].sop_instance_uid, note.series_uid)


def test_a_study_without_key_objects_asks_nothing(study: GeneratedStudy) -> None:
    archive = Archive(attrs.evolve(study, series=study.series[:1]))
    assert marks(archive) == Marks()
    assert archive.asked == []


def test_what_cannot_be_fetched_is_told(study: GeneratedStudy) -> None:
    assert marks(Archive(study, failure=PacsUnavailable("occupé"))) == Marks({}, complete=False)


def test_what_cannot_be_read_costs_its_marks_only(study: GeneratedStudy) -> None:
    assert marks(Archive(study, damage=True)) == Marks({}, complete=True)


def test_only_key_objects_are_taken() -> None:
    choose = Collector(Clock(), frozenset()).choose
    assert choose(ProposedContext(1, KOS_SOP_CLASS, (EXPLICIT_LE,))) == EXPLICIT_LE
    assert choose(ProposedContext(1, CT, (EXPLICIT_LE,))) is None


@pytest.mark.threat("a PACS that sends what nobody asked for")
def test_what_is_not_due_repeated_or_too_large_is_dropped() -> None:
    collector = Collector(Clock(), frozenset({"2.25.2", "2.25.3"}))
    channel = FakeChannel()
    send(collector, channel, "2.25.9", b"stranger")
    send(collector, channel, "2.25.2", b"first")
    send(collector, channel, "2.25.2", b"second")
    send(collector, channel, "2.25.3", b"\0" * (MAX_BYTES + 1))
    assert [each[-5:] for each in collector.objects.values()] == [b"first"]
    assert collector.satisfied
    assert [status for _, status in channel.answers] == [Status.SUCCESS] * 4


def test_half_an_object_is_none() -> None:
    collector = Collector(Clock(), frozenset({"2.25.2"}))
    channel = FakeChannel()
    command = Command(CommandField.C_STORE_RQ, affected_class=KOS_SOP_CLASS, affected_instance="2.25.2")
    collector.store(channel, command, EXPLICIT_LE)
    collector.data(channel, memoryview(b"half"), False)
    assert collector.busy
    collector.closed(channel, False)
    assert (collector.busy, collector.satisfied, collector.objects) == (False, False, {})
