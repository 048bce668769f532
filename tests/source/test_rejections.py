"""Which instances are rejection notes: known from their reception, or asked for once (DB.SO.25)."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from twisted.internet.task import Clock

from drimbox.errors import PacsUnavailable
from drimbox.model import Study
from drimbox.sim.studies import GeneratedStudy, make_study
from drimbox.sim.study_objects import add_key_objects
from drimbox.source.rejections import Rejected, RejectionNotes
from tests.source.fakes import Titles, at_once, run
from tests.source.test_keynotes import Archive, listed

pytestmark = pytest.mark.requirement("DB.SO.25")


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    """Two images, a note of interest, and a rejection note of each title."""
    study = make_study(tmp_path_factory.mktemp("study"), instances=2, rows=8, columns=8)
    for title in ("113000", "113001", "113037", "113038", "113039"):
        study = add_key_objects(study, title=title, targets=study.instances[:1])
    return study


def notes_of(study: GeneratedStudy) -> frozenset[str]:
    return frozenset(one.sop_instance_uid for series in study.series[2:] for one in series.instances)


def among(titles: Titles, study: Study, archive: Archive | None) -> Rejected:
    return run(RejectionNotes(Clock(), at_once, titles).among(study, archive))


def test_titles_are_asked_for_once(noted: GeneratedStudy) -> None:
    archive, titles = Archive(noted), Titles()
    assert among(titles, listed(noted), archive) == Rejected(notes_of(noted))
    # Everything that may be a note is asked for, the note of interest too, and no series of images.
    assert archive.asked == [each.series_uid for each in noted.series[1:]]
    assert among(titles, listed(noted), archive) == Rejected(notes_of(noted))
    assert len(archive.asked) == 5


def test_what_came_as_a_note_is_known_without_the_archive(noted: GeneratedStudy) -> None:
    titles = Titles()
    known = noted.series[2].instances[0].sop_instance_uid
    run(RejectionNotes(Clock(), at_once, titles).learn(known, "113001"))
    assert among(titles, listed(noted), None).notes == {known}
    archive = Archive(noted)
    assert among(titles, listed(noted), archive).complete
    assert noted.series[2].series_uid not in archive.asked


def test_a_study_of_images_asks_nobody(noted: GeneratedStudy) -> None:
    images = attrs.evolve(noted, series=noted.series[:1])
    archive = Archive(images)
    assert among(Titles(), listed(images), archive) == Rejected()
    assert archive.asked == []


def test_classes_that_the_pacs_does_not_tell_are_told_by_the_modality(noted: GeneratedStudy) -> None:
    told = listed(noted)
    silent = attrs.evolve(
        told,
        series=tuple(
            attrs.evolve(
                each, instances=tuple(attrs.evolve(one, sop_class_uid="") for one in each.instances)
            )
            for each in told.series
        ),
    )
    archive = Archive(noted)
    assert among(Titles(), silent, archive) == Rejected(notes_of(noted))
    assert noted.series[0].series_uid not in archive.asked


def test_what_could_not_be_fetched_is_said_and_asked_for_again(noted: GeneratedStudy) -> None:
    titles = Titles()
    broken = Archive(noted, failure=PacsUnavailable("occupé"))
    assert among(titles, listed(noted), broken) == Rejected(complete=False)
    assert titles.titles == {}
    assert among(titles, listed(noted), Archive(noted)) == Rejected(notes_of(noted))


@pytest.mark.threat("a PACS that sends what nobody asked for")
def test_what_nobody_can_read_is_no_note_and_is_not_asked_for_again(noted: GeneratedStudy) -> None:
    titles = Titles()
    assert among(titles, listed(noted), Archive(noted, damage=True)) == Rejected()
    again = Archive(noted)
    assert among(titles, listed(noted), again) == Rejected()
    assert again.asked == []


def test_a_note_whose_identifier_is_none_is_not_remembered() -> None:
    titles = Titles()
    run(RejectionNotes(Clock(), at_once, titles).learn("x" * 70, "113001"))
    assert titles.titles == {}


def test_series_are_bounded(tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=1, rows=8, columns=8)
    for _ in range(34):
        study = add_key_objects(study, title="113001")
    archive = Archive(study)
    assert len(among(Titles(), listed(study), archive).notes) == 32
    assert len(archive.asked) == 32
