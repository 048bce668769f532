"""Learning what a PACS does not tell: SOP classes come from C-STORE commands, never from a guess."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import pytest_twisted

from drimbox.dicom.aetitles import TitleState
from drimbox.dicom.gateway import PacsGateway
from drimbox.errors import PacsCommunicationError
from drimbox.sim.pacs import SimulatedPacs
from drimbox.sim.pacs_behaviour import Behaviour
from drimbox.sim.peers import Dcmqrscp, Orthanc
from drimbox.sim.studies import GeneratedStudy
from drimbox.sim.study_objects import add_key_objects, add_report
from tests.dicom.box import Box, Sink, reactor

pytestmark = pytest.mark.requirement("DB.SO.14")


def gateway(box: Box, *, learn_wait: float = 2.0) -> PacsGateway:
    return PacsGateway(box.links, box.mover, reactor, learn_wait=learn_wait)


def classes(study: GeneratedStudy) -> dict[str, str]:
    return {each.sop_instance_uid: each.sop_class_uid for each in study.instances}


async def learnt(box: Box, study: GeneratedStudy) -> dict[str, str]:
    found = await gateway(box).find_study(box.pacs, study.study_uid)
    assert found is not None
    return {
        instance.sop_instance_uid: instance.sop_class_uid
        for series in found.series
        for instance in series.instances
    }


@pytest.mark.peer("dcmqrscp")
@pytest_twisted.ensureDeferred
async def test_dcmtk_gives_no_classes_so_they_are_learnt(
    box: Box, here: Path, study: GeneratedStudy, tmp_path: Path
) -> None:
    """Objects that no modality would have told apart, beside the images."""
    copies = tmp_path / "copies"
    copies.mkdir()
    mixed = add_key_objects(add_report(attrs.evolve(study, folder=copies)))
    with Dcmqrscp(here, "PACS", move_destinations=box.destinations) as peer:
        peer.load(mixed.files)
        box.attach(peer.port)
        assert await learnt(box, mixed) == classes(mixed)
        assert len(set(classes(mixed).values())) == 3
        await box.all_free()


@pytest.mark.peer("Orthanc")
@pytest_twisted.ensureDeferred
async def test_orthanc_gives_the_classes_so_nothing_is_moved(
    box: Box, here: Path, study: GeneratedStudy
) -> None:
    with Orthanc(here, "PACS", clients=["DRIMBOX"]) as peer:
        peer.load(study.files)
        box.attach(peer.port)
        assert await learnt(box, study) == classes(study)


@pytest.mark.parametrize("relational", [True, False])
@pytest_twisted.ensureDeferred
async def test_what_cfind_gives_is_not_asked_again(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, relational: bool
) -> None:
    pacs.behaviour = Behaviour(relational=relational)
    assert await learnt(box, study) == classes(study)
    assert pacs.seen("move") == []
    pacs.behaviour = Behaviour(relational=relational, find_omit=("SOPClassUID",))
    assert await learnt(box, study) == classes(study)
    assert len(pacs.seen("move")) == len(study.series)
    await box.all_free()


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(final="early"),
        Behaviour(associations=3),
        Behaviour(associations=3, parallel=True),
        Behaviour(repeat=(0, 1)),
        Behaviour(intruder="study"),
        Behaviour(claim_completed=77),
        Behaviour(originator="absent"),
        Behaviour(propose="uncompressed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_odd_pacs_still_teaches(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, behaviour: Behaviour
) -> None:
    pacs.behaviour = attrs.evolve(behaviour, find_omit=("SOPClassUID",))
    assert await learnt(box, study) == classes(study)
    await box.all_free()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(move_status=0xA801), "classe SOP inconnue de"),
        (Behaviour(skip=(1,)), "classe SOP inconnue de 1 instances"),
        (Behaviour(fail=(0,)), "classe SOP inconnue de 1 instances"),
        (Behaviour(originator="wrong"), "classe SOP inconnue de"),
        (Behaviour(store_calling="SOMEBODY"), "classe SOP inconnue de"),
        (Behaviour(move="silent"), "C-MOVE impossible"),
        (Behaviour(move="abort"), "C-MOVE impossible"),
        (Behaviour(move="garbage"), "C-MOVE impossible"),
        (Behaviour(final="never"), "C-MOVE impossible"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_class_that_cannot_be_learnt_is_never_guessed(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy, behaviour: Behaviour, words: str
) -> None:
    pacs.behaviour = attrs.evolve(behaviour, find_omit=("SOPClassUID",))
    with pytest.raises(PacsCommunicationError, match=words) as caught:
        await gateway(box).find_study(box.pacs, study.study_uid)
    assert caught.value.retry
    pacs.behaviour = Behaviour(find_omit=("SOPClassUID",))
    assert await learnt(box, study) == classes(study)
    await box.all_free(10)


@pytest_twisted.ensureDeferred
async def test_learning_waits_for_a_title_and_then_gives_up(
    box: Box, pacs: SimulatedPacs, study: GeneratedStudy
) -> None:
    pacs.behaviour = Behaviour(find_omit=("SOPClassUID",))
    titles = [await box.pool.lease(Sink(), 1) for _ in range(2)]
    with pytest.raises(PacsCommunicationError, match="C-MOVE impossible"):
        await gateway(box, learn_wait=0.1).find_study(box.pacs, study.study_uid)
    for title in titles:
        title.release(final=True)
    assert set(box.states()) == {TitleState.FREE}


@pytest_twisted.ensureDeferred
async def test_an_absent_study_moves_nothing(box: Box, pacs: SimulatedPacs) -> None:
    assert await gateway(box).find_study(box.pacs, "1.2.3.4") is None
    assert pacs.seen("move") == []
