"""Whoever asked is gone: the PACS hears of it, the title comes back, nothing stays behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, DeferredList

from drimbox.dicom.aetitles import TitleState
from drimbox.dicom.dimse import Status
from drimbox.dicom.moving import Abandoned, Channel
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.dicom.box import Box, Sink, apart, pause, reactor, until
from tests.dicom.wary import Holding, Wary, moved

pytestmark = pytest.mark.requirement("DB.SO.177")


def long_study(folder: Path) -> GeneratedStudy:
    return make_study(folder, instances=300, rows=256, columns=256, distinct=4)


async def abandoned(box: Box, study: GeneratedStudy) -> Sink:
    """Start to receive, go away in the middle of the fifth instance."""
    sink = Sink()
    retrieval = box.retrieval(sink)

    def leave(channel: Channel) -> None:
        if len(sink.whole) == 5:
            sink.on_store = lambda channel: None
            reactor.callLater(0, retrieval.abandon)

    sink.on_store = leave
    with pytest.raises(Abandoned):
        await retrieval.run(study.study_uid, study.series[0].series_uid, wait=1)
    return sink


@pytest_twisted.ensureDeferred
async def test_the_simulated_pacs_sees_the_cancel_after_the_answer_in_flight(
    box: Box, pacs: SimulatedPacs, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=40, rows=16, columns=16)
    pacs.load(study)
    pacs.behaviour = Behaviour(pause=0.02)
    box.attach(pacs.port, quarantine=60.0)
    await abandoned(box, study)
    await until(lambda: pacs.seen("cancel"))
    await until(lambda: pacs.seen("final"))
    statuses = [event.details["status"] for event in pacs.seen("stored")]
    # The instance in flight was answered with success; those after it were refused.
    assert statuses[:6] == [0] * 6
    assert set(statuses[6:]) <= {0x0000, 0x0124}
    assert pacs.seen("final")[0].details["status"] == 0xFE00
    assert len(statuses) < 15
    # The final answer came: no quiet time is needed.
    await box.all_free(20)


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_a_pacs_deaf_to_the_cancel_is_aborted_and_its_title_kept_quiet(
    box: Box, pacs: SimulatedPacs, tmp_path: Path
) -> None:
    """It goes on answering "pending": that must not stretch the grace."""
    study = make_study(tmp_path, instances=200, rows=16, columns=16)
    pacs.load(study)
    pacs.behaviour = Behaviour(pause=0.05, ignore_cancel=True)
    box.attach(pacs.port, quarantine=1.0)
    start = reactor.seconds()
    sink = await abandoned(box, study)
    await until(lambda: pacs.seen("move-aborted"), 3)
    # What it sent meanwhile was refused: nobody wants it any more.
    assert len(sink.whole) <= 7
    assert 0x0124 in [event.details["status"] for event in pacs.seen("stored")]
    assert reactor.seconds() - start < 3
    assert TitleState.QUARANTINED in box.states()
    assert pacs.seen("final") == []
    await box.all_free(5)


@pytest.mark.peer("dcmqrscp")
@pytest_twisted.ensureDeferred
async def test_dcmtk_stops_when_the_client_leaves(box: Box, here: Path, tmp_path: Path) -> None:
    study = long_study(tmp_path / "study")
    options = ("+xe", "-xe", "-v")
    with Dcmqrscp(here, "PACS", move_destinations=box.destinations, options=options) as peer:
        peer.load(study.files)
        box.attach(peer.port, quarantine=30.0)
        await abandoned(box, study)
        # Its final answer to the C-CANCEL frees the title long before any quiet time.
        await box.all_free(3)
        log = peer.log.read_text(errors="replace")
        # Its last word is "Cancel", or a warning when it read our refusal of an instance first.
        assert re.search(r"Move SCP Response \d+ \[status: (Cancel|Warning)", log), log
        assert log.count("Store SCU RQ") < 250
        sink = Sink(due={each.sop_instance_uid for each in study.instances})
        assert (await box.retrieval(sink).run(study.study_uid, study.series[0].series_uid, wait=1)).success
        assert set(sink.uids) == sink.due


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_orthanc_stops_when_the_client_leaves(box: Box, here: Path, tmp_path: Path) -> None:
    study = long_study(tmp_path / "study")
    modalities = {"DRIMBOX": ("127.0.0.1", 9), **box.destinations}
    with Orthanc(here, "PACS", modalities=modalities) as peer:
        peer.load(study.files)
        box.attach(peer.port, quarantine=2.0)
        await abandoned(box, study)
        await box.all_free(10)
        sink = Sink(due={each.sop_instance_uid for each in study.instances})
        assert (await box.retrieval(sink).run(study.study_uid, study.series[0].series_uid, wait=1)).success
        assert set(sink.uids) == sink.due


@pytest_twisted.ensureDeferred
async def test_who_leaves_while_waiting_for_a_title_moves_nothing(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    held = [await box.pool.lease(Sink(), 1) for _ in range(2)]
    sink = Wary(study)
    retrieval = box.retrieval(sink)
    waiting = apart(retrieval.run(sink.study_uid, sink.series_uid, wait=30))
    failures: list[Any] = []
    waiting.addErrback(failures.append)
    retrieval.abandon()
    assert failures[0].check(Abandoned)
    for title in held:
        title.release(final=True)
    await pause(0.05)
    assert pacs.seen("move") == []
    assert box.states() == [TitleState.FREE] * 2


@pytest_twisted.ensureDeferred
async def test_who_leaves_before_it_began_or_while_we_connect_moves_nothing(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    box.attach(pacs.port, quarantine=60.0)
    sink = Wary(study)
    early = box.retrieval(sink)
    early.abandon()
    with pytest.raises(Abandoned):
        await early.run(sink.study_uid, sink.series_uid, wait=1)
    pacs.behaviour = Behaviour(connection="silent")
    late = box.retrieval(sink)
    waiting = apart(late.run(sink.study_uid, sink.series_uid, wait=1))
    await until(lambda: pacs.seen("connection"))
    late.abandon()
    with pytest.raises(Abandoned):
        await waiting
    assert pacs.seen("move") == []
    await box.all_free(20)


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_who_leaves_after_the_final_answer_waits_for_nothing(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    """The PACS says that it is done while its last instance still waits for our answer."""
    pacs.behaviour = Behaviour(final="early")
    sink = Holding(study)
    retrieval = box.retrieval(sink)
    waiting = apart(retrieval.run(sink.study_uid, sink.series_uid, wait=1))
    await until(lambda: sink.held and retrieval._final)
    await pause(0.1)
    assert not waiting.called
    retrieval.abandon()
    start = reactor.seconds()
    with pytest.raises(Abandoned):
        await waiting
    assert reactor.seconds() - start < 0.9
    channel, command = sink.held[0]
    channel.respond(command, Status.SUCCESS)
    await box.all_free()


@pytest.mark.threat("memory leaks by repeated requests")
@pytest_twisted.ensureDeferred
async def test_a_retrieval_leaves_no_timer_and_no_place_behind(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    """A client that comes and goes must cost nothing once it is gone, whatever the ceiling of a move."""
    box.attach(pacs.port, move_ceiling=3600.0, max_associations=2, quarantine=0.1)
    await box.all_free()
    before = len(reactor.getDelayedCalls())
    for _ in range(6):
        pacs.behaviour = Behaviour(pause=0.1)
        retrieval = box.retrieval(Wary(study))
        waiting = apart(retrieval.run(study.study_uid, study.series[0].series_uid, wait=2))
        reactor.callLater(0.05, retrieval.abandon)
        await DeferredList([waiting], consumeErrors=True)
    await box.all_free(8)
    await until(lambda: not box.factory._open)
    await until(lambda: box.links._limits["p1"].tokens == 2)
    assert len(reactor.getDelayedCalls()) <= before + 1


@pytest_twisted.ensureDeferred
async def test_a_cancelled_run_is_wound_down_as_an_abandoned_one(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(pause=0.2)
    sink = Wary(study)
    run = apart(moved(box, sink))
    await until(lambda: sink.whole)
    run.cancel()
    with pytest.raises(CancelledError):
        await run
    await until(lambda: pacs.seen("cancel"))
    await box.all_free(2)
