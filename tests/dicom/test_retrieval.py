"""One C-MOVE against every misbehaviour of a PACS: the right end, in time, the title back, no stranger.

The receiver is the one deliveries use as far as strangers go: the data set itself says whose it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pydicom import dcmread
from twisted.internet.defer import gatherResults

from drimbox.dicom.aetitles import TitleState
from drimbox.dicom.dimse import Command, CommandField
from drimbox.dicom.moving import Abandoned, Channel
from drimbox.dicom.requestor import STUDY_ROOT_MOVE
from drimbox.errors import ImageError, PacsUnavailable, RetrieveTimeout, TooManyRequests
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc
from drimbox.sim.studies import GeneratedStudy
from tests.dicom.box import PACS, Box, Sink, apart, reactor, until
from tests.dicom.scripted import Answering, ScriptedPacs
from tests.dicom.wary import Wary, moved

pytestmark = pytest.mark.requirement("DB.SO.177")


# -- a correct PACS -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_series_arrives_whole_and_alone(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    sink = Wary(study)
    result = await moved(box, sink)
    assert result.success
    assert (result.completed, result.failed, result.warning) == (3, 0, 0)
    assert set(sink.uids) == sink.due
    await box.all_free()
    (move,) = pacs.seen("move")
    assert move.details["identifier"].QueryRetrieveLevel == "SERIES"
    assert move.details["destination"] in box.pacs.pool


@pytest_twisted.ensureDeferred
async def test_one_instance_is_moved_at_image_level(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    sink = Wary(study)
    wanted = sorted(sink.due)[1]
    retrieval = box.retrieval(sink)
    result = await retrieval.run(sink.study_uid, sink.series_uid, wait=1, instance_uid=wanted)
    assert result.completed == 1
    assert sink.uids == [wanted]
    assert pacs.seen("move")[0].details["identifier"].QueryRetrieveLevel == "IMAGE"


@pytest.mark.peer("dcmqrscp")
@pytest_twisted.ensureDeferred
async def test_dcmtk_delivers_the_bytes_it_holds(box: Box, here: Path, study: GeneratedStudy) -> None:
    with Dcmqrscp(here, "PACS", move_destinations=box.destinations, options=("+xe", "-xe")) as peer:
        peer.load(study.files)
        box.attach(peer.port)
        sink = Wary(study)
        assert (await moved(box, sink)).success
        check_bytes(sink, study)
        await box.all_free()


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_orthanc_delivers_and_its_title_comes_back(
    box: Box, here: Path, study: GeneratedStudy
) -> None:
    modalities = {"DRIMBOX": ("127.0.0.1", 9), **box.destinations}
    with Orthanc(here, "PACS", modalities=modalities) as peer:
        peer.load(study.files)
        box.attach(peer.port, quarantine=30.0)
        for _ in range(4):
            sink = Wary(study)
            assert (await moved(box, sink)).success
            check_bytes(sink, study)
        # Not after a quiet time: its associations end with its moves.
        await box.all_free(12)


def check_bytes(sink: Wary, study: GeneratedStudy) -> None:
    files = {each.sop_instance_uid: each.path for each in study.series[0].instances}
    assert set(sink.uids) == set(files)
    for command, data in sink.whole:
        held = dcmread(files[command.affected_instance or ""])
        assert held.PixelData in data


# -- misbehaviours ------------------------------------------------------------------------------------

#: Those that end in a final response: name -> behaviour, instances kept of three, response is a success.
ANSWERED: dict[str, tuple[Behaviour, int, bool]] = {
    "closes half-way": (Behaviour(stop_after=1, stop="close"), 1, True),
    "aborts half-way": (Behaviour(stop_after=1, stop="abort"), 1, True),
    "releases half-way": (Behaviour(stop_after=1, stop="release"), 1, True),
    "stops inside a data set": (Behaviour(stop_after=1, stop="inside"), 1, True),
    "sends nothing at all": (Behaviour(stop_after=0, stop="close"), 0, False),
    "answers before the last image": (Behaviour(final="early"), 3, True),
    "opens three associations": (Behaviour(associations=3), 3, True),
    "opens three at a time": (Behaviour(associations=3, parallel=True), 3, True),
    "claims more": (Behaviour(claim_completed=99), 3, True),
    "claims less": (Behaviour(claim_completed=0, claim_failed=3), 3, True),
    "skips one": (Behaviour(skip=(1,)), 2, True),
    "fails one": (Behaviour(fail=(1,)), 2, True),
    "fails all": (Behaviour(fail=(0, 1, 2)), 0, False),
    "repeats one": (Behaviour(repeat=(0, 2)), 3, True),
    "adds another study": (Behaviour(intruder="study"), 3, True),
    "adds another series": (Behaviour(intruder="series", intruder_at=2), 3, True),
    "adds another study and abandons": (Behaviour(intruder="study", on_refusal="abandon"), 3, True),
    "stores under another title": (Behaviour(store_calling="SOMEBODY"), 0, False),
    "names no originator": (Behaviour(originator="absent"), 3, True),
    "names another originator": (Behaviour(originator="wrong"), 0, False),
    "refuses": (Behaviour(move_status=0xA801), 0, False),
    "pauses between images": (Behaviour(pause=0.3), 3, True),
    "answers nothing meanwhile": (Behaviour(pending=False), 3, True),
    "answers a warning": (Behaviour(final_status=0xB000), 3, True),
    "calls a failure a success": (Behaviour(stop_after=2, stop="close", final_status=0), 2, True),
    "starts late": (Behaviour(move_delay=1.0), 3, True),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest_twisted.ensureDeferred
async def test_a_move_that_is_answered(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, name: str
) -> None:
    behaviour, kept, success = ANSWERED[name]
    pacs.behaviour = behaviour
    sink = Wary(study)
    start = reactor.seconds()
    result = await moved(box, sink)
    assert result.success is success
    assert len(set(sink.uids)) == kept
    assert set(sink.uids) <= sink.due
    assert reactor.seconds() - start < box.pacs.move_ceiling
    await box.all_free()
    assert await again(box, pacs, study)


#: Those that never are: name -> behaviour, error.
UNANSWERED: dict[str, tuple[Behaviour, type[Exception], str]] = {
    "silent from the start": (Behaviour(move="silent"), RetrieveTimeout, "aucune image"),
    "aborts at once": (Behaviour(move="abort"), PacsUnavailable, "interrompue"),
    "closes at once": (Behaviour(move="close"), PacsUnavailable, "coupée|fermée"),
    "garbage at once": (Behaviour(move="garbage"), PacsUnavailable, "PDU type"),
    "never final": (Behaviour(final="never"), RetrieveTimeout, "plus d'image"),
    "garbage at last": (Behaviour(final="garbage"), PacsUnavailable, "PDU type"),
    "silent half-way": (Behaviour(stop_after=1, stop="silent"), RetrieveTimeout, "plus d'image"),
    "closes all half-way": (Behaviour(stop_after=1, stop_move=True), PacsUnavailable, "coupée|fermée"),
    "silent half-way, deaf to cancel": (
        Behaviour(stop_after=1, stop="silent", ignore_cancel=True),
        RetrieveTimeout,
        "plus d'image",
    ),
    "one image every four seconds": (Behaviour(pause=4.0), RetrieveTimeout, "plus d'image"),
    "late first image": (Behaviour(move_delay=4.0), RetrieveTimeout, "aucune image"),
    "association rejected": (Behaviour(reject=(1, 1, 3)), PacsUnavailable, "rejetée"),
    "association rejected for now": (Behaviour(reject=(2, 3, 2)), TooManyRequests, "rejetée"),
    "down": (Behaviour(down=True), PacsUnavailable, "injoignable"),
    "mute": (Behaviour(connection="silent"), PacsUnavailable, "demande d'association"),
}


@pytest.mark.parametrize("name", UNANSWERED)
@pytest_twisted.ensureDeferred
async def test_a_move_that_is_not_answered(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, name: str
) -> None:
    behaviour, error, words = UNANSWERED[name]
    pacs.behaviour = behaviour
    sink = Wary(study)
    start = reactor.seconds()
    with pytest.raises(error, match=words):
        await moved(box, sink)
    # It was not the ceiling that ended it.
    assert reactor.seconds() - start < box.pacs.move_ceiling
    assert set(sink.uids) <= sink.due
    # Grace, then quiet time: the title comes back by itself.
    await box.all_free(12)
    assert await again(box, pacs, study)


async def again(box: Box, pacs: SimulatedPacs, study: GeneratedStudy) -> bool:
    """Whatever happened, the next request is served."""
    pacs.behaviour = Behaviour()
    sink = Wary(study)
    await moved(box, sink)
    return set(sink.uids) == sink.due


@pytest_twisted.ensureDeferred
async def test_a_slow_series_ends_at_the_ceiling(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    box.attach(pacs.port, move_ceiling=1.0)
    pacs.behaviour = Behaviour(pause=0.6)
    with pytest.raises(RetrieveTimeout, match="pour une série"):
        await moved(box, Wary(study))
    await box.all_free(6)


@pytest_twisted.ensureDeferred
async def test_our_own_pause_is_not_the_pacs_fault(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    """A slow client holds the association back for longer than the gap allowed to a PACS."""
    sink = Wary(study)

    def hold(channel: Channel) -> None:
        sink.on_store = lambda channel: None
        sink.held_back = True
        channel.pause()

        def go_on() -> None:
            sink.held_back = False
            sink.last_activity = reactor.seconds()
            channel.resume()

        reactor.callLater(PACS.gap_timeout + 0.6, go_on)

    sink.on_store = hold
    assert (await moved(box, sink)).success
    assert set(sink.uids) == sink.due


# -- no stranger --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(),
        Behaviour(originator="absent"),
        Behaviour(associations=2, parallel=True, originator="absent"),
        Behaviour(intruder="study"),
        Behaviour(final="early", pause=0.02),
        Behaviour(repeat=(0, 1, 2), pause=0.02),
    ],
)
@pytest_twisted.ensureDeferred
async def test_two_patients_at_once_never_mix(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, other_study: GeneratedStudy, behaviour: Behaviour
) -> None:
    pacs.behaviour = behaviour
    first, second = Wary(study), Wary(other_study)
    await gatherResults([apart(moved(box, sink)) for sink in (first, second)])
    assert set(first.uids) == first.due
    assert set(second.uids) == second.due
    assert len({event.details["destination"] for event in pacs.seen("move")}) == 2
    await box.all_free()


@pytest.mark.requirement("DB.SO.85")
@pytest.mark.parametrize("originator", ["right", "absent"])
@pytest_twisted.ensureDeferred
async def test_late_images_of_one_patient_never_reach_the_next(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, other_study: GeneratedStudy, originator: Any
) -> None:
    """One title; the PACS goes on sending after its first move was abandoned, deaf to everything."""
    box.attach(pacs.port, pool=("DRIM1",), quarantine=0.5)
    pacs.behaviour = Behaviour(
        survive_abort=True, ignore_cancel=True, pause=0.15, originator=originator, associations=5
    )
    first = Sink()
    retrieval = box.retrieval(first)
    run = apart(retrieval.run(other_study.study_uid, other_study.series[0].series_uid, wait=1))
    run.addErrback(lambda failure: failure.trap(Abandoned))
    await until(lambda: first.whole)
    retrieval.abandon()
    await until(lambda: run.called, 8)
    pacs.behaviour = Behaviour()
    # Everything is kept: what is wrong would show.
    second = Sink(due={each.sop_instance_uid for each in study.series[0].instances})
    await box.retrieval(second).run(study.study_uid, study.series[0].series_uid, wait=10)
    assert set(second.uids) == second.due
    await box.all_free(10)


@pytest.mark.requirement("DB.SO.85")
@pytest_twisted.ensureDeferred
async def test_many_requests_share_few_titles(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, other_study: GeneratedStudy
) -> None:
    sinks = [Wary(each) for _ in range(6) for each in (study, other_study)]
    await gatherResults([apart(moved(box, sink, wait=20)) for sink in sinks])
    assert all(set(sink.uids) == sink.due for sink in sinks)
    await box.all_free()


@pytest_twisted.ensureDeferred
async def test_a_title_that_does_not_come_free_is_e1003(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(pause=0.4)
    running = [apart(moved(box, Wary(study))) for _ in range(2)]
    with pytest.raises(TooManyRequests) as caught:
        await moved(box, Wary(study), wait=0.1)
    assert caught.value.retry_after == 1
    await gatherResults(running)


@pytest.mark.requirement("DB.SO.121")
@pytest_twisted.ensureDeferred
async def test_an_association_that_does_not_come_free_is_e1003(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    box.attach(pacs.port, max_associations=1)
    pacs.behaviour = Behaviour(pause=0.4)
    running = apart(moved(box, Wary(study)))
    with pytest.raises(TooManyRequests):
        await moved(box, Wary(study), wait=0.1)
    assert TitleState.FREE in box.states()
    await running
    await box.all_free()


@pytest.mark.requirement("DB.SO.121")
@pytest.mark.parametrize(
    ("reasons", "kind"),
    [((2, 3, 2), TooManyRequests), ((2, 3, 1), TooManyRequests), ((1, 1, 3), PacsUnavailable)],
)
@pytest_twisted.ensureDeferred
async def test_a_pacs_without_an_association_to_give_is_asked_later(
    box: Box,
    pacs: SimulatedPacs,
    study: GeneratedStudy,
    reasons: tuple[int, int, int],
    kind: type[ImageError],
) -> None:
    """A transient rejection is a limit (E1003, come back); a permanent one is a fault (E1004)."""
    pacs.behaviour = Behaviour(reject=reasons)
    with pytest.raises(kind) as caught:
        await moved(box, Wary(study), wait=3)
    assert caught.value.retry_after == (3 if kind is TooManyRequests else None)
    assert box.states() == [TitleState.FREE] * 2


# -- a refused context, a bug -------------------------------------------------------------------------


def silence(association: Answering, command: Command, data: Any) -> None:
    """Answer nothing."""


@pytest_twisted.ensureDeferred
async def test_a_pacs_that_refuses_c_move_costs_no_quarantine(box: Box, study: GeneratedStudy) -> None:
    async with ScriptedPacs(silence, refuse=STUDY_ROOT_MOVE) as pacs:
        box.attach(pacs.port)
        with pytest.raises(PacsUnavailable, match="refuse la classe SOP"):
            await moved(box, Wary(study))
        assert box.states() == [TitleState.FREE] * 2
        await until(lambda: pacs.open == 0)


@pytest_twisted.ensureDeferred
async def test_only_one_cancel_and_it_names_the_move(box: Box, study: GeneratedStudy) -> None:
    async with ScriptedPacs(silence) as pacs:
        box.attach(pacs.port)
        with pytest.raises(RetrieveTimeout):
            await moved(box, Wary(study))
        await box.all_free(5)
        (move,) = pacs.requests(CommandField.C_MOVE_RQ)
        (cancel,) = pacs.requests(CommandField.C_CANCEL_RQ)
        assert cancel.responded_id == move.message_id
        assert pacs.ends == ["abort"]


@pytest_twisted.ensureDeferred
async def test_no_title_is_leased_while_we_stop(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    held = [await box.pool.lease(Sink(), 1) for _ in range(2)]
    waiting = apart(moved(box, Wary(study), wait=30))
    box.pools.stop()
    with pytest.raises(TooManyRequests):
        await waiting
    with pytest.raises(TooManyRequests):
        await moved(box, Wary(study), wait=30)
    for title in held:
        title.release(final=True)
    assert not box.pool._waiting
