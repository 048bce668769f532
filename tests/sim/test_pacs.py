"""The simulated PACS: correct by default, wrong exactly where it is told to be."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour, behaviour_from_json
from drimbox.sim.studies import GeneratedStudy, SimPatient, make_study
from drimbox.sim.study_objects import add_report
from tests.sim.dicom_peer import Asker, Receiver


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GeneratedStudy:
    folder = tmp_path_factory.mktemp("study")
    made = make_study(
        folder,
        instances=5,
        series=2,
        rows=16,
        columns=16,
        transfer_syntax=JPEGLSLossless,
        patient=SimPatient(ins="123456789012345"),
    )
    return add_report(made)


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


@pytest.fixture
def asker(pacs: SimulatedPacs) -> Asker:
    return Asker(pacs.host, pacs.port)


def move_series(asker: Asker, study: GeneratedStudy, **options: int) -> list[object]:
    """Move the first series (3 CT images) and return the responses."""
    return list(
        asker.move(
            "DRIM1",
            QueryRetrieveLevel="SERIES",
            StudyInstanceUID=study.study_uid,
            SeriesInstanceUID=study.series[0].series_uid,
            **options,
        )
    )


def series_uids(study: GeneratedStudy) -> list[str]:
    return [instance.sop_instance_uid for instance in study.series[0].instances]


def eventually(condition: object, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# -- correct by default


def test_answers_echo(asker: Asker, pacs: SimulatedPacs) -> None:
    assert asker.echo() == 0x0000
    assert [event.details["calling"] for event in pacs.seen("echo")] == ["DRIMBOX"]


def test_finds_a_study_with_the_keys_asked_for(asker: Asker, study: GeneratedStudy) -> None:
    answers, status = asker.find(
        QueryRetrieveLevel="STUDY",
        StudyInstanceUID=study.study_uid,
        PatientID="",
        IssuerOfPatientID="",
        ModalitiesInStudy="",
        NumberOfStudyRelatedInstances="",
        OtherPatientIDsSequence=[],
    )
    (answer,) = answers
    assert status == 0x0000
    assert answer.PatientID == "IPP0042"
    assert set(answer.ModalitiesInStudy) == {"CT", "SR"}
    assert int(answer.NumberOfStudyRelatedInstances) == 6
    assert answer.OtherPatientIDsSequence[0].PatientID == "123456789012345"
    assert "StudyDate" not in answer


def test_finds_all_instances_at_once_when_relational_is_granted(
    asker: Asker, study: GeneratedStudy
) -> None:
    keys = {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": study.study_uid, "SOPInstanceUID": ""}
    answers, status = asker.find(relational=True, **keys)
    assert status == 0x0000
    assert {answer.SOPInstanceUID for answer in answers} == {i.sop_instance_uid for i in study.instances}
    assert asker.find(relational=False, **keys) == ([], 0xA900)


def test_refuses_relational_queries_when_told(
    asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(relational=False)
    association = asker.associate(relational=True)
    granted = association.acceptor.sop_class_extended
    association.release()
    assert list(granted.values()) == [b"\x00"]
    keys = {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": study.study_uid, "SOPInstanceUID": ""}
    assert asker.find(relational=True, **keys) == ([], 0xA900)
    answers, status = asker.find(SeriesInstanceUID=study.series[1].series_uid, **keys)
    assert (len(answers), status) == (2, 0x0000)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"PatientName": "pat-tr*"}, 1),
        ({"PatientName": "NOBODY"}, 0),
        ({"StudyDate": "20240101-20241231"}, 1),
        ({"StudyDate": "20250101-"}, 0),
        ({"AccessionNumber": "ACC0001"}, 1),
        ({"StudyInstanceUID": "1.2.3"}, 0),
    ],
)
def test_matches_as_the_standard_says(asker: Asker, keys: dict[str, str], found: int) -> None:
    answers, status = asker.find(**{"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "", **keys})
    assert (len(answers), status) == (found, 0x0000)


def test_moves_a_series_as_it_is_stored(asker: Asker, receiver: Receiver, study: GeneratedStudy) -> None:
    answers = move_series(asker, study)
    assert receiver.uids == series_uids(study)
    assert {stored.transfer_syntax for stored in receiver.stored} == {JPEGLSLossless}
    assert {stored.calling for stored in receiver.stored} == {"PACS"}
    assert {stored.originator for stored in receiver.stored} == {("DRIMBOX", 7)}
    assert [answer.Status for answer in answers] == [0xFF00] * 3 + [0x0000]
    final = answers[-1]
    assert (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (3, 0)
    eventually(lambda: receiver.events == ["released"])


def test_moves_named_instances(asker: Asker, receiver: Receiver, study: GeneratedStudy) -> None:
    wanted = series_uids(study)[1:]
    asker.move(
        "DRIM1",
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=study.study_uid,
        SeriesInstanceUID=study.series[0].series_uid,
        SOPInstanceUID=wanted,
    )
    assert receiver.uids == wanted


def test_decodes_for_a_receiver_without_jpeg_ls(
    asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        with Receiver(syntaxes=[syntax]) as plain:
            pacs.destinations["DRIM1"] = plain.address
            assert move_series(asker, study)[-1].Status == 0x0000
        assert {stored.transfer_syntax for stored in plain.stored} == {syntax}
        assert len(plain.stored[0].dataset.PixelData) == 16 * 16 * 2
        assert [str(stored.dataset.SOPInstanceUID) for stored in plain.stored] == series_uids(study)


def test_says_when_the_destination_is_unknown(
    asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    assert [answer.Status for answer in move_series(asker, study)] == [0xA801]


def test_keeps_what_it_is_sent(tmp_path: Path, study: GeneratedStudy) -> None:
    with SimulatedPacs("CIBLE", storage=tmp_path / "kept") as target, SimulatedPacs() as source:
        source.load(study)
        source.destinations["CIBLE"] = (target.host, target.port)
        asker = Asker(source.host, source.port)
        asker.move("CIBLE", QueryRetrieveLevel="STUDY", StudyInstanceUID=study.study_uid)
        assert len(target.seen("received")) == 6
        assert sorted(entry.uid("SOPInstanceUID") for entry in target.index.entries()) == sorted(
            instance.sop_instance_uid for instance in study.instances
        )


# -- connections


def test_down_refuses_connections_and_comes_back_on_the_same_port(
    asker: Asker, pacs: SimulatedPacs
) -> None:
    port = pacs.port
    pacs.behaviour = Behaviour(down=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((pacs.host, port), 2)
    pacs.behaviour = Behaviour()
    assert pacs.port == port
    assert asker.echo() == 0x0000


def test_down_cuts_what_is_open(asker: Asker, pacs: SimulatedPacs) -> None:
    association = asker.associate()
    assert association.is_established
    pacs.behaviour = Behaviour(down=True)
    eventually(lambda: association.is_aborted)


@pytest.mark.parametrize("connection", ["silent", "close", "garbage"])
def test_connection_faults(pacs: SimulatedPacs, connection: str) -> None:
    pacs.behaviour = behaviour_from_json({"connection": connection})
    with socket.create_connection((pacs.host, pacs.port), 2) as plug:
        plug.settimeout(0.2)
        if connection == "silent":
            with pytest.raises(TimeoutError):
                plug.recv(10)
        elif connection == "close":
            assert plug.recv(10) == b""
        else:
            assert plug.recv(1) == b"\x99"


def test_rejects_associations(asker: Asker, pacs: SimulatedPacs) -> None:
    pacs.behaviour = Behaviour(reject=(2, 3, 2))
    association = asker.associate()
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
    pacs.behaviour = Behaviour()
    assert asker.echo() == 0x0000


def test_rejects_more_associations_than_it_can_bear(asker: Asker, pacs: SimulatedPacs) -> None:
    pacs.behaviour = Behaviour(maximum_associations=1)
    first, second = asker.associate(), asker.associate()
    assert (first.is_established, second.is_rejected) == (True, True)
    first.release()


# -- queries


def test_omits_what_optional_keys_allow(asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy) -> None:
    pacs.behaviour = Behaviour(find_omit=("SOPClassUID",))
    keys = {"StudyInstanceUID": study.study_uid, "SOPInstanceUID": "", "SOPClassUID": ""}
    answers, _ = asker.find(relational=True, QueryRetrieveLevel="IMAGE", **keys)
    assert len(answers) == 6
    assert not any("SOPClassUID" in answer for answer in answers)


@pytest.mark.parametrize(
    ("behaviour", "found", "status"),
    [
        (Behaviour(find_status=0xA700), 0, 0xA700),
        (Behaviour(find_repeat=True), 2, 0x0000),
        (Behaviour(find_foreign=True), 2, 0x0000),
        (Behaviour(find_repeat=True, find_stop_after=1), 1, None),
        (Behaviour(find="abort"), 0, None),
        (Behaviour(find="close"), 0, None),
        (Behaviour(find="garbage"), 0, None),
    ],
)
def test_query_faults(
    asker: Asker, pacs: SimulatedPacs, behaviour: Behaviour, found: int, status: int | None
) -> None:
    pacs.behaviour = behaviour
    asker._ae.dimse_timeout = 0.5
    answers, last = asker.find(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
    assert (len(answers), last) == (found, status)
    assert len({answer.StudyInstanceUID for answer in answers}) == (
        2 if behaviour.find_foreign else found > 0
    )


def test_slow_and_silent_queries(asker: Asker, pacs: SimulatedPacs) -> None:
    pacs.behaviour = Behaviour(find_delay=0.3)
    start = time.monotonic()
    asker.find(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
    assert time.monotonic() - start >= 0.3
    pacs.behaviour = Behaviour(find="silent")
    asker._ae.dimse_timeout = 0.3
    assert asker.find(QueryRetrieveLevel="STUDY", StudyInstanceUID="") == ([], None)


# -- moves


def final_of(answers: list[object]) -> tuple[int, int, int]:
    final = answers[-1]
    return (
        final.Status,  # type: ignore[attr-defined]
        final.NumberOfCompletedSuboperations,  # type: ignore[attr-defined]
        final.NumberOfFailedSuboperations,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    ("behaviour", "sent", "final"),
    [
        (Behaviour(fail=(1,)), (0, 2), (0xB000, 2, 1)),
        (Behaviour(fail=(0, 1, 2)), (), (0xA702, 0, 3)),
        (Behaviour(skip=(2,)), (0, 1), (0x0000, 3, 0)),
        (Behaviour(repeat=(0, 2)), (0, 0, 1, 2, 2), (0x0000, 3, 0)),
        (Behaviour(claim_completed=9, claim_failed=4), (0, 1, 2), (0x0000, 9, 4)),
        (Behaviour(final_status=0xC001), (0, 1, 2), (0xC001, 3, 0)),
        (Behaviour(pending=False), (0, 1, 2), (0x0000, 3, 0)),
        (Behaviour(stop_after=1), (0,), (0xB000, 1, 2)),
        (Behaviour(stop_after=2, stop="abort"), (0, 1), (0xB000, 2, 1)),
        (Behaviour(stop_after=2, stop="release"), (0, 1), (0xB000, 2, 1)),
        (Behaviour(stop_after=2, stop="inside"), (0, 1), (0xB000, 2, 1)),
        (Behaviour(final="early"), (0, 1, 2), (0x0000, 3, 0)),
    ],
)
def test_move_faults(
    asker: Asker,
    pacs: SimulatedPacs,
    receiver: Receiver,
    study: GeneratedStudy,
    behaviour: Behaviour,
    sent: tuple[int, ...],
    final: tuple[int, int, int],
) -> None:
    pacs.behaviour = behaviour
    answers = move_series(asker, study)
    assert final_of(answers) == final
    assert (len(answers) > 1) == (behaviour.pending and behaviour.move == "answer")
    eventually(lambda: receiver.uids == [series_uids(study)[index] for index in sent])
    if behaviour.fail:
        assert pacs.seen("final")[0].details["status"] == final[0]


def test_final_answer_before_the_last_image(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(final="early")
    move_series(asker, study)
    eventually(lambda: len(pacs.seen("stored")) == 3)
    (final,) = pacs.seen("final")
    assert pacs.seen("stored")[1].at < final.at < pacs.seen("stored")[2].at


@pytest.mark.parametrize(
    ("stop", "event"), [("abort", "aborted"), ("release", "released"), ("close", "aborted")]
)
def test_how_it_stops_half_way(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, stop: str, event: str
) -> None:
    pacs.behaviour = behaviour_from_json({"stop_after": 1, "stop": stop, "stop_move": True})
    answers = move_series(asker, study)
    assert "Status" not in answers[-1]  # type: ignore[operator]
    eventually(lambda: bool(receiver.events))
    assert set(receiver.events) == {event}


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(move="silent"),
        Behaviour(move="abort"),
        Behaviour(move="close"),
        Behaviour(move="garbage"),
        Behaviour(final="never"),
        Behaviour(final="garbage"),
        Behaviour(stop_after=1, stop="silent"),
    ],
)
def test_moves_that_never_end_well(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, behaviour: Behaviour
) -> None:
    pacs.behaviour = behaviour
    asker._ae.dimse_timeout = 0.5
    answers = move_series(asker, study)
    assert "Status" not in answers[-1]  # type: ignore[operator]
    expected = 0 if behaviour.move != "answer" else behaviour.stop_after or 3
    assert len(receiver.stored) == expected
    assert not pacs.seen("final")


@pytest.mark.parametrize("kind", ["study", "series", "patient"])
def test_sends_an_instance_that_has_no_business_there(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, kind: str
) -> None:
    pacs.behaviour = behaviour_from_json({"intruder": kind, "intruder_at": 1})
    assert move_series(asker, study)[-1].Status == 0x0000  # type: ignore[attr-defined]
    assert len(receiver.stored) == 4
    intruder = receiver.stored[1].dataset
    assert intruder.SOPInstanceUID not in series_uids(study)
    assert (intruder.StudyInstanceUID != study.study_uid) == (kind == "study")
    assert (intruder.SeriesInstanceUID != study.series[0].series_uid) == (kind in ("study", "series"))
    assert (intruder.PatientID != "IPP0042") == (kind == "patient")


def test_store_association_under_another_name_and_originator(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(store_calling="INTRUS", originator="wrong")
    move_series(asker, study)
    pacs.behaviour = Behaviour(originator="absent")
    move_series(asker, study)
    assert [stored.calling for stored in receiver.stored] == ["INTRUS"] * 3 + ["PACS"] * 3
    assert {stored.originator for stored in receiver.stored[:3]} == {("SOMEBODY-ELSE", 4242)}
    assert {stored.originator for stored in receiver.stored[3:]} == {(None, None)}


@pytest.mark.parametrize("parallel", [False, True])
def test_several_associations_for_one_move(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, parallel: bool
) -> None:
    pacs.behaviour = Behaviour(associations=2, parallel=parallel, pause=0.05)
    asker.move("DRIM1", QueryRetrieveLevel="STUDY", StudyInstanceUID=study.study_uid)
    assert sorted(receiver.uids) == sorted(i.sop_instance_uid for i in study.instances)
    order = [stored.association for stored in receiver.stored]
    assert len(set(order)) == 2
    # One after the other: the first is done with when the second begins.
    assert (order == [order[0]] * 3 + [order[-1]] * 3) == (not parallel)


@pytest.mark.parametrize(
    ("propose", "syntax"),
    [
        ("stored", JPEGLSLossless),
        ("uncompressed", ExplicitVRLittleEndian),
        ("both", JPEGLSLossless),
        ("each", JPEGLSLossless),
    ],
)
def test_proposes_what_it_is_told(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy, propose: str, syntax: str
) -> None:
    pacs.behaviour = behaviour_from_json({"propose": propose})
    move_series(asker, study)
    assert {stored.transfer_syntax for stored in receiver.stored} == {syntax}


def test_cancel_is_obeyed_or_not(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(pause=0.2)
    answers = move_series(asker, study, cancel_after=1)
    assert answers[-1].Status == 0xFE00  # type: ignore[attr-defined]
    assert len(receiver.stored) < 3
    pacs.behaviour = attrs.evolve(pacs.behaviour, ignore_cancel=True)
    receiver.stored.clear()
    assert final_of(move_series(asker, study, cancel_after=1)) == (0x0000, 3, 0)
    assert len(receiver.stored) == 3
    assert len(pacs.seen("cancel")) == 2


def test_goes_on_after_an_abort_only_when_told(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(pause=0.1)
    move_series(asker, study, abort_after=1)
    eventually(lambda: bool(pacs.seen("move-over")))
    assert len(receiver.stored) < 3
    pacs.behaviour = Behaviour(pause=0.1, survive_abort=True)
    receiver.stored.clear()
    move_series(asker, study, abort_after=1)
    eventually(lambda: receiver.uids == series_uids(study))


def test_abandons_at_the_first_refusal_as_orthanc_does(
    asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    with Receiver(status=0x0124) as refusing:
        pacs.destinations["DRIM1"] = refusing.address
        assert final_of(move_series(asker, study)) == (0xA702, 0, 3)
        assert len(refusing.stored) == 3
        pacs.behaviour = Behaviour(on_refusal="abandon")
        assert final_of(move_series(asker, study)) == (0xA702, 0, 3)
        assert len(refusing.stored) == 4


def test_loses_patience_with_a_receiver_that_does_not_answer(
    asker: Asker, pacs: SimulatedPacs, receiver: Receiver, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(patience=0.3)
    receiver.delay.clear()
    assert final_of(move_series(asker, study)) == (0xA702, 0, 3)
    assert [event.details["status"] for event in pacs.seen("stored")] == [None]


def test_destination_that_refuses_the_association(
    asker: Asker, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        pacs.destinations["DRIM1"] = closed.getsockname()
        assert final_of(move_series(asker, study)) == (0xA702, 0, 3)


# -- as a process


def test_behaviour_from_json_refuses_what_it_does_not_know() -> None:
    assert behaviour_from_json({"reject": [1, 1, 3]}) == Behaviour(reject=(1, 1, 3))
    for wrong in ({"donw": True}, {"stop": "slowly"}, {"pause": "long"}):
        with pytest.raises(ValueError, match="not a behaviour"):
            behaviour_from_json(wrong)


def test_process_obeys_lines_and_ends_with_its_standard_input(study: GeneratedStudy) -> None:
    command = [sys.executable, "-m", "drimbox.sim.pacs", "--ae-title", "LOIN", "--load", str(study.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to_pacs, from_pacs = process.stdin, process.stdout
        assert to_pacs is not None
        assert from_pacs is not None

        def order(**values: object) -> dict[str, object]:
            to_pacs.write(json.dumps(values) + "\n")
            to_pacs.flush()
            answer: dict[str, object] = json.loads(from_pacs.readline())
            return answer

        ready = json.loads(from_pacs.readline())
        asker = Asker("127.0.0.1", ready["port"], called="LOIN")
        answers, _ = asker.find(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
        assert [answer.StudyInstanceUID for answer in answers] == [study.study_uid]
        assert order(behaviour={"find_status": 0xA700}) == {"ok": True}
        assert asker.find(QueryRetrieveLevel="STUDY", StudyInstanceUID="") == ([], 0xA700)
        assert order(behaviour={"nonsense": 1})["ok"] is False
        with Receiver() as receiver:
            assert order(destinations={"DRIM1": list(receiver.address)}) == {"ok": True}
            asker.move("DRIM1", QueryRetrieveLevel="STUDY", StudyInstanceUID=study.study_uid)
            assert len(receiver.stored) == 6
        assert "move" in order(seen=True)["seen"]  # type: ignore[operator]
        to_pacs.close()
        assert process.wait(5) == 0
