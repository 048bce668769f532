"""The rarer misbehaviours of the simulated PACS: disorder, torn associations, copies that go astray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.sim.dicom_peer import Asker, Receiver


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    return make_study(tmp_path_factory.mktemp("study"), instances=5, rows=16, columns=16)


@pytest.fixture
def pacs(study: GeneratedStudy) -> Iterator[SimulatedPacs]:
    with SimulatedPacs() as running:
        running.load(study)
        yield running


@pytest.fixture
def receiver(pacs: SimulatedPacs) -> Iterator[Receiver]:
    with Receiver() as running:
        pacs.destinations["DRIM1"] = running.address
        yield running


def move(pacs: SimulatedPacs, study: GeneratedStudy) -> list[int]:
    """Move the series; statuses of the responses."""
    asker = Asker(pacs.host, pacs.port)
    answers = asker.move(
        "DRIM1",
        QueryRetrieveLevel="SERIES",
        StudyInstanceUID=study.study_uid,
        SeriesInstanceUID=study.series[0].series_uid,
    )
    return [int(answer.Status) for answer in answers]


def held(study: GeneratedStudy) -> list[str]:
    return [instance.sop_instance_uid for instance in study.instances]


def test_disorder_is_the_same_for_the_same_seed(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(shuffle=3)
    move(pacs, study)
    move(pacs, study)
    first, second = receiver.uids[:5], receiver.uids[5:]
    assert first == second != held(study)
    assert sorted(first) == sorted(held(study))


def test_late_images_come_after_the_final_answer_and_were_counted(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(late=2, late_after=0.3)
    statuses = move(pacs, study)
    assert statuses[-1] == 0
    deadline = time.monotonic() + 5
    while len(receiver.uids) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert receiver.uids == held(study)
    assert len({stored.association for stored in receiver.stored}) == 2
    assert pacs.seen("final")[0].at < pacs.seen("stored")[3].at - 0.25


@pytest.mark.parametrize("resend", [False, True])
def test_a_torn_association_is_followed_by_another(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, resend: bool
) -> None:
    pacs.behaviour = Behaviour(tear=(1,), resend=resend)
    statuses = move(pacs, study)
    assert statuses[-1] == (0 if resend else 0xB000)
    expected = held(study) if resend else held(study)[:1] + held(study)[2:]
    assert receiver.uids == expected
    assert len({stored.association for stored in receiver.stored}) == 2


def test_one_association_for_each_instance(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(reopen=True)
    move(pacs, study)
    assert receiver.uids == held(study)
    assert receiver.events.count("released") == 5


def test_a_copy_goes_astray_and_the_instance_comes_all_the_same(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(astray=(0, 3), astray_to="DRIM9")
    assert move(pacs, study)[-1] == 0
    assert len(receiver.uids) == 7
    assert sorted(set(receiver.uids)) == sorted(held(study))
    assert [event.details["uid"] for event in pacs.seen("astray")] == [held(study)[0], held(study)[3]]


def test_another_study_comes_in_disguise(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(intruder="disguise", intruder_at=2)
    move(pacs, study)
    uid = held(study)[2]
    studies = [str(each.dataset.StudyInstanceUID) for each in receiver.stored if each.uid == uid]
    assert len(studies) == 2
    assert studies[0] != studies[1] == study.study_uid


def test_drips_inside_each_data_set(pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy) -> None:
    pacs.behaviour = Behaviour(drip=0.1)
    started = time.monotonic()
    assert move(pacs, study)[-1] == 0
    assert time.monotonic() - started > 0.5
    assert receiver.uids == held(study)


def test_names_the_move_before(pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy) -> None:
    pacs.behaviour = Behaviour(originator="other")
    pacs._moves.append(4321)
    move(pacs, study)
    assert {stored.originator for stored in receiver.stored} == {("DRIMBOX", 4321)}


def test_each_move_has_its_own_behaviour(
    pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.each_move = lambda number: Behaviour(skip=(number,))
    for _ in range(2):
        move(pacs, study)
    assert receiver.uids == held(study)[1:] + held(study)[:1] + held(study)[2:]
    assert threading.active_count() < 50
