"""The feed against real PACS: DCMTK's dcmqrscp, which tells no SOP class in C-FIND, and Orthanc."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from drimbox.sim.peers import Dcmqrscp, Orthanc, Peer, free_port
from drimbox.sim.stand import LOOPBACK, PacsAddress
from drimbox.sim.study_objects import add_key_objects
from tests.integration.feed_stand import (
    POOL,
    FeedStand,
    Studies,
    held_instances,
    kos_dataset,
    kos_instances,
)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: A frozen PACS is given up soon.
QUICK = {"query_timeout": "1"}


EACH_PEER = pytest.mark.parametrize(
    "name",
    [
        pytest.param("dcmqrscp", marks=pytest.mark.peer("dcmqrscp")),
        pytest.param("orthanc", marks=pytest.mark.peer("Orthanc")),
    ],
)


def peer_called(name: str, folder: Path, port: int) -> Peer:
    """Return a PACS, not started, that sends to a gateway at `port`."""
    destinations = dict.fromkeys(POOL, (LOOPBACK, port))
    if name == "dcmqrscp":
        return Dcmqrscp(folder / "peer", "PACS", move_destinations=destinations)
    return Orthanc(folder / "peer", "PACS", modalities=destinations, clients=["DRIMBOX"])


@pytest.mark.requirement("DB.SO.14", "DB.SO.13", "DB.SO.15", "DB.SO.18")
@EACH_PEER
@pytest_twisted.inlineCallbacks
def test_a_report_is_published_and_follows_a_real_pacs(name: str, tmp_path: Path) -> object:
    port = free_port()
    peer = peer_called(name, tmp_path, port)
    # dcmqrscp proposes the syntax it is told to and converts nothing: it must hold what it proposes.
    syntax = JPEGLSLossless if name == "dcmqrscp" else ExplicitVRLittleEndian
    yield deferToThread(peer.start)
    stand = FeedStand(
        tmp_path / "stand", [PacsAddress("PACS", peer.port, POOL, settings=QUICK)], dicom_port=port
    )

    async def body() -> None:
        studies = Studies(tmp_path / "studies")
        study = studies.new(instances=5, series=2, transfer_syntax=syntax)
        await deferToThread(peer.load, study.files)
        await stand.up()
        await stand.report(study)
        first = await stand.published_one(study)
        assert kos_instances(first) == held_instances(study)
        (evidence,) = kos_dataset(first).CurrentRequestedProcedureEvidenceSequence
        classes = {
            str(one.ReferencedSOPClassUID)
            for series in evidence.ReferencedSeriesSequence
            for one in series.ReferencedSOPSequence
        }
        assert classes == {CT_IMAGE}
        await stand.report(study)
        await stand.idle()
        assert [entry.unique_id for entry in stand.kos(study, None)] == [first.unique_id]
        more = studies.new(instances=7, series=2, study_uid=study.study_uid, transfer_syntax=syntax)
        await deferToThread(peer.load, more.files)
        await stand.report(study)
        await stand.idle()
        (second,) = stand.kos(study)
        assert kos_instances(second) == held_instances(more)
        await stand.report("2.25.909090")
        await stand.notice_about("2.25.909090", "E004")
        # The PACS goes away and comes back with a study that somebody reported meanwhile.
        late = studies.new(instances=1, transfer_syntax=syntax)
        await deferToThread(peer.load, late.files)
        peer.pause()
        await stand.report(late)
        await stand.notice_about("PACS1", "E003")
        peer.resume()
        await stand.published_one(late, seconds=60.0)

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        yield deferToThread(peer.stop)


@pytest.mark.requirement("DB.SO.25", "DB.SO.18")
@EACH_PEER
@pytest_twisted.inlineCallbacks
def test_a_rejection_note_in_a_real_pacs_is_not_in_the_kos(name: str, tmp_path: Path) -> object:
    port = free_port()
    peer = peer_called(name, tmp_path, port)
    yield deferToThread(peer.start)
    stand = FeedStand(
        tmp_path / "stand", [PacsAddress("PACS", peer.port, POOL, settings=QUICK)], dicom_port=port
    )

    async def body() -> None:
        study = Studies(tmp_path / "studies").new(instances=2, transfer_syntax=ExplicitVRLittleEndian)
        images = held_instances(study)
        for title in ("113001", "113000"):
            study = add_key_objects(study, title=title, targets=study.instances[:1])
        await deferToThread(peer.load, study.files)
        await stand.up()
        await stand.report(study)
        entry = await stand.published_one(study)
        interest = study.series[-1]
        kept = {interest.series_uid: {one.sop_instance_uid for one in interest.instances}}
        assert kos_instances(entry) == {**images, **kept}

    try:
        yield Deferred.fromCoroutine(body())
    finally:
        yield Deferred.fromCoroutine(stand.stop())
        yield deferToThread(peer.stop)
